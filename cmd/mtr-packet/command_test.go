// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed5728abee/fathom/probe"
)

var compareAddrs = cmp.Options{cmpopts.EquateComparable(netip.Addr{})}

func TestParseWords(t *testing.T) {
	pairs := func(n int) string { return strings.Repeat(" a b", n) }
	const sent = "" // parsed as a command
	tests := []struct {
		line  string
		token int64
		want  string
	}{
		{"", 0, wordParseError},
		{"   ", 0, wordParseError},
		{"7", 0, wordParseError},
		{"7 check-support feature", 0, wordParseError},
		{"7 nonsense", 7, wordUnknownCommand},
		{"7 nonsense a", 0, wordParseError},
		{"7 Check-Support feature x", 7, wordUnknownCommand},
		{"7 check-support\x00 feature x", 7, wordUnknownCommand},
		{"7 check-support", 7, wordInvalidArgument},
		{"7 check-support other x", 7, wordInvalidArgument},
		{"7 check-support feature x", 7, sent},
		{" \t7\v\fcheck-support  feature\r x \r", 7, sent},
		{"7 check-support\xa0feature x", 0, wordParseError}, // not a space in the C locale
		{"7 check-support feature \u00fc\u00df", 7, sent},
		{"7 check-support feature x" + pairs(15), 7, sent},
		{"7 check-support feature x" + pairs(15) + " a", 0, wordParseError},
		{"7 check-support feature x" + pairs(16), 0, wordParseError},
		{"7 check-support feature x" + pairs(1000), 0, wordParseError},

		{"17abc nonsense", 17, wordUnknownCommand},
		{"x15 nonsense", 0, wordUnknownCommand},
		{"+18 nonsense", 18, wordUnknownCommand},
		{"-16 nonsense", -16, wordUnknownCommand},
		{"- nonsense", 0, wordUnknownCommand},
		{"+-5 nonsense", 0, wordUnknownCommand},
		{"0x10 nonsense", 0, wordUnknownCommand},
		{"007 nonsense", 7, wordUnknownCommand},
		{"2147483647 nonsense", 2147483647, wordUnknownCommand},
		{"-2147483648 nonsense", -2147483648, wordUnknownCommand},
		{"4294967297 nonsense", 4294967297, wordUnknownCommand},
		{"9223372036854775807 nonsense", 9223372036854775807, wordUnknownCommand},
		{"9223372036854775808 nonsense", 0, wordParseError},
		{"99999999999999999999999 nonsense", 0, wordParseError},
		{"-9223372036854775808 nonsense", -9223372036854775808, wordUnknownCommand},
		{"-9223372036854775809 nonsense", 0, wordParseError},
	}
	for _, tt := range tests {
		var c command
		if got := c.parse([]byte(tt.line)); got != tt.want || c.token != tt.token {
			t.Errorf("parse(%.60q): token %d, refusal %q, want %d, %q", tt.line, c.token, got, tt.token, tt.want)
		}
	}
}

func TestParseSendProbe(t *testing.T) {
	target := netip.MustParseAddr("192.0.2.7")
	target6 := netip.MustParseAddr("2001:db8::7")
	v4 := func(change func(*probe.Request)) probe.Request {
		r := probe.Request{Target: target, Size: 64}
		change(&r)
		return r
	}
	v6 := func(change func(*probe.Request)) probe.Request {
		r := probe.Request{Target: target6, Size: 64}
		change(&r)
		return r
	}
	same := func(*probe.Request) {}
	tests := []struct {
		args string
		want probe.Request
	}{
		{"ip-4 192.0.2.7", v4(same)},
		{"ip-6 2001:db8::7", v6(same)},
		{"ip-6 2001:db8::7 ip-4 192.0.2.7", v4(same)},
		{"ip-4 192.0.2.7 ip-6 2001:db8::7", v6(same)},
		{"ip-4 192.0.2.7 unknown arg", v4(same)},
		{"ip-4 192.0.2.7 TTL nonsense", v4(same)},
		{"ip-4 192.0.2.7 protocol icmp port 53", v4(func(r *probe.Request) { r.Port = 53 })},
		{"ip-4 192.0.2.7 protocol udp", v4(func(r *probe.Request) { r.Protocol = probe.UDP })},
		{"ip-4 192.0.2.7 protocol tcp protocol udp", v4(func(r *probe.Request) { r.Protocol = probe.UDP })},
		{"ip-4 192.0.2.7 protocol tcp size 9001", v4(func(r *probe.Request) { r.Protocol, r.Size = probe.TCP, 0 })},
		{"ip-4 192.0.2.7 protocol sctp size 9001", v4(func(r *probe.Request) { r.Protocol, r.Size = probe.SCTP, 0 })},
		{"ip-4 192.0.2.7 port 0", v4(same)},
		{"ip-4 192.0.2.7 port 65535", v4(func(r *probe.Request) { r.Port = 65535 })},
		{"ip-4 192.0.2.7 port +53", v4(func(r *probe.Request) { r.Port = 53 })},
		{"ip-4 192.0.2.7 local-port 1024", v4(func(r *probe.Request) { r.LocalPort = 1024 })},
		{"ip-4 192.0.2.7 local-ip-4 192.0.2.1", v4(func(r *probe.Request) { r.LocalAddr = netip.MustParseAddr("192.0.2.1") })},
		{"ip-6 2001:db8::7 local-ip-4 192.0.2.1 local-ip-6 ::1", v6(func(r *probe.Request) { r.LocalAddr = netip.IPv6Loopback() })},
		{"ip-4 192.0.2.7 ttl 1", v4(func(r *probe.Request) { r.TTL = 1 })},
		{"ip-4 192.0.2.7 ttl 255", v4(func(r *probe.Request) { r.TTL = 255 })},
		{"ip-4 192.0.2.7 size 9000", v4(func(r *probe.Request) { r.Size = 9000 })},
		{"ip-4 192.0.2.7 size 10", v4(func(r *probe.Request) { r.Size = 10 })},
		{"ip-4 192.0.2.7 size 0", v4(func(r *probe.Request) { r.Size = 1 })},
		{"ip-4 192.0.2.7 size -5", v4(func(r *probe.Request) { r.Size = 1 })},
		{"ip-4 192.0.2.7 size 4294967396", v4(func(r *probe.Request) { r.Size = 100 })},
		{"ip-4 192.0.2.7 bit-pattern 171", v4(func(r *probe.Request) { r.Pattern = 171 })},
		{"ip-4 192.0.2.7 bit-pattern -1", v4(func(r *probe.Request) { r.Pattern = 255 })},
		{"ip-4 192.0.2.7 bit-pattern 511", v4(func(r *probe.Request) { r.Pattern = 255 })},
		{"ip-4 192.0.2.7 tos 184", v4(func(r *probe.Request) { r.TOS = 184 })},
		{"ip-4 192.0.2.7 tos 260", v4(func(r *probe.Request) { r.TOS = 4 })},
		{"ip-4 192.0.2.7 tos -1", v4(func(r *probe.Request) { r.TOS = 255 })},
		{"ip-6 2001:db8::7 tos 255", v6(func(r *probe.Request) { r.TOS = 255 })},
		{"ip-4 192.0.2.7 mark 4294967295", v4(func(r *probe.Request) { r.Mark = 4294967295 })},
		{"ip-4 192.0.2.7 mark -1", v4(func(r *probe.Request) { r.Mark = 4294967295 })},
		{"ip-4 192.0.2.7 timeout 3", v4(func(r *probe.Request) { r.Timeout = 3 * time.Second })},
		{"ip-4 192.0.2.7 timeout 0", v4(func(r *probe.Request) { r.Timeout = -1 })},
		{"ip-4 192.0.2.7 timeout -7", v4(func(r *probe.Request) { r.Timeout = -1 })},
		{"ip-4 192.0.2.7 timeout 4294967297", v4(func(r *probe.Request) { r.Timeout = time.Second })},
		{"ip-4 192.0.2.7 timeout 2147483647", v4(func(r *probe.Request) { r.Timeout = probe.MaxTimeout })},
		{"ip-4 192.0.2.7 timeout 0.25", v4(func(r *probe.Request) { r.Timeout = 250 * time.Millisecond })},
		{"ip-4 192.0.2.7 timeout .5", v4(func(r *probe.Request) { r.Timeout = 500 * time.Millisecond })},
		{"ip-4 192.0.2.7 timeout 1.0000000019", v4(func(r *probe.Request) { r.Timeout = time.Second + 1 })},
		{"ip-4 192.0.2.7 timeout 0.0", v4(func(r *probe.Request) { r.Timeout = -1 })},
		{"ip-4 192.0.2.7 timeout -0.5", v4(func(r *probe.Request) { r.Timeout = -1 })},
		{"ip-4 192.0.2.7 timeout 99999999999999999999.5", v4(func(r *probe.Request) { r.Timeout = probe.MaxTimeout })},
	}
	for _, tt := range tests {
		var c command
		if refusal := c.parse([]byte("5 send-probe " + tt.args)); refusal != "" || c.verb != sendProbe || c.token != 5 {
			t.Errorf("%s: token %d, verb %d, refusal %q", tt.args, c.token, c.verb, refusal)
			continue
		}
		if diff := cmp.Diff(tt.want, c.request, compareAddrs); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tt.args, diff)
		}
	}
}

func TestParseSendProbeRefused(t *testing.T) {
	tests := []struct{ args, want string }{
		{"", wordNoIPVersion},
		{"ttl 5", wordNoIPVersion},
		{"ip-4 localhost", wordInvalidArgument},
		{"ip-4 127.1", wordInvalidArgument},
		{"ip-4 ::1", wordInvalidArgument},
		{"ip-6 192.0.2.7", wordInvalidArgument},
		{"ip-6 fe80::1%eth0", wordInvalidArgument},
		{"ip-4 192.0.2.7 protocol igmp", wordInvalidArgument},
		{"ip-4 192.0.2.7 protocol ICMP", wordInvalidArgument},
		{"ip-4 192.0.2.7 local-ip-4 x", wordInvalidArgument},
		{"ip-4 192.0.2.7 local-ip-6 ::1", wordInvalidArgument},
		{"ip-4 192.0.2.7 local-ip-4 192.0.2.1 local-ip-6 ::1", wordInvalidArgument},
		{"ip-4 192.0.2.7 port 65536", wordInvalidArgument},
		{"ip-4 192.0.2.7 port -1", wordInvalidArgument},
		{"ip-4 192.0.2.7 port 4294967376", wordInvalidArgument},
		{"ip-4 192.0.2.7 port 99999999999999999999", wordInvalidArgument},
		{"ip-4 192.0.2.7 local-port 1023", wordInvalidArgument},
		{"ip-4 192.0.2.7 local-port 0", wordInvalidArgument},
		{"ip-4 192.0.2.7 local-port -1", wordInvalidArgument},
		{"ip-4 192.0.2.7 local-port 65536", wordInvalidArgument},
		{"ip-4 192.0.2.7 local-port 80 protocol tcp", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl 0", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl 256", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl -1", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl 5x", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl 0.5", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl 0x10", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl +", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl 5 ttl x", wordInvalidArgument},
		{"ip-4 192.0.2.7 ttl x ttl 5", wordInvalidArgument},
		{"ip-4 192.0.2.7 size 9001", wordInvalidArgument},
		{"ip-4 192.0.2.7 protocol udp size 9001", wordInvalidArgument},
		{"ip-6 2001:db8::7 tos 256", wordInvalidArgument},
		{"ip-6 2001:db8::7 tos -1", wordInvalidArgument},
		{"ip-4 192.0.2.7 mark 0x1", wordInvalidArgument},
		{"ip-4 192.0.2.7 timeout 5.", wordInvalidArgument},
		{"ip-4 192.0.2.7 timeout .", wordInvalidArgument},
		{"ip-4 192.0.2.7 timeout 1.2.3", wordInvalidArgument},
		{"ip-4 192.0.2.7 timeout 1.2s", wordInvalidArgument},
		{"ip-4 192.0.2.7 timeout 1s.2", wordInvalidArgument},
		{"ip-4 192.0.2.7 timeout ten", wordInvalidArgument},
	}
	for _, tt := range tests {
		var c command
		if got := c.parse([]byte("5 send-probe " + tt.args)); got != tt.want || c.token != 5 {
			t.Errorf("%s: token %d, refusal %q, want 5, %q", tt.args, c.token, got, tt.want)
		}
	}
}
