// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
)

// frameLog remembers through which kind of socket each message was sent, and how often the next hop was asked for.
type frameLog struct {
	mu    sync.Mutex
	kinds []rawio.Kind
	asked int

	refuse  func(rawio.Kind, *rawio.Message) error // may be nil
	nextHop func(netip.Addr, *rawio.NextHop) error // may be nil
}

func (l *frameLog) watch(host *rawiotest.Host) {
	host.SetFaults(rawiotest.Faults{
		Send: func(s rawio.Spec, m *rawio.Message) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.refuse != nil {
				if err := l.refuse(s.Kind, m); err != nil {
					return err
				}
			}
			l.kinds = append(l.kinds, s.Kind)
			return nil
		},
		NextHop: func(dst netip.Addr, hop *rawio.NextHop) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.asked++
			if l.nextHop != nil {
				return l.nextHop(dst, hop)
			}
			return nil
		},
	})
}

// take gives what was logged since the last take.
func (l *frameLog) take() (kinds []rawio.Kind, asked int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kinds, asked = l.kinds, l.asked
	l.kinds, l.asked = nil, 0
	return kinds, asked
}

func (l *frameLog) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// openFraming gives a prober that sends frames, its log included.
func openFraming(t *testing.T, net *internet) (*Prober, *rawiotest.Host, *frameLog) {
	t.Helper()
	p, host := open(t, net.carry, Options{SendFrames: true})
	if f := p.Features(); !f.Frames || f.Mode != Privileged || len(f.Missing) != 0 {
		t.Fatalf("%+v", f)
	}
	l := &frameLog{}
	l.watch(host)
	return p, host, l
}

// unlike blanks what differs between two packets of the same request: the identification, the random numbers of
// TCP and SCTP, and the checksums over them.
func unlike(p []byte) []byte {
	p = slices.Clone(p)
	upper := packet.IPv6HeaderLen
	proto := packet.Protocol(p[6])
	if p[0]>>4 == 4 {
		upper, proto = packet.IPv4HeaderLen, packet.Protocol(p[9])
		clear(p[4:6])
		clear(p[10:12])
	}
	switch proto {
	case packet.ProtocolTCP:
		clear(p[upper+4 : upper+8])
		clear(p[upper+16 : upper+18])
	case packet.ProtocolSCTP:
		clear(p[upper+8 : upper+12])  // checksum
		clear(p[upper+16 : upper+20]) // initiate tag
		clear(p[upper+28 : upper+32]) // initial TSN
	}
	return p
}

// TestFramesSameBytes sends the same requests both ways: the packets are the same.
func TestFramesSameBytes(t *testing.T) {
	for _, proto := range protocols {
		for _, req := range []Request{
			{}, {TTL: 3, TOS: 0x48, Size: 200, Pattern: 7}, {Flow: 9}, {Port: 9, LocalPort: 7777}, {Interface: "eth0"}, {Size: 1500},
		} {
			forVersions(t, func(t *testing.T, v int) {
				synctest.Test(t, func(t *testing.T) {
					req.Target, req.Protocol = target[v], proto
					var packets [2][]byte
					ids := map[uint16]bool{}
					for k, frames := range []bool{false, true} {
						net := &internet{}
						p, host := open(t, net.carry, Options{ICMPID: 4000, SendFrames: frames})
						l := &frameLog{}
						l.watch(host)
						for range 3 {
							if r, err := p.Probe(t.Context(), req); err != nil || r.Status != Replied || r.RTT != hop || !r.KernelTimed {
								t.Fatalf("%v %+v, frames %v: %+v, %v", proto, req, frames, r, err)
							}
							packets[k] = net.last(t)
							if frames && v == 0 {
								ids[binary.BigEndian.Uint16(packets[k][4:])] = true
							}
						}
						kind := rawio.RawHeader
						if frames {
							kind = rawio.Link
						}
						if kinds, _ := l.take(); !slices.Equal(kinds, []rawio.Kind{kind, kind, kind}) {
							t.Errorf("%v, frames %v: sent through %v, want kind %v", proto, frames, kinds, kind)
						}
						if c := p.Counters(); c.Sent != 3 || c.Framed != map[bool]uint64{true: 3}[frames] {
							t.Errorf("%v, frames %v: %+v", proto, frames, c)
						}
					}
					if a, b := unlike(packets[0]), unlike(packets[1]); !bytes.Equal(a, b) {
						t.Errorf("%v %+v:\nraw    %x\nframes %x", proto, req, a, b)
					}
					if v == 0 && (len(ids) != 3 || ids[0]) {
						t.Errorf("identifications %v, want 3 that are not 0", ids)
					}
				})
			})
		}
	}
}

// TestFramesElsewhere holds that what cannot go in frames goes as ever.
func TestFramesElsewhere(t *testing.T) {
	groups := [2]netip.Addr{netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("ff02::1")}
	loopbacks := [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, tt := range []struct {
		name string
		req  func(v int) Request
		want []rawio.Kind
	}{
		{"loopback", func(v int) Request { return Request{Target: loopbacks[v]} }, []rawio.Kind{rawio.RawHeader}},
		{"this host", func(v int) Request { return Request{Target: local[v]} }, []rawio.Kind{rawio.RawHeader}},
		{"a group", func(v int) Request { return Request{Target: groups[v]} }, []rawio.Kind{rawio.RawHeader}},
		{"a mark", func(v int) Request { return Request{Target: target[v], Mark: 5} }, []rawio.Kind{rawio.RawHeader}},
		{"longer than the MTU", func(v int) Request { return Request{Target: target[v], Size: 1501} }, []rawio.Kind{rawio.RawHeader, rawio.Raw}},
		{"longer than the MTU, UDP", func(v int) Request { return Request{Target: target[v], Size: 5000, Protocol: UDP} }, []rawio.Kind{rawio.RawHeader, rawio.Raw}},
		{"from an address", func(v int) Request { return Request{Target: target[v], LocalAddr: local[v]} }, []rawio.Kind{rawio.Link}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forVersions(t, func(t *testing.T, v int) {
				synctest.Test(t, func(t *testing.T) {
					p, _, l := openFraming(t, &internet{})
					if r, err := p.Probe(t.Context(), tt.req(v)); err != nil || r.Status != Replied {
						t.Errorf("%+v, %v", r, err)
					}
					// The raw socket refuses what is too long, and that of the protocol takes it.
					if kinds, _ := l.take(); !slices.Equal(kinds, tt.want) {
						t.Errorf("sent through %v, want %v", kinds, tt.want)
					}
				})
			})
		})
	}
}

// TestFramesErrors holds that frames change nothing about the errors of requests.
func TestFramesErrors(t *testing.T) {
	forVersions(t, func(t *testing.T, v int) {
		synctest.Test(t, func(t *testing.T) {
			p, host, _ := openFraming(t, &internet{})
			if _, err := p.Probe(t.Context(), Request{Target: target[v], Interface: "gone"}); !errors.Is(err, ErrNoInterface) {
				t.Errorf("through no interface: %v", err)
			}
			if _, err := p.Probe(t.Context(), Request{Target: target[v], LocalAddr: router[v]}); !errors.Is(err, ErrAddrNotAvailable) {
				t.Errorf("from another's address: %v", err)
			}
			host.SetFaults(rawiotest.Faults{Route: func(netip.Addr, rawio.Route) error { return syscall.ENETUNREACH }})
			if r, err := p.Probe(t.Context(), Request{Target: nowhere[v]}); err != nil || r.Status != NetUnreachable {
				t.Errorf("without a route: %+v, %v", r, err)
			}
		})
	})
}

// TestFramesNextHop follows a neighbour from unknown to gone.
func TestFramesNextHop(t *testing.T) {
	forVersions(t, func(t *testing.T, v int) {
		synctest.Test(t, func(t *testing.T) {
			p, _, l := openFraming(t, &internet{})
			state := rawio.ErrNoNeighbour
			fresh := true
			l.nextHop = func(_ netip.Addr, h *rawio.NextHop) error {
				h.Fresh = fresh
				return state
			}
			send := func(what string, asks int, want ...rawio.Kind) {
				t.Helper()
				for range want {
					if r, err := p.Probe(t.Context(), Request{Target: target[v]}); err != nil || r.Status != Replied {
						t.Errorf("%s: %+v, %v", what, r, err)
					}
				}
				if kinds, asked := l.take(); !slices.Equal(kinds, want) || asked != asks {
					t.Errorf("%s: sent through %v after %d look-ups, want %v after %d", what, kinds, asked, want, asks)
				}
			}
			// A round trip takes 5 ms, half of the pause between look-ups while there is no answer.
			send("unknown", 1, rawio.RawHeader, rawio.RawHeader)
			time.Sleep(hop)
			l.set(func() { state = nil })
			send("known", 1, rawio.Link, rawio.Link, rawio.Link)
			time.Sleep(time.Second)
			send("still known", 1, rawio.Link, rawio.Link)
			l.set(func() { fresh = false })
			time.Sleep(time.Second)
			send("to be confirmed", 1, rawio.RawHeader, rawio.Link, rawio.Link)
			time.Sleep(time.Second)
			send("to be confirmed, yet", 1, rawio.RawHeader, rawio.Link)
			l.set(func() { fresh = true })
			time.Sleep(time.Second)
			send("confirmed", 1, rawio.Link)
			l.set(func() { state = errors.ErrUnsupported })
			time.Sleep(time.Second)
			send("no Ethernet", 1, rawio.RawHeader, rawio.RawHeader, rawio.RawHeader, rawio.RawHeader)
			l.set(func() { state = rawio.ErrNoNeighbour })
			time.Sleep(time.Second)
			send("gone", 1, rawio.RawHeader)
			if c := p.Counters(); c.TimedOut != 0 || c.Failed != 0 {
				t.Errorf("%+v", c)
			}
		})
	})
}

// TestFramesRefused: a refused frame goes through the raw socket, at once or, where the system is out of room, as
// a frame a little later.
func TestFramesRefused(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENETDOWN, syscall.ENXIO, syscall.EMSGSIZE, syscall.EPERM, syscall.ENOBUFS} {
		forVersions(t, func(t *testing.T, v int) {
			synctest.Test(t, func(t *testing.T) {
				net := &internet{}
				p, _, l := openFraming(t, net)
				frames := 0
				l.refuse = func(k rawio.Kind, _ *rawio.Message) error {
					if k != rawio.Link {
						return nil
					}
					// One, and another in the middle of a batch.
					if frames++; frames == 1 || frames == 20 {
						return errno
					}
					return nil
				}
				const count = 100
				replied := 0
				for range count {
					if _, err := p.Start(Request{Target: target[v]}, func(r Result) {
						if r.Status == Replied {
							replied++
						} else {
							t.Errorf("%+v", r)
						}
					}); err != nil {
						t.Fatal(err)
					}
				}
				sleep(time.Second)
				kinds, asked := l.take()
				raw := len(slices.DeleteFunc(slices.Clone(kinds), func(k rawio.Kind) bool { return k != rawio.RawHeader }))
				c := p.Counters()
				want, looks := 2, 3 // a look-up for the first, and after each refusal at the latest in the next batch
				if errno == syscall.ENOBUFS {
					want, looks = 0, 1
					if c.Retried == 0 {
						t.Errorf("%v: nothing was put off: %+v", errno, c)
					}
				}
				if replied != count || net.count() != count || len(kinds) != count || raw != want || c.Framed != uint64(count-raw) || asked > looks {
					t.Errorf("%v: %d replied, %d sent, %d of them through the raw socket (want %d), %d look-ups; %+v", errno, replied, net.count(), raw, want, asked, c)
				}
			})
		})
	}
}

// TestFramesManyTargets: each target costs one look-up per second.
func TestFramesManyTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, l := openFraming(t, &internet{})
		const targets, rounds = 500, 4
		for range rounds {
			a := netip.MustParseAddr("198.51.100.0")
			for range targets {
				a = a.Next()
				if _, err := p.Start(Request{Target: a}, func(r Result) {
					if r.Status != Replied {
						t.Errorf("%+v", r)
					}
				}); err != nil {
					t.Fatal(err)
				}
			}
			sleep(100 * time.Millisecond)
		}
		if kinds, asked := l.take(); asked != targets || len(kinds) != targets*rounds || slices.Contains(kinds, rawio.RawHeader) {
			t.Errorf("%d look-ups for %d probes to %d targets", asked, len(kinds), targets)
		}
	})
}

// TestFramesUnavailable: a prober that asks for frames in vain works without.
func TestFramesUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, (&internet{}).carry, Options{Mode: Unprivileged, SendFrames: true})
		f := p.Features()
		if f.Frames || !slices.ContainsFunc(f.Missing, func(s string) bool { return strings.HasPrefix(s, "Ethernet frames: ") }) {
			t.Errorf("unprivileged: %+v", f)
		}
		host := rawiotest.NewHost(rawiotest.Config{Network: (&internet{}).carry, Addrs: local[:]})
		host.SetFaults(rawiotest.Faults{Open: func(s rawio.Spec) error {
			if s.Kind == rawio.Link {
				return syscall.EAFNOSUPPORT
			}
			return nil
		}})
		p, err := New(Options{Mode: Privileged, SendFrames: true, host: host})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		f = p.Features()
		if f.Frames || len(f.Missing) != 1 || !strings.HasPrefix(f.Missing[0], "Ethernet frames: ") {
			t.Errorf("without packet sockets: %+v", f)
		}
		for v := range 2 {
			if r, err := p.Probe(t.Context(), Request{Target: target[v]}); err != nil || r.Status != Replied {
				t.Errorf("without packet sockets: %+v, %v", r, err)
			}
		}
	})
}
