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
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"github.com/seed5728abee/fathom/nat/natsim"
	"github.com/seed5728abee/fathom/nat/punch"
	"github.com/seed5728abee/fathom/nat/stun"
)

var home = natsim.NATConfig{Filtering: natsim.AddressAndPortDependent}

// Two peers behind NATs, with everything that is needed to connect them.
func Example() {
	// In a program the network is the default, and the listener is made by punch.ListenTCP.
	network := natsim.New(natsim.Options{Delay: time.Millisecond})
	type side struct {
		p *punch.Puncher
		l net.Listener
	}
	peer := func(h *natsim.Host) side {
		p, err := punch.New(punch.Options{Listen: ap("0.0.0.0:4001"), Network: h})
		if err != nil {
			panic(err)
		}
		l, err := h.ListenTCP(ap("0.0.0.0:4001"))
		if err != nil {
			panic(err)
		}
		return side{p, l}
	}
	accept := func(x side) {
		for {
			c, err := x.l.Accept()
			if err != nil {
				return
			}
			go func() {
				if rest, taken, err := x.p.Take(c); err != nil || !taken {
					rest.Close() // in a program: what else the listener is for
				}
			}()
		}
	}
	a := peer(network.NAT(addr("203.0.113.1"), home).Host(addr("192.168.1.2")))
	b := peer(network.NAT(addr("203.0.113.2"), home).Host(addr("192.168.1.2")))
	common := peer(network.Host(addr("192.0.2.1")))
	var wg sync.WaitGroup
	for _, x := range []side{a, b, common} {
		defer x.p.Close()
		wg.Go(func() { accept(x) })
	}

	// Both ask the common peer how they look from outside, and give it their offers, which it exchanges.
	ctx := context.Background()
	var offers [2]punch.Offer
	for i, x := range []side{a, b} {
		if _, err := x.p.Observe(ctx, common.p.UDPAddr()); err != nil {
			panic(err)
		}
		offers[i], _ = x.p.Offer()
	}

	// Then both start at the same moment.
	var conns [2]net.Conn
	var punching sync.WaitGroup
	for i, x := range []side{a, b} {
		punching.Go(func() {
			r, err := x.p.Punch(ctx, punch.Attempt{Mine: offers[i], Theirs: offers[1-i], Initiator: i == 0})
			if err != nil {
				panic(err)
			}
			conns[i] = r.Conn
		})
	}
	punching.Wait()
	_, _ = io.WriteString(conns[0], "hello")
	conns[0].Close()
	text, _ := io.ReadAll(conns[1])
	conns[1].Close()
	fmt.Println(string(text))
	for _, x := range []side{a, b, common} {
		x.l.Close()
	}
	wg.Wait()
	// Output: hello
}

// Whatever is lost or late, both sides have the same connection, or none.
func TestBothSidesAgree(t *testing.T) {
	succeeded, attempts := 0, uint64(60)
	if testing.Short() {
		attempts = 15
	}
	for seed := range attempts {
		o := natsim.Options{
			Delay:  time.Duration(5+seed*7%90) * time.Millisecond,
			Jitter: time.Duration(seed%3) * 10 * time.Millisecond,
			Loss:   float64(seed%4) * 0.1,
			Seed:   seed,
		}
		synctest.Test(t, func(t *testing.T) {
			cfg := home
			cfg.Reject = seed%2 == 0
			w := newWorld(t, o, cfg, home, 0)
			defer w.close()
			_, errA := w.a.p.Observe(t.Context(), w.servers[0].p.UDPAddr(), w.servers[1].p.UDPAddr())
			_, errB := w.b.p.Observe(t.Context(), w.servers[0].p.UDPAddr(), w.servers[1].p.UDPAddr())
			if errA != nil || errB != nil {
				return // everything was lost
			}
			r, errs := punchBoth(t, w.a, w.b, o.Delay/2, nil, nil)
			switch {
			case errs[0] == nil && errs[1] == nil:
				succeeded++
				talk(t, r)
			case errs[0] != nil && errs[1] != nil:
				t.Logf("%+v: %v", o, errs[0])
			default: // the choice came too late; the other side sees the connection end
				t.Logf("%+v: %v", o, errs)
				for i := range r {
					if errs[i] == nil {
						_ = r[i].Conn.SetReadDeadline(time.Now().Add(time.Minute))
						if _, err := r[i].Conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("%+v: one side has a connection, which lives: %v", o, err)
						}
						r[i].Conn.Close()
					}
				}
			}
		})
	}
	if uint64(succeeded) < attempts*9/10 {
		t.Errorf("%d of %d came about", succeeded, attempts)
	}
}

// TCP is taken where both work, and a side that begins late is waited for.
func TestPreferenceAndSkew(t *testing.T) {
	for _, skew := range []time.Duration{0, 20 * time.Millisecond, 300 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, natsim.Options{Delay: 30 * time.Millisecond}, home, home, 0)
			defer w.close()
			w.observe(t, w.a)
			w.observe(t, w.b)
			r, errs := punchBoth(t, w.a, w.b, skew, nil, nil)
			if errs[0] != nil || errs[1] != nil {
				t.Fatal(errs)
			}
			if r[0].How != punch.TCP || r[1].How != punch.TCP {
				t.Errorf("skew %v: connected over %v", skew, r[0].How)
			}
			if r[1].Took > 250*time.Millisecond {
				t.Errorf("skew %v: took %v and %v", skew, r[0].Took, r[1].Took)
			}
			talk(t, r)
		})
	}
}

// Peers of one network find each other inside it, though their NAT sends nothing back in.
func TestSameNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natsim.New(natsim.Options{Delay: 30 * time.Millisecond})
		gateway := n.NAT(addr("203.0.113.1"), home)
		a, b := newPeer(t, gateway.Host(addr("192.168.1.2")), 0), newPeer(t, gateway.Host(addr("192.168.1.3")), 0)
		defer a.close()
		defer b.close()
		r, errs := punchBoth(t, a, b, 0, nil, nil)
		if errs[0] != nil || errs[1] != nil {
			t.Fatal(errs)
		}
		if r[0].Remote != ap("192.168.1.3:4001") || r[0].Took > 10*time.Millisecond {
			t.Errorf("connected to %v after %v", r[0].Remote, r[0].Took)
		}
		talk(t, r)
	})
}

// One host of each home has the address that the peer of the other home has, and answers there.
func TestStrangersAtPrivateAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natsim.New(natsim.Options{Delay: 30 * time.Millisecond})
		one, two := n.NAT(addr("203.0.113.1"), home), n.NAT(addr("203.0.113.2"), home)
		a, b := newPeer(t, one.Host(addr("192.168.1.2")), 0), newPeer(t, two.Host(addr("192.168.1.3")), 0)
		defer a.close()
		defer b.close()
		mirror, err := one.Host(addr("192.168.1.3")).ListenTCP(ap("0.0.0.0:4001"))
		if err != nil {
			t.Fatal(err)
		}
		another := newPeer(t, two.Host(addr("192.168.1.2")), 0) // a peer like any other, of other attempts
		defer another.close()
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := mirror.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					_, _ = io.Copy(c, c)
					c.Close()
				})
			}
		})
		outside := []netip.AddrPort{ap("203.0.113.1:4001"), ap("203.0.113.2:4001")}
		seen := func(i int) []punch.Candidate {
			return []punch.Candidate{{Addr: outside[i], Proto: punch.TCP, Kind: punch.Observed}}
		}
		r, errs := punchBoth(t, a, b, 0, seen(0), seen(1))
		if errs[0] != nil || errs[1] != nil {
			t.Fatal(errs)
		}
		if r[0].Remote != outside[1] {
			t.Errorf("connected to %v", r[0].Remote)
		}
		talk(t, r)
		mirror.Close()
		wg.Wait()
		if another.p.Stats().Strangers == 0 {
			t.Error("the connections of strangers were not counted")
		}
	})
}

// A connection over UDP outlives the mappings of NATs, and what its ends have written reaches the other.
func TestUDPConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, natsim.Options{Delay: 30 * time.Millisecond, Loss: 0.05}, home, home, punch.UDP)
		defer w.close()
		w.observe(t, w.a)
		w.observe(t, w.b)
		r, errs := punchBoth(t, w.a, w.b, 0, nil, nil)
		if errs[0] != nil || errs[1] != nil {
			t.Fatal(errs)
		}
		time.Sleep(time.Hour)
		data := make([]byte, 300_000)
		for i := range data {
			data[i] = byte(i * i)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r[0].Conn.Write(data); err != nil {
				t.Error(err)
			}
			r[0].Conn.Close() // does not wait, and loses nothing
			if _, err := r[0].Conn.Write(data); !errors.Is(err, net.ErrClosed) {
				t.Errorf("wrote after closing: %v", err)
			}
			if _, err := r[0].Conn.Read(data[:1]); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after closing: %v", err)
			}
		})
		got, err := io.ReadAll(r[1].Conn)
		if err != nil || !slices.Equal(got, data) {
			t.Errorf("%d of %d bytes arrived, %v", len(got), len(data), err)
		}
		r[1].Conn.Close()
		wg.Wait()
	})
}

// The other side vanishes without a word: reading ends.
func TestUDPConnectionBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, natsim.Options{}, home, home, punch.UDP)
		defer w.close()
		w.observe(t, w.a)
		w.observe(t, w.b)
		r, errs := punchBoth(t, w.a, w.b, 0, nil, nil)
		if errs[0] != nil || errs[1] != nil {
			t.Fatal(errs)
		}
		_ = w.b.p.Close()
		if n, err := r[0].Conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("read %d bytes from who has gone", n)
		}
		if _, err := r[1].Conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the connection of a closed Puncher: %v", err)
		}
		r[0].Conn.Close()
		r[1].Conn.Close()
	})
}

// Offers that do not fit each other lead to nothing.
func TestForgedOffer(t *testing.T) {
	for name, forge := range map[string]func(o *punch.Offer){
		"share":       func(o *punch.Offer) { o.Share[0]++ },
		"certificate": func(o *punch.Offer) { o.Certificate[0]++ },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, natsim.Options{Delay: 10 * time.Millisecond}, natsim.NATConfig{}, natsim.NATConfig{}, 0)
			defer w.close()
			w.observe(t, w.a)
			w.observe(t, w.b)
			mine, toB := w.a.offer()
			theirs, toA := w.b.offer()
			forge(&toB)
			_, errs := attempt(t, w.a, w.b, 0, mine, toB, theirs, toA, 0)
			if !errors.Is(errs[0], punch.ErrFailed) || !errors.Is(errs[1], punch.ErrFailed) {
				t.Errorf("%s: %v", name, errs)
			}
			if s := w.b.p.Stats(); s.Dropped == 0 || s.Strangers == 0 {
				t.Errorf("%s: counted %+v", name, s)
			}
		})
	}
}

// recorder keeps the datagrams that a host sends.
type recorder struct {
	*natsim.Host
	mu   sync.Mutex
	sent [][]byte
}

type recordingConn struct {
	net.PacketConn
	r *recorder
}

func (recordingConn) SetReadBuffer(int) error  { return nil }
func (recordingConn) SetWriteBuffer(int) error { return nil }

func (r *recorder) ListenUDP(a netip.AddrPort) (net.PacketConn, error) {
	c, err := r.Host.ListenUDP(a)
	return recordingConn{c, r}, err
}

func (c recordingConn) WriteTo(b []byte, to net.Addr) (int, error) {
	c.r.mu.Lock()
	c.r.sent = append(c.r.sent, slices.Clone(b))
	c.r.mu.Unlock()
	return c.PacketConn.WriteTo(b, to)
}

// Somebody who has seen every datagram of a peer sends them again, from elsewhere, while the attempt is being made: the other
// peer has no answer to probes, none to QUIC that is longer, and is not disturbed. Neither is it by any other noise.
func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natsim.New(natsim.Options{Delay: 20 * time.Millisecond})
		rec := &recorder{Host: n.Host(addr("192.0.2.10"))}
		pa, err := punch.New(punch.Options{Listen: ap("0.0.0.0:4001"), Network: withoutTCP{rec}})
		if err != nil {
			t.Fatal(err)
		}
		la, err := rec.ListenTCP(ap("0.0.0.0:4001"))
		if err != nil {
			t.Fatal(err)
		}
		a := start(t, pa, la)
		defer a.close()
		b := newPeer(t, n.Host(addr("192.0.2.20")), punch.UDP)
		defer b.close()
		foe, err := n.Host(addr("198.51.100.1")).ListenUDP(ap("0.0.0.0:666"))
		if err != nil {
			t.Fatal(err)
		}
		heard, said, replayed := 0, 0, 0 // bytes
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				m := make([]byte, 2000)
				k, _, err := foe.ReadFrom(m)
				if err != nil {
					return
				}
				heard += k
				if m[0]&0xc0 == 0 { // not QUIC, which may say that it refuses
					t.Errorf("%x went to who replays", m[:k])
				}
			}
		})
		wg.Go(func() {
			for range 100 {
				time.Sleep(10 * time.Millisecond)
				rec.mu.Lock()
				all := slices.Clone(rec.sent)
				rec.mu.Unlock()
				for _, m := range all[replayed:] {
					replayed++
					said += len(m)
					// What the foe sends must come second, so it waits for as long as the original takes.
					time.AfterFunc(21*time.Millisecond, func() { _, _ = foe.WriteTo(m, net.UDPAddrFromAddrPort(ap("192.0.2.20:4001"))) })
				}
				_, _ = foe.WriteTo(make([]byte, 29), net.UDPAddrFromAddrPort(ap("192.0.2.20:4001")))
			}
			time.Sleep(time.Second)
			foe.Close()
		})
		r, errs := punchBoth(t, a, b, 0, nil, nil)
		if errs[0] != nil || errs[1] != nil {
			t.Fatal(errs)
		}
		talk(t, r)
		wg.Wait()
		if replayed < 10 || heard > said {
			t.Errorf("%d datagrams were replayed: %d bytes, answered with %d", replayed, said, heard)
		}
		if b.p.Stats().Dropped == 0 {
			t.Error("replayed probes were not counted")
		}
	})
}

// What is no attempt's is given back as it came.
func TestTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natsim.New(natsim.Options{})
		x := newPeer(t, n.Host(addr("192.0.2.1")), 0)
		defer x.close()
		client := n.Host(addr("192.0.2.2"))
		dial := func(say string) net.Conn {
			c, err := client.DialTCP(t.Context(), netip.AddrPort{}, ap("192.0.2.1:4001"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, say); err != nil {
				t.Fatal(err)
			}
			return c
		}
		for _, text := range []string{"ch\x00\x05 and so on", "\xf7hp\x02", "\xf7", "\xf7\xf7hp\x01"} {
			c := dial(text)
			c.Close()
			if text == "\xf7" { // ends before it is known to be another protocol
				continue
			}
			rest := <-x.others
			if got, err := io.ReadAll(rest); string(got) != text || err != nil {
				t.Errorf("%q came back as %q, %v", text, got, err)
			}
			rest.Close()
		}
		before := x.p.Stats().Strangers
		for _, text := range []string{"\xf7hp\x01", "\xf7hp\x01" + string(make([]byte, 24))} {
			c := dial(text)
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("%q was answered", text)
			}
			c.Close()
		}
		// As many as there is room for, and one more: it is closed at once.
		var many []net.Conn
		for range 65 {
			many = append(many, dial("\xf7hp\x01"))
		}
		closed := 0
		for _, c := range many {
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); err == io.EOF {
				closed++
			}
			c.Close()
		}
		if closed != 1 {
			t.Errorf("%d of 65 were closed at once, want 1", closed)
		}
		time.Sleep(5 * time.Second)
		if got := x.p.Stats().Strangers - before; got != 67 {
			t.Errorf("%d strangers counted, want 67", got)
		}
	})
}

// Close ends what is going on, at once.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, natsim.Options{Delay: 10 * time.Millisecond}, home, home, 0)
		defer w.close()
		w.observe(t, w.a)
		w.observe(t, w.b)
		mine, _ := w.a.offer()
		_, theirs := w.b.offer()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := w.a.p.Punch(t.Context(), punch.Attempt{Mine: mine, Theirs: theirs})
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("an attempt of a closed Puncher: %v", err)
			}
		})
		wg.Go(func() {
			_, err := w.a.p.Observe(t.Context(), ap("192.0.2.99:1"))
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("a question of a closed Puncher: %v", err)
			}
		})
		time.Sleep(100 * time.Millisecond)
		begin := time.Now()
		for range 2 {
			if err := w.a.p.Close(); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		if took := time.Since(begin); took > 0 {
			t.Errorf("closed after %v", took)
		}
		if _, err := w.a.p.Punch(t.Context(), punch.Attempt{Mine: mine, Theirs: theirs}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("punched with a closed Puncher: %v", err)
		}
	})
}

func TestPunchErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, natsim.Options{Delay: 10 * time.Millisecond}, home, home, 0)
		defer w.close()
		w.observe(t, w.a)
		w.observe(t, w.b)
		mine, _ := w.a.offer()
		_, theirs := w.b.offer()
		none := theirs
		none.Candidates = []punch.Candidate{{Addr: ap("127.0.0.1:22"), Proto: punch.TCP, Kind: punch.LAN}}
		if _, err := w.a.p.Punch(t.Context(), punch.Attempt{Mine: mine, Theirs: none}); !errors.Is(err, punch.ErrNoCandidates) {
			t.Errorf("with nothing but the own loopback address: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := w.a.p.Punch(ctx, punch.Attempt{Mine: mine, Theirs: theirs}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, punch.ErrFailed) {
			t.Errorf("with a short context: %v", err)
		}
		if _, err := w.a.p.Punch(ctx, punch.Attempt{Mine: mine, Theirs: theirs, Start: time.Now().Add(time.Hour)}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a context that ends before the start: %v", err)
		}
		var wg sync.WaitGroup
		busy := 0
		var mu sync.Mutex
		for range 70 {
			wg.Go(func() {
				mine, err := w.a.p.Offer()
				if err != nil {
					t.Error(err)
				}
				if _, err := w.a.p.Punch(t.Context(), punch.Attempt{Mine: mine, Theirs: theirs}); errors.Is(err, punch.ErrBusy) {
					mu.Lock()
					busy++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if busy != 6 {
			t.Errorf("%d of 70 attempts were refused", busy)
		}
	})
}

func TestObserve(t *testing.T) {
	for _, c := range []struct {
		cfg  natsim.NATConfig
		want stun.Mapping
		step int
	}{
		{natsim.NATConfig{}, stun.EndpointIndependent, 0},
		{natsim.NATConfig{Mapping: natsim.AddressDependent, Ports: natsim.Sequential}, stun.Dependent, 1},
		{natsim.NATConfig{Mapping: natsim.AddressAndPortDependent, Ports: natsim.Random}, stun.Dependent, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, natsim.Options{Delay: 10 * time.Millisecond, Loss: 0.2, Seed: 3}, c.cfg, home, 0)
			defer w.close()
			begin := time.Now()
			b := w.observe(t, w.a)
			if b.Mapping != c.want || b.Step != c.step {
				t.Errorf("%+v: found %+v", c.cfg, b)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("took %v", took)
			}
			o, err := w.a.p.Offer(punch.Candidate{Addr: ap("203.0.113.1:80"), Proto: punch.TCP, Kind: punch.Mapped})
			if err != nil {
				t.Fatal(err)
			}
			kinds := map[punch.Kind]int{}
			for _, c := range o.Candidates {
				kinds[c.Kind]++
			}
			if kinds[punch.LAN] != 2 || kinds[punch.Mapped] != 1 || kinds[punch.Observed] != len(b.Mapped) || (kinds[punch.Predicted] > 3) != (c.step != 0) {
				t.Errorf("%+v: offers %v", c.cfg, o.Candidates)
			}
		})
	}
	// Who does not answer is not waited for when others have, and is not forgotten in predictions.
	synctest.Test(t, func(t *testing.T) {
		cfg := natsim.NATConfig{Mapping: natsim.AddressDependent, Ports: natsim.Sequential}
		w := newWorld(t, natsim.Options{Delay: 20 * time.Millisecond}, cfg, home, 0)
		defer w.close()
		begin := time.Now()
		b, err := w.a.p.Observe(t.Context(), w.servers[0].p.UDPAddr(), ap("192.0.2.99:1"), w.servers[1].p.UDPAddr(), ap("192.0.2.98:1"))
		if err != nil || b.Step != 1 || b.Silent != 1 {
			t.Errorf("with two who are silent: %+v, %v", b, err)
		}
		if took := time.Since(begin); took > 150*time.Millisecond {
			t.Errorf("waited for the silent for %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		n := natsim.New(natsim.Options{})
		x := newPeer(t, n.Host(addr("192.0.2.1")), 0)
		defer x.close()
		y := newPeer(t, n.Host(addr("192.0.2.2")), 0)
		defer y.close()
		if b, err := x.p.Observe(t.Context(), y.p.UDPAddr(), ap("192.0.2.9:1")); err != nil || b.Mapping != stun.NoMapping {
			t.Errorf("without NAT: %+v, %v", b, err)
		}
		if _, err := x.p.Observe(t.Context(), ap("192.0.2.9:1")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nobody answers: %v", err)
		}
		if _, err := x.p.Observe(t.Context()); !errors.Is(err, punch.ErrNoCandidates) {
			t.Errorf("nobody to ask: %v", err)
		}
		// A flood of requests, as somebody would make who lets the answers go to the address that he claims to have.
		foe, err := n.Host(addr("198.51.100.1")).ListenUDP(ap("0.0.0.0:666"))
		if err != nil {
			t.Fatal(err)
		}
		defer foe.Close()
		for range 1000 {
			_, _ = foe.WriteTo(stun.AppendRequest(nil, stun.NewID()), net.UDPAddrFromAddrPort(x.p.UDPAddr()))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		if s := x.p.Stats(); s.Answered > 60 || s.Limited < 900 {
			t.Errorf("of 1000 requests in a second: %+v", s)
		}
	})
}

// On one host, with its own sockets.
func systemPair(t testing.TB, only punch.Proto) (a, b *peer) {
	t.Helper()
	peers := make([]*peer, 2)
	for i := range peers {
		l, err := punch.ListenTCP(t.Context(), ap("127.0.0.1:0"))
		if err != nil {
			t.Fatal(err)
		}
		network := punch.System
		if only == punch.UDP {
			network = withoutTCP{network}
		}
		p, err := punch.New(punch.Options{Listen: l.Addr().(*net.TCPAddr).AddrPort(), Network: network})
		if err != nil {
			t.Fatal(err)
		}
		peers[i] = start(t, p, l)
		t.Cleanup(peers[i].close)
	}
	return peers[0], peers[1]
}

func TestSystem(t *testing.T) {
	for _, only := range []punch.Proto{0, punch.UDP} {
		a, b := systemPair(t, only)
		r, errs := punchBoth(t, a, b, 0, nil, nil)
		if errs[0] != nil || errs[1] != nil {
			t.Fatal(errs)
		}
		if only != 0 && r[0].How != only {
			t.Errorf("connected over %v, want %v", r[0].How, only)
		}
		t.Logf("%v after %v", r[0].How, r[0].Took)
		talk(t, r)
	}
	if _, err := punch.New(punch.Options{Listen: ap("127.0.0.1:0")}); err == nil {
		t.Error("a Puncher without a port")
	}
}

// A connection over UDP does as net.Conn promises.
func TestConn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	a, b := systemPair(t, punch.UDP)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		r, errs := punchBoth(t, a, b, 0, nil, nil)
		if err := errors.Join(errs[0], errs[1]); err != nil {
			return nil, nil, nil, err
		}
		return r[0].Conn, r[1].Conn, func() {
			r[0].Conn.Close()
			r[1].Conn.Close()
		}, nil
	})
}

// What an offer makes a peer send is bounded, and small.
func TestBoundedTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natsim.New(natsim.Options{})
		rec := &recorder{Host: n.Host(addr("192.0.2.10"))}
		p, err := punch.New(punch.Options{Listen: ap("0.0.0.0:4001"), Network: rec})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		mine, err := p.Offer()
		if err != nil {
			t.Fatal(err)
		}
		var hostile punch.Offer
		for i := range punch.MaxCandidates {
			victim := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 53)
			hostile.Candidates = append(hostile.Candidates, punch.Candidate{Addr: victim, Proto: punch.UDP, Kind: punch.Mapped})
		}
		if _, err := p.Punch(t.Context(), punch.Attempt{Mine: mine, Theirs: hostile, Timeout: time.Hour}); !errors.Is(err, punch.ErrFailed) {
			t.Error(err)
		}
		bytes := 0
		for _, b := range rec.sent {
			bytes += len(b)
		}
		// 20 addresses, 10 rounds in the first half second and 95 in the 9.5 s that an attempt can last from there.
		if len(rec.sent) < 2000 || len(rec.sent) > 2200 || bytes != 29*len(rec.sent) {
			t.Errorf("%d datagrams with %d bytes", len(rec.sent), bytes)
		}
	})
}

// BenchmarkUDPConnection is what a stream over a punched UDP path carries, on one host.
func BenchmarkUDPConnection(b *testing.B) {
	x, y := systemPair(b, punch.UDP)
	r, errs := punchBoth(b, x, y, 0, nil, nil)
	if errs[0] != nil || errs[1] != nil {
		b.Fatal(errs)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, r[1].Conn) })
	block := make([]byte, 64<<10)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		if _, err := r[0].Conn.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	r[0].Conn.Close()
	wg.Wait()
	r[1].Conn.Close()
}
