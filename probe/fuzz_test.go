// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
)

// fuzzProbes are in flight while bytes arrive: each kind of identity, of both versions.
func fuzzProbes() (out []Request) {
	for v := range target {
		out = append(out,
			Request{Target: target[v]},
			Request{Target: target[v], Flow: 3},
			Request{Target: target[v], Protocol: UDP},
			Request{Target: target[v], Protocol: UDP, Port: 53, LocalPort: 4000},
			Request{Target: target[v], Protocol: UDP, Flow: 3},
			Request{Target: target[v], Protocol: TCP},
			Request{Target: target[v], Protocol: SCTP},
		)
	}
	return out
}

// fuzzEngine gives an engine with fuzzProbes in flight, with the same numbers each time, and their packets.
func fuzzEngine(t testing.TB, done func(Result)) (*engine, [][]byte) {
	net := &internet{silent: true}
	p, e := openEngine(t, net.carry, Options{ICMPID: 0x0707, FirstSequence: 40000})
	for k, req := range fuzzProbes() {
		req.Tag, req.Timeout = uint64(k), time.Hour
		if _, err := p.Start(req, done); err != nil {
			t.Fatal(err)
		}
	}
	e.take()
	e.clock()
	e.transmit()
	// Random tokens would make every run another one.
	for i := uint32(1); i <= uint32(len(fuzzProbes())); i++ {
		s := e.slots.at(i)
		if s.state != slotFlying {
			t.Fatalf("probe %d is not in flight", i)
		}
		if proto := s.req.Protocol; proto == TCP || proto == SCTP {
			id := identity{proto: proto, v6: s.dst.Is6(), a: s.a, b: s.b, token: 0xc0ffee00 + i, dst: s.dst}
			e.unidentify(i)
			e.identify(i, id, proto == SCTP)
		}
	}
	var packets [][]byte
	for i := uint32(1); i <= uint32(len(fuzzProbes())); i++ {
		b, err := appendPacket(nil, e.slots.at(i), 0)
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, b)
	}
	return e, packets
}

// carries tells whether data has everything in it that names the probe, in some place.
func carries(data []byte, s *slot) bool {
	word := func(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
	has := func(parts ...[]byte) bool { return bytes.Contains(data, bytes.Join(parts, nil)) }
	ports := has(word(s.a), word(s.b)) || has(word(s.b), word(s.a))
	token := binary.BigEndian.AppendUint32(nil, s.token)
	switch s.req.Protocol {
	case ICMP:
		return has(word(s.a), word(s.b))
	case UDP:
		return ports // of a service's answer; a quote also has the checksum
	case TCP:
		return ports && (has(token) || has(binary.BigEndian.AppendUint32(nil, s.token+1)))
	default:
		return ports && (has(token) || has(make([]byte, 4))) // a short quote has verification tag 0 only
	}
}

// FuzzArrival lets arbitrary bytes arrive on every socket. There is no panic, every packet is
// counted once, and a probe is answered only by bytes that carry its identity.
func FuzzArrival(f *testing.F) {
	// kind: 0 is IPv4, the others are the protocols of IPv6.
	_, packets := fuzzEngine(f, func(Result) {})
	for _, p := range packets {
		v := dissect(p).v
		answers := append(respond(p), timeExceeded(router[v], dying(p)), portUnreachable(target[v], p))
		for _, a := range answers {
			d := dissect(a)
			kind, data, from := byte(0), a, d.src
			if v == 1 {
				data = d.upper
				switch d.proto {
				case packet.ProtocolICMPv6:
					kind = 1
				case packet.ProtocolUDP:
					kind = 2
				case packet.ProtocolTCP:
					kind = 3
				case packet.ProtocolSCTP:
					kind = 4
				}
			}
			f.Add(kind, from.AsSlice(), data, false)
			f.Add(kind, from.AsSlice(), data[:len(data)-3], true)
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, from, data []byte, truncated bool) {
		answered := map[uint64]Result{}
		e, _ := fuzzEngine(t, func(r Result) {
			if r.Status == Failed {
				return // at the end
			}
			if _, ok := answered[r.Tag]; ok {
				t.Errorf("probe %d was answered twice", r.Tag)
			}
			answered[r.Tag] = r
		})
		copies := make([]slot, len(fuzzProbes()))
		for k := range copies {
			copies[k] = *e.slots.at(uint32(k + 1))
		}
		whole := bytes.Clone(data)
		m := rawio.Message{Data: data, N: len(data), Truncated: truncated, Time: time.Now().UnixNano(), TTL: 9}
		before := e.counters
		if kind == 0 {
			e.packet4(&m)
		} else {
			a, ok := netip.AddrFromSlice(from)
			if !ok || !a.Is6() {
				a = target[1]
			}
			m.Addr = netip.AddrPortFrom(a, 0)
			whole = append(whole, a.AsSlice()...)
			e.packet6(Protocol((kind-1)%4), &m)
		}
		c := e.counters
		if n := c.Answered - before.Answered + c.Unmatched - before.Unmatched + c.Malformed - before.Malformed + c.Irrelevant - before.Irrelevant; n != 1 {
			t.Errorf("the packet was counted %d times: %+v", n, c)
		}
		if uint64(len(answered)) != c.Answered-before.Answered || len(answered) > 1 {
			t.Errorf("%d probes answered, %+v", len(answered), c)
		}
		for tag, r := range answered {
			s := &copies[tag]
			if !carries(whole, s) {
				t.Errorf("probe %d (%+v) was answered by %x: %+v", tag, s.req, data, r)
			}
			if (kind == 0) != s.dst.Is4() || !r.Responder.IsValid() || r.Responder.Is4() != s.dst.Is4() || r.RTT <= 0 {
				t.Errorf("probe %d: %+v", tag, r)
			}
			if s.req.Protocol != ICMP && !bytes.Contains(whole, s.dst.AsSlice()) {
				t.Errorf("probe %d: %v is not in %x", tag, s.dst, whole)
			}
		}
		if !bytes.Equal(data, whole[:len(data)]) {
			t.Error("the packet was changed")
		}
	})
}

// FuzzRequest sends arbitrary requests: each is refused, or becomes a packet that decodes to what it asked for.
func FuzzRequest(f *testing.F) {
	for _, r := range fuzzProbes() {
		f.Add(r.Target.AsSlice(), uint8(r.Protocol), uint8(64), uint8(0), byte(1), r.Port, r.LocalPort, 64, r.Flow, uint16(33434), "", int64(0))
	}
	f.Add(target[0].AsSlice(), uint8(9), uint8(0), uint8(255), byte(255), uint16(0), uint16(65535), MaxSize, uint16(65535), uint16(65535), "eth0", int64(-1))
	f.Add([]byte{}, uint8(0), uint8(0), uint8(0), byte(0), uint16(0), uint16(0), 1<<30, uint16(0), uint16(0), "a\x00", int64(1)<<62)
	f.Fuzz(func(t *testing.T, addr []byte, proto, ttl, tos, pattern byte, port, localPort uint16, size int, flow, first uint16, iface string, timeout int64) {
		to, _ := netip.AddrFromSlice(addr)
		req := Request{
			Target: to, Protocol: Protocol(proto), TTL: ttl, TOS: tos, Pattern: pattern, Port: port, LocalPort: localPort,
			Size: size, Flow: flow, Interface: iface, Timeout: time.Duration(timeout),
		}
		net := &internet{silent: true}
		p, e := openEngine(t, rawiotest.Network(net.carry), Options{FirstSequence: first})
		ended := 0
		var failure error
		_, err := p.Start(req, func(r Result) { ended++; failure = r.Err })
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v: %v, want ErrInvalid", req, err)
			}
			return
		}
		e.take()
		e.clock()
		e.transmit()
		if len(net.sent) == 0 {
			if ended != 1 || failure == nil {
				t.Errorf("%+v: not sent, %d results, error %v", req, ended, failure)
			}
			if iface == "" && !errors.Is(failure, ErrTooBig) {
				t.Errorf("%+v: %v", req, failure)
			}
			return
		}
		if ended != 0 || len(net.sent) != 1 {
			t.Fatalf("%+v: %d packets, %d results", req, len(net.sent), ended)
		}
		d := dissect(net.sent[0])
		dst := to.Unmap()
		if dst.IsUnspecified() {
			dst = loopback(dst)
		}
		if d.dst != dst || d.tos != tos || d.ttl != ttl && (ttl != 0 || d.ttl != DefaultTTL) || d.proto != protocolNumbers[ipVersion(dst)][proto] {
			t.Errorf("%+v became %+v", req, d)
		}
		whole := len(net.sent[0])
		if (req.Protocol == ICMP || req.Protocol == UDP) && size > 60 && whole != size {
			t.Errorf("%+v has %d bytes", req, whole)
		}
		if d.proto == packet.ProtocolSCTP {
			if s, err := packet.ParseSCTP(d.upper); err != nil || !s.ChecksumOK() {
				t.Errorf("%+v: %x, %v", req, d.upper, err)
			}
		} else {
			sum := packet.Checksum(d.upper)
			if d.proto != packet.ProtocolICMP {
				sum = packet.TransportChecksum(d.proto, d.src, d.dst, d.upper)
			}
			if sum != 0 {
				t.Errorf("%+v: checksum of %x is off by %#x", req, d.upper, sum)
			}
		}
		// An error that quotes as little as it may finds the probe again.
		q, err := packet.ParseQuote(net.sent[0][:headerOf(net.sent[0])+8])
		if err != nil {
			t.Fatal(err)
		}
		if i := e.findQuoted(&q); i == 0 {
			t.Errorf("%+v: its own quote does not find it: %x", req, net.sent[0])
		}
	})
}
