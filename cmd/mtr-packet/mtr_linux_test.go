// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/lab"
)

// mtr runs Debian's mtr on host a, with mtr-packet as its helper.
func mtr(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("mtr")
	if err != nil {
		t.Skip("mtr is not installed (Debian: mtr-tiny)")
	}
	version, err := exec.CommandContext(t.Context(), path, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	dialect := "0.96"
	if _, number, _ := strings.Cut(strings.TrimSpace(string(version)), " "); number < "0.96" {
		dialect = "0.95"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := l.Host("a").Command(ctx, path, args...)
	cmd.Env = environment(t, envDialect+"="+dialect)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("mtr %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// hopLine is a hop of mtr's report: number, address, loss, packets sent.
var hopLine = regexp.MustCompile(`(?m)^ *([0-9]+)\.\|-- (\S+) +([0-9.]+)% +([0-9]+) `)

// hops gives "ADDRESS LOSS% SENT" of each hop of a report.
func hops(report string) (found []string) {
	for _, m := range hopLine.FindAllStringSubmatch(report, -1) {
		found = append(found, fmt.Sprintf("%s %s%% %s", m[2], m[3], m[4]))
	}
	return found
}

func TestMtrReport(t *testing.T) {
	l := newLab(t)
	for _, version := range []int{4, 6} {
		target := l.Host("b").Addr()
		if version == 6 {
			target = l.Host("b").Addr6()
		}
		want := []string{
			l.Host("r1").AddrTowards("a", version).String() + " 0.0% 3",
			l.Host("r2").AddrTowards("r1", version).String() + " 0.0% 3",
			target.String() + " 0.0% 3",
		}
		tests := []struct {
			name string
			args []string
		}{
			{"icmp", nil},
			{"udp", []string{"-u"}},
			{"udp with a port", []string{"-u", "-P", "33999"}},
			{"udp with both ports", []string{"-u", "-P", "33999", "-L", "4000"}},
			{"tcp", []string{"-T"}},
			{"tcp with a port", []string{"-T", "-P", "4711"}},
			{"sctp", []string{"-S"}},
			{"size, tos and first hop", []string{"-s", "1000", "-Q", "184"}},
			{"mark", []string{"-M", "5"}},
			{"bit pattern", []string{"-B", "85", "-s", "9000"}},
		}
		for _, tt := range tests {
			t.Run(fmt.Sprintf("ip%d/%s", version, tt.name), func(t *testing.T) {
				t.Parallel() // it mostly waits
				args := append([]string{fmt.Sprintf("-%d", version), "-r", "-n", "-c", "3", "-i", "0.1", "-G", "1"}, tt.args...)
				report := mtr(t, l, append(args, target.String())...)
				if got := hops(report); !slices.Equal(got, want) {
					t.Errorf("hops %q, want %q\n%s", got, want, report)
				}
			})
		}
	}
}

// mtr counts what is lost, and stops asking beyond unreachable and silent hops.
func TestMtrUnreachable(t *testing.T) {
	l := lab.New(t, &lab.Topology{
		Hosts: map[string]lab.HostConfig{"a": {}, "b": {}},
		Routers: map[string]lab.RouterConfig{
			"r1": {Routes: []lab.RouteConfig{{To: "203.0.113.0/24", Reject: "unreachable"}}},
		},
		Wires: []lab.WireConfig{{Ends: [2]string{"a", "r1"}}, {Ends: [2]string{"r1", "b"}}},
	})
	report := mtr(t, l, "-r", "-n", "-m", "1", "-c", "3", "-i", "0.1", "-G", "1", "203.0.113.7")
	want := []string{l.Host("r1").AddrTowards("a", 4).String() + " 0.0% 3"}
	if got := hops(report); len(got) == 0 || got[0] != want[0] {
		t.Errorf("hops %q, want %q first\n%s", got, want, report)
	}
}

func TestMtrMPLS(t *testing.T) {
	l := newLab(t, lab.Label{Label: 16001, TTL: 1}, lab.Label{Label: 299776, TC: 7, TTL: 254})
	target := l.Host("b").Addr().String()
	// Only the raw and the interactive output show labels.
	raw := mtr(t, l, "-l", "-e", "-n", "-c", "2", "-i", "0.1", "-G", "1", target)
	for _, want := range []string{
		"(?m)^h 0 " + regexp.QuoteMeta(l.Host("r1").AddrTowards("a", 4).String()) + "$",
		"(?m)^h 2 " + regexp.QuoteMeta(target) + "$",
		`(?m)^p 0 [0-9]+ [0-9]+$`,
		`(?m)^m 0 16001 0 0 1$`,
		`(?m)^m 0 299776 7 1 254$`,
	} {
		if !regexp.MustCompile(want).MatchString(raw) {
			t.Errorf("no line %s in\n%s", want, raw)
		}
	}
}
