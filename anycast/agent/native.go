// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// opened is the sessions that a controller is to be told of: they can be sent for.
type opened struct {
	ready chan struct{} // capacity 1: there is something to take

	mu  sync.Mutex
	ids []uint32
}

func (o *opened) add(ids ...uint32) {
	o.mu.Lock()
	o.ids = append(o.ids, ids...)
	o.mu.Unlock()
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

func (o *opened) take() []uint32 {
	o.mu.Lock()
	defer o.mu.Unlock()
	ids := o.ids
	o.ids = nil
	return ids
}

// statsEvery is how often a controller is told the agent's counters.
const statsEvery = 10 * time.Second

// native serves a connection to one of our controllers.
func (l *link) native(ctx context.Context, d Dialect, cc *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A controller that accepts and then says nothing is no controller.
	welcomed := time.AfterFunc(dialTimeout, cancel)
	defer welcomed.Stop()
	stream, err := measurepb.NewFleetClient(cc).Attach(ctx)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	hello, err := l.hello()
	if err != nil {
		return err
	}
	// If that fails, Recv says why.
	_ = stream.Send(&measurepb.FromAgent{Event: &measurepb.FromAgent_Hello{Hello: hello}})
	first, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	welcome := first.GetWelcome()
	if welcome == nil || !welcomed.Stop() {
		return fmt.Errorf("attach: %w", errWelcome)
	}
	l.begin(d)
	l.plane.do(func() { l.plane.keepSessions(l, welcome.GetSessions()) })
	l.spool.setAway(false) // one of Voltadomar's may have been here before
	l.spool.restart(welcome.GetAcknowledged())
	l.up(true)
	l.log.Info("attached to controller", "name", welcome.GetController())

	w := &writer{link: l, stream: stream, pongs: make(chan *measurepb.Pong, 8)}
	var group sync.WaitGroup
	group.Go(func() {
		w.run(ctx)
		cancel()
	})
	err = l.read(stream, w)
	cancel()
	group.Wait()
	return err
}

func (l *link) hello() (*measurepb.Hello, error) {
	o := &l.agent.opts
	h := &measurepb.Hello{AgentId: o.ID, Incarnation: l.agent.incarnation, Version: o.Version, Rate: o.Rate}
	if !l.plane.ask(func() {
		if l.spoken == Native {
			h.Sessions = l.plane.openSessions(l)
		}
		l.plane.findSources()
		anycast := slices.Clone(l.plane.anycast)
		// Whoever names addresses names them all: what routing prefers in the other IP version would be this host's own.
		if len(anycast) == 0 {
			for v := range l.plane.routed {
				if a := l.plane.defaultSource(v); a.IsValid() && !slices.Contains(anycast, a) {
					anycast = append(anycast, a)
				}
			}
		}
		for _, a := range anycast {
			h.Anycast = append(h.Anycast, a.AsSlice())
		}
		unicast := slices.Clone(l.plane.unicast)
		l.mu.Lock()
		local := l.local
		l.mu.Unlock()
		// Where the options name none: what the controller is reached from, or else what the routes prefer.
		for _, a := range []netip.Addr{local, l.plane.routed[0], l.plane.routed[1]} {
			has := slices.ContainsFunc(unicast, func(u netip.Addr) bool { return u.Is4() == a.Is4() })
			if !has && usable(a) && !a.IsLoopback() && !slices.Contains(anycast, a) {
				unicast = append(unicast, a)
			}
		}
		for _, a := range unicast {
			h.Unicast = append(h.Unicast, a.AsSlice())
		}
		for v := range l.plane.senders {
			if l.plane.senders[v].conn == nil {
				h.Missing = append(h.Missing, fmt.Sprintf("IPv%d", 4+2*v))
			}
		}
	}) {
		return nil, context.Canceled
	}
	return h, nil
}

// read does what the controller says until the stream ends.
func (l *link) read(stream grpc.BidiStreamingClient[measurepb.FromAgent, measurepb.ToAgent], w *writer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		var todo []func()
		all := m.GetMore()
		if m.GetOrder() != nil || len(all) == 0 {
			todo, err = l.obey(m, w, todo)
		}
		for _, m := range all {
			if err == nil {
				todo, err = l.obey(m, w, todo)
			}
		}
		// All at once: the plane is woken for each thing that it has to do.
		if len(todo) > 0 {
			l.plane.do(func() {
				for _, f := range todo {
					f()
				}
			})
		}
		if err != nil {
			return err
		}
	}
}

// obey does what one message says, and adds to todo what the plane has to do about it.
func (l *link) obey(m *measurepb.ToAgent, w *writer, todo []func()) ([]func(), error) {
	switch o := m.GetOrder().(type) {
	case *measurepb.ToAgent_Ping:
		pong := &measurepb.Pong{Id: o.Ping.GetId(), T0: o.Ping.GetT0(), T1: time.Now().UnixNano()}
		select {
		case w.pongs <- pong:
		default: // it asks faster than it listens
		}
	case *measurepb.ToAgent_Open:
		id := o.Open.GetSession()
		conf, err := sessionConfig(o.Open)
		todo = append(todo, func() { l.plane.openSession(l, id, conf, err) })
	case *measurepb.ToAgent_Close:
		id, linger := o.Close.GetSession(), time.Duration(o.Close.GetLinger())
		todo = append(todo, func() { l.plane.closeSession(l, id, linger) })
	case *measurepb.ToAgent_Send:
		// Only now: what makes room again must come through.
		if l.spool.overfull() {
			return todo, errDeaf
		}
		order, err := newOrder(l, o.Send)
		if err != nil {
			l.invalid("order to send", err)
			refusal := &report{session: o.Send.GetSession(), batch: o.Send.GetBatch(), err: err}
			todo = append(todo, func() { l.report(refusal) })
			break
		}
		todo = append(todo, func() { l.plane.accept(order) })
	case *measurepb.ToAgent_Acknowledge:
		l.spool.acknowledge(o.Acknowledge.GetSeq())
	default:
		// A newer controller's, or nothing: an agent that does not know it has no part in it.
		l.invalid("message", fmt.Errorf("unexpected kind %T", o))
	}
	return todo, nil
}

var errOrder = errors.New("invalid order")

// sessionConfig translates Open.
func sessionConfig(o *measurepb.Open) (c stateless.Config, err error) {
	kind, ok := kinds[o.GetProtocol()]
	switch {
	case !ok:
		return c, fmt.Errorf("%w: protocol %v", errOrder, o.GetProtocol())
	case o.GetFirstPort() > math.MaxUint16 || o.GetPorts() > math.MaxUint16 || o.GetDstPort() > math.MaxUint16:
		return c, fmt.Errorf("%w: %d ports from %d, to port %d", errOrder, o.GetPorts(), o.GetFirstPort(), o.GetDstPort())
	case o.GetSize() > stateless.MaxSize || o.GetTos() > math.MaxUint8:
		return c, fmt.Errorf("%w: size %d, type of service %d", errOrder, o.GetSize(), o.GetTos())
	case len(o.GetKey()) != len(c.Key) && (!o.GetClassic() || len(o.GetKey()) != 0):
		return c, fmt.Errorf("%w: key of %d bytes", errOrder, len(o.GetKey()))
	}
	copy(c.Key[:], o.GetKey())
	c.Kind = kind
	c.FirstPort, c.Ports, c.DstPort = uint16(o.GetFirstPort()), uint16(o.GetPorts()), uint16(o.GetDstPort())
	c.Size, c.TOS = int(o.GetSize()), uint8(o.GetTos())
	c.Note, c.Name, c.Classic = o.GetNote(), o.GetQuery(), o.GetClassic()
	return c, nil
}

var kinds = map[measurepb.Protocol]stateless.Kind{
	measurepb.Protocol_PROTOCOL_ICMP:  stateless.ICMP,
	measurepb.Protocol_PROTOCOL_UDP:   stateless.UDP,
	measurepb.Protocol_PROTOCOL_TCP:   stateless.TCP,
	measurepb.Protocol_PROTOCOL_DNS:   stateless.DNS,
	measurepb.Protocol_PROTOCOL_CHAOS: stateless.CHAOS,
}

// newOrder translates Send, and checks its form. The order keeps the message's columns.
func newOrder(l *link, s *measurepb.Send) (*order, error) {
	o := &order{
		link: l, id: s.GetSession(), batch: s.GetBatch(), targets: s.GetTargets(), ttls: s.GetTtls(), flows: s.GetFlows(),
		numbers: s.GetNumbers(), rate: s.GetRate(), stamps: s.GetStamps(),
	}
	if s.GetIpv6() {
		o.v = 1
	}
	w := addrLen[o.v]
	if len(o.targets)%w != 0 {
		return nil, fmt.Errorf("%w: %d bytes of targets", errOrder, len(o.targets))
	}
	targets := len(o.targets) / w
	o.n = max(targets, len(o.ttls), len(o.flows), len(o.numbers))
	if o.n > maxOrder {
		return nil, fmt.Errorf("%w: %d probes at once, want at most %d", errOrder, o.n, maxOrder)
	}
	// Flow 0, or number 0, of all is as good as none.
	for _, c := range []*[]uint32{&o.flows, &o.numbers} {
		if len(*c) == 0 {
			*c = zero
		}
	}
	for _, c := range []struct {
		name string
		n    int
	}{{"targets", targets}, {"ttls", len(o.ttls)}, {"flows", len(o.flows)}, {"numbers", len(o.numbers)}} {
		if o.n > 0 && c.n != 1 && c.n != o.n {
			return nil, fmt.Errorf("%w: %d %s for %d probes", errOrder, c.n, c.name, o.n)
		}
	}
	for _, v := range o.ttls {
		if v == 0 || v > math.MaxUint8 {
			return nil, fmt.Errorf("%w: hop limit %d", errOrder, v)
		}
	}
	for _, c := range [][]uint32{o.flows, o.numbers} {
		for _, v := range c {
			if v > math.MaxUint16 {
				return nil, fmt.Errorf("%w: flow or number %d", errOrder, v)
			}
		}
	}
	if o.rate < 0 || math.IsNaN(o.rate) || math.IsInf(o.rate, 0) {
		return nil, fmt.Errorf("%w: rate %v", errOrder, o.rate)
	}
	if o.rate > 0 && o.rate < slowest {
		return nil, fmt.Errorf("%w: rate %v, want at least %v", errOrder, o.rate, slowest)
	}
	if b := s.GetSource(); len(b) > 0 {
		src, ok := netip.AddrFromSlice(b)
		if !ok || len(b) != w {
			return nil, fmt.Errorf("%w: source of %d bytes", errOrder, len(b))
		}
		o.src = src
	}
	return o, nil
}

// zero is a column.
var zero = []uint32{0}

// slowest is the least rate in probes per second: two hours from one probe to the next are more than any measurement's patience.
const slowest = 1.0 / 7200

// writer is what sends on a stream.
type writer struct {
	link   *link
	stream grpc.BidiStreamingClient[measurepb.FromAgent, measurepb.ToAgent]
	pongs  chan *measurepb.Pong
	items  []item // used again and again
}

// run sends until the stream breaks or ctx ends. Pongs go first: how long they wait here is known, but how long they wait
// behind others in the connection is not.
func (w *writer) run(ctx context.Context) {
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	for {
		var m *measurepb.FromAgent
		select {
		case pong := <-w.pongs:
			m = pongMessage(pong)
		default:
			if ids := w.link.opened.take(); len(ids) > 0 {
				m = &measurepb.FromAgent{Event: &measurepb.FromAgent_Opened{Opened: &measurepb.Opened{Sessions: ids}}}
				break
			}
			if w.items = w.link.spool.next(w.items[:0], maxTogether); len(w.items) > 0 {
				m = together(w.items)
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-w.link.spool.ready:
				continue
			case <-w.link.opened.ready:
				continue
			case pong := <-w.pongs:
				m = pongMessage(pong)
			case <-tick.C:
				m = w.link.statsMessage()
			}
		}
		if w.stream.Send(m) != nil {
			return // the reader gets the reason
		}
	}
}

func pongMessage(p *measurepb.Pong) *measurepb.FromAgent {
	p.T2 = time.Now().UnixNano()
	return &measurepb.FromAgent{Event: &measurepb.FromAgent_Pong{Pong: p}}
}

// together makes a message of several items, at least one.
func together(items []item) *measurepb.FromAgent {
	m := items[0].message()
	for i := range items[1:] {
		m.More = append(m.More, items[i+1].message())
	}
	return m
}

func (it *item) message() *measurepb.FromAgent {
	if it.answers != nil {
		return &measurepb.FromAgent{Event: &measurepb.FromAgent_Answers{Answers: it.answers}}
	}
	r := it.report
	sent := &measurepb.SentReport{Seq: it.seq, Session: r.session, Batch: r.batch, Count: uint32(r.count), Kernel: r.kernel}
	if r.err != nil {
		sent.Error = r.err.Error()
	}
	if r.count > 0 && r.times != nil {
		sent.Times = make([]int64, len(r.times))
		before := int64(0)
		for i, t := range r.times {
			sent.Times[i] = t - before
			before = t
		}
	}
	return &measurepb.FromAgent{Event: &measurepb.FromAgent_Sent{Sent: sent}}
}

func (l *link) statsMessage() *measurepb.FromAgent {
	s := l.plane.stats()
	_, dropped := l.spool.stats()
	return &measurepb.FromAgent{Event: &measurepb.FromAgent_Stats{Stats: &measurepb.AgentStats{
		Sent: s.Sent, Received: s.Received, Recognised: s.Recognised, Forged: s.Forged, Dropped: dropped, Overrun: s.Overrun,
	}}}
}
