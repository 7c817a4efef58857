// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

const (
	// maxPushed is the largest payload that is pushed; larger ones are offered. At 1 Mbit/s it takes 130 ms, which is
	// within the time that an answer is waited for.
	maxPushed = 16 << 10
	// maxHops is far more than any broadcast needs: 16 steps reach 2^16 members even by fingers that only halve.
	maxHops = 250
	// maxSends bounds what one broadcast can make a member send, whatever limits it is told.
	maxSends = 128
	// itemOverhead is what is counted for a payload besides its bytes.
	itemOverhead = 512
	// viewLife is how long whom we know is not asked for again: asking is not free, and what is wrong is repaired.
	viewLife = 100 * time.Millisecond
	// suspectLife is how long a member that did not answer is passed over. The ring finds out meanwhile.
	suspectLife = 3 * time.Second
)

// An Engine is one member's part in broadcasts. It is safe for concurrent use.
type Engine struct {
	o      Options
	ctx    context.Context // ends with Run
	cancel context.CancelFunc
	wake   chan struct{}
	view   atomic.Pointer[view]

	// mu guards all that follows. None of Options' functions is called under it.
	mu        sync.Mutex
	closed    bool
	running   sync.WaitGroup
	random    *rand.Rand
	lastSent  uint64
	memory    *memory
	guard     guard
	items     map[wire.Tag]*item
	order     []*item // of items, the oldest first
	keptBytes int
	suspects  map[member.ID]time.Time // until when they are passed over

	queue    []job
	workers  int
	inFlight map[member.ID]int

	began   time.Time
	planned time.Time          // when Run wakes up next; zero if it does not
	fresh   []*item            // not told to anybody yet
	freshAt time.Time          // when they are
	tick    time.Time          // when old ones are told again
	told    map[member.ID]bool // the neighbours that have heard all there is; nil while there is nothing
	missing map[wire.Tag]*missing
	fetches int
	large   int // of fetches
	stats   Stats
}

// A view is whom the member knew at some time.
type view struct {
	*table
	leaves []member.Contact // native
	at     time.Time
}

// An item is a broadcast whose payload is kept.
type item struct {
	push    wire.Push // Limit says nothing; Hops as it came
	got     time.Time
	holders []member.ID // who has it or will have it soon; nobody once the news has been told
	isTold  bool        // the news has been told
	again   int         // how often it has been told again
	reached member.ID   // the distance up to which parts have been given out
	sends   int
	outcome *outcome // where it began here
}

func (i *item) size() int { return len(i.push.Payload) + itemOverhead }

// An outcome is what [Engine.Broadcast] waits for: the first acknowledgement, or the last failure.
type outcome struct {
	pending int
	err     error
	done    chan error // of one
}

// New returns an engine. It takes and passes on broadcasts at once; Run is needed for the repair.
func New(o Options) *Engine {
	o = o.withDefaults()
	source := o.Random
	if source == nil {
		var seed [32]byte
		crand.Read(seed[:]) // never fails
		source = rand.NewChaCha8(seed)
	}
	e := &Engine{
		o: o, wake: make(chan struct{}, 1),
		random:   rand.New(source), //nolint:gosec // unpredictable unless the caller wants it otherwise
		memory:   newMemory(o.Memory, o.Tags),
		guard:    guard{rate: o.Rate, members: make(map[member.ID]*watched)},
		items:    make(map[wire.Tag]*item),
		suspects: make(map[member.ID]time.Time),
		inFlight: make(map[member.ID]int),
		missing:  make(map[wire.Tag]*missing),
		began:    time.Now(),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// Broadcast sends a payload to all other members of the swarm, but for the applications of at most [wire.MaxExcept]
// members. It returns when the first of those that pass it on has it, with the tag that others know it by. The error
// wraps [wire.ErrUnreachable] if none could be reached; even so the broadcast is kept for a minute and told to whoever
// comes up. It wraps [ErrStale] if the others take our clock for wrong, [ErrBusy] if too much is under way, and
// [net.ErrClosed] after Run. A member that knows no other has told all. The error of ctx says nothing about what becomes of the
// broadcast. The payload must not be changed afterwards.
func (e *Engine) Broadcast(ctx context.Context, payload []byte, except []member.ID) (wire.Tag, error) {
	if len(payload) > wire.MaxPayload {
		return wire.Tag{}, fmt.Errorf("broadcast of %d bytes: %w, at most %d", len(payload), ErrTooLarge, wire.MaxPayload)
	}
	if len(except) > wire.MaxExcept {
		return wire.Tag{}, fmt.Errorf("broadcast with %d exceptions: %w: at most %d", len(except), ErrForm, wire.MaxExcept)
	}
	self := e.o.Self()
	p := wire.Push{Origin: self.ID, Except: slices.Clone(except), Payload: payload}
	now := time.Now()
	e.mu.Lock()
	// The time tells apart equal payloads, so it never stands still.
	e.lastSent = max(e.lastSent+1, uint64(now.UnixNano()))
	p.Sent = e.lastSent
	e.mu.Unlock()
	d := digest(p.Origin, p.Sent, p.Except, p.Payload)
	p.Tag = nativeTag(d)
	if e.o.Binding == member.ByKey {
		p.Key, p.Signature = self.Key, e.o.Sign(signed(d))
	}
	v := e.look(self)
	result := &outcome{done: make(chan error, 1)}

	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return wire.Tag{}, fmt.Errorf("broadcast: %w", net.ErrClosed)
	}
	if len(e.queue) > maxQueue {
		e.mu.Unlock()
		return wire.Tag{}, fmt.Errorf("broadcast: %w", ErrBusy)
	}
	e.memory.add(p.Tag, sentAt(p), now)
	e.stats.Begun++
	it := e.keepLocked(p, now, true)
	it.outcome = result
	if self.Leaf {
		e.handToHostLocked(it, self.Hosts)
	} else {
		e.shareLocked(it, v, self.ID, false)
		e.handToLeavesLocked(it, v)
	}
	waits := result.pending > 0
	e.mu.Unlock()
	e.spread(p, self.ID)
	if !waits {
		return p.Tag, nil
	}
	select {
	case err := <-result.done:
		if err != nil {
			err = fmt.Errorf("broadcast %s: %w", p.Tag, err)
		}
		return p.Tag, err
	case <-e.ctx.Done():
		return p.Tag, fmt.Errorf("broadcast %s: %w", p.Tag, net.ErrClosed)
	case <-ctx.Done():
		return p.Tag, fmt.Errorf("broadcast %s: %w", p.Tag, ctx.Err())
	}
}

// Inject takes in a broadcast that an original began, for a gateway that heard it: origin is who was seen to send it,
// and tag is a [ForeignTag]. It is delivered here and passed on unless it is known already, from here or from another
// gateway. What a native member began is not taken from originals, which cannot prove it; that error wraps ErrConflict.
func (e *Engine) Inject(tag wire.Tag, origin member.ID, payload []byte) error {
	self := e.o.Self()
	if len(payload) > wire.MaxPayload {
		return fmt.Errorf("inject %d bytes: %w, at most %d", len(payload), ErrTooLarge, wire.MaxPayload)
	}
	p := wire.Push{Tag: tag, Origin: origin, Limit: self.ID, Payload: payload}
	if err := verify(p, e.o.Binding, e.o.Originals); err != nil {
		return fmt.Errorf("inject %s: %w", tag, err)
	}
	if err := e.take(self.ID, p, injected); err != nil {
		return fmt.Errorf("inject %s: %w", tag, err)
	}
	return nil
}

// Handle takes Push, Offer, Have and Want from another member, and returns the answer, nil to Have; see [wire.Handler].
func (e *Engine) Handle(_ context.Context, from member.Contact, request wire.Message) wire.Message {
	switch m := request.(type) {
	case wire.Push:
		return answer(e.push(from, m))
	case wire.Offer:
		return answer(e.offered(from, m))
	case wire.Want:
		return e.serve(from, m)
	case wire.Have:
		e.hear(from, m)
		return nil
	default:
		return wire.Refused{Code: wire.Unsupported, Reason: "not of a broadcast"}
	}
}

// answer is the answer to a Push or an Offer.
func answer(err error) wire.Message {
	code := wire.Invalid
	switch {
	case err == nil:
		return wire.Pushed{}
	case errors.Is(err, ErrStale):
		code = wire.Stale
	case errors.Is(err, ErrForeign):
		code = wire.Unsupported
	case errors.Is(err, ErrFlood), errors.Is(err, ErrBusy):
		code = wire.Overloaded
	case errors.Is(err, net.ErrClosed):
		code = wire.Leaving
	}
	return wire.Refused{Code: code, Reason: err.Error()}
}

// admit decides whether to look at what a member sends at all.
func (e *Engine) admit(from member.ID) error {
	e.mu.Lock()
	ok, report := e.guard.admits(from, time.Now())
	closed, full := e.closed, len(e.queue) > maxQueue
	if !ok || full {
		e.stats.Limited++
	}
	e.mu.Unlock()
	switch {
	case closed:
		return net.ErrClosed
	case report && e.o.Report != nil:
		e.o.Report(Incident{From: from, Err: ErrFlood})
		return ErrFlood
	case !ok:
		return ErrFlood
	case full:
		return ErrBusy
	}
	return nil
}

// push takes in a broadcast that another member pushed.
func (e *Engine) push(from member.Contact, p wire.Push) error {
	if err := e.admit(from.ID); err != nil {
		return err
	}
	if p.Hops > maxHops {
		return e.refuse(from.ID, p, fmt.Errorf("%w: %d hops", ErrForm, p.Hops))
	}
	return e.take(from.ID, p, pushed)
}

// How a copy came.
type way uint8

const (
	pushed   way = iota
	fetched      // on our wish
	injected     // by our gateway
)

// take takes in a copy of a broadcast. It delivers it if it is new, and passes it on as far as its limit says that this
// is ours to do and has not been done.
func (e *Engine) take(from member.ID, p wire.Push, how way) error {
	self := e.o.Self()
	now := time.Now()
	e.mu.Lock()
	if how != injected {
		e.stats.Copies++
	}
	e.memory.forget(now)
	if e.memory.has(p.Tag) {
		return e.takeAgain(self, from, p, how) // unlocks
	}
	e.mu.Unlock()
	if how != injected {
		if err := verify(p, e.o.Binding, e.o.Originals); err != nil {
			return e.refuse(from, p, err)
		}
	}
	// They are the caller's, who wants them back.
	p.Key, p.Signature, p.Payload = bytes.Clone(p.Key), bytes.Clone(p.Signature), bytes.Clone(p.Payload)
	v := e.look(self)

	e.mu.Lock()
	if e.memory.has(p.Tag) { // another copy was faster
		return e.takeAgain(self, from, p, how)
	}
	sent := sentAt(p)
	if IsForeign(p.Tag) {
		sent = now.Add(ForeignMemory - e.o.Memory)
	}
	if e.closed {
		e.mu.Unlock()
		return net.ErrClosed
	}
	if !e.memory.add(p.Tag, sent, now) {
		e.stats.Stale++
		delete(e.missing, p.Tag)
		e.mu.Unlock()
		return fmt.Errorf("sent at %s: %w", sent.UTC().Format(time.RFC3339), ErrStale)
	}
	// What came back to us is not news. Who began what an original is heard with cannot be known for certain.
	deliver := IsForeign(p.Tag) || p.Origin != self.ID && !slices.Contains(p.Except, self.ID)
	switch how {
	case fetched:
		e.stats.Fetched++
	case injected:
		e.stats.Injected++
	case pushed:
	}
	if deliver {
		e.stats.Delivered++
	}
	limit, duty := p.Limit, how != fetched
	if m := e.missing[p.Tag]; m != nil {
		if m.duty && (!duty || reach(self.ID, limit).Compare(reach(self.ID, m.limit)) < 0) {
			limit, duty = m.limit, true
		}
		delete(e.missing, p.Tag)
	}
	it := e.keepLocked(p, now, !self.Leaf || how == injected)
	it.holders = append(it.holders, from, p.Origin)
	switch {
	case self.Leaf && how == injected:
		e.handToHostLocked(it, self.Hosts)
	case self.Leaf:
	default:
		if duty {
			e.shareLocked(it, v, limit, false)
		}
		e.handToLeavesLocked(it, v)
	}
	e.mu.Unlock()
	if deliver {
		e.o.Deliver(message(p, from))
	}
	e.spread(p, from)
	return nil
}

// takeAgain takes in a copy of what has come before: it may be ours to pass it on farther. It unlocks e.mu.
func (e *Engine) takeAgain(self member.Contact, from member.ID, p wire.Push, how way) error {
	if how != injected {
		e.stats.Duplicates++
	}
	it := e.items[p.Tag]
	if it == nil {
		e.mu.Unlock()
		return nil
	}
	if !bytes.Equal(it.push.Payload, p.Payload) {
		e.mu.Unlock()
		return e.refuse(from, p, ErrConflict)
	}
	if how != pushed || self.Leaf {
		e.mu.Unlock()
		return nil
	}
	return e.extend(self, it, from, p.Limit)
}

// extend passes a broadcast on beyond what has been given out so far. It unlocks e.mu.
func (e *Engine) extend(self member.Contact, it *item, from member.ID, limit member.ID) error {
	it.holds(from)
	if reach(self.ID, limit).Compare(it.reached) <= 0 {
		e.mu.Unlock()
		return nil
	}
	e.mu.Unlock()
	v := e.look(self)
	e.mu.Lock()
	e.shareLocked(it, v, limit, true)
	e.mu.Unlock()
	return nil
}

// refuse counts, reports and punishes what a member has sent, and returns what is wrong with it.
func (e *Engine) refuse(from member.ID, p wire.Push, err error) error {
	e.mu.Lock()
	provable := true
	switch {
	case errors.Is(err, ErrConflict):
		e.stats.Conflicts++
	case errors.Is(err, ErrForged):
		e.stats.Forged++
	case errors.Is(err, ErrForeign):
		e.stats.Foreign++
		provable = false // it may be allowed elsewhere
	default:
		e.stats.Malformed++
	}
	out := provable && e.guard.strike(from, time.Now())
	e.mu.Unlock()
	if provable && e.o.Report != nil {
		e.o.Report(Incident{From: from, Tag: p.Tag, Origin: p.Origin, Err: err, Refused: out})
	}
	return err
}

func (e *Engine) spread(p wire.Push, from member.ID) {
	if e.o.Spread != nil {
		e.o.Spread(message(p, from))
	}
}

func message(p wire.Push, from member.ID) Message {
	m := Message{
		Tag: p.Tag, Origin: p.Origin, Key: p.Key, Foreign: IsForeign(p.Tag), From: from, Hops: int(p.Hops), Payload: p.Payload,
	}
	if !m.Foreign {
		m.Sent = sentAt(p)
	}
	return m
}

// sentAt is when a broadcast says that it was sent. Times after 2262 are as wrong as any.
func sentAt(p wire.Push) time.Time { return time.Unix(0, int64(min(p.Sent, 1<<63-1))) }

// holds notes that a member has a broadcast.
func (i *item) holds(id member.ID) {
	const enough = 64
	if !i.isTold && len(i.holders) < enough {
		i.holders = append(i.holders, id)
	}
}

// keepLocked keeps a payload for those who miss it, and lets go of the oldest ones for it. Leaves tell nobody what they
// have from their hosts.
func (e *Engine) keepLocked(p wire.Push, now time.Time, tells bool) *item {
	p.Limit = member.ID{}
	it := &item{push: p, got: now}
	e.items[p.Tag] = it
	e.order = append(e.order, it)
	e.keptBytes += it.size()
	for e.keptBytes > e.o.KeepBytes && len(e.order) > 1 {
		e.releaseLocked()
	}
	if e.tick.IsZero() {
		e.tick = now.Add(tickEvery)
		e.planLocked(e.tick)
	}
	if tells {
		e.newsLocked(it, now)
	} else {
		it.isTold, it.again = true, len(tellAgain)
	}
	return it
}

// releaseLocked lets go of the oldest payload.
func (e *Engine) releaseLocked() {
	it := e.order[0]
	e.order[0] = nil
	e.order = e.order[1:]
	e.keptBytes -= it.size()
	if e.items[it.push.Tag] == it { // an original may have said the same again
		delete(e.items, it.push.Tag)
	}
}

// look returns whom the member knows, which may be some time old.
func (e *Engine) look(self member.Contact) *view {
	now := time.Now()
	if v := e.view.Load(); v != nil && now.Sub(v.at) < viewLife && v.self == self.ID {
		return v
	}
	v := &view{table: newTable(self.ID, slices.Clone(e.o.Table())), at: now}
	if !self.Leaf {
		v.leaves = e.attached()
	}
	e.view.Store(v)
	return v
}

// attached returns the leaves that we are a host of.
func (e *Engine) attached() []member.Contact {
	return slices.DeleteFunc(slices.Clone(e.o.Leaves()), func(c member.Contact) bool { return c.Dialect != member.Native })
}
