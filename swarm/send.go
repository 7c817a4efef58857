// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/link"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/record"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// ready returns the error of a call that needs a peer that is bound and open.
func (p *Peer) ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return net.ErrClosed
	case !p.bound:
		return ErrNotBound
	default:
		return nil
	}
}

// Send sends a message to one member and waits until that member has it in its queue. A member that does not fetch its
// messages makes the sender wait, and then be told [ErrQueueFull]. Otherwise the error wraps [ErrNoSuchMember], and
// [ErrAlone] with it when nobody else is there, [ErrTooLarge], [ErrUnreachable], after which the message may have
// arrived all the same, or tells why the receiver has refused it.
func (p *Peer) Send(ctx context.Context, to Target, data []byte) error {
	c, payload, err := p.prepare(ctx, to, data, ring.LookupOptions{})
	if err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	if err := p.sendTo(ctx, c, payload); err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

// SendAsync is Send for many messages: it returns as soon as the message is on its way, waiting only while too much is,
// and calls done when the receiver has it or an error is known. done must not block. An error that SendAsync itself
// returns is not told to done.
func (p *Peer) SendAsync(ctx context.Context, to Target, data []byte, done func(error)) error {
	c, payload, err := p.prepare(ctx, to, data, ring.LookupOptions{})
	if err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	if c.ID == p.ID() || p.isOriginal(c) {
		return p.sendBehind(ctx, c, payload, done)
	}
	s, err := p.links.session(ctx, c)
	if errors.Is(err, errIsOriginal) {
		return p.sendBehind(ctx, c, payload, done)
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	p.hookSend(s, payload)
	s.touch()
	p.counters.sent.Add(1)
	if err := s.Post(ctx, payload, func(err error) { done(outcome(err)) }); err != nil {
		return fmt.Errorf("send to %s: %w: %w", to, ErrUnreachable, err)
	}
	return nil
}

// sendBehind is sendTo in a goroutine.
func (p *Peer) sendBehind(ctx context.Context, c member.Contact, payload []byte, done func(error)) error {
	if !p.background(func(context.Context) { done(p.sendTo(ctx, c, payload)) }) {
		return net.ErrClosed
	}
	return nil
}

// prepare finds the member that a target stands for, and makes the payload for it.
func (p *Peer) prepare(ctx context.Context, to Target, data []byte, o ring.LookupOptions) (member.Contact, []byte, error) {
	if err := p.ready(); err != nil {
		return member.Contact{}, nil, err
	}
	if len(data) > MaxMessage {
		return member.Contact{}, nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), MaxMessage)
	}
	c, err := p.find(ctx, to, o)
	if errors.Is(err, ErrNoSuchMember) && p.alone() {
		err = fmt.Errorf("%w: %w", ErrAlone, err)
	}
	if err != nil {
		return member.Contact{}, nil, err
	}
	if p.o.Trust != nil {
		data, _ = p.o.Trust.Seal(p.ID(), c.ID, c.Addr(), data)
	}
	payload := make([]byte, 0, 1+len(data))
	return c, append(append(payload, envelopePlain), data...), nil
}

// sendTo hands a payload, an envelope, to a member and waits for the acknowledgement.
func (p *Peer) sendTo(ctx context.Context, c member.Contact, payload []byte) error {
	if c.ID == p.ID() {
		p.counters.sent.Add(1)
		return p.deliver(p.contact(), payload[1:], false)
	}
	for attempt := 0; ; attempt++ {
		err := p.sendOnce(ctx, c, payload)
		// A link may have been broken without anybody having noticed: then a new one is worth a try. What was
		// delivered and not acknowledged could be delivered twice: so only what never left.
		if err == nil || attempt > 0 || ctx.Err() != nil || !errors.Is(err, errNotSent) {
			return err
		}
	}
}

// errNotSent says that nothing of a message can have reached the other side.
var errNotSent = errors.New("not sent")

func (p *Peer) sendOnce(ctx context.Context, c member.Contact, payload []byte) error {
	if p.isOriginal(c) {
		p.counters.sent.Add(1)
		return p.gateway.Send(ctx, c, payload[1:])
	}
	s, err := p.links.session(ctx, c)
	if err != nil {
		if errors.Is(err, errIsOriginal) && p.gateway != nil {
			p.counters.sent.Add(1)
			return p.gateway.Send(ctx, c, payload[1:])
		}
		return err
	}
	select {
	case <-s.Done():
		return fmt.Errorf("%w: %w: %w", ErrUnreachable, errNotSent, s.Err())
	default:
	}
	p.hookSend(s, payload)
	s.touch()
	p.counters.sent.Add(1)
	if err := s.Send(ctx, payload); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrUnreachable, context.Cause(ctx))
		}
		return outcome(err)
	}
	return nil
}

// outcome makes what a link says about a message an error of this package: the receiver has refused it, or may never
// have got it.
func outcome(err error) error {
	_, bye := errors.AsType[*link.Goodbye](err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, link.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case bye || !errors.Is(err, link.ErrRefused):
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	case strings.HasSuffix(err.Error(), strconv.Quote(ErrQueueFull.Error())): // only texts come back
		return fmt.Errorf("%w: %w", ErrQueueFull, err)
	default:
		return err
	}
}

func (p *Peer) isOriginal(c member.Contact) bool { return p.gateway != nil && p.links.isOriginal(c) }

// SendDisjoint sends a message by several ways that have no member but the ends in common: one as Send does, and
// duplicates more, each through a circuit of another member. The member is looked up by as many ways as well. The
// receiver gets the message once, at the first copy; copies that differ are told to its Conflict hook. It fails only
// when all ways do, and uses as many as there are.
func (p *Peer) SendDisjoint(ctx context.Context, to Target, data []byte, duplicates int) error {
	if duplicates <= 0 {
		return p.Send(ctx, to, data)
	}
	duplicates = min(duplicates, maxDuplicates)
	c, payload, err := p.prepare(ctx, to, data, ring.LookupOptions{Disjoint: duplicates + 1})
	if err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	if c.ID == p.ID() || p.isOriginal(c) {
		if err := p.sendTo(ctx, c, payload); err != nil {
			return fmt.Errorf("send to %s: %w", to, err)
		}
		return nil
	}
	tag := newTag()
	copied := append(append([]byte{envelopeCopy}, tag[:]...), payload[1:]...)
	results := make(chan error, duplicates+1)
	ways := 1
	go func() { results <- p.sendOnce(ctx, c, copied) }()
	for _, host := range p.hostsFor(c, duplicates) {
		ways++
		go func() { results <- p.sendThrough(ctx, host, c, copied) }()
	}
	var failures []error
	for range ways {
		if err := <-results; err != nil {
			failures = append(failures, err)
		}
	}
	if len(failures) == ways {
		return fmt.Errorf("send to %s by %d ways: %w", to, ways, errors.Join(failures...))
	}
	return nil
}

// maxDuplicates bounds the copies of one message.
const maxDuplicates = 15

// hostsFor returns members that may carry a circuit to another, at most n: those that there is a link to first.
func (p *Peer) hostsFor(to member.Contact, n int) []member.Contact {
	var list []member.Contact
	for _, s := range p.carriers(to, n) {
		list = append(list, s.contact)
	}
	for _, c := range p.node().Table() {
		known := slices.ContainsFunc(list, func(o member.Contact) bool { return o.ID == c.ID })
		if len(list) < n && c.Dialect == member.Native && c.ID != to.ID && !known {
			list = append(list, c)
		}
	}
	return list
}

// sendThrough sends a payload over a circuit of its own.
func (p *Peer) sendThrough(ctx context.Context, through, to member.Contact, payload []byte) error {
	host, err := p.links.session(ctx, through)
	if err != nil {
		return err
	}
	s, err := p.circuit(ctx, host, to, true)
	if err != nil {
		return err
	}
	defer s.Close()
	p.hookSend(s, payload)
	return outcome(s.Send(ctx, payload))
}

// Broadcast sends a message to all members of the swarm but those excepted, and this one. It returns when the first
// members have taken it over; from then on it reaches everyone, also when this peer leaves.
func (p *Peer) Broadcast(ctx context.Context, data []byte, except ...Hash) error {
	if err := p.ready(); err != nil {
		return fmt.Errorf("broadcast: %w", err)
	}
	if len(data) > MaxMessage {
		return fmt.Errorf("broadcast: %w: %d bytes, at most %d", ErrTooLarge, len(data), MaxMessage)
	}
	if p.alone() {
		return fmt.Errorf("broadcast: %w", ErrAlone)
	}
	if _, err := p.broadcast.Broadcast(ctx, data, except); err != nil {
		return fmt.Errorf("broadcast: %w", err)
	}
	p.counters.broadcasts.Add(1)
	return nil
}

// alone reports whether the peer knows nobody.
func (p *Peer) alone() bool {
	s := p.node().Snapshot()
	return len(p.node().Table()) == 0 && len(s.Leaves) == 0 && len(s.Self.Hosts) == 0
}

// Recv returns the next message, in the order of their arrival, waiting for one until ctx ends.
func (p *Peer) Recv(ctx context.Context) (Message, error) {
	if err := p.ready(); err != nil && !errors.Is(err, net.ErrClosed) {
		return Message{}, err
	}
	return p.inbox.take(ctx, nil)
}

// Pending returns how many messages wait for Recv.
func (p *Peer) Pending() int { return p.inbox.len() }

// LookupOptions say how to look up. The zero value asks along standing links, the quickest way.
type LookupOptions struct {
	// Disjoint is the number of ways to ask by, which have no member in common, so that members that lie are found out;
	// up to 16. The member that is found has proved itself.
	Disjoint int
}

// A Result is the answer to a lookup.
type Result struct {
	Owner Member
	// Leaf is set when the key is the ID of a member that others cannot reach: Owner is its host.
	Leaf *Member
	// Hops is how many members the question went to: 1 when the first one asked knew, 0 when this peer did.
	Hops int
	// Path names them in order.
	Path []Hash
	Took time.Duration
}

// Lookup finds the member that owns a key: the first at or after it on the ring.
func (p *Peer) Lookup(ctx context.Context, key Hash, o LookupOptions) (Result, error) {
	if err := p.ready(); err != nil {
		return Result{}, fmt.Errorf("look up %s: %w", key.Short(), err)
	}
	began := time.Now()
	f, err := p.lookup(ctx, key, ring.LookupOptions{Disjoint: o.Disjoint})
	if err != nil {
		return Result{}, fmt.Errorf("look up %s: %w", key.Short(), err)
	}
	r := Result{Owner: memberOf(f.Owner), Hops: int(min(f.Hops, wire.MaxPath)), Path: f.Path, Took: time.Since(began)}
	if len(f.Leaf) > 0 {
		leaf := memberOf(f.Leaf[0])
		r.Leaf = &leaf
	}
	return r, nil
}

// find returns the contact of the member that a target stands for.
func (p *Peer) find(ctx context.Context, to Target, o ring.LookupOptions) (member.Contact, error) {
	id := to.id
	switch to.kind {
	case targetName:
		return p.findName(ctx, to.text)
	case targetAddr:
		addr := to.addr
		if !addr.IsValid() {
			var err error
			if addr, err = resolve(ctx, to.text); err != nil {
				return member.Contact{}, err
			}
		}
		if p.o.Binding == member.ByKey && !p.originalAt(addr) {
			return p.findAddr(ctx, addr)
		}
		c, err := p.findID(ctx, member.OfAddr(addr), o)
		if errors.Is(err, ErrNoSuchMember) && p.gateway != nil {
			// An original that is bound to all interfaces takes 0.0.0.0 for its address.
			all := netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
			if original, e := p.findID(ctx, member.OfAddr(all), o); e == nil && original.Addr() == addr {
				return original, nil
			}
		}
		return c, err
	case targetID:
	default:
		return member.Contact{}, fmt.Errorf("%w: the target is empty", ErrNoSuchMember)
	}
	return p.findID(ctx, id, o)
}

func (p *Peer) findID(ctx context.Context, id Hash, o ring.LookupOptions) (member.Contact, error) {
	if id == p.ID() {
		return p.contact(), nil
	}
	if s := p.links.live(id); s != nil {
		return s.contact, nil
	}
	f, err := p.lookup(ctx, id, o)
	switch {
	case err != nil:
		return member.Contact{}, err
	case f.Owner.ID == id && !p.isBound(f.Owner):
		return member.Contact{}, fmt.Errorf("%w: what was found has another's ID", ErrNoSuchMember)
	case f.Owner.ID == id:
		return f.Owner, nil
	case len(f.Leaf) > 0 && f.Leaf[0].ID == id:
		return f.Leaf[0], nil
	}
	leaf, err := p.node().FindLeaf(ctx, id)
	if err != nil {
		return member.Contact{}, ErrNoSuchMember
	}
	return leaf, nil
}

// isBound reports whether a contact that others gave has the ID of its address or key. That matters before anything is
// said to the member: the address also decides with which key of Options.Trust a message is sealed, if with any.
func (p *Peer) isBound(c member.Contact) bool {
	if p.gateway == nil || c.Dialect == member.Native {
		return c.Verify(p.o.Binding) == nil
	}
	// That of an original, or of who may be one; one that is bound to all interfaces takes 0.0.0.0 for its address.
	all := netip.AddrPortFrom(netip.IPv4Unspecified(), c.Addr().Port())
	return c.Addr().IsValid() && (c.ID == member.OfAddr(c.Addr()) || c.ID == member.OfAddr(all)) || c.Verify(p.o.Binding) == nil
}

func (p *Peer) lookup(ctx context.Context, key Hash, o ring.LookupOptions) (wire.Found, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
	}
	found, err := p.node().Lookup(ctx, key, o)
	if err != nil {
		return wire.Found{}, err
	}
	if len(found.Conflict) > 0 {
		c := Conflict{Kind: "owner", Subject: key, Between: []Hash{found.Owner.ID}}
		for _, other := range found.Conflict {
			c.Between = append(c.Between, other.ID)
		}
		p.conflict(c)
	}
	return found.Found, nil
}

const lookupTimeout = 10 * time.Second

// findAddr finds the member of a secure swarm that is known by an address: members keep a record of theirs under it.
// Anybody can make such a record, so who answers at the address counts for more. Where nobody does the record has to do:
// those behind NATs can be met through others only.
func (p *Peer) findAddr(ctx context.Context, addr netip.AddrPort) (member.Contact, error) {
	if addr == p.Addr() {
		return p.contact(), nil
	}
	if s := p.links.at(addr); s != nil {
		return s.contact, nil
	}
	named, err := p.findName(ctx, addr.String())
	if err != nil {
		return member.Contact{}, err
	}
	p.reacher.asking.Lock()
	defer p.reacher.asking.Unlock()
	if s := p.links.at(addr); s != nil { // there is now
		return s.contact, nil
	}
	if p.reacher.isMute(addr) {
		return named, nil
	}
	dialCtx, cancel := context.WithTimeout(ctx, findAddrTimeout)
	defer cancel()
	s, err := p.dialAddr(dialCtx, addr, member.Contact{Dialect: member.Native})
	if err != nil {
		if ctx.Err() == nil {
			p.reacher.setMute(addr)
		}
		return named, nil
	}
	if s.contact.ID != named.ID {
		p.conflict(Conflict{Kind: "name", Subject: record.Key(addr.String()), Between: []Hash{s.contact.ID, named.ID}})
	}
	return s.contact, nil
}

// findAddrTimeout is how long to wait for an answer where most members answer at once, and those behind NATs never do.
const findAddrTimeout = 500 * time.Millisecond

// findName finds the member that has published a name. When several have, the one that the owner of the name's place
// has had for longest is taken, and the Conflict hook is told.
func (p *Peer) findName(ctx context.Context, name string) (member.Contact, error) {
	name, err := record.Normal(name)
	if err != nil {
		return member.Contact{}, fmt.Errorf("%w: %w", ErrNoSuchMember, err)
	}
	answers, err := p.node().Get(ctx, record.Key(name))
	if err != nil {
		return member.Contact{}, err
	}
	claims := record.Select(name, p.o.Binding, time.Now(), answers...)
	if len(claims) == 0 {
		return member.Contact{}, ErrNoSuchMember
	}
	// A record tells who it is; where to find a member changes, and whether it is there at all, the ring knows. Records of
	// those who are gone stay until they expire.
	var there []member.Contact
	for _, r := range claims {
		if c, err := p.findID(ctx, r.Contact.ID, lookupPlain); err == nil {
			there = append(there, c)
		}
	}
	switch {
	case len(there) == 0:
		return claims[0].Contact, nil
	case len(there) > 1:
		c := Conflict{Kind: "name", Subject: record.Key(name)}
		for _, m := range there {
			c.Between = append(c.Between, m.ID)
		}
		p.conflict(c)
	}
	return there[0], nil
}

// copies remembers messages that come by several ways, so that each is delivered once.
type copies struct {
	mu    sync.Mutex
	seen  map[copyKey]copySeen
	order []copyKey // oldest first
}

type copyKey struct {
	from Hash
	tag  wire.Tag
}

type copySeen struct {
	sum Hash
	at  time.Time
}

type copyState uint8

const (
	copyNew copyState = iota
	copyRepeated
	copyDiffers
)

// Copies are expected together; these bounds are for the slowest way and for floods.
const (
	copiesLife = 2 * time.Minute
	copiesMax  = 1 << 16
)

func (c *copies) see(from Hash, tag wire.Tag, data []byte) copyState {
	key, sum, now := copyKey{from, tag}, member.HashOf(data), time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.seen[key]; ok {
		if s.sum != sum {
			return copyDiffers
		}
		return copyRepeated
	}
	for len(c.order) > 0 && (len(c.order) >= copiesMax || now.Sub(c.seen[c.order[0]].at) > copiesLife) {
		delete(c.seen, c.order[0])
		c.order = c.order[1:]
	}
	if c.seen == nil {
		c.seen = make(map[copyKey]copySeen)
	}
	c.seen[key] = copySeen{sum, now}
	c.order = append(c.order, key)
	return copyNew
}

// forget makes room for another copy of a message that was not delivered.
func (c *copies) forget(from Hash, tag wire.Tag) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := copyKey{from, tag}
	delete(c.seen, key)
	if i := slices.Index(c.order, key); i >= 0 {
		c.order = slices.Delete(c.order, i, i+1)
	}
}
