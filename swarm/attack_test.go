// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/link"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// bound returns a peer of an open swarm at a free port of the loopback interface.
func bound(t *testing.T, o Options) *Peer {
	t.Helper()
	p := New(o)
	if err := p.Bind(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// eventually polls until a condition holds: the machine may be busy.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// running counts the goroutines with a function on their stack.
func running(function string) int {
	b := make([]byte, 4<<20)
	return strings.Count(string(b[:runtime.Stack(b, true)]), function+"(")
}

// A villain speaks the protocol and lies in it. It takes no notice of what it is told.
type villain struct {
	identity *member.Identity
	hello    hello
}

func newVillain(claimed netip.AddrPort) *villain {
	v := &villain{identity: member.NewIdentity()}
	v.hello.contact = member.Contact{
		ID: member.OfAddr(claimed), Dialect: member.Native, Key: v.identity.Public(), Addrs: []netip.AddrPort{claimed},
	}
	return v
}

func (v *villain) Request(_ *link.Session, _ []byte, reply func([]byte)) { reply(nil) }
func (v *villain) Cast(*link.Session, []byte)                            {}
func (v *villain) Message(*link.Session, []byte) error                   { return nil }
func (v *villain) Stream(_ *link.Session, _ []byte, c net.Conn) error    { return nil }
func (v *villain) config() link.Config {
	return link.Config{
		Identity: v.identity.Private(), Handler: v,
		Hello: func(net.Addr) []byte { return appendHello(nil, v.hello) },
	}
}

// over makes a link over a connection.
func (v *villain) over(t *testing.T, c net.Conn) (*link.Session, error) {
	t.Helper()
	s, err := link.Client(t.Context(), c, v.config(), nil)
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// dial makes a link to a peer.
func (v *villain) dial(t *testing.T, p *Peer) *link.Session {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.over(t, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// listener returns one that the test serves itself, and its address.
func listener(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, addrPort(l.Addr())
}

// closedPort is an address at which nobody listens.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, addr := listener(t)
	l.Close()
	return addr
}

// What a member asks before it has proved its address is not left waiting when it cannot.
func TestAskingBeforeProof(t *testing.T) {
	p := bound(t, Options{})
	l, claimed := listener(t)
	v := newVillain(claimed)
	mine, theirs := net.Pipe() // which comes from no address
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.welcomeNative(t.Context(), theirs, Direct, member.Contact{})
	}()
	s, err := v.over(t, mine)
	if err != nil {
		t.Fatal(err)
	}
	back, err := l.Accept() // the peer looks whether the address leads to the member
	if err != nil {
		t.Fatal(err)
	}
	go s.Call(t.Context(), wire.Append(nil, wire.Ping{}))
	go s.Open(t.Context(), appendHeader(nil, header{kind: headerService, service: "x"}))
	go s.Send(t.Context(), []byte{envelopePlain, 1})
	s.Cast(wire.Append(nil, wire.Have{}))
	eventually(t, "what was asked waits", func() bool { return running("swarm.(*session).up") == 4 })
	back.Close()
	<-done
	eventually(t, "nothing waits any more", func() bool { return running("swarm.(*session).up") == 0 })
	if p.links.live(v.hello.contact.ID) != nil {
		t.Error("it was let in")
	}
	if p.Pending() != 0 {
		t.Error("its message was delivered")
	}
}

// Every request of the protocol finds somebody who knows it.
func TestAllRequestsAreKnown(t *testing.T) {
	p := bound(t, Options{})
	v := newVillain(closedPort(t))
	s := &session{peer: p, contact: v.hello.contact}
	for _, m := range []wire.Message{
		wire.Ping{}, wire.State{}, wire.Lookup{}, wire.Step{}, wire.Fetch{}, wire.Push{}, wire.Want{}, wire.Offer{}, wire.Notify{},
		wire.Attach{}, wire.Store{},
	} {
		if refused, ok := p.answer(context.Background(), s, m).(wire.Refused); ok && refused.Code == wire.Unsupported {
			t.Errorf("%s: %v", m.Kind(), refused)
		}
	}
}

// In an open swarm a host is not believed who is at the other end of a circuit, nor is whoever is there.
func TestCircuitsInOthersNames(t *testing.T) {
	p, x := bound(t, Options{}), bound(t, Options{})
	if err := x.Connect(t.Context(), p.Addr().String()); err != nil {
		t.Fatal(err)
	}
	nobody := closedPort(t)
	for what, claimed := range map[string]netip.AddrPort{"a member": x.Addr(), "nobody": nobody} {
		for _, private := range []bool{false, true} {
			host, v := newVillain(closedPort(t)), newVillain(claimed)
			v.hello.private = private
			raw, err := host.dial(t, p).Open(t.Context(), appendHeader(nil, header{kind: headerMet, from: v.hello.contact}))
			if err != nil {
				t.Fatal(err)
			}
			if s, err := v.over(t, raw); err == nil {
				if err := s.Send(t.Context(), []byte{envelopePlain, 1}); err == nil {
					t.Errorf("a message in the name of %s (private %t) was taken", what, private)
				}
			}
			if s := p.links.live(v.hello.contact.ID); s != nil && s.contact.Key.Equal(v.identity.Public()) {
				t.Errorf("the link in the name of %s (private %t) is in use", what, private)
			}
		}
	}
	if n := p.Pending(); n > 0 {
		t.Errorf("%d messages in others' names", n)
	}
	if err := p.Send(t.Context(), ToID(x.ID()), []byte("x")); err != nil {
		t.Errorf("the member itself: %v", err)
	}
	if m, err := x.Recv(t.Context()); err != nil || string(m.Data) != "x" {
		t.Errorf("%+v, %v", m, err)
	}
}

// Who comes from the host of a member does not get its place; whoever answers at its address does.
func TestTwoKeysAtOneAddress(t *testing.T) {
	p, x := bound(t, Options{}), New(Options{})
	if err := x.Bind(t.Context(), "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if err := x.Connect(t.Context(), p.Addr().String()); err != nil {
		t.Fatal(err)
	}
	claimed := x.Addr()
	v := newVillain(claimed)
	s := v.dial(t, p)
	if err := s.Send(t.Context(), []byte{envelopePlain, 1}); err == nil {
		t.Error("a message in the name of another was taken")
	}
	if s := p.links.live(x.ID()); s == nil || !s.contact.Key.Equal(x.identity.Public()) {
		t.Error("the member has lost its link")
	}
	// It is gone, and another has the address before that was noticed.
	stale := p.links.live(x.ID())
	x.Close()
	again := New(Options{})
	defer again.Close()
	if err := again.Bind(t.Context(), claimed.String()); err != nil {
		t.Fatal(err)
	}
	p.links.mu.Lock()
	p.links.members[stale.contact.ID].sessions = []*session{stale}
	p.links.mu.Unlock()
	if err := again.Connect(t.Context(), p.Addr().String()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new one has the place", func() bool {
		s := p.links.live(again.ID())
		return s != nil && s.contact.Key.Equal(again.identity.Public())
	})
}

// A link that this side makes for a question is no way in for who answers.
func TestAnsweringAQuestion(t *testing.T) {
	p := bound(t, Options{})
	l, addr := listener(t)
	v := newVillain(addr)
	accepted := make(chan *link.Session, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s, err := link.Server(context.Background(), c, v.config())
		if err == nil {
			accepted <- s
		}
	}()
	own, err := p.dialFor(t.Context(), addr, wanted{dialled: true, to: member.Contact{Dialect: member.Native}, private: true})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	s := <-accepted
	defer s.Close()
	if err := s.Send(t.Context(), []byte{envelopePlain, 1}); err == nil || p.Pending() > 0 {
		t.Error("a message of a stranger was taken")
	}
}
