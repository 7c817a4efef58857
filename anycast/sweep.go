// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

const (
	// probeTTL is the hop limit of probes that are to arrive.
	probeTTL = 64
	// pumpEvery is how often, at most, probes are given out: at high rates each turn has a batch's worth.
	pumpEvery = 5 * time.Millisecond
	// maxBatch bounds the probes of a batch, and maxBlock the targets of a block.
	maxBatch, maxBlock = 2048, 1024
	// unreportedSpan is how much of the rate a site may have in hand without having said that it is sent: enough for
	// a controller on the other side of the world.
	unreportedSpan, minUnreported = 500 * time.Millisecond, 256
	progressEvery                 = time.Second
	// lostPatience is how long the probes of a site that was lost wait for it to come back.
	lostPatience = 30 * time.Second
	// maxNumbers bounds the different probes to a target; the other numbers are for traces in the same session. maxProbes
	// bounds those of a run: there is a bit for each.
	maxNumbers, maxProbes = 30000, 1 << 32
	// maxFailures bounds the reasons kept.
	maxFailures = 1000
)

// A sweep probes every target of a set in several steps, in an order drawn at random: from each of several sites,
// with each of several flows, and so on. It keeps to the pace, repeats what is not answered, and matches the answers, which may reach any
// site.
//
//	targets, shuffled   [ block 0 | block 1 | block 2 | block 3 | ... ]      a block is up to 1024 targets
//	                      step 2    step 1    step 1    step 0               blocks go through their steps by themselves
//
// Only the blocks under way are in memory, with a [record] of 32 bytes for each target. Target and number of
// an answer tell its record: the target's position the block, the number the step and the attempt. As the keyed
// check covers both, an answer proves that this very probe was sent. One bit for each probe tells duplicates from first answers, also when their block
// is long gone.
//
// Two parties work on it, under one lock: the goroutine of run gives out probes and takes blocks that are done, and the handlers that the
// fleet calls book what happens. The program is called by run only, without the lock.
type sweep struct {
	run     *run
	program sweeper
	targets *targetSet
	steps   int
	stamps  bool
	// numbers is how many probe numbers are in use; others belong to other users of the sessions.
	numbers  int
	sessions []Session
	ofOrigin map[originKey]int // session
	wake     chan struct{}
	room     chan struct{} // holds an element when a feed may go on

	mu      sync.Mutex // guards all following fields, and targets while there is a feed
	feeding bool       // more targets may come
	size    int        // targets per block, at most
	blocks  []*block   // those begun; nil are those that are done
	firsts  []uint32   // the first target of each, with a feed, whose blocks may be shorter
	over    int        // blocks
	taken   int        // targets of all blocks
	done    int        // targets of those that are over
	limit   int        // of targets in blocks under way
	current []*block   // those with probes to give out, in turn
	due     dueHeap
	ended   []*block // steps that are done, for run to take
	seen    bitSet   // probes that were answered
	sites   []siteState
	byName  map[string]uint16
	fleet   []Site // as of a second ago
	spacer  *spacer
	tokens  tokens
	batches map[uint64]*outBatch
	lastID  uint64
	failed  []failure
	counts  counts
}

// counts are what a sweep adds to the [Summary].
type counts struct{ sent, answered, duplicates, late, unknown, refused uint64 }

// sweeper is a program that sweeps. Its methods are called by one goroutine.
type sweeper interface {
	// aim says how to probe target i in a step, and false to leave it out. It is called with the sweep's lock held, and again if the site was lost
	// before it sent the probe.
	aim(b *block, i int) (shot, bool)
	// end takes the records of a step. The sweep's lock is not held.
	end(b *block) error
	// pause is how long to wait, from the last probe of a step, before the next step.
	pause(b *block) time.Duration
}

// shot is how to probe a target.
type shot struct {
	site    uint16
	session int
	flow    uint16
	source  netip.Addr
}

// recordState is how far a probe is.
type recordState uint8

const (
	idle    recordState = iota // left out
	waiting                    // to be given out
	flying                     // given to a site, which has not reported yet
	pending                    // sent
	answered
	silent
	refused
)

// record is what is known about one target in one step. Sites are indexes into sweep.sites.
type record struct {
	sent, received   int64 // by the clocks of sender and receiver, in nanoseconds since 1970; 0 if not known
	sender, receiver uint16
	duplicates       uint16
	state            recordState
	attempt          uint8 // the latest
	by               uint8 // the one that was answered
	status           probe.Status
	ttl              uint8
	more             bool // there is an extra
	again            bool // waiting because its site was lost, and may have sent it all the same
}

// extra is what few records have.
type extra struct {
	responder netip.Addr
	text      string
}

// block is targets that are probed together.
type block struct {
	index   int
	first   int // position of the first target
	addrs   []netip.Addr
	step    int
	records []record
	extras  map[int]extra // by index
	data    any           // the program's

	next     int       // records before it were given out
	open     int       // records that are not final
	flying   int       // probes given to sites and not reported
	deferred int       // records in the heap
	began    time.Time // this step
	reported time.Time // when the last probes were
	check    time.Time // when to look for silent ones
	ending   bool      // the program has it
}

// siteState is what the sweep knows about a site.
type siteState struct {
	name       string
	unreported int // probes given to it
	limit      int
	lost       bool      // its connection was, and it has not been seen since
	since      time.Time // when it was lost, zero once it has sent something again
	offset     time.Duration
	known      bool // the offset
}

// outBatch is probes given to a site.
type outBatch struct {
	session int
	site    string
	batch   Batch
	refs    []ref
}

// load is what a turn gives out.
type load struct {
	boxes map[boxKey]*outBatch // those with room
	out   []*outBatch
}

// ref is a record in a batch.
type ref struct {
	b       *block
	k       int32
	attempt uint8
}

// due is something to do at a time: give out a record that had to wait (k), or, for wholeBlock, begin a block's step, or see to its
// silent targets.
type due struct {
	at time.Time
	b  *block
	k  int32
}

const (
	beginStep = -1
	checkStep = -2
)

type dueHeap []due

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(due)) }
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = due{}
	*h = (*h)[:last]
	return x
}

// newSweep makes the state.
// It fails if there are more probes than can be told apart.
func (r *run) newSweep(p sweeper, targets *targetSet, steps int, stamps bool) (*sweep, error) {
	attempts := r.def.Attempts
	if steps*attempts > maxNumbers {
		return nil, &FieldError{
			Field: "attempts", Value: attempts,
			Reason: fmt.Sprintf("%d different probes to a target, as often as that, are more than %d", steps, maxNumbers),
		}
	}
	if probes := len(targets.addrs) * steps * attempts; probes > maxProbes {
		return nil, &FieldError{Field: "targets", Value: len(targets.addrs), Reason: fmt.Sprintf("up to %d probes in one run: split it", probes)}
	}
	s := &sweep{
		run: r, program: p, targets: targets, steps: steps, stamps: stamps, numbers: steps * attempts,
		ofOrigin: make(map[originKey]int), wake: make(chan struct{}, 1), room: make(chan struct{}, 1), feeding: r.Feed != nil,
		size: min(max(int(r.def.Pace.Rate/50), 1), maxBlock),
		seen: newBitSet(len(targets.addrs) * steps * attempts), byName: make(map[string]uint16),
		spacer: newSpacer(r.def.Pace.PerNetwork), tokens: tokens{rate: r.def.Pace.Rate},
		batches: make(map[uint64]*outBatch),
	}
	// So many that those that wait for answers, or for their turn, do not hold up the others.
	span := r.def.Timeout*time.Duration(attempts) + max(0, r.def.Pace.SiteGap) + 2*time.Second
	s.limit = 8*s.size + int(r.def.Pace.Rate*span.Seconds())
	for i := range r.senders {
		s.siteLocked(r.senders[i].Name)
	}
	return s, nil
}

// siteLocked gives the index of a site, a new one if it was not known.
func (s *sweep) siteLocked(name string) uint16 {
	i, ok := s.byName[name]
	if !ok {
		i = uint16(len(s.sites))
		s.byName[name] = i
		s.sites = append(s.sites, siteState{
			name: name, limit: max(minUnreported, int(s.run.def.Pace.Rate*unreportedSpan.Seconds())),
		})
	}
	return i
}

// originKey is what origins that share a session have in common.
type originKey struct {
	kind       stateless.Kind
	sourcePort uint16
	port       uint16
}

func keyOf(o *Origin, kind stateless.Kind) originKey { return originKey{kind, o.SourcePort, o.Port} }

// sessionOf is the session of an origin for probes of a kind.
func (s *sweep) sessionOf(origin int, kind stateless.Kind) int {
	return s.ofOrigin[keyOf(&s.run.origins[origin].Origin, kind)]
}

// openOrigins opens the sessions that the origins need for probes of a kind, with a number of source ports each; with CHAOS, where the
// number of a probe is its port, with as many as there are numbers. Other gets the events that are not the sweep's; it may be nil.
func (s *sweep) openOrigins(ctx context.Context, kind stateless.Kind, ports int, other func(session int) Handler) error {
	if kind == chaos {
		ports = s.numbers
	}
	if !s.feeding && len(s.targets.addrs) == 0 {
		return nil
	}
	for i := range s.run.origins {
		o := &s.run.origins[i]
		key := keyOf(&o.Origin, kind)
		if _, ok := s.ofOrigin[key]; ok || len(o.sites) == 0 {
			continue
		}
		var h Handler
		if other != nil {
			h = other(len(s.sessions))
		}
		s.ofOrigin[key] = len(s.sessions)
		if err := s.open(ctx, s.run.def.probesFrom(&o.Origin, kind, ports), h); err != nil {
			return err
		}
	}
	return nil
}

// open opens a session for the sweep.
func (s *sweep) open(ctx context.Context, probes stateless.Config, other Handler) error {
	session, err := s.run.Fleet.Open(ctx, SessionConfig{
		Probes: probes, Handler: &sweepHandler{s: s, other: other}, Linger: s.run.def.Timeout,
	})
	if err != nil {
		return fmt.Errorf("open a session: %w", err)
	}
	s.sessions = append(s.sessions, session)
	return nil
}

func (s *sweep) close() {
	for _, session := range s.sessions {
		session.Close()
	}
}

// sweep runs to the end.
func (s *sweep) sweep(ctx context.Context) error {
	if !s.feeding {
		return s.pump(ctx)
	}
	ctx, stop := context.WithCancelCause(ctx)
	fed := make(chan struct{})
	go func() { // waited for below
		defer close(fed)
		if err := s.feed(ctx); err != nil {
			stop(err)
		}
	}()
	err := s.pump(ctx)
	stop(nil)
	<-fed
	return err
}

// pump gives out probes and takes what is done, to the end.
func (s *sweep) pump(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	progress := time.Now().Add(progressEvery)
	refresh := time.Now().Add(-time.Hour)
	for {
		now := time.Now()
		if now.Sub(refresh) >= time.Second {
			s.refresh(now)
			refresh = now
		}
		if !now.Before(progress) {
			s.progress(now)
			progress = now.Add(progressEvery)
		}
		s.mu.Lock()
		out, next := s.pumpLocked(now)
		ended := s.ended
		s.ended = nil
		over := !s.feeding && s.taken == len(s.targets.addrs) && s.over == len(s.blocks)
		s.mu.Unlock()
		s.send(out)
		if over {
			s.finish()
			return nil
		}
		for _, b := range ended {
			if err := s.program.end(b); err != nil {
				s.finish()
				return err
			}
			s.advance(b)
		}
		if len(ended) > 0 {
			continue
		}
		if next.IsZero() || next.After(progress) {
			next = progress
		}
		timer.Reset(time.Until(next))
		select {
		case <-timer.C:
		case <-s.wake:
		case <-ctx.Done():
			s.finish()
			return context.Cause(ctx)
		}
	}
}

// finish adds up.
func (s *sweep) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := &s.run.summary
	sum.Sent += s.counts.sent
	sum.Answered += s.counts.answered
	sum.Duplicates += s.counts.duplicates
	sum.Late += s.counts.late
	sum.Unknown += s.counts.unknown
	sum.Refused += s.counts.refused
	s.counts = counts{}
}

// refresh learns from the fleet which sites are there, and how their clocks stand.
func (s *sweep) refresh(now time.Time) {
	sites := s.run.Fleet.Sites()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range sites {
		at, ok := s.byName[sites[i].Name]
		if !ok {
			continue
		}
		st := &s.sites[at]
		st.offset, st.known = sites[i].Clock.Offset, sites[i].Clock.Error > 0
		if st.lost && now.Sub(st.since) >= time.Second {
			st.lost = false
		}
	}
	s.fleet = sites
}

func (s *sweep) progress(now time.Time) {
	s.mu.Lock()
	total := len(s.targets.addrs)
	if s.feeding {
		total = 0
	}
	p := Progress{Done: s.done, Total: total, Sent: s.counts.sent, Answered: s.counts.answered}
	probes := float64(total) * float64(s.steps)
	s.mu.Unlock()
	if took := now.Sub(s.run.start); p.Sent > 0 && p.Done < total {
		// At the speed so far; what follows the last probe is short beside it, or the rest is.
		left := float64(took)*max(0, probes-float64(p.Sent))/float64(p.Sent) + float64(s.run.def.Timeout)
		p.Left = time.Duration(min(left, float64(1<<62)))
	}
	s.run.Sink.Progress(p)
}

// pumpLocked gives out what may be sent now, and says when to come back; the zero time is when something happens.
func (s *sweep) pumpLocked(now time.Time) (out []*outBatch, next time.Time) {
	for len(s.due) > 0 && s.due[0].k == checkStep && !s.due[0].at.After(now) {
		s.checkLocked(heap.Pop(&s.due).(due), now)
	}
	s.tokens.fill(now)
	turn := min(max(1, s.tokens.rate*pumpEvery.Seconds()), maxBatch)
	if s.tokens.have < turn {
		return nil, s.soonerLocked(now, now.Add(s.tokens.wait(turn)))
	}
	l := &load{boxes: make(map[boxKey]*outBatch, 2*len(s.sites))}
	for s.tokens.have >= 1 {
		if len(s.due) > 0 && !s.due[0].at.After(now) {
			switch d := heap.Pop(&s.due).(due); d.k {
			case checkStep:
				s.checkLocked(d, now)
			case beginStep:
				s.current = append(s.current, d.b)
			default:
				if !s.giveLocked(l, d.b, int(d.k), now) {
					heap.Push(&s.due, d)
					return l.out, time.Time{} // until the site reports
				}
				d.b.deferred--
				s.settleLocked(d.b, now)
			}
			continue
		}
		if len(s.current) == 0 {
			if s.taken == len(s.targets.addrs) || s.taken-s.done >= s.limit {
				return l.out, s.soonerLocked(now, time.Time{})
			}
			s.current = append(s.current, s.beginLocked(now))
		}
		b := s.current[0]
		for b.next < len(b.records) && s.tokens.have >= 1 {
			if !s.giveOrDeferLocked(l, b, b.next, now) {
				return l.out, s.soonerLocked(now, time.Time{})
			}
			b.next++
		}
		if b.next == len(b.records) {
			s.current[0] = nil
			s.current = s.current[1:]
			s.settleLocked(b, now)
		}
	}
	return l.out, s.soonerLocked(now, now.Add(s.tokens.wait(turn)))
}

// soonerLocked gives the earlier one of a time and that of the first thing that will be due. What is due already
// waits for that time.
func (s *sweep) soonerLocked(now, t time.Time) time.Time {
	if len(s.due) > 0 && s.due[0].at.After(now) && (t.IsZero() || s.due[0].at.Before(t)) {
		return s.due[0].at
	}
	return t
}

// beginLocked makes the next block, of the targets that there are.
func (s *sweep) beginLocked(now time.Time) *block {
	n := min(s.size, len(s.targets.addrs)-s.taken)
	b := &block{
		index: len(s.blocks), first: s.taken, addrs: s.targets.addrs[s.taken:][:n:n], records: make([]record, n), began: now,
	}
	for k := range b.records {
		b.records[k].state = waiting
	}
	b.open = n
	s.blocks = append(s.blocks, b)
	if s.run.Feed != nil {
		s.firsts = append(s.firsts, uint32(s.taken))
		select {
		case s.room <- struct{}{}:
		default:
		}
	}
	s.taken += n
	return b
}

// blockLocked is the block of a target, nil if that is over; begun tells whether it has begun.
func (s *sweep) blockLocked(target int) (b *block, begun bool) {
	if target >= s.taken {
		return nil, false
	}
	if s.run.Feed == nil {
		return s.blocks[target/s.size], true
	}
	i, found := slices.BinarySearch(s.firsts, uint32(target))
	if !found {
		i--
	}
	return s.blocks[i], true
}

// giveOrDeferLocked gives a probe out unless its network's turn comes later. It is false if the site has enough to do.
func (s *sweep) giveOrDeferLocked(l *load, b *block, k int, now time.Time) bool {
	rec := &b.records[k]
	if rec.state != waiting {
		return true
	}
	if s.spacer.gap > 0 {
		// Look first whether it comes to sending: a reservation cannot be given back.
		sh, ok := s.program.aim(b, b.first+k)
		switch {
		case !ok:
			return s.giveLocked(l, b, k, now)
		case s.fullLocked(sh.site):
			return false
		}
		if at := s.spacer.reserve(b.addrs[k], now); at.After(now) {
			b.deferred++
			heap.Push(&s.due, due{at, b, int32(k)})
			return true
		}
	}
	return s.giveLocked(l, b, k, now)
}

func (s *sweep) fullLocked(site uint16) bool {
	st := &s.sites[site]
	return !st.lost && st.unreported >= st.limit
}

// boxKey is what the probes of a batch have in common.
type boxKey struct {
	site    uint16
	session int
	source  netip.Addr
}

// giveLocked puts a probe into a batch. It is false if the site has enough to do.
func (s *sweep) giveLocked(l *load, b *block, k int, now time.Time) bool {
	rec := &b.records[k]
	if rec.state != waiting {
		return true // answered in the meantime
	}
	sh, ok := s.program.aim(b, b.first+k)
	if !ok {
		rec.state = idle
		b.open--
		return true
	}
	st := &s.sites[sh.site]
	rec.sender = sh.site
	if st.lost {
		if now.Sub(st.since) > lostPatience {
			s.refuseLocked(b, rec)
		} else {
			b.deferred++
			heap.Push(&s.due, due{now.Add(time.Second), b, int32(k)})
		}
		return true
	}
	if st.unreported >= st.limit {
		return false
	}
	key := boxKey{sh.site, sh.session, sh.source}
	box := l.boxes[key]
	if box == nil || len(box.refs) == maxBatch {
		s.lastID++
		box = &outBatch{
			session: sh.session, site: st.name,
			batch: Batch{ID: s.lastID, Source: sh.source, TTLs: []uint8{probeTTL}, Stamps: s.stamps},
		}
		s.batches[s.lastID] = box
		l.boxes[key] = box
		l.out = append(l.out, box)
	}
	box.batch.Targets = append(box.batch.Targets, b.addrs[k])
	box.batch.Numbers = append(box.batch.Numbers, uint16(b.step*s.run.def.Attempts+int(rec.attempt)))
	box.batch.Flows = append(box.batch.Flows, sh.flow)
	box.refs = append(box.refs, ref{b, int32(k), rec.attempt})
	rec.state = flying
	b.flying++
	st.unreported++
	s.tokens.have--
	return true
}

func (s *sweep) refuseLocked(b *block, rec *record) {
	rec.state = refused
	b.open--
	s.counts.refused++
}

// compact cuts a slice of equal elements to one.
func compact(s []uint16) []uint16 {
	for _, v := range s {
		if v != s[0] {
			return s
		}
	}
	return s[:1]
}

// send gives the batches to the sites.
func (s *sweep) send(out []*outBatch) {
	for _, b := range out {
		b.batch.Numbers, b.batch.Flows = compact(b.batch.Numbers), compact(b.batch.Flows)
		if err := s.sessions[b.session].Send(b.site, b.batch); err != nil {
			if errors.Is(err, ErrNoSite) {
				err = ErrSiteLost
			}
			s.sent(Sent{Site: b.site, Batch: b.batch.ID, Err: err})
		}
	}
}

// sent books what became of a batch.
func (s *sweep) sent(e Sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.batches[e.Batch]
	if out == nil {
		return
	}
	delete(s.batches, e.Batch)
	now := time.Now()
	st := &s.sites[s.byName[out.site]]
	st.unreported -= len(out.refs)
	lost := errors.Is(e.Err, ErrSiteLost)
	switch {
	case e.Err == nil:
		st.since = time.Time{}
	case lost && !st.lost:
		st.lost = true
		if st.since.IsZero() {
			st.since = now
		}
	}
	if e.Err != nil && len(s.failed) < maxFailures {
		s.failed = append(s.failed, failure{out.site, e.Err})
	}
	for i, r := range out.refs {
		rec := &r.b.records[r.k]
		r.b.flying--
		r.b.reported = now
		left := i < e.Count
		if e.Times != nil {
			left = i < len(e.Times) && e.Times[i] != 0
			latest := rec.attempt
			if rec.state == answered {
				latest = rec.by
			}
			if left && rec.sent == 0 && latest == r.attempt {
				rec.sent = e.Times[i]
			}
		}
		switch {
		case left || rec.state == answered && rec.by == r.attempt:
			s.counts.sent++
			if rec.state == flying {
				rec.state = pending
			}
		case rec.state != flying:
		case lost:
			// The program may find another site for it.
			rec.state, rec.again = waiting, true
			r.b.deferred++
			heap.Push(&s.due, due{now, r.b, r.k})
		default:
			s.refuseLocked(r.b, rec)
		}
		s.settleLocked(r.b, now)
	}
	s.signal()
}

// failure is why a site did not send something.
type failure struct {
	site string
	err  error
}

// signal wakes run.
func (s *sweep) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// answers books answers that reached one site.
func (s *sweep) answers(all []Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	attempts := s.run.def.Attempts
	name, site := "", uint16(0)
	for i := range all {
		a := &all[i]
		at, ok := s.targets.find(a.Target)
		step, attempt := int(a.Number)/attempts, int(a.Number)%attempts
		if !ok || step >= s.steps {
			s.counts.unknown++
			continue
		}
		b, begun := s.blockLocked(at)
		if !begun {
			s.counts.unknown++
			continue
		}
		var rec *record
		if b != nil && b.step == step && !b.ending {
			rec = &b.records[at-b.first]
		}
		switch {
		case b != nil && step > b.step,
			rec != nil && (attempt > int(rec.attempt) || attempt == int(rec.attempt) && (rec.state == waiting && !rec.again || rec.state == idle)):
			s.counts.unknown++ // not sent yet
			continue
		case s.seen.add((at*s.steps+step)*attempts + attempt):
			s.counts.duplicates++
			if rec != nil && rec.state == answered && rec.by == uint8(attempt) && rec.duplicates < 1<<16-1 {
				rec.duplicates++
			}
			continue
		}
		s.counts.answered++
		if rec == nil {
			s.counts.late++
			continue
		}
		switch rec.state {
		case answered:
			continue // to another attempt
		case refused: // by a site that was lost before it could say that it had sent this one
			s.counts.refused--
			s.counts.sent++
		case waiting:
			if attempt == int(rec.attempt) {
				s.counts.sent++ // likewise
			}
			b.open--
		default:
			b.open--
		}
		if a.Site != name {
			name, site = a.Site, s.siteLocked(a.Site)
		}
		// A stamp that is there, or will be, is of the latest attempt.
		if attempt != int(rec.attempt) || a.Sent != 0 {
			rec.sent = a.Sent
		}
		rec.by = uint8(attempt)
		rec.state, rec.receiver, rec.received = answered, site, a.Time
		rec.status, rec.ttl = a.Status, a.ReplyTTL
		if a.Responder != a.Target || a.Text != "" {
			rec.more = true
			if b.extras == nil {
				b.extras = make(map[int]extra)
			}
			e := extra{text: a.Text}
			if a.Responder != a.Target {
				e.responder = a.Responder
			}
			b.extras[at-b.first] = e
		}
		if b.open == 0 {
			s.settleLocked(b, now)
		}
	}
}

// settleLocked sees whether a block's step is done, and if it only waits for answers, for how long.
func (s *sweep) settleLocked(b *block, now time.Time) {
	switch {
	case b.ending || b.next < len(b.records) || b.deferred > 0 || b.flying > 0:
	case b.open == 0:
		b.ending = true
		s.ended = append(s.ended, b)
		s.signal()
	default:
		if check := b.reported.Add(s.run.def.Timeout); !check.Equal(b.check) {
			b.check = check
			heap.Push(&s.due, due{check, b, checkStep})
			s.signal()
		}
	}
}

// checkLocked sees to the targets of a block that have not answered in time.
func (s *sweep) checkLocked(d due, now time.Time) {
	b := d.b
	if b.ending || !d.at.Equal(b.check) || b.next < len(b.records) || b.deferred > 0 || b.flying > 0 {
		return
	}
	for k := range b.records {
		rec := &b.records[k]
		if rec.state != pending {
			continue
		}
		if int(rec.attempt)+1 == s.run.def.Attempts {
			rec.state, rec.status = silent, probe.NoReply
			b.open--
			continue
		}
		rec.attempt++
		rec.state, rec.sent, rec.again = waiting, 0, false
		b.deferred++
		heap.Push(&s.due, due{s.spacer.reserve(b.addrs[k], now), b, int32(k)})
	}
	s.settleLocked(b, now)
}

// advance takes a block to its next step.
func (s *sweep) advance(b *block) {
	pause := s.program.pause(b)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	b.step++
	if b.step == s.steps {
		s.blocks[b.index] = nil
		s.over++
		s.done += len(b.records)
		return
	}
	clear(b.records)
	for k := range b.records {
		b.records[k].state = waiting
	}
	b.extras, b.next, b.open, b.ending, b.check = nil, 0, len(b.records), false, time.Time{}
	at := b.reported.Add(pause)
	if at.Before(now) {
		at = now
	}
	b.began = at
	heap.Push(&s.due, due{at, b, beginStep})
}

// usableLocked tells whether probes may be given to a site.
func (s *sweep) usableLocked(site uint16) bool { return !s.sites[site].lost }

// rtt is the round-trip time of a record, 0 if it is not known.
func (s *sweep) rtt(r *record, sites []siteState) (rtt, uncertainty time.Duration) {
	if r.state != answered || r.sent == 0 {
		return 0, 0
	}
	rtt, uncertainty, ok := s.run.Fleet.RTT(sites[r.sender].name, r.sent, sites[r.receiver].name, r.received)
	if !ok || rtt <= 0 {
		return 0, 0
	}
	return rtt, uncertainty
}

// view is the sites as they are known now, by index.
func (s *sweep) view() []siteState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sites)
}

// catch makes the result of target k of a block's present step, of the origin that is set in it.
func (s *sweep) catch(c *Catch, b *block, k int, sites []siteState, kind stateless.Kind) {
	rec := &b.records[k]
	*c = Catch{
		Target: b.addrs[k], Sender: sites[rec.sender].name, Origin: c.Origin, Protocol: kind, Status: rec.status,
		Time: b.began, Duplicates: int(rec.duplicates),
	}
	switch rec.state {
	case answered:
		c.Receiver, c.ReplyTTL = sites[rec.receiver].name, rec.ttl
		c.RTT, c.ClockError = s.rtt(rec, sites)
		if rec.more {
			e := b.extras[k]
			c.Responder, c.Text = e.responder, e.text
		}
	case refused:
		c.Status = probe.Failed
	case silent:
		c.Status = probe.NoReply
	case idle, waiting, flying, pending: // not the states of a step's end, or left out
	}
	if st := &sites[rec.sender]; rec.sent != 0 && st.known {
		c.Time = time.Unix(0, rec.sent).Add(-st.offset)
	}
}

// sweepHandler is the handler of one of a sweep's sessions.
type sweepHandler struct {
	s *sweep
	// other gets what is not the sweep's; may be nil.
	other Handler
}

// otherBatches is the first batch number of other users of a sweep's sessions.
const otherBatches = 1 << 32

// HandleSent implements Handler.
func (h *sweepHandler) HandleSent(e Sent) {
	if e.Batch < otherBatches {
		h.s.sent(e)
	} else if h.other != nil {
		h.other.HandleSent(e)
	}
}

// HandleAnswers implements Handler.
func (h *sweepHandler) HandleAnswers(all []Answer) {
	if h.other == nil {
		h.s.answers(all)
		return
	}
	for len(all) > 0 {
		mine := int(all[0].Number) < h.s.numbers
		n := 1
		for n < len(all) && int(all[n].Number) < h.s.numbers == mine {
			n++
		}
		if mine {
			h.s.answers(all[:n])
		} else {
			h.other.HandleAnswers(all[:n])
		}
		all = all[n:]
	}
}
