// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// A network connects the members of a test, in memory.
type network struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]chan net.Conn
	port      uint16
}

func newNetwork() *network {
	return &network{listeners: map[netip.AddrPort]chan net.Conn{}, port: 30000}
}

func (n *network) listen(addr netip.AddrPort) chan net.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = make(chan net.Conn, 16)
	return n.listeners[addr]
}

func (n *network) close(addr netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.listeners, addr)
}

func (n *network) dial(from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[to]
	if l == nil {
		return nil, errors.New("connection refused")
	}
	n.port++
	a, b := net.Pipe()
	closed := new(atomic.Bool)
	l <- pipe{b, netip.AddrPortFrom(from, n.port), closed}
	return pipe{a, to, closed}, nil
}

// A pipe is one end of a connection in memory.
type pipe struct {
	net.Conn
	remote netip.AddrPort
	reset  *atomic.Bool // by either end; nil: not to be told
}

// SetLinger is what is done before a connection is reset.
func (p pipe) SetLinger(int) error {
	if p.reset != nil {
		p.reset.Store(true)
	}
	return nil
}

func (p pipe) gone() bool { return p.reset.Load() }

func (p pipe) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(p.remote) }

// An original is a stand-in for a peer that runs Cicada: it does what such peers were seen to do, as slowly, and is as
// easily broken. What would end one of its threads is kept in harm instead.
type original struct {
	net  *network
	ref  Ref
	mute bool // its application does not take what comes

	ctx    context.Context
	cancel context.CancelFunc
	owned  sync.WaitGroup

	mu        sync.Mutex
	random    *rand.Rand
	entries   []*entry // its peers, in the order in which they came
	successor member.ID
	links     map[*olink]bool
	started   bool
	harm      []string
	received  []received
}

// An entry is a peer of an original.
type entry struct {
	ref  Ref
	link *olink
	told Node
	last time.Time // when it last answered a heartbeat
}

type received struct {
	from      member.ID
	known     bool // the original knows who that is
	broadcast bool
	payload   string
}

// An olink is a connection of an original.
type olink struct {
	nc      net.Conn
	out     chan []byte
	mu      sync.Mutex // guards next, and the order of what goes out
	next    uint32
	pending map[uint32]chan Message // original.mu guards it
}

func newOriginal(n *network, ref Ref, seed uint64) *original {
	o := &original{net: n, ref: ref, links: map[*olink]bool{}, random: rand.New(rand.NewPCG(seed, uint64(ref.Addr.Port())))}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	incoming := n.listen(ref.Addr)
	o.owned.Go(func() {
		for {
			select {
			case nc := <-incoming:
				if nc.(pipe).gone() {
					o.breaks("listener thread: a connection that is gone")
				}
				o.serve(nc)
			case <-o.ctx.Done():
				return
			}
			o.pause(200 * time.Millisecond)
		}
	})
	return o
}

// stop ends an original, as death does.
func (o *original) stop() {
	o.net.close(o.ref.Addr)
	o.cancel()
	o.mu.Lock()
	for l := range o.links {
		l.nc.Close()
	}
	o.mu.Unlock()
	o.owned.Wait()
}

func (o *original) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-o.ctx.Done():
		return false
	}
}

func (o *original) breaks(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.harm = append(o.harm, fmt.Sprintf("%d: ", o.ref.Addr.Port())+fmt.Sprintf(format, args...))
}

func (o *original) serve(nc net.Conn) *olink {
	l := &olink{nc: nc, out: make(chan []byte, 1024), next: 1 + rand.Uint32N(1<<31), pending: map[uint32]chan Message{}}
	o.mu.Lock()
	o.links[l] = true
	o.mu.Unlock()
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
func (o *original) read(l *olink) {
	var b []byte
	part := make([]byte, 64)
	for o.pause(115 * time.Millisecond) {
		n, err := l.nc.Read(part)
		if err != nil {
			break
		}
		b = append(b, part[:n]...)
		for len(b) >= HeadSize {
			size, err := MessageSize(b)
			if err != nil {
				o.breaks("the connection: %v", err)
				break
			}
			if len(b) < size {
				break
			}
			m, err := DecodeMessage(b[:size])
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
func (o *original) write(l *olink, m Message) (sequence uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.Sequence, m.Sender = l.next, o.ref.ID
	l.next++
	l.out <- AppendMessage(nil, m)
	return m.Sequence
}

// ask sends a request and waits, for ever if the answer does not come.
func (o *original) ask(l *olink, t Type, data []byte, patience time.Duration) (Message, bool) {
	answer := make(chan Message, 1)
	o.mu.Lock()
	if l.pending == nil {
		o.mu.Unlock()
		return Message{}, false
	}
	l.pending[o.write(l, Message{Type: t, Data: data})] = answer
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
	return Message{}, false
}

func (o *original) answer(l *olink, m Message, data []byte) {
	o.write(l, Message{Type: m.Type, Response: true, Data: data, RequestSequence: m.Sequence, RequestChecksum: m.Checksum})
}

func (o *original) entry(id member.ID) *entry {
	for _, e := range o.entries {
		if e.ref.ID == id {
			return e
		}
	}
	return nil
}

// predecessor is whichever peer is nearest before it.
func (o *original) predecessor() (best Ref) {
	for _, e := range o.entries {
		if best.IsZero() || e.ref.ID.Distance(o.ref.ID).Compare(best.ID.Distance(o.ref.ID)) < 0 {
			best = e.ref
		}
	}
	return best
}

func (o *original) node() Node {
	n := Node{Self: o.ref, Predecessor: o.predecessor()}
	if e := o.entry(o.successor); e != nil {
		n.Successor = e.ref
	}
	return n
}

func (o *original) know(ref Ref, l *olink) {
	if e := o.entry(ref.ID); e != nil {
		e.link = l
		return
	}
	o.entries = append(o.entries, &entry{ref: ref, link: l, last: time.Now()})
}

// brokenBy takes note of what a message would break. Originals break each other as well: that is not to be helped.
func (o *original) brokenBy(m Message, format string, args ...any) {
	if m.Features == mark {
		o.breaks(format, args...)
	}
}

// handle is the message thread.
func (o *original) handle(l *olink, m Message) {
	switch {
	case m.Type < Join || m.Type > Lookup:
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
		if m.Type == Info {
			n, err := DecodeNode(m.Data)
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
	case m.Type == Join:
		addr, err := DecodeJoin(m.Data)
		if err != nil {
			o.brokenBy(m, "message thread: %v", err)
			return
		}
		o.mu.Lock()
		lost := o.entry(o.successor) == nil
		if lost {
			o.know(Ref{m.Sender, addr}, l)
			o.successor = m.Sender
			n := o.node()
			o.mu.Unlock()
			o.start()
			o.answer(l, m, AppendJoinAnswer(nil, JoinAnswer{Node: n, Successor: o.ref}))
			return
		}
		o.mu.Unlock()
		o.owned.Go(func() {
			if owner, _, ok := o.lookup(m.Sender); ok {
				o.mu.Lock()
				n := o.node()
				o.mu.Unlock()
				o.answer(l, m, AppendJoinAnswer(nil, JoinAnswer{Node: n, Successor: owner}))
			}
		})
	case m.Type == Info:
		o.mu.Lock()
		n := o.node()
		o.mu.Unlock()
		if n.Predecessor.IsZero() && n.Successor.IsZero() {
			return
		}
		if n.Successor.IsZero() {
			n.Successor = n.Predecessor
		}
		o.answer(l, m, AppendNode(nil, n))
	case m.Type == Notify:
		n, err := DecodeNode(m.Data)
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
		o.answer(l, m, AppendAccepted(nil, accepted))
	case m.Type == Lookup:
		o.searched(l, m)
	}
}

func (o *original) searched(l *olink, m Message) {
	s, err := DecodeSearch(m.Data)
	o.mu.Lock()
	none := len(o.entries) == 0
	known := o.entry(m.Sender) != nil
	o.mu.Unlock()
	if err != nil || none {
		o.brokenBy(m, "message thread: lookup, knowing nobody: %v; %v", none, err)
		return
	}
	if len(s.Body) > 0 {
		body, err := DecodeBody(s.Body)
		if err != nil || body.Broadcast && !known {
			o.brokenBy(m, "recv raises: broadcast %v of %s, known %v; %v", body.Broadcast, m.Sender.Short(), known, err)
			return
		}
		o.mu.Lock()
		if !o.mute {
			o.received = append(o.received, received{m.Sender, known, body.Broadcast, string(body.Payload)})
		}
		o.mu.Unlock()
		if body.Broadcast && !o.mute {
			o.owned.Go(func() { o.broadcast(string(body.Payload), append(body.Visited, m.Sender)) })
		}
	}
	o.owned.Go(func() {
		if owner, hops, ok := o.lookup(s.Key); ok {
			o.answer(l, m, AppendSearchAnswer(nil, SearchAnswer{Key: s.Key, Owner: owner, Hops: hops}))
		}
	})
}

// lookup finds an owner, going by the peers it has.
func (o *original) lookup(key member.ID) (owner Ref, hops uint16, ok bool) {
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
	m, ok := o.ask(next.link, Lookup, AppendSearch(nil, Search{Key: key}), 0)
	if !ok {
		return Ref{}, 0, false
	}
	a, err := DecodeSearchAnswer(m.Data)
	if err != nil {
		o.breaks("message thread: %v", err)
	}
	return a.Owner, a.Hops + 1, err == nil
}

// fix is the route thread: it dials whom a lookup finds.
func (o *original) fix(key member.ID) {
	owner, _, ok := o.lookup(key)
	if ok && owner.ID != o.ref.ID {
		o.dial(owner, "route thread")
	}
}

// dial connects to a peer unless it is one already.
func (o *original) dial(r Ref, thread string) bool {
	o.mu.Lock()
	known := o.entry(r.ID) != nil
	o.mu.Unlock()
	if known {
		return true
	}
	nc, err := o.net.dial(o.ref.Addr.Addr(), r.Addr)
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

// join joins at an entry.
func (o *original) join(entry Ref) bool {
	nc, err := o.net.dial(o.ref.Addr.Addr(), entry.Addr)
	if err != nil {
		return false
	}
	l := o.serve(nc)
	o.mu.Lock()
	o.know(entry, l)
	o.successor = entry.ID
	o.mu.Unlock()
	m, ok := o.ask(l, Join, AppendJoin(nil, o.ref.Addr), 10*time.Second)
	if !ok {
		return false
	}
	a, err := DecodeJoinAnswer(m.Data)
	if err != nil || a.Node.Successor.IsZero() {
		o.breaks("join: %+v, %v", a, err)
		return false
	}
	if a.Successor.ID != entry.ID && !o.dial(a.Successor, "join") {
		return false
	}
	o.mu.Lock()
	o.successor = a.Successor.ID
	o.mu.Unlock()
	o.start()
	return true
}

// start starts the timers.
func (o *original) start() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.started {
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
				o.owned.Go(func() { o.ask(e.link, Info, nil, 4*time.Second) })
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
func (o *original) stabilize() {
	o.mu.Lock()
	e := o.entry(o.successor)
	o.mu.Unlock()
	if e == nil {
		return
	}
	m, ok := o.ask(e.link, Info, nil, 2*time.Second)
	if !ok {
		return
	}
	n, err := DecodeNode(m.Data)
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
		o.ask(e.link, Notify, AppendNode(nil, n), 10*time.Second)
	}
}

// send sends a message to the nearest hop, as the original does.
func (o *original) send(key member.ID, payload string) bool {
	o.mu.Lock()
	var next *entry
	for _, e := range o.entries {
		if next == nil || key.Distance(e.ref.ID).Compare(key.Distance(next.ref.ID)) < 0 {
			next = e
		}
	}
	o.mu.Unlock()
	if next == nil {
		return false
	}
	_, ok := o.ask(next.link, Lookup, AppendSearch(nil, Search{Key: key, Body: AppendBody(nil, Body{Payload: []byte(payload)})}), 20*time.Second)
	return ok
}

// broadcast sends to the peers in the routing table, which are not many more than the successor.
func (o *original) broadcast(payload string, visited []member.ID) {
	o.mu.Lock()
	e := o.entry(o.successor)
	o.mu.Unlock()
	if e == nil || slices.Contains(visited, e.ref.ID) {
		return
	}
	body := Body{Broadcast: true, Visited: append(slices.Clone(visited), e.ref.ID), Payload: []byte(payload)}
	o.ask(e.link, Lookup, AppendSearch(nil, Search{Key: e.ref.ID, Body: AppendBody(nil, body)}), 20*time.Second)
}

func (o *original) got(payload string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.received {
		if r.payload == payload {
			n++
		}
	}
	return n
}
