// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
)

// TestFullForAll: while the system has no room, time runs for probes far back in the queue, too.
func TestFullForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, nil, Options{})
		host.SetFaults(rawiotest.Faults{Send: func(rawio.Spec, *rawio.Message) error { return syscall.ENOBUFS }})
		start := time.Now()
		const count = 1000
		ended := 0
		for range count {
			if _, err := p.Start(Request{Target: target[0], Timeout: time.Second}, func(r Result) {
				ended++
				if took := time.Since(start); r.Status != NoReply || took < time.Second || took > 1015*time.Millisecond {
					t.Errorf("%v after %v", r.Status, took)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		sleep(2 * time.Second)
		if ended != count {
			t.Errorf("%d of %d ended", ended, count)
		}
	})
}

// TestWaiting: probes whose socket can't be opened for want of descriptors hold up no others, end on
// time or by Cancel or Close, and are sent when there are descriptors again.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, (&internet{}).carry, Options{Mode: Unprivileged})
		full := rawiotest.Faults{Open: func(rawio.Spec) error { return syscall.EMFILE }}
		host.SetFaults(full)
		start := time.Now()
		ends := map[Status]int{}
		begin := func(n int, timeout time.Duration) (handles []Handle) {
			for k := range n {
				h, err := p.Start(Request{Target: target[k%2], Protocol: UDP, LocalPort: uint16(5000 + k), Timeout: timeout}, func(r Result) {
					ends[r.Status]++
					if took := time.Since(start); r.Status == NoReply && (took < timeout || took > timeout+2*time.Millisecond) {
						t.Errorf("%v, want %v", took, timeout)
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				handles = append(handles, h)
			}
			return handles
		}
		check := func(when string, status Status, n, waiting int) {
			t.Helper()
			if ends[status] != n || len(ends) != 1 || p.InFlight() != waiting {
				t.Errorf("%s: %v, %d waiting; want %d %v, %d waiting", when, ends, p.InFlight(), n, status, waiting)
			}
			clear(ends)
		}
		begin(500, 100*time.Millisecond)
		handles := begin(300, time.Minute)
		r, err := p.Probe(t.Context(), Request{Target: target[0]})
		if err != nil || r.Status != Replied || time.Since(start) != hop {
			t.Errorf("with others waiting: %+v, %v after %v", r, err, time.Since(start))
		}
		sleep(200 * time.Millisecond)
		check("timed out", NoReply, 500, 300)
		for _, h := range handles[:100] {
			p.Cancel(h)
		}
		sleep(0)
		check("cancelled", Failed, 100, 200)
		host.SetFaults(rawiotest.Faults{})
		sleep(100 * time.Millisecond)
		check("with descriptors", Replied, 200, 0)
		host.SetFaults(rawiotest.Faults{Open: full.Open})
		for k := range 10 {
			if _, err := p.Start(Request{Target: target[0], Protocol: UDP, LocalPort: uint16(7000 + k)}, func(r Result) { ends[r.Status]++ }); err != nil {
				t.Fatal(err)
			}
		}
		sleep(20 * time.Millisecond)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		check("closed", Failed, 10, 0)
	})
}

// flooded is a host whose sockets never run dry.
type flooded struct{ rawio.Host }

func (h flooded) Open(s rawio.Spec) (rawio.Conn, error) {
	c, err := h.Host.Open(s)
	return floodedConn{c, s}, err
}

type floodedConn struct {
	rawio.Conn
	spec rawio.Spec
}

func (c floodedConn) Receive(msgs []rawio.Message) (int, error) {
	for k := range msgs {
		msgs[k].N, msgs[k].Addr = copy(msgs[k].Data, "stranger"), netip.AddrPortFrom(target[c.spec.Version/2-2], 9)
	}
	return len(msgs), nil
}

// TestFlood: packets that never end keep the engine from nothing else, in either mode.
func TestFlood(t *testing.T) {
	for _, mode := range []Mode{Privileged, Unprivileged} {
		t.Run(mode.String(), func(t *testing.T) {
			host := flooded{rawiotest.NewHost(rawiotest.Config{Addrs: local[:]})}
			p, err := New(Options{Mode: mode, host: host})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			for _, proto := range []Protocol{ICMP, UDP} {
				start := time.Now()
				r, err := p.Probe(t.Context(), Request{Target: target[0], Protocol: proto, Timeout: 50 * time.Millisecond})
				if took := time.Since(start); err != nil || r.Status != NoReply || took > time.Second {
					t.Errorf("%v: %+v, %v after %v", proto, r, err, took)
				}
			}
		})
	}
}

// TestCancelAfterClose: handles that nobody will look at are not kept.
func TestCancelAfterClose(t *testing.T) {
	p, _ := open(t, nil, Options{})
	h, err := p.Start(Request{Target: target[0]}, func(Result) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		p.Cancel(h)
	}
	if n := len(p.cancels); n != 0 {
		t.Errorf("%d kept", n)
	}
}

// TestSearchIsBounded: the search for a number where few are left or none does not keep the engine from the
// probes of others, and ends with ErrExhausted.
func TestSearchIsBounded(t *testing.T) {
	for _, mode := range []Mode{Privileged, Unprivileged} {
		t.Run(mode.String(), func(t *testing.T) {
			p, _ := open(t, (&internet{silent: true}).carry, Options{Mode: mode})
			const space = 65536 - DefaultFirstSequence
			var exhausted, other atomic.Int64
			// More UDP probes to one target than there are numbers, each of which looks for one.
			for range space + 2000 {
				if _, err := p.Start(Request{Target: target[0], Protocol: UDP, Timeout: time.Minute}, func(r Result) {
					switch {
					case errors.Is(r.Err, ErrExhausted):
						exhausted.Add(1)
					case !errors.Is(r.Err, ErrClosed):
						other.Add(1)
					}
				}); err != nil {
					t.Fatal(err)
				}
			}
			for p.Counters().Sent < space {
				time.Sleep(time.Millisecond)
			}
			start := time.Now()
			if r, err := p.Probe(t.Context(), Request{Target: target[1], Protocol: UDP, Timeout: time.Millisecond}); err != nil || r.Status != NoReply {
				t.Errorf("%+v, %v", r, err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("a probe of 1 ms took %v", took)
			}
			for deadline := time.Now().Add(10 * time.Second); exhausted.Load() == 0 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			if exhausted.Load() == 0 || other.Load() != 0 {
				t.Errorf("%d exhausted, %d others", exhausted.Load(), other.Load())
			}
		})
	}
}
