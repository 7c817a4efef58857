// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// engine is the one goroutine that owns the sockets, the index and the wheel.
//
// One turn: take what was submitted, send at most a batch, take in what has
// arrived, expire what is late, deliver, and sleep only if there was nothing
// to do. Sending and receiving share a goroutine because a second one costs a
// wake-up per packet, which halves the rate. An arrival beats a deadline of
// the same turn.
type engine struct {
	p       *Prober
	host    rawio.Host
	back    backend
	slots   slots // a copy of Prober.slots, refreshed in take
	exact   index
	flows   index
	wheel   wheel
	queue   uint32 // submitted and taken, not sent: byTime
	waiting uint32 // for something of their own: in a list by the link byIdentity, since they have none, and in the wheel
	freed   uint32 // done, to be given back in take: byTime
	cancels []Handle

	seed     uint64
	epoch    time.Time
	now      int64 // mono, of this turn
	wall     int64 // at the same moment
	hold     int64 // mono; no sending before it, after the system refused for want of buffers
	backoff  int64
	retry    int64  // mono; when the waiting are tried again
	cursor   uint32 // sequence numbers handed out
	ids      uint32 // ICMP identifiers in use: firstID and those after it
	firstID  uint16
	firstSeq uint16
	full     map[identity]int64 // kinds of probes that no number is left for, see pick: mono, until when

	batch    [rawio.BatchSize]uint32
	later    []uint32 // of the batch: put off
	counters Counters

	published Counters // what Prober.counted was set to
}

// backend is how an engine reaches the network: with raw sockets, or without.
type backend interface {
	features() Features
	// transmit sends the probes of these slots, in order. For each it calls
	// engine.sent, engine.fail, or engine.refused.
	transmit(batch []uint32)
	// receive takes in what has arrived. After a wait, everything that was
	// waited for must be read, or the next wait ends at once. It tells whether there was anything.
	receive(waited bool) bool
	// forget is called for each slot that leaves the flying state.
	forget(i uint32)
	close()
}

// maxWait bounds a sleep: Linux may end a ppoll late by a thousandth of its length.
const maxWait = time.Second

// lookEvery is how many turns with work pass before the descriptors of a [Loop] are looked at all
// the same. A look costs as much as a tenth of a probe.
const lookEvery = 8

func (e *engine) clock() {
	t := time.Now()
	e.now, e.wall = int64(t.Sub(e.epoch)), t.UnixNano()
}

func (e *engine) run() {
	waited, busy := true, 0
	for !e.take() {
		worked := e.transmit()
		if e.back.receive(waited) {
			worked = true
		}
		waited = false
		e.clock()
		e.wheel.expire(e.now, e.timeout)
		if e.p.opts.Loop != nil {
			e.p.opts.Loop.AfterTurn()
		}
		var wait time.Duration
		if worked || e.queue != 0 && e.hold == 0 {
			// A flood of packets must not keep a driver's commands from being read.
			if busy++; e.p.opts.Loop == nil || busy%lookEvery != 0 {
				continue
			}
		} else {
			wait = e.untilNext()
		}
		e.publish()
		if err := e.host.Wait(wait); err != nil {
			e.p.fail(fmt.Errorf("wait for packets: %w", err))
		}
		waited = true
		e.clock()
	}
	e.shutdown()
}

// untilNext is how long there is nothing to do.
func (e *engine) untilNext() time.Duration {
	d := e.wheel.next(e.now)
	if e.queue != 0 && e.hold != 0 {
		if h := time.Duration(max(0, e.hold-e.now)); d < 0 || h < d {
			d = h
		}
	}
	if e.waiting != 0 {
		if r := time.Duration(max(0, e.retry-e.now)); d < 0 || r < d {
			d = r
		}
	}
	return min(d, maxWait)
}

// take moves what other goroutines left into the engine's hands. It tells
// whether the prober is closing.
func (e *engine) take() (closing bool) {
	p := e.p
	p.mu.Lock()
	e.slots.chunks = p.slots.chunks
	e.slots.splice(&p.free, &e.freed, byTime)
	e.slots.splice(&e.queue, &p.queue, byTime)
	e.cancels, p.cancels = p.cancels, e.cancels[:0]
	p.counted, e.published = e.counters, e.counters
	closing = p.closed
	p.mu.Unlock()
	for _, h := range e.cancels {
		e.cancel(h)
	}
	return closing
}

// publish shows the counters to others before a sleep, which may be a long one.
func (e *engine) publish() {
	if e.counters == e.published {
		return
	}
	e.p.mu.Lock()
	e.p.counted, e.published = e.counters, e.counters
	e.p.mu.Unlock()
}

func (e *engine) cancel(h Handle) {
	if int(h.slot/chunkSize) >= len(e.slots.chunks) {
		return // another prober's
	}
	s := e.slots.at(h.slot)
	if s.gen != h.gen || s.state == slotFree {
		return // it ended before
	}
	e.fail(h.slot, context.Canceled)
}

func (e *engine) shutdown() {
	for e.queue != 0 {
		e.fail(e.queue, ErrClosed)
	}
	for c := range e.slots.chunks {
		for j := range e.slots.chunks[c] {
			if s := e.slots.chunks[c][j].state; s == slotFlying || s == slotWaiting {
				e.fail(uint32(c*chunkSize+j), ErrClosed)
			}
		}
	}
	e.back.close()
	e.host.Close()
	e.publish()
}

// transmit sends at most a batch of what is queued.
func (e *engine) transmit() bool {
	if e.waiting != 0 && e.retry <= e.now {
		for n := 0; n < len(e.batch) && e.waiting != 0; n++ {
			i := e.waiting
			e.wheel.remove(i)
			e.endWait(i)
			e.slots.push(&e.queue, i, byTime)
		}
		e.retry = e.now + retryPause
	}
	if e.queue == 0 || e.hold > e.now {
		return false
	}
	e.hold = 0
	n := 0
	for n < len(e.batch) {
		i := e.slots.pop(&e.queue, byTime)
		if i == 0 {
			break
		}
		s := e.slots.at(i)
		if s.deadline == 0 {
			e.startTime(s)
		} else if s.deadline <= e.now { // it has been put off until too late
			e.timeoutQueued(i)
			continue
		}
		e.batch[n] = i
		n++
	}
	e.back.transmit(e.batch[:n])
	if len(e.later) == 0 {
		e.backoff = 0
		return n > 0
	}
	// The system is out of room. Everything else goes on; these wait a little
	// longer each time. Up to 10 ms, since a full queue of a slow link drains in such times.
	for _, i := range slices.Backward(e.later) {
		e.slots.pushFront(&e.queue, i, byTime)
	}
	e.counters.Retried += uint64(len(e.later))
	// Time runs for all that are held up, not only for those that were tried.
	for i := e.slots.at(e.queue).links[byTime].prev; e.slots.at(i).deadline == 0; i = e.slots.at(i).links[byTime].prev {
		e.startTime(e.slots.at(i))
	}
	done := n - len(e.later)
	e.later = e.later[:0]
	e.clock()
	e.backoff = min(max(2*e.backoff, int64(50*time.Microsecond)), int64(10*time.Millisecond))
	e.hold = e.now + e.backoff
	return done > 0
}

// startTime bounds the tries to send s.
func (e *engine) startTime(s *slot) { s.deadline = max(1, e.now+max(0, int64(s.req.Timeout))) }

// refused deals with an error of the try to send slot i.
func (e *engine) refused(i uint32, err error) {
	switch {
	case errors.Is(err, errBusy), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		e.wait(i)
	case transient(err):
		e.putOff(i)
	default:
		e.fail(i, err)
	}
}

// errBusy tells that a probe needs something that another one has, such as the one connection of a flow.
var errBusy = errors.New("waits for another probe to end")

// retryPause is when waiting probes are tried again if no probe ends before.
const retryPause = int64(5 * time.Millisecond)

// wait keeps slot i until what it needs may be free. No other probe is held up.
func (e *engine) wait(i uint32) {
	e.unidentify(i)
	e.slots.at(i).state = slotWaiting
	e.slots.push(&e.waiting, i, byIdentity)
	e.wheel.add(i)
	e.counters.Retried++
}

// endWait undoes wait but for the wheel.
func (e *engine) endWait(i uint32) {
	e.slots.remove(&e.waiting, i, byIdentity)
	e.slots.at(i).state = slotQueued
}

// retryNow makes the waiting be tried at once.
func (e *engine) retryNow() { e.retry = 0 }

// putOff keeps slot i for another try, since the system has no room now.
func (e *engine) putOff(i uint32) {
	e.unidentify(i) // it gets a new number next time
	e.later = append(e.later, i)
}

// sent records that slot i left at the given times.
func (e *engine) sent(i uint32, mono, wall int64) {
	s := e.slots.at(i)
	s.sentMono, s.sentWall, s.kernelSent = mono, wall, false
	s.deadline = mono + max(0, int64(s.req.Timeout)) // until now it bounded the tries to send
	s.state = slotFlying
	e.wheel.add(i)
	e.counters.Sent++
}

// identify enters slot i into the indexes under id, unless another probe has
// that identity already.
func (e *engine) identify(i uint32, id identity, flow bool) bool {
	s := e.slots.at(i)
	exact, byflow := id.hashes(e.seed)
	if e.lookup(exact, id) != 0 {
		return false
	}
	s.a, s.b, s.token = id.a, id.b, id.token
	s.hash = [2]uint32{exact, byflow}
	e.exact.add(i)
	if flow {
		e.flows.add(i)
	}
	return true
}

// unidentify undoes identify.
func (e *engine) unidentify(i uint32) {
	e.exact.remove(i)
	e.flows.remove(i)
}

func (e *engine) lookup(exact uint32, id identity) uint32 {
	return e.exact.find(exact, func(s *slot) bool {
		return s.a == id.a && s.b == id.b && s.token == id.token && s.req.Protocol == id.proto &&
			s.dst.Is6() == id.v6 && (id.proto == ICMP || s.dst == id.dst)
	})
}

// find is the probe with exactly this identity, 0 if none is in flight.
func (e *engine) find(id identity) uint32 {
	exact, _ := id.hashes(e.seed)
	i := e.lookup(exact, id)
	if i != 0 && e.slots.at(i).state != slotFlying {
		return 0
	}
	return i
}

// findFlow is the oldest probe in flight of this flow: of all identities that differ in the token alone.
func (e *engine) findFlow(id identity) uint32 {
	_, flow := id.hashes(e.seed)
	return e.flows.find(flow, func(s *slot) bool {
		return s.state == slotFlying && s.a == id.a && s.b == id.b && s.req.Protocol == id.proto &&
			s.dst.Is6() == id.v6 && (id.proto == ICMP || s.dst == id.dst)
	})
}

// nextSequence hands out sequence numbers in turn. The identifier changes when they
// start over, so that a late answer meets a reused number as late as possible.
func (e *engine) nextSequence() (id, seq uint16) {
	space := uint32(65536) - uint32(e.firstSeq)
	c := e.cursor
	e.cursor = (c + 1) % (space * e.ids)
	return e.firstID + uint16(c/space), e.firstSeq + uint16(c%space)
}

// roundTrip is the time between the departure of s and an arrival that the
// kernel stamped at stamp (0: not stamped).
func (e *engine) roundTrip(s *slot, stamp int64) (rtt time.Duration, kernel bool) {
	elapsed := e.now - s.sentMono // by the monotonic clock, with the time in queues
	if stamp == 0 {
		return time.Duration(max(elapsed, 1)), false
	}
	d := stamp - s.sentWall
	// The kernel stamps with the wall clock. If that was set since the departure, it and the
	// monotonic clock have not gone on alike, and the difference is nonsense; the
	// monotonic time less the time since arrival is not.
	const slack = int64(time.Millisecond)
	if step := e.wall - s.sentWall - elapsed; step > slack || step < -slack || d < -slack {
		since := e.wall - stamp
		if since < 0 || since > elapsed {
			since = 0
		}
		return time.Duration(max(elapsed-since, 1)), false
	}
	return time.Duration(max(d, 1)), s.kernelSent
}

// answer ends the probe in slot i with what came back. r has what the packet said.
func (e *engine) answer(i uint32, r *Result, stamp int64) {
	s := e.slots.at(i)
	r.RTT, r.KernelTimed = e.roundTrip(s, stamp)
	e.counters.Answered++
	e.finish(i, r)
}

// timeout ends a probe that nothing came back for. The wheel has let go of it.
func (e *engine) timeout(i uint32) {
	if s := e.slots.at(i); s.state == slotWaiting {
		e.endWait(i)
	} else {
		s.state = slotQueued // not in the wheel any more
		e.back.forget(i)
	}
	e.timeoutQueued(i)
}

func (e *engine) timeoutQueued(i uint32) {
	e.counters.TimedOut++
	e.finish(i, &Result{Status: NoReply})
}

// fail ends a probe that could not be sent, or is given up. Errors that are an
// answer of the local system become a status.
func (e *engine) fail(i uint32, err error) {
	r := Result{Status: Failed, Err: err}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		switch errno {
		case syscall.ENETUNREACH:
			r = Result{Status: NetUnreachable}
		case syscall.EHOSTUNREACH:
			r = Result{Status: HostUnreachable}
		case syscall.ENETDOWN:
			r = Result{Status: NetworkDown}
		case errHostDown:
			r = Result{Status: HostDown}
		case syscall.EADDRNOTAVAIL:
			r.Err = fmt.Errorf("%w: %w", ErrAddrNotAvailable, err)
		case syscall.EADDRINUSE:
			r.Err = fmt.Errorf("%w: %w", ErrAddrInUse, err)
		case errNoDevice:
			r.Err = fmt.Errorf("%w: %w", ErrNoInterface, err)
		case syscall.EMSGSIZE:
			r.Err = fmt.Errorf("%w: %w", ErrTooBig, err)
		}
	}
	e.counters.Failed++
	e.finish(i, &r)
}

// finish takes the slot out of every structure and delivers.
func (e *engine) finish(i uint32, r *Result) {
	s := e.slots.at(i)
	e.unidentify(i)
	switch {
	case s.state == slotFlying:
		e.wheel.remove(i)
		e.back.forget(i)
	case s.state == slotWaiting:
		e.wheel.remove(i)
		e.endWait(i)
	case s.links[byTime].next != 0: // a slot that waits to be sent
		e.slots.remove(&e.queue, i, byTime)
	}
	r.Tag, r.Target, r.TTL, r.Flow = s.req.Tag, s.req.Target, s.req.TTL, s.req.Flow
	if s.sentWall != 0 {
		r.Sent = time.Unix(0, s.sentWall)
	}
	done := s.done
	// The slot is given back before the callback, which may start the next probe.
	gen := s.gen + 1
	*s = slot{gen: gen}
	e.slots.push(&e.freed, i, byTime)
	e.p.inFlight.Add(-1)
	done(*r)
}

// transient tells errors that pass by themselves: the probe is sent again a little later.
func transient(err error) bool {
	for _, errno := range [...]syscall.Errno{syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// loopback is where a probe to the unspecified address goes.
func loopback(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}
