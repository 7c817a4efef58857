// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"container/heap"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// sender sends packets of one IP version, with their IP headers.
type sender struct {
	conn rawio.Conn
	msgs [rawio.BatchSize]rawio.Message
	rows [rawio.BatchSize]row
	n    int
	owed stamps
}

// row is one probe of an order.
type row struct {
	order *order
	i     int
}

const (
	// turn is how many probes an order without a rate sends before it is the next one's turn: those of a trace's window.
	turn = 8
	// pacedShare is which part of the batches serves orders with a rate first, the others those without.
	pacedShare = 4
)

// transmit sends at most a batch of what is due. It tells whether there was anything.
func (p *plane) transmit() bool {
	if p.hold > p.now {
		return false
	}
	p.hold = 0
	if p.prepared() == 0 {
		room := p.limit.allows(p.now, rawio.BatchSize)
		first, second := p.drawExpress, p.drawPaced
		if p.batches%pacedShare == 0 {
			first, second = second, first
		}
		n := first(room)
		n += second(room - n)
		if n > 0 {
			p.batches++
			p.limit.spend(n)
		}
	}
	any := p.prepared() > 0
	for v := range p.senders {
		// Frames first: those that are refused become the raw socket's.
		for _, tx := range []*sender{&p.framers[v], &p.senders[v]} {
			if tx.n > 0 {
				p.flush(tx, v)
			}
		}
	}
	return any
}

// prepared is how many probes are messages of a sender.
func (p *plane) prepared() (n int) {
	for v := range p.senders {
		n += p.senders[v].n + p.framers[v].n
	}
	return n
}

// drawExpress prepares at most room probes of the orders without a rate.
func (p *plane) drawExpress(room int) (drawn int) {
	for drawn < room && p.express.n > 0 {
		o := p.express.take()
		n := min(turn, room-drawn, o.n-o.next)
		drawn += n
		p.prepare(o, n)
		if o.next < o.n {
			p.express.back(o)
		} else {
			p.settle(o)
		}
	}
	return drawn
}

// drawPaced prepares at most room probes of the orders with a rate.
func (p *plane) drawPaced(room int) (drawn int) {
	for drawn < room && len(p.paced) > 0 && p.paced[0].due <= float64(p.now) {
		o := p.paced[0]
		n := p.paced.draw(p.now, room-drawn)
		drawn += n
		p.prepare(o, n)
		if o.next >= o.n {
			heap.Remove(&p.paced, p.paced.index(o))
			p.settle(o)
		}
	}
	return drawn
}

// prepare builds the next n probes of an order as messages of their sender.
func (p *plane) prepare(o *order, n int) {
	tx := &p.senders[o.v]
	w := p.wayOf(o)
	if w != nil {
		tx = &p.framers[o.v]
	}
	for range n {
		i := o.next
		o.next++
		m := &tx.msgs[tx.n]
		if err := p.build(o, i, m); err != nil {
			p.refuse(o, err)
			if o.strict {
				return
			}
			continue
		}
		tx.rows[tx.n] = row{o, i}
		o.pending++
		switch {
		case w == nil:
		case len(m.Data) > w.MTU:
			p.unframe(o.v, tx.n)
			continue
		default:
			m.IfIndex, m.Link = w.IfIndex, w.Link
		}
		tx.n++
	}
}

func (p *plane) build(o *order, i int, m *rawio.Message) (err error) {
	q := &p.probe
	o.probe(i, q)
	if !usable(q.Dst) {
		return errTarget
	}
	if q.Src = o.src; !o.src.IsValid() {
		if q.Src, err = p.route(q.Dst); err != nil {
			return err
		}
	}
	q.Time = p.wall
	if m.Data, err = o.codec.Append(m.Data[:0], q); err != nil {
		return err
	}
	m.Addr = netip.AddrPortFrom(q.Dst, 0)
	return nil
}

// routed is the last answer of the routing table: a trace has one target.
type routed struct {
	dst, src netip.Addr
	until    int64 // mono
}

// route gives the source that routing chooses.
func (p *plane) route(dst netip.Addr) (netip.Addr, error) {
	if p.last.dst == dst && p.now < p.last.until {
		return p.last.src, nil
	}
	src, err := p.host.Source(dst, rawio.Route{})
	if err != nil {
		return src, err
	}
	p.last = routed{dst, src.WithZone(""), p.now + int64(time.Second)}
	return p.last.src, nil
}

// refuse notes that a probe of an order cannot be sent.
func (p *plane) refuse(o *order, err error) {
	p.counters.refused++
	o.fail(err)
	if o.strict {
		o.n = o.next
	}
}

// flush sends what is prepared for an IP version, 0 or 1 as in the plane. What the system has no room for now stays prepared.
func (p *plane) flush(tx *sender, v int) {
	framer := tx == &p.framers[v]
	from := 0
	for from < tx.n {
		msgs, rows := tx.msgs[from:tx.n], tx.rows[from:tx.n]
		p.clock()
		stamp := p.askStamps(tx, msgs, rows)
		mono, wall := p.now, p.wall
		n, err := tx.conn.Send(msgs)
		p.clock()
		spent := p.now - mono
		for k := range rows[:n] {
			o, i := rows[k].order, rows[k].i
			o.count++
			if o.times != nil {
				// The begin of its share of the system call: never after it left.
				o.times[i] = wall + spent*int64(k)/int64(n)
				if stamp {
					tx.owed.await(rows[k], o.times[i])
				}
			}
		}
		p.counters.sent += uint64(n)
		if framer {
			p.counters.framed += uint64(n)
		}
		if stamp && n > 0 {
			p.takeStamps(tx)
		}
		for k := range rows[:n] {
			p.left(&rows[k])
		}
		from += n
		if err == nil {
			continue
		}
		if stamp {
			tx.owed.refused(p.now)
		}
		if transient(err) {
			p.backoff = min(max(2*p.backoff, int64(50*time.Microsecond)), int64(10*time.Millisecond))
			p.hold = p.now + p.backoff
			tx.keep(from)
			return
		}
		o := rows[n].order
		if framer {
			// The interface, or its MTU, has changed since the look-up, most likely.
			if w := p.ways[msgs[n].Addr.Addr()]; w != nil {
				w.until = 0
			}
			p.unframe(v, from)
			from++
			continue
		}
		p.refuse(o, fmt.Errorf("send to %v: %w", msgs[n].Addr.Addr(), err))
		p.left(&rows[n])
		from++
	}
	p.backoff = 0
	tx.n = 0
}

// left ends the wait of an order for a probe.
func (p *plane) left(r *row) {
	o := r.order
	r.order = nil
	o.pending--
	p.settle(o)
}

// keep moves what is left, from some message on, to the front.
func (tx *sender) keep(from int) {
	n := 0
	for k := from; k < tx.n; k++ {
		tx.msgs[n], tx.msgs[k] = tx.msgs[k], tx.msgs[n]
		tx.rows[n] = tx.rows[k]
		n++
	}
	tx.n = n
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

// Departure stamps by the kernel cost an entry of the error queue each, about a fifth of a probe. Up to stampRate of them
// per second are asked for, stampBurst at once: all probes of traces, none to speak of in a flood.
const (
	stampRate  = 20000
	stampBurst = 8 * rawio.BatchSize
)

// askStamps has the kernel stamp the probes that want it, if it is to.
func (p *plane) askStamps(tx *sender, msgs []rawio.Message, rows []row) bool {
	want := 0
	for k := range rows {
		if rows[k].order.stamps {
			want++
		}
	}
	ask := want > 0
	if ask && tx.owed.unsure {
		p.takeStamps(tx)
		ask = tx.owed.settle(p.now, tx.conn)
	}
	ask = ask && p.allowed.take(p.now, want)
	for k := range msgs {
		msgs[k].StampTX = ask && rows[k].order.stamps
	}
	return ask
}

// allowance is how many departure stamps may be asked for.
type allowance struct {
	counted int64 // mono, up to when
	left    int64
}

// take takes n stamps, if they are there.
func (a *allowance) take(now int64, n int) bool {
	const each = int64(time.Second) / stampRate
	earned := (now - a.counted) / each
	a.left = min(a.left+earned, stampBurst)
	a.counted += earned * each
	if a.left < int64(n) {
		return false
	}
	a.left -= int64(n)
	return true
}

// stamps keeps account of the departure stamps that the kernel owes a socket. It numbers the messages that ask for one, and so
// do we. Whether it has counted a message that it refused depends on the reason and on its version; so after a
// refusal no stamp is asked for until those owed have come, and the numbers start again.
type stamps struct {
	next    uint32
	owed    int
	unsure  bool
	since   int64                      // mono: when it became so
	awaited [2 * rawio.BatchSize]stamp // of number k at k%len
	buffers [rawio.BatchSize]rawio.Message
}

// stamp is one that a probe waits for.
type stamp struct {
	row
	sent int64 // wall, by our own clock
}

const (
	// stampWait is how long stamps are waited for before the numbers start again: some may have been lost.
	stampWait = int64(2 * time.Second)
	// stampSlack is how far from our own time a stamp may lie. One farther off is from before
	// the clock was set, or after.
	stampSlack = int64(100 * time.Millisecond)
)

func (w *stamps) await(r row, sent int64) {
	w.awaited[w.next%uint32(len(w.awaited))] = stamp{r, sent}
	w.next++
	w.owed++
}

func (w *stamps) refused(now int64) {
	if !w.unsure {
		w.unsure, w.since = true, now
	}
}

// settle starts the numbers again, if it is time. It tells whether stamps may be asked for.
func (w *stamps) settle(now int64, c rawio.Conn) bool {
	if (w.owed <= 0 || now-w.since > stampWait) && c.ResetStamps() == nil {
		w.next, w.owed, w.unsure = 0, 0, false
	}
	return !w.unsure
}

// takeStamps reads a sender's error queue: departure stamps, and this host's own errors, which were the results of
// calls already.
func (p *plane) takeStamps(tx *sender) {
	w := &tx.owed
	for {
		n, err := tx.conn.ReceiveErrors(w.buffers[:])
		if err != nil || n == 0 {
			return
		}
		for k := range w.buffers[:n] {
			if m := &w.buffers[k]; m.Failure.Origin == rawio.OriginTimestamp {
				w.take(m)
			}
		}
		if n < len(w.buffers) {
			return
		}
	}
}

// take gives a stamp to its probe.
func (w *stamps) take(m *rawio.Message) {
	w.owed--
	if back := w.next - m.Failure.ID; m.Time == 0 || back == 0 || back > uint32(len(w.awaited)) {
		return
	}
	s := &w.awaited[m.Failure.ID%uint32(len(w.awaited))]
	if o := s.order; o != nil && !o.ended && max(m.Time-s.sent, s.sent-m.Time) < stampSlack {
		o.times[s.i] = m.Time
		o.kernel++
	}
	*s = stamp{}
}
