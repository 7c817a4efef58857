// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

// scripted answers with given round-trip times, one after the other for each hop; 0 is no answer.
type scripted struct {
	addrs []netip.Addr
	rtts  [][]time.Duration
	next  []int
}

func (v *scripted) Probe(_ context.Context, req probe.Request) (probe.Result, error) {
	i := int(req.TTL) - 1
	rtt := v.rtts[i][v.next[i]]
	v.next[i]++
	if rtt == 0 {
		return probe.Result{Status: probe.NoReply}, nil
	}
	status := probe.TimeExceeded
	if i == len(v.addrs)-1 {
		status = probe.Replied
	}
	return probe.Result{Status: status, Responder: v.addrs[i], RTT: rtt}, nil
}

// The expected tables are what mtr 0.95 printed (-r -o LDRSNBAWVGJMXI) when its prober answered
// with the same times.
func TestContinuousFiguresAreThoseOfMtr(t *testing.T) {
	us := func(factor int, times ...int) []time.Duration {
		all := make([]time.Duration, len(times))
		for i, x := range times {
			all[i] = time.Duration(x*factor) * time.Microsecond
		}
		return all
	}
	for rounds, want := range map[int]string{
		1: `
1 10.0.0.1    0.0% 0 1 1  1.0  1.0  1.0  1.0  0.0  1.0  0.0  0.0  0.0  0.0
2 10.0.0.2    0.0% 0 1 1  3.0  3.0  3.0  3.0  0.0  3.0  0.0  0.0  0.0  0.0
3 127.0.0.9   0.0% 0 1 1 10.0 10.0 10.0 10.0  0.0 10.0  0.0  0.0  0.0  0.0`,
		3: `
1 10.0.0.1    0.0% 0 3 3  1.2  1.0  1.2  1.5  0.3  1.2  0.3  0.3  0.5  0.8
2 10.0.0.2   33.3% 1 2 3  3.6  3.0  3.3  3.6  0.4  3.3  0.6  0.3  0.6  0.6
3 127.0.0.9   0.0% 0 3 3 12.0 10.0 12.3 15.0  2.5 12.2  3.0  2.7  5.0  7.7`,
		8: `
1 10.0.0.1    0.0% 0 8 8  2.5  0.9  1.8  5.0  1.4  1.6  1.6  1.3  3.8  8.5
2 10.0.0.2   37.5% 3 5 8  2.7  2.7  5.6 15.0  5.3  4.4  1.2  4.9 11.4 22.1
3 127.0.0.9   0.0% 0 8 8 25.0  9.0 18.4 50.0 13.7 15.6 16.0 12.9 38.0 85.2`,
	} {
		synctest.Test(t, func(t *testing.T) {
			via := &scripted{
				addrs: []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2"), addr("127.0.0.9")},
				rtts: [][]time.Duration{
					us(1, 1000, 1500, 1200, 5000, 1300, 1300, 900, 2500),
					us(3, 1000, 0, 1200, 5000, 0, 1300, 900, 0),
					us(10, 1000, 1500, 1200, 5000, 1300, 1300, 900, 2500),
				},
				next: make([]int, 3),
			}
			c, err := trace.NewContinuous(via, probe.Request{Target: addr("127.0.0.9")}, trace.ContinuousOptions{Rounds: rounds})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			fields, err := trace.ParseFields(trace.AllFields)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, h := range c.Snapshot() {
				row := []string{fmt.Sprint(h.TTL), h.Addr().String()}
				for _, f := range fields {
					row = append(row, f.Text(&h))
				}
				got = append(got, strings.Join(row, " "))
			}
			wantLines := strings.Split(strings.TrimSpace(want), "\n")
			for i := range wantLines {
				if want := strings.Join(strings.Fields(wantLines[i]), " "); i >= len(got) || got[i] != want {
					t.Errorf("%d rounds:\ngot  %v\nwant %s", rounds, got[min(i, len(got)):], want)
				}
			}
		})
	}
}

func newContinuous(t *testing.T, via trace.Via, target netip.Addr, opts trace.ContinuousOptions) *trace.Continuous {
	t.Helper()
	c, err := trace.NewContinuous(via, probe.Request{Target: target}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A round spreads its probes over the interval, whatever the number of hops.
func TestContinuousSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 4, ms)
		start := time.Now()
		var sent []time.Duration
		c := newContinuous(t, net, nodes[3].Addr, trace.ContinuousOptions{
			Rounds: 3, OnSend: func(int, uint64) { sent = append(sent, time.Since(start)) },
		})
		if err := c.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The first round does not know the number of hops. The target answers 8 ms after its probe.
		want := []time.Duration{
			0, 100 * ms, 200 * ms, 300 * ms,
			1000 * ms, 1250 * ms, 1500 * ms, 1750 * ms,
			2000 * ms, 2250 * ms, 2500 * ms, 2750 * ms,
		}
		if fmt.Sprint(sent) != fmt.Sprint(want) {
			t.Errorf("sent at %v, want %v", sent, want)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %v, want 3s", took)
		}
	})
}

func TestContinuousAdaptsToThePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 6, ms)
		full := nodes[1].Next
		nodes[1].Next = nodes[4].Next // a short cut at first
		c := newContinuous(t, net, nodes[5].Addr, trace.ContinuousOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()

		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := c.Snapshot(); len(got) != 3 || got[2].Status != probe.Replied || got[2].Loss() != 0 {
			t.Errorf("short path: %+v", got)
		}
		if s := net.Sent(); len(s) > 4 {
			t.Errorf("hop limits probed: %v, want up to 3", s)
		}
		net.Change(func() { nodes[1].Next = full })
		time.Sleep(20 * time.Second)
		synctest.Wait()
		got := c.Snapshot()
		if len(got) != 6 || got[5].Addr() != nodes[5].Addr || len(got[2].Responders) != 2 || got[2].Addr() != nodes[2].Addr {
			t.Errorf("after the path grew: %+v", got)
		}
		if got[2].Responders[1].Received != 10 {
			t.Errorf("hop 3 before: %+v, want 10 answers", got[2].Responders[1])
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestContinuousUnknownHops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 6, ms)
		nodes[1].Firewall = true
		c := newContinuous(t, net, nodes[5].Addr, trace.ContinuousOptions{Rounds: 3, MaxUnknown: 4})
		if err := c.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		for ttl, n := range net.Sent() {
			if ttl > 6 || n != 3 {
				t.Errorf("%d probes with hop limit %d, want 3 up to 6", n, ttl)
			}
		}
		got := c.Snapshot()
		if len(got) != 3 || got[1].Loss() != 0 || got[2].Loss() != 100 || got[2].Addr().IsValid() {
			t.Errorf("%+v, want two hops and an unknown one", got)
		}
	})
}

// Only the latest probe is in transit; an answer that comes later still counts.
func TestContinuousInTransit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 1, 1250*ms)
		c := newContinuous(t, net, nodes[0].Addr, trace.ContinuousOptions{Rounds: 4, MaxHops: 1})
		done := make(chan error, 1)
		go func() { done <- c.Run(t.Context()) }()
		for _, want := range []struct {
			at                               time.Duration
			sent, received, transit, dropped int
		}{
			{500 * ms, 1, 0, 1, 0},
			{1500 * ms, 2, 0, 1, 1},
			{2600 * ms, 3, 1, 1, 1},
			{3600 * ms, 4, 2, 1, 1},
			{6000 * ms, 4, 4, 0, 0},
		} {
			time.Sleep(want.at - time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)))
			synctest.Wait()
			h := c.Snapshot()[0]
			if h.Sent != want.sent || h.Received != want.received || h.InTransit != want.transit || h.Dropped() != want.dropped {
				t.Errorf("at %v: %+v, want %+v", want.at, h, want)
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestContinuousPauseAndReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 2, 200*ms)
		c := newContinuous(t, net, nodes[1].Addr, trace.ContinuousOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		time.Sleep(10 * time.Second)
		synctest.Wait()

		c.Pause()
		before := c.Snapshot()[0].Sent
		time.Sleep(time.Hour)
		if after := c.Snapshot()[0]; after.Sent != before || after.Received != before || !c.Paused() {
			t.Errorf("paused with %d sent: %+v", before, after)
		}
		c.Resume()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if after := c.Snapshot()[0].Sent; after < before+9 || after > before+11 {
			t.Errorf("10 s after resuming: %d sent, was %d", after, before)
		}

		// The probes in flight at a reset do not count afterwards.
		time.Sleep(100 * ms)
		c.Reset()
		if got := c.Snapshot(); len(got) != 0 || c.Rounds() != 0 {
			t.Errorf("after reset: %+v, %d rounds", got, c.Rounds())
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, h := range c.Snapshot() {
			if h.Received > h.Sent || h.Sent < 8 || h.Sent > 11 || h.Loss() != 0 {
				t.Errorf("10 s after reset: %+v", h)
			}
		}
		cancel()
		<-done
		if err := c.Run(t.Context()); err == nil {
			t.Error("a second Run worked")
		}
	})
}

// Probes that never come back end with the grace period and are lost.
func TestContinuousGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 3, ms)
		nodes[1].Silent = true
		start := time.Now()
		c := newContinuous(t, net, nodes[2].Addr, trace.ContinuousOptions{Rounds: 1, Timeout: time.Minute})
		if err := c.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 6*time.Second {
			t.Errorf("took %v, want a second and the grace period", took)
		}
		if h := c.Snapshot()[1]; h.Loss() != 100 || h.InTransit != 0 {
			t.Errorf("%+v", h)
		}
	})
}

func TestContinuousErrors(t *testing.T) {
	net := tracetest.New(1)
	for _, o := range []trace.ContinuousOptions{
		{MaxHops: 300},
		{Interval: -1},
		{Timeout: -1},
		{Grace: -1},
		{Rounds: -1},
		{MaxUnknown: -1},
		{Method: 9},
	} {
		if _, err := trace.NewContinuous(net, probe.Request{Target: addr("192.0.2.1")}, o); !errors.Is(err, probe.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := trace.NewContinuous(net, probe.Request{}, trace.ContinuousOptions{}); !errors.Is(err, probe.ErrInvalid) {
		t.Errorf("no target: %v", err)
	}
	net.Err = probe.ErrPermission
	if err := newContinuous(t, net, addr("192.0.2.1"), trace.ContinuousOptions{}).Run(t.Context()); !errors.Is(err, probe.ErrPermission) {
		t.Errorf("via without permission: %v", err)
	}
	if _, err := trace.ParseFields("LSQ"); !errors.Is(err, probe.ErrInvalid) {
		t.Errorf("field Q: %v", err)
	}
}
