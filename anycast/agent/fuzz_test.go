// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/internal/rawio"
)

// FuzzArrive gives a plane packets from outside. What it lets through must be one whole message for each.
func FuzzArrive(f *testing.F) {
	b := newBench(f)
	for v := range b.host.rx {
		for _, p := range b.host.rx[v].packets {
			f.Add(v == 1, uint8(0), p)
		}
	}
	f.Add(false, uint8(0), unhex(f, exceededVector))
	f.Add(false, uint8(0), unhex(f, unreachableVector))
	b.setForward(b.link, true)
	f.Fuzz(func(t *testing.T, v6 bool, which uint8, data []byte) {
		data = data[:min(len(data), receiveSize)]
		v := 0
		if v6 {
			v = 1
		}
		m := &b.in[v][0]
		m.N, m.Time = copy(m.Data, data), 1
		before := b.counters
		if rx := &b.receivers[3*v+int(which%3)]; v == 0 {
			b.arrive4(rx, m)
		} else {
			m.Addr, m.Local = addrPort(target[1]), shared[1]
			b.arrive6(rx, 0)
		}
		c := b.counters
		passed := c.recognised - before.recognised + c.forwarded - before.forwarded
		if n := passed + c.forged - before.forged + c.stray - before.stray + c.malformed - before.malformed; n != 1 {
			t.Fatalf("counted %d times", n)
		}
		it, ok := b.next()
		if ok != (passed == 1) {
			t.Fatalf("%d passed, and there is an answer: %v", passed, ok)
		}
		if ok {
			if n := len(unpack(t, it.answers)); n != 1 {
				t.Fatalf("%d answers", n)
			}
			b.next()
			b.link.spool.acknowledge(it.seq)
		}
	})
}

// FuzzOrders gives an agent the messages of a controller of ours, and lets the plane do what it says.
func FuzzOrders(f *testing.F) {
	for _, o := range []*measurepb.ToAgent{
		{Order: &measurepb.ToAgent_Open{Open: open(1, measurepb.Protocol_PROTOCOL_CHAOS)}},
		{Order: &measurepb.ToAgent_Send{Send: send(0, 1, 0, 3, 0)}},
		{Order: &measurepb.ToAgent_Send{Send: send(1, 1, 1, 3, 65530)}},
		{Order: &measurepb.ToAgent_Close{Close: &measurepb.Close{Session: 1, Linger: 1 << 62}}},
	} {
		m, err := proto.Marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		m := new(measurepb.ToAgent)
		if proto.Unmarshal(message, m) != nil {
			return
		}
		b := newBench(t)
		b.clock()
		if o := m.GetOpen(); o != nil {
			conf, err := sessionConfig(o)
			b.openSession(b.link, o.GetSession(), conf, err)
			m.Order = &measurepb.ToAgent_Send{Send: send(o.GetSession(), 1, 0, 3, 0)}
		}
		if s := m.GetSend(); s != nil {
			o, err := newOrder(b.link, s)
			if err != nil {
				return
			}
			b.accept(o)
			for range 3 {
				b.turn()
			}
			b.closeSession(b.link, s.GetSession(), 0)
			if b.link.queued != 0 || b.express.n+len(b.paced) != 0 {
				t.Fatalf("%d bytes of orders are left", b.link.queued)
			}
			it, ok := b.next()
			for ok && it.report == nil {
				it, ok = b.next()
			}
			if !ok || it.report.count > o.n || it.message().GetSent() == nil {
				t.Fatalf("report %+v of %d probes", it.report, o.n)
			}
		}
	})
}

// FuzzJob gives an agent jobs of a controller of Voltadomar's.
func FuzzJob(f *testing.F) {
	f.Add(int32(1), "203.0.113.10", int32(2), int32(2), int32(10000))
	f.Add(int32(-1), "2001:db8::1", int32(255), int32(1<<30), int32(65535))
	f.Add(int32(0), "0.0.0.0", int32(0), int32(0), int32(0))
	f.Add(int32(7), "203.0.113.10", int32(0), int32(5), int32(70000))
	b := newBench(f)
	f.Fuzz(func(t *testing.T, session int32, dst string, ttl, probes, port int32) {
		o, err := b.link.newJob(volta.Job{SessionID: session, DstIP: dst, MaxTTL: ttl, ProbeNum: probes, BasePort: port})
		if err != nil {
			return
		}
		if o.n != int(ttl)*int(probes) {
			t.Fatalf("%d probes for %d hop limits of %d", o.n, ttl, probes)
		}
		b.accept(o)
		for range 2 + o.n/rawio.BatchSize {
			b.turn()
		}
		it, ok := b.next()
		if !ok || it.report == nil || it.report.err == nil && it.report.count != o.n {
			t.Fatalf("report %+v of %d probes", it.report, o.n)
		}
		b.link.jobs.reported(it.report.batch)
		b.next()
		b.link.spool.acknowledge(it.seq)
	})
}
