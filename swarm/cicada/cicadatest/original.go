// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicadatest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/cicada"
	"github.com/seed5728abee/fathom/swarm/member"
)

// ErrNoAnswer says that an original waited in vain. Most of the time a real one would wait for ever.
var ErrNoAnswer = errors.New("no answer")

// Options say what a stand-in is like. Dial is required.
type Options struct {
	// Addr is the address that it tells others, which its ID is made of. Default: that of its listener.
	Addr netip.AddrPort
	// Dial connects to other peers.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Random is where its timers come from. Nil: a new source each time.
	Random rand.Source
	// Mute makes its application take nothing of what comes: broadcasts end there.
	Mute bool
}

// An Original is a stand-in for a peer that runs Cicada.
type Original struct {
	o        Options
	ref      cicada.Ref
	listener net.Listener

	ctx    context.Context
	cancel context.CancelFunc
	owned  sync.WaitGroup

	mu        sync.Mutex // guards all that follows
	closed    bool
	random    *rand.Rand
	entries   []*entry // its peers, in the order in which they came
	successor member.ID
	links     map[*conn]bool
	started   bool
	harm      []string
	received  []Message
}

// A Message is what the application of an original got.
type Message struct {
	From      member.ID // whom it came from last
	Known     bool      // the original knows who that is
	Broadcast bool
	Payload   string
}

// An entry is a peer of an original.
type entry struct {
	ref  cicada.Ref
	link *conn
	told cicada.Node
	last time.Time // when it last answered a heartbeat
}

// A conn is a connection of an original.
type conn struct {
	nc      net.Conn
	out     chan []byte
	mu      sync.Mutex // guards next, and the order of what goes out
	next    uint32
	pending map[uint32]chan cicada.Message // Original.mu guards it
}

// New starts an original that takes connections from a listener, which it closes in the end.
func New(l net.Listener, options Options) *Original {
	if !options.Addr.IsValid() {
		options.Addr = l.Addr().(*net.TCPAddr).AddrPort()
	}
	if options.Random == nil {
		options.Random = rand.NewPCG(rand.Uint64(), rand.Uint64())
	}
	o := &Original{
		o: options, ref: cicada.Ref{ID: member.OfAddr(options.Addr), Addr: options.Addr}, listener: l,
		random: rand.New(options.Random), links: map[*conn]bool{},
	}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	o.owned.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			o.serve(nc)
			if !o.pause(200 * time.Millisecond) {
				return
			}
		}
	})
	return o
}

// Ref is the ID and the address of the original.
func (o *Original) Ref() cicada.Ref { return o.ref }

// Node is what the original thinks of its place on the ring.
func (o *Original) Node() cicada.Node {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.node()
}

// Harm tells what came from natives that would have ended a thread of an original, or made it useless.
func (o *Original) Harm() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.harm)
}

// Received are the messages that the application got so far.
func (o *Original) Received() []Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.received)
}

// Got counts how often the application got a message.
func (o *Original) Got(payload string) (n int) {
	for _, m := range o.Received() {
		if m.Payload == payload {
			n++
		}
	}
	return n
}

// Close ends an original, as death does: it tells nobody.
func (o *Original) Close() {
	o.mu.Lock()
	o.closed = true
	for l := range o.links {
		l.nc.Close()
	}
	o.mu.Unlock()
	o.listener.Close()
	o.cancel()
	o.owned.Wait()
}

func (o *Original) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-o.ctx.Done():
		return false
	}
}

func (o *Original) breaks(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.harm = append(o.harm, fmt.Sprintf("%d: ", o.ref.Addr.Port())+fmt.Sprintf(format, args...))
}

func (o *Original) serve(nc net.Conn) *conn {
	l := &conn{nc: nc, out: make(chan []byte, 1024), next: 1 + rand.Uint32N(1<<31), pending: map[uint32]chan cicada.Message{}}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		nc.Close()
		l.pending = nil
		return l
	}
	o.links[l] = true
	o.owned.Go(func() { o.read(l) })
	o.owned.Go(func() {
		for {
			select {
			case b := <-l.out:
				_, _ = l.nc.Write(b)
			case <-o.ctx.Done():
				return
			}
		}
	})
	return l
}

// read reads 64 bytes at a time.
func (o *Original) read(l *conn) {
	var b []byte
	part := make([]byte, 64)
	for o.pause(115 * time.Millisecond) {
		n, err := l.nc.Read(part)
		if err != nil {
			break
		}
		b = append(b, part[:n]...)
		for len(b) >= cicada.HeadSize {
			size, err := cicada.MessageSize(b)
			if err != nil {
				o.breaks("the connection: %v", err)
				break
			}
			if len(b) < size {
				break
			}
			m, err := cicada.DecodeMessage(b[:size])
			if err != nil {
				o.breaks("the connection: %v", err)
			} else {
				m.Data = slices.Clone(m.Data)
				o.handle(l, m)
			}
			b = b[size:]
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.links, l)
	l.nc.Close()
	for _, c := range l.pending {
		close(c)
	}
	l.pending = nil
	o.entries = slices.DeleteFunc(o.entries, func(e *entry) bool {
		if e.link == l && e.ref.ID == o.successor {
			o.successor = member.ID{} // lost, and never replaced
		}
		return e.link == l
	})
}

// write sends a message, with the next number of its connection.
func (o *Original) write(l *conn, m cicada.Message) (sequence uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.Sequence, m.Sender = l.next, o.ref.ID
	l.next++
	l.out <- cicada.AppendMessage(nil, m)
	return m.Sequence
}

// ask sends a request and waits, for ever if the answer does not come.
func (o *Original) ask(l *conn, t cicada.Type, data []byte, patience time.Duration) (cicada.Message, bool) {
	answer := make(chan cicada.Message, 1)
	o.mu.Lock()
	if l.pending == nil {
		o.mu.Unlock()
		return cicada.Message{}, false
	}
	l.pending[o.write(l, cicada.Message{Type: t, Data: data})] = answer
	o.mu.Unlock()
	var expired <-chan time.Time
	if patience > 0 {
		expired = time.After(patience)
	}
	select {
	case m, ok := <-answer:
		return m, ok
	case <-expired:
	case <-o.ctx.Done():
	}
	return cicada.Message{}, false
}

func (o *Original) answer(l *conn, m cicada.Message, data []byte) {
	o.write(l, cicada.Message{Type: m.Type, Response: true, Data: data, RequestSequence: m.Sequence, RequestChecksum: m.Checksum})
}

func (o *Original) entry(id member.ID) *entry {
	for _, e := range o.entries {
		if e.ref.ID == id {
			return e
		}
	}
	return nil
}

// predecessor is whichever peer is nearest before it.
func (o *Original) predecessor() (best cicada.Ref) {
	for _, e := range o.entries {
		if best.IsZero() || e.ref.ID.Distance(o.ref.ID).Compare(best.ID.Distance(o.ref.ID)) < 0 {
			best = e.ref
		}
	}
	return best
}

func (o *Original) node() cicada.Node {
	n := cicada.Node{Self: o.ref, Predecessor: o.predecessor()}
	if e := o.entry(o.successor); e != nil {
		n.Successor = e.ref
	}
	return n
}

func (o *Original) know(ref cicada.Ref, l *conn) {
	if e := o.entry(ref.ID); e != nil {
		e.link = l
		return
	}
	o.entries = append(o.entries, &entry{ref: ref, link: l, last: time.Now()})
}

// brokenBy takes note of what a message would break. Originals break each other as well: that is not to be helped, and they are
// told by their features, of which they have none.
func (o *Original) brokenBy(m cicada.Message, format string, args ...any) {
	if m.Features != 0 {
		o.breaks(format, args...)
	}
}

// handle is the message thread.
func (o *Original) handle(l *conn, m cicada.Message) {
	switch {
	case m.Type < cicada.Join || m.Type > cicada.Lookup:
		o.brokenBy(m, "message thread: %s", m.Type)
	case m.Response:
		o.mu.Lock()
		c := l.pending[m.RequestSequence]
		delete(l.pending, m.RequestSequence)
		o.mu.Unlock()
		if c == nil {
			o.brokenBy(m, "message thread: an answer to nothing (%s)", m.Type)
			return
		}
		if m.Type == cicada.Info {
			n, err := cicada.DecodeNode(m.Data)
			o.mu.Lock()
			e := o.entry(m.Sender)
			if e != nil && err == nil {
				e.told, e.last = n, time.Now()
			}
			o.mu.Unlock()
			if e == nil || err != nil || n.Predecessor.IsZero() || n.Successor.IsZero() {
				o.brokenBy(m, "message thread: info answer %+v, known %v", n, e != nil)
			}
		}
		c <- m
	case m.Type == cicada.Join:
		addr, err := cicada.DecodeJoin(m.Data)
		if err != nil {
			o.brokenBy(m, "message thread: %v", err)
			return
		}
		o.mu.Lock()
		lost := o.entry(o.successor) == nil
		if lost {
			o.know(cicada.Ref{ID: m.Sender, Addr: addr}, l)
			o.successor = m.Sender
			n := o.node()
			o.mu.Unlock()
			o.start()
			o.answer(l, m, cicada.AppendJoinAnswer(nil, cicada.JoinAnswer{Node: n, Successor: o.ref}))
			return
		}
		o.mu.Unlock()
		o.owned.Go(func() {
			if owner, _, ok := o.lookup(m.Sender); ok {
				o.mu.Lock()
				n := o.node()
				o.mu.Unlock()
				o.answer(l, m, cicada.AppendJoinAnswer(nil, cicada.JoinAnswer{Node: n, Successor: owner}))
			}
		})
	case m.Type == cicada.Info:
		o.mu.Lock()
		n := o.node()
		o.mu.Unlock()
		if n.Predecessor.IsZero() && n.Successor.IsZero() {
			return
		}
		if n.Successor.IsZero() {
			n.Successor = n.Predecessor
		}
		o.answer(l, m, cicada.AppendNode(nil, n))
	case m.Type == cicada.Notify:
		n, err := cicada.DecodeNode(m.Data)
		o.mu.Lock()
		none := len(o.entries) == 0
		p := o.predecessor()
		accepted := err == nil && !none && m.Sender.Between(p.ID, o.ref.ID)
		if accepted {
			o.know(n.Self, l)
		}
		o.mu.Unlock()
		if none || err != nil {
			o.brokenBy(m, "message thread: notified, knowing nobody: %v; %v", none, err)
			return
		}
		o.answer(l, m, cicada.AppendAccepted(nil, accepted))
	case m.Type == cicada.Lookup:
		o.searched(l, m)
	}
}

func (o *Original) searched(l *conn, m cicada.Message) {
	s, err := cicada.DecodeSearch(m.Data)
	o.mu.Lock()
	none := len(o.entries) == 0
	known := o.entry(m.Sender) != nil
	o.mu.Unlock()
	if err != nil || none {
		o.brokenBy(m, "message thread: lookup, knowing nobody: %v; %v", none, err)
		return
	}
	if len(s.Body) > 0 {
		body, err := cicada.DecodeBody(s.Body)
		if err != nil || body.Broadcast && !known {
			o.brokenBy(m, "recv raises: broadcast %v of %s, known %v; %v", body.Broadcast, m.Sender.Short(), known, err)
			return
		}
		o.mu.Lock()
		if !o.o.Mute {
			o.received = append(o.received, Message{m.Sender, known, body.Broadcast, string(body.Payload)})
		}
		o.mu.Unlock()
		if body.Broadcast && !o.o.Mute {
			o.owned.Go(func() { o.broadcast(string(body.Payload), append(body.Visited, m.Sender)) })
		}
	}
	o.owned.Go(func() {
		if owner, hops, ok := o.lookup(s.Key); ok {
			o.answer(l, m, cicada.AppendSearchAnswer(nil, cicada.SearchAnswer{Key: s.Key, Owner: owner, Hops: hops}))
		}
	})
}

// lookup finds an owner, going by the peers it has.
func (o *Original) lookup(key member.ID) (owner cicada.Ref, hops uint16, ok bool) {
	o.mu.Lock()
	p := o.predecessor()
	if p.IsZero() || key.In(p.ID, o.ref.ID) {
		o.mu.Unlock()
		return o.ref, 1, true
	}
	var next *entry
	for _, e := range o.entries {
		if next == nil || key.Distance(e.ref.ID).Compare(key.Distance(next.ref.ID)) < 0 {
			next = e
		}
	}
	o.mu.Unlock()
	m, ok := o.ask(next.link, cicada.Lookup, cicada.AppendSearch(nil, cicada.Search{Key: key}), 0)
	if !ok {
		return cicada.Ref{}, 0, false
	}
	a, err := cicada.DecodeSearchAnswer(m.Data)
	if err != nil {
		o.breaks("message thread: %v", err)
	}
	return a.Owner, a.Hops + 1, err == nil
}

// fix is the route thread: it dials whom a lookup finds.
func (o *Original) fix(key member.ID) {
	owner, _, ok := o.lookup(key)
	if ok && owner.ID != o.ref.ID {
		o.dial(owner, "route thread")
	}
}

// dial connects to a peer unless it is one already.
func (o *Original) dial(r cicada.Ref, thread string) bool {
	o.mu.Lock()
	known := o.entry(r.ID) != nil
	o.mu.Unlock()
	if known {
		return true
	}
	nc, err := o.o.Dial(o.ctx, r.Addr)
	if err != nil {
		o.breaks("%s: dial %s: %v", thread, r.Addr, err)
		return false
	}
	l := o.serve(nc)
	o.mu.Lock()
	o.know(r, l)
	o.mu.Unlock()
	return true
}

// Join joins the ring that the peer at an address is in.
func (o *Original) Join(ctx context.Context, at netip.AddrPort) error {
	nc, err := o.o.Dial(ctx, at)
	if err != nil {
		return fmt.Errorf("join at %s: %w", at, err)
	}
	entry := cicada.Ref{ID: member.OfAddr(at), Addr: at}
	l := o.serve(nc)
	o.mu.Lock()
	o.know(entry, l)
	o.successor = entry.ID
	o.mu.Unlock()
	m, ok := o.ask(l, cicada.Join, cicada.AppendJoin(nil, o.ref.Addr), 10*time.Second)
	if !ok {
		return fmt.Errorf("join at %s: %w", at, ErrNoAnswer)
	}
	a, err := cicada.DecodeJoinAnswer(m.Data)
	if err != nil || a.Node.Successor.IsZero() {
		o.brokenBy(m, "join: %+v, %v", a, err)
		return fmt.Errorf("join at %s: an answer that breaks originals: %w", at, err)
	}
	if a.Successor.ID != entry.ID && !o.dial(a.Successor, "join") {
		return fmt.Errorf("join at %s: its successor %s does not answer", at, a.Successor.Addr)
	}
	o.mu.Lock()
	o.successor = a.Successor.ID
	o.mu.Unlock()
	o.start()
	return nil
}

// start starts the timers.
func (o *Original) start() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.started || o.closed {
		return
	}
	o.started = true
	between := func(low, high int) time.Duration {
		o.mu.Lock()
		defer o.mu.Unlock()
		return time.Duration(low+o.random.IntN(high-low+1)) * time.Second
	}
	o.owned.Go(func() {
		for ok := true; ok; ok = o.pause(between(3, 10)) {
			o.stabilize()
		}
	})
	o.owned.Go(func() {
		for o.pause(between(2, 7)) {
			o.mu.Lock()
			key := o.ref.ID.After(o.random.IntN(member.Bits))
			o.mu.Unlock()
			o.fix(key)
		}
	})
	o.owned.Go(func() {
		for o.pause(5 * time.Second) {
			o.mu.Lock()
			entries := slices.Clone(o.entries)
			o.mu.Unlock()
			for _, e := range entries {
				o.owned.Go(func() { o.ask(e.link, cicada.Info, nil, 4*time.Second) })
			}
		}
	})
	o.owned.Go(func() {
		for o.pause(between(15, 30)) {
			o.mu.Lock()
			o.entries = slices.DeleteFunc(o.entries, func(e *entry) bool {
				old := time.Since(e.last) > 30*time.Second
				if old && e.ref.ID == o.successor {
					o.successor = member.ID{}
				}
				return old
			})
			o.mu.Unlock()
		}
	})
}

// stabilize is what the stabilizer thread does each time.
func (o *Original) stabilize() {
	o.mu.Lock()
	e := o.entry(o.successor)
	o.mu.Unlock()
	if e == nil {
		return
	}
	m, ok := o.ask(e.link, cicada.Info, nil, 2*time.Second)
	if !ok {
		return
	}
	n, err := cicada.DecodeNode(m.Data)
	if err != nil {
		return
	}
	if x := n.Predecessor; x.ID.Between(o.ref.ID, e.ref.ID) {
		if !o.dial(x, "stabilizer thread") {
			return
		}
		o.mu.Lock()
		o.successor = x.ID
		e = o.entry(x.ID)
		o.mu.Unlock()
	}
	o.mu.Lock()
	n = o.node()
	o.mu.Unlock()
	if e != nil {
		o.ask(e.link, cicada.Notify, cicada.AppendNode(nil, n), 10*time.Second)
	}
}

// Send sends a message to the nearest hop on the way to a key, as originals do, and waits for the answer.
func (o *Original) Send(key member.ID, payload string) error {
	o.mu.Lock()
	var next *entry
	for _, e := range o.entries {
		if next == nil || key.Distance(e.ref.ID).Compare(key.Distance(next.ref.ID)) < 0 {
			next = e
		}
	}
	o.mu.Unlock()
	if next == nil {
		return fmt.Errorf("send to %s: the original knows nobody", key.Short())
	}
	body := cicada.AppendBody(nil, cicada.Body{Payload: []byte(payload)})
	if _, ok := o.ask(next.link, cicada.Lookup, cicada.AppendSearch(nil, cicada.Search{Key: key, Body: body}), 20*time.Second); !ok {
		return fmt.Errorf("send to %s: %w", key.Short(), ErrNoAnswer)
	}
	return nil
}

// Broadcast tells all whom the original can, and waits until the first of them has it.
func (o *Original) Broadcast(payload string) { o.broadcast(payload, nil) }

// broadcast sends to the peers in the routing table, which are not many more than the successor.
func (o *Original) broadcast(payload string, visited []member.ID) {
	o.mu.Lock()
	e := o.entry(o.successor)
	o.mu.Unlock()
	if e == nil || slices.Contains(visited, e.ref.ID) {
		return
	}
	body := cicada.Body{Broadcast: true, Visited: append(slices.Clone(visited), e.ref.ID), Payload: []byte(payload)}
	o.ask(e.link, cicada.Lookup, cicada.AppendSearch(nil, cicada.Search{Key: e.ref.ID, Body: cicada.AppendBody(nil, body)}), 20*time.Second)
}
