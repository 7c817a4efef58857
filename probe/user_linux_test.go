// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
)

// TestUserAnswers sends ICMP and UDP without privileges along a path of two routers.
func TestUserAnswers(t *testing.T) {
	labels := []packet.Label{{Label: 77, TTL: 1, Bottom: true}}
	for _, tt := range []struct {
		name string
		req  Request
	}{
		{"ICMP", Request{}},
		{"ICMP flow", Request{Flow: 9}},
		{"UDP", Request{Protocol: UDP}},
		{"UDP port", Request{Protocol: UDP, Port: openPort}},
		{"UDP both", Request{Protocol: UDP, Port: openPort, LocalPort: 5000}},
		{"UDP closed port", Request{Protocol: UDP, Port: 9, LocalPort: 5000}},
		{"UDP flow", Request{Protocol: UDP, Flow: 4}},
	} {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := &internet{routers: 2, labels: labels}
					p, _ := open(t, net.carry, Options{Mode: Unprivileged})
					for ttl := uint8(1); ttl <= 4; ttl++ {
						req := tt.req
						req.Target, req.TTL, req.TOS = target[v], ttl, 0x20
						r, err := p.Probe(t.Context(), req)
						status, from := Replied, target[v]
						if ttl <= 2 {
							status, from = TimeExceeded, routerAddr(v, int(ttl)-1)
						}
						if err != nil || r.Status != status || r.Responder != from || r.RTT != distance(min(int(ttl)-1, 2)) || !r.KernelTimed {
							t.Errorf("TTL %d: %+v, %v; want %v from %v", ttl, r, err, status, from)
						}
						if ttl <= 2 && !slices.Equal(r.MPLS, labels) {
							t.Errorf("TTL %d: labels %v, want %v", ttl, r.MPLS, labels)
						}
						d := dissect(net.last(t))
						if len(net.last(t)) != DefaultSize || d.ttl != ttl || d.tos != 0x20 || d.src != local[v] {
							t.Errorf("TTL %d: sent %d bytes, %+v", ttl, len(net.last(t)), d)
						}
					}
				})
			})
		})
	}
}

// TestUserMany has thousands of probes in flight on few sockets; errors about some do not spoil others.
func TestUserMany(t *testing.T) {
	const count = 4000
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, (&internet{routers: 2}).carry, Options{Mode: Unprivileged})
		status := map[Status]int{}
		for k := range count {
			req := Request{Target: target[k%2], Protocol: protocols[k/2%2], TTL: uint8(1 + k/4%4), Timeout: time.Second}
			switch k / 16 % 3 {
			case 1:
				req.Port, req.LocalPort = 9, uint16(3000+k/48%5)
			case 2:
				req.Flow = uint16(1 + k/48%5)
			}
			if _, err := p.Start(req, func(r Result) {
				want, from := Replied, req.Target
				if req.TTL <= 2 {
					want, from = TimeExceeded, routerAddr(ipVersion(req.Target), int(req.TTL)-1)
				}
				if r.Status != want || r.Responder != from {
					t.Errorf("probe %d: %+v, want %v from %v", k, r, want, from)
				}
				status[r.Status]++
			}); err != nil {
				t.Fatal(err)
			}
		}
		sleep(2 * time.Second)
		if status[Replied] != count/2 || status[TimeExceeded] != count/2 {
			t.Errorf("%v of %d", status, count)
		}
		if c := p.Counters(); c.Unmatched != 0 || c.Malformed != 0 {
			t.Errorf("%+v", c)
		}
	})
}

// TestUserErrors checks what is refused without privileges, and what passes by itself.
func TestUserErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, (&internet{}).carry, Options{Mode: Unprivileged})
		for _, req := range []Request{{Target: target[0], Protocol: SCTP}, {Target: target[0], Mark: 1}} {
			if _, err := p.Probe(t.Context(), req); !errors.Is(err, ErrUnsupported) {
				t.Errorf("%+v: %v, want ErrUnsupported", req, err)
			}
		}
		until := time.Now().Add(100 * time.Millisecond)
		host.SetFaults(rawiotest.Faults{Send: func(rawio.Spec, *rawio.Message) error {
			if time.Now().Before(until) {
				return syscall.ENOBUFS
			}
			return nil
		}})
		for _, proto := range []Protocol{ICMP, UDP} {
			r, err := p.Probe(t.Context(), Request{Target: target[0], Protocol: proto})
			if err != nil || r.Status != Replied || r.RTT != hop || r.Sent.Before(until) {
				t.Errorf("%v with a full queue: %+v, %v", proto, r, err)
			}
		}
		host.SetFaults(rawiotest.Faults{Send: func(rawio.Spec, *rawio.Message) error { return syscall.ENETUNREACH }})
		for _, proto := range []Protocol{ICMP, UDP} {
			if r, err := p.Probe(t.Context(), Request{Target: target[0], Protocol: proto}); err != nil || r.Status != NetUnreachable {
				t.Errorf("%v without a route: %+v, %v", proto, r, err)
			}
		}
	})
}

// TestUserForeign: what comes for other programs' probes is nobody's here.
func TestUserForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []byte
		p, host := open(t, func(b []byte) []rawiotest.Delivery { sent = slices.Clone(b); return nil }, Options{Mode: Unprivileged})
		for _, req := range []Request{{Target: target[0]}, {Target: target[0], Protocol: UDP}, {Target: target[0], Protocol: UDP, Port: 9, LocalPort: 4000}} {
			req.Timeout = time.Second
			ch, err := p.Send(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			inner := packet.IPv4HeaderLen
			places := []int{16, inner + 6, inner + 7} // destination; sequence, or the UDP checksum
			if req.Protocol == UDP {
				places = []int{16, 19, inner, inner + 1, inner + 2, inner + 3}
				if req.Port != 0 {
					places = append(places, inner+8, inner+9) // the number in the payload
				}
			}
			for _, at := range places {
				host.Deliver(timeExceeded(router[0], change(dying(sent), at)))
			}
			if r := <-ch; r.Status != NoReply {
				t.Errorf("%+v: %v from a quote of something else", req, r.Status)
			}
		}
	})
}
