// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// alone returns a gateway of a member that knows nobody.
func alone(o Options) *Gateway {
	self := member.Contact{ID: refA.ID, Dialect: member.Native, Addrs: []netip.AddrPort{refA.Addr}}
	o.Self = func() member.Contact { return self }
	o.Ring = lonely{self}
	o.Transport = nobody{}
	return NewGateway(o)
}

type lonely struct{ self member.Contact }

func (l lonely) Handle(_ context.Context, _ member.Contact, m wire.Message) wire.Message {
	if m, ok := m.(wire.Lookup); ok {
		return wire.Found{Key: m.Key, Owner: l.self, Hops: 1}
	}
	return wire.Neighbours{Self: l.self}
}

type nobody struct{}

func (nobody) Call(context.Context, member.Contact, wire.Message) (wire.Message, error) {
	return nil, wire.ErrUnreachable
}
func (nobody) Cast(member.Contact, wire.Message) {}
func (nobody) RTT(member.ID) time.Duration       { return 0 }

// accepted returns the far end of a connection that a gateway has accepted, and what becomes of Accept.
func accepted(g *Gateway) (net.Conn, chan error) {
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := g.Accept(context.Background(), pipe{near, netip.MustParseAddrPort("127.0.0.1:40000"), nil}, nil)
		done <- err
	}()
	return far, done
}

func TestTwoNativesFindOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, id := range []member.ID{{}, refB.ID} { // joining, and not
			here, there := alone(Options{}), alone(Options{})
			near, far := net.Pipe()
			upgraded := make(chan net.Conn, 1)
			go func() {
				nc, err := there.Accept(context.Background(), far, func() { t.Error("a native is no original") })
				if err != nil {
					t.Error(err)
				}
				upgraded <- nc
			}()
			nc, err := here.Hail(context.Background(), near, id, refB.Addr)
			if err != nil || nc == nil {
				t.Fatalf("%v, %v", nc, err)
			}
			other := <-upgraded
			go func() { _, _ = nc.Write([]byte("link")) }() // the one that dialled goes on
			b := make([]byte, 4)
			if _, err := io.ReadFull(other, b); err != nil || string(b) != "link" {
				t.Errorf("%q, %v", b, err)
			}
			_ = nc.Close()
			_, _ = here.Close(), there.Close()
			if s := here.Stats(); s.Connections != 0 || s.Originals != 0 {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestHailFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, answer := range map[string]func(net.Conn){
			"nothing":         func(net.Conn) {},
			"gone":            func(nc net.Conn) { _ = nc.Close() },
			"another program": func(nc net.Conn) { _, _ = nc.Write([]byte("SSH-2.0-x\r\n")); _, _ = io.Copy(io.Discard, nc) },
			"another hello":   func(nc net.Conn) { _, _ = nc.Write([]byte("fathom\x00\x02")) },
		} {
			g := alone(Options{})
			near, far := net.Pipe()
			go func() {
				_, _ = io.ReadFull(far, make([]byte, MinMessage))
				answer(far)
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			if nc, err := g.Hail(ctx, near, refB.ID, refB.Addr); err == nil || nc != nil {
				t.Errorf("%s: %v, %v", name, nc, err)
			}
			cancel()
			_ = g.Close()
			_ = far.Close()
		}
	})
}

// Whatever comes, a connection is the most that is lost.
func TestHostileInput(t *testing.T) {
	broken := slices.Clone(vectors["info"])
	broken[50] ^= 1
	version := slices.Clone(vectors["info"])
	version[3] = 4
	long := slices.Clone(vectors["info"])
	copy(long[60:], []byte{0xff, 0xff, 0xff, 0xff})
	request := func(k Type, data []byte) []byte {
		return AppendMessage(nil, Message{Type: k, Sequence: 9, Sender: refB.ID, Data: data})
	}
	var strays []byte
	for range maxStrays + 2 {
		strays = append(strays, vectors["info-answer"]...)
	}
	synctest.Test(t, func(t *testing.T) {
		for name, b := range map[string][]byte{
			"garbage":              make([]byte, 1000),
			"checksum":             broken,
			"version":              version,
			"length":               long,
			"quit":                 request(5, nil),
			"error":                vectors["error"],
			"join with a byte":     request(Join, make([]byte, 7)),
			"short notify":         request(Notify, make([]byte, nodeSize-1)),
			"lookup cut short":     request(Lookup, make([]byte, idSize)),
			"lookup with a byte":   request(Lookup, make([]byte, idSize+5)),
			"body of another type": request(Lookup, AppendSearch(nil, Search{Body: []byte{1, 2, 0, 0, 0, 0}})),
			"answers to nothing":   strays,
		} {
			g := alone(Options{Deliver: func(member.Contact, []byte) { t.Errorf("%s: delivered", name) }})
			far, done := accepted(g)
			go func() { _, _ = io.Copy(io.Discard, far) }()
			_, _ = far.Write(b)
			if err := <-done; !errors.Is(err, ErrMessage) {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := far.Write([]byte{0}); err == nil {
				t.Errorf("%s: the connection stands", name)
			}
			if s := g.Stats(); s.Malformed != 1 || s.Connections != 0 || g.memory.Load() != 0 {
				t.Errorf("%s: %+v, %d bytes", name, s, g.memory.Load())
			}
			_ = g.Close()
			_ = far.Close()
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := alone(Options{Memory: 5 << 20, Connections: 3})
		head := AppendMessage(nil, Message{Type: Lookup, Sender: refB.ID})[:HeadSize]
		copy(head[60:], []byte{0, 0x40, 0, 0}) // promises 4 MiB
		first, firstDone := accepted(g)
		_, _ = first.Write(head)
		synctest.Wait()
		second, secondDone := accepted(g)
		_, _ = second.Write(head)
		if err := <-secondDone; !errors.Is(err, ErrMessage) {
			t.Errorf("a second large message: %v", err)
		}
		for range 2 {
			accepted(g)
		}
		synctest.Wait()
		_, refused := accepted(g)
		if err := <-refused; err == nil || g.Stats().Refused != 1 {
			t.Errorf("one connection too many: %v, %+v", err, g.Stats())
		}
		// What was promised has to come.
		if err := <-firstDone; err == nil {
			t.Error("a message without end")
		}
		_, _ = g.Close(), first.Close()
		time.Sleep(time.Minute)
	})
}

// An original reads slowly: what it asked is answered at once, what we ask waits.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := alone(Options{})
		defer g.Close()
		far, _ := accepted(g)
		defer far.Close()
		began := time.Now()
		type arrival struct {
			m  Message
			at time.Duration
		}
		got := make(chan arrival, 200)
		go func() {
			for {
				m, err := g.readMessage(far, far)
				if err != nil {
					return
				}
				got <- arrival{m, time.Since(began)}
			}
		}()
		_, _ = far.Write(AppendMessage(nil, Message{Type: Info, Sequence: 1, Sender: refB.ID}))
		if a := <-got; !a.m.Response || a.at > time.Second {
			t.Errorf("%+v", a)
		}
		to := member.Contact{ID: refB.ID, Dialect: member.Original}
		for range 40 {
			go func() { _ = g.Send(context.Background(), to, make([]byte, 100)) }()
		}
		synctest.Wait()
		_, _ = far.Write(AppendMessage(nil, Message{Type: Info, Sequence: 2, Sender: refB.ID}))
		asked := time.Since(began)
		answered, bytes := time.Duration(0), 0
		time.Sleep(7 * time.Second)
		for len(got) > 0 {
			a := <-got
			bytes += MinMessage + len(a.m.Data)
			if a.m.Response {
				answered = a.at - asked
			}
		}
		if answered > 10*time.Millisecond {
			t.Errorf("answered after %v", answered)
		}
		if most := paceBurst + 8*pace + 300; bytes > most || bytes < most/2 {
			t.Errorf("%d bytes in 7 s", bytes)
		}
	})
}

func TestLargeMessageHasItsOwnConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		n := w.native(50001)
		o := w.original(50002)
		o.join(refAt(50001))
		w.settle(20 * time.Second)
		large := make([]byte, 20<<10) // it reads that in 37 s
		for range 2 {
			if err := n.g.Send(t.Context(), member.Contact{ID: o.ref.ID, Dialect: member.Original}, large); err != nil {
				t.Error(err)
			}
			w.settle(0)
		}
		if o.got(string(large)) != 2 {
			t.Errorf("delivered %d times", o.got(string(large)))
		}
		if err := n.g.Send(t.Context(), member.Contact{ID: o.ref.ID}, make([]byte, MaxPayload+1)); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
}

// Only what an original can do is asked of it, and what is asked often is asked once.
func TestCallOfOriginal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		n := w.native(50001)
		o := w.original(50002)
		o.join(refAt(50001))
		w.settle(20 * time.Second)
		to := member.Contact{ID: o.ref.ID, Dialect: member.Original, Addrs: []netip.AddrPort{o.ref.Addr}}
		var refused wire.Refused
		for _, m := range []wire.Message{wire.Push{}, wire.Attach{}, wire.Store{}, wire.Fetch{}, wire.Step{}, wire.Want{}} {
			if _, err := n.g.Call(t.Context(), to, m); !errors.As(err, &refused) || refused.Code != wire.Unsupported {
				t.Errorf("%s: %v", m.Kind(), err)
			}
		}
		before := n.g.Stats().Sent
		for range 100 {
			answer, err := n.g.Call(t.Context(), to, wire.State{})
			state, ok := answer.(wire.Neighbours)
			if err != nil || !ok || !state.Self.Equal(to) || len(state.Successors) != 1 || state.Successors[0].ID != n.self.ID {
				t.Fatalf("%+v, %v", answer, err)
			}
		}
		if sent := n.g.Stats().Sent - before; sent > 1 {
			t.Errorf("%d messages", sent)
		}
		answer, err := n.g.Call(t.Context(), to, wire.Lookup{Key: o.ref.ID})
		if found, ok := answer.(wire.Found); err != nil || !ok || found.Owner.ID != o.ref.ID || found.Hops != 1 {
			t.Errorf("%+v, %v", answer, err)
		}
		if n.g.RTT(o.ref.ID) <= 0 {
			t.Error("no round trip")
		}
		_, err = n.g.Call(t.Context(), member.Contact{ID: refD.ID, Addrs: []netip.AddrPort{refD.Addr}}, wire.Ping{})
		if !errors.Is(err, wire.ErrUnreachable) {
			t.Errorf("nobody there: %v", err)
		}
		six := member.Contact{ID: refD.ID, Addrs: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:1")}}
		if _, err = n.g.Call(t.Context(), six, wire.Ping{}); !errors.Is(err, ErrNoIPv4) {
			t.Errorf("IPv6 only: %v", err)
		}
	})
}

func TestPlace(t *testing.T) {
	seen := netip.MustParseAddr("192.0.2.9")
	for _, c := range []struct{ says, id, want string }{
		{"192.0.2.7:1000", "192.0.2.7:1000", "192.0.2.7:1000"},
		{"0.0.0.0:1000", "0.0.0.0:1000", "192.0.2.9:1000"},    // bound to all interfaces
		{"10.0.0.1:1000", "192.0.2.9:1000", "192.0.2.9:1000"}, // behind a router, with an external address
		{"10.0.0.1:1000", "203.0.113.1:1", "10.0.0.1:1000"},   // nothing better is known
	} {
		r := place(Ref{member.OfAddr(netip.MustParseAddrPort(c.id)), netip.MustParseAddrPort(c.says)}, seen)
		if r.Addr.String() != c.want {
			t.Errorf("%s as %s: %s, want %s", c.says, c.id, r.Addr, c.want)
		}
	}
}

// Who connects and is gone before an original comes to accept ends its listener.
func TestImpatientHail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		n, o := w.native(50001), w.original(50002)
		for _, id := range []member.ID{o.ref.ID, {}} {
			for range 3 {
				nc, err := w.net.dial(refA.Addr.Addr(), o.ref.Addr)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
				if _, err := n.g.Hail(ctx, nc, id, o.ref.Addr); err == nil {
					t.Error("answered in 10 ms")
				}
				cancel()
			}
			time.Sleep(20 * time.Second)
		}
		n.enter(o)
		for range 3 { // who is known is not asked again
			nc, err := w.net.dial(refA.Addr.Addr(), o.ref.Addr)
			if err != nil {
				t.Fatal(err)
			}
			if native, err := n.g.Hail(t.Context(), nc, member.ID{}, o.ref.Addr); err != nil || native != nil {
				t.Errorf("%v, %v", native, err)
			}
		}
		if c, ok := n.g.At(o.ref.Addr); !ok || c.ID != o.ref.ID {
			t.Errorf("%v, %v", c, ok)
		}
		time.Sleep(20 * time.Second)
		if s := n.g.Stats(); s.Connections != 1 {
			t.Errorf("%d connections", s.Connections)
		}
	})
}
