// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// What breaks originals, each beside its harmless sister.
func TestCheck(t *testing.T) {
	dead := refAt(50009)
	fine := func() standing {
		return standing{
			self:          refA,
			knowsSomebody: true,
			knows:         func(id member.ID) bool { return id == refA.ID || id == refC.ID },
			awaits: func(sequence uint32) (Type, bool) {
				return Type(sequence), sequence >= uint32(Join) && sequence <= uint32(Lookup)
			},
			live: func(r Ref) bool { return r != dead },
		}
	}
	node := func(p, s Ref) []byte { return AppendNode(nil, Node{Self: refA, Predecessor: p, Successor: s}) }
	request := func(k Type, data []byte) Message { return Message{Type: k, Sender: refA.ID, Data: data} }
	answer := func(k Type, data []byte) Message {
		return Message{Type: k, Response: true, RequestSequence: uint32(k), Sender: refA.ID, Data: data}
	}
	in := func(name Ref, m Message) Message { m.Sender = name.ID; return m }
	lookup := func(body []byte) []byte { return AppendSearch(nil, Search{Key: refB.ID, Body: body}) }
	data := AppendBody(nil, Body{Payload: []byte("x")})
	all := func(n int) []byte { return AppendBody(nil, Body{Broadcast: true, Visited: make([]member.ID, n)}) }
	joined := func(n Node, s Ref) []byte { return AppendJoinAnswer(nil, JoinAnswer{Node: n, Successor: s}) }
	found := func(owner Ref, hops uint16) []byte {
		return AppendSearchAnswer(nil, SearchAnswer{Key: refB.ID, Owner: owner, Hops: hops})
	}
	six := Ref{ID: refB.ID, Addr: netip.MustParseAddrPort("[2001:db8::1]:1")}
	anywhere := Ref{ID: refB.ID, Addr: netip.MustParseAddrPort("0.0.0.0:1")}

	alone := fine()
	alone.knowsSomebody = false
	alone.knows = func(member.ID) bool { return false }
	stranger := fine()
	stranger.knows = func(id member.ID) bool { return id == refC.ID }
	unproved := fine()
	unproved.unproved = true
	hidden := fine()
	hidden.self.Addr = netip.MustParseAddrPort("[2001:db8::1]:1")

	tests := []struct {
		name string
		s    standing
		m    Message
		ok   bool
	}{
		{"join", unproved, request(Join, AppendJoin(nil, refA.Addr)), true},
		{"join with a byte more", fine(), request(Join, append(AppendJoin(nil, refA.Addr), 0)), false},
		{"join of another", fine(), request(Join, AppendJoin(nil, refB.Addr)), false},
		{"info to one that may be alone", alone, request(Info, nil), true},
		{"info with data", fine(), request(Info, []byte{0}), false},
		{"info without an IPv4 address", hidden, request(Info, nil), false},
		{"notify", fine(), request(Notify, node(refC, refB)), true},
		{"notify one that is alone", alone, request(Notify, node(refC, refB)), false},
		{"notify before anything came", unproved, request(Notify, node(refC, refB)), false},
		{"notify naming the dead", fine(), request(Notify, node(dead, refB)), false},
		{"notify cut short", fine(), request(Notify, node(refC, refB)[:100]), false},
		{"lookup", fine(), request(Lookup, lookup(nil)), true},
		{"lookup by one that is alone", alone, request(Lookup, lookup(nil)), false},
		{"lookup before anything came", unproved, request(Lookup, lookup(nil)), false},
		{"lookup with a byte more", fine(), request(Lookup, append(lookup(nil), 0)), false},
		{"lookup that promises more", fine(), request(Lookup, append(lookup(nil)[:35], 9)), false},
		{"lookup in another's name", fine(), in(refC, request(Lookup, lookup(nil))), false},
		{"message", fine(), request(Lookup, lookup(data)), true},
		{"message by a stranger", stranger, request(Lookup, lookup(data)), true},
		{"message in another's name", fine(), in(refC, request(Lookup, lookup(data))), false},
		{"body of another type", fine(), request(Lookup, lookup([]byte{0xff, 2, 0, 0, 0, 0})), false},
		{"body of a byte", fine(), request(Lookup, lookup([]byte{0xff})), false},
		{"broadcast", fine(), request(Lookup, lookup(all(3))), true},
		{"broadcast by a stranger", stranger, request(Lookup, lookup(all(3))), false},
		{"broadcast in a known name", stranger, in(refC, request(Lookup, lookup(all(3)))), true},
		{"broadcast in an unknown name", fine(), in(refD, request(Lookup, lookup(all(3)))), false},
		{"broadcast visited by too many", fine(), request(Lookup, lookup(all(MaxVisited))), false},
		{"quit", fine(), request(5, nil), false},
		{"error", fine(), request(0xff, nil), false},
		{"info answer", fine(), answer(Info, node(refC, refB)), true},
		{"info answer nobody waits for", fine(), Message{Type: Info, Response: true, Sender: refA.ID, Data: node(refC, refB)}, false},
		{"info answer to a lookup", fine(), Message{Type: Info, Response: true, RequestSequence: uint32(Lookup), Sender: refA.ID, Data: node(refC, refB)}, false},
		{"info answer without predecessor", fine(), answer(Info, node(Ref{}, refB)), false},
		{"info answer without successor", fine(), answer(Info, node(refC, Ref{})), false},
		{"info answer in another's name", fine(), in(refC, answer(Info, node(refC, refB))), false},
		{"info answer naming a dead predecessor", fine(), answer(Info, node(dead, refB)), false},
		{"info answer naming a dead successor", fine(), answer(Info, node(refC, dead)), false},
		{"info answer naming an IPv6 address", fine(), answer(Info, node(six, refB)), false},
		{"info answer naming all addresses", fine(), answer(Info, node(anywhere, refB)), false},
		{"notify answer", fine(), answer(Notify, []byte{1}), true},
		{"empty notify answer", fine(), answer(Notify, nil), false},
		{"join answer", fine(), answer(Join, joined(Node{Self: refA, Successor: refB}, refB)), true},
		{"join answer without successor", fine(), answer(Join, joined(Node{Self: refA}, refB)), false},
		{"join answer with a dead successor", fine(), answer(Join, joined(Node{Self: refA, Successor: refB}, dead)), false},
		{"lookup answer", fine(), answer(Lookup, found(refB, 1)), true},
		{"lookup answer of no hops", fine(), answer(Lookup, found(refB, 0)), false},
		{"lookup answer with a dead owner", fine(), answer(Lookup, found(dead, 1)), false},
		{"answer of an unknown type", fine(), answer(5, nil), false},
	}
	for _, c := range tests {
		if err := check(c.m, c.s); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A liar is a ring that answers with whatever it likes.
type liar struct {
	mu     sync.Mutex
	random *rand.Rand
	names  []member.Contact
}

func (l *liar) some() (list []member.Contact) {
	for range l.random.IntN(4) {
		list = append(list, l.names[l.random.IntN(len(l.names))])
	}
	return list
}

func (l *liar) Handle(_ context.Context, _ member.Contact, m wire.Message) wire.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.random.IntN(10) == 0 {
		return wire.Refused{Code: wire.Overloaded}
	}
	switch m := m.(type) {
	case wire.Lookup:
		return wire.Found{Key: m.Key, Owner: l.names[l.random.IntN(len(l.names))], Hops: l.random.Uint64()}
	default:
		return wire.Neighbours{Self: l.names[0], Predecessors: l.some(), Successors: l.some()}
	}
}

// nowhere is a transport that finds originals, and nobody else.
type nowhere struct{ g **Gateway }

func (t nowhere) Call(ctx context.Context, to member.Contact, m wire.Message) (wire.Message, error) {
	if (*t.g).IsOriginal(to.ID) {
		return (*t.g).Call(ctx, to, m)
	}
	return nil, wire.ErrUnreachable
}
func (nowhere) Cast(member.Contact, wire.Message) {}
func (nowhere) RTT(member.ID) time.Duration       { return 0 }

// FuzzHarm lets a gateway whose ring tells it nonsense live with originals that join, get cut off, ask and are asked at
// any time. Whatever happens, nothing may break them. The stand-ins judge that by rules of their own, not by those of
// check.
func FuzzHarm(f *testing.F) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 0))
		script := make([]byte, 60)
		for i := range script {
			script[i] = byte(r.Uint32())
		}
		f.Add(seed, script)
	}
	f.Fuzz(func(t *testing.T, seed uint64, script []byte) {
		synctest.Test(t, func(t *testing.T) { live(t, seed, script[:min(len(script), 100)]) })
	})
}

func live(t *testing.T, seed uint64, script []byte) {
	network := newNetwork()
	self := member.Contact{ID: refA.ID, Dialect: member.Native, Addrs: []netip.AddrPort{refA.Addr}}
	first, second := newOriginal(network, refB, seed), newOriginal(network, refC, seed+1)
	originals := []*original{first, second}
	named := func(r Ref, d member.Dialect) member.Contact {
		return member.Contact{ID: r.ID, Dialect: d, Addrs: []netip.AddrPort{r.Addr}}
	}
	ring := &liar{random: rand.New(rand.NewPCG(seed, 7)), names: []member.Contact{
		self, named(refB, member.Original), named(refC, member.Original), named(refD, member.Native), // who is dead
		named(refAt(50008), member.Unknown),
		{ID: refAt(1).ID},
		named(Ref{refAt(2).ID, netip.MustParseAddrPort("[2001:db8::1]:1")}, member.Native),
		{ID: refAt(3).ID, Leaf: true, Addrs: []netip.AddrPort{refAt(3).Addr}},
		named(Ref{refAt(4).ID, netip.MustParseAddrPort("0.0.0.0:4")}, member.Native),
	}}
	var g *Gateway
	g = NewGateway(Options{
		Self: func() member.Contact { return self }, Ring: ring, Transport: nowhere{&g},
		Table: func() []member.Contact { return ring.names },
		Dial: func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
			return network.dial(refA.Addr.Addr(), a)
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var owned sync.WaitGroup
	owned.Go(func() { _ = g.Run(ctx) })
	incoming := network.listen(refA.Addr)
	owned.Go(func() {
		for {
			select {
			case nc := <-incoming:
				owned.Go(func() { _, _ = g.Accept(ctx, nc, nil) })
			case <-ctx.Done():
				return
			}
		}
	})

	tag := wire.Tag{}
	for i := 0; i+1 < len(script); i += 2 {
		o := originals[script[i]&1]
		to := named(o.ref, member.Original)
		var do func()
		switch script[i+1] % 13 {
		case 0:
			do = func() { o.join(refA) }
		case 1:
			do = func() { o.join(originals[1-script[i]&1].ref) }
		case 2:
			do = func() { _, _ = g.Join(ctx, o.ref.Addr) }
		case 3:
			do = func() { _ = g.Send(ctx, to, []byte("hello")) }
		case 4:
			tag[0]++
			g.Spread(tag, refD.ID, []byte("all"))
		case 5:
			do = func() { _, _ = g.Call(ctx, to, wire.Notify{From: self}) }
		case 6:
			do = func() { _, _ = g.Call(ctx, to, wire.Lookup{Key: refAt(uint16(script[i])).ID}) }
		case 7:
			do = func() { _, _ = g.Call(ctx, to, wire.State{}) }
		case 8:
			do = func() { o.send(refAt(uint16(script[i])).ID, "from me") }
		case 9:
			do = func() { o.broadcast("from me", nil) }
		case 10: // the path between them breaks
			o.mu.Lock()
			for l := range o.links {
				_ = l.nc.Close()
			}
			o.mu.Unlock()
		case 11:
			do = func() { _ = g.Send(ctx, to, make([]byte, 3*bulk)) }
		default:
			do = func() {
				if nc, err := network.dial(refA.Addr.Addr(), o.ref.Addr); err == nil {
					short, cancel := context.WithTimeout(ctx, time.Duration(script[i])*10*time.Millisecond)
					defer cancel()
					_, _ = g.Hail(short, nc, []member.ID{{}, o.ref.ID}[script[i]&1], o.ref.Addr)
				}
			}
		}
		if do != nil {
			owned.Go(do)
		}
		time.Sleep(time.Duration(script[i]) * 40 * time.Millisecond)
	}
	time.Sleep(40 * time.Second)
	cancel()
	_ = g.Close()
	for _, o := range originals {
		o.stop()
	}
	owned.Wait()
	for _, o := range originals {
		if len(o.harm) > 0 {
			t.Errorf("an original broke: %q", slices.Compact(o.harm))
		}
	}
}
