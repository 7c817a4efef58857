// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/cicada/cicadatest"
	"github.com/seed5728abee/fathom/swarm/member"
)

// newPeer returns a peer bound to a free port of the loopback interface.
func newPeer(t testing.TB, o swarm.Options) *swarm.Peer {
	t.Helper()
	p := swarm.New(o)
	if err := p.Bind(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// newSwarm returns n peers in one swarm.
func newSwarm(t testing.TB, n int, options func(i int) swarm.Options) []*swarm.Peer {
	t.Helper()
	peers := make([]*swarm.Peer, n)
	for i := range peers {
		peers[i] = newPeer(t, options(i))
		if i > 0 {
			if err := peers[i].Connect(t.Context(), peers[0].Addr().String()); err != nil {
				t.Fatalf("peer %d: %v", i, err)
			}
		}
	}
	return peers
}

func open(int) swarm.Options { return swarm.Options{} }

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// waitFor polls until a condition holds: the machine may be busy.
func waitFor(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// ringIsWhole reports whether each peer's first successor and predecessor are those that follow from all IDs.
func ringIsWhole(peers []*swarm.Peer) bool {
	ids := make([]swarm.Hash, len(peers))
	for i, p := range peers {
		ids[i] = p.ID()
	}
	slices.SortFunc(ids, swarm.Hash.Compare)
	for _, p := range peers {
		i := slices.Index(ids, p.ID())
		s := p.State()
		if len(s.Successors) == 0 || s.Successors[0].ID != ids[(i+1)%len(ids)] ||
			len(s.Predecessors) == 0 || s.Predecessors[0].ID != ids[(i+len(ids)-1)%len(ids)] {
			return false
		}
	}
	return true
}

func TestSendAndBroadcast(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 5, open)
	waitFor(t, "one ring", func() bool { return ringIsWhole(peers) })
	ctx := timeout(t, 20*time.Second)

	// Each to each, by address and by ID: it arrives there, from whom it says, and nowhere else.
	for i, from := range peers {
		for j, to := range peers {
			text := fmt.Sprintf("%d to %d", i, j)
			target := swarm.ToAddr(to.Addr().String())
			if (i+j)%2 == 1 {
				target = swarm.ToID(to.ID())
			}
			if err := from.Send(ctx, target, []byte(text)); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			m, err := to.Recv(ctx)
			if err != nil || string(m.Data) != text || m.From.ID != from.ID() || m.From.Addr != from.Addr() || m.Broadcast {
				t.Fatalf("%s: got %+v, %v", text, m, err)
			}
		}
	}
	for i, from := range peers {
		if err := from.Broadcast(ctx, fmt.Appendf(nil, "from %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range peers {
		got := map[string]int{}
		for range len(peers) - 1 {
			m, err := p.Recv(ctx)
			if err != nil || !m.Broadcast {
				t.Fatalf("peer %d: %+v, %v", i, m, err)
			}
			got[string(m.Data)]++
		}
		for j := range peers {
			if want := map[bool]int{true: 1}[j != i]; got[fmt.Sprintf("from %d", j)] != want {
				t.Errorf("peer %d has the broadcast of %d %d times", i, j, got[fmt.Sprintf("from %d", j)])
			}
		}
	}
	time.Sleep(50 * time.Millisecond)
	for i, p := range peers {
		if n := p.Pending(); n != 0 {
			m, _ := p.Recv(ctx)
			t.Errorf("peer %d has %d messages more, such as %q", i, n, m.Data)
		}
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 8, open)
	waitFor(t, "one ring", func() bool { return ringIsWhole(peers) })
	for k := range 40 {
		key := swarm.HashOf(fmt.Sprint("key ", k))
		owner := peers[0].ID()
		for _, p := range peers {
			if key.Distance(p.ID()).Compare(key.Distance(owner)) < 0 {
				owner = p.ID()
			}
		}
		asker := peers[k%len(peers)]
		for _, disjoint := range []int{0, 2} {
			r, err := asker.Lookup(timeout(t, 10*time.Second), key, swarm.LookupOptions{Disjoint: disjoint})
			if err != nil || r.Owner.ID != owner {
				t.Errorf("%s by %d ways: %s, %v; want %s", key.Short(), disjoint, r.Owner, err, owner.Short())
			}
		}
	}
}

func TestUnknownTargets(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 3, open)
	ctx := timeout(t, 20*time.Second)
	for _, target := range []swarm.Target{
		swarm.ToAddr("127.0.0.1:1"), swarm.ToID(swarm.HashOf("nobody")), swarm.ToName("nobody"), {},
	} {
		if err := peers[1].Send(ctx, target, []byte("x")); !errors.Is(err, swarm.ErrNoSuchMember) {
			t.Errorf("send to %s: %v, want ErrNoSuchMember", target, err)
		}
	}
	if err := peers[1].Send(ctx, swarm.ToID(peers[2].ID()), make([]byte, swarm.MaxMessage+1)); !errors.Is(err, swarm.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	ctx := timeout(t, 20*time.Second)
	p := swarm.New(swarm.Options{})
	for what, err := range map[string]error{
		"connect":   p.Connect(ctx, "127.0.0.1:1"),
		"send":      p.Send(ctx, swarm.ToName("x"), nil),
		"broadcast": p.Broadcast(ctx, nil),
		"leave":     p.Disconnect(ctx),
	} {
		if !errors.Is(err, swarm.ErrNotBound) {
			t.Errorf("%s before Bind: %v", what, err)
		}
	}
	if err := p.Bind(ctx, "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if err := p.Bind(ctx, "127.0.0.1:0"); !errors.Is(err, swarm.ErrBound) {
		t.Errorf("second Bind: %v", err)
	}
	if err := swarm.New(swarm.Options{}).Bind(ctx, p.Addr().String()); err == nil {
		t.Error("two peers at one address")
	}
	if err := p.Broadcast(ctx, []byte("x")); !errors.Is(err, swarm.ErrAlone) {
		t.Errorf("broadcast alone: %v", err)
	}
	if err := p.Connect(ctx, "127.0.0.1:1"); !errors.Is(err, swarm.ErrNoEntry) {
		t.Errorf("connect to nobody: %v", err)
	}
	waiting := make(chan error, 1)
	go func() { _, err := p.Recv(context.Background()); waiting <- err }()
	time.Sleep(10 * time.Millisecond)
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Recv when closed: %v", err)
	}
	if err := p.Send(ctx, swarm.ToName("x"), nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send when closed: %v", err)
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 3, open)
	ctx := timeout(t, 20*time.Second)
	l, err := peers[2].Listen("echo")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	c, err := peers[1].Dial(ctx, swarm.ToAddr(peers[2].Addr().String()), "echo")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		c.Write(data)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("echo of %d bytes: %d, %v", len(data), len(got), err)
	}
	if c.RemoteAddr() != (swarm.Addr{ID: peers[2].ID()}) {
		t.Errorf("remote address %s", c.RemoteAddr())
	}
	c.Close()
	if _, err := peers[1].Dial(ctx, swarm.ToID(peers[2].ID()), "nothing"); !errors.Is(err, swarm.ErrNoService) {
		t.Errorf("no service: %v", err)
	}
	l.Close()
	if _, err := peers[1].Dial(ctx, swarm.ToID(peers[2].ID()), "echo"); !errors.Is(err, swarm.ErrNoService) {
		t.Errorf("closed service: %v", err)
	}
}

func TestStreamIsConn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	peers := newSwarm(t, 2, open)
	l, err := peers[1].Listen("test")
	if err != nil {
		t.Fatal(err)
	}
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, err = peers[0].Dial(timeout(t, 10*time.Second), swarm.ToID(peers[1].ID()), "test")
		if err != nil {
			return nil, nil, nil, err
		}
		c2, err = l.Accept()
		return c1, c2, func() { c1.Close(); c2.Close() }, err
	})
}

func TestPacketConn(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 3, open)
	a, b := peers[1].PacketConn(), peers[2].PacketConn()
	if _, err := a.WriteTo([]byte("packet"), b.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := b.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "packet" || from != a.LocalAddr() {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
	b.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, _, err = b.ReadFrom(buf)
	if netErr, ok := errors.AsType[net.Error](err); !ok || !netErr.Timeout() {
		t.Errorf("read deadline: %v", err)
	}
	a.SetWriteDeadline(time.Now().Add(-time.Second))
	_, err = a.WriteTo([]byte("late"), b.LocalAddr())
	if netErr, ok := errors.AsType[net.Error](err); !ok || !netErr.Timeout() {
		t.Errorf("write deadline: %v", err)
	}
}

// A secure swarm lets in those who have its key, and IDs are those of keys.
func TestSecure(t *testing.T) {
	t.Parallel()
	key, other := member.NewSwarmKey(), member.NewSwarmKey()
	secure := func(keys ...member.SwarmKey) func(int) swarm.Options {
		return func(i int) swarm.Options {
			return swarm.Options{Binding: member.ByKey, SwarmKeys: keys, Name: fmt.Sprint("peer", i)}
		}
	}
	peers := newSwarm(t, 4, secure(key))
	ctx := timeout(t, 20*time.Second)
	for i, p := range peers {
		if p.ID() != member.OfKey(p.Self().Key) {
			t.Errorf("peer %d: its ID is not that of its key", i)
		}
	}
	for what, target := range map[string]swarm.Target{
		"address": swarm.ToAddr(peers[3].Addr().String()), "name": swarm.ToName("peer3"), "id": swarm.ToID(peers[3].ID()),
	} {
		if err := peers[1].Send(ctx, target, []byte(what)); err != nil {
			t.Errorf("send by %s: %v", what, err)
			continue
		}
		if m, err := peers[3].Recv(ctx); err != nil || string(m.Data) != what || m.From.ID != peers[1].ID() {
			t.Errorf("by %s: %+v, %v", what, m, err)
		}
	}
	for what, o := range map[string]swarm.Options{
		"another key": secure(other)(9), "no key": {Binding: member.ByKey}, "open": {},
	} {
		stranger := newPeer(t, o)
		if err := stranger.Connect(timeout(t, 5*time.Second), peers[0].Addr().String()); !errors.Is(err, swarm.ErrNoEntry) {
			t.Errorf("with %s: %v", what, err)
		}
	}
	// During a change of keys, those with either are in one swarm.
	both := newPeer(t, secure(other, key)(8))
	if err := both.Connect(ctx, peers[0].Addr().String()); !errors.Is(err, swarm.ErrNoEntry) {
		t.Errorf("a new key that the others do not have yet: %v", err)
	}
	late := newPeer(t, secure(key, other)(7))
	if err := late.Connect(ctx, peers[0].Addr().String()); err != nil {
		t.Errorf("with both keys, the old one first: %v", err)
	}
}

// Leaves take no place on the ring; they send, receive and get broadcasts as others do.
func TestLeaves(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 6, func(i int) swarm.Options { return swarm.Options{Unreachable: i >= 4, Reachable: i < 4} })
	waitFor(t, "a ring of four", func() bool { return ringIsWhole(peers[:4]) })
	ctx := timeout(t, 20*time.Second)
	for i, p := range peers[4:] {
		if s := p.State(); !s.Self.Leaf || len(s.Hosts) == 0 {
			t.Errorf("leaf %d: %+v", i, s.Self)
		}
	}
	for i, from := range peers {
		for j, to := range peers {
			if i == j {
				continue
			}
			text := fmt.Sprintf("%d to %d", i, j)
			if err := from.Send(ctx, swarm.ToID(to.ID()), []byte(text)); err != nil {
				t.Errorf("%s: %v", text, err)
				continue
			}
			if m, err := to.Recv(ctx); err != nil || string(m.Data) != text || m.From.ID != from.ID() {
				t.Errorf("%s: %+v, %v", text, m, err)
			}
		}
	}
	for i, from := range []*swarm.Peer{peers[0], peers[5]} {
		if err := from.Broadcast(ctx, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		for j, p := range peers {
			if p == from {
				continue
			}
			if m, err := p.Recv(ctx); err != nil || string(m.Data) != fmt.Sprint(i) || !m.Broadcast {
				t.Errorf("broadcast %d at %d: %+v, %v", i, j, m, err)
			}
		}
	}
}

// Copies go by different members, and are delivered once.
func TestSendDisjoint(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 6, open)
	waitFor(t, "one ring", func() bool { return ringIsWhole(peers) })
	ctx := timeout(t, 20*time.Second)
	if err := peers[1].SendDisjoint(ctx, swarm.ToID(peers[4].ID()), []byte("once"), 3); err != nil {
		t.Fatal(err)
	}
	if m, err := peers[4].Recv(ctx); err != nil || string(m.Data) != "once" {
		t.Fatalf("%+v, %v", m, err)
	}
	var carried uint64
	for _, p := range peers {
		carried += p.Counters().CircuitsCarried
	}
	if carried < 2 {
		t.Errorf("%d members carried a copy, want several", carried)
	}
	time.Sleep(20 * time.Millisecond)
	if n := peers[4].Pending(); n != 0 {
		t.Errorf("delivered %d times more", n)
	}
}

// The ring closes when members die, and when they leave.
func TestDeaths(t *testing.T) {
	t.Parallel()
	peers := newSwarm(t, 9, open)
	waitFor(t, "one ring", func() bool { return ringIsWhole(peers) })
	for len(peers) > 3 {
		peers[len(peers)-1].Close()
		peers = peers[:len(peers)-1]
		waitFor(t, fmt.Sprintf("a ring of %d", len(peers)), func() bool { return ringIsWhole(peers) })
	}
	ctx := timeout(t, 20*time.Second)
	if err := peers[0].Broadcast(ctx, []byte("still here")); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers[1:] {
		if m, err := p.Recv(ctx); err != nil || string(m.Data) != "still here" {
			t.Errorf("%+v, %v", m, err)
		}
	}
}

// Members over IPv6, and one that listens on all addresses of both kinds.
func TestIPv6(t *testing.T) {
	t.Parallel()
	ctx := timeout(t, 20*time.Second)
	var peers []*swarm.Peer
	for i, address := range []string{"[::1]:0", "[::1]:0", ":0"} {
		p := swarm.New(swarm.Options{})
		t.Cleanup(func() { p.Close() })
		if err := p.Bind(ctx, address); err != nil {
			if i == 0 {
				t.Skip(err)
			}
			t.Fatal(err)
		}
		if i > 0 {
			if err := p.Connect(ctx, peers[0].Addr().String()); err != nil {
				t.Fatal(err)
			}
		}
		peers = append(peers, p)
	}
	for _, from := range peers {
		for _, to := range peers {
			if err := from.Send(ctx, swarm.ToAddr(to.Addr().String()), []byte("six")); err != nil {
				t.Errorf("%s to %s: %v", from.Addr(), to.Addr(), err)
			} else if m, err := to.Recv(ctx); err != nil || string(m.Data) != "six" {
				t.Errorf("%s to %s: %+v, %v", from.Addr(), to.Addr(), m, err)
			}
		}
	}
}

// A peer that was cut off from everyone comes back by itself, through the address it once joined at.
func TestRejoin(t *testing.T) {
	t.Parallel()
	ctx := timeout(t, 30*time.Second)
	first := newPeer(t, swarm.Options{})
	address := first.Addr().String()
	lone := newPeer(t, swarm.Options{})
	if err := lone.Connect(ctx, address); err != nil {
		t.Fatal(err)
	}
	first.Close()
	waitFor(t, "the other is gone", func() bool { return len(lone.State().Successors) == 0 })
	again := swarm.New(swarm.Options{})
	t.Cleanup(func() { again.Close() })
	if err := again.Bind(ctx, address); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "both are in one ring", func() bool { return ringIsWhole([]*swarm.Peer{lone, again}) })
}

// Two swarms that were formed apart become one when a peer of one has a bootstrap peer in the other.
func TestMerge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes up to half a minute")
	}
	t.Parallel()
	a := newSwarm(t, 3, open)
	b := newSwarm(t, 3, func(i int) swarm.Options {
		if i == 0 {
			return swarm.Options{}
		}
		return swarm.Options{Bootstrap: []string{a[0].Addr().String()}}
	})
	for deadline := time.Now().Add(40 * time.Second); !ringIsWhole(append(slices.Clone(a), b...)); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still two rings after 40 s")
		}
	}
}

// Who comes back under its name with another key has it, whether it left in good order or not.
func TestNameComesBack(t *testing.T) {
	t.Parallel()
	ctx := timeout(t, 30*time.Second)
	peers := newSwarm(t, 3, open)
	for i := range 3 {
		carol := newPeer(t, swarm.Options{Name: "carol"})
		if err := carol.Connect(ctx, peers[0].Addr().String()); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint("to carol ", i)
		waitFor(t, text, func() bool { return peers[1].Send(ctx, swarm.ToName("carol"), []byte(text)) == nil })
		if m, err := carol.Recv(ctx); err != nil || string(m.Data) != text {
			t.Errorf("%q, %v", m.Data, err)
		}
		carol.Close()
	}
	if n := peers[1].Counters().Conflicts; n != 0 {
		t.Errorf("%d conflicts", n)
	}
}

// Originals keep no records: names are found all the same.
func TestNamesBesideOriginals(t *testing.T) {
	if testing.Short() {
		t.Skip("originals take their time")
	}
	t.Parallel()
	ctx := timeout(t, 60*time.Second)
	first := newPeer(t, swarm.Options{Name: "first"})
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		o := cicadatest.New(l, cicadatest.Options{Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp4", to.String())
		}})
		t.Cleanup(o.Close)
		if err := o.Join(ctx, first.Addr()); err != nil {
			t.Fatal(err)
		}
	}
	second := newPeer(t, swarm.Options{Name: "second"})
	if err := second.Connect(ctx, first.Addr().String()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "first finds second", func() bool { return first.Send(ctx, swarm.ToName("second"), []byte("x")) == nil })
	waitFor(t, "second finds first", func() bool { return second.Send(ctx, swarm.ToName("first"), []byte("y")) == nil })
}
