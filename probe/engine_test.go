// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
)

// TestTimeouts checks that silence ends a probe when its timeout has passed: never early, at most a tick late.
func TestTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, nil, Options{})
		sleep(12345 * time.Microsecond) // so that ticks and starts don't coincide
		for _, timeout := range []time.Duration{
			1, time.Microsecond, time.Millisecond, 250 * time.Millisecond, 999999 * time.Microsecond, time.Second,
			8192 * time.Millisecond, 8193 * time.Millisecond, time.Minute, MaxTimeout,
		} {
			start := time.Now()
			r, err := p.Probe(t.Context(), Request{Target: target[0], Timeout: timeout})
			if err != nil || r.Status != NoReply || r.Answered() || r.RTT != 0 || !r.Sent.Equal(start) {
				t.Errorf("timeout %v: %+v, %v", timeout, r, err)
			}
			if took := time.Since(start); took < timeout || took > timeout+2*time.Millisecond {
				t.Errorf("timeout %v: ended after %v", timeout, took)
			}
		}
		start := time.Now()
		if r, err := p.Probe(t.Context(), Request{Target: target[0]}); err != nil || r.Status != NoReply || time.Since(start) < DefaultTimeout {
			t.Errorf("default timeout: %v, %v after %v", r.Status, err, time.Since(start))
		}
	})
}

// TestNoTimeout: with a timeout below 0 a probe counts only what is there already.
func TestNoTimeout(t *testing.T) {
	for _, tt := range []struct {
		after time.Duration
		want  Status
	}{{0, Replied}, {10 * time.Millisecond, NoReply}} {
		synctest.Test(t, func(t *testing.T) {
			p, _ := open(t, func(b []byte) []rawiotest.Delivery { return arriving(tt.after, respond(b)...) }, Options{})
			start := time.Now()
			r, err := p.Probe(t.Context(), Request{Target: target[0], Timeout: -time.Second})
			if err != nil || r.Status != tt.want {
				t.Errorf("answer after %v: %v, %v; want %v", tt.after, r.Status, err, tt.want)
			}
			if took := time.Since(start); took > 2*time.Millisecond {
				t.Errorf("answer after %v: took %v", tt.after, took)
			}
		})
	}
}

// TestArrivalBeatsDeadline: an answer that has come counts, though nobody looked before the deadline.
func TestArrivalBeatsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, e := openEngine(t, nil, Options{})
		var got []Result
		if _, err := p.Start(Request{Target: target[0], Timeout: time.Millisecond}, func(r Result) { got = append(got, r) }); err != nil {
			t.Fatal(err)
		}
		e.take()
		e.clock()
		e.transmit()
		s := e.slots.at(1)
		e.host.(*rawiotest.Host).Deliver(echoReply(target[0], local[0], s.a, s.b, nil))
		time.Sleep(time.Second) // the engine was busy
		e.back.receive(true)
		e.clock()
		e.wheel.expire(e.now, e.timeout)
		if len(got) != 1 || got[0].Status != Replied || got[0].RTT != 1 {
			t.Errorf("%+v, want one reply after no time at all", got)
		}
	})
}

// openEngine gives an engine that does not run: the test is its goroutine.
func openEngine(t testing.TB, network rawiotest.Network, opts Options) (*Prober, *engine) {
	t.Helper()
	opts.host = rawiotest.NewHost(rawiotest.Config{Network: network, Addrs: local[:], Interfaces: []string{"lo", "eth0"}})
	if opts.Mode == Auto {
		opts.Mode = Privileged
	}
	p, e, err := newEngine(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.shutdown)
	return p, e
}

// TestManyTimeouts has 100 000 silent targets: all end on time, and the engine sleeps in between.
func TestManyTimeouts(t *testing.T) {
	const count, timeout = 100_000, 3 * time.Second
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, nil, Options{})
		waits := 0
		host.SetFaults(rawiotest.Faults{Wait: func() error { waits++; return nil }})
		start := time.Now()
		var ended atomic.Int64
		off := time.Duration(0)
		a := netip.MustParseAddr("11.0.0.0")
		for range count {
			a = a.Next()
			if _, err := p.Start(Request{Target: a, Timeout: timeout}, func(r Result) {
				ended.Add(1)
				if r.Status != NoReply {
					t.Errorf("%v: %v", r.Target, r.Status)
				}
				off = max(off, time.Since(start)-timeout)
			}); err != nil {
				t.Fatal(err)
			}
		}
		sleep(timeout - time.Millisecond)
		if n := ended.Load(); n != 0 {
			t.Errorf("%d ended early", n)
		}
		sleep(5 * time.Millisecond)
		if n := ended.Load(); n != count || p.InFlight() != 0 {
			t.Errorf("%d of %d ended, %d in flight", n, count, p.InFlight())
		}
		if off > 2*time.Millisecond {
			t.Errorf("the last one was %v late", off)
		}
		if waits > count/10 {
			t.Errorf("the engine woke %d times", waits)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, (&internet{}).carry, Options{})
		var got []Result
		start := func(timeout time.Duration) Handle {
			h, err := p.Start(Request{Target: target[0], Timeout: timeout, Tag: uint64(len(got))}, func(r Result) { got = append(got, r) })
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		h := start(time.Minute)
		p.Cancel(h) // before or after it was sent
		synctest.Wait()
		if len(got) != 1 || got[0].Status != Failed || !errors.Is(got[0].Err, context.Canceled) {
			t.Fatalf("cancelled: %+v", got)
		}
		p.Cancel(h) // it has ended
		p.Cancel(Handle{})
		h2 := start(time.Minute) // perhaps in the same slot
		p.Cancel(h)
		sleep(time.Second)
		if len(got) != 2 || got[1].Status != Replied {
			t.Fatalf("after cancelling what had ended: %+v", got)
		}
		p.Cancel(h2)
		synctest.Wait()
		if len(got) != 2 || p.InFlight() != 0 {
			t.Errorf("%d results, %d in flight", len(got), p.InFlight())
		}
	})
}

// TestClose ends thousands of probes in every state: each callback is called once, and Start refuses from then on.
func TestClose(t *testing.T) {
	const count = 5000
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, nil, Options{})
		stuck := false
		host.SetFaults(rawiotest.Faults{Send: func(rawio.Spec, *rawio.Message) error {
			if stuck {
				return syscall.ENOBUFS
			}
			return nil
		}})
		calls := make([]int, count)
		for k := range count {
			if k == count/2 { // what follows is queued
				synctest.Wait()
				stuck = true
			}
			if _, err := p.Start(Request{Target: target[k%2], Protocol: protocols[k%4], Tag: uint64(k)}, func(r Result) {
				calls[r.Tag]++
				if r.Status != Failed || !errors.Is(r.Err, ErrClosed) {
					t.Errorf("probe %d: %v, %v", r.Tag, r.Status, r.Err)
				}
				if _, err := p.Start(Request{Target: target[0]}, func(Result) { t.Error("a probe was started while closing") }); !errors.Is(err, ErrClosed) {
					t.Errorf("start while closing: %v", err)
				}
				p.Cancel(Handle{1, 0})
			}); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error, 3)
		for range 3 {
			go func() { done <- p.Close() }()
		}
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if i := slices.IndexFunc(calls, func(n int) bool { return n != 1 }); i >= 0 {
			t.Errorf("callback %d was called %d times", i, calls[i])
		}
		if n := p.InFlight(); n != 0 {
			t.Errorf("%d in flight after Close", n)
		}
		if _, err := p.Probe(t.Context(), Request{Target: target[0]}); !errors.Is(err, ErrClosed) {
			t.Errorf("probe after Close: %v", err)
		}
	})
}

// TestStartFromCallback keeps a chain of probes going from callbacks alone.
func TestStartFromCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, (&internet{}).carry, Options{MaxInFlight: 1})
		n := 0
		var next func(Result)
		next = func(r Result) {
			if r.Status != Replied {
				t.Errorf("probe %d: %v, %v", n, r.Status, r.Err)
			}
			if n++; n < 5000 {
				// The slot of the one that ended is free already: the limit is 1.
				if _, err := p.Start(Request{Target: target[n%2], Protocol: protocols[n%4], Port: openPort}, next); err != nil {
					t.Error(err)
				}
			}
		}
		if _, err := p.Start(Request{Target: target[0]}, next); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		if n != 5000 {
			t.Errorf("%d probes ended, want 5000", n)
		}
	})
}

func TestExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, nil, Options{MaxInFlight: 10})
		for k := range 10 {
			if _, err := p.Start(Request{Target: target[0], Timeout: time.Second}, func(Result) {}); err != nil {
				t.Fatalf("probe %d: %v", k, err)
			}
		}
		if _, err := p.Start(Request{Target: target[0]}, func(Result) { t.Error("called back") }); !errors.Is(err, ErrExhausted) {
			t.Errorf("one too many: %v, want ErrExhausted", err)
		}
		if n := p.InFlight(); n != 10 {
			t.Errorf("%d in flight, want 10", n)
		}
		sleep(2 * time.Second)
		if _, err := p.Start(Request{Target: target[0], Timeout: -1}, func(Result) {}); err != nil {
			t.Errorf("when the others have ended: %v", err)
		}
	})
}

// TestNumbersExhausted: where the identifier is given there are only so many echo requests; other targets of UDP still work.
func TestNumbersExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, nil, Options{ICMPID: 7, FirstSequence: 65526})
		count := map[Status]int{}
		for range 15 {
			if _, err := p.Start(Request{Target: target[0], Timeout: time.Second}, func(r Result) {
				count[r.Status]++
				if r.Status == Failed && !errors.Is(r.Err, ErrExhausted) {
					t.Error(r.Err)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if count[Failed] != 5 {
			t.Errorf("%v, want 5 failed", count)
		}
		for k := range 100 {
			a := netip.AddrFrom4([4]byte{11, 0, 0, byte(k)})
			if _, err := p.Start(Request{Target: a, Protocol: UDP, Timeout: time.Second}, func(r Result) { count[r.Status]++ }); err != nil {
				t.Fatal(err)
			}
		}
		sleep(2 * time.Second)
		if count[NoReply] != 110 || count[Failed] != 5 {
			t.Errorf("%v, want 110 without reply, 5 failed", count)
		}
	})
}

// TestFull: a system that is out of buffers for a while delays probes and loses none.
func TestFull(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOBUFS, syscall.EAGAIN, syscall.ENOMEM, syscall.EINTR} {
		t.Run(errno.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := &internet{}
				p, host := open(t, net.carry, Options{})
				until := time.Now().Add(100 * time.Millisecond)
				tries := 0
				host.SetFaults(rawiotest.Faults{Send: func(rawio.Spec, *rawio.Message) error {
					if time.Now().Before(until) {
						tries++
						return errno
					}
					return nil
				}})
				const count = 300
				ended := 0
				for k := range count {
					if _, err := p.Start(Request{Target: target[k%2], Protocol: protocols[k%4], Port: openPort, Tag: uint64(k)}, func(r Result) {
						ended++
						if r.Status != Replied || r.RTT != hop {
							t.Errorf("probe %d: %v after %v, %v", r.Tag, r.Status, r.RTT, r.Err)
						}
						if r.Sent.Before(until) {
							t.Errorf("probe %d left at %v", r.Tag, r.Sent)
						}
					}); err != nil {
						t.Fatal(err)
					}
				}
				sleep(time.Second)
				if ended != count {
					t.Errorf("%d of %d ended", ended, count)
				}
				if tries > 200 {
					t.Errorf("tried %d times in 100 ms", tries)
				}
				if c := p.Counters(); c.Retried == 0 || c.Sent != count || c.Failed != 0 {
					t.Errorf("%+v", c)
				}
			})
		})
	}
}

// TestFullForLong: a probe that could not be sent before its deadline got no reply.
func TestFullForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, nil, Options{})
		host.SetFaults(rawiotest.Faults{Send: func(rawio.Spec, *rawio.Message) error { return syscall.ENOBUFS }})
		start := time.Now()
		r, err := p.Probe(t.Context(), Request{Target: target[0], Timeout: time.Second})
		if err != nil || r.Status != NoReply || !r.Sent.IsZero() {
			t.Errorf("%+v, %v", r, err)
		}
		if took := time.Since(start); took < time.Second || took > 1015*time.Millisecond {
			t.Errorf("took %v, want 1s and up to 15ms", took)
		}
		host.SetFaults(rawiotest.Faults{})
		if r, err := p.Probe(t.Context(), Request{Target: target[0], Timeout: -1}); err != nil || r.Sent.IsZero() {
			t.Errorf("afterwards: %+v, %v", r, err)
		}
	})
}

// TestShortBatches: a system that takes a few messages at a time gets them all, once each.
func TestShortBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &internet{}
		p, host := open(t, net.carry, Options{})
		n := 0
		host.SetFaults(rawiotest.Faults{Send: func(rawio.Spec, *rawio.Message) error {
			if n++; n%7 == 0 {
				return syscall.EAGAIN
			}
			return nil
		}})
		ended := 0
		for k := range 1000 {
			if _, err := p.Start(Request{Target: target[k%2]}, func(r Result) {
				ended++
				if r.Status != Replied || r.RTT != hop {
					t.Errorf("%v after %v", r.Status, r.RTT)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		sleep(5 * time.Second)
		if ended != 1000 || net.count() != 1000 {
			t.Errorf("%d ended, %d packets; want 1000", ended, net.count())
		}
	})
}

// TestLocalErrors checks what the errors of a send become, in the middle of a batch that is otherwise good.
func TestLocalErrors(t *testing.T) {
	for _, tt := range []struct {
		errno  error
		status Status
		is     error
	}{
		{syscall.ENETUNREACH, NetUnreachable, nil},
		{syscall.EHOSTUNREACH, HostUnreachable, nil},
		{syscall.ENETDOWN, NetworkDown, nil},
		{syscall.EHOSTDOWN, HostDown, nil},
		{syscall.EPERM, Failed, ErrPermission},
		{syscall.EACCES, Failed, ErrPermission},
		{syscall.EADDRNOTAVAIL, Failed, ErrAddrNotAvailable},
		{syscall.EADDRINUSE, Failed, ErrAddrInUse},
		{syscall.ENODEV, Failed, ErrNoInterface},
		{syscall.EINVAL, Failed, syscall.EINVAL},
		{fmt.Errorf("wrapped: %w", syscall.EIO), Failed, syscall.EIO},
	} {
		t.Run(tt.errno.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := &internet{}
				p, host := open(t, net.carry, Options{})
				host.SetFaults(rawiotest.Faults{Send: func(_ rawio.Spec, m *rawio.Message) error {
					if m.Addr.Addr() == nowhere[0] || m.Addr.Addr() == nowhere[1] {
						return tt.errno
					}
					return nil
				}})
				var ended int
				for k := range 100 {
					req := Request{Target: target[k%2], Protocol: protocols[k%4], Port: openPort}
					if k%10 == 3 {
						req.Target = nowhere[k%2]
					}
					if _, err := p.Start(req, func(r Result) {
						ended++
						want := tt.status
						if req.Target == target[k%2] {
							want = Replied
						}
						if r.Status != want || want == tt.status && (!errors.Is(r.Err, tt.is) || r.Answered() || r.HasICMP || r.RTT != 0) {
							t.Errorf("probe %d: %+v, want %v", k, r, want)
						}
						if want == Failed && r.Err == nil || want != Failed && r.Err != nil {
							t.Errorf("probe %d: %v with error %v", k, r.Status, r.Err)
						}
					}); err != nil {
						t.Fatal(err)
					}
				}
				sleep(time.Second)
				if ended != 100 {
					t.Errorf("%d of 100 ended", ended)
				}
				if c := p.Counters(); c.Failed != 10 || c.Answered != 90 {
					t.Errorf("%+v", c)
				}
			})
		})
	}
}

// TestLong: what the kernel does not take with a header is sent by the socket of its protocol, which fragments.
func TestLong(t *testing.T) {
	for _, proto := range []Protocol{ICMP, UDP} {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(proto.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := &internet{}
					p, host := open(t, net.carry, Options{})
					fail := 0
					host.SetFaults(rawiotest.Faults{Send: func(s rawio.Spec, m *rawio.Message) error {
						if s.Kind == rawio.Raw && fail > 0 {
							fail--
							return syscall.ENOBUFS
						}
						return nil
					}})
					req := Request{Target: target[v], Protocol: proto, Port: openPort, Size: 4000, TTL: 33, TOS: 0x10}
					r, err := p.Probe(t.Context(), req)
					if err != nil || r.Status != Replied || r.RTT != hop {
						t.Errorf("%+v, %v", r, err)
					}
					sent := net.last(t)
					if d := dissect(sent); len(sent) != 4000 || d.ttl != 33 || d.tos != 0x10 || d.src != local[v] {
						t.Errorf("sent %d bytes, %+v", len(sent), d)
					}
					// Out of buffers for a moment is no failure.
					fail = 3
					if r, err := p.Probe(t.Context(), req); err != nil || r.Status != Replied {
						t.Errorf("with a full queue: %+v, %v", r, err)
					}
					fail = 1 << 30
					req.Timeout = time.Second
					if r, err := p.Probe(t.Context(), req); err != nil || r.Status != NoReply {
						t.Errorf("with a queue that stays full: %+v, %v", r, err)
					}
				})
			})
		})
	}
}

// TestBrokenWait: an engine whose wait fails ends all probes, and Close tells why.
func TestBrokenWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := rawiotest.NewHost(rawiotest.Config{Addrs: local[:]})
		p, err := New(Options{Mode: Privileged, host: host})
		if err != nil {
			t.Fatal(err)
		}
		ch, err := p.Send(t.Context(), Request{Target: target[0], Timeout: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		host.SetFaults(rawiotest.Faults{Wait: func() error { return syscall.EBADF }})
		host.Wake()
		if r := <-ch; r.Status != Failed || !errors.Is(r.Err, ErrClosed) {
			t.Errorf("%+v", r)
		}
		if err := p.Close(); !errors.Is(err, syscall.EBADF) {
			t.Errorf("close: %v, want the cause", err)
		}
	})
}

// TestRoundTrip computes round-trip times from stamps, with steps of the wall clock in between.
func TestRoundTrip(t *testing.T) {
	const ms = int64(time.Millisecond)
	const sent = int64(1_700_000_000_000) * ms // wall clock at departure
	for _, tt := range []struct {
		name       string
		elapsed    int64 // of the monotonic clock, until the engine looked
		step       int64 // of the wall clock in between
		stamp      int64 // arrival, after departure, by the stepped clock; -1: none
		kernelSent bool
		want       int64
		kernel     bool
	}{
		{"at once", 5 * ms, 0, 5 * ms, true, 5 * ms, true},
		{"after a while in the queue", 50 * ms, 0, 5 * ms, true, 5 * ms, true},
		{"departure without a stamp", 50 * ms, 0, 5 * ms, false, 5 * ms, false},
		{"no stamp", 50 * ms, 0, -1, true, 50 * ms, false},
		{"no time at all", 0, 0, 0, true, 1, true},
		{"a little before departure", ms, 0, -ms / 2, false, 1, false},
		{"clock forward an hour", 50 * ms, 3600e3 * ms, 3600e3*ms + 40*ms, true, 40 * ms, false},
		{"clock back an hour", 50 * ms, -3600e3 * ms, -3600e3*ms + 40*ms, true, 40 * ms, false},
		{"clock back by less than the round trip", 100 * ms, -50 * ms, -50*ms + 90*ms, true, 90 * ms, false},
		{"clock forward by less than the time in the queue", 200 * ms, 50 * ms, 50*ms + 100*ms, true, 100 * ms, false},
		{"clock set between arrival and look", 50 * ms, 3600e3 * ms, 40 * ms, true, 50 * ms, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := slot{sentMono: 77 * ms, sentWall: sent, kernelSent: tt.kernelSent}
			e := engine{now: 77*ms + tt.elapsed, wall: sent + tt.elapsed + tt.step}
			stamp := int64(0)
			if tt.stamp != -1 {
				stamp = sent + tt.stamp
			}
			rtt, kernel := e.roundTrip(&s, stamp)
			if int64(rtt) != tt.want || kernel != tt.kernel {
				t.Errorf("%v, kernel %v; want %v, %v", rtt, kernel, time.Duration(tt.want), tt.kernel)
			}
		})
	}
}

// TestBatchTimes: in a batch too large for stamps the round-trip times are still right.
func TestBatchTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, (&internet{}).carry, Options{})
		ended := 0
		for range 200 {
			if _, err := p.Start(Request{Target: target[0]}, func(r Result) {
				ended++
				if r.RTT != hop {
					t.Errorf("RTT %v, want %v", r.RTT, hop)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		sleep(time.Second)
		if ended != 200 {
			t.Errorf("%d of 200 ended", ended)
		}
	})
}

// TestImpaired sends probes over a lossy, jittery, duplicating path: every probe ends once, and nothing is matched wrongly.
func TestImpaired(t *testing.T) {
	const seed, count = 20060606, 5000
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		bad := rawiotest.Impairment{
			Loss: 0.1, Duplicate: 0.2, Reorder: 0.1, Delay: 20 * time.Millisecond, Jitter: 150 * time.Millisecond, Seed: seed,
		}
		net := &internet{routers: 2}
		p, _ := open(t, bad.Wrap(net.carry), Options{})
		calls := make([]int, count)
		status := map[Status]int{}
		for k := range count {
			req := Request{
				Target: target[k%2], Protocol: protocols[k/2%4], TTL: uint8(1 + k/8%4), Port: openPort, Tag: uint64(k),
				Timeout: 120 * time.Millisecond, // some answers are late
			}
			if _, err := p.Start(req, func(r Result) {
				calls[r.Tag]++
				status[r.Status]++
				if !r.Answered() {
					return
				}
				want := target[r.Tag%2]
				if ttl := int(r.TTL); ttl <= 2 {
					want = routerAddr(int(r.Tag%2), ttl-1)
				}
				if r.Responder != want || r.RTT < distance(min(int(r.TTL)-1, 2)) || r.RTT > 121*time.Millisecond {
					t.Errorf("probe %d with TTL %d: %v after %v, want %v", r.Tag, r.TTL, r.Responder, r.RTT, want)
				}
			}); err != nil {
				t.Fatal(err)
			}
			sleep(100 * time.Microsecond)
		}
		sleep(time.Second)
		if i := slices.IndexFunc(calls, func(n int) bool { return n != 1 }); i >= 0 {
			t.Errorf("callback %d was called %d times", i, calls[i])
		}
		c := p.Counters()
		if c.Answered+c.TimedOut != count || c.Unmatched == 0 || status[NoReply] != int(c.TimedOut) || c.Malformed != 0 {
			t.Errorf("%+v, %v", c, status)
		}
	})
}
