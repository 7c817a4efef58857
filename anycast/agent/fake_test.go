// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// The addresses of the tests, by IP version.
var (
	shared = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	own    = [2]netip.Addr{netip.MustParseAddr("10.88.1.2"), netip.MustParseAddr("fd88:1::2")}
	target = [2]netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:1::10")}
	router = [2]netip.Addr{netip.MustParseAddr("10.9.9.1"), netip.MustParseAddr("fd88:9::1")}
)

// internet is one router before every host. Hosts answer echo requests, and refuse datagrams.
type internet struct {
	delay time.Duration

	mu   sync.Mutex
	sent [][]byte
	when []time.Time
}

func (n *internet) carry(p []byte) []rawiotest.Delivery {
	n.mu.Lock()
	n.sent = append(n.sent, slices.Clone(p))
	n.when = append(n.when, time.Now())
	n.mu.Unlock()
	a := answer(p)
	if a == nil {
		return nil
	}
	return []rawiotest.Delivery{{After: n.delay, Packet: a}}
}

func (n *internet) packets() [][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.sent)
}

// answer is what comes back for a probe.
func answer(p []byte) []byte {
	q, err := packet.ParseQuote(p)
	if err != nil {
		panic(err)
	}
	v := (q.Version - 4) / 2
	echo := [2]uint8{packet.ICMPv4Echo, packet.ICMPv6Echo}[v]
	switch {
	case q.TTL <= 1:
		typ := [2]uint8{packet.ICMPv4TimeExceeded, packet.ICMPv6TimeExceeded}[v]
		return icmpError(router[v], q.Src, &packet.ICMPError{Type: typ, Quote: p})
	case q.Protocol == packet.ProtocolUDP:
		typ := [2]uint8{packet.ICMPv4Unreachable, packet.ICMPv6Unreachable}[v]
		code := [2]uint8{packet.ICMPv4CodePort, packet.ICMPv6CodePort}[v]
		return icmpError(q.Dst, q.Src, &packet.ICMPError{Type: typ, Code: code, Quote: p})
	case q.Transport[0] == echo:
		m := slices.Clone(q.Transport)
		m[0] = [2]uint8{packet.ICMPv4EchoReply, packet.ICMPv6EchoReply}[v]
		if v == 0 {
			packet.SetICMPChecksum(m)
		} else {
			packet.SetICMPv6Checksum(m, q.Dst, q.Src)
		}
		return whole(q.Dst, q.Src, [2]packet.Protocol{packet.ProtocolICMP, packet.ProtocolICMPv6}[v], m)
	}
	return nil
}

func icmpError(src, dst netip.Addr, e *packet.ICMPError) []byte {
	if dst.Is4() {
		m, err := packet.AppendICMPError4(nil, e)
		if err != nil {
			panic(err)
		}
		return whole(src, dst, packet.ProtocolICMP, m)
	}
	m, err := packet.AppendICMPError6(nil, src, dst, e)
	if err != nil {
		panic(err)
	}
	return whole(src, dst, packet.ProtocolICMPv6, m)
}

func whole(src, dst netip.Addr, proto packet.Protocol, payload []byte) []byte {
	var b []byte
	var err error
	if dst.Is4() {
		h := packet.IPv4Header{TTL: 60, ID: 7, TOS: 0xc0, Protocol: proto, Src: src, Dst: dst}
		b, err = h.Append(nil, len(payload))
	} else {
		h := packet.IPv6Header{HopLimit: 60, TrafficClass: 0xc0, NextHeader: proto, Src: src, Dst: dst}
		b, err = h.Append(nil, len(payload))
	}
	if err != nil {
		panic(err)
	}
	return append(b, payload...)
}

// site is an agent under test and its network.
type site struct {
	*Agent
	host *rawiotest.Host
	net  *internet
	t    testing.TB
}

// start runs an agent until the test ends.
func start(t testing.TB, o Options) *site {
	t.Helper()
	s := &site{t: t, net: &internet{delay: 10 * time.Millisecond}}
	s.host = rawiotest.NewHost(rawiotest.Config{
		Network: s.net.carry, Addrs: []netip.Addr{own[0], own[1], shared[0], shared[1]},
		Interfaces: []string{"lo", "eth0"}, Link: rawio.LinkAddr{2, 0, 0, 0, 0, 1},
	})
	if o.ID == "" {
		o.ID = "ams"
	}
	if o.Host == nil {
		o.Host = func() (rawio.Host, error) { return s.host, nil }
	}
	if o.Anycast == nil {
		o.Anycast = shared[:]
	}
	var err error
	if s.Agent, err = New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return s
}

// controller is a fake of ours.
type controller struct {
	measurepb.UnimplementedFleetServer
	t        testing.TB
	listener *bufconn.Listener
	server   *grpc.Server
	attached chan *attachment
}

// attachment is one connection of an agent, seen from the controller.
type attachment struct {
	t      testing.TB
	hello  *measurepb.Hello
	stream grpc.BidiStreamingServer[measurepb.FromAgent, measurepb.ToAgent]
	in     chan *measurepb.FromAgent
	over   chan error // what the handler is to return
	opened []uint32   // sessions that the agent has confirmed, as far as next has read
}

func newController(t testing.TB) *controller {
	c := &controller{t: t, listener: bufconn.Listen(1 << 20), server: grpc.NewServer(), attached: make(chan *attachment, 16)}
	measurepb.RegisterFleetServer(c.server, c)
	serve(t, c.server, c.listener)
	return c
}

func serve(t testing.TB, s *grpc.Server, l net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // ends with Stop
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
}

func (c *controller) dial(ctx context.Context, _ string) (net.Conn, error) {
	return c.listener.DialContext(ctx)
}

func (c *controller) Attach(stream grpc.BidiStreamingServer[measurepb.FromAgent, measurepb.ToAgent]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	a := &attachment{t: c.t, hello: m.GetHello(), stream: stream, in: make(chan *measurepb.FromAgent, 1<<16), over: make(chan error, 1)}
	if a.hello == nil {
		c.t.Errorf("first message is %v, want Hello", m)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer close(a.in)
		for {
			m, err := stream.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) && stream.Context().Err() == nil {
					c.t.Errorf("controller receives: %v", err)
				}
				return
			}
			more := m.GetMore()
			m.More = nil
			a.in <- m
			for _, m := range more {
				a.in <- m
			}
		}
	}()
	c.attached <- a
	select {
	case err = <-a.over:
	case <-gone:
	case <-stream.Context().Done():
	}
	return err
}

const patience = 20 * time.Second

// accept waits for an agent and welcomes it.
func (c *controller) accept(acknowledged uint64, sessions ...uint32) *attachment {
	c.t.Helper()
	select {
	case a := <-c.attached:
		a.order(&measurepb.Welcome{Controller: "test", Acknowledged: acknowledged, Sessions: sessions})
		return a
	case <-time.After(patience):
		c.t.Fatal("no agent came")
		return nil
	}
}

// order sends one of the messages to an agent.
func (a *attachment) order(o any) {
	a.t.Helper()
	m := &measurepb.ToAgent{}
	switch o := o.(type) {
	case *measurepb.Welcome:
		m.Order = &measurepb.ToAgent_Welcome{Welcome: o}
	case *measurepb.Ping:
		m.Order = &measurepb.ToAgent_Ping{Ping: o}
	case *measurepb.Open:
		m.Order = &measurepb.ToAgent_Open{Open: o}
	case *measurepb.Send:
		m.Order = &measurepb.ToAgent_Send{Send: o}
	case *measurepb.Close:
		m.Order = &measurepb.ToAgent_Close{Close: o}
	case *measurepb.Acknowledge:
		m.Order = &measurepb.ToAgent_Acknowledge{Acknowledge: o}
	}
	if err := a.stream.Send(m); err != nil {
		a.t.Logf("controller sends: %v", err)
	}
}

// confirmed reads until the agent has confirmed a session, which has to be what it says next.
func (a *attachment) confirmed(id uint32) {
	a.t.Helper()
	for end := time.After(patience); !slices.Contains(a.opened, id); {
		select {
		case m := <-a.in:
			if m.GetOpened() == nil {
				a.t.Fatalf("%v, want session %d opened", m, id)
			}
			a.opened = append(a.opened, m.GetOpened().GetSessions()...)
		case <-end:
			a.t.Fatalf("session %d is not confirmed", id)
		}
	}
}

// next gives the agent's next message but for its statistics and the sessions it confirms; nil when the stream has ended.
func (a *attachment) next() *measurepb.FromAgent {
	a.t.Helper()
	for end := time.After(patience); ; {
		select {
		case m, ok := <-a.in:
			if !ok {
				return nil
			}
			a.opened = append(a.opened, m.GetOpened().GetSessions()...)
			if m.GetStats() == nil && m.GetOpened() == nil {
				return m
			}
		case <-end:
			a.t.Fatal("the agent says nothing")
		}
	}
}

// collect reads until there are so many reports and answers.
func (a *attachment) collect(reports, answers int) (rs []*measurepb.SentReport, as []received) {
	a.t.Helper()
	for len(rs) < reports || len(as) < answers {
		m := a.next()
		if m == nil {
			a.t.Fatalf("stream ended after %d reports and %d answers, want %d and %d", len(rs), len(as), reports, answers)
		}
		if r := m.GetSent(); r != nil {
			rs = append(rs, r)
		}
		as = append(as, unpack(a.t, m.GetAnswers())...)
	}
	if len(rs) != reports || len(as) != answers {
		a.t.Fatalf("%d reports and %d answers, want %d and %d", len(rs), len(as), reports, answers)
	}
	return rs, as
}

// received is one of Answers.
type received struct {
	time int64
	pkt  []byte
}

func unpack(t testing.TB, a *measurepb.Answers) (out []received) {
	t.Helper()
	rest := a.GetPackets()
	if len(a.GetTimes()) != len(a.GetLengths()) {
		t.Fatalf("%d times and %d lengths", len(a.GetTimes()), len(a.GetLengths()))
	}
	for i, n := range a.GetLengths() {
		out = append(out, received{a.GetTimes()[i], rest[:n]})
		rest = rest[n:]
	}
	if len(rest) > 0 {
		t.Fatalf("%d bytes behind the last packet", len(rest))
	}
	return out
}

// parse recognises an answer as another site, or the controller, would.
func parse(t testing.TB, table *stateless.Table, r received) stateless.Answer {
	t.Helper()
	var a stateless.Answer
	var err error
	if r.pkt[0]>>4 == 4 {
		_, err = table.Parse4(r.pkt, &a)
	} else {
		var ip packet.IPv6
		if ip, err = packet.ParseQuotedIPv6(r.pkt); err == nil {
			_, err = table.Parse6(ip.Src(), ip.Dst(), ip.HopLimit(), ip.TrafficClass(), ip.NextHeader(), r.pkt[ip6Header:], &a)
		}
	}
	if err != nil {
		t.Fatalf("parse %x: %v", r.pkt, err)
	}
	return a
}

var key = stateless.Key{1, 2, 3, 4}

// open is a session with ports of its own.
func open(id uint32, proto measurepb.Protocol) *measurepb.Open {
	return &measurepb.Open{Session: id, Key: key[:], Protocol: proto, FirstPort: 20000 + 16*id, Ports: 16}
}

// table recognises the answers of sessions.
func table(t testing.TB, opens ...*measurepb.Open) *stateless.Table {
	t.Helper()
	tab := new(stateless.Table)
	for _, o := range opens {
		conf, err := sessionConfig(o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := stateless.New(conf)
		if err != nil {
			t.Fatal(err)
		}
		if err := tab.Add(c); err != nil {
			t.Fatal(err)
		}
	}
	return tab
}

// send asks for n probes to the target of an IP version, with the numbers from first on.
func send(session uint32, batch uint64, v, n int, first uint32) *measurepb.Send {
	s := &measurepb.Send{Session: session, Batch: batch, Ipv6: v == 1, Targets: target[v].AsSlice(), Ttls: []uint32{64}, Stamps: true}
	for i := range n {
		s.Numbers = append(s.Numbers, first+uint32(i))
	}
	return s
}

// absolute undoes the differences of a report.
func absolute(times []int64) []int64 {
	var t int64
	var out []int64
	for _, d := range times {
		t += d
		out = append(out, t)
	}
	return out
}
