// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// number4 is the number of a UDP probe of IPv4: its checksum stands for it.
func number4(p []byte) int { return int(binary.BigEndian.Uint16(p[26:])) - 1 }

// TestPacing sends orders with a rate beside each other.
func TestPacing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		a.order(open(1, measurepb.Protocol_PROTOCOL_UDP))
		rates := []float64{10, 100, 5000}
		for i, rate := range rates {
			order := send(1, uint64(i), 0, int(rate)*2+1, uint32(20000*i)) // 2 s
			order.Rate = rate
			a.order(order)
		}
		began := time.Now()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		var last [3]time.Duration
		var count [3]int
		for i, p := range s.net.packets() {
			k, at := number4(p)/20000, s.net.when[i].Sub(began)
			// The distance of one from the next is right to the time of a batch.
			if want := time.Duration(float64(count[k]) / rates[k] * float64(time.Second)); (at - want).Abs() > leastNap+time.Millisecond {
				t.Fatalf("probe %d at %v/s left after %v, want %v", count[k], rates[k], at, want)
			}
			last[k] = at
			count[k]++
		}
		for k, rate := range rates {
			if count[k] != int(rate)*2+1 || (last[k]-2*time.Second).Abs() > 2*time.Millisecond {
				t.Errorf("%d probes at %v/s, the last after %v", count[k], rate, last[k])
			}
		}
	})
}

// TestLimit has the agent's own rate bound what all orders ask for.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial, Rate: 1000})
		a := c.accept(0)
		a.order(open(1, measurepb.Protocol_PROTOCOL_UDP))
		for i := range 3 {
			order := send(1, uint64(i), 0, 5000, uint32(20000*i))
			order.Rate = []float64{0, 0, 5000}[i]
			a.order(order)
		}
		for sec := range 5 {
			time.Sleep(time.Second)
			synctest.Wait()
			if n := len(s.net.packets()); n < 1000*(sec+1)-20 || n > 1000*(sec+1)+20 {
				t.Errorf("%d probes after %d s, want 1000 per second", n, sec+1)
			}
		}
		// All get a share.
		var count [3]int
		for _, p := range s.net.packets() {
			count[number4(p)/20000]++
		}
		if slices.Min(count[:]) < 1000 {
			t.Errorf("orders sent %v of 5000", count)
		}
	})
}

// TestShortOrdersGoFirst sends a trace's probes while two long orders are under way.
func TestShortOrdersGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial, Rate: 1000})
		a := c.accept(0)
		a.order(open(1, measurepb.Protocol_PROTOCOL_UDP))
		a.order(send(1, 1, 0, 10000, 0))
		a.order(send(1, 2, 0, 10000, 10000))
		time.Sleep(time.Second)
		before := len(s.net.packets())
		a.order(send(1, 3, 0, 8, 50000))
		time.Sleep(time.Second)
		sent := s.net.packets()[before:]
		first := slices.IndexFunc(sent, func(p []byte) bool { return number4(p) == 50000 })
		last := slices.IndexFunc(sent, func(p []byte) bool { return number4(p) == 50007 })
		if first < 0 || last < 0 || last > 3*rawio.BatchSize {
			t.Errorf("a trace's probes came as number %d to %d of those sent after it was asked for", first, last)
		}
		var shares [2]int
		for _, p := range sent {
			if n := number4(p); n < 20000 {
				shares[n/10000]++
			}
		}
		if d := shares[0] - shares[1]; d < -2*turn || d > 2*turn {
			t.Errorf("two equal orders sent %v", shares)
		}
	})
}

// TestForged throws packets at a site that are no answers to its sessions' probes.
func TestForged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		o := open(1, measurepb.Protocol_PROTOCOL_UDP)
		a.order(o)
		a.order(send(1, 1, 0, 1, 0))
		a.collect(1, 1)

		conf, err := sessionConfig(o)
		if err != nil {
			t.Fatal(err)
		}
		conf.Key[0]++ // somebody who knows all but the key
		forger, err := stateless.New(conf)
		if err != nil {
			t.Fatal(err)
		}
		conf.FirstPort += 1000
		other, err := stateless.New(conf)
		if err != nil {
			t.Fatal(err)
		}
		probe := func(c *stateless.Codec, v int, ttl uint8) []byte {
			b, err := c.Append(nil, &stateless.Probe{Src: shared[v], Dst: target[v], TTL: ttl, Number: 3})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		for v := range 2 {
			s.host.Deliver(answer(probe(forger, v, 1)))
			s.host.Deliver(answer(probe(forger, v, 9)))
			s.host.Deliver(answer(probe(other, v, 9))) // does not pass the filter
		}
		broken := answer(probe(forger, 0, 1))
		broken[22] ^= 1 // the ICMP checksum
		s.host.Deliver(broken)
		s.host.Deliver(whole(router[0], shared[0], packet.ProtocolICMP, []byte{11, 0}))
		time.Sleep(time.Second)
		synctest.Wait()
		st := s.Stats()
		if st.Recognised != 1 || st.Forged != 4 || st.Malformed != 1 || st.Received != 6 {
			t.Errorf("%+v", st)
		}
		select {
		case m := <-a.in:
			t.Errorf("the controller hears %v", m)
		default:
		}
	})
}

// TestHostileController sends orders that make no sense. Each gets an answer, and the agent goes on.
func TestHostileController(t *testing.T) {
	many := func(n int) []uint32 { return slices.Repeat([]uint32{1}, n) }
	good := func() *measurepb.Send { return send(1, 0, 0, 1, 0) }
	orders := map[string]func(*measurepb.Send){
		"no session":        func(s *measurepb.Send) { s.Session = 99 },
		"odd targets":       func(s *measurepb.Send) { s.Targets = make([]byte, 7) },
		"short address":     func(s *measurepb.Send) { s.Ipv6 = true },
		"columns differ":    func(s *measurepb.Send) { s.Ttls, s.Numbers = many(3), many(2) },
		"no hop limits":     func(s *measurepb.Send) { s.Ttls = nil },
		"hop limit 0":       func(s *measurepb.Send) { s.Ttls = []uint32{0} },
		"hop limit 256":     func(s *measurepb.Send) { s.Ttls = []uint32{256} },
		"flow 65536":        func(s *measurepb.Send) { s.Flows = []uint32{65536} },
		"number 65535":      func(s *measurepb.Send) { s.Numbers = []uint32{65535} },
		"number 2^32-1":     func(s *measurepb.Send) { s.Numbers = []uint32{math.MaxUint32} },
		"too many":          func(s *measurepb.Send) { s.Numbers = many(maxOrder + 1) },
		"negative rate":     func(s *measurepb.Send) { s.Rate = -1 },
		"rate NaN":          func(s *measurepb.Send) { s.Rate = math.NaN() },
		"rate infinite":     func(s *measurepb.Send) { s.Rate = math.Inf(1) },
		"rate almost 0":     func(s *measurepb.Send) { s.Rate = 5e-324 },
		"odd source":        func(s *measurepb.Send) { s.Source = make([]byte, 5) },
		"source of IPv6":    func(s *measurepb.Send) { s.Source = shared[1].AsSlice() },
		"unspecified":       func(s *measurepb.Send) { s.Source = make([]byte, 4) },
		"to a group":        func(s *measurepb.Send) { s.Targets = []byte{224, 0, 0, 1} },
		"to everybody":      func(s *measurepb.Send) { s.Targets = []byte{255, 255, 255, 255} },
		"to nobody":         func(s *measurepb.Send) { s.Targets = make([]byte, 4) },
		"refused session":   func(s *measurepb.Send) { s.Session = 2 },
		"refused session 3": func(s *measurepb.Send) { s.Session = 3 },
	}
	opens := []*measurepb.Open{
		{Session: 2, Key: key[:], FirstPort: 30000},
		{Session: 3, Key: key[:], Protocol: measurepb.Protocol_PROTOCOL_DNS, FirstPort: 65000, Ports: 60000},
		{Session: 4, Key: key[:3], Protocol: measurepb.Protocol_PROTOCOL_UDP, FirstPort: 30000},
		{Session: 5, Key: key[:], Protocol: measurepb.Protocol_PROTOCOL_UDP, FirstPort: math.MaxUint32, Ports: math.MaxUint32, DstPort: math.MaxUint32},
		{Session: 6, Key: key[:], Protocol: measurepb.Protocol_PROTOCOL_UDP, FirstPort: 30000, Size: math.MaxUint32, Tos: math.MaxUint32},
		{Session: 7, Key: key[:], Protocol: 99, FirstPort: 30000},
		{Session: 8, Key: key[:], Protocol: measurepb.Protocol_PROTOCOL_UDP, FirstPort: 30000, Note: strings.Repeat("x", 10000)},
		nil,
	}
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		a := c.accept(0)
		a.order(open(1, measurepb.Protocol_PROTOCOL_UDP))
		for _, o := range opens {
			a.order(o)
		}
		a.order(&measurepb.Close{Session: 77, Linger: math.MinInt64})
		a.order(&measurepb.Acknowledge{Seq: math.MaxUint64})
		a.order((*measurepb.Ping)(nil))
		if m := a.next(); m.GetPong() == nil {
			t.Errorf("%v instead of a pong", m)
		}
		a.order("nothing")
		for name, spoil := range orders {
			order := good()
			spoil(order)
			a.order(order)
			m := a.next().GetSent()
			if m == nil || m.GetError() == "" || m.GetCount() != 0 || m.GetBatch() != 0 {
				t.Errorf("%s: %v, want an error", name, m)
			}
		}
		// Of an order without probes there is nothing to complain about.
		a.order(&measurepb.Send{Session: 1, Batch: 5, Stamps: true, Rate: 1})
		if m := a.next().GetSent(); m.GetError() != "" && m.GetCount() != 0 {
			t.Errorf("report %v", m)
		}
		if n := len(s.net.packets()); n != 0 {
			t.Errorf("%d packets were sent, the first %x", n, s.net.packets()[0])
		}
		// It still works.
		a.order(good())
		a.collect(1, 1)

		// What is queued is bounded.
		refused := 0
		for i := range 40 {
			order := good()
			order.Batch, order.Numbers, order.Rate = uint64(i), many(maxOrder), 1
			a.order(order)
		}
		for refused < 30 {
			if r := a.next().GetSent(); r.GetError() != "" {
				refused++
			}
		}
		a.order(&measurepb.Close{Session: 1})
		time.Sleep(time.Second)
		if st := s.Stats(); st.Orders != 0 || st.Links[0].Invalid == 0 {
			t.Errorf("%+v", st)
		}
	})
}

// TestRefusals lets the system refuse probes: some for good, some for a moment.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial})
		unreachable := netip.MustParseAddr("198.51.100.9")
		calls := 0
		s.host.SetFaults(rawiotest.Faults{Send: func(_ rawio.Spec, m *rawio.Message) error {
			if m.Addr.Addr() == unreachable {
				return syscall.ENETUNREACH
			}
			if calls++; calls%3 != 0 {
				return syscall.ENOBUFS
			}
			return nil
		}})
		a := c.accept(0)
		a.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
		order := send(1, 1, 0, 200, 0)
		order.Targets = nil
		for i := range 200 {
			dst := target[0]
			if i%10 == 4 {
				dst = unreachable
			}
			order.Targets = append(order.Targets, dst.AsSlice()...)
		}
		began := time.Now().UnixNano()
		a.order(order)
		rs, as := a.collect(1, 180)
		r := rs[0]
		if r.GetCount() != 180 || !strings.Contains(r.GetError(), unreachable.String()) {
			t.Errorf("report of %d probes, error %q", r.GetCount(), r.GetError())
		}
		for i, at := range absolute(r.GetTimes()) {
			if unsent := i%10 == 4; unsent != (at == 0) || !unsent && at < began {
				t.Errorf("probe %d left at %d", i, at)
			}
		}
		if st := s.Stats(); st.Refused != 20 || st.Sent != 180 || len(as) != 180 {
			t.Errorf("%+v", st)
		}
	})
}

// TestPermission checks what New says without privileges.
func TestPermission(t *testing.T) {
	host := rawiotest.NewHost(rawiotest.Config{})
	defer host.Close()
	host.SetFaults(rawiotest.Faults{Open: func(rawio.Spec) error { return syscall.EPERM }})
	_, err := New(Options{ID: "x", Links: oneLink, Host: func() (rawio.Host, error) { return host, nil }})
	if !errors.Is(err, ErrPermission) || !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "setcap") {
		t.Errorf("error %v", err)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no id":           {Links: oneLink},
		"long id":         {ID: strings.Repeat("x", 256), Links: oneLink},
		"id is no text":   {ID: "\xff", Links: oneLink},
		"no controller":   {ID: "x"},
		"twice":           {ID: "x", Links: []Link{{Address: "control.test:1"}, {Address: "other.test:1"}, {Address: "control.test:1"}}},
		"slow":            {ID: "x", Links: oneLink, Rate: 1e-12},
		"no port":         {ID: "x", Links: []Link{{Address: "control.test"}}},
		"dialect":         {ID: "x", Links: []Link{{Address: "control.test:1", Dialect: 9}}},
		"rate":            {ID: "x", Links: oneLink, Rate: math.NaN()},
		"spool":           {ID: "x", Links: oneLink, Spool: -1},
		"anycast group":   {ID: "x", Links: oneLink, Anycast: []netip.Addr{netip.MustParseAddr("224.0.0.1")}},
		"unicast is zero": {ID: "x", Links: oneLink, Unicast: []netip.Addr{{}}},
	} {
		if _, err := New(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	for d := Auto; d <= Go; d++ {
		if got, err := ParseDialect(d.String()); got != d || err != nil {
			t.Errorf("%v reads as %v, error %v", d, got, err)
		}
	}
	if _, err := ParseDialect("latin"); !errors.Is(err, ErrOptions) {
		t.Errorf("error %v", err)
	}
	if got := Dialect(37).String(); got != "Dialect(37)" {
		t.Error(got)
	}
}

// TestControllersTakeTurns has a controller give new orders all the time. Another one's must not wait for them to end.
func TestControllersTakeTurns(t *testing.T) {
	var q express
	many, one := new(link), new(link)
	long := &order{link: one}
	q.put(long)
	turns := 0
	for range 100 {
		q.put(&order{link: many})
		q.put(&order{link: many})
		if o := q.take(); o == long {
			turns++
			q.back(o)
		}
	}
	if turns != 50 {
		t.Errorf("%d of 100 turns, want 50", turns)
	}
	q.drop(func(o *order) bool { return o.link == many })
	if q.n != 1 || len(q.links) != 1 || q.take() != long || q.n != 0 || len(q.links) != 0 {
		t.Errorf("left: %+v", q)
	}
	// The orders of one controller take turns, and a new one is next.
	a, b, c := &order{link: one}, &order{link: one}, &order{link: one}
	q.put(a)
	q.put(b)
	for _, want := range []*order{b, a, b, a} {
		got := q.take()
		if got != want {
			t.Fatal("orders do not take turns")
		}
		q.back(got)
	}
	if q.put(c); q.take() != c {
		t.Error("a new order is not next")
	}
}
