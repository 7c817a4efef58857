// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// elsewhere is the answer to a probe of a session that another site has sent.
func elsewhere(t *testing.T, o *measurepb.Open, v int, number uint16) []byte {
	t.Helper()
	conf, err := sessionConfig(o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := stateless.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Append(nil, &stateless.Probe{Src: shared[v], Dst: target[v], TTL: 1, Number: number})
	if err != nil {
		t.Fatal(err)
	}
	return answer(p)
}

// TestEarly has answers to another site's probes come home before the session does.
func TestEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := <-c.attached
		a.order(&measurepb.Welcome{Controller: "test", FirstPort: 20000, Ports: 1000})
		synctest.Wait()
		mine, other := open(1, measurepb.Protocol_PROTOCOL_UDP), open(2, measurepb.Protocol_PROTOCOL_UDP)
		came := time.Now()
		for v := range 2 {
			for n := range uint16(3) {
				s.host.Deliver(elsewhere(t, mine, v, n))
			}
			s.host.Deliver(elsewhere(t, other, v, 0))
		}
		time.Sleep(time.Second)
		a.order(mine)
		_, got := a.collect(0, 6)
		tab := table(t, mine)
		for _, r := range got {
			if ans := parse(t, tab, r); ans.Number > 2 || r.time != came.UnixNano() {
				t.Errorf("answer to %d, arrived at %d, want %d", ans.Number, r.time, came.UnixNano())
			}
		}
		if st := s.Stats(); st.Recognised != 6 || st.Stray != 0 {
			t.Errorf("%+v", st)
		}
		// Too late.
		time.Sleep(3 * time.Second)
		a.order(other)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if st := s.Stats(); st.Recognised != 6 || st.Stray != 2 || st.Received != 8 {
			t.Errorf("later: %+v", st)
		}
	})
}

// TestEarlyForwarding has a controller of Voltadomar's at the same site, which might be meant, too.
func TestEarlyForwarding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, o := newController(t), newOriginal(t, volta.Seed)
		s := start(t, Options{
			Links: []Link{{Address: "ours.test:50051", Dialect: Native}, {Address: "theirs.test:50051", Dialect: Seed}},
			Dial: func(ctx context.Context, address string) (net.Conn, error) {
				if address == "ours.test:50051" {
					return c.dial(ctx, address)
				}
				return o.dial(ctx, address)
			},
		})
		a, b := <-c.attached, o.accept()
		a.order(&measurepb.Welcome{Controller: "test", FirstPort: 20000, Ports: 30})
		synctest.Wait()
		mine, other, beyond := open(1, measurepb.Protocol_PROTOCOL_UDP), open(0, measurepb.Protocol_PROTOCOL_UDP), open(9, measurepb.Protocol_PROTOCOL_UDP)
		for _, session := range []*measurepb.Open{mine, other, beyond} {
			s.host.Deliver(elsewhere(t, session, 0, 7))
		}
		for range 3 {
			if msg, _, _ := b.next(); msg.Kind() != "REPLY" {
				t.Errorf("%+v, want REPLY", msg)
			}
		}
		a.order(mine)
		if _, got := a.collect(0, 1); parse(t, table(t, mine), got[0]).Number != 7 {
			t.Errorf("answer %x", got[0].pkt)
		}
		a.order(beyond) // has a port that was not announced: nobody waits for it
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if st := s.Stats(); st.Received != 3 || st.Forwarded != 3 || st.Recognised != 1 || st.Stray != 0 || st.Forged != 0 {
			t.Errorf("%+v", st)
		}
		s.plane.ask(func() {
			if n := len(s.plane.early.packets); n != 0 {
				t.Errorf("%d packets are kept", n)
			}
		})
	})
}

// TestEarlyBounded: strays cannot fill the memory, nor do they stand in the way of what comes when they are gone.
func TestEarlyBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := <-c.attached
		a.order(&measurepb.Welcome{Controller: "test", FirstPort: 20000, Ports: 1000})
		synctest.Wait()
		mine, other := open(1, measurepb.Protocol_PROTOCOL_UDP), open(2, measurepb.Protocol_PROTOCOL_UDP)
		stray := elsewhere(t, other, 0, 0)
		const more = 100
		for i := range maxEarly + more {
			s.host.Deliver(stray)
			if i%1024 == 0 {
				synctest.Wait()
			}
		}
		time.Sleep(time.Second)
		s.plane.ask(func() {
			if n, size := len(s.plane.early.packets), s.plane.early.size; n != maxEarly || size != n*len(stray) {
				t.Errorf("%d packets of %d bytes, want %d", n, size, maxEarly)
			}
		})
		time.Sleep(3 * time.Second)
		s.plane.ask(func() {
			if n, size := len(s.plane.early.packets), s.plane.early.size; n != 0 || size != 0 || s.plane.counters.stray != maxEarly+more {
				t.Errorf("later: %d packets of %d bytes, %d strays", n, size, s.plane.counters.stray)
			}
		})
		s.host.Deliver(elsewhere(t, mine, 0, 7))
		a.order(mine)
		a.collect(0, 1)
	})
}

// TestAnnounced checks what a controller says of its ports.
func TestAnnounced(t *testing.T) {
	for _, c := range []struct {
		first, ports uint32
		want         rawio.PortRange
	}{
		{10000, 10000, rawio.PortRange{Lo: 10000, Hi: 19999}},
		{1, 65535, rawio.PortRange{Lo: 1, Hi: 65535}},
		{65535, 1, rawio.PortRange{Lo: 65535, Hi: 65535}},
		{0, 0, rawio.PortRange{}},
		{10000, 0, rawio.PortRange{}},
		{0, 100, rawio.PortRange{}},
		{1, 65536, rawio.PortRange{}},
		{1 << 31, 1 << 31, rawio.PortRange{}},
	} {
		if got := announced(&measurepb.Welcome{FirstPort: c.first, Ports: c.ports}); got != c.want {
			t.Errorf("%d ports from %d: got %v, want %v", c.ports, c.first, got, c.want)
		}
	}
}

// TestParseWhole: the header that is made up for an IPv6 packet says what the system said.
func TestParseWhole(t *testing.T) {
	for v := range 2 {
		o := open(1, measurepb.Protocol_PROTOCOL_UDP)
		conf, err := sessionConfig(o)
		if err != nil {
			t.Fatal(err)
		}
		codec, err := stateless.New(conf)
		if err != nil {
			t.Fatal(err)
		}
		p := &plane{}
		if err := p.table.Add(codec); err != nil {
			t.Fatal(err)
		}
		pkt := elsewhere(t, o, v, 5)
		if c, err := p.parseWhole(pkt); err != nil || c != codec {
			t.Fatalf("version %d: %v", 4+2*v, err)
		}
		if got := p.answer; got.Number != 5 || got.Responder != router[v] || got.ReplyTOS != 0xc0 || got.ReplyTTL != 60 {
			t.Errorf("version %d: %+v", 4+2*v, got)
		}
	}
}
