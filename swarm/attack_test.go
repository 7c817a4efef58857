// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/link"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/trust"
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
	answer   func(m wire.Message) wire.Message
	streams  chan net.Conn // that others open; nil: they are accepted and forgotten
	messages chan struct{} // gets one for each, which is acknowledged when hold is closed; nil: they are accepted
	hold     chan struct{}
}

func newVillain(claimed netip.AddrPort) *villain {
	v := &villain{identity: member.NewIdentity()}
	v.hello.contact = member.Contact{
		ID: member.OfAddr(claimed), Dialect: member.Native, Key: v.identity.Public(), Addrs: []netip.AddrPort{claimed},
	}
	return v
}

func (v *villain) Request(_ *link.Session, b []byte, reply func([]byte)) {
	m, err := wire.Decode(b)
	if v.answer == nil || err != nil {
		reply(nil)
		return
	}
	reply(wire.Append(nil, v.answer(m)))
}

func (v *villain) Cast(*link.Session, []byte) {}
func (v *villain) Message(*link.Session, []byte) error {
	if v.messages != nil {
		v.messages <- struct{}{}
		<-v.hold
	}
	return nil
}

func (v *villain) Stream(_ *link.Session, _ []byte, c net.Conn) error {
	if v.streams != nil {
		v.streams <- c
	}
	return nil
}

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
	c, err := net.Dial("tcp", p.listener.Addr().String())
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
		p.welcomeNative(t.Context(), theirs)
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
		wire.Ping{},
		wire.State{},
		wire.Lookup{},
		wire.Step{},
		wire.Fetch{},
		wire.Push{},
		wire.Want{},
		wire.Offer{},
		wire.Notify{},
		wire.Attach{},
		wire.Store{},
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

// Links that others make are bounded: in all, from one host, and for one member.
func TestLinksAreBounded(t *testing.T) {
	for _, c := range []struct {
		name             string
		most, mostOfHost int
		oneMember        bool
		want             int
	}{
		{"in all", 3, maxLinksPerHost, false, 3},
		{"of a host", maxLinks, 4, false, 4},
		{"of a member", maxLinks, maxLinksPerHost, true, maxLinksPerMember},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := bound(t, Options{})
			p.links.most, p.links.mostPerHost = c.most, c.mostOfHost
			count := func() int {
				p.links.mu.Lock()
				defer p.links.mu.Unlock()
				n := 0
				for _, h := range p.links.hosts {
					n += h
				}
				if n != p.links.count {
					t.Errorf("%d links of hosts, %d in all", n, p.links.count)
				}
				return n
			}
			v := newVillain(closedPort(t))
			var links []*link.Session
			for range c.want + 2 {
				if !c.oneMember {
					v = newVillain(closedPort(t))
				}
				links = append(links, v.dial(t, p))
			}
			// Which of them come too late is for the peer's scheduler to say.
			eventually(t, "those too many are ended", func() bool {
				ended := 0
				for _, s := range links {
					select {
					case <-s.Done():
						ended++
					default:
					}
				}
				return ended >= len(links)-c.want
			})
			if n := count(); n != c.want {
				t.Errorf("%d links, want %d", n, c.want)
			}
			for _, s := range links {
				s.Close()
			}
			eventually(t, "there is room again", func() bool { return count() == 0 })
		})
	}
	for addr, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7", "[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::", "[::ffff:192.0.2.7]:1": "192.0.2.7",
	} {
		if got := hostOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got.String() != want {
			t.Errorf("host of %s: %s", addr, got)
		}
	}
}

// What somebody says about where a member is keeps nobody from reaching it who knows better.
func TestFalseAddresses(t *testing.T) {
	deaf, silent := listener(t) // a connection is made, and that is all
	defer deaf.Close()
	for what, addr := range map[string]netip.AddrPort{"nobody answers": silent, "nobody is there": closedPort(t)} {
		p, x := bound(t, Options{Binding: member.ByKey}), bound(t, Options{Binding: member.ByKey})
		hearsay := x.contact()
		hearsay.Addrs = []netip.AddrPort{addr}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := p.links.session(ctx, hearsay); err == nil {
			t.Errorf("linked where %s", what)
		}
		cancel()
		began := time.Now()
		_, err := p.links.session(t.Context(), x.contact())
		if took := time.Since(began); err != nil || took >= dialTimeout {
			t.Errorf("where %s: %v after %v", what, err, took)
		}
	}
}

// A peer whose address changes several times at once is at one place in the end.
func TestMovingTwiceAtOnce(t *testing.T) {
	p := bound(t, Options{})
	done := make(chan struct{})
	for i := range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			p.setSelf(t.Context(), func(c *member.Contact) {
				c.Addrs = prefer(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1000+i)), c.Addrs)
			})
		}()
	}
	for range 8 {
		<-done
	}
	time.Sleep(10 * time.Millisecond) // for the last one to begin, and others to have ended
	eventually(t, "one place on the ring", func() bool { return running("ring.(*Node).Run") == 1 })
	if n := len(p.contact().Addrs); n != member.MaxAddrs {
		t.Errorf("%d addresses, want %d", n, member.MaxAddrs)
	}
}

func TestObservedNonsense(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:1", "[::]:1", "224.0.0.1:5", "255.255.255.255:9", "192.0.2.1:0"} {
		b := appendHello(nil, hello{observed: netip.MustParseAddrPort(addr), contact: newVillain(netip.MustParseAddrPort("192.0.2.1:1")).hello.contact})
		if h, err := decodeHello(b); err != nil || h.observed.IsValid() {
			t.Errorf("%s: %v, %v", addr, h.observed, err)
		}
	}
}

// Trying addresses for others takes a bounded number of connections.
func TestTryingIsBounded(t *testing.T) {
	p := bound(t, Options{})
	deaf, silent := listener(t)
	defer deaf.Close()
	v := newVillain(silent)
	v.hello.private = true
	s := v.dial(t, p)
	try := func() wire.Message {
		b, err := s.Call(t.Context(), wire.Append(nil, wire.Try{From: v.hello.contact}))
		if err != nil {
			t.Error(err)
			return nil
		}
		m, err := wire.Decode(b)
		if err != nil {
			t.Error(err)
		}
		return m
	}
	answers := make(chan wire.Message)
	for range 5 {
		go func() { answers <- try() }()
	}
	refused := 0
	for range 5 {
		if r, ok := (<-answers).(wire.Refused); ok && r.Code == wire.Overloaded {
			refused++
		}
	}
	if refused != 4 {
		t.Errorf("%d of 5 requests at once are refused, want 4", refused)
	}
	p.tries.Store(maxTries)
	if r, ok := try().(wire.Refused); !ok || r.Code != wire.Overloaded {
		t.Error("there is no bound for all members together")
	}
	if n := p.tries.Load(); n != maxTries {
		t.Errorf("%d tries are counted, want %d", n, maxTries)
	}
}

// A member can have so many circuits carried, also when it opens them at once, and none inside another.
func TestCircuitsAreBounded(t *testing.T) {
	p := bound(t, Options{})
	a, b := newVillain(closedPort(t)), newVillain(closedPort(t))
	b.streams = make(chan net.Conn, 100)
	from := a.dial(t, p)
	b.dial(t, p)
	eventually(t, "both are linked", func() bool {
		return p.links.live(a.hello.contact.ID) != nil && p.links.live(b.hello.contact.ID) != nil
	})
	opened := make(chan error)
	for range 60 {
		go func() {
			_, err := from.Open(t.Context(), appendHeader(nil, header{kind: headerCircuit, to: b.hello.contact.ID}))
			opened <- err
		}()
	}
	good := 0
	for range 60 {
		if <-opened == nil {
			good++
		}
	}
	if good != maxCircuitsPerMember {
		t.Errorf("%d circuits, want %d", good, maxCircuitsPerMember)
	}
	for range good {
		select {
		case <-b.streams:
		case <-time.After(20 * time.Second):
			t.Fatal("a circuit does not arrive")
		}
	}
	s := &session{peer: p, contact: newVillain(closedPort(t)).hello.contact, how: Circuit}
	if err := p.carry(s, b.hello.contact.ID, nil); !errors.Is(err, errNested) {
		t.Errorf("a circuit inside a circuit: %v", err)
	}
}

// Nobody can make a peer knock at the doors of its own machine, unless the swarm is there.
func TestLocalAddresses(t *testing.T) {
	p := bound(t, Options{})
	p.setSelf(t.Context(), func(c *member.Contact) { c.Addrs = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1000")} })
	l, inside := listener(t)
	v := newVillain(inside)
	if _, err := p.dialDirect(t.Context(), v.hello.contact); err == nil {
		t.Error("dialled")
	}
	if err := p.proves(t.Context(), v.hello.contact); err == nil {
		t.Error("dialled for a proof")
	}
	if l, ok := l.(*net.TCPListener); ok {
		l.SetDeadline(time.Now().Add(50 * time.Millisecond))
	}
	if _, err := l.Accept(); err == nil {
		t.Error("somebody knocked")
	}
	for addr, want := range map[string]bool{"127.0.0.1": false, "::1": false, "169.254.169.254": false, "fe80::1": false, "192.0.2.1": true, "2001:db8::1": true} {
		if p.mayDial(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s: %t", addr, !want)
		}
	}
	// One that has come from this machine shows that the swarm is here.
	newVillain(closedPort(t)).dial(t, p)
	eventually(t, "addresses here are dialled", func() bool { return p.mayDial(inside.Addr()) })
}

// In a secure swarm anybody can say that an address is its own; messages go to who is there.
func TestAddressOfAnother(t *testing.T) {
	secure := Options{Binding: member.ByKey}
	p, x := bound(t, secure), bound(t, secure)
	squatter := bound(t, Options{Binding: member.ByKey, Name: x.Addr().String()})
	squatter.setSelf(t.Context(), func(c *member.Contact) { c.Addrs = append(c.Addrs, x.Addr()) })
	for _, other := range []*Peer{squatter, x} {
		if s := p.links.at(x.Addr()); s != nil {
			t.Errorf("%s is known by the address of another", s.contact)
		}
		if err := other.Connect(t.Context(), p.Addr().String()); err != nil {
			t.Fatal(err)
		}
	}
	p.links.drop() // the first to be asked for is none that is linked already
	for range 2 {
		if err := p.Send(t.Context(), ToAddrPort(x.Addr()), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if x.Pending() != 2 || squatter.Pending() != 0 {
		t.Errorf("%d messages are where they belong, %d with another", x.Pending(), squatter.Pending())
	}
	if s := p.links.at(x.Addr()); s == nil || s.contact.ID != x.ID() {
		t.Error("another is known by the address")
	}
}

// Errors of sending are those that Send's comment names.
func TestErrorsOfSending(t *testing.T) {
	p := bound(t, Options{})
	if err := p.Send(t.Context(), ToName("x"), nil); !errors.Is(err, ErrAlone) || !errors.Is(err, ErrNoSuchMember) {
		t.Errorf("alone: %v", err)
	}
	v := newVillain(closedPort(t))
	v.messages, v.hold = make(chan struct{}, 2), make(chan struct{})
	s := v.dial(t, p)
	eventually(t, "it is linked", func() bool { return p.links.live(v.hello.contact.ID) != nil })
	told := make(chan error, 2)
	if err := p.SendAsync(t.Context(), ToID(v.hello.contact.ID), []byte("x"), func(err error) { told <- err }); err != nil {
		t.Fatal(err)
	}
	go func() { told <- p.Send(t.Context(), ToID(v.hello.contact.ID), []byte("x")) }()
	<-v.messages // the first has arrived, and is not acknowledged
	s.Bye(link.CodeRefused, "no more")
	for range 2 {
		if err := <-told; !errors.Is(err, ErrUnreachable) {
			t.Errorf("the link ended: %v", err)
		}
	}
	close(v.hold)
}

func TestErrorOfFullQueue(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	p, x := bound(t, Options{}), bound(t, Options{QueueLength: 1})
	if err := x.Connect(t.Context(), p.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if err := p.Send(t.Context(), ToID(x.ID()), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := p.Send(t.Context(), ToID(x.ID()), []byte("x")); !errors.Is(err, ErrQueueFull) || errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}

func TestPacketConnClosed(t *testing.T) {
	p := bound(t, Options{})
	c := p.PacketConn()
	waiting := make(chan error)
	go func() {
		_, _, err := c.ReadFrom(nil)
		waiting <- err
	}()
	eventually(t, "it waits", func() bool { return running("swarm.(*inbox).take") == 1 })
	c.Close()
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the one that waited: %v", err)
	}
	c.SetDeadline(time.Now().Add(time.Hour))
	if _, _, err := c.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.WriteTo(nil, c.LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if _, err := p.PacketConn().WriteTo(nil, nil); !errors.Is(err, errNoAddress) {
		t.Errorf("write to nobody: %v", err)
	}
}

// A Connect under way ends with the membership that it is about.
func TestDisconnectWhileConnecting(t *testing.T) {
	for what, end := range map[string]func(p *Peer) error{
		"disconnect": func(p *Peer) error { return p.Disconnect(t.Context()) },
		"close":      (*Peer).Close,
	} {
		p := bound(t, Options{})
		deaf, silent := listener(t)
		result := make(chan error)
		go func() { result <- p.Connect(t.Context(), silent.String()) }()
		c, err := deaf.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Connect(t.Context(), silent.String()); !errors.Is(err, ErrConnected) {
			t.Errorf("a second Connect: %v", err)
		}
		began := time.Now()
		if err := end(p); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := <-result; !errors.Is(err, ErrNoEntry) || !errors.Is(err, net.ErrClosed) || time.Since(began) >= dialTimeout {
			t.Errorf("%s: Connect returns %v, after %v", what, err, time.Since(began))
		}
		if p.isConnected() {
			t.Errorf("%s: connected", what)
		}
		c.Close()
	}
}

// Further addresses that come with a member's ID are not always its own.
func TestHearsayWithAnothersAddress(t *testing.T) {
	p, x := bound(t, Options{}), bound(t, Options{})
	l, addr := listener(t)
	v := newVillain(x.Addr())
	v.hello.contact.Addrs = append(v.hello.contact.Addrs, addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				if s, err := link.Server(context.Background(), c, v.config()); err == nil {
					<-s.Done()
				}
			}()
		}
	}()
	if s, err := p.links.session(t.Context(), v.hello.contact); err == nil {
		t.Errorf("%x answers for %s", s.contact.Key[:4], x.contact())
	}
	s, err := p.links.session(t.Context(), x.contact())
	if err != nil || !s.contact.Key.Equal(x.identity.Public()) {
		t.Errorf("the member itself: %v", err)
	}
}

// Who answers a lookup with another address does not get what was to be sealed for the one that was meant.
func TestLookupWithAnothersAddress(t *testing.T) {
	p := bound(t, Options{})
	l, evil := listener(t)
	v := newVillain(evil)
	// A place that the villain is asked for.
	wanted := netip.MustParseAddrPort("192.0.2.1:1")
	for id := member.OfAddr(wanted); id.Distance(p.ID()).Compare(id.Distance(v.hello.contact.ID)) < 0; id = member.OfAddr(wanted) {
		wanted = netip.AddrPortFrom(wanted.Addr(), wanted.Port()+1)
	}
	table, err := trust.Parse(fmt.Appendf(nil, `{"trusted_hosts": [{"address": %q, "outbound_key": "out", "inbound_key": "in"}]}`, wanted))
	if err != nil {
		t.Fatal(err)
	}
	p.o.Trust = table
	asked := make(chan struct{}, 100)
	v.answer = func(m wire.Message) wire.Message {
		switch m := m.(type) {
		case wire.Lookup:
			asked <- struct{}{}
			return wire.Found{Key: m.Key, Owner: member.Contact{ID: m.Key, Addrs: []netip.AddrPort{evil}}, Hops: 1}
		case wire.State, wire.Notify:
			return wire.Neighbours{Self: v.hello.contact}
		default:
			return wire.Pong{}
		}
	}
	v.dial(t, p)
	eventually(t, "it is in the table", func() bool { return len(p.node().Table()) == 1 })
	c, payload, err := p.prepare(t.Context(), ToAddrPort(wanted), []byte("secret"), lookupPlain)
	if !errors.Is(err, ErrNoSuchMember) {
		t.Errorf("%q would go to %s (%v)", payload, c, err)
	}
	if len(asked) == 0 {
		t.Error("the villain was not asked")
	}
	l.Close()
}
