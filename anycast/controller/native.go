// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/enroll"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
)

// How connections of agents are kept.
const (
	helloTimeout = 10 * time.Second // for an agent's first message
	maxAgents    = 4096
	maxAddresses = 256 // of a site, of each kind

	// The clock of a site is asked for quickly at first, so that the first measurement finds it known.
	pingBurst         = 8
	pingBurstInterval = 50 * time.Millisecond
	pingInterval      = 2 * time.Second

	// Reports are acknowledged so many at a time, or after so long: an acknowledgement frees an agent's memory and is
	// in no hurry.
	ackEvery = 32
	ackAfter = 250 * time.Millisecond

	// Orders that come thick, which is so when the last look found more than a few, are gathered for a moment: to write, and to
	// wake the agent, costs more than a dozen of them.
	thick  = 4
	gather = 500 * time.Microsecond
)

// Why a connection of an agent ends.
var (
	errReplaced = errors.New("another process has registered under this name")
	errStopping = errors.New("the controller stops")
	errHello    = errors.New("malformed hello")
)

// attach serves a native agent. It is the handler of Fleet.Attach.
func (c *Controller) attach(stream measurepb.Fleet_AttachServer) error {
	a := &attachment{
		controller: c, stream: stream, hello: make(chan *measurepb.Hello, 1), attached: make(chan struct{}),
		link: &link{native: newOrders[*measurepb.ToAgent](), end: make(chan struct{})},
	}
	defer a.link.native.close()
	// The goroutines end with the stream, which ends when this handler returns.
	c.streams.Go(a.read)

	timeout := time.NewTimer(helloTimeout)
	defer timeout.Stop()
	select {
	case hello := <-a.hello:
		if err := a.register(hello); err != nil {
			c.log.Warn("agent refused", "agent", hello.GetAgentId(), "peer", callerOf(stream.Context()).String(), "error", err)
			return statusOf(err)
		}
	case <-timeout.C:
		return status.Error(codes.DeadlineExceeded, "no hello came")
	case <-a.link.end:
		return statusOf(a.link.cause)
	case <-c.stopping:
		return statusOf(errStopping)
	}
	close(a.attached)
	c.streams.Go(a.write)

	a.keep()
	now := time.Now()
	if a.site.detach(a.link, now) {
		c.log.Info("agent lost", "agent", a.site.name, "error", a.link.cause)
	}
	c.fleet.unawait(a.link)
	return statusOf(a.link.cause)
}

// attachment is a native agent's connection.
type attachment struct {
	controller *Controller
	stream     measurepb.Fleet_AttachServer
	link       *link
	hello      chan *measurepb.Hello
	attached   chan struct{} // closed when site is set
	site       *site

	received atomic.Uint64 // highest number of a report that is safe
	pingID   atomic.Uint64 // of the ping that is to be sent, or was last
	pingSent atomic.Int64
}

// register makes the agent a site of the fleet.
func (a *attachment) register(h *measurepb.Hello) error {
	c := a.controller
	who := callerOf(a.stream.Context())
	if err := who.checkAgent(h.GetAgentId()); err != nil {
		return err
	}
	info := anycast.Site{
		Name: h.GetAgentId(), Native: true, Rate: h.GetRate(), Since: time.Now(), Version: printable(h.GetVersion(), 64),
	}
	if !(info.Rate >= 0) || math.IsInf(info.Rate, 0) {
		return fmt.Errorf("%w: rate %v", errHello, info.Rate)
	}
	var err error
	if info.Anycast, err = addresses(h.GetAnycast()); err != nil {
		return err
	}
	if info.Unicast, err = addresses(h.GetUnicast()); err != nil {
		return err
	}
	a.site, err = c.fleet.attach(a.link, info, who.secure(), h.GetIncarnation(), h.GetSessions(), c.name)
	if err != nil {
		return err
	}
	for _, missing := range h.GetMissing()[:min(len(h.GetMissing()), 16)] {
		c.log.Warn("agent is limited", "agent", a.site.name, "missing", printable(missing, 200))
	}
	c.log.Info("agent connected", "agent", a.site.name, "peer", who.String(), "version", info.Version, "anycast", info.Anycast)
	return nil
}

func addresses(list [][]byte) ([]netip.Addr, error) {
	if len(list) > maxAddresses {
		return nil, fmt.Errorf("%w: %d addresses", errHello, len(list))
	}
	var out []netip.Addr
	for _, b := range list {
		addr, err := measurepb.ToAddr(b)
		if err != nil || !addr.IsValid() {
			return nil, fmt.Errorf("%w: %d bytes are no address", errHello, len(b))
		}
		out = append(out, addr.Unmap())
	}
	return out, nil
}

// attach makes a connection that of a site, a new one or one that was lost.
func (f *fleet) attach(l *link, info anycast.Site, secure bool, incarnation uint64, has []uint32, controller string) (*site, error) {
	f.mu.Lock()
	s := f.sites[info.Name]
	if err := f.mayReplaceLocked(s, info.Name, secure); err != nil {
		f.mu.Unlock()
		return nil, err
	}
	var lost []*pendingBatch
	same := s != nil && s.native && s.incarnation == incarnation && s.secure == secure
	if !same {
		old := s
		displaced, taken := old.displaces(incarnation)
		if taken {
			f.mu.Unlock()
			return nil, errReplaced
		}
		s = &site{name: info.Name, native: true, secure: secure, incarnation: incarnation, displaced: displaced, pending: map[uint64]*pendingBatch{}}
		f.sites[info.Name] = s
		lost = f.replacedLocked(old)
	}
	s.mu.Lock()
	if s.link != nil {
		s.link.stop(errReplaced)
	}
	welcome := &measurepb.Welcome{Controller: controller, Acknowledged: s.lastSeq}
	held := make(map[uint32]bool, len(has))
	for _, id := range has {
		held[id] = true
	}
	opens := make([]*measurepb.ToAgent, 1, len(f.sessions)+1)
	for id, session := range f.sessions {
		welcome.Sessions = append(welcome.Sessions, id)
		if held[id] {
			continue
		}
		opens = append(opens, session.open)
		if session.awaited != nil {
			session.awaited[l] = s
		}
	}
	opens[0] = &measurepb.ToAgent{Order: &measurepb.ToAgent_Welcome{Welcome: welcome}}
	l.native.push(len(opens)+len(welcome.GetSessions())/16, opens...) // more sessions than maxOrders there cannot be
	s.info, s.link = info, l
	s.late.Store(false)
	s.mu.Unlock()
	f.mu.Unlock()

	for _, p := range lost {
		p.fail(info.Name, anycast.ErrSiteLost)
	}
	return s, nil
}

// maxDisplaced is how many replaced processes a name remembers.
const maxDisplaced = 16

// displaces tells whether a process may not have the name of s, since it is one of those that a newer one, which is
// connected, took it from: else the two would take it from each other for ever. If it may, it displaces others itself.
func (s *site) displaces(incarnation uint64) (displaced []uint64, taken bool) {
	if s == nil || !s.native {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil {
		return nil, false // it has gone, and so may the others come back
	}
	if slices.Contains(s.displaced, incarnation) {
		return nil, true
	}
	displaced = append(slices.Clone(s.displaced), s.incarnation)
	return displaced[max(0, len(displaced)-maxDisplaced):], false
}

// mayReplaceLocked tells whether an agent may register under a name that may be taken by s.
func (f *fleet) mayReplaceLocked(s *site, name string, secure bool) error {
	switch {
	case s == nil && len(f.sites) >= maxAgents:
		return status.Errorf(codes.ResourceExhausted, "%d agents are connected", maxAgents)
	case s != nil && s.secure && !secure:
		return fmt.Errorf("%s is an agent with a certificate: %w", name, enroll.ErrName)
	}
	return nil
}

// replacedLocked ends the connection of a site whose name somebody else has now, and gives what it leaves undone.
func (f *fleet) replacedLocked(old *site) []*pendingBatch {
	if old == nil {
		return nil
	}
	old.mu.Lock()
	if old.link != nil {
		f.log.Warn("agent replaced: another process registered under its name", "agent", old.name)
		old.link.stop(errReplaced)
		old.link, old.lost = nil, time.Now()
	}
	old.mu.Unlock()
	f.failJobsLocked(old)
	return old.abandon()
}

// read handles what the agent sends until the stream ends.
func (a *attachment) read() {
	first, err := a.stream.Recv()
	if err == nil && first.GetHello() == nil {
		err = fmt.Errorf("%w: something else came first", errHello)
	}
	if err != nil {
		a.link.stop(err)
		return
	}
	a.hello <- first.GetHello()
	select {
	case <-a.attached:
	case <-a.stream.Context().Done():
		a.link.stop(a.stream.Context().Err())
		return
	}
	d := new(delivery)
	for {
		m, err := a.stream.Recv()
		if err != nil {
			a.link.stop(err)
			return
		}
		a.handle(m, d)
		for _, m := range m.GetMore() {
			a.handle(m, d)
		}
	}
}

func (a *attachment) handle(m *measurepb.FromAgent, d *delivery) {
	switch e := m.GetEvent().(type) {
	case *measurepb.FromAgent_Pong:
		t3 := a.controller.fleet.now()
		if p := e.Pong; p.GetId() == a.pingID.Load() && p.GetT0() == a.pingSent.Swap(0) && p.GetT0() != 0 {
			a.site.clock.add(p.GetT0(), p.GetT1(), p.GetT2(), t3)
		}
	case *measurepb.FromAgent_Sent:
		if a.fresh(e.Sent.GetSeq()) {
			a.controller.fleet.sent(a.site, e.Sent)
		}
		a.safe(e.Sent.GetSeq())
	case *measurepb.FromAgent_Answers:
		if a.fresh(e.Answers.GetSeq()) {
			a.controller.fleet.answers(a.site, e.Answers, d)
		}
		a.safe(e.Answers.GetSeq())
	case *measurepb.FromAgent_Opened:
		a.controller.fleet.opened(a.site, a.link, e.Opened.GetSessions())
	case *measurepb.FromAgent_Stats:
		a.site.mu.Lock()
		a.site.stats = e.Stats
		a.site.mu.Unlock()
	default:
		a.controller.fleet.malformed.Add(1)
	}
}

func (a *attachment) fresh(seq uint64) bool {
	ok := a.site.fresh(seq)
	if !ok {
		a.controller.fleet.duplicate.Add(1)
	}
	return ok
}

// safe has a report acknowledged, in a moment: also one that was repeated, because an earlier connection ended
// before it could be acknowledged there.
func (a *attachment) safe(seq uint64) {
	a.received.Store(max(seq, a.received.Load()))
	if seq%ackEvery == 0 {
		a.link.native.nudge()
	}
}

// sent hands on what an agent says about its sending.
func (f *fleet) sent(s *site, r *measurepb.SentReport) {
	s.mu.Lock()
	p := s.pending[r.GetBatch()]
	if p == nil || p.session.id != r.GetSession() {
		s.mu.Unlock()
		f.duplicate.Add(1)
		return
	}
	delete(s.pending, r.GetBatch())
	s.mu.Unlock()

	sent := anycast.Sent{Site: s.name, Batch: p.id, Count: min(int(r.GetCount()), p.count), Kernel: r.GetKernel()}
	s.probes.Add(uint64(sent.Count))
	if p.stamps && len(r.GetTimes()) == p.count {
		sent.Times = r.GetTimes()
		for i := 1; i < len(sent.Times); i++ {
			sent.Times[i] += sent.Times[i-1]
		}
	}
	if r.GetError() != "" {
		sent.Err = fmt.Errorf("%s: %s", s.name, printable(r.GetError(), 200))
	} else if sent.Count < p.count {
		sent.Err = fmt.Errorf("%s: %d of %d probes were sent", s.name, sent.Count, p.count)
	}
	p.handler.HandleSent(sent)
}

// answers hands on packets that came home at a site.
func (f *fleet) answers(s *site, m *measurepb.Answers, d *delivery) {
	packets := m.GetPackets()
	if len(m.GetTimes()) != len(m.GetLengths()) {
		f.malformed.Add(1)
		return
	}
	for i, n := range m.GetLengths() {
		if uint64(n) > uint64(len(packets)) {
			f.malformed.Add(1)
			break
		}
		f.receive(d, s, packets[:n], volta.Time{}, m.GetTimes()[i])
		packets = packets[n:]
	}
	d.deliver()
}

// write sends what is queued until the connection is to end.
func (a *attachment) write() {
	queue := a.link.native
	var acknowledged, pinged uint64
	send := func(m *measurepb.ToAgent) bool {
		if err := a.stream.Send(m); err != nil {
			a.link.stop(err)
			return false
		}
		return true
	}
	pause := time.NewTimer(gather)
	defer pause.Stop()
	last := 0 // orders
	for {
		select {
		case <-queue.wake:
		case <-a.link.end:
			return
		}
		if last >= thick {
			pause.Reset(gather)
			select {
			case <-pause.C:
			case <-a.link.end:
				return
			}
		}
		// A ping waits for nothing, since what it waits for counts as its delay.
		if id := a.pingID.Load(); id != pinged {
			pinged = id
			t0 := a.controller.fleet.now()
			a.pingSent.Store(t0)
			if !send(&measurepb.ToAgent{Order: &measurepb.ToAgent_Ping{Ping: &measurepb.Ping{Id: id, T0: t0}}}) {
				return
			}
		}
		if seq := a.received.Load(); seq != acknowledged {
			acknowledged = seq
			if !send(&measurepb.ToAgent{Order: &measurepb.ToAgent_Acknowledge{Acknowledge: &measurepb.Acknowledge{Seq: seq}}}) {
				return
			}
		}
		messages := queue.take()
		last = len(messages)
		for len(messages) > 0 {
			n := together(messages)
			m := messages[0]
			if n > 1 {
				// Not as what follows the first: an Open is the same message for all agents.
				m = &measurepb.ToAgent{More: messages[:n]}
			}
			if !send(m) {
				return
			}
			messages = messages[n:]
		}
	}
}

// maxTogether is how many bytes of messages go into one: enough for the cost of a message not to matter.
const maxTogether = 64 << 10

// together tells how many of the messages go into one. A welcome comes alone.
func together(messages []*measurepb.ToAgent) int {
	if messages[0].GetWelcome() != nil {
		return 1
	}
	size := 0
	for i, m := range messages {
		if size += proto.Size(m); size > maxTogether {
			return max(i, 1)
		}
	}
	return len(messages)
}

// keep has the clock asked for and reports acknowledged until the connection is to end.
func (a *attachment) keep() {
	who := callerOf(a.stream.Context())
	tick := time.NewTicker(pingBurstInterval)
	defer tick.Stop()
	lastPing, lastCheck := time.Time{}, time.Now()
	for {
		select {
		case <-a.link.end:
			return
		case <-a.controller.stopping:
			a.link.stop(errStopping)
			return
		case now := <-tick.C:
			id := a.pingID.Load()
			if id == pingBurst {
				tick.Reset(ackAfter)
			}
			if id < pingBurst || now.Sub(lastPing) >= pingInterval {
				lastPing = now
				a.pingID.Store(id + 1)
			}
			a.link.native.nudge()
			if now.Sub(lastCheck) >= revocationInterval {
				lastCheck = now
				if err := a.controller.stillGood(who); err != nil {
					a.link.stop(err)
					return
				}
			}
		}
	}
}
