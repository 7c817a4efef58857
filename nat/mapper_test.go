// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/nat/natpmp"
	"github.com/seed5728abee/fathom/nat/nattest"
	"github.com/seed5728abee/fathom/nat/pcp"
)

var (
	methods  = []nat.Method{nat.PCP, nat.NATPMP, nat.UPnP}
	loopback = netip.MustParseAddr("127.0.0.1")
	stranger = netip.MustParseAddrPort("192.0.2.66:4000")
)

// discover finds a gateway, by one method or by whatever it takes.
func discover(t *testing.T, g *nattest.Gateway, change func(*nat.Options)) *nat.Mapper {
	t.Helper()
	o := g.Options()
	if change != nil {
		change(&o)
	}
	m, err := nat.Discover(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func by(method nat.Method) func(*nat.Options) { return func(o *nat.Options) { o.Method = method } }

func mapPort(t *testing.T, m *nat.Mapper, r nat.Request) *nat.Mapping {
	t.Helper()
	mapping, err := m.Map(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return mapping
}

// until waits for something that happens in its own time.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// listener remembers events.
type listener struct {
	mu     sync.Mutex
	events []nat.Event
}

func (l *listener) hear(e nat.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *listener) kinds() []nat.EventKind {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kinds []nat.EventKind
	for _, e := range l.events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

func TestMapByEach(t *testing.T) {
	t.Parallel()
	for _, method := range methods {
		t.Run(method.String(), func(t *testing.T) {
			t.Parallel()
			g := nattest.New(t, nattest.Behaviour{})
			m := discover(t, g, by(method))
			if m.Gateway() != loopback || m.Local() != loopback {
				t.Errorf("gateway %v, local %v", m.Gateway(), m.Local())
			}
			mapping := mapPort(t, m, nat.Request{Protocol: nat.UDP, InternalPort: 4100, Lifetime: 10 * time.Minute, Description: "a <test>"})
			s := mapping.State()
			if s.Method != method || s.Protocol != nat.UDP || s.Gateway != loopback || s.Internal != netip.AddrPortFrom(loopback, 4100) ||
				s.External.String() != "203.0.113.1:4100" || s.Lifetime != 10*time.Minute || time.Until(s.Expires) > 10*time.Minute || time.Until(s.Expires) < 9*time.Minute {
				t.Errorf("state %+v", s)
			}
			got := g.Mappings()
			if len(got) != 1 || got[0].Protocol != nat.UDP || got[0].External != 4100 || got[0].Internal != s.Internal {
				t.Errorf("the gateway has %+v", got)
			}
			if method == nat.UPnP && got[0].Description != "a <test>" {
				t.Errorf("described as %q", got[0].Description)
			}
			for range 2 {
				if err := mapping.Close(); err != nil {
					t.Error(err)
				}
			}
			if got := g.Mappings(); len(got) != 0 {
				t.Errorf("after Close the gateway has %+v", got)
			}
			for _, other := range methods {
				if n := g.Requests(other); other != method && n > 0 {
					t.Errorf("asked %d times by %v", n, other)
				}
			}
		})
	}
}

func TestAutomaticChoice(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		speaks []nat.Method
		want   nat.Method
	}{
		{nil, nat.PCP},
		{[]nat.Method{nat.NATPMP, nat.UPnP}, nat.NATPMP}, // and answers PCP with "unsupported version"
		{[]nat.Method{nat.NATPMP}, nat.NATPMP},
		{[]nat.Method{nat.UPnP}, nat.UPnP},
		{[]nat.Method{nat.PCP}, nat.PCP},
	} {
		g := nattest.New(t, nattest.Behaviour{Methods: tt.speaks})
		mapping := mapPort(t, discover(t, g, nil), nat.Request{InternalPort: 4100})
		if got := mapping.State().Method; got != tt.want {
			t.Errorf("at a gateway that speaks %v: %v", tt.speaks, got)
		}
	}
}

// A gateway that refuses one method is asked by the next, those included that were not waited for.
func TestRefusedByOne(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{})
	// What a program that was killed has left: to PCP it belongs to somebody else.
	g.Put(nattest.Mapping{Protocol: nat.TCP, External: 4100, Internal: netip.AddrPortFrom(loopback, 4100)})
	mapping := mapPort(t, discover(t, g, nil), nat.Request{InternalPort: 4100})
	if s := mapping.State(); s.Method != nat.NATPMP || s.External.Port() != 4100 {
		t.Errorf("state %+v", s)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{Refuse: true})
	for _, method := range append(methods, nat.Auto) {
		m := discover(t, g, by(method))
		if _, err := m.Map(t.Context(), nat.Request{InternalPort: 4100}); !errors.Is(err, nat.ErrRefused) {
			t.Errorf("%v: %v", method, err)
		}
		// What failed is not mapped: it may be tried again.
		if _, err := m.Map(t.Context(), nat.Request{InternalPort: 4100}); errors.Is(err, nat.ErrMapped) {
			t.Errorf("%v, again: %v", method, err)
		}
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	for _, method := range methods {
		for _, poor := range []nattest.Behaviour{{}, {Overwrite: true}, {Mute: true}} {
			g := nattest.New(t, poor)
			taken := []nattest.Mapping{
				{Protocol: nat.TCP, External: 4100, Internal: stranger},
				// Of another program of this host: not ours either.
				{Protocol: nat.TCP, External: 4101, Internal: netip.AddrPortFrom(loopback, 5555)},
				{Protocol: nat.UDP, External: 4102, Internal: stranger},
			}
			if poor.Mute {
				taken[1].Internal = stranger // such a gateway cannot tell
			}
			for _, one := range taken {
				g.Put(one)
			}
			m := discover(t, g, by(method))
			tcp := mapPort(t, m, nat.Request{InternalPort: 4100})
			if got := tcp.External().Port(); got != 4102 {
				t.Errorf("%v at %+v: got port %d, want 4102", method, poor, got)
			}
			// Both on one port: 4100 and 4101 are free for neither or only for one, 4102 for none.
			both := mapPort(t, m, nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 4200, ExternalPort: 4100})
			if got := both.External().Port(); got != 4103 {
				t.Errorf("%v at %+v: got port %d for both, want 4103", method, poor, got)
			}
			m.Close()
			left := g.Mappings()
			if !slices.EqualFunc(left, taken, func(a, b nattest.Mapping) bool {
				return a.Protocol == b.Protocol && a.External == b.External && a.Internal == b.Internal
			}) {
				t.Errorf("%v at %+v: others had %+v, and have %+v", method, poor, taken, left)
			}
		}
	}
}

func TestAllPortsTaken(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{SamePorts: true})
	m := discover(t, g, by(nat.UPnP))
	if _, err := m.Map(t.Context(), nat.Request{InternalPort: 4100, ExternalPort: 4200}); !errors.Is(err, nat.ErrPortTaken) {
		t.Errorf("a gateway that maps ports to themselves only: %v", err)
	}
	if got := mapPort(t, m, nat.Request{InternalPort: 4100}).External().Port(); got != 4100 {
		t.Errorf("got port %d", got)
	}
}

func TestMappedTwice(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{})
	m, other := discover(t, g, nil), discover(t, g, by(nat.UPnP))
	mapping := mapPort(t, m, nat.Request{Protocol: nat.UDP, InternalPort: 4100})
	for _, again := range []*nat.Mapper{m, other} {
		if _, err := again.Map(t.Context(), nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 4100}); !errors.Is(err, nat.ErrMapped) {
			t.Errorf("mapped twice: %v", err)
		}
	}
	mapPort(t, m, nat.Request{Protocol: nat.TCP, InternalPort: 4100}).Close()
	mapping.Close()
	mapPort(t, other, nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 4100})
}

func TestClose(t *testing.T) {
	t.Parallel()
	for _, method := range methods {
		g := nattest.New(t, nattest.Behaviour{})
		m := discover(t, g, by(method))
		for port := range uint16(5) {
			mapPort(t, m, nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 4100 + port})
		}
		for range 2 {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		if got := g.Mappings(); len(got) != 0 {
			t.Errorf("%v: the gateway has %+v", method, got)
		}
		if _, err := m.Map(t.Context(), nat.Request{InternalPort: 4100}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v: after Close: %v", method, err)
		}
	}
}

func TestDoubleNAT(t *testing.T) {
	t.Parallel()
	for _, external := range []string{"10.0.0.2", "100.64.0.2"} {
		for _, method := range append(methods, nat.Auto) {
			g := nattest.New(t, nattest.Behaviour{External: netip.MustParseAddr(external)})
			_, err := discover(t, g, by(method)).Map(t.Context(), nat.Request{InternalPort: 4100})
			if !errors.Is(err, nat.ErrDoubleNAT) {
				t.Errorf("%s by %v: %v", external, method, err)
			}
			if got := g.Mappings(); len(got) != 0 {
				t.Errorf("%s by %v: the gateway has %+v", external, method, got)
			}
			m := discover(t, g, func(o *nat.Options) { o.Method = method; o.AllowPrivate = true })
			if got := mapPort(t, m, nat.Request{InternalPort: 4100}).External(); got.Addr().String() != external {
				t.Errorf("%s by %v: allowed, it is %v", external, method, got)
			}
			m.Close()
		}
	}
	g := nattest.New(t, nattest.Behaviour{External: netip.IPv4Unspecified()})
	if _, err := discover(t, g, by(nat.NATPMP)).Map(t.Context(), nat.Request{InternalPort: 4100}); !errors.Is(err, nat.ErrDoubleNAT) {
		t.Errorf("a gateway that is not connected: %v", err)
	}
}

// Leases of a second are renewed in time, and stay on their port.
func TestShortLeases(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, method := range methods {
		t.Run(method.String(), func(t *testing.T) {
			t.Parallel()
			var heard listener
			g := nattest.New(t, nattest.Behaviour{MaxLease: time.Second})
			g.Put(nattest.Mapping{Protocol: nat.TCP, External: 4100, Internal: stranger})
			mapping := mapPort(t, discover(t, g, by(method)), nat.Request{InternalPort: 4100, Notify: heard.hear})
			until(t, "two renewals", func() bool { return len(heard.kinds()) >= 2 })
			if kinds := heard.kinds(); slices.ContainsFunc(kinds, func(k nat.EventKind) bool { return k != nat.Renewed }) {
				t.Errorf("heard %v", kinds)
			}
			if s := mapping.State(); s.External.Port() != 4101 || s.Lifetime > time.Second {
				t.Errorf("state %+v", s)
			}
		})
	}
}

// After a restart that nobody announces, the next look at the gateway's clock, or at its list, tells.
func TestSilentRestart(t *testing.T) {
	t.Parallel()
	for _, method := range methods {
		t.Run(method.String(), func(t *testing.T) {
			t.Parallel()
			var heard listener
			g := nattest.New(t, nattest.Behaviour{})
			g.Age(time.Hour)
			m := discover(t, g, func(o *nat.Options) { o.Method = method; o.CheckInterval = 20 * time.Millisecond })
			mapping := mapPort(t, m, nat.Request{Protocol: nat.TCP | nat.UDP, InternalPort: 4100, Notify: heard.hear})
			time.Sleep(50 * time.Millisecond) // a few looks
			g.Forget()
			until(t, "mapped again", func() bool { return len(g.Mappings()) == 2 })
			until(t, "told", func() bool { return len(heard.kinds()) > 0 })
			if kinds := heard.kinds(); kinds[0] != nat.Renewed || mapping.External().Port() != 4100 {
				t.Errorf("heard %v, external %v", kinds, mapping.External())
			}
		})
	}
}

func TestAnnouncedRestart(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{})
	g.Age(time.Hour)
	mapPort(t, discover(t, g, by(nat.PCP)), nat.Request{InternalPort: 4100})
	g.Forget()
	g.Announce()
	until(t, "mapped again", func() bool { return len(g.Mappings()) == 1 })
}

// A gateway is off for a while. When it is back, its UPnP service is at another port.
func TestOutageOfGateway(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, method := range methods {
		t.Run(method.String(), func(t *testing.T) {
			t.Parallel()
			var heard listener
			g := nattest.New(t, nattest.Behaviour{})
			m := discover(t, g, func(o *nat.Options) {
				o.Method, o.CheckInterval, o.Timeout = method, 20*time.Millisecond, 300*time.Millisecond
			})
			mapping := mapPort(t, m, nat.Request{InternalPort: 4100, Notify: heard.hear})
			g.Down()
			until(t, "lost", func() bool { return slices.Contains(heard.kinds(), nat.Lost) })
			if e := heard.events[0]; !errors.Is(e.Err, nat.ErrNoGateway) {
				t.Errorf("lost because of %v", e.Err)
			}
			if err := g.Up(); err != nil {
				t.Fatal(err)
			}
			until(t, "back", func() bool { return slices.Contains(heard.kinds(), nat.Mapped) })
			if len(g.Mappings()) != 1 || mapping.External().Port() != 4100 {
				t.Errorf("external %v, the gateway has %v", mapping.External(), g.Mappings())
			}
		})
	}
}

// Somebody takes the port while the gateway has forgotten it: the mapping moves on, and disturbs nobody.
func TestPortLostToAnother(t *testing.T) {
	t.Parallel()
	for _, method := range methods {
		var heard listener
		g := nattest.New(t, nattest.Behaviour{})
		g.Age(time.Hour)
		m := discover(t, g, func(o *nat.Options) { o.Method = method; o.CheckInterval = 20 * time.Millisecond })
		mapping := mapPort(t, m, nat.Request{InternalPort: 4100, Notify: heard.hear})
		time.Sleep(50 * time.Millisecond)
		g.Set(func(b *nattest.Behaviour) { b.Lose = 1 << 30 })
		g.Drop(nat.TCP, 4100)
		g.Put(nattest.Mapping{Protocol: nat.TCP, External: 4100, Internal: stranger})
		g.Age(-time.Hour)
		g.Set(func(b *nattest.Behaviour) { b.Lose = 0 })
		until(t, method.String()+" moved on", func() bool { return mapping.External().Port() == 4101 })
		until(t, "told", func() bool { return slices.Contains(heard.kinds(), nat.Changed) })
		m.Close()
		if got := g.Mappings(); len(got) != 1 || got[0].Internal != stranger {
			t.Errorf("%v: the gateway has %+v", method, got)
		}
	}
}

func TestAddressChange(t *testing.T) {
	t.Parallel()
	for _, method := range []nat.Method{nat.NATPMP, nat.UPnP} { // PCP's clock tells
		var heard listener
		g := nattest.New(t, nattest.Behaviour{})
		m := discover(t, g, func(o *nat.Options) { o.Method = method; o.CheckInterval = 20 * time.Millisecond })
		mapping := mapPort(t, m, nat.Request{InternalPort: 4100, Notify: heard.hear})
		g.Set(func(b *nattest.Behaviour) { b.External = netip.MustParseAddr("203.0.113.77") })
		until(t, "told", func() bool { return slices.Contains(heard.kinds(), nat.Changed) })
		if got := mapping.External().String(); got != "203.0.113.77:4100" {
			t.Errorf("%v: external %s", method, got)
		}
	}
}

func TestLostDatagrams(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{Methods: []nat.Method{nat.PCP}, Lose: 1})
	m := discover(t, g, by(nat.PCP))
	g.Set(func(b *nattest.Behaviour) { b.Lose = 2 })
	mapPort(t, m, nat.Request{InternalPort: 4100})
}

func TestPermanentOnly(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{PermanentOnly: true})
	mapping := mapPort(t, discover(t, g, by(nat.UPnP)), nat.Request{InternalPort: 4100})
	if s := mapping.State(); s.Lifetime != 0 || !s.Expires.IsZero() {
		t.Errorf("state %+v", s)
	}
	mapping.Close()
	if got := g.Mappings(); len(got) != 0 {
		t.Errorf("the gateway has %+v", got)
	}
}

func TestNoGateway(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{})
	o := g.Options()
	o.Timeout = 300 * time.Millisecond
	g.Down()
	for _, method := range append(methods, nat.Auto, nat.Off) {
		o.Method = method
		began := time.Now()
		if _, err := nat.Discover(t.Context(), o); !errors.Is(err, nat.ErrNoGateway) {
			t.Errorf("%v: %v", method, err)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%v: took %v", method, took)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o.Method = nat.UPnP
	if _, err := nat.Discover(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A description at another host than the one that answered is not read.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{Elsewhere: true})
	o := g.Options()
	o.Method, o.Timeout = nat.UPnP, 300*time.Millisecond
	if _, err := nat.Discover(t.Context(), o); !errors.Is(err, nat.ErrNoGateway) {
		t.Errorf("got %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	m := discover(t, nattest.New(t, nattest.Behaviour{}), nil)
	for _, r := range []nat.Request{{}, {InternalPort: 4100, Protocol: 8}} {
		if _, err := m.Map(t.Context(), r); err == nil {
			t.Errorf("mapped %+v", r)
		}
	}
	if _, err := nat.Discover(t.Context(), nat.Options{Gateway: netip.MustParseAddr("2001:db8::1")}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an IPv6 gateway: %v", err)
	}
}

// Answers with another nonce, for another port, or garbage, are not ours; what counts is the one that comes after them.
func TestForgedAnswers(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer conn.Close()
	serving.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			r, err := pcp.ParseRequest(buf[:n])
			if err != nil {
				continue
			}
			good := pcp.Response{Opcode: r.Opcode, Lifetime: r.Lifetime, Mapping: r.Mapping}
			good.Mapping.External = netip.MustParseAddrPort("203.0.113.1:4100")
			nonce, port, protocol, opcode := good, good, good, good
			for _, bad := range []*pcp.Response{&nonce, &port, &protocol, &opcode} {
				bad.Mapping.External = netip.MustParseAddrPort("203.0.113.66:666")
			}
			nonce.Mapping.Nonce[11] ^= 1
			port.Mapping.InternalPort++
			protocol.Mapping.Protocol = pcp.UDP
			opcode.Opcode = pcp.Peer
			packets := [][]byte{{}, {2}, bytes.Repeat([]byte{0xff}, 1500), opcode.Append(nil), natpmp.Response{Op: natpmp.MapTCP, InternalPort: 4100, ExternalPort: 666}.Append(nil)}
			if r.Opcode == pcp.Map {
				packets = append(packets, nonce.Append(nil), port.Append(nil), protocol.Append(nil))
			}
			for _, packet := range append(packets, good.Append(nil)) {
				conn.WriteToUDPAddrPort(packet, from)
			}
		}
	})
	m, err := nat.Discover(t.Context(), nat.Options{Method: nat.PCP, Gateway: loopback, ControlPort: uint16(conn.LocalAddr().(*net.UDPAddr).Port)})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got := mapPort(t, m, nat.Request{InternalPort: 4100}).External().String(); got != "203.0.113.1:4100" {
		t.Errorf("external %s", got)
	}
}

func TestSurvey(t *testing.T) {
	t.Parallel()
	g := nattest.New(t, nattest.Behaviour{Methods: []nat.Method{nat.NATPMP, nat.UPnP}})
	g.Age(time.Hour)
	g.Put(nattest.Mapping{Protocol: nat.TCP, External: 4100, Internal: stranger, Description: "bad\x07bell"})
	g.Put(nattest.Mapping{Protocol: nat.UDP, External: 4101, Internal: stranger, Expires: time.Now().Add(time.Hour)})
	r, err := nat.Survey(t.Context(), g.Options())
	if err != nil {
		t.Fatal(err)
	}
	if r.Gateway != loopback || r.Local != loopback || r.External.String() != "203.0.113.1" || r.DoubleNAT {
		t.Errorf("got %+v", r)
	}
	if len(r.Answers) != 3 || !errors.Is(r.Answers[0].Err, nat.ErrNoAnswer) || r.Answers[1].Err != nil || r.Answers[2].Err != nil ||
		r.Answers[2].Device != "Test router" || r.Answers[1].Uptime < time.Hour || r.Answers[1].Took <= 0 {
		t.Errorf("answers %+v", r.Answers)
	}
	if len(r.Leases) != 2 || r.Leases[0].Internal != stranger || r.Leases[0].Remaining != 0 || r.Leases[1].Remaining < 59*time.Minute {
		t.Errorf("leases %+v", r.Leases)
	}
	g.Set(func(b *nattest.Behaviour) { b.External = netip.MustParseAddr("192.168.1.7") })
	if r, err := nat.Survey(t.Context(), g.Options()); err != nil || !r.DoubleNAT {
		t.Errorf("behind another NAT: %+v, %v", r, err)
	}
	g.Down()
	o := g.Options()
	o.Timeout = 300 * time.Millisecond
	if r, err := nat.Survey(t.Context(), o); !errors.Is(err, nat.ErrNoGateway) || len(r.Answers) != 3 {
		t.Errorf("nobody there: %+v, %v", r, err)
	}
}
