// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/lab"
)

// path is the lab of these tests.
//
//	a --- r --- b      b answers on TCP port 80 and UDP port 80
func path(t testing.TB) *lab.Lab {
	t.Helper()
	l := lab.New(t, lab.MustParse(`
		[host.a]
		addresses = ["192.0.2.77", "2001:db8::77"]
		[host.b]
		[router.r]
		[[wire]]
		ends = ["a", "r"]
		[[wire]]
		ends = ["r", "b"]
	`))
	serve(t, l.Host("b"))
	return l
}

// serve opens a TCP and a UDP service for both IP versions.
func serve(t testing.TB, h *lab.Host) {
	t.Helper()
	var listener net.Listener
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		if listener, err = net.Listen("tcp", fmt.Sprintf(":%d", openPort)); err != nil {
			return err
		}
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: openPort})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.Close()
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b) // allocates nothing, as some test requires of all
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = conn.WriteToUDPAddrPort(b[:n], from) // the asker may be gone
			}
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		conn.Close()
		<-done
		<-done
	})
}

// openAt gives a prober on a host of a lab.
func openAt(t testing.TB, h *lab.Host, opts Options) *Prober {
	t.Helper()
	var p *Prober
	do := h.Do
	if opts.Mode == Unprivileged {
		do = h.DoUnprivileged
	}
	if err := do(func() (err error) {
		p, err = New(opts)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

// both runs a subtest for each mode, on a host of a new lab, and one for frames: they must make no difference.
func both(t *testing.T, f func(t *testing.T, l *lab.Lab, p *Prober)) {
	for _, opts := range []Options{{Mode: Privileged}, {Mode: Unprivileged}, {Mode: Privileged, SendFrames: true}} {
		name := opts.Mode.String()
		if opts.SendFrames {
			name = "frames"
		}
		t.Run(name, func(t *testing.T) {
			l := path(t)
			p := openAt(t, l.Host("a"), opts)
			if got := p.Features(); got.Mode != opts.Mode || got.Frames != opts.SendFrames {
				t.Fatalf("mode %v, frames %v", got.Mode, got.Frames)
			}
			f(t, l, p)
		})
	}
}

// ask sends one probe, and fails the test if it is not sent.
func ask(t *testing.T, p *Prober, req Request) Result {
	t.Helper()
	if req.Timeout == 0 {
		req.Timeout = 2 * time.Second
	}
	r, err := p.Probe(t.Context(), req)
	if err != nil {
		t.Errorf("%v to %v: %v", req.Protocol, req.Target, err)
	}
	return r
}

// addr is a host's address of version v.
func addr(h *lab.Host, v int) netip.Addr {
	if v == 0 {
		return h.Addr()
	}
	return h.Addr6()
}

// TestLabPath sends probes of every protocol to the router, and to open and closed ports behind it.
func TestLabPath(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		f := p.Features()
		for v := range 2 {
			to, via := addr(l.Host("b"), v), l.Host("r").AddrTowards("a", 4+2*v)
			for _, proto := range protocols {
				if !f.Supports(proto, 4+2*v) {
					if f.Mode == Privileged || proto != SCTP {
						t.Errorf("%v over IPv%d is not supported", proto, 4+2*v)
					}
					if _, err := p.Probe(t.Context(), Request{Target: to, Protocol: proto}); !errors.Is(err, ErrUnsupported) {
						t.Errorf("%v: %v, want ErrUnsupported", proto, err)
					}
					continue
				}
				for _, flow := range []uint16{0, 5} {
					r := ask(t, p, Request{Target: to, Protocol: proto, Port: openPort, TTL: 1, Flow: flow})
					if r.Status != TimeExceeded || r.Responder != via || !r.HasICMP || r.ICMPType != [...]uint8{11, 3}[v] || r.RTT <= 0 || r.RTT > time.Second {
						t.Errorf("%v, TTL 1, flow %d: %+v, want %v from %v", proto, flow, r, TimeExceeded, via)
					}
					if f.Mode == Privileged && (r.QuotedTTL != 1 || r.ReplyTTL != 64 || !r.KernelTimed) {
						t.Errorf("%v, TTL 1: %+v, want TTL 64 quoting 1, timed by the kernel", proto, r)
					}
					for _, port := range []uint16{openPort, 9} {
						want := Replied
						if proto == SCTP {
							want = HostUnreachable // no kernel SCTP: protocol unreachable
						}
						r = ask(t, p, Request{Target: to, Protocol: proto, Port: port, Flow: flow})
						if proto == SCTP && r.Status == Replied {
							want = Replied // this kernel has one
						}
						if r.Status != want || r.Responder != to || r.RTT <= 0 || r.RTT > time.Second {
							t.Errorf("%v, port %d, flow %d: %+v, want %v from %v", proto, port, flow, r, want, to)
						}
						closedUDP := proto == UDP && port != openPort
						if closedUDP && (!r.HasICMP || r.ICMPType != [...]uint8{3, 1}[v] || r.ICMPCode != [...]uint8{3, 4}[v]) {
							t.Errorf("UDP to a closed port: %+v", r)
						}
						if proto == ICMP && r.ReplyTTL != 63 {
							t.Errorf("reply TTL %d, want 63", r.ReplyTTL)
						}
					}
				}
				// With both ports fixed.
				if proto == UDP {
					for _, port := range []uint16{openPort, 9} {
						if r := ask(t, p, Request{Target: to, Protocol: UDP, Port: port, LocalPort: 4567}); r.Status != Replied {
							t.Errorf("UDP with both ports, to %d: %+v", port, r)
						}
					}
				}
			}
		}
		if c := p.Counters(); c.Malformed != 0 || c.TimedOut != 0 {
			t.Errorf("%+v", c)
		}
	})
}

// TestLabFlood has many probes of all protocols in flight at once.
func TestLabFlood(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		f := p.Features()
		n, got := 0, map[Status]int{}
		requests := func(yield func(Request) bool) {
			for k := range 8000 {
				v, proto := k%2, protocols[k/2%4]
				if !f.Supports(proto, 4+2*v) || proto == SCTP {
					continue
				}
				n++
				req := Request{Target: addr(l.Host("b"), v), Protocol: proto, Port: openPort, Timeout: 5 * time.Second}
				if k%16 >= 8 {
					req.TTL = 1
				}
				if !yield(req) {
					return
				}
			}
		}
		for r := range p.Stream(t.Context(), 200, requests) {
			want := Replied
			if r.TTL == 1 {
				want = TimeExceeded
			}
			if r.Status != want && got[r.Status] < 3 {
				t.Errorf("%v TTL %d: %v, %v; want %v", r.Target, r.TTL, r.Status, r.Err, want)
			}
			got[r.Status]++
		}
		t.Logf("%v of %d, %+v", got, n, p.Counters())
		if got[Replied]+got[TimeExceeded] != n {
			t.Errorf("%v of %d", got, n)
		}
	})
}

// TestLabLinkLocal probes the router's link-local address, which is nothing without its zone.
func TestLabLinkLocal(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		var linkLocal netip.Addr
		if err := l.Host("r").Do(func() error {
			ifc, err := net.InterfaceByName("a")
			if err != nil {
				return err
			}
			addrs, err := ifc.Addrs()
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if ip := netip.MustParsePrefix(a.String()).Addr(); ip.IsLinkLocalUnicast() {
					linkLocal = ip
				}
			}
			return nil
		}); err != nil || !linkLocal.IsValid() {
			t.Fatalf("the router has no link-local address: %v", err)
		}
		for _, proto := range []Protocol{ICMP, UDP, TCP} {
			r := ask(t, p, Request{Target: linkLocal.WithZone("r"), Protocol: proto, Port: 9})
			if r.Status != Replied || r.Responder.WithZone("") != linkLocal {
				t.Errorf("%v: %+v", proto, r)
			}
		}
		for _, zone := range []string{"gone", "lo"} {
			if r, err := p.Probe(t.Context(), Request{Target: linkLocal.WithZone(zone), Timeout: time.Second}); err == nil && r.Answered() {
				t.Errorf("in zone %s: %+v", zone, r)
			}
		}
		if _, err := p.Probe(t.Context(), Request{Target: linkLocal.WithZone("gone"), Timeout: time.Second}); !errors.Is(err, ErrNoInterface) {
			t.Errorf("in a zone that does not exist: %v, want ErrNoInterface", err)
		}
	})
}

// TestLabLocal checks source addresses and interfaces.
func TestLabLocal(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		service := [2]netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77")}
		for v := range 2 {
			to := addr(l.Host("b"), v)
			for _, proto := range []Protocol{ICMP, UDP, TCP} {
				if r := ask(t, p, Request{Target: to, Protocol: proto, Port: 9, LocalAddr: service[v]}); r.Status != Replied {
					t.Errorf("%v from a service address: %+v", proto, r)
				}
				if r := ask(t, p, Request{Target: to, Protocol: proto, Port: 9, Interface: "r"}); r.Status != Replied {
					t.Errorf("%v through the interface: %+v", proto, r)
				}
				if _, err := p.Probe(t.Context(), Request{Target: to, Protocol: proto, LocalAddr: to}); !errors.Is(err, ErrAddrNotAvailable) {
					t.Errorf("%v from another's address: %v", proto, err)
				}
				if _, err := p.Probe(t.Context(), Request{Target: to, Protocol: proto, Interface: "gone"}); !errors.Is(err, ErrNoInterface) {
					t.Errorf("%v through no interface: %v", proto, err)
				}
			}
		}
	})
}

// TestLabNoRoute: a host with two neighbours and no router has no way to other targets.
//
//	b --- a --- c
func TestLabNoRoute(t *testing.T) {
	l := lab.New(t, lab.MustParse(`
		[host.a]
		[host.b]
		[host.c]
		[[wire]]
		ends = ["a", "b"]
		[[wire]]
		ends = ["a", "c"]
	`))
	for _, mode := range []Mode{Privileged, Unprivileged} {
		p := openAt(t, l.Host("a"), Options{Mode: mode})
		for v := range 2 {
			for _, proto := range []Protocol{ICMP, UDP, TCP} {
				if r := ask(t, p, Request{Target: nowhere[v], Protocol: proto}); r.Status != NetUnreachable || r.Answered() {
					t.Errorf("%v, %v to %v: %+v, want %v", mode, proto, nowhere[v], r, NetUnreachable)
				}
			}
		}
	}
}

// TestLabSilentNeighbour: nobody has the address, so the last router says after a while that the host is unreachable.
func TestLabSilentNeighbour(t *testing.T) {
	if testing.Short() {
		t.Skip("the kernel asks a silent neighbour for three seconds")
	}
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		var targets [2]netip.Addr
		for v := range targets {
			targets[v] = addr(l.Host("b"), v).Next().Next().Next()
		}
		var results [2]Result
		var wg sync.WaitGroup
		for v, to := range targets {
			wg.Go(func() { results[v] = ask(t, p, Request{Target: to, Timeout: 9 * time.Second}) })
		}
		wg.Wait()
		for v, r := range results {
			to := targets[v]
			if r.Status != HostUnreachable || r.Responder != l.Host("r").AddrTowards("a", 4+2*v) || !r.HasICMP || r.ICMPCode != [...]uint8{1, 3}[v] {
				t.Errorf("%v: %+v", to, r)
			}
		}
	})
}

// TestLabSizes sends what fits, and what the host has to fragment.
func TestLabSizes(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		for v := range 2 {
			for _, proto := range []Protocol{ICMP, UDP} {
				for _, size := range []int{1, 64, 1500, 1501, 4000, 20000} {
					if r := ask(t, p, Request{Target: addr(l.Host("b"), v), Protocol: proto, Port: openPort, Size: size}); r.Status != Replied {
						t.Errorf("%v over IPv%d of %d bytes: %+v", proto, 4+2*v, size, r)
					}
				}
			}
		}
	})
}

// TestLabMark: a mark needs the privilege, at each probe.
func TestLabMark(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		r, err := p.Probe(t.Context(), Request{Target: l.Host("b").Addr(), Mark: 5, Timeout: time.Second})
		if p.Features().Mark {
			if err != nil || r.Status != Replied {
				t.Errorf("with the privilege: %+v, %v", r, err)
			}
		} else if !errors.Is(err, ErrUnsupported) {
			t.Errorf("without the privilege: %+v, %v", r, err)
		}
	})
}

// TestLabCancel ends a probe to nobody.
func TestLabCancel(t *testing.T) {
	both(t, func(t *testing.T, l *lab.Lab, p *Prober) {
		for _, proto := range []Protocol{ICMP, UDP, TCP} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			start := time.Now()
			_, err := p.Probe(ctx, Request{Target: l.Host("b").Addr().Next().Next(), Protocol: proto, Timeout: time.Minute})
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
				t.Errorf("%v: %v after %v", proto, err, time.Since(start))
			}
		}
		if n := p.InFlight(); n != 0 {
			t.Errorf("%d in flight", n)
		}
	})
}

// TestLabAllocations: a closed loop of probes over real sockets allocates nothing per probe.
func TestLabAllocations(t *testing.T) {
	l := path(t)
	for _, tt := range []struct {
		mode   Mode
		frames bool
		proto  Protocol
		most   float64
	}{
		{Privileged, false, ICMP, 0.01},
		{Privileged, false, UDP, 0.01},
		{Privileged, false, TCP, 0.01},
		{Privileged, true, ICMP, 0.01},
		{Privileged, true, UDP, 0.01},
		{Unprivileged, false, ICMP, 0.01},
	} {
		t.Run(fmt.Sprintf("%v %v, frames %v", tt.mode, tt.proto, tt.frames), func(t *testing.T) {
			p := openAt(t, l.Host("a"), Options{Mode: tt.mode, SendFrames: tt.frames})
			for v := range 2 {
				const inFlight, probes = 100, 10_000
				req := Request{Target: addr(l.Host("b"), v), Protocol: tt.proto, Port: openPort}
				left, running := 0, 0
				done := make(chan struct{}, 1)
				var next func(Result)
				next = func(r Result) {
					if r.Status != Replied {
						t.Errorf("%v: %v", r.Status, r.Err)
					}
					if left--; left >= 0 {
						if _, err := p.Start(req, next); err != nil {
							t.Error(err)
						}
						return
					}
					if running--; running == 0 {
						done <- struct{}{}
					}
				}
				run := func() {
					left, running = probes-inFlight, inFlight
					for range inFlight {
						if _, err := p.Start(req, next); err != nil {
							t.Fatal(err)
						}
					}
					<-done
				}
				if n := testing.AllocsPerRun(1, run) / probes; n > tt.most {
					t.Errorf("IPv%d: %.3f allocations per probe", 4+2*v, n)
				}
			}
		})
	}
}
