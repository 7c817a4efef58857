// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"container/heap"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// plane is the one goroutine that owns the sockets, the sessions and the orders.
//
// One turn: do what the links ask for, take in what has arrived, send at most a batch, and sleep only if there was nothing
// to do. Receiving comes first, and takes in several times as much as sending may have caused, so that the
// queues stay short while probes are sent.
type plane struct {
	// Set by newPlane.
	host  rawio.Host
	log   *slog.Logger
	epoch time.Time
	links []*link // set by New
	// The addresses to send from, as the options have them.
	anycast, unicast []netip.Addr
	// What the routes choose, by IP version, where there is no anycast address; see findSources.
	routed [2]netip.Addr

	commands chan func()
	quit     chan struct{} // closed by stop
	done     chan struct{} // closed when run ends

	now  int64 // mono, of this turn
	wall int64 // at the same moment

	// Which answers are recognised, and whose they are.
	table     stateless.Table
	sessions  map[sessionKey]*session
	byCodec   map[*stateless.Codec]*session
	lingering int   // sessions that only listen
	reap      int64 // mono, when the first of them may have ended

	// Receiving.
	receivers  [6]receiver
	sinceWait  int                               // turns
	in         [2][rawio.BatchSize]rawio.Message // by IP version
	whole6     [rawio.BatchSize][]byte           // around the buffers of in[1], with room for a header
	answer     stateless.Answer
	forwarding int   // links of Voltadomar's dialects
	wider      bool  // the filters pass less than they must
	narrower   bool  // the filters may pass more than they must
	filtered   int64 // mono, when they were last set
	looked     int64 // mono, when the queues were last asked what they dropped

	// Sending.
	senders [2]sender // by IP version
	framers [2]sender // the same, for frames; conn is nil where there are none
	ways    map[netip.Addr]*way
	express express
	paced   paced
	batches uint64 // drawn from both
	limit   limit
	hold    int64 // mono; no sending before it, after the system refused for want of buffers
	backoff int64
	probe   stateless.Probe
	last    routed
	allowed allowance

	counters counters

	mu        sync.Mutex // guards published
	published counters
}

type counters struct {
	sent, framed, refused, received, recognised, forwarded, forged, stray, malformed, overrun uint64
	sessions, orders                                                                          int
}

// forever is later than any time.
const forever = math.MaxInt64

// maxWait bounds a sleep: Linux may end a ppoll late by a thousandth of its length.
const maxWait = time.Second

// receiver is a raw socket of one protocol and IP version.
type receiver struct {
	conn    rawio.Conn
	version int
	proto   packet.Protocol
	icmp    bool
	filter  func([]rawio.PortRange) []bpf.RawInstruction
	passing []rawio.PortRange // by the filter
	dropped uint32            // when last looked
	busy    bool              // it had something when last looked at
}

const (
	// receiveSize is how much of a packet is read: all of what is not longer than Ethernet's.
	receiveSize = 1536
	// receiveBuffer is what queues are asked to hold. The kernel doubles it, and charges a small packet
	// with at least 768 bytes: this is room for a burst of 100,000 and half as many again.
	receiveBuffer = 64 << 20
	// receiveRounds bounds the batches that are read from one queue per turn: a flood must not keep the plane
	// from sending.
	receiveRounds = 8
	// notifyEvery is how long answers may be kept back so that more of them share a message, which with a thousand
	// traceroutes at once spares a tenth of all work. The first ones after a pause are not.
	notifyEvery = int64(time.Millisecond)
	// lookEvery is how often queues are asked what they dropped.
	lookEvery = int64(time.Second)
)

func newPlane(host rawio.Host, o *Options) (*plane, error) {
	p := &plane{
		host: host, log: o.Log, epoch: time.Now(), commands: make(chan func(), 64),
		quit: make(chan struct{}), done: make(chan struct{}),
		sessions: make(map[sessionKey]*session), byCodec: make(map[*stateless.Codec]*session),
		reap: forever, limit: newLimit(o.Rate), allowed: allowance{left: stampBurst},
		anycast: slices.Clone(o.Anycast), unicast: slices.Clone(o.Unicast),
	}
	p.clock()
	var first error
	for v := range p.senders {
		if err := p.openVersion(v); err != nil {
			p.closeVersion(v)
			if first != nil {
				return nil, first // neither version can be had
			}
			first = err
		}
	}
	if first != nil {
		p.log.Warn("one IP version cannot be used", "error", first)
	}
	for k := range rawio.BatchSize {
		p.in[0][k].Data = make([]byte, receiveSize)
		p.whole6[k] = make([]byte, ip6Header+receiveSize)
		p.in[1][k].Data = p.whole6[k][ip6Header:]
		for v := range p.senders {
			p.senders[v].owed.buffers[k].Data = make([]byte, 64)
		}
	}
	if o.SendFrames {
		for v := range p.framers {
			for k := range p.framers[v].owed.buffers {
				p.framers[v].owed.buffers[k].Data = make([]byte, 64)
			}
		}
		p.openFramers()
	}
	p.findSources()
	return p, nil
}

const ip6Header = packet.IPv6HeaderLen

func (p *plane) openVersion(v int) error {
	version := 4 + 2*v
	tx, err := p.host.Open(rawio.Spec{Version: version, Kind: rawio.RawHeader, ReceiveErrors: true})
	if err != nil {
		return err
	}
	p.senders[v].conn = tx
	kinds := [...]receiver{
		{proto: packet.ProtocolICMP, icmp: true, filter: rawio.FilterAnswersICMP4},
		{proto: packet.ProtocolUDP, filter: rawio.FilterAnswersUDP4},
		{proto: packet.ProtocolTCP, filter: rawio.FilterAnswersTCP4},
		{proto: packet.ProtocolICMPv6, icmp: true, filter: rawio.FilterAnswersICMP6},
		{proto: packet.ProtocolUDP, filter: rawio.FilterAnswersUDP6},
		{proto: packet.ProtocolTCP, filter: rawio.FilterAnswersTCP6},
	}
	small := 0
	for k := range 3 {
		rx := &p.receivers[3*v+k]
		*rx = kinds[3*v+k]
		rx.version = version
		// All sockets are opened now, since the privilege may be dropped next; each lets nothing through
		// before the first session.
		if rx.conn, err = p.host.Open(rawio.Spec{
			Version: version, Kind: rawio.Raw, Protocol: int(rx.proto), Filter: rawio.FilterNone(),
			ReceiveBuffer: receiveBuffer, ReceiveLocal: v == 1,
		}); err != nil {
			return err
		}
		if q, err := rx.conn.Queue(); err == nil && q.Size < 2*receiveBuffer {
			small = q.Size
		}
	}
	if small > 0 {
		p.log.Warn("receive queues are small, so that bursts of answers may be lost: give CAP_NET_ADMIN, or raise the sysctl net.core.rmem_max",
			"rmem_max", receiveBuffer, "version", version, "size", small, "answers", small/768)
	}
	return nil
}

func (p *plane) closeVersion(v int) {
	if c := p.senders[v].conn; c != nil {
		c.Close()
		p.senders[v].conn = nil
	}
	for k := range 3 {
		if rx := &p.receivers[3*v+k]; rx.conn != nil {
			rx.conn.Close()
			rx.conn = nil
		}
	}
}

// findSources asks the routes for the addresses that the options leave open. The destinations are outside all
// networks that a site is likely to have a route of its own for, and are sent nothing.
func (p *plane) findSources() {
	for v, dst := range [2]netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, 1}), netip.MustParseAddr("2001:db8:ffff::1")} {
		p.routed[v] = netip.Addr{}
		if src, err := p.host.Source(dst, rawio.Route{}); err == nil && usable(src) {
			p.routed[v] = src
		}
	}
}

// defaultSource is what probes of an IP version are sent from if an order does not say; the zero Addr if that is up to the routes.
func (p *plane) defaultSource(v int) netip.Addr {
	for _, a := range p.anycast {
		if a.Is6() == (v == 1) {
			return a
		}
	}
	return p.routed[v]
}

func (p *plane) clock() {
	t := time.Now()
	p.now, p.wall = int64(t.Sub(p.epoch)), t.UnixNano()
}

// do has the plane call f, in turn. It waits while many others do; after stop it may do nothing.
func (p *plane) do(f func()) {
	select {
	case p.commands <- f:
		p.host.Wake()
	case <-p.done:
	}
}

// ask is do, and waits until f has been called; false if it was not.
func (p *plane) ask(f func()) bool {
	called := make(chan struct{})
	p.do(func() {
		f()
		close(called)
	})
	select {
	case <-called:
		return true
	case <-p.done:
		return false
	}
}

func (p *plane) stop() {
	close(p.quit)
	p.host.Wake()
}

func (p *plane) run() error {
	defer close(p.done)
	defer p.host.Close()
	// In a lab, the sockets' network may be another than this goroutine's.
	if h, ok := p.host.(interface{ Adopt() error }); ok {
		if err := h.Adopt(); err != nil {
			return err
		}
	}
	for {
		select {
		case <-p.quit:
			return nil
		default:
		}
		p.clock()
		p.obey()
		worked := p.receive()
		p.expire()
		p.clock()
		if p.transmit() {
			worked = true
		}
		p.notify()
		p.look()
		p.narrow()
		if worked {
			continue
		}
		p.publish()
		if err := p.sleep(); err != nil {
			return fmt.Errorf("wait for packets: %w", err)
		}
		p.sinceWait = 0
	}
}

// obey does what the links asked for, as much as there was when it began.
func (p *plane) obey() {
	for range len(p.commands) {
		(<-p.commands)()
	}
	p.confirm()
}

// sleep waits for something to do. While answers may not be told yet, it leaves those that come in their queues: a hundred cost
// one wake-up then, not one each. The kernel has stamped them.
func (p *plane) sleep() error {
	d := p.untilNext()
	for _, l := range p.links {
		if left := l.notified + notifyEvery - p.now; left > 0 && l.notified > 0 {
			return p.host.Nap(min(d, time.Duration(left)))
		}
	}
	return p.host.Wait(d)
}

// untilNext is how long there is nothing to do but to receive.
func (p *plane) untilNext() time.Duration {
	if len(p.commands) > 0 {
		return 0
	}
	d := int64(maxWait)
	held := p.prepared() > 0
	if held || p.express.n > 0 || len(p.paced) > 0 {
		at := p.hold - p.now
		switch {
		case held:
		case p.express.n > 0:
			at = max(at, int64(p.limit.wait()))
		default:
			// Above some rate probes go in small batches, since to sleep costs as much as several of them.
			due := int64(p.paced[0].due) - p.now
			if p.paced[0].rate > float64(time.Second)/float64(leastNap) {
				due = max(due, int64(leastNap))
			}
			at = max(at, due, int64(p.limit.wait()))
		}
		d = min(d, at)
	}
	for _, l := range p.links {
		if l.dirty {
			d = min(d, l.notified+notifyEvery-p.now)
		}
	}
	if p.lingering > 0 {
		d = min(d, p.reap-p.now)
	}
	if p.narrower {
		d = min(d, p.filtered+narrowEvery-p.now)
	}
	return time.Duration(max(d, 0))
}

// leastNap is how long the plane sleeps at least between batches of an order with a rate.
const leastNap = 500 * time.Microsecond

// notify wakes the writers of links that have something to tell.
func (p *plane) notify() {
	for _, l := range p.links {
		if l.dirty && p.now-l.notified >= notifyEvery {
			l.dirty, l.notified = false, p.now
			l.spool.notify()
		}
	}
}

// look asks the queues what they dropped, every now and then.
func (p *plane) look() {
	if p.now < p.looked+lookEvery {
		return
	}
	p.looked = p.now
	var dropped uint64
	for i := range p.receivers {
		rx := &p.receivers[i]
		if rx.conn == nil {
			continue
		}
		if q, err := rx.conn.Queue(); err == nil {
			dropped += uint64(q.Dropped - rx.dropped)
			rx.dropped = q.Dropped
		}
	}
	if dropped > 0 {
		p.counters.overrun += dropped
		p.log.Warn("the kernel dropped answers, since the agent was not fast enough", "count", dropped)
	}
	p.publish()
}

// publish shows the counters to others.
func (p *plane) publish() {
	p.counters.sessions = len(p.sessions)
	p.counters.orders = p.express.n + len(p.paced)
	p.mu.Lock()
	p.published = p.counters
	p.mu.Unlock()
}

func (p *plane) stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.published
	return Stats{
		Sent: c.sent, Framed: c.framed, Refused: c.refused, Received: c.received, Recognised: c.recognised, Forwarded: c.forwarded,
		Forged: c.forged, Stray: c.stray, Malformed: c.malformed, Overrun: c.overrun, Sessions: c.sessions, Orders: c.orders,
	}
}

// accept takes an order, or reports at once why not.
func (p *plane) accept(o *order) {
	if err := p.admit(o); err != nil {
		o.fail(err)
		o.n = 0
		o.link.report(o.report())
		return
	}
	if o.session != nil {
		o.session.orders++
	}
	o.link.queued += o.size()
	if o.stamps {
		o.times = make([]int64, o.n)
	}
	switch {
	case o.n == 0:
		p.settle(o)
	case o.rate > 0:
		o.due = float64(p.now)
		heap.Push(&p.paced, o)
	default:
		p.express.put(o)
	}
}

// admit checks an order against what the plane knows, and completes it.
func (p *plane) admit(o *order) error {
	if o.codec == nil { // all but Voltadomar's jobs
		s := p.sessions[sessionKey{o.link, o.id}]
		switch {
		case s == nil || s.until != 0:
			return errSession
		case s.err != nil:
			return s.err
		}
		o.session, o.codec = s, s.codec
	}
	switch {
	case p.senders[o.v].conn == nil:
		return errNoSource
	case o.link.queued+o.size() > maxQueued:
		return errQueue
	case o.src.IsValid():
		return p.checkSource(o.src)
	}
	o.src = p.defaultSource(o.v)
	if o.session == nil && !o.src.IsValid() {
		o.src = netip.IPv4Unspecified() // the kernel fills it in
	}
	return nil
}

// checkSource refuses to send from addresses that are not the site's: a controller is no licence to spoof.
func (p *plane) checkSource(src netip.Addr) error {
	if slices.Contains(p.anycast, src) || slices.Contains(p.unicast, src) {
		return nil
	}
	if !usable(src) || p.host.CheckLocal(src) != nil {
		return fmt.Errorf("%w: %v", errSource, src)
	}
	return nil
}

// settle reports an order whose last probe has left, or never will.
func (p *plane) settle(o *order) {
	if o.ended || o.pending > 0 || o.next < o.n {
		return
	}
	o.ended = true
	if o.session != nil {
		o.session.orders--
	}
	o.link.queued -= o.size()
	o.link.report(o.report())
}
