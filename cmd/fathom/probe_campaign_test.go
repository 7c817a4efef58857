// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/probe"
)

// fakeProber answers by a rule, after the round-trip time that the rule sets. A probe that the
// rule gives no status waits for its timeout.
type fakeProber struct {
	rule func(probe.Request) probe.Result

	mu       sync.Mutex
	closed   bool
	pending  map[*time.Timer]func()
	sent     []time.Time
	most     int // probes in flight at once
	requests []probe.Request
}

func (p *fakeProber) start(req probe.Request, done func(probe.Result)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return probe.ErrClosed
	}
	r := p.rule(req)
	if r.Status == probe.Failed && r.RTT < 0 {
		return r.Err
	}
	r.Tag, r.Target, r.TTL, r.Flow = req.Tag, req.Target, req.TTL, req.Flow
	r.Sent = time.Now()
	delay := r.RTT
	switch r.Status {
	case probe.Failed:
		r.Sent = time.Time{}
	case 0:
		r.Status, delay = probe.NoReply, req.Timeout
	case probe.Replied:
		r.Responder = req.Target
	default:
	}
	if p.pending == nil {
		p.pending = make(map[*time.Timer]func())
	}
	var timer *time.Timer
	timer = time.AfterFunc(delay, func() {
		p.mu.Lock()
		_, ok := p.pending[timer]
		delete(p.pending, timer)
		p.mu.Unlock()
		if ok {
			done(r)
		}
	})
	p.pending[timer] = func() {
		done(probe.Result{Tag: req.Tag, Target: req.Target, Status: probe.Failed, Err: probe.ErrClosed})
	}
	p.sent = append(p.sent, time.Now())
	p.requests = append(p.requests, req)
	p.most = max(p.most, len(p.pending))
	return nil
}

func (p *fakeProber) Probe(ctx context.Context, req probe.Request) (probe.Result, error) {
	done := make(chan probe.Result, 1)
	if err := p.start(req, func(r probe.Result) { done <- r }); err != nil {
		return probe.Result{}, err
	}
	select {
	case r := <-done:
		return r, r.Err
	case <-ctx.Done():
		return probe.Result{}, ctx.Err()
	}
}

func (p *fakeProber) Features() probe.Features {
	return probe.Features{Missing: []string{"what it lacks, and how to get it"}}
}

func (p *fakeProber) Close() error {
	p.mu.Lock()
	p.closed = true
	pending := p.pending
	p.pending = nil
	p.mu.Unlock()
	for timer, end := range pending {
		timer.Stop()
		end()
	}
	return nil
}

// replyAfter makes a rule by which everybody answers.
func replyAfter(rtt time.Duration) func(probe.Request) probe.Result {
	return func(probe.Request) probe.Result { return probe.Result{Status: probe.Replied, RTT: rtt} }
}

// recorder is a campaignReport that remembers.
type recorder struct {
	lines []string
	done  []*probeTarget
}

func (r *recorder) admitted(*probeTarget) {}
func (r *recorder) result(t *probeTarget, sequence uint64, res *probe.Result) {
	r.lines = append(r.lines, fmt.Sprintf("%s %d %s", t.name, sequence, res.Status))
}
func (r *recorder) finished(t *probeTarget)  { r.done = append(r.done, t) }
func (r *recorder) progress(*campaignTotals) {}
func (r *recorder) flush() error             { return nil }

// someTargets gives n targets, 10.0.0.1 and up, on a closed channel.
func someTargets(n int) <-chan *probeTarget {
	ch := make(chan *probeTarget, n)
	addr := netip.MustParseAddr("10.0.0.0")
	for i := range n {
		addr = addr.Next()
		ch <- &probeTarget{name: addr.String(), addr: addr, number: i + 1}
	}
	close(ch)
	return ch
}

func newTestCampaign(p prober, r campaignReport) *campaign {
	return &campaign{
		request: probe.Request{Timeout: 2 * time.Second, TTL: 64}, count: 4, interval: time.Second,
		window: 100, limiter: newLimiter(0), prober: p, report: r,
	}
}

func TestCampaignCountsAndPaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The second probe of each target is lost.
		p := &fakeProber{rule: func(req probe.Request) probe.Result {
			if req.Tag&0xffffffff == 2 {
				return probe.Result{}
			}
			return probe.Result{Status: probe.Replied, RTT: 10 * time.Millisecond}
		}}
		var r recorder
		c := newTestCampaign(p, &r)
		began := time.Now()
		if err := c.run(t.Context(), someTargets(1)); err != nil {
			t.Fatal(err)
		}
		want := []string{"10.0.0.1 1 reply", "10.0.0.1 3 reply", "10.0.0.1 2 no-reply", "10.0.0.1 4 reply"}
		// Probe 2 is given up at 3 s, probe 4 answered at 3.01 s.
		if diff := cmp.Diff(want, r.lines); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		for i, at := range p.sent {
			if got, want := at.Sub(began), time.Duration(i)*time.Second; got != want {
				t.Errorf("probe %d left at %v, want %v", i+1, got, want)
			}
		}
		target := r.done[0]
		if target.sent != 4 || target.received() != 3 || target.loss() != 0.25 {
			t.Errorf("sent %d, received %d, loss %v; want 4, 3, 0.25", target.sent, target.received(), target.loss())
		}
		if took := time.Since(began); took != 3010*time.Millisecond {
			t.Errorf("took %v, want 3.01s: it must end with the last answer", took)
		}
	})
}

func TestCampaignKeepsWithinItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProber{rule: replyAfter(50 * time.Millisecond)}
		var r recorder
		c := newTestCampaign(p, &r)
		c.count, c.window = 2, 16
		if err := c.run(t.Context(), someTargets(1000)); err != nil {
			t.Fatal(err)
		}
		if p.most > 16 || len(c.slots) > 16 {
			t.Errorf("%d probes in flight and %d targets at once, want at most 16", p.most, len(c.slots))
		}
		if len(r.done) != 1000 || c.totals.sent != 2000 || c.totals.received != 2000 || c.totals.silent != 0 {
			t.Errorf("%d targets finished, totals %+v", len(r.done), c.totals)
		}
	})
}

func TestCampaignKeepsToTheRate(t *testing.T) {
	for _, perSecond := range []float64{5, 100, 2500, 200_000} {
		synctest.Test(t, func(t *testing.T) {
			p := &fakeProber{rule: replyAfter(time.Millisecond)}
			var r recorder
			c := newTestCampaign(p, &r)
			c.count, c.interval, c.window = uint64(min(perSecond, 20_000)), 0, 1<<20
			c.limiter = newLimiter(perSecond)
			if err := c.run(t.Context(), someTargets(2)); err != nil {
				t.Fatal(err)
			}
			// Any stretch of time may carry the rate times its length, and the credit once.
			burst := max(1, int(perSecond*limiterCredit.Seconds()))
			for from := 0; from < len(p.sent); from += burst {
				to := min(from+burst*4, len(p.sent)-1)
				allowed := burst + 1 + int(perSecond*p.sent[to].Sub(p.sent[from]).Seconds())
				if n := to - from + 1; n > allowed {
					t.Fatalf("%d probes in %v at %v/s, want at most %d", n, p.sent[to].Sub(p.sent[from]), perSecond, allowed)
				}
			}
			took := p.sent[len(p.sent)-1].Sub(p.sent[0]).Seconds()
			if got := float64(len(p.sent)) / took; got < 0.95*perSecond || len(p.sent) != 2*int(c.count) {
				t.Errorf("%d probes at %.0f/s, want %d at nearly %v/s", len(p.sent), got, 2*c.count, perSecond)
			}
		})
	}
}

func TestCampaignInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProber{rule: func(req probe.Request) probe.Result {
			if req.Tag&0xffffffff == 3 {
				return probe.Result{} // in flight at the end
			}
			return probe.Result{Status: probe.Replied, RTT: time.Millisecond}
		}}
		var r recorder
		c := newTestCampaign(p, &r)
		c.count = 0
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		if err := c.run(ctx, someTargets(3)); err != nil {
			t.Fatal(err)
		}
		if len(r.done) != 3 {
			t.Fatalf("%d targets reported, want all 3", len(r.done))
		}
		for i, target := range r.done {
			if target.number != i+1 || target.sent != 2 || target.received() != 2 {
				t.Errorf("target %d: sent %d, received %d; want 2 and 2: what was in flight is not lost",
					target.number, target.sent, target.received())
			}
		}
	})
}

func TestCampaignGivesUpOnHopelessTargets(t *testing.T) {
	bad := netip.MustParseAddr("10.0.0.2")
	worse := netip.MustParseAddr("10.0.0.3")
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProber{rule: func(req probe.Request) probe.Result {
			switch req.Target {
			case bad: // refused by Start
				return probe.Result{Status: probe.Failed, RTT: -1, Err: &probe.RequestError{Field: "size"}}
			case worse: // failed later
				return probe.Result{Status: probe.Failed, Err: fmt.Errorf("send: %w", probe.ErrNoInterface)}
			}
			return probe.Result{Status: probe.Replied, RTT: time.Millisecond}
		}}
		var r recorder
		c := newTestCampaign(p, &r)
		if err := c.run(t.Context(), someTargets(4)); err != nil {
			t.Fatal(err)
		}
		sent := make(map[string]uint64)
		if diff := cmp.Diff([]string{"10.0.0.3 1 failed"}, r.lines[:1]); diff != "" {
			t.Errorf("first result (-want +got):\n%s", diff)
		}
		for _, target := range r.done {
			sent[target.name] = target.sent
			if failed := target.err != nil; failed != (target.addr == bad || target.addr == worse) {
				t.Errorf("%s: error %v", target.name, target.err)
			}
		}
		want := map[string]uint64{"10.0.0.1": 4, "10.0.0.2": 0, "10.0.0.3": 0, "10.0.0.4": 4}
		if diff := cmp.Diff(want, sent); diff != "" {
			t.Errorf("probes sent (-want +got):\n%s", diff)
		}
		if c.totals.silent != 2 {
			t.Errorf("%d silent, want 2", c.totals.silent)
		}
	})
}

func TestCampaignEndsWithItsProber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProber{rule: replyAfter(time.Millisecond)}
		var r recorder
		c := newTestCampaign(p, &r)
		c.count = 0
		time.AfterFunc(1500*time.Millisecond, func() { p.Close() })
		err := c.run(t.Context(), someTargets(2))
		if err == nil {
			t.Error("no error, though the prober was closed by somebody else")
		}
		if len(r.done) != 2 {
			t.Errorf("%d targets reported, want 2", len(r.done))
		}
	})
}
