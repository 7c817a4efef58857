// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast/volta"
)

// command is a Command with the default options, changed.
func command(source, destination string, change ...func(*volta.Command)) volta.Command {
	c := volta.Command{
		Source: source, Destination: destination,
		MaxTTL: 20, Queries: 3, Wait: 5 * time.Second, TOS: 1,
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// TestParseCommand agrees with Python's argparse, given the options of the original and -I.
func TestParseCommand(t *testing.T) {
	m := func(n int) func(*volta.Command) { return func(c *volta.Command) { c.MaxTTL = n } }
	q := func(n int) func(*volta.Command) { return func(c *volta.Command) { c.Queries = n } }
	w := func(n int) func(*volta.Command) {
		return func(c *volta.Command) { c.Wait = time.Duration(n) * time.Second }
	}
	tos := func(n int) func(*volta.Command) { return func(c *volta.Command) { c.TOS = n } }
	icmp := func(c *volta.Command) { c.ICMP = true }

	for _, tt := range []struct {
		text string
		want volta.Command
	}{
		{"volta agent-a 203.0.113.10", command("agent-a", "203.0.113.10")},
		{"x agent-b 192.0.2.9", command("agent-b", "192.0.2.9")},
		{"  volta\tagent-a\n203.0.113.10 ", command("agent-a", "203.0.113.10")},
		{"volta a b -m 2 -w 1 -q 4 -t 2", command("a", "b", m(2), w(1), q(4), tos(2))},
		{"volta -m 2 a -q 1 b", command("a", "b", m(2), q(1))},
		{"volta a -m 2 b", command("a", "b", m(2))},
		{"volta a b -q1 -m5", command("a", "b", q(1), m(5))},
		{"volta a b -q=1", command("a", "b", q(1))},
		{"volta a b --max-ttls=2 --waittime 0 --nqueries=1 --tos=0", command("a", "b", m(2), w(0), q(1), tos(0))},
		{"volta a b --max 2 --nq 1 --w 3 --to 4", command("a", "b", m(2), q(1), w(3), tos(4))},
		{"volta a b --m=7", command("a", "b", m(7))},
		{"volta a b -m 999 -m 2", command("a", "b", m(2))},
		{"volta a b --max-ttls 3 -m 2", command("a", "b", m(2))},
		{"volta a b -I", command("a", "b", icmp)},
		{"volta a b -Iq1", command("a", "b", icmp, q(1))},
		{"volta a b -IIm 4", command("a", "b", icmp, m(4))},
		{"volta -- a b", command("a", "b")},
		{"volta -m 2 -- a -b", command("a", "-b", m(2))},
		{"volta a -- -m", command("a", "-m")},
		{"volta -1 -.5", command("-1", "-.5")},
		{"volta a -", command("a", "-")},
		{"volta a b -m 1_0 -q +3 -w 007", command("a", "b", m(10), w(7))},
		{"volta a b -m 0", command("a", "b", m(0))},
		{"volta a b -q 0", command("a", "b", q(0))},
		{"volta a b -m 255 -w 3600 -t 255", command("a", "b", m(255), w(3600), tos(255))},
		{"volta a b -m 0 -q 2147483647", command("a", "b", m(0), q(2147483647))},
		{"volta agent-ä b", command("agent-ä", "b")},
	} {
		got, err := volta.ParseCommand(tt.text)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
		} else if got != tt.want {
			t.Errorf("%q:\n%+v, want\n%+v", tt.text, got, tt.want)
		}
	}
}

func TestParseCommandRefuses(t *testing.T) {
	for text, problem := range map[string]string{
		"":                               "the following arguments are required: source, destination",
		"volta":                          "the following arguments are required: source, destination",
		"volta a":                        "the following arguments are required: destination",
		"volta -m 2 a":                   "the following arguments are required: destination",
		"volta a b c":                    "unrecognized arguments: c",
		"volta a b -I -":                 "unrecognized arguments: -",
		"volta a b -x":                   "unrecognized arguments: -x",
		"volta a b --max-ttlsx 2":        "unrecognized arguments: --max-ttlsx 2",
		"volta a b -z 2":                 "unrecognized arguments: -z 2",
		"volta a b --=5":                 `ambiguous option: "--=5" could match --max-ttls, --waittime, --nqueries, --tos, --help`,
		"volta a b -m":                   "argument -m/--max-ttls: expected one argument",
		"volta a b -m -q 2":              "argument -m/--max-ttls: expected one argument",
		"volta a b -m -- 2":              "argument -m/--max-ttls: expected one argument",
		"volta a b -m x":                 `argument -m/--max-ttls: invalid int value: "x"`,
		"volta a b -mq1":                 `argument -m/--max-ttls: invalid int value: "q1"`,
		"volta a b -m=":                  `argument -m/--max-ttls: invalid int value: ""`,
		"volta a b -w 1.5":               `argument -w/--waittime: invalid int value: "1.5"`,
		"volta a b -w 0x10":              `argument -w/--waittime: invalid int value: "0x10"`,
		"volta a b -q _1":                `argument -q/--nqueries: invalid int value: "_1"`,
		"volta a b -q 1__0":              `argument -q/--nqueries: invalid int value: "1__0"`,
		"volta a b -I5":                  `argument -I: ignored explicit argument "5"`,
		"volta a b -I=":                  `argument -I: ignored explicit argument ""`,
		"volta a b -m -1":                "argument -m/--max-ttls: must be 0 to 255, not -1",
		"volta a b -m 256":               "argument -m/--max-ttls: must be 0 to 255, not 256",
		"volta a b -w -1":                "argument -w/--waittime: must be 0 to 3600, not -1",
		"volta a b -w 3601":              "argument -w/--waittime: must be 0 to 3600, not 3601",
		"volta a b -q -1":                "argument -q/--nqueries: must be 0 to 2147483647, not -1",
		"volta a b -q 99999999999999999": "argument -q/--nqueries: must be 0 to 2147483647, not 99999999999999999",
		"volta a b -t 256":               "argument -t/--tos: must be 0 to 255, not 256",
		"volta a b -m 99999999999999999999999999": "argument -m/--max-ttls: must be 0 to 255, not 9223372036854775807",
		"volta a b\x1b[2J":                        `unprintable characters in "b\x1b[2J"`,
		"volta a b\xff":                           "not UTF-8",
		"volta a " + strings.Repeat("b", 4089):    "4097 bytes are more than 4096",
		"volta -h":                                "",
		"volta a b --help":                        "",
	} {
		c, err := volta.ParseCommand(text)
		e, ok := errors.AsType[*volta.CommandError](err)
		if !ok || c != (volta.Command{}) {
			t.Errorf("%.60q: %+v, %v", text, c, err)
			continue
		}
		if e.Problem != problem {
			t.Errorf("%.60q: %s, want %s", text, e.Problem, problem)
		}
		if got := e.Error(); !strings.HasPrefix(got, "Invalid command: ") || !strings.HasSuffix(got, volta.Usage) {
			t.Errorf("%.60q: %s", text, got)
		}
	}
}

func TestCommandSize(t *testing.T) {
	c := command("a", "b", func(c *volta.Command) { c.MaxTTL, c.Queries = 50, 2 })
	if err := c.CheckSize(100); err != nil {
		t.Error(err)
	}
	c.MaxTTL = 51
	if _, ok := errors.AsType[*volta.SizeError](c.CheckSize(100)); !ok {
		t.Errorf("%d probes fit a block of 100", c.Probes())
	}
	c.MaxTTL, c.Queries = 255, 1<<31-1
	if err := c.CheckSize(65535); err == nil {
		t.Error("the largest command fits a block")
	}
}

func TestTrafficClass(t *testing.T) {
	for tos, want := range map[int]uint8{0: 0, 1: 0, 2: 3, 3: 3, 184: 184, 255: 255} {
		if got := (volta.Command{TOS: tos}).TrafficClass(); got != want {
			t.Errorf("-t %d: %d, want %d", tos, got, want)
		}
	}
}
