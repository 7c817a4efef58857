// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
)

func TestInvalidRequests(t *testing.T) {
	p, _ := open(t, nil, Options{})
	for _, tt := range []struct {
		field string
		req   Request
	}{
		{"target", Request{}},
		{"protocol", Request{Target: target[0], Protocol: 4}},
		{"protocol", Request{Target: target[0], Protocol: 255}},
		{"size", Request{Target: target[0], Size: -1}},
		{"size", Request{Target: target[0], Size: MaxSize + 1}},
		{"timeout", Request{Target: target[0], Timeout: MaxTimeout + 1}},
		{"local address", Request{Target: target[0], LocalAddr: local[1]}},
		{"local address", Request{Target: target[1], LocalAddr: local[0]}},
		{"interface", Request{Target: target[0], Interface: "sixteen-bytes-xx"}},
		{"interface", Request{Target: target[0], Interface: "eth0\x00"}},
	} {
		called := false
		_, err := p.Start(tt.req, func(Result) { called = true })
		invalid, ok := errors.AsType[*RequestError](err)
		if !errors.Is(err, ErrInvalid) || !ok || invalid.Field != tt.field || !strings.Contains(err.Error(), tt.field) || called {
			t.Errorf("%+v: %v, called %v; want an invalid %s", tt.req, err, called, tt.field)
		}
		if r, err := p.Probe(t.Context(), tt.req); !errors.Is(err, ErrInvalid) || r.Status != Failed || !errors.Is(r.Err, ErrInvalid) {
			t.Errorf("%+v: %+v, %v", tt.req, r, err)
		}
		if _, err := p.Send(t.Context(), tt.req); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", tt.req, err)
		}
	}
	if n := p.InFlight(); n != 0 {
		t.Errorf("%d in flight", n)
	}
	for _, n := range []int{-1, 1<<26 + 1} {
		if p, err := New(Options{MaxInFlight: n}); !errors.Is(err, ErrInvalid) {
			t.Errorf("MaxInFlight %d: %v, %v", n, p, err)
		}
	}
}

// TestTargets: an IPv4-mapped target is the IPv4 one, and an unspecified one this host.
func TestTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &internet{}
		p, _ := open(t, net.carry, Options{})
		for _, tt := range []struct{ target, sent string }{
			{"::ffff:198.51.100.1", "198.51.100.1"},
			{"0.0.0.0", "127.0.0.1"},
			{"::", "::1"},
			{"fe80::1%eth0", "fe80::1"},
		} {
			r, err := p.Probe(t.Context(), Request{Target: netip.MustParseAddr(tt.target)})
			if err != nil || r.Status != Replied || r.Responder.String() != tt.sent {
				t.Errorf("%s: %+v, %v", tt.target, r, err)
			}
			if d := dissect(net.last(t)); d.dst.String() != tt.sent {
				t.Errorf("%s: sent to %v, want %s", tt.target, d.dst, tt.sent)
			}
		}
		if _, err := p.Probe(t.Context(), Request{Target: netip.MustParseAddr("fe80::1%gone")}); !errors.Is(err, ErrNoInterface) {
			t.Errorf("unknown zone: %v", err)
		}
	})
}

func TestVanished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, (&internet{}).carry, Options{})
		other := netip.MustParseAddr("10.88.1.3")
		host.SetAddrs(local[0], local[1], other)
		via := Request{Target: target[0], Interface: "eth0"}
		from := Request{Target: target[0], LocalAddr: other}
		for _, req := range []Request{via, from} {
			if r, err := p.Probe(t.Context(), req); err != nil || r.Status != Replied {
				t.Errorf("%+v: %+v, %v", req, r, err)
			}
		}
		host.SetInterfaces("lo", "")
		host.SetAddrs(local[0], local[1])
		// What is cached for a second at most fails at the send instead.
		for range 2 {
			if _, err := p.Probe(t.Context(), via); !errors.Is(err, ErrNoInterface) {
				t.Errorf("through a vanished interface: %v", err)
			}
			time.Sleep(2 * time.Second)
		}
		if _, err := p.Probe(t.Context(), from); !errors.Is(err, ErrAddrNotAvailable) {
			t.Errorf("from a vanished address: %v", err)
		}
		host.SetAddrs()
		time.Sleep(2 * time.Second)
		for v := range target {
			for _, proto := range protocols {
				if r, err := p.Probe(t.Context(), Request{Target: target[v], Protocol: proto}); err != nil || r.Status != NetUnreachable {
					t.Errorf("%v to %v without any address: %+v, %v", proto, target[v], r, err)
				}
			}
		}
	})
}

// TestOneVersion: on a host without IPv6 everything else works.
func TestOneVersion(t *testing.T) {
	host := rawiotest.NewHost(rawiotest.Config{Network: (&internet{}).carry, Addrs: local[:1]})
	host.SetFaults(rawiotest.Faults{Open: func(s rawio.Spec) error {
		if s.Version == 6 {
			return syscall.EAFNOSUPPORT
		}
		return nil
	}})
	p, err := New(Options{Mode: Privileged, host: host})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f := p.Features()
	if !f.IPv4 || f.IPv6 || len(f.Missing) != 1 || !f.Supports(ICMP, 4) || f.Supports(ICMP, 6) {
		t.Errorf("%+v", f)
	}
	if r, err := p.Probe(t.Context(), Request{Target: target[0]}); err != nil || r.Status != Replied {
		t.Errorf("IPv4: %+v, %v", r, err)
	}
	if _, err := p.Probe(t.Context(), Request{Target: target[1]}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("IPv6: %v, want ErrUnsupported", err)
	}
	f.Missing[0] = "" // the caller's copy
	if p.Features().Missing[0] == "" {
		t.Error("Features shares its slice")
	}
}

func TestModes(t *testing.T) {
	closedPing := func(rawio.Spec) error { return syscall.EACCES }
	noRaw := func(s rawio.Spec) error {
		if s.Kind != rawio.Datagram {
			return syscall.EPERM
		}
		return nil
	}
	broken := func(rawio.Spec) error { return syscall.ENFILE }
	for _, tt := range []struct {
		name string
		mode Mode
		open func(rawio.Spec) error
		want Mode
		err  error
	}{
		{"raw sockets", Auto, nil, Privileged, nil},
		{"none allowed", Auto, noRaw, Unprivileged, nil},
		{"raw sockets wanted", Privileged, noRaw, 0, ErrPermission},
		{"not wanted", Unprivileged, nil, Unprivileged, nil},
		{"nothing allowed", Auto, closedPing, 0, ErrPermission},
		{"system out of files", Auto, broken, 0, syscall.ENFILE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := rawiotest.NewHost(rawiotest.Config{Addrs: local[:]})
			host.SetFaults(rawiotest.Faults{Open: tt.open})
			p, err := New(Options{Mode: tt.mode, host: host})
			if !errors.Is(err, tt.err) || tt.err == nil && err != nil {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				if errors.Is(err, ErrPermission) && tt.mode == Privileged && !strings.Contains(err.Error(), "cap_net_raw") {
					t.Errorf("%v: does not say what to do", err)
				}
				return
			}
			defer p.Close()
			if got := p.Features().Mode; got != tt.want {
				t.Errorf("mode %v, want %v", got, tt.want)
			}
		})
	}
}

func TestProbeContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, nil, Options{})
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		start := time.Now()
		r, err := p.Probe(ctx, Request{Target: target[0], Timeout: time.Hour})
		if !errors.Is(err, cause) || r.Status != Failed || time.Since(start) != time.Second {
			t.Errorf("%+v, %v after %v", r, err, time.Since(start))
		}
		if _, err := p.Probe(ctx, Request{Target: target[0], Timeout: time.Hour}); !errors.Is(err, cause) {
			t.Errorf("with a context that has ended: %v", err)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if _, err := p.Probe(ctx, Request{Target: target[0], Timeout: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline: %v", err)
		}
		synctest.Wait()
		if n := p.InFlight(); n != 0 {
			t.Errorf("%d in flight", n)
		}
	})
}

func TestSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, func(b []byte) []rawiotest.Delivery {
			if dissect(b).v == 1 {
				return nil
			}
			return arriving(hop, respond(b)...)
		}, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var answered, silent []<-chan Result
		for range 100 {
			for v := range target {
				ch, err := p.Send(ctx, Request{Target: target[v]})
				if err != nil {
					t.Fatal(err)
				}
				if v == 0 {
					answered = append(answered, ch)
				} else {
					silent = append(silent, ch)
				}
			}
		}
		time.Sleep(time.Second) // nobody reads, and nothing blocks
		for _, ch := range answered {
			if r := <-ch; r.Status != Replied {
				t.Errorf("%+v", r)
			}
		}
		cancel()
		for _, ch := range silent {
			if r := <-ch; r.Status != Failed || !errors.Is(r.Err, context.Canceled) {
				t.Errorf("%+v", r)
			}
		}
	})
}

// count yields requests to one target, Tag counting from 0, n of them or without end; asked counts them.
func count(a netip.Addr, n int, asked *int) iter.Seq[Request] {
	return func(yield func(Request) bool) {
		for k := 0; n < 0 || k < n; k++ {
			*asked++
			if !yield(Request{Target: a, Tag: uint64(k), Timeout: time.Second}) {
				return
			}
		}
	}
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window, total = 10, 95
		most := 0
		var p *Prober
		p, _ = open(t, func(b []byte) []rawiotest.Delivery {
			most = max(most, p.InFlight())
			return arriving(hop, respond(b)...)
		}, Options{})
		var tags []uint64
		asked := 0
		start := time.Now()
		for r := range p.Stream(t.Context(), window, count(target[0], total, &asked)) {
			if r.Status != Replied || r.RTT != hop {
				t.Errorf("%+v", r)
			}
			tags = append(tags, r.Tag)
			if ahead := asked - len(tags); ahead > window {
				t.Fatalf("asked for %d requests ahead", ahead)
			}
		}
		slices.Sort(tags)
		for k, tag := range tags {
			if tag != uint64(k) {
				t.Fatalf("results %v", tags)
			}
		}
		if len(tags) != total || most > window {
			t.Errorf("%d results, up to %d in flight; want %d, %d", len(tags), most, total, window)
		}
		if took := time.Since(start); took != 10*hop {
			t.Errorf("took %v, want 10 round trips", took)
		}
	})
}

// TestStreamOrder: results come in the order in which probes end, whatever the order of the requests.
func TestStreamOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, (&internet{routers: 5}).carry, Options{})
		var ttls []uint8
		for r := range p.Stream(t.Context(), 100, slices.Values([]Request{
			{Target: target[0], TTL: 5}, {Target: target[0], TTL: 2}, {Target: target[0], TTL: 4}, {Target: target[0], TTL: 1},
		})) {
			ttls = append(ttls, r.TTL)
		}
		if want := []uint8{1, 2, 4, 5}; !slices.Equal(ttls, want) {
			t.Errorf("results in the order %v, want %v", ttls, want)
		}
	})
}

func TestStreamEarlyEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, (&internet{}).carry, Options{})
		asked, n := 0, 0
		for range p.Stream(t.Context(), 8, count(target[0], -1, &asked)) { // endless
			if n++; n == 100 {
				break
			}
		}
		if asked > 108 {
			t.Errorf("asked for %d requests to give 100 results", asked)
		}
		if f := p.InFlight(); f != 0 {
			t.Errorf("%d in flight after the loop", f)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n = 0
		for range p.Stream(ctx, 8, count(target[0], -1, &asked)) {
			if n++; n == 100 {
				cancel()
			}
		}
		if n < 100 || n > 108 || p.InFlight() != 0 {
			t.Errorf("%d results, %d in flight after the context's end", n, p.InFlight())
		}
		// A context that has ended before, no requests, and a window that makes no sense.
		for range p.Stream(ctx, 8, count(target[0], -1, &asked)) {
			t.Error("a result although the context has ended")
		}
		for range p.Stream(t.Context(), 8, slices.Values([]Request(nil))) {
			t.Error("a result without requests")
		}
		n = 0
		for range p.Stream(t.Context(), -5, count(target[0], 3, &asked)) {
			n++
		}
		if n != 3 {
			t.Errorf("%d results with a window of 1, want 3", n)
		}
	})
}

// TestStreamRefused: what Start refuses is a result, and the rest goes on.
func TestStreamRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, (&internet{}).carry, Options{})
		reqs := []Request{{Target: target[0], Tag: 1}, {Tag: 2}, {Target: target[0], Size: -1, Tag: 3}, {Target: target[1], Tag: 4}}
		got := map[uint64]Status{}
		for r := range p.Stream(t.Context(), 4, slices.Values(reqs)) {
			got[r.Tag] = r.Status
			if r.Status == Failed && !errors.Is(r.Err, ErrInvalid) {
				t.Error(r.Err)
			}
		}
		if len(got) != 4 || got[1] != Replied || got[2] != Failed || got[3] != Failed || got[4] != Replied {
			t.Errorf("%v", got)
		}
		for range p.Stream(t.Context(), 4, slices.Values([]Request{{}})) {
			break // at a refused one
		}
	})
}

// TestStreamClosed: a prober that closes ends a stream that would be endless.
func TestStreamClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, nil, Options{})
		go func() {
			time.Sleep(time.Second / 2)
			p.Close()
		}()
		asked, n := 0, 0
		for r := range p.Stream(t.Context(), 8, count(target[0], -1, &asked)) {
			if n++; r.Status != Failed || !errors.Is(r.Err, ErrClosed) {
				t.Errorf("%+v", r)
			}
			if n > 100 {
				t.Fatal("goes on after Close")
			}
		}
	})
}

func TestResolve(t *testing.T) {
	records := map[string][]string{
		"both.test.": {"AAAA 2001:db8::1", "A 192.0.2.1", "A 192.0.2.2"},
		"four.test.": {"A 192.0.2.4"},
		"six.test.":  {"AAAA 2001:db8::6"},
	}
	resolver := fakeDNS(t, records)
	for _, tt := range []struct {
		host    string
		version int
		want    string // or an error's text
	}{
		{"192.0.2.9", 0, "192.0.2.9"},
		{"192.0.2.9", 4, "192.0.2.9"},
		{"192.0.2.9", 6, "other IP version"},
		{"::ffff:192.0.2.9", 4, "192.0.2.9"},
		{"fe80::1%eth0", 6, "fe80::1%eth0"},
		{"fe80::1%eth0", 4, "other IP version"},
		{"both.test", 4, "192.0.2.1"},
		{"both.test", 6, "2001:db8::1"},
		{"four.test", 0, "192.0.2.4"},
		{"four.test", 6, "resolve four.test (IPv6)"},
		{"six.test", 0, "2001:db8::6"},
		{"six.test", 4, "resolve six.test (IPv4)"},
		{"no.test", 0, "no such host"},
		{"", 0, "resolve"},
		{"not a name!", 0, "resolve"},
	} {
		a, err := Resolve(t.Context(), resolver, tt.host, tt.version)
		if err != nil {
			re, ok := errors.AsType[*ResolveError](err)
			if !ok || re.Host != tt.host || re.Version != tt.version || !strings.Contains(err.Error(), tt.want) || a.IsValid() {
				t.Errorf("%q, version %d: %v, %v; want %s", tt.host, tt.version, a, err, tt.want)
			}
			continue
		}
		if a.String() != tt.want {
			t.Errorf("%q, version %d: %v, want %s", tt.host, tt.version, a, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Resolve(ctx, resolver, "four.test", 4); err == nil {
		t.Error("resolved with a context that has ended")
	}
}

// fakeDNS is a resolver that asks a name server of our own.
func fakeDNS(t *testing.T, records map[string][]string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Skipf("no loopback interface: %v", err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		list, ok := records[q.Question[0].Name]
		if !ok {
			m.Rcode = dns.RcodeNameError
		}
		for _, r := range list {
			rr, err := dns.NewRR(q.Question[0].Name + " 60 IN " + r)
			if err != nil {
				t.Error(err)
				continue
			}
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		if err := w.WriteMsg(m); err != nil {
			t.Error(err)
		}
	})}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func TestNames(t *testing.T) {
	for p := ICMP; p <= SCTP; p++ {
		if got, err := ParseProtocol(p.String()); got != p || err != nil {
			t.Errorf("%v: %v, %v", p, got, err)
		}
	}
	for _, s := range []string{"", "ICMP", "icmp6", "Protocol(4)"} {
		if _, err := ParseProtocol(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, tt := range []struct{ got, want string }{
		{Protocol(37).String(), "Protocol(37)"},
		{Status(0).String(), "Status(0)"},
		{Status(37).String(), "Status(37)"},
		{TimeExceeded.String(), "time-exceeded"},
		{Failed.String(), "failed"},
		{Auto.String(), "auto"},
		{Unprivileged.String(), "unprivileged"},
		{Mode(9).String(), "Mode(9)"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s, want %s", tt.got, tt.want)
		}
	}
}

// TestSourceHint: only a source that routing has chosen, over IPv6, spares the kernel its choice.
func TestSourceHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, (&internet{}).carry, Options{})
		last := watchSends(host)
		for _, tt := range []struct {
			req  Request
			want netip.Addr
		}{
			{Request{Target: target[1]}, local[1]},
			{Request{Target: target[1], Protocol: TCP}, local[1]},
			{Request{Target: target[1], LocalAddr: local[1]}, netip.Addr{}},
			{Request{Target: target[0]}, netip.Addr{}},
			{Request{Target: target[0], Protocol: UDP}, netip.Addr{}},
		} {
			if r, err := p.Probe(t.Context(), tt.req); err != nil || r.Status != Replied {
				t.Fatalf("%+v: %+v, %v", tt.req, r, err)
			}
			if got := last().Source; got != tt.want {
				t.Errorf("%+v: source %v named, want %v", tt.req, got, tt.want)
			}
		}
	})
}
