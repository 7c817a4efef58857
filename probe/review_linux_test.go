// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
)

// cpuWhile is the processor time that the whole process takes in d.
func cpuWhile(t testing.TB, d time.Duration) time.Duration {
	t.Helper()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	time.Sleep(d)
	return used() - before
}

// TestIdleAfterBusyStart opens probers while packets of every kind rush past: a raw socket takes in
// what arrives before its filter is in place, and must not keep the engine awake with it for ever.
func TestIdleAfterBusyStart(t *testing.T) {
	h := path(t).Host("a")
	var stop atomic.Bool
	var floods sync.WaitGroup
	for _, to := range []string{"127.0.0.1:9", "[::1]:9"} {
		var c net.Conn
		if err := h.Do(func() (err error) {
			c, err = net.Dial("udp", to)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		floods.Go(func() {
			for !stop.Load() {
				_, _ = c.Write([]byte{1}) // refused: that's the flood of ICMP
			}
		})
	}
	for range 50 {
		openAt(t, h, Options{Mode: Privileged})
	}
	stop.Store(true)
	floods.Wait()
	time.Sleep(100 * time.Millisecond)
	if used := cpuWhile(t, time.Second); used > 200*time.Millisecond {
		t.Errorf("probers with nothing to do took %v of a second", used)
	}
}

// TestIdleAfterErrors: errors about a burst of probes, whether they were waited for or not, leave an
// unprivileged prober asleep.
func TestIdleAfterErrors(t *testing.T) {
	if testing.Short() {
		t.Skip("four thousand errors take some seconds")
	}
	both(t, func(t *testing.T, _ *lab.Lab, p *Prober) {
		for _, to := range []string{"192.0.2.77", "10.0.1.2"} {
			for k := range 4000 {
				req := Request{Target: netip.MustParseAddr(to), Protocol: protocols[k%3], Port: 9, TTL: uint8(1 + k/3%3), Timeout: 200 * time.Millisecond}
				if k%2 == 0 {
					req.Timeout = -1 // the error comes when nobody waits any more
				}
				if k%4 == 1 {
					req.LocalPort = uint16(5000 + k%64)
				}
				if _, err := p.Start(req, func(Result) {}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(500 * time.Millisecond)
		}
		if n := p.InFlight(); n != 0 {
			t.Errorf("%d in flight", n)
		}
		if used := cpuWhile(t, time.Second); used > 50*time.Millisecond {
			t.Errorf("an idle prober took %v of a second", used)
		}
		t.Logf("%+v", p.Counters())
	})
}

// TestBusyFlow: probes that wait for the one connection that their flow may have, or for a descriptor, hold up
// no others.
func TestBusyFlow(t *testing.T) {
	l := path(t)
	p := openAt(t, l.Host("a"), Options{Mode: Unprivileged})
	waiting := make(chan Result, 300)
	for range cap(waiting) {
		req := Request{Target: netip.MustParseAddr("10.0.2.99"), Protocol: TCP, Flow: 1, Timeout: time.Second}
		if _, err := p.Start(req, func(r Result) { waiting <- r }); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		start := time.Now()
		r, err := p.Probe(t.Context(), Request{Target: l.Host("b").Addr(), Timeout: 5 * time.Second})
		if took := time.Since(start); err != nil || r.Status != Replied || took > 100*time.Millisecond {
			t.Fatalf("%v: %+v, %v", took, r, err)
		}
	}
	if used := cpuWhile(t, 300*time.Millisecond); used > 100*time.Millisecond {
		t.Errorf("waiting took %v", used)
	}
	for range cap(waiting) {
		if r := <-waiting; r.Status != NoReply {
			t.Errorf("%+v", r)
		}
	}
}

// TestLinkLocalSource: a link-local source address needs no zone of its own, and one that is not the host's is
// refused whatever its kind.
func TestLinkLocalSource(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		var own, other netip.Addr
		linkLocal := func(host, iface string) (a netip.Addr) {
			if err := l.Host(host).Do(func() error {
				i, err := net.InterfaceByName(iface)
				if err != nil {
					return err
				}
				addrs, err := i.Addrs()
				if err != nil {
					return err
				}
				for _, x := range addrs {
					if ip := netip.MustParsePrefix(x.String()).Addr(); ip.IsLinkLocalUnicast() {
						a = ip
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return a
		}
		own, other = linkLocal("a", "r"), linkLocal("r", "a")
		for _, proto := range protocols {
			if !p.features.Supports(proto, 6) || proto == SCTP {
				continue
			}
			for _, req := range []Request{
				{Target: other.WithZone("r"), LocalAddr: own},
				{Target: other.WithZone("r"), LocalAddr: own.WithZone("r")},
				{Target: other, LocalAddr: own, Interface: "r"},
				{Target: other.WithZone("r")},
			} {
				req.Protocol, req.Port, req.Timeout = proto, 9, time.Second
				if r, err := p.Probe(t.Context(), req); err != nil || r.Status != Replied {
					t.Errorf("%v from %v: %+v, %v", proto, req.LocalAddr, r, err)
				}
			}
			for _, from := range []string{"224.0.0.1", "255.255.255.255", "10.0.1.255", "10.0.1.9", "ff02::1", "fe80::9%r", "2001:db8::9"} {
				a := netip.MustParseAddr(from)
				to := l.Host("b").Addr()
				if a.Is6() {
					to = other.WithZone("r")
				}
				if r, err := p.Probe(t.Context(), Request{Target: to, LocalAddr: a, Protocol: proto, Timeout: 100 * time.Millisecond}); !errors.Is(err, ErrAddrNotAvailable) {
					t.Errorf("%v from %v: %+v, %v", proto, from, r, err)
				}
			}
		}
	})
}

// TestStampsOfQueue: behind a slow link, departures are stamped long after the socket took the packets, and while
// it takes no more. Each stamp belongs to its own probe.
func TestStampsOfQueue(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		out, err := l.Host("a").Command(t.Context(), "tc", "qdisc", "add", "dev", "r", "root", "tbf", "rate", "2mbit", "burst", "1600", "limit", "10000000").CombinedOutput()
		if err != nil {
			t.Skipf("no tbf: %v: %s", err, out)
		}
		var mu sync.Mutex
		timed, wrong := 0, 0
		var worst time.Duration
		for range 1500 {
			if _, err := p.Start(Request{Target: l.Host("b").Addr(), Timeout: 5 * time.Second}, func(r Result) {
				mu.Lock()
				defer mu.Unlock()
				if r.Status != Replied {
					t.Errorf("%+v", r)
				}
				if r.KernelTimed {
					timed++
					if r.RTT > 5*time.Millisecond || r.RTT < time.Microsecond {
						wrong++
						worst = max(worst, r.RTT)
					}
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		for p.InFlight() > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("%d stamped, %d wrong, up to %v; %+v", timed, wrong, worst, p.Counters())
		if timed == 0 || wrong > 0 {
			t.Errorf("%d stamped, %d wrong, up to %v", timed, wrong, worst)
		}
	})
}

// TestDescriptors: neither Close nor a New that fails leaves a descriptor open.
func TestDescriptors(t *testing.T) {
	l := path(t)
	h := l.Host("a")
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	once := func(do func(func() error) error, mode Mode, fails bool) {
		var p *Prober
		err := do(func() (err error) {
			p, err = New(Options{Mode: mode})
			return err
		})
		if fails != (err != nil) {
			t.Fatalf("%v: %v, want an error: %v", mode, err, fails)
		}
		if err != nil {
			return
		}
		for k := range 100 {
			for _, proto := range protocols {
				_, _ = p.Start(Request{Target: l.Host("b").Addr(), Protocol: proto, LocalPort: uint16(5000 + k), Port: openPort}, func(Result) {})
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	all := func() {
		once(h.Do, Privileged, false)
		once(h.DoUnprivileged, Unprivileged, false)
		once(h.DoUnprivileged, Auto, false)
		once(h.DoUnprivileged, Privileged, true)
	}
	all() // the runtime opens some of its own
	before := count()
	for range 5 {
		all()
	}
	// What the lab itself opened for connections of the probes, in this process, it closes in its own time.
	after := count()
	for deadline := time.Now().Add(5 * time.Second); after > before && time.Now().Before(deadline); after = count() {
		time.Sleep(5 * time.Millisecond)
	}
	if after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestIrrelevantFailure: an ICMP message that means nothing for a probe does not end one by TCP either; least of all
// is it a reply.
func TestIrrelevantFailure(t *testing.T) {
	p, e := openEngine(t, nil, Options{Mode: Unprivileged})
	p.features.TCP = true
	ended := 0
	for _, errno := range []unix.Errno{0, unix.EPROTO} {
		h, err := p.Start(Request{Target: target[0], Protocol: TCP}, func(r Result) {
			if ended++; !errors.Is(r.Err, ErrClosed) {
				t.Errorf("errno %v: %+v", errno, r)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		e.take()
		i := e.slots.pop(&e.queue, byTime)
		e.slots.at(i).src = local[0]
		if err := e.number(i); err != nil {
			t.Fatal(err)
		}
		e.sent(i, e.now, e.wall)
		e.back.(*user).connected(&rawio.Connected{
			Key: uint64(h.gen)<<32 | uint64(h.slot), Err: errno,
			Failure: rawio.Failure{Origin: rawio.OriginICMP, Type: 12, Errno: uint32(unix.EPROTO), Offender: router[0]},
		})
	}
	if ended != 0 || e.counters.Irrelevant != 2 {
		t.Errorf("%d ended, %+v", ended, e.counters)
	}
}
