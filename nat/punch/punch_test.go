// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/nat/natsim"
	"github.com/seed5728abee/fathom/nat/punch"
	"github.com/seed5728abee/fathom/nat/stun"
)

var (
	addr = netip.MustParseAddr
	ap   = netip.MustParseAddrPort
)

// observeTCP connects to the servers as links of a swarm do, and gives what they have seen.
func (w *world) observeTCP(t testing.TB, x *peer) (seen []punch.Candidate) {
	t.Helper()
	for _, s := range w.servers {
		c, err := x.host.DialTCP(t.Context(), ap("0.0.0.0:4001"), s.p.UDPAddr())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("?"))
		there := <-s.others
		seen = append(seen, punch.Candidate{Proto: punch.TCP, Kind: punch.Observed, Addr: there.RemoteAddr().(*net.TCPAddr).AddrPort()})
		c.Close()
		there.Close()
	}
	return seen
}

// peer is a host with a listener and a Puncher.
type peer struct {
	t        testing.TB
	host     *natsim.Host // where it is simulated
	p        *punch.Puncher
	listener net.Listener
	accepted sync.WaitGroup
	others   chan net.Conn // what was accepted and was not of an attempt
}

// withoutTCP is a network where connecting from a shared port is not possible.
type withoutTCP struct{ punch.Network }

func (withoutTCP) DialTCP(context.Context, netip.AddrPort, netip.AddrPort) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

// withoutUDP is a network that lets no UDP out.
type withoutUDP struct{ punch.Network }

type deafConn struct{ net.PacketConn }

func (deafConn) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), nil }
func (deafConn) SetReadBuffer(int) error                   { return nil }
func (deafConn) SetWriteBuffer(int) error                  { return nil }

func (n withoutUDP) ListenUDP(a netip.AddrPort) (net.PacketConn, error) {
	c, err := n.Network.ListenUDP(a)
	return deafConn{c}, err
}

// newPeer starts a peer in a simulated network, seen by it as only says.
func newPeer(t testing.TB, h *natsim.Host, only punch.Proto) *peer {
	t.Helper()
	var network punch.Network = h
	switch only {
	case punch.UDP:
		network = withoutTCP{h}
	case punch.TCP:
		network = withoutUDP{h}
	}
	p, err := punch.New(punch.Options{Listen: ap("0.0.0.0:4001"), Network: network})
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.ListenTCP(ap("0.0.0.0:4001"))
	if err != nil {
		t.Fatal(err)
	}
	x := start(t, p, l)
	x.host = h
	return x
}

func start(t testing.TB, p *punch.Puncher, l net.Listener) *peer {
	x := &peer{t: t, p: p, listener: l, others: make(chan net.Conn, 10)}
	x.accepted.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			x.accepted.Go(func() {
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				rest, taken, err := p.Take(c)
				if err != nil {
					c.Close()
				} else if !taken {
					x.others <- rest
				}
			})
		}
	})
	return x
}

func (x *peer) close() {
	if err := x.p.Close(); err != nil {
		x.t.Error(err)
	}
	x.listener.Close()
	x.accepted.Wait()
	for {
		select {
		case c := <-x.others:
			c.Close()
		default:
			return
		}
	}
}

// offer makes an offer and carries it as bytes.
func (x *peer) offer(known ...punch.Candidate) (mine, carried punch.Offer) {
	x.t.Helper()
	o, err := x.p.Offer(known...)
	if err != nil {
		x.t.Fatal(err)
	}
	b, err := o.Append(nil)
	if err != nil {
		x.t.Fatal(err)
	}
	carried, err = punch.ParseOffer(b)
	if err != nil {
		x.t.Fatal(err)
	}
	return o, carried
}

// punchBoth makes an attempt between two peers, b so much later than a.
func punchBoth(t testing.TB, a, b *peer, skew time.Duration, knownA, knownB []punch.Candidate) (results [2]punch.Result, errs [2]error) {
	t.Helper()
	mine, toB := a.offer(knownA...)
	theirs, toA := b.offer(knownB...)
	return attempt(t, a, b, skew, mine, toB, theirs, toA, 0)
}

func attempt(t testing.TB, a, b *peer, skew time.Duration, mine, toB, theirs, toA punch.Offer, timeout time.Duration) (results [2]punch.Result, errs [2]error) {
	var wg sync.WaitGroup
	now := time.Now()
	wg.Go(func() {
		results[0], errs[0] = a.p.Punch(t.Context(), punch.Attempt{Mine: mine, Theirs: toA, Initiator: true, Start: now, Timeout: timeout})
	})
	wg.Go(func() {
		results[1], errs[1] = b.p.Punch(t.Context(), punch.Attempt{Mine: theirs, Theirs: toB, Start: now.Add(skew), Timeout: timeout})
	})
	wg.Wait()
	return results, errs
}

// talk checks that two results are the ends of one connection, and closes it.
func talk(t testing.TB, r [2]punch.Result) {
	t.Helper()
	if r[0].How != r[1].How {
		t.Errorf("connected over %v and over %v", r[0].How, r[1].How)
	}
	for i := range r {
		from, to := r[i].Conn, r[1-i].Conn
		text := fmt.Sprint("hello from ", i)
		if _, err := io.WriteString(from, text); err != nil {
			t.Error(err)
		}
		b := make([]byte, len(text))
		_ = to.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(to, b); err != nil || string(b) != text {
			t.Errorf("read %q, %v", b, err)
		}
	}
	r[0].Conn.Close()
	if rest, err := io.ReadAll(r[1].Conn); err != nil || len(rest) > 0 {
		t.Errorf("after the other side had closed, read %q, %v", rest, err)
	}
	r[1].Conn.Close()
}

// world is two peers behind NATs, and two public ones that tell what they see.
type world struct {
	a, b    *peer
	servers []*peer
}

func newWorld(t testing.TB, o natsim.Options, a, b natsim.NATConfig, only punch.Proto) *world {
	t.Helper()
	n := natsim.New(o)
	w := &world{}
	for _, s := range []string{"192.0.2.1", "192.0.2.2"} {
		w.servers = append(w.servers, newPeer(t, n.Host(addr(s)), 0))
	}
	// Both have the same address inside, as homes do.
	w.a = newPeer(t, n.NAT(addr("203.0.113.1"), a).Host(addr("192.168.1.2")), only)
	w.b = newPeer(t, n.NAT(addr("203.0.113.2"), b).Host(addr("192.168.1.2")), only)
	return w
}

func (w *world) close() {
	for _, x := range append(w.servers, w.a, w.b) {
		x.close()
	}
}

func (w *world) observe(t testing.TB, x *peer) stun.Behaviour {
	t.Helper()
	b, err := x.p.Observe(t.Context(), w.servers[0].p.UDPAddr(), w.servers[1].p.UDPAddr())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEveryPairOfNATs punches between all kinds, over each transport alone: what RFC 4787's terms promise is what happens, and
// the rest fails in time for a relay to take over.
func TestEveryPairOfNATs(t *testing.T) {
	// What each kind is to the other side: whether its next mapping is known beforehand, and whether it lets in
	// who sends from another port than was sent to.
	type nature struct{ known, byPort bool }
	natures := map[string]nature{
		"full-cone":              {known: true},
		"restricted":             {known: true},
		"port-restricted":        {known: true, byPort: true},
		"port-restricted-random": {known: true, byPort: true},
		"symmetric-sequential":   {known: true, byPort: true},
		"symmetric-random":       {byPort: true},
	}
	passes := func(a, b nature) bool {
		return a.known && b.known || a.known && !a.byPort || b.known && !b.byPort
	}
	for proto, name := range []string{"both", punch.TCP: "tcp", punch.UDP: "udp"} {
		proto := punch.Proto(proto)
		if proto == 0 && testing.Short() {
			continue // little is left to find that the others do not
		}
		for _, ka := range natsim.Kinds() {
			for _, kb := range natsim.Kinds() {
				t.Run(fmt.Sprintf("%s/%s/%s", name, ka.Name, kb.Name), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t, natsim.Options{Delay: 25 * time.Millisecond, Seed: 7}, ka.NATConfig, kb.NATConfig, proto)
						defer w.close()
						var tcpA, tcpB []punch.Candidate
						if proto != punch.UDP {
							tcpA, tcpB = w.observeTCP(t, w.a), w.observeTCP(t, w.b)
						}
						if proto != punch.TCP {
							w.observe(t, w.a)
							w.observe(t, w.b)
						}
						begin := time.Now()
						r, errs := punchBoth(t, w.a, w.b, 5*time.Millisecond, tcpA, tcpB)
						took := time.Since(begin)
						want := passes(natures[ka.Name], natures[kb.Name])
						switch {
						case want && errs[0] == nil && errs[1] == nil:
							if proto != 0 && r[0].How != proto || took > 500*time.Millisecond {
								t.Errorf("connected over %v after %v", r[0].How, took)
							}
							talk(t, r)
						case want:
							t.Errorf("not connected after %v: %v", took, errs)
						case errs[0] == nil || errs[1] == nil:
							t.Errorf("connected over %v: %v", r[0].How, errs)
						default:
							for _, err := range errs {
								if !errors.Is(err, punch.ErrFailed) {
									t.Errorf("failed with %v", err)
								}
							}
							if took > 1100*time.Millisecond {
								t.Errorf("failed after %v", took)
							}
						}
					})
				})
			}
		}
	}
}
