// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A world is a ring of natives and stand-ins for originals.
type world struct {
	t         *testing.T
	net       *network
	mu        sync.Mutex
	natives   map[member.ID]*native
	originals map[member.ID]*original
	dead      []*original
	sequence  uint64
}

// A native is a member with a real place on the ring and a real gateway. Between themselves natives talk without
// sockets, and broadcast by telling everybody.
type native struct {
	w      *world
	self   member.Contact
	node   *ring.Node
	g      *Gateway
	cancel context.CancelFunc
	owned  sync.WaitGroup

	mu   sync.Mutex
	seen map[wire.Tag]bool
	got  []received
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, net: newNetwork(), natives: map[member.ID]*native{}, originals: map[member.ID]*original{}}
	return w
}

// close ends everything, and fails the test if any original was harmed.
func (w *world) close() {
	for _, n := range w.natives {
		n.stop()
	}
	for _, o := range w.originals {
		o.stop()
		w.dead = append(w.dead, o)
	}
	for _, o := range w.dead {
		for _, h := range o.harm {
			w.t.Errorf("an original broke: %s", h)
		}
	}
}

func (w *world) native(port uint16) *native {
	ref := refAt(port)
	n := &native{
		w: w, self: member.Contact{ID: ref.ID, Dialect: member.Native, Addrs: []netip.AddrPort{ref.Addr}},
		seen: map[wire.Tag]bool{},
	}
	n.node = ring.New(n.self, n, ring.Options{Random: rand.NewPCG(1, uint64(port))})
	n.g = NewGateway(Options{
		Self:      func() member.Contact { return n.self },
		Ring:      n.node,
		Table:     n.node.Table,
		Transport: n,
		Live:      func(id member.ID) bool { return w.at(id) != nil },
		Dial: func(_ context.Context, addr netip.AddrPort) (net.Conn, error) {
			return w.net.dial(ref.Addr.Addr(), addr)
		},
		Deliver: func(from member.Contact, payload []byte) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.got = append(n.got, received{from: from.ID, payload: string(payload)})
		},
		Forward: func(ctx context.Context, key member.ID, from member.Contact, payload []byte) error {
			if to := w.at(key); to != nil {
				to.g.o.Deliver(from, payload)
				return nil
			}
			return n.g.Send(ctx, member.Contact{ID: key, Dialect: member.Original}, payload)
		},
		Inject: func(tag wire.Tag, origin member.ID, payload []byte) { w.broadcast(n, tag, origin, string(payload)) },
		Learn:  n.node.Learn,
		Lost:   n.node.Suspect,
	})
	w.mu.Lock()
	w.natives[ref.ID] = n
	w.mu.Unlock()
	incoming := w.net.listen(ref.Addr)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.owned.Go(func() { _ = n.g.Run(ctx) })
	n.owned.Go(func() { _ = n.node.Run(ctx) })
	n.owned.Go(func() {
		for {
			select {
			case nc := <-incoming:
				n.owned.Go(func() {
					if upgraded, _ := n.g.Accept(ctx, nc, nil); upgraded != nil {
						_ = upgraded.Close() // natives need no links here
					}
				})
			case <-ctx.Done():
				return
			}
		}
	})
	return n
}

func (n *native) stop() {
	n.w.net.close(n.self.Addr())
	n.w.mu.Lock()
	delete(n.w.natives, n.self.ID)
	n.w.mu.Unlock()
	n.cancel()
	_ = n.g.Close()
	n.owned.Wait()
}

func (w *world) at(id member.ID) *native {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.natives[id]
}

// Call carries a message: natives are called, what is not known is dialled to find out.
func (n *native) Call(ctx context.Context, to member.Contact, request wire.Message) (wire.Message, error) {
	select {
	case <-time.After(time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if other := n.w.at(to.ID); other != nil && n.w.at(n.self.ID) != nil {
		answer := other.node.Handle(ctx, n.node.Self(), request)
		n.node.Learn(other.self)
		other.node.Learn(n.self)
		if refused, ok := answer.(wire.Refused); ok {
			return nil, refused
		}
		return answer, nil
	}
	if to.Dialect == member.Native {
		return nil, wire.ErrUnreachable
	}
	return n.g.Call(ctx, to, request)
}

func (n *native) Cast(to member.Contact, m wire.Message) {
	if other := n.w.at(to.ID); other != nil {
		other.node.Handle(context.Background(), n.self, m)
	}
}

func (n *native) RTT(id member.ID) time.Duration { return n.g.RTT(id) }

// broadcast does what package broadcast does among the natives.
func (w *world) broadcast(from *native, tag wire.Tag, origin member.ID, payload string) {
	w.mu.Lock()
	natives := make([]*native, 0, len(w.natives))
	for _, n := range w.natives {
		natives = append(natives, n)
	}
	w.mu.Unlock()
	for _, n := range natives {
		n.mu.Lock()
		fresh := !n.seen[tag]
		n.seen[tag] = true
		if fresh && n.self.ID != origin {
			n.got = append(n.got, received{from: origin, broadcast: true, payload: payload})
		}
		n.mu.Unlock()
		if fresh {
			n.g.Spread(tag, origin, []byte(payload))
		}
	}
}

func (n *native) begin(payload string) {
	n.w.mu.Lock()
	n.w.sequence++
	tag := wire.Tag{0: 1, 15: byte(n.w.sequence), 14: byte(n.w.sequence >> 8)}
	n.w.mu.Unlock()
	n.w.broadcast(n, tag, n.self.ID, payload)
}

func (n *native) count(payload string) (c int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.got {
		if r.payload == payload {
			c++
		}
	}
	return c
}

func (w *world) original(port uint16) *original {
	o := newOriginal(w.net, refAt(port), uint64(port))
	w.mu.Lock()
	w.originals[o.ref.ID] = o
	w.mu.Unlock()
	return o
}

func (w *world) kill(o *original) {
	w.mu.Lock()
	delete(w.originals, o.ref.ID)
	w.dead = append(w.dead, o)
	w.mu.Unlock()
	o.stop()
}

// ids returns all who live, in ring order.
func (w *world) ids() (ids []member.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.natives {
		ids = append(ids, id)
	}
	for id := range w.originals {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, member.ID.Compare)
	return ids
}

// wrong says what is not right about the ring.
func (w *world) wrong() (list []string) {
	ids := w.ids()
	for i, id := range ids {
		before, after := ids[(i+len(ids)-1)%len(ids)], ids[(i+1)%len(ids)]
		var gotBefore, gotAfter member.ID
		if n := w.at(id); n != nil {
			p, s := n.node.Neighbours()
			if len(p) > 0 {
				gotBefore = p[0].ID
			}
			if len(s) > 0 {
				gotAfter = s[0].ID
			}
		} else {
			o := w.originals[id]
			o.mu.Lock()
			gotBefore, gotAfter = o.predecessor().ID, o.successor
			o.mu.Unlock()
		}
		if len(ids) > 1 && (gotBefore != before || gotAfter != after) {
			list = append(list, fmt.Sprintf("%s is between %s and %s, thinks %s and %s",
				id.Short(), before.Short(), after.Short(), gotBefore.Short(), gotAfter.Short()))
		}
	}
	return list
}

// settle waits until the ring is right, and returns how long that took.
func (w *world) settle(limit time.Duration) time.Duration {
	w.t.Helper()
	began := time.Now()
	for {
		wrong := w.wrong()
		if len(wrong) == 0 {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			w.t.Fatalf("not right after %v:\n%v", limit, wrong)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// enter makes a native join at an original.
func (n *native) enter(at *original) {
	n.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var entry member.Contact
	var err error
	for range 3 {
		if entry, err = n.g.Join(ctx, at.ref.Addr); err == nil {
			break
		}
	}
	if err == nil {
		err = n.node.Join(ctx, entry)
	}
	if err != nil {
		n.w.t.Fatalf("join: %v", err)
	}
}
