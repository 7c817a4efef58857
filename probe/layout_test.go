// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/seed5728abee/fathom/packet"
)

// sendOne gives the packet that a request becomes.
func sendOne(t *testing.T, p *Prober, net *internet, r Request) []byte {
	t.Helper()
	r.Timeout = -1
	if _, err := p.Probe(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return net.last(t)
}

// TestPlaces checks where each kind of probe keeps its sequence number: the table at the head of layout.go.
func TestPlaces(t *testing.T) {
	const first = 40000
	for _, tt := range []struct {
		name     string
		req      Request
		src, dst int // port, 0 for the sequence number
		checksum bool
	}{
		{name: "UDP", req: Request{Protocol: UDP}, src: 1 + 64512},
		{name: "UDP local", req: Request{Protocol: UDP, LocalPort: 2000}, src: 2000},
		{name: "UDP port", req: Request{Protocol: UDP, Port: 53}, dst: 53},
		{name: "UDP both", req: Request{Protocol: UDP, LocalPort: 2000, Port: 53}, src: 2000, dst: 53, checksum: true},
		{name: "TCP", req: Request{Protocol: TCP}, dst: 80},
		{name: "TCP port", req: Request{Protocol: TCP, Port: 443, LocalPort: 7}, dst: 443},
		{name: "SCTP", req: Request{Protocol: SCTP}, dst: 80},
		{name: "UDP flow", req: Request{Protocol: UDP, Flow: 1}, src: 1 + 64512, dst: 33434, checksum: true},
		{name: "UDP flow 3 local", req: Request{Protocol: UDP, Flow: 3, LocalPort: 2000}, src: 2002, dst: 33434, checksum: true},
		{name: "UDP flow port", req: Request{Protocol: UDP, Flow: 1, LocalPort: 65535, Port: 9}, src: 65535, dst: 9, checksum: true},
		{name: "UDP flow wraps", req: Request{Protocol: UDP, Flow: 2, LocalPort: 65535, Port: 9}, src: 1024, dst: 9, checksum: true},
		{name: "TCP flow", req: Request{Protocol: TCP, Flow: 5, LocalPort: 3000}, src: 3004, dst: 80},
		{name: "SCTP flow", req: Request{Protocol: SCTP, Flow: 5, LocalPort: 3000, Port: 9899}, src: 3004, dst: 9899},
	} {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := &internet{silent: true}
					p, _ := open(t, net.carry, Options{ICMPID: 1, FirstSequence: first})
					req := tt.req
					req.Target = target[v]
					for k := range 2 {
						q, err := packet.ParseQuote(sendOne(t, p, net, req))
						if err != nil {
							t.Fatal(err)
						}
						seq := first + k
						src, dst := tt.src, tt.dst
						if src == 0 {
							src = seq
						}
						if dst == 0 {
							dst = seq
						}
						if int(q.SrcPort) != src || int(q.DstPort) != dst {
							t.Errorf("probe %d: ports %d, %d; want %d, %d", k, q.SrcPort, q.DstPort, src, dst)
						}
						if tt.checksum && int(q.UDPChecksum()) != seq {
							t.Errorf("probe %d: checksum %d, want %d", k, q.UDPChecksum(), seq)
						}
					}
				})
			})
		})
	}
}

// hashed is all that a load balancer may look at.
func hashed(p []byte) string {
	d := dissect(p)
	s := fmt.Sprintf("%v %v %v %d %d %x", d.src, d.dst, d.proto, d.tos, d.label, d.upper[:4])
	return s
}

// flowRequest draws a request that names a flow.
func flowRequest(t *rapid.T) Request {
	return Request{
		Target:    rapid.SampledFrom([]netip.Addr{target[0], target[1], local[0]}).Draw(t, "target"),
		Protocol:  rapid.SampledFrom(protocols).Draw(t, "protocol"),
		Port:      rapid.SampledFrom([]uint16{0, 1, 53, 33434, 65535}).Draw(t, "port"),
		LocalPort: rapid.SampledFrom([]uint16{0, 1, 1023, 1024, 40000, 65535}).Draw(t, "local port"),
		Size:      rapid.IntRange(0, 1500).Draw(t, "size"),
		Pattern:   rapid.Byte().Draw(t, "pattern"),
		TTL:       rapid.Byte().Draw(t, "ttl"),
		Flow:      rapid.Uint16Range(1, MaxFlow).Draw(t, "flow"),
		Timeout:   -1,
	}
}

// TestFlows checks that the probes of one flow agree in everything that load balancers look at, that those of
// another flow do not, and that every probe can be told from its first 8 bytes all the same.
func TestFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &internet{silent: true}
		p, _ := open(t, net.carry, Options{})
		rapid.Check(inBubble{t}, func(rt *rapid.T) {
			req := flowRequest(rt)
			send := func(flow uint16, ttl uint8) []byte {
				r := req
				r.Flow, r.TTL = flow, ttl
				if _, err := p.Probe(t.Context(), r); err != nil {
					rt.Fatal(err)
				}
				return net.last(t)
			}
			a, b := send(req.Flow, req.TTL), send(req.Flow, req.TTL+1)
			if hashed(a) != hashed(b) {
				rt.Errorf("one flow:\n%s\n%s", hashed(a), hashed(b))
			}
			other := rapid.Uint16Range(1, MaxFlow).Filter(func(f uint16) bool { return f != req.Flow }).Draw(rt, "other flow")
			if c := send(other, req.TTL); hashed(a) == hashed(c) {
				rt.Errorf("flows %d and %d are alike: %s", req.Flow, other, hashed(a))
			}
			da, db := dissect(a), dissect(b)
			if bytes.Equal(da.upper[:8], db.upper[:8]) && da.proto != packet.ProtocolSCTP {
				rt.Errorf("two probes of one flow quote alike: %x", da.upper[:8])
			}
			if packet.TransportChecksum(da.proto, da.src, da.dst, da.upper) != 0 && da.proto != packet.ProtocolSCTP && da.proto != packet.ProtocolICMP {
				rt.Errorf("wrong checksum: %x", a)
			}
			if da.proto == packet.ProtocolICMP && packet.Checksum(da.upper) != 0 {
				rt.Errorf("wrong checksum: %x", a)
			}
		})
	})
}

// TestFlowBounds tries every flow of every protocol: no two are alike.
func TestFlowBounds(t *testing.T) {
	for _, base := range []uint16{0, 1, 1024, 40000, 65535} {
		seen := make(map[uint16]uint16, MaxFlow)
		for flow := uint16(1); flow <= MaxFlow; flow++ {
			port := flowSource(base, flow)
			if port < lowestPort {
				t.Fatalf("flow %d from %d has port %d", flow, base, port)
			}
			if twin, ok := seen[port]; ok {
				t.Fatalf("flows %d and %d from %d have port %d", twin, flow, base, port)
			}
			seen[port] = flow
		}
	}
	for flow := range uint32(1 << 16) {
		if l := flowLabel(uint16(flow)); l > 0xfffff || (l == 0) != (flow == 0) {
			t.Fatalf("flow %d has label %#x", flow, l)
		}
	}
}

// TestFlowLast tries a balanced checksum at its last value, where one's complement has two zeros.
func TestFlowLast(t *testing.T) {
	forVersions(t, func(t *testing.T, v int) {
		synctest.Test(t, func(t *testing.T) {
			net := &internet{}
			p, _ := open(t, net.carry, Options{FirstSequence: 65535})
			for _, req := range []Request{
				{Protocol: ICMP, Flow: MaxFlow},
				{Protocol: ICMP, Flow: 1},
				{Protocol: UDP, LocalPort: 2000, Port: 53},
				{Protocol: UDP, Flow: MaxFlow},
			} {
				req.Target = target[v]
				r, err := p.Probe(t.Context(), req)
				if err != nil || r.Status != Replied {
					t.Errorf("%+v: %v, %v", req, r.Status, err)
				}
				d := dissect(net.last(t))
				if sum := packet.TransportChecksum(d.proto, d.src, d.dst, d.upper); sum != 0 && d.proto != packet.ProtocolICMP {
					t.Errorf("%+v: checksum is off by %#x: %x", req, sum, d.upper)
				}
			}
		})
	})
}

// TestFields checks that every field of a request reaches the wire or the socket.
func TestFields(t *testing.T) {
	for _, proto := range protocols {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(proto.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := &internet{silent: true}
					p, host := open(t, net.carry, Options{})
					spare := netip.MustParseAddr([]string{"10.88.1.99", "fd88:1::99"}[v])
					host.SetAddrs(local[0], local[1], spare)
					got := watchSends(host)
					req := Request{
						Target: target[v], Protocol: proto, TTL: 7, TOS: 0xb8, Pattern: 0xaa, Size: 200, Mark: 77,
						Interface: "eth0", LocalAddr: spare,
					}
					d := dissect(sendOne(t, p, net, req))
					if d.ttl != 7 || d.tos != 0xb8 || d.src != spare || d.dst != target[v] {
						t.Errorf("sent TTL %d, TOS %#x, from %v to %v", d.ttl, d.tos, d.src, d.dst)
					}
					if m := got(); m.Mark != 77 || m.IfIndex != 2 {
						t.Errorf("sent with mark %d, interface %d; want 77, 2", m.Mark, m.IfIndex)
					}
					if proto == TCP || proto == SCTP {
						return // their size is their own
					}
					whole := net.last(t)
					if len(whole) != 200 {
						t.Errorf("sent %d bytes, want 200", len(whole))
					}
					if rest := d.upper[8:]; !bytes.Equal(rest, bytes.Repeat([]byte{0xaa}, len(rest))) {
						t.Errorf("payload %s", hex.EncodeToString(rest))
					}
				})
			})
		})
	}
}

// TestSizes checks that a packet is as long as asked for, and never shorter than its headers.
func TestSizes(t *testing.T) {
	least := map[Protocol][2]int{ICMP: {28, 48}, UDP: {32, 52}, TCP: {44, 64}, SCTP: {52, 72}}
	for _, proto := range protocols {
		forVersions(t, func(t *testing.T, v int) {
			synctest.Test(t, func(t *testing.T) {
				net := &internet{silent: true}
				p, _ := open(t, net.carry, Options{})
				for _, size := range []int{0, 1, 28, 33, 64, 65, 1499, 1500, 1501, 4000, MaxSize} {
					want := max(size, least[proto][v])
					switch {
					case proto == TCP || proto == SCTP:
						want = least[proto][v]
					case size == 0:
						want = DefaultSize
					}
					req := Request{Target: target[v], Protocol: proto, Size: size}
					if got := len(sendOne(t, p, net, req)); got != want {
						t.Errorf("%v of size %d has %d bytes, want %d", proto, size, got, want)
					}
				}
			})
		})
	}
}
