// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

var (
	shared = netip.MustParseAddr("192.0.2.1")
	target = netip.MustParseAddr("203.0.113.10")
)

// router is the one at a distance.
func router(ttl int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 9, byte(ttl)}) }

// world is an internet behind fake agents: where each answer comes home, and which there are. It is the truth of the tests.
type world struct {
	// hops is the distance of every target; the answers of hop n (the last is the target) come home at receiver(n).
	hops     int
	receiver func(hop int, target netip.Addr) string
	// silent hops and targets do not answer.
	silent func(hop int, target netip.Addr) bool

	mu     sync.Mutex
	agents map[string]*fakeAgent
}

// answer is what comes back for a probe, and the distance it came from.
func (w *world) answer(probe []byte, ttl int) ([]byte, int) {
	q, err := packet.ParseQuote(probe)
	if err != nil {
		panic(err)
	}
	hop := min(ttl, w.hops)
	if w.silent != nil && w.silent(hop, q.Dst) {
		return nil, hop
	}
	src, body := router(hop), []byte(nil)
	switch {
	case ttl < w.hops:
		body, err = packet.AppendICMPError4(nil, &packet.ICMPError{Type: packet.ICMPv4TimeExceeded, Quote: probe})
	case q.Protocol == packet.ProtocolICMP:
		src, body = q.Dst, append([]byte(nil), probe[packet.IPv4HeaderLen:]...)
		body[0] = packet.ICMPv4EchoReply
		packet.SetICMPChecksum(body)
	default:
		src = q.Dst
		body, err = packet.AppendICMPError4(nil, &packet.ICMPError{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodePort, Quote: probe})
	}
	if err != nil {
		panic(err)
	}
	h := packet.IPv4Header{TTL: 60, Protocol: packet.ProtocolICMP, Src: src, Dst: q.Src}
	b, err := h.Append(nil, len(body))
	if err != nil {
		panic(err)
	}
	return append(b, body...), hop
}

// started is a controller that serves, and how to reach it.
type started struct {
	*Controller
	t      testing.TB
	listen *bufconn.Listener
	stop   func() error // ends Serve and gives its error
}

// addressed gives each connection the address of a host of its own.
type addressed struct {
	net.Listener
	hosts atomic.Uint32
}

func (l *addressed) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	n := l.hosts.Add(1)
	return &addressedConn{c, &net.TCPAddr{IP: net.IPv4(198, 51, byte(n>>8), byte(n)), Port: 40000}}, err
}

type addressedConn struct {
	net.Conn
	from net.Addr
}

func (c *addressedConn) RemoteAddr() net.Addr { return c.from }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start serves until the test ends, in cleartext unless o says otherwise.
func start(t testing.TB, o Options) *started {
	t.Helper()
	if o.Start == 0 {
		o.Start, o.End, o.Block = 10000, 20000, 100
	}
	if o.Authority == nil {
		o.Insecure = true
	}
	if o.Log == nil {
		o.Log = quiet()
	}
	if o.NameTimeout == 0 {
		o.NameTimeout = -1
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := &started{Controller: c, t: t, listen: bufconn.Listen(1 << 20)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Serve(ctx, &addressed{Listener: s.listen}) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func (s *started) dial(ctx context.Context, _ string) (net.Conn, error) {
	return s.listen.DialContext(ctx)
}

func (s *started) conn() *grpc.ClientConn {
	s.t.Helper()
	cc, err := grpc.NewClient("passthrough:///controller", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(s.dial))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cc.Close() })
	return cc
}

func (s *started) client() *client.Client {
	s.t.Helper()
	c, err := client.Dial(s.t.Context(), "controller", client.Options{Insecure: true, Dialer: s.dial})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// request is what a text request is answered with.
func (s *started) request(command string) (int32, string) {
	s.t.Helper()
	code, output, err := s.client().Request(s.t.Context(), command)
	if err != nil {
		s.t.Fatalf("%s: %v", command, err)
	}
	return code, output
}

// eventually polls until a condition holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (s *started) connected(names ...string) {
	s.t.Helper()
	eventually(s.t, "all sites connected", func() bool {
		have := map[string]bool{}
		for _, site := range s.fleet.Sites() {
			have[site.Name] = true
		}
		for _, name := range names {
			if !have[name] {
				return false
			}
		}
		return true
	})
}

// fakeAgent speaks the native protocol, and asks its world what becomes of probes.
type fakeAgent struct {
	world  *world
	name   string
	offset time.Duration // of its clock
	// deaf keeps it from telling that it has opened sessions.
	deaf bool
	// mute keeps the answers and reports of the site from being sent; onSend sees every order.
	mute   bool
	onSend func(*measurepb.Send)

	incarnation uint64
	cancel      context.CancelFunc
	ended       chan error
	welcome     *measurepb.Welcome

	mu       sync.Mutex // guards the stream's sending side, and what follows
	stream   measurepb.Fleet_AttachClient
	seq      uint64
	acked    uint64
	kept     []*measurepb.FromAgent // not acknowledged
	sessions map[uint32]*stateless.Codec
}

func (w *world) agent(name string) *fakeAgent {
	a := &fakeAgent{world: w, name: name, incarnation: uint64(len(name)) + 1, sessions: map[uint32]*stateless.Codec{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.agents == nil {
		w.agents = map[string]*fakeAgent{}
	}
	w.agents[name] = a
	return a
}

func (a *fakeAgent) now() int64 { return time.Now().Add(a.offset).UnixNano() }

// attach connects, and serves until the connection ends.
func (a *fakeAgent) attach(s *started) {
	s.t.Helper()
	if err := a.tryAttach(s.t, s.conn()); err != nil {
		s.t.Fatalf("attach %s: %v", a.name, err)
	}
}

func (a *fakeAgent) tryAttach(t testing.TB, cc *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := measurepb.NewFleetClient(cc).Attach(ctx)
	if err != nil {
		cancel()
		return err
	}
	hello := &measurepb.Hello{AgentId: a.name, Incarnation: a.incarnation, Version: "test", Anycast: [][]byte{shared.AsSlice()}}
	a.mu.Lock()
	for id := range a.sessions {
		hello.Sessions = append(hello.Sessions, id)
	}
	a.mu.Unlock()
	if err := stream.Send(&measurepb.FromAgent{Event: &measurepb.FromAgent_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) {
		cancel()
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		cancel()
		return err
	}
	a.mu.Lock()
	a.welcome, a.cancel, a.ended, a.stream = first.GetWelcome(), cancel, make(chan error, 1), stream
	for len(a.kept) > 0 && seqOf(a.kept[0]) <= a.welcome.GetAcknowledged() {
		a.kept = a.kept[1:]
	}
	for _, m := range a.kept {
		stream.Send(m)
	}
	ended := a.ended
	a.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := a.serve(stream)
		a.mu.Lock()
		if a.stream == stream {
			a.stream = nil
		}
		a.mu.Unlock()
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return nil
}

func seqOf(m *measurepb.FromAgent) uint64 {
	return max(m.GetSent().GetSeq(), m.GetAnswers().GetSeq())
}

// detach breaks the connection and waits until the agent noticed.
func (a *fakeAgent) detach() {
	a.cancel()
	<-a.ended
}

func (a *fakeAgent) serve(stream measurepb.Fleet_AttachClient) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, m := range append([]*measurepb.ToAgent{m}, m.GetMore()...) {
			if err := a.obey(stream, m); err != nil {
				return err
			}
		}
	}
}

// obey does what one message says.
func (a *fakeAgent) obey(stream measurepb.Fleet_AttachClient, m *measurepb.ToAgent) error {
	switch o := m.GetOrder().(type) {
	case *measurepb.ToAgent_Ping:
		t := a.now()
		a.mu.Lock()
		stream.Send(&measurepb.FromAgent{Event: &measurepb.FromAgent_Pong{Pong: &measurepb.Pong{Id: o.Ping.GetId(), T0: o.Ping.GetT0(), T1: t, T2: a.now()}}})
		a.mu.Unlock()
	case *measurepb.ToAgent_Open:
		p := o.Open
		conf := stateless.Config{
			Kind: measurepb.ToProtocol(p.GetProtocol()), FirstPort: uint16(p.GetFirstPort()), Ports: uint16(p.GetPorts()),
			TOS: uint8(p.GetTos()), Classic: p.GetClassic(),
		}
		if !conf.Classic {
			conf.DstPort = uint16(p.GetDstPort())
		}
		copy(conf.Key[:], p.GetKey())
		codec, err := stateless.New(conf)
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.sessions[p.GetSession()] = codec
		if !a.deaf {
			stream.Send(&measurepb.FromAgent{Event: &measurepb.FromAgent_Opened{Opened: &measurepb.Opened{Sessions: []uint32{p.GetSession()}}}})
		}
		a.mu.Unlock()
	case *measurepb.ToAgent_Close:
		a.mu.Lock()
		delete(a.sessions, o.Close.GetSession())
		a.mu.Unlock()
	case *measurepb.ToAgent_Acknowledge:
		a.mu.Lock()
		a.acked = max(a.acked, o.Acknowledge.GetSeq())
		for len(a.kept) > 0 && seqOf(a.kept[0]) <= a.acked {
			a.kept = a.kept[1:]
		}
		a.mu.Unlock()
	case *measurepb.ToAgent_Send:
		if a.onSend != nil {
			a.onSend(o.Send)
		}
		if !a.mute {
			a.send(o.Send)
		}
	}
	return nil
}

// one gives the element of a column that counts for a row.
func one(column []uint32, row int) uint32 {
	if len(column) == 1 {
		return column[0]
	}
	return column[row]
}

// send answers an order at once: with the report of the sender, and with the answers where they come home.
func (a *fakeAgent) send(o *measurepb.Send) {
	a.mu.Lock()
	codec := a.sessions[o.GetSession()]
	a.mu.Unlock()
	if codec == nil {
		return
	}
	targets := len(o.GetTargets()) / 4
	n := max(targets, len(o.GetTtls()), len(o.GetFlows()), len(o.GetNumbers()))
	src, _ := netip.AddrFromSlice(o.GetSource())
	report := &measurepb.SentReport{Session: o.GetSession(), Batch: o.GetBatch(), Count: uint32(n)}
	home := map[string]*measurepb.Answers{}
	var last int64
	var buf []byte
	for i := range n {
		at := i
		if targets == 1 {
			at = 0
		}
		dst := netip.AddrFrom4([4]byte(o.GetTargets()[4*at:]))
		ttl := one(o.GetTtls(), i)
		sent := a.now()
		var err error
		buf, err = codec.Append(buf[:0], &stateless.Probe{
			Src: src, Dst: dst, TTL: uint8(ttl), Flow: uint16(one(o.GetFlows(), i)), Number: uint16(one(o.GetNumbers(), i)), Time: sent,
		})
		if err != nil {
			panic(err)
		}
		report.Times = append(report.Times, sent-last)
		last = sent
		answer, hop := a.world.answer(buf, int(ttl))
		if answer == nil {
			continue
		}
		name := a.world.receiver(hop, dst)
		to := home[name]
		if to == nil {
			to = &measurepb.Answers{}
			home[name] = to
		}
		to.Packets = append(to.Packets, answer...)
		to.Lengths = append(to.Lengths, uint32(len(answer)))
	}
	if !o.GetStamps() {
		report.Times = nil
	}
	for name, answers := range home {
		a.world.mu.Lock()
		to := a.world.agents[name]
		a.world.mu.Unlock()
		to.deliver(answers)
	}
	a.report(&measurepb.FromAgent{Event: &measurepb.FromAgent_Sent{Sent: report}})
}

// deliver sends answers that came home here, a tenth of a millisecond later.
func (a *fakeAgent) deliver(answers *measurepb.Answers) {
	now := a.now() + int64(100*time.Microsecond)
	for range answers.GetLengths() {
		answers.Times = append(answers.Times, now)
	}
	a.report(&measurepb.FromAgent{Event: &measurepb.FromAgent_Answers{Answers: answers}})
}

// report numbers a message, keeps it until it is acknowledged, and sends it if there is a connection.
func (a *fakeAgent) report(m *measurepb.FromAgent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seq++
	switch e := m.GetEvent().(type) {
	case *measurepb.FromAgent_Sent:
		e.Sent.Seq = a.seq
	case *measurepb.FromAgent_Answers:
		e.Answers.Seq = a.seq
	}
	a.kept = append(a.kept, m)
	if a.stream != nil {
		a.stream.Send(m)
	}
}

// originAgent is one of the originals' agents, whose answers are scripted.
type originAgent struct {
	t       testing.TB
	dialect volta.Dialect
	stream  anycastpb.AnycastService_ControlStreamClient
	cancel  context.CancelFunc
}

func (s *started) origin(name string, dialect volta.Dialect) *originAgent {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	stream, err := anycastpb.NewAnycastServiceClient(s.conn()).ControlStream(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	o := &originAgent{t: s.t, dialect: dialect, stream: stream, cancel: cancel}
	o.send(volta.Register{AgentID: name})
	s.connected(name)
	return o
}

func (o *originAgent) send(m volta.Message) {
	o.t.Helper()
	p, err := volta.Encode(o.dialect, m)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := o.stream.Send(p); err != nil {
		o.t.Fatal(err)
	}
}

// run answers jobs until the stream ends.
func (o *originAgent) run(do func(volta.Job)) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			p, err := o.stream.Recv()
			if err != nil {
				return
			}
			if m, err := volta.DecodeAs(o.dialect, p); err == nil {
				do(m.(volta.Job))
			}
		}
	}()
	return func() {
		o.cancel()
		<-done
	}
}

var _ anycast.Handler = (*recorder)(nil)

// recorder is a Handler that remembers.
type recorder struct {
	mu      sync.Mutex
	sent    []anycast.Sent
	answers []anycast.Answer
}

func (r *recorder) HandleSent(s anycast.Sent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, s)
}

func (r *recorder) HandleAnswers(a []anycast.Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = append(r.answers, a...)
}

func (r *recorder) counts() (sent, answers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sent), len(r.answers)
}

// answersOf is packets that came home at one moment.
func answersOf(at time.Time, packets ...[]byte) *measurepb.FromAgent {
	a := &measurepb.Answers{}
	for _, p := range packets {
		a.Times = append(a.Times, at.UnixNano())
		a.Lengths = append(a.Lengths, uint32(len(p)))
		a.Packets = append(a.Packets, p...)
	}
	return &measurepb.FromAgent{Event: &measurepb.FromAgent_Answers{Answers: a}}
}

// noResolver knows no name, and says so at once.
func noResolver() *volta.Resolver {
	return &volta.Resolver{DNS: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no server")
	}}}
}

// deadResolver asks a server that does not answer.
func deadResolver() *volta.Resolver {
	return &volta.Resolver{Timeout: 200 * time.Millisecond, DNS: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}}
}

func anycastStream(t testing.TB, s *started) (anycastpb.AnycastService_ControlStreamClient, error) {
	return anycastpb.NewAnycastServiceClient(s.conn()).ControlStream(t.Context())
}
