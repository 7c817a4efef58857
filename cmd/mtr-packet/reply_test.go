// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

func TestAppendResult(t *testing.T) {
	target := netip.MustParseAddr("198.51.100.7")
	router := netip.MustParseAddr("192.0.2.1")
	stack := []packet.Label{{Label: 16001, TTL: 1}, {Label: 299776, TC: 7, TTL: 254}, {Label: 1048575, TC: 3, Bottom: true, TTL: 255}}
	long := make([]packet.Label, 30)
	for i := range long {
		long[i] = packet.Label{Label: 1<<20 - 1, TC: 7, TTL: 255}
	}
	wrap := func(err error) error { return fmt.Errorf("send to %v: %w", target, err) }
	failed := func(err error) probe.Result { return probe.Result{Status: probe.Failed, Err: err} }
	tests := []struct {
		r    probe.Result
		want string // of dialect 0.96
		old  string // of dialect 0.95, where it differs
	}{
		{probe.Result{Status: probe.Replied, Responder: target, RTT: 5999}, "reply ip-4 198.51.100.7 round-trip-time 5", ""},
		{probe.Result{Status: probe.Replied, RTT: 2 * time.Second}, "reply ip-4 198.51.100.7 round-trip-time 2000000", ""},
		{probe.Result{Status: probe.Replied, Responder: netip.MustParseAddr("fe80::1%eth0"), RTT: time.Millisecond}, "reply ip-6 fe80::1 round-trip-time 1000", ""},
		{probe.Result{Status: probe.TimeExceeded, Responder: router, RTT: 1}, "ttl-expired ip-4 192.0.2.1 round-trip-time 0", ""},
		{
			probe.Result{Status: probe.TimeExceeded, Responder: netip.MustParseAddr("fd88:67::1"), RTT: 12345678, MPLS: stack},
			"ttl-expired ip-6 fd88:67::1 round-trip-time 12345 mpls 16001,0,0,1,299776,7,0,254,1048575,3,1,255", "",
		},
		{
			probe.Result{Status: probe.TimeExceeded, Responder: router, MPLS: long},
			"ttl-expired ip-4 192.0.2.1 round-trip-time 0 mpls 1048575,7,0,255" + strings.Repeat(",1048575,7,0,255", 7), "",
		},
		{
			probe.Result{Status: probe.HostUnreachable, Responder: router, RTT: 2000},
			"no-route-host ip-4 192.0.2.1 round-trip-time 2", "no-route ip-4 192.0.2.1 round-trip-time 2",
		},
		{probe.Result{Status: probe.HostUnreachable}, "no-route-host", "no-route"},
		{probe.Result{Status: probe.NetUnreachable}, "no-route-network", "no-route"},
		{probe.Result{Status: probe.NetworkDown}, "network-down", "no-route"},
		{probe.Result{Status: probe.HostDown}, "host-down", "no-route"},
		{probe.Result{Status: probe.NoReply}, "no-reply", ""},
		{failed(wrap(syscall.EINVAL)), "invalid-argument", ""},
		{failed(wrap(syscall.EPERM)), "permission-denied", ""},
		{failed(wrap(syscall.EACCES)), "unexpected-error errno 13", ""},
		{failed(wrap(syscall.EADDRINUSE)), "address-in-use", ""},
		{failed(wrap(syscall.EADDRNOTAVAIL)), "address-not-available", ""},
		{failed(wrap(syscall.ENETUNREACH)), "no-route-network", "no-route"},
		{failed(wrap(syscall.EHOSTUNREACH)), "no-route-host", "no-route"},
		{failed(wrap(syscall.ENETDOWN)), "network-down", "no-route"},
		{failed(wrap(syscall.EHOSTDOWN)), "host-down", "no-route"},
		{failed(wrap(syscall.ETIMEDOUT)), "wait-tcp-respone-timeout", "no-reply"},
		{failed(wrap(syscall.ENOBUFS)), "no-reply", ""},
		{failed(wrap(syscall.EMFILE)), "no-reply", ""},
		{failed(wrap(syscall.EPROTO)), "unexpected-error errno 71", ""},
		{failed(fmt.Errorf("%w: %w", probe.ErrNoInterface, syscall.ENODEV)), "unexpected-error errno 19", ""},
		{failed(wrap(probe.ErrNoInterface)), "unexpected-error errno 19", ""},
		{failed(wrap(probe.ErrTooBig)), "unexpected-error errno 90", ""},
		{failed(wrap(probe.ErrExhausted)), "probes-exhausted", ""},
		{failed(&probe.RequestError{Field: "size"}), "invalid-argument", ""},
		{failed(wrap(probe.ErrPermission)), "permission-denied", ""},
		{failed(wrap(probe.ErrAddrInUse)), "address-in-use", ""},
		{failed(wrap(probe.ErrAddrNotAvailable)), "address-not-available", ""},
		{failed(wrap(probe.ErrUnsupported)), "invalid-argument reason protocol-not-supported", ""},
		{failed(errors.New("something else")), "unexpected-error errno 5", ""},
	}
	for _, tt := range tests {
		tt.r.Tag, tt.r.Target = uint64(int64Token), target
		if tt.old == "" {
			tt.old = tt.want
		}
		if got := string(dialect096.appendResult(nil, &tt.r)); got != "-33000 "+tt.want+"\n" {
			t.Errorf("%v, %v: %q, want %q", tt.r.Status, tt.r.Err, got, tt.want)
		}
		if got := string(dialect095.appendResult(nil, &tt.r)); got != "-33000 "+tt.old+"\n" {
			t.Errorf("%v, %v in 0.95: %q, want %q", tt.r.Status, tt.r.Err, got, tt.old)
		}
	}
}

// int64Token shows that tokens below 0 survive the way through Request.Tag.
var int64Token int64 = -33000

func TestReplyChunks(t *testing.T) {
	var r replies
	var all, got strings.Builder
	for i := range 2000 {
		line := appendWord(nil, int64(i), strings.Repeat("w", i%300))
		r.buf = append(r.buf, line...)
		all.Write(line)
		if i%7 != 0 {
			continue
		}
		c := r.chunk()
		if len(c) == 0 || len(c) > chunkSize || c[len(c)-1] != '\n' {
			t.Fatalf("chunk of %d bytes, the last %q", len(c), c[len(c)-1])
		}
		n := len(c)
		if i%3 == 0 {
			n /= 2 // a short write
		}
		got.Write(c[:n])
		r.written(n)
	}
	for r.pending() > 0 {
		c := r.chunk()
		got.Write(c)
		r.written(len(c))
	}
	if got.String() != all.String() {
		t.Error("what was written is not what was appended")
	}
	if len(r.chunk()) != 0 || cap(r.buf) > 2*all.Len() {
		t.Errorf("%d bytes left, %d allocated for %d", len(r.chunk()), cap(r.buf), all.Len())
	}
}
