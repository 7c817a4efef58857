// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"container/heap"
	"errors"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/probe/stateless"
)

// order is probes to send, for one controller. After the plane has accepted it, it is the plane's.
type order struct {
	link    *link
	id      uint32 // of the session
	batch   uint64
	session *session // nil for a job of Voltadomar's
	codec   *stateless.Codec

	// What to send, as in anycast.Batch: one element for all, or one each.
	n       int
	v       int        // 0 for IPv4, 1 for IPv6
	src     netip.Addr // zero: the default
	targets []byte     // 4 or 16 bytes each
	ttls    []uint32
	flows   []uint32
	numbers []uint32

	rate   float64 // per second; 0 for as fast as possible
	strict bool    // end with the first probe that cannot be sent

	next    int     // of n, to be prepared
	pending int     // prepared, and neither sent nor refused
	due     float64 // mono: when the next one may be sent
	ended   bool

	stamps  bool
	times   []int64 // departures by the wall clock, 0 for what was not sent
	kernel  int     // of times, taken by the kernel
	count   int     // sent
	failure error   // the first
}

// report is what became of an order.
type report struct {
	session uint32
	batch   uint64
	count   int
	times   []int64 // as order.times, nil if nobody asked
	kernel  bool
	err     error
}

// Bounds of what a controller may ask for.
const (
	// maxOrder is how many probes an order has at most.
	maxOrder = 1 << 17
	// maxQueued is how much memory the orders of one controller take at most, in bytes: some 300,000 probes.
	maxQueued = 6 << 20
	// orderOverhead is what an order takes beside its columns, in bytes.
	orderOverhead = 512
)

// Reasons to refuse an order or to end it early.
var (
	errSession  = errors.New("session is not open")
	errClosed   = errors.New("session was closed")
	errQueue    = errors.New("too many probes are waiting at this site")
	errSource   = errors.New("site has no such source address")
	errTarget   = errors.New("target is not a host's address")
	errNoSource = errors.New("site has no source address of this IP version")
)

// size is how much memory the order takes, in bytes.
func (o *order) size() int {
	n := orderOverhead + len(o.targets) + 4*(len(o.ttls)+len(o.flows)+len(o.numbers))
	if o.stamps {
		n += 8 * o.n
	}
	return n
}

// at gives row i of a column.
func at(column []uint32, i int) uint32 {
	if len(column) == 1 {
		return column[0]
	}
	return column[i]
}

// probe gives probe i. The columns have been checked.
func (o *order) probe(i int, p *stateless.Probe) {
	w := addrLen[o.v]
	t := o.targets
	if len(t) > w {
		t = t[i*w:]
	}
	if o.v == 0 {
		p.Dst = netip.AddrFrom4([4]byte(t))
	} else {
		p.Dst = netip.AddrFrom16([16]byte(t))
	}
	p.TTL, p.Flow, p.Number = uint8(at(o.ttls, i)), uint16(at(o.flows, i)), uint16(at(o.numbers, i))
}

var addrLen = [2]int{4, 16}

// report tells how it went.
func (o *order) report() *report {
	return &report{
		session: o.id, batch: o.batch, count: o.count, times: o.times,
		kernel: o.stamps && o.count > 0 && o.kernel == o.count, err: o.failure,
	}
}

// fail notes why a probe was not sent.
func (o *order) fail(err error) {
	if o.failure == nil {
		o.failure = err
	}
}

// express is the orders without a rate. Their controllers take turns, so that none keeps another from sending; and so do the
// orders of each: a few probes each, so that a short one is not held up by a long one. A new order is its controller's next.
type express struct {
	links []*link // that have orders; the first one is next
	n     int     // orders
}

// put adds an order before the others of its link.
func (q *express) put(o *order) {
	q.await(o.link)
	o.link.express = append(o.link.express, o)
	q.n++
}

// back adds an order behind the others of its link.
func (q *express) back(o *order) {
	q.await(o.link)
	o.link.express = slices.Insert(o.link.express, 0, o)
	q.n++
}

// await has a link's turn come when it is about to get its first order.
func (q *express) await(l *link) {
	if len(l.express) == 0 {
		q.links = append(q.links, l)
	}
}

// take removes the next order.
func (q *express) take() *order {
	l := q.links[0]
	q.links = slices.Delete(q.links, 0, 1)
	n := len(l.express) - 1
	o := l.express[n]
	l.express[n] = nil
	l.express = l.express[:n]
	if n > 0 {
		q.links = append(q.links, l)
	}
	q.n--
	return o
}

// drop removes orders.
func (q *express) drop(which func(*order) bool) {
	q.n = 0
	q.links = slices.DeleteFunc(q.links, func(l *link) bool {
		l.express = slices.DeleteFunc(l.express, which)
		q.n += len(l.express)
		return len(l.express) == 0
	})
}

// paced is the orders with a rate, a heap by when their next probe may be sent.
type paced []*order

func (q paced) Len() int           { return len(q) }
func (q paced) Less(i, j int) bool { return q[i].due < q[j].due }
func (q paced) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *paced) Push(x any)        { *q = append(*q, x.(*order)) }

func (q *paced) Pop() any {
	n := len(*q) - 1
	o := (*q)[n]
	(*q)[n] = nil
	*q = (*q)[:n]
	return o
}

// draw tells how many probes of the first order may be sent, and moves its time on.
func (q paced) draw(now int64, most int) int {
	o := q[0]
	step := float64(time.Second) / o.rate
	if late := float64(now) - catchUp; o.due < late {
		o.due = late // what could not be sent in time is sent later, not at once
	}
	n := min(most, o.n-o.next, 1+int(math.Min((float64(now)-o.due)/step, float64(most))))
	o.due += float64(n) * step
	heap.Fix(&q, 0)
	return n
}

// index is the place of an order that is in the heap.
func (q paced) index(o *order) int { return slices.Index(q, o) }

// catchUp is how much of a delay is made up for by a burst.
const catchUp = float64(10 * time.Millisecond)

// limit is the agent's own rate: a bucket of probes.
type limit struct {
	rate   float64 // per second; 0 for none
	burst  float64
	tokens float64
	last   int64 // mono
}

func newLimit(rate float64) limit {
	burst := math.Max(1, rate*catchUp/float64(time.Second))
	return limit{rate: rate, burst: burst, tokens: burst}
}

// allows tells how many of n probes may be sent now.
func (l *limit) allows(now int64, n int) int {
	if l.rate == 0 {
		return n
	}
	l.tokens = math.Min(l.burst, l.tokens+float64(now-l.last)*l.rate/float64(time.Second))
	l.last = now
	return min(n, int(l.tokens))
}

func (l *limit) spend(n int) { l.tokens -= float64(n) }

// wait is the time until one probe may be sent.
func (l *limit) wait() time.Duration {
	if l.rate == 0 || l.tokens >= 1 {
		return 0
	}
	return time.Duration((1-l.tokens)/l.rate*float64(time.Second)) + 1
}
