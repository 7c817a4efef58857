// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
)

// TestAnswers sends probes of every kind along a path of three routers, and looks at every field of the results.
func TestAnswers(t *testing.T) {
	labels := []packet.Label{{Label: 16001, TC: 5, TTL: 1}, {Label: 299776, Bottom: true, TTL: 254}}
	for _, proto := range protocols {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(proto.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := &internet{routers: 3, labels: labels}
					p, _ := open(t, net.carry, Options{})
					for _, port := range []uint16{openPort, 9} {
						for ttl := uint8(1); ttl <= 5; ttl++ {
							start := time.Now()
							got, err := p.Probe(t.Context(), Request{Target: target[v], Protocol: proto, Port: port, TTL: ttl, TOS: 0x20, Flow: 7, Tag: 99})
							if err != nil {
								t.Fatal(err)
							}
							want := Result{
								Tag: 99, Target: target[v], Status: Replied, ReplyTTL: 60, KernelTimed: true, TTL: ttl, Flow: 7,
								Responder: target[v], RTT: distance(3), Sent: start,
							}
							switch {
							case ttl <= 3:
								want.Status, want.Responder, want.RTT = TimeExceeded, routerAddr(v, int(ttl)-1), distance(int(ttl)-1)
								want.HasICMP, want.ICMPType = true, [...]uint8{11, 3}[v]
								want.QuotedTTL, want.QuotedTOS, want.MPLS = 1, 0x20, labels
							case proto == ICMP:
								want.HasICMP, want.ICMPType = true, [...]uint8{0, 129}[v]
							case proto == UDP && port != openPort:
								want.HasICMP, want.ICMPType, want.ICMPCode = true, [...]uint8{3, 1}[v], [...]uint8{3, 4}[v]
								want.QuotedTTL, want.QuotedTOS = ttl, 0x20
							}
							compareResults(t, got, want)
							if took := time.Since(start); took != want.RTT {
								t.Errorf("took %v, want %v", took, want.RTT)
							}
						}
					}
				})
			})
		})
	}
}

func compareResults(t *testing.T, got, want Result) {
	t.Helper()
	equal := cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }),
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

// TestICMPMeaning walks through all types and codes, with probes of every protocol in the quote.
func TestICMPMeaning(t *testing.T) {
	// What is not here means nothing: the probe goes on waiting.
	meaning := func(v int, typ, code uint8) Status {
		switch v<<8 | int(typ) {
		case 11, 1<<8 | 3:
			return TimeExceeded
		case 3:
			if code == 3 {
				return Replied
			}
			return HostUnreachable
		case 1<<8 | 1:
			if code == 4 {
				return Replied
			}
			return HostUnreachable
		case 1<<8 | 2:
			return HostUnreachable
		case 1<<8 | 4:
			if code == 1 {
				return HostUnreachable
			}
		}
		return 0
	}
	for _, proto := range protocols {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(proto.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var typ, code uint8
					p, _ := open(t, func(b []byte) []rawiotest.Delivery {
						// By hand, since no encoder makes all of these.
						m := append([]byte{typ, code, 0, 0, 0, 0, 0x05, 0xdc}, b...)
						if v == 0 {
							packet.SetICMPChecksum(m)
						} else {
							packet.SetICMPv6Checksum(m, router[v], local[v])
						}
						return arriving(hop, ipPacket(icmpProtocol(router[v]), router[v], local[v], m))
					}, Options{})
					for n := range 256 {
						for _, c := range []int{0, 1, 2, 3, 4, 5, 6, 7, 13, 15, 255} {
							typ, code = uint8(n), uint8(c)
							if v == 0 && typ == packet.ICMPv4EchoReply || v == 1 && typ == packet.ICMPv6EchoReply {
								continue // would need our number
							}
							r, err := p.Probe(t.Context(), Request{Target: target[v], Protocol: proto, Timeout: 2 * hop})
							if err != nil {
								t.Fatal(err)
							}
							want := meaning(v, typ, code)
							if want == 0 {
								if r.Status != NoReply || r.Answered() {
									t.Fatalf("type %d code %d: %v from %v, want no reply", typ, code, r.Status, r.Responder)
								}
								continue
							}
							if r.Status != want || r.Responder != router[v] || !r.HasICMP || r.ICMPType != typ || r.ICMPCode != code || r.RTT != hop {
								t.Fatalf("type %d code %d: %+v, want %v", typ, code, r, want)
							}
							mtu := uint32(0)
							if v == 0 && typ == 3 && code == 4 || v == 1 && typ == 2 {
								mtu = 1500
							}
							if r.MTU != mtu {
								t.Fatalf("type %d code %d: MTU %d, want %d", typ, code, r.MTU, mtu)
							}
						}
					}
				})
			})
		})
	}
}

// probed sends one probe and returns how it ended when the network answers with what reply makes of it.
func probed(t *testing.T, opts Options, req Request, reply func(p []byte) [][]byte) (Result, Counters) {
	t.Helper()
	var r Result
	var c Counters
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, func(b []byte) []rawiotest.Delivery { return arriving(hop, reply(slices.Clone(b))...) }, opts)
		var err error
		if r, err = p.Probe(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c = p.Counters()
	})
	return r, c
}

// change gives a copy of b with one byte changed.
func change(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 0x10
	return b
}

// fixICMP corrects the checksum of an ICMP message in an IP packet.
func fixICMP(p []byte) []byte {
	p = slices.Clone(p)
	h := headerOf(p)
	m := p[h:]
	if h == packet.IPv4HeaderLen {
		packet.SetICMPChecksum(m)
		return p
	}
	ip := packet.IPv6(p)
	packet.SetICMPv6Checksum(m, ip.Src(), ip.Dst())
	return p
}

// TestForgedQuotes changes every byte of the quoted packet that names the probe: no such message may be accepted.
func TestForgedQuotes(t *testing.T) {
	for _, proto := range protocols {
		for _, ports := range []struct {
			name        string
			local, dest uint16
		}{{"", 0, 0}, {" local", 4000, 0}, {" port", 0, 53}, {" both", 4000, 53}} {
			if ports.name != "" && proto != UDP {
				continue
			}
			forVersions(t, func(t *testing.T, v int) {
				t.Run(proto.String()+ports.name, func(t *testing.T) {
					req := Request{Target: target[v], Protocol: proto, LocalPort: ports.local, Port: ports.dest, Timeout: 50 * time.Millisecond}
					opts := Options{ICMPID: 5}
					genuine := func(p []byte) [][]byte { return [][]byte{timeExceeded(router[v], dying(p))} }
					if r, _ := probed(t, opts, req, genuine); r.Status != TimeExceeded {
						t.Fatalf("the genuine message gives %v", r.Status)
					}
					inner := []int{packet.IPv4HeaderLen, packet.IPv6HeaderLen}[v]
					named := map[string][]int{
						"version":     {0},
						"protocol":    {[]int{9, 6}[v]},
						"destination": {[]int{16, 24}[v], inner - 1},
					}
					switch proto {
					case ICMP:
						named["type"], named["id"], named["sequence"] = []int{inner}, []int{inner + 4, inner + 5}, []int{inner + 6, inner + 7}
					case UDP:
						named["ports"] = []int{inner, inner + 1, inner + 2, inner + 3}
						if ports.local != 0 && ports.dest != 0 {
							named["checksum"] = []int{inner + 6, inner + 7}
						}
					case TCP:
						named["ports"], named["sequence"] = []int{inner, inner + 1, inner + 2, inner + 3}, []int{inner + 4, inner + 7}
					case SCTP:
						named["ports"] = []int{inner, inner + 1, inner + 2, inner + 3}
						named["verification tag"], named["chunk"] = []int{inner + 4, inner + 7}, []int{inner + 12}
						named["initiate tag"] = []int{inner + 16, inner + 19}
					}
					for name, places := range named {
						for _, at := range places {
							r, c := probed(t, opts, req, func(p []byte) [][]byte {
								message := timeExceeded(router[v], dying(p))
								return [][]byte{fixICMP(change(message, headerOf(message)+8+at))}
							})
							if r.Status != NoReply || c.Answered != 0 || c.Received != 1 {
								t.Errorf("quote with another %s (byte %d): %v, %+v", name, at, r.Status, c)
							}
						}
					}
				})
			})
		}
	}
}

// TestForgedReplies changes every field of a direct answer that must be right.
func TestForgedReplies(t *testing.T) {
	type forgery struct {
		name string
		make func(p []byte) []byte // from the answer
	}
	upper := func(at int) func([]byte) []byte {
		return func(p []byte) []byte { return change(p, headerOf(p)+at) }
	}
	icmp := func(at int) func([]byte) []byte {
		return func(p []byte) []byte { return fixICMP(upper(at)(p)) }
	}
	// from gives the answer of another address.
	from := func(p []byte) []byte {
		a := dissect(p)
		return ipPacket(a.proto, a.src.Next(), a.dst, a.upper)
	}
	forgeries := map[Protocol][]forgery{
		ICMP: {
			{"type", icmp(0)},
			{"id", icmp(4)},
			{"id low", icmp(5)},
			{"sequence", icmp(6)},
			{"sequence low", icmp(7)},
			{"checksum", upper(2)},
			{"body with the old checksum", upper(9)},
		},
		UDP: {{"source port", upper(1)}, {"destination port", upper(3)}, {"source address", from}},
		TCP: {
			{"source port", upper(1)},
			{"destination port", upper(3)},
			{"acknowledgement", upper(8)},
			{"acknowledgement low", upper(11)},
			{"source address", from},
			{"SYN without ACK", func(p []byte) []byte { p[headerOf(p)+13] = byte(packet.TCPSyn); return p }},
			{"ACK alone", func(p []byte) []byte { p[headerOf(p)+13] = byte(packet.TCPAck); return p }},
			{"RST without ACK", func(p []byte) []byte { p[headerOf(p)+13] = byte(packet.TCPRst); return p }},
		},
		SCTP: {
			{"source port", upper(1)},
			{"destination port", upper(3)},
			{"tag", upper(4)},
			{"tag low", upper(7)},
			{"chunk", upper(12)},
			{"source address", from},
		},
	}
	for proto, list := range forgeries {
		forVersions(t, func(t *testing.T, v int) {
			for _, f := range list {
				t.Run(fmt.Sprintf("%v %s", proto, f.name), func(t *testing.T) {
					req := Request{Target: target[v], Protocol: proto, Port: openPort, Timeout: 50 * time.Millisecond}
					r, c := probed(t, Options{}, req, func(p []byte) [][]byte { return [][]byte{f.make(respond(p)[0])} })
					if r.Status != NoReply || r.Answered() || c.Answered != 0 || c.TimedOut != 1 {
						t.Errorf("%v from %v, %+v", r.Status, r.Responder, c)
					}
					// The genuine answer behind it still counts.
					r, _ = probed(t, Options{}, req, func(p []byte) [][]byte {
						answer := respond(p)[0]
						return [][]byte{f.make(slices.Clone(answer)), answer}
					})
					if r.Status != Replied || r.Responder != target[v] {
						t.Errorf("with the genuine one behind it: %v from %v", r.Status, r.Responder)
					}
				})
			}
		})
	}
}

// TestOtherVersion checks that an IPv4 message does not answer an IPv6 probe with the same numbers, nor the reverse.
func TestOtherVersion(t *testing.T) {
	forVersions(t, func(t *testing.T, v int) {
		o := 1 - v
		for _, reply := range []func(p []byte) [][]byte{
			func(p []byte) [][]byte {
				m, _ := packet.ParseICMP(dissect(p).upper)
				return [][]byte{echoReply(target[o], local[o], m.ID(), m.Seq(), nil)}
			},
			func(p []byte) [][]byte { return [][]byte{timeExceeded(router[o], dying(p))} }, // quotes the right packet
		} {
			// Both versions' sockets are listening.
			synctest.Test(t, func(t *testing.T) {
				p, _ := open(t, func(b []byte) []rawiotest.Delivery {
					if dissect(b).v == o {
						return nil
					}
					return arriving(hop, reply(b)...)
				}, Options{ICMPID: 9})
				if _, err := p.Probe(t.Context(), Request{Target: target[o], Timeout: -1}); err != nil {
					t.Fatal(err)
				}
				if r, err := p.Probe(t.Context(), Request{Target: target[v], Timeout: 3 * hop}); err != nil || r.Status != NoReply {
					t.Errorf("%v, %v; want no reply", r.Status, err)
				}
			})
		}
	})
}

// TestOtherResponder: an echo reply counts whoever sends it, as answers to broadcasts and from anycast do.
func TestOtherResponder(t *testing.T) {
	forVersions(t, func(t *testing.T, v int) {
		r, _ := probed(t, Options{}, Request{Target: target[v]}, func(p []byte) [][]byte {
			m, _ := packet.ParseICMP(dissect(p).upper)
			return [][]byte{echoReply(router[v], local[v], m.ID(), m.Seq(), nil)}
		})
		if r.Status != Replied || r.Responder != router[v] || r.Target != target[v] {
			t.Errorf("%v from %v", r.Status, r.Responder)
		}
	})
}

// TestShortQuotes cuts the quote at every length: with 8 bytes of the transport header it counts, with less it does not.
func TestShortQuotes(t *testing.T) {
	for _, proto := range protocols {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(proto.String(), func(t *testing.T) {
				need := []int{packet.IPv4HeaderLen, packet.IPv6HeaderLen}[v] + 8
				for n := range need + 24 {
					r, c := probed(t, Options{}, Request{Target: target[v], Protocol: proto, Timeout: 2 * hop}, func(p []byte) [][]byte {
						p = dying(p)
						return [][]byte{timeExceeded(router[v], p[:min(n, len(p))])}
					})
					want := TimeExceeded
					if n < need {
						want = NoReply
					}
					if r.Status != want {
						t.Errorf("quote of %d bytes: %v, want %v", n, r.Status, want)
					}
					if n < need && c.Malformed != 1 {
						t.Errorf("quote of %d bytes: %+v, want it counted as malformed", n, c)
					}
				}
			})
		})
	}
}

// TestTruncatedAnswers cuts whole answers at every length, with a header that fits: nothing shorter than the
// identity of the probe counts, and nothing crashes.
func TestTruncatedAnswers(t *testing.T) {
	// How much of the transport layer is needed. An SCTP packet must have a whole chunk header.
	need := map[Protocol]int{ICMP: 8, UDP: 8, TCP: 20, SCTP: 16}
	for _, proto := range protocols {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(proto.String(), func(t *testing.T) {
				req := Request{Target: target[v], Protocol: proto, Port: openPort, Timeout: 2 * hop}
				for n := range 40 {
					r, _ := probed(t, Options{}, req, func(p []byte) [][]byte {
						a := dissect(respond(p)[0])
						b := slices.Clone(a.upper[:min(n, len(a.upper))])
						if proto == ICMP && n >= 4 {
							b[2], b[3] = 0, 0
							sum := packet.Checksum(b)
							if v == 1 {
								sum = packet.TransportChecksum(packet.ProtocolICMPv6, a.src, a.dst, b)
							}
							binary.BigEndian.PutUint16(b[2:], sum)
						}
						return [][]byte{ipPacket(a.proto, a.src, a.dst, b)}
					})
					if n < need[proto] && r.Status != NoReply {
						t.Errorf("answer of %d bytes: %v", n, r.Status)
					}
				}
			})
		})
	}
}

// TestQuotedHeaders puts IPv4 options and IPv6 extension headers into the quoted packet, and into the one around it.
func TestQuotedHeaders(t *testing.T) {
	options := []byte{1, 1, 0x83, 7, 4, 10, 0, 0, 1, 0, 0, 0} // no-operation, loose source route
	for _, proto := range protocols {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(proto.String(), func(t *testing.T) {
				insert := func(p []byte) []byte {
					d := dissect(p)
					if v == 0 {
						h := packet.IPv4Header{TTL: 1, Protocol: d.proto, Src: d.src, Dst: d.dst, Options: options}
						b, err := h.Append(nil, len(d.upper))
						if err != nil {
							t.Error(err)
						}
						return append(b, d.upper...)
					}
					ext, err := packet.AppendIPv6Options(nil, packet.ProtocolRouting, []byte{5, 2, 0, 0})
					if err != nil {
						t.Error(err)
					}
					if ext, err = packet.AppendIPv6Routing(ext, d.proto, 3, 0, make([]byte, 12)); err != nil {
						t.Error(err)
					}
					h := packet.IPv6Header{HopLimit: 1, NextHeader: packet.ProtocolHopByHop, Src: d.src, Dst: d.dst}
					b, err := h.Append(nil, len(ext)+len(d.upper))
					if err != nil {
						t.Error(err)
					}
					return slices.Concat(b, ext, d.upper)
				}
				for name, reply := range map[string]func(p []byte) []byte{
					"quoted": func(p []byte) []byte { return timeExceeded(router[v], insert(p)) },
					"outer":  func(p []byte) []byte { return insert(timeExceeded(router[v], dying(p))) },
					"both":   func(p []byte) []byte { return insert(timeExceeded(router[v], insert(p))) },
				} {
					r, c := probed(t, Options{}, Request{Target: target[v], Protocol: proto, Timeout: 2 * hop}, func(p []byte) [][]byte {
						return [][]byte{reply(p)}
					})
					if r.Status != TimeExceeded || r.Responder != router[v] {
						t.Errorf("%s: %v from %v, %+v", name, r.Status, r.Responder, c)
					}
				}
			})
		})
	}
}

// TestFragmentQuote: a later fragment has no transport header, whatever its bytes look like.
func TestFragmentQuote(t *testing.T) {
	r, c := probed(t, Options{}, Request{Target: target[0], Timeout: 2 * hop}, func(p []byte) [][]byte {
		q := dying(p)
		q[7] = 1 // fragment offset 8
		return [][]byte{timeExceeded(router[0], q)}
	})
	if r.Status != NoReply || c.Malformed != 1 {
		t.Errorf("%v, %+v", r.Status, c)
	}
}

// TestExtensions checks what is taken for a label stack.
func TestExtensions(t *testing.T) {
	labels := []packet.Label{{Label: 16001, TTL: 1}, {Label: 0xfffff, TC: 7, Bottom: true, TTL: 255}}
	good, err := packet.AppendMPLS(nil, labels)
	if err != nil {
		t.Fatal(err)
	}
	other, err := packet.AppendExtensions(nil, packet.ExtensionObject{Class: 2, Type: 1, Payload: []byte{1, 2, 3, 4}})
	if err != nil {
		t.Fatal(err)
	}
	unsummed := slices.Clone(good)
	clear(unsummed[2:4])
	for _, tt := range []struct {
		name string
		ext  []byte
		want []packet.Label
	}{
		{"labels", good, labels},
		{"without a checksum", unsummed, labels},
		{"wrong checksum", change(good, 2), nil},
		{"version 3", change(good, 0), nil},
		{"another object", other, nil},
		{"cut", good[:len(good)-1], nil},
	} {
		forVersions(t, func(t *testing.T, v int) {
			t.Run(tt.name, func(t *testing.T) {
				r, _ := probed(t, Options{}, Request{Target: target[v]}, func(p []byte) [][]byte {
					msg := packet.ICMPError{Type: packet.ICMPv4TimeExceeded, Quote: dying(p), Extensions: tt.ext}
					if v == 1 {
						msg.Type = packet.ICMPv6TimeExceeded
					}
					return [][]byte{icmpError(router[v], local[v], &msg)}
				})
				if r.Status != TimeExceeded {
					t.Errorf("%v, want %v", r.Status, TimeExceeded)
				}
				if diff := cmp.Diff(tt.want, r.MPLS); diff != "" {
					t.Errorf("labels (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestLateAnswers reuses a sequence number while answers to its first use are on their way.
func TestLateAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Four numbers; the answer to the first round comes in the middle of the second.
		var late [][]byte
		n := 0
		p, host := open(t, func(b []byte) []rawiotest.Delivery {
			if n++; n <= 4 {
				late = append(late, timeExceeded(router[0], dying(b)))
				return nil
			}
			return arriving(hop, respond(b)...)
		}, Options{FirstSequence: 65532, MaxInFlight: 4})
		for range 4 {
			if r, err := p.Probe(t.Context(), Request{Target: target[0], Timeout: hop}); err != nil || r.Status != NoReply {
				t.Fatal(r.Status, err)
			}
		}
		// These are to numbers that nobody waits for.
		for _, b := range late {
			host.Deliver(slices.Clone(b))
		}
		synctest.Wait()
		// The identifier has moved on, so the same sequence numbers are other identities.
		for range 3 {
			ch, err := p.Send(t.Context(), Request{Target: target[0], Timeout: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range late {
				host.Deliver(slices.Clone(b))
			}
			if r := <-ch; r.Status != Replied || r.RTT != hop {
				t.Errorf("%v after %v: taken from a late answer", r.Status, r.RTT)
			}
		}
		synctest.Wait()
		if c := p.Counters(); c.Unmatched != 16 || c.Answered != 3 || c.TimedOut != 4 {
			t.Errorf("counters %+v, want 16 unmatched", c)
		}
	})
}

// TestDuplicates: the second copy of an answer is nobody's.
func TestDuplicates(t *testing.T) {
	for _, proto := range protocols {
		forVersions(t, func(t *testing.T, v int) {
			r, c := probed(t, Options{}, Request{Target: target[v], Protocol: proto, Port: openPort}, func(p []byte) [][]byte {
				a := respond(p)[0]
				return [][]byte{a, slices.Clone(a), slices.Clone(a)}
			})
			if r.Status != Replied || c.Answered != 1 || c.Unmatched != 2 || c.Received != 3 {
				t.Errorf("%v: %v, %+v; want one answer and two unmatched", proto, r.Status, c)
			}
		})
	}
}

// TestWrap uses every sequence number many times over.
func TestWrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &internet{}
		p, _ := open(t, net.carry, Options{FirstSequence: 65500, MaxInFlight: 16})
		for _, proto := range protocols {
			for k := range 500 {
				if r, err := p.Probe(t.Context(), Request{Target: target[k%2], Protocol: proto}); err != nil || r.Status != Replied {
					t.Fatalf("%v probe %d: %v, %v", proto, k, r.Status, err)
				}
			}
		}
	})
}

// TestServiceAnswersFlow: a datagram from a service carries no number, and counts for the oldest probe of its flow.
func TestServiceAnswersFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, host := open(t, nil, Options{})
		req := Request{Target: target[0], Protocol: UDP, Port: 53, LocalPort: 4000, Timeout: time.Minute}
		var order []uint64
		for tag := range uint64(3) {
			req.Tag = tag
			if _, err := p.Start(req, func(r Result) { order = append(order, r.Tag) }); err != nil {
				t.Fatal(err)
			}
			sleep(time.Millisecond)
		}
		for range 4 {
			b, err := packet.AppendUDP(nil, netip.AddrPortFrom(target[0], 53), netip.AddrPortFrom(local[0], 4000), nil)
			if err != nil {
				t.Fatal(err)
			}
			host.Deliver(ipPacket(packet.ProtocolUDP, target[0], local[0], b))
			synctest.Wait()
		}
		if want := []uint64{0, 1, 2}; !slices.Equal(order, want) {
			t.Errorf("answered in the order %v, want %v", order, want)
		}
		if c := p.Counters(); c.Unmatched != 1 {
			t.Errorf("%+v, want the fourth answer unmatched", c)
		}
	})
}
