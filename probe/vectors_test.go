// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
)

// vector is a line of a file in testdata.
type vector struct {
	line  string
	first uint16
	req   Request
	rest  string // behind the arguments
}

func readVectors(t *testing.T, name, separator string) []vector {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out []vector
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		args, rest, ok := strings.Cut(line, separator)
		if !ok {
			t.Fatalf("%s: no %q in %q", name, separator, line)
		}
		v := vector{line: line, rest: strings.TrimSpace(rest)}
		words := strings.Fields(args)
		first, err := strconv.ParseUint(words[0], 16, 16)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v.first = uint16(first)
		if v.req, err = parseArguments(words[1:]); err != nil {
			t.Fatalf("%s: %q: %v", name, line, err)
		}
		out = append(out, v)
	}
	if len(out) == 0 {
		t.Fatalf("%s has no vectors", name)
	}
	return out
}

// parseArguments reads the arguments of a send-probe command.
func parseArguments(words []string) (r Request, err error) {
	if len(words)%2 != 0 {
		return r, fmt.Errorf("a name without a value")
	}
	for k := 0; k < len(words); k += 2 {
		name, value := words[k], words[k+1]
		n, numErr := strconv.Atoi(value)
		switch name {
		case "ip-4", "ip-6":
			r.Target, numErr = netip.ParseAddr(value)
		case "protocol":
			r.Protocol, numErr = ParseProtocol(value)
		case "port":
			r.Port = uint16(n)
		case "local-port":
			r.LocalPort = uint16(n)
		case "size":
			r.Size = n
		case "bit-pattern":
			r.Pattern = byte(n)
		case "tos":
			r.TOS = uint8(n)
		case "ttl":
			r.TTL = uint8(n)
		default:
			return r, fmt.Errorf("unknown argument %s", name)
		}
		if numErr != nil {
			return r, numErr
		}
	}
	return r, nil
}

// unhex reads words of hex, with 00x36 for 36 times 00.
func unhex(t *testing.T, text string) []byte {
	t.Helper()
	var out []byte
	for word := range strings.FieldsSeq(text) {
		digits, times, repeated := strings.Cut(word, "x")
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatalf("%q: %v", word, err)
		}
		n := 1
		if repeated {
			if n, err = strconv.Atoi(times); err != nil {
				t.Fatalf("%q: %v", word, err)
			}
		}
		out = append(out, bytes.Repeat(b, n)...)
	}
	return out
}

// maskKernel clears what the kernel fills in.
func maskKernel(p []byte) []byte {
	p = bytes.Clone(p)
	if p[0]>>4 == 4 {
		clear(p[4:6])
		clear(p[10:12])
	} else {
		p[1] &= 0xf0
		clear(p[2:4])
	}
	return p
}

// headerOf is the length of the IP header of a packet of ours.
func headerOf(p []byte) int {
	if p[0]>>4 == 4 {
		return packet.IPv4HeaderLen
	}
	return packet.IPv6HeaderLen
}

// TestSentVectors compares what is sent with what mtr-packet sends.
func TestSentVectors(t *testing.T) {
	for _, v := range readVectors(t, "sent.txt", "=") {
		t.Run(v.line, func(t *testing.T) {
			want := unhex(t, v.rest)
			synctest.Test(t, func(t *testing.T) {
				net := &internet{silent: true}
				p, _ := open(t, net.carry, Options{ICMPID: 1, FirstSequence: v.first})
				if _, err := p.Probe(t.Context(), v.req); err != nil {
					t.Fatal(err)
				}
				got := net.last(t)
				if h := headerOf(got); want[0] != got[0] {
					want = append(bytes.Clone(got[:h]), want...) // the vector has no IP header
				}
				if !bytes.Equal(maskKernel(got), maskKernel(want)) {
					t.Errorf("sent\n%x, want\n%x", got, want)
				}
			})
		})
	}
}

// TestAnswerVectors compares what recorded messages mean with what they mean to mtr-packet.
func TestAnswerVectors(t *testing.T) {
	for _, v := range readVectors(t, "answers.txt", "<") {
		t.Run(v.line, func(t *testing.T) {
			message, expected, _ := strings.Cut(v.rest, "=")
			from, digits, _ := strings.Cut(message, " ")
			b, by := unhex(t, digits), netip.MustParseAddr(from)
			ver := ipVersion(by)
			if b[0] != 0x45 {
				b = ipPacket(icmpProtocol(by), by, local[ver], b)
			}
			words := strings.Fields(expected)
			synctest.Test(t, func(t *testing.T) {
				network := func([]byte) []rawiotest.Delivery { return arriving(hop, bytes.Clone(b)) }
				p, _ := open(t, network, Options{ICMPID: 1, FirstSequence: v.first})
				r, err := p.Probe(t.Context(), v.req)
				if err != nil {
					t.Fatal(err)
				}
				if r.Status.String() != words[0] || r.Responder != by || r.RTT != hop {
					t.Errorf("%v from %v after %v, want %s from %v after %v", r.Status, r.Responder, r.RTT, words[0], by, hop)
				}
				var labels []string
				for _, l := range r.MPLS {
					bottom := 0
					if l.Bottom {
						bottom = 1
					}
					labels = append(labels, fmt.Sprintf("%d,%d,%d,%d", l.Label, l.TC, bottom, l.TTL))
				}
				if got, want := strings.Join(labels, ","), strings.Join(words[1:], ","); got != want {
					t.Errorf("labels %s, want %s", got, want)
				}
				if c := p.Counters(); c.Malformed != 0 || c.Unmatched != 0 {
					t.Errorf("counters %+v", c)
				}
			})
		})
	}
}
