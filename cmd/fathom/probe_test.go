// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// moodyRule answers each probe of a run of four differently.
func moodyRule(req probe.Request) probe.Result {
	switch req.Tag & 0xffffffff {
	case 2:
		return probe.Result{}
	case 3:
		return probe.Result{
			Status: probe.TimeExceeded, RTT: 2500 * time.Microsecond, Responder: netip.MustParseAddr("10.0.0.254"),
			HasICMP: true, ICMPType: 11, ReplyTTL: 255, QuotedTTL: 1,
			MPLS: []packet.Label{{Label: 16001, TC: 5, Bottom: true, TTL: 1}},
		}
	}
	return probe.Result{Status: probe.Replied, RTT: 1500 * time.Microsecond, ReplyTTL: 64, KernelTimed: true, HasICMP: true}
}

func TestProbeOneHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newTestApp(&fakeProber{rule: moodyRule})
		if code := app.fathom(t.Context(), "probe", "router.example"); code != exitDone {
			t.Errorf("exit code %d, want %d", code, exitDone)
		}
		want := `router.example (10.0.0.1): icmp, 64 bytes, every 1s
    1  reply from 10.0.0.1  1.500 ms  ttl 64
    3  time exceeded from 10.0.0.254  2.500 ms  ttl 255  mpls 16001 (tc 5, ttl 1)
    2  no reply within 2s
    4  reply from 10.0.0.1  1.500 ms  ttl 64

TARGET          SENT RECV  LOSS MIN ms   AVG   MED   P95   P99   MAX JITTER
router.example     4    2 50.0%  1.500 1.500 1.500 1.500 1.500 1.500  0.000
    1 time-exceeded
`
		if diff := cmp.Diff(want, app.out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
		if app.err.Len() > 0 {
			t.Errorf("on standard error: %s", &app.err)
		}
	})
}

func TestProbeManyHosts(t *testing.T) {
	silent := netip.MustParseAddr("10.0.0.9")
	synctest.Test(t, func(t *testing.T) {
		app := newTestApp(&fakeProber{rule: func(req probe.Request) probe.Result {
			if req.Target == silent {
				return probe.Result{}
			}
			return probe.Result{Status: probe.Replied, RTT: 1234567}
		}})
		if code := app.fathom(t.Context(), "probe", "-c1", "10.0.0.9", "no.example", "2001:db8::1"); code != exitFailed {
			t.Errorf("exit code %d, want %d", code, exitFailed)
		}
		want := `TARGET          SENT RECV  LOSS MIN ms   AVG   MED   P95   P99   MAX JITTER
10.0.0.9           1    0  100%      -     -     -     -     -     -      -
2001:db8::1        1    1    0%  1.235 1.235 1.235 1.235 1.235 1.235  0.000

3 targets, 1 answered, 2 silent; 2 probes sent, 1 answered, 50.0% loss
`
		if diff := cmp.Diff(want, app.out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
		if got, want := app.err.String(), "fathom probe: resolve no.example: no such host\n"; got != want {
			t.Errorf("on standard error: %q, want %q", got, want)
		}
	})
}

// The table is no wider than a terminal of 80, whatever the times are; long names and many probes
// widen their columns and keep the figures below their titles.
func TestProbeTableFits(t *testing.T) {
	rtts := map[string]time.Duration{
		"10.0.0.1": 12_345 * time.Nanosecond, "255.255.255.255": 12345678 * time.Nanosecond,
		"2001:db8:1::aaaa:bbb": 123456789 * time.Nanosecond, "2001:db8::1": 1999999 * time.Microsecond,
	}
	synctest.Test(t, func(t *testing.T) {
		rule := func(req probe.Request) probe.Result {
			return probe.Result{Status: probe.Replied, RTT: rtts[req.Target.String()]}
		}
		app := newTestApp(&fakeProber{rule: rule})
		app.fathom(t.Context(), "probe", "-c9999", "-i1ms", "10.0.0.1", "255.255.255.255", "2001:db8:1::aaaa:bbb", "2001:db8::1")
		want := `TARGET               SENT RECV  LOSS MIN ms   AVG   MED   P95   P99   MAX JITTER
10.0.0.1             9999 9999    0%  0.012 0.012 0.012 0.012 0.012 0.012  0.000
255.255.255.255      9999 9999    0%  12.35 12.35 12.35 12.35 12.35 12.35  0.000
2001:db8:1::aaaa:bbb 9999 9999    0%  123.5 123.5 123.5 123.5 123.5 123.5  0.000
2001:db8::1          9999 9999    0%   2000  2000  2000  2000  2000  2000  0.000

4 targets, 4 answered, 0 silent; 39996 probes sent, 39996 answered, 0% loss
`
		if diff := cmp.Diff(want, app.out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
		for line := range strings.Lines(want) {
			if len(line) > 81 {
				t.Errorf("wider than 80: %q", line)
			}
		}
		app = newTestApp(&fakeProber{rule: rule})
		app.fathom(t.Context(), "probe", "-qc10000", "-i1ms", "10.0.0.1")
		want = `TARGET           SENT  RECV  LOSS MIN ms   AVG   MED   P95   P99   MAX JITTER
10.0.0.1        10000 10000    0%  0.012 0.012 0.012 0.012 0.012 0.012  0.000
`
		if diff := cmp.Diff(want, app.out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
	})
}

func TestProbeJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newTestApp(&fakeProber{rule: moodyRule})
		app.stdin = strings.NewReader("# routers\n\nrouter.example # the first\nno.example\n")
		if code := app.fathom(t.Context(), "probe", "--json", "--count=4", "--interval=0.5", "-"); code != exitFailed {
			t.Errorf("exit code %d, want %d: one name does not resolve", code, exitFailed)
		}
		want := `{"type":"summary","target":"no.example","protocol":"icmp","sent":0,"received":0,"outcomes":{},"error":"resolve no.example: no such host"}
{"type":"probe","target":"router.example","address":"10.0.0.1","protocol":"icmp","sequence":1,"ttl":255,"status":"reply","sent_at":"2000-01-01T00:00:00Z","responder":"10.0.0.1","rtt_ns":1500000,"kernel_timed":true,"reply_ttl":64,"icmp_type":0,"icmp_code":0}
{"type":"probe","target":"router.example","address":"10.0.0.1","protocol":"icmp","sequence":3,"ttl":255,"status":"time-exceeded","sent_at":"2000-01-01T00:00:01Z","responder":"10.0.0.254","rtt_ns":2500000,"kernel_timed":false,"reply_ttl":255,"icmp_type":11,"icmp_code":0,"quoted_ttl":1,"quoted_tos":0,"mpls":[{"label":16001,"traffic_class":5,"bottom":true,"ttl":1}]}
{"type":"probe","target":"router.example","address":"10.0.0.1","protocol":"icmp","sequence":4,"ttl":255,"status":"reply","sent_at":"2000-01-01T00:00:01.5Z","responder":"10.0.0.1","rtt_ns":1500000,"kernel_timed":true,"reply_ttl":64,"icmp_type":0,"icmp_code":0}
{"type":"probe","target":"router.example","address":"10.0.0.1","protocol":"icmp","sequence":2,"ttl":255,"status":"no-reply","sent_at":"2000-01-01T00:00:00.5Z"}
{"type":"summary","target":"router.example","address":"10.0.0.1","protocol":"icmp","sent":4,"received":2,"loss_percent":50,"outcomes":{"no-reply":1,"reply":2,"time-exceeded":1},"min_ns":1500000,"avg_ns":1500000,"median_ns":1500000,"p95_ns":1500000,"p99_ns":1500000,"max_ns":1500000,"stddev_ns":0,"jitter_ns":0}
`
		// The two names resolve at the same time: the order of the first two lines may vary.
		got := app.out.String()
		if lines := strings.SplitAfterN(got, "\n", 3); strings.Contains(lines[1], "no.example") {
			got = lines[1] + lines[0] + lines[2]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
	})
}

func TestProbeOptionsReachTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProber{rule: replyAfter(time.Millisecond)}
		app := newTestApp(p)
		app.env["FATHOM_TOS"] = "0xb8"
		app.env["FATHOM_TTL"] = "9" // the option wins
		code := app.fathom(t.Context(), "probe", "-c1", "--protocol", "UDP", "--port=53", "--local-port=2000", "--ttl=7", "--size=100",
			"--pattern=0xab", "--mark=77", "--flow=3", "--interface=eth0", "--local-address=10.0.0.7", "--timeout=250ms", "10.0.0.1")
		if code != exitDone {
			t.Fatalf("exit code %d: %s", code, &app.err)
		}
		want := probe.Request{
			Target: netip.MustParseAddr("10.0.0.1"), Protocol: probe.UDP, TTL: 7, TOS: 0xb8, Pattern: 0xab, Port: 53, LocalPort: 2000,
			LocalAddr: netip.MustParseAddr("10.0.0.7"), Interface: "eth0", Mark: 77, Size: 100, Timeout: 250 * time.Millisecond, Flow: 3, Tag: 1,
		}
		if len(p.requests) != 1 || p.requests[0] != want {
			t.Errorf("requests %+v, want %+v", p.requests, want)
		}
	})
}

func TestProbeOneHostOnTerminalRunsUntilInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newTestApp(&fakeProber{rule: replyAfter(time.Millisecond)})
		app.stdoutTerminal = true
		ctx, cancel := context.WithTimeout(t.Context(), 9500*time.Millisecond)
		defer cancel()
		if code := app.fathom(ctx, "probe", "10.0.0.1"); code != exitDone {
			t.Errorf("exit code %d, want %d", code, exitDone)
		}
		if row := "10.0.0.1          10   10    0%"; !strings.Contains(app.out.String(), row) {
			t.Errorf("no summary of 10 probes in:\n%s", &app.out)
		}
	})
}

func TestProbeProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newTestApp(&fakeProber{rule: replyAfter(time.Millisecond)})
		app.stderrTerminal = true
		var list strings.Builder
		for i := range 200 {
			fmt.Fprintf(&list, "10.0.0.%d\n", i)
		}
		app.stdin = strings.NewReader(list.String())
		if code := app.fathom(t.Context(), "probe", "-c3", "-"); code != exitDone {
			t.Errorf("exit code %d, want %d", code, exitDone)
		}
		if want := regexp.MustCompile("\r\x1b\\[K0 targets done, 200 at work; 4[0-9]{2} probes sent, 400 answered, [0-9]+/s"); !want.MatchString(app.err.String()) {
			t.Errorf("no %v in %q", want, &app.err)
		}
		if !strings.HasSuffix(app.err.String(), "\r\x1b[K") {
			t.Error("the progress line is left standing")
		}
		if got, want := strings.Count(app.out.String(), "\n"), 1+200+2; got != want {
			t.Errorf("%d lines, want %d", got, want)
		}
	})
}

func TestProbeUsageErrors(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{nil, "name a host"},
		{[]string{"--ttl=0", "h"}, "--ttl 0: want 1 to 255"},
		{[]string{"--ttl=256", "h"}, `option --ttl "256": want a whole number from 0 to 255`},
		{[]string{"--size=65536", "h"}, "--size 65536: want 0 to 65535"},
		{[]string{"--timeout=0", "h"}, "--timeout 0s: want more than 0"},
		{[]string{"--timeout=soon", "h"}, "want a duration such as"},
		{[]string{"--window=0", "h"}, "--window 0: want 1 to"},
		{[]string{"--rate=-1", "h"}, "--rate -1: want 0 to"},
		{[]string{"--rate=NaN", "h"}, "--rate NaN: want 0 to"},
		{[]string{"--protocol=gre", "h"}, "want icmp, udp, tcp or sctp"},
		{[]string{"--local-address=here", "h"}, "want an IP address"},
		{[]string{"-4", "--local-address=::1", "h"}, "is not an IPv4 address"},
		{[]string{"--port=80", "h"}, "--port: icmp has no ports"},
		{[]string{"--local-port=2000", "h"}, "--local-port: only with --protocol udp"},
		{[]string{"--protocol=sctp", "--local-port=2000", "h"}, "--local-port: only with --protocol udp"},
		{[]string{"-4", "-6", "h"}, "--ipv4 and --ipv6 exclude each other"},
		{[]string{"--protocl=icmp", "h"}, "did you mean --protocol?"},
		{[]string{"-x", "h"}, "unknown option -x"},
		{[]string{"-qx", "h"}, "unknown option -x"},
		{[]string{"h", "--count"}, "option --count needs a value"},
		{[]string{"h", "-c"}, "option --count needs a value"},
		{[]string{"h", "--count=-1"}, `option --count "-1": want a whole number, 0 or more`},
		{[]string{"h", "--interval=-1s"}, "option --interval \"-1s\": want a duration such as 0.5, 500ms or 2s"},
	}
	for _, tt := range tests {
		app := newTestApp(&fakeProber{rule: replyAfter(0)})
		if code := app.fathom(t.Context(), append([]string{"probe"}, tt.args...)...); code != exitUsage {
			t.Errorf("%q: exit code %d, want %d", tt.args, code, exitUsage)
		}
		if !strings.Contains(app.err.String(), tt.want) || app.out.Len() > 0 {
			t.Errorf("%q: stderr %q without %q, stdout %q", tt.args, &app.err, tt.want, &app.out)
		}
	}
}

// What is unreachable stands there in words, with the numbers beside it.
func TestDescribeUnreachable(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		result probe.Result
		want   string
	}{
		{probe.Result{Status: probe.NetUnreachable, RTT: -1}, "no route from this host"},
		{probe.Result{Status: probe.HostUnreachable, RTT: -1}, "host unreachable"},
		{probe.Result{Status: probe.HostUnreachable, Target: v4, HasICMP: true, ICMPType: 3}, "network unreachable from 10.0.0.254  1.000 ms  icmp type 3 code 0"},
		{probe.Result{Status: probe.HostUnreachable, Target: v4, HasICMP: true, ICMPType: 3, ICMPCode: 1}, "host unreachable from 10.0.0.254  1.000 ms  icmp type 3 code 1"},
		{probe.Result{Status: probe.HostUnreachable, Target: v4, HasICMP: true, ICMPType: 3, ICMPCode: 4, MTU: 1400}, "packet too big from 10.0.0.254  1.000 ms  icmp type 3 code 4  mtu 1400"},
		{probe.Result{Status: probe.HostUnreachable, Target: v4, HasICMP: true, ICMPType: 3, ICMPCode: 13}, "communication prohibited from 10.0.0.254  1.000 ms  icmp type 3 code 13"},
		{probe.Result{Status: probe.HostUnreachable, Target: v4, HasICMP: true, ICMPType: 3, ICMPCode: 77}, "unreachable from 10.0.0.254  1.000 ms  icmp type 3 code 77"},
		{probe.Result{Status: probe.HostUnreachable, Target: v6, HasICMP: true, ICMPType: 1, ICMPCode: 1}, "communication prohibited from 10.0.0.254  1.000 ms  icmp type 1 code 1"},
		{probe.Result{Status: probe.HostUnreachable, Target: v6, HasICMP: true, ICMPType: 2, MTU: 1280}, "packet too big from 10.0.0.254  1.000 ms  icmp type 2 code 0  mtu 1280"},
		{probe.Result{Status: probe.HostUnreachable, Target: v6, HasICMP: true, ICMPType: 4, ICMPCode: 1}, "protocol unreachable from 10.0.0.254  1.000 ms  icmp type 4 code 1"},
	} {
		if tt.result.HasICMP {
			tt.result.Responder, tt.result.RTT = netip.MustParseAddr("10.0.0.254"), time.Millisecond
		}
		if got := describeResult(&tt.result, time.Second); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// A link-local address needs an interface, and one that exists, in every command.
func TestLinkLocalTargetNeedsAnInterface(t *testing.T) {
	const missing = "resolve fe80::1: a link-local address needs its interface: write fe80::1%INTERFACE\n"
	first, err := net.InterfaceByIndex(1) // the loopback, whatever its name
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"probe", "-c1"}, {"trace", "-n"}, {"mtr", "--report", "-c1", "-n"}} {
		for _, tt := range []struct {
			args []string
			want string
		}{
			{[]string{"fe80::1"}, missing},
			{[]string{"fe80::1%no-such"}, "resolve fe80::1%no-such: there is no interface \"no-such\"\n`ip link` lists the interfaces of this host.\n"},
			{[]string{"fe80::1%999999999"}, "resolve fe80::1%999999999: there is no interface \"999999999\"\n`ip link` lists the interfaces of this host.\n"},
			{[]string{"fe80::1%" + first.Name}, ""},
			{[]string{"fe80::1%1"}, ""},
			{[]string{"--interface=" + first.Name, "fe80::1"}, ""},
		} {
			synctest.Test(t, func(t *testing.T) {
				app := newTestApp(&fakeProber{rule: replyAfter(time.Millisecond)})
				args := append(slices.Clone(command), tt.args...)
				code := app.fathom(t.Context(), args...)
				want, wantCode := tt.want, exitDone
				if want != "" {
					want, wantCode = "fathom "+command[0]+": "+want, exitFailed
				}
				if app.err.String() != want || code != wantCode {
					t.Errorf("%q: exit code %d, standard error %q, want %q", args, code, &app.err, want)
				}
			})
		}
	}
}

func TestProbePermissionTellsWhatToDo(t *testing.T) {
	app := newTestApp(nil)
	app.newProber = func(probe.Options, uint32) (prober, error) {
		return nil, fmt.Errorf("open raw socket: %w", probe.ErrPermission)
	}
	if code := app.fathom(t.Context(), "probe", "10.0.0.1"); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if want := "`sudo setcap cap_net_raw+ep " + path + "`"; !strings.Contains(app.err.String(), want) {
		t.Errorf("no %q in %q", want, &app.err)
	}
}

func TestProbeTellsWhatTheProberLacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newTestApp(&fakeProber{rule: func(probe.Request) probe.Result {
			return probe.Result{Status: probe.Failed, RTT: -1, Err: fmt.Errorf("a mark: %w", probe.ErrUnsupported)}
		}})
		if code := app.fathom(t.Context(), "probe", "10.0.0.1", "10.0.0.2"); code != exitFailed {
			t.Errorf("exit code %d, want %d", code, exitFailed)
		}
		want := `fathom probe: 10.0.0.1: a mark: unsupported operation
what it lacks, and how to get it
UDP and TCP without a mark need none of this.
fathom probe: 10.0.0.2: a mark: unsupported operation
`
		if diff := cmp.Diff(want, app.err.String()); diff != "" {
			t.Errorf("standard error (-want +got):\n%s", diff)
		}
	})
}

func TestHintNamesOnlyWhatTheRequestNeeds(t *testing.T) {
	missing := []string{"ICMP over IPv4: a", "ICMP over IPv6: b", "SCTP, routing marks: c", "IPv6: d"}
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		request probe.Request
		want    string
	}{
		{probe.Request{Target: v4, Protocol: probe.ICMP}, "a"},
		{probe.Request{Target: v6, Protocol: probe.ICMP}, "bd"},
		{probe.Request{Target: v4, Protocol: probe.SCTP}, "c"},
		{probe.Request{Target: v4, Protocol: probe.UDP, Mark: 7}, "c"},
		{probe.Request{Target: v4, Protocol: probe.UDP}, "abcd"}, // unknown: all
	} {
		var got strings.Builder
		for _, sentence := range missingFor(tt.request, missing) {
			got.WriteString(sentence[len(sentence)-1:])
		}
		if got.String() != tt.want {
			t.Errorf("%v to %v, mark %d: sentences %s, want %s", tt.request.Protocol, tt.request.Target, tt.request.Mark, &got, tt.want)
		}
	}
}

// A prober keeps the privilege for marks only if it is told of one when it is opened.
func TestEveryCommandOpensItsProberWithTheMark(t *testing.T) {
	for _, args := range [][]string{
		{"probe", "--mark=77", "10.0.0.1"},
		{"trace", "--mark=77", "10.0.0.1"},
		{"mtr", "--report", "--mark=77", "10.0.0.1"},
	} {
		app := newTestApp(nil)
		var got uint32
		app.newProber = func(_ probe.Options, mark uint32) (prober, error) {
			got = mark
			return nil, errors.New("not now")
		}
		if app.fathom(t.Context(), args...); got != 77 {
			t.Errorf("%q: opened with mark %d, want 77", args, got)
		}
	}
}

// Every command takes the options about sockets, and refuses those that would be ignored.
func TestEveryCommandOpensItsProberWithTheSockets(t *testing.T) {
	for _, command := range [][]string{{"probe"}, {"trace"}, {"mtr", "--report"}} {
		for _, tt := range []struct {
			args []string
			env  map[string]string
			want probe.Options
			code int
		}{
			{nil, nil, probe.Options{}, exitFailed},
			{[]string{"--send-eth"}, nil, probe.Options{SendFrames: true}, exitFailed},
			{nil, map[string]string{"FATHOM_SEND_ETH": "true"}, probe.Options{SendFrames: true}, exitFailed},
			{[]string{"--unprivileged"}, map[string]string{"FATHOM_SEND_ETH": "true"}, probe.Options{Mode: probe.Unprivileged}, exitFailed},
			{[]string{"--unprivileged", "--send-eth"}, nil, probe.Options{}, exitUsage},
			{[]string{"--mark=7", "--send-eth"}, nil, probe.Options{}, exitUsage},
		} {
			app := newTestApp(nil)
			app.lookupEnv = func(name string) (string, bool) {
				value, ok := tt.env[name]
				return value, ok
			}
			var got probe.Options
			app.newProber = func(o probe.Options, _ uint32) (prober, error) {
				got = o
				return nil, errors.New("not now")
			}
			args := slices.Concat(command, tt.args, []string{"10.0.0.1"})
			code := app.fathom(t.Context(), args...)
			got.MaxInFlight = 0
			if code != tt.code || got != tt.want {
				t.Errorf("%q, %v: exit code %d, options %+v; want %d, %+v", args, tt.env, code, got, tt.code, tt.want)
			}
		}
	}
}

func TestProbeNoHostsOnStandardInput(t *testing.T) {
	app := newTestApp(&fakeProber{rule: replyAfter(0)})
	app.stdin = strings.NewReader("# nobody\n\n")
	if code := app.fathom(t.Context(), "probe", "-"); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	if want := "fathom probe: no hosts on standard input\n"; app.err.String() != want {
		t.Errorf("standard error %q, want %q", &app.err, want)
	}
}

// failingWriter is a full disk.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestProbeTellsOnceOfAFailedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := newTestApp(&fakeProber{rule: replyAfter(time.Millisecond)})
		app.stdout = failingWriter{}
		if code := app.fathom(t.Context(), "probe", "-c1", "10.0.0.1"); code != exitFailed {
			t.Errorf("exit code %d, want %d", code, exitFailed)
		}
		if want := "fathom probe: no space left\n"; app.err.String() != want {
			t.Errorf("standard error %q, want %q", &app.err, want)
		}
	})
}
