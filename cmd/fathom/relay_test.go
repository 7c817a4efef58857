// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay"
	"github.com/seed5728abee/fathom/relay/control"
	"github.com/seed5728abee/fathom/relay/discovery"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/epics"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// parsedRelay gives what a command line of relay, with its environment, makes of the options.
func parsedRelay(t *testing.T, env map[string]string, args ...string) *relayOptions {
	t.Helper()
	ta := newTestApp(nil)
	maps.Copy(ta.env, env)
	o := &relayOptions{}
	cmd := newRelayCommandFor(ta.app, o)
	if err := cmd.ParseFlags(relayArgs(cmd, args)); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	for _, step := range []error{ta.applyEnv(cmd), ta.applyOriginEnvironment(cmd), o.finish(cmd)} {
		if step != nil {
			t.Fatalf("%q: %v", args, step)
		}
	}
	return o
}

// The command line wins over our variables, these over the origin's, and all over the defaults.
func TestRelayPrecedence(t *testing.T) {
	origin := map[string]string{
		"TARGET_INTERFACE": "eth7", "BDCAST_PORT": "5064", "MESH_PORT": "7001", "LOGLEVEL": "error", "SERVICENAME": "relays",
	}
	both := map[string]string{"FATHOM_TARGET_INTERFACE": "eth8,eth9", "FATHOM_BROADCAST_PORT": "5065", "FATHOM_MESH_PORT": "7002", "FATHOM_SERVICE": "ours"}
	maps.Copy(both, origin)
	empty := map[string]string{}
	for name := range both {
		empty[name] = ""
	}
	for _, test := range []struct {
		name string
		env  map[string]string
		args string
		want string // interfaces, ports, mesh port, level, service
	}{
		{"nothing given", nil, "", "eth0 5076 7124 info "},
		{"the origin's variables", origin, "", "eth7 5064 7001 error relays"},
		{"both", both, "", "eth8,eth9 5065 7002 error ours"},
		{"options over both", both, "-t eth1 -b 1-3,9 -m 7003 -ll debug --service mine", "eth1 1-3,9 7003 debug mine"},
		{"options over the origin's", origin, "--target=eth1 --broad 2 --mesh 7003 --log=CRITICAL", "eth1 2 7003 critical relays"},
		{"empty variables are none", empty, "", "eth0 5076 7124 info "},
		{"the first takes the default's place, more are added", nil, "-b 1 -b 2 -t a -t b", "a,b 1,2 7124 info "},
		{"a preset takes the default's place", nil, "--preset epics-ca,wol", "eth0 5064-5065,7,9 7124 info "},
		{"but not of ports that are given", nil, "--preset epics-ca -b 1", "eth0 1,5064-5065 7124 info "},
		{"nor of those from the environment", origin, "--preset epics-pva", "eth7 5064,5076 7001 error relays"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := parsedRelay(t, test.env, strings.Fields(test.args)...)
			var ports []string
			for _, r := range o.opts.Ports {
				ports = append(ports, r.String())
			}
			got := strings.Join([]string{
				strings.Join(o.opts.Interfaces, ","), strings.Join(ports, ","), strconv.Itoa(int(o.opts.MeshPort)), o.logLevel.String(), o.service,
			}, " ")
			if got != test.want {
				t.Errorf("%q with %v gives %q, want %q", test.args, test.env, got, test.want)
			}
		})
	}
}

// Lists come in the origin's form, with commas, or one by one.
func TestRelayLists(t *testing.T) {
	o := parsedRelay(t, nil, "--other-relays", "192.0.2.1", "relay.example.net:7125", "-t", "eth0", "--other-relays=2001:db8::1,[2001:db8::2]:9",
		"--allow-source", "192.0.2.77/24,198.51.100.1", "--group", "239.1.2.3:1900", "--group=ff02::c")
	if got, want := strings.Join(o.otherRelays, " "), "192.0.2.1 relay.example.net:7125 2001:db8::1 [2001:db8::2]:9"; got != want {
		t.Errorf("other relays are %q, want %q", got, want)
	}
	if got := o.opts.AllowSources; len(got) != 2 || got[0].String() != "192.0.2.0/24" || got[1].String() != "198.51.100.1/32" {
		t.Errorf("sources allowed are %v", got)
	}
	if got := o.opts.Groups; len(got) != 2 || got[0].Addr.String() != "239.1.2.3" || len(got[0].Ports) != 1 || got[1].Addr.String() != "ff02::c" || len(got[1].Ports) != 0 {
		t.Errorf("groups are %v", got)
	}
	if got := len(o.sources()); got != 1 {
		t.Errorf("%d sources of peers, want 1", got)
	}
}

// The log has the origin's form, and what comes from the network cannot break its lines.
func TestOriginLog(t *testing.T) {
	var out bytes.Buffer
	var level slog.LevelVar
	h := newOriginLog(&out, &level)
	at := time.Date(2026, 1, 31, 12, 0, 0, 123_456_789, time.Local)
	for _, each := range []struct {
		level slog.Level
		attrs []slog.Attr
		want  string
	}{
		{slog.LevelInfo, nil, "2026-01-31 12:00:00,123 - INFO: text\n"},
		{slog.LevelWarn, []slog.Attr{slog.Int("n", 3), slog.String("who", "a b")}, "2026-01-31 12:00:00,123 - WARNING: text n=3 who=\"a b\"\n"},
		{slog.LevelError, []slog.Attr{slog.String("evil", "a\n2026 - INFO: \x1b[2J")}, "2026-01-31 12:00:00,123 - ERROR: text evil=\"a\\n2026 - INFO: \\x1b[2J\"\n"},
		{slog.LevelError + 4, nil, "2026-01-31 12:00:00,123 - CRITICAL: text\n"},
		{slog.LevelDebug, nil, "2026-01-31 12:00:00,123 - DEBUG: text\n"},
	} {
		out.Reset()
		r := slog.NewRecord(at, each.level, "text", 0)
		r.AddAttrs(each.attrs...)
		if err := h.Handle(context.Background(), r); err != nil || out.String() != each.want {
			t.Errorf("level %v: %q (%v), want %q", each.level, out.String(), err, each.want)
		}
	}
	level.Set(slog.LevelWarn)
	out.Reset()
	log := slog.New(h).With("relay", "x")
	log.Info("not at this level")
	log.Warn("shown", "n", 1)
	if got := out.String(); !strings.HasSuffix(got, " - WARNING: shown relay=x n=1\n") || strings.Count(got, "\n") != 1 {
		t.Errorf("logged %q", got)
	}
}

func TestControlName(t *testing.T) {
	for name, want := range map[string]bool{
		"7124": true, "eth0.5-7124": true, "a_b": true, strings.Repeat("x", 64): true,
		"": false, "a b": false, "a\n": false, "a/b": false, "@": false, strings.Repeat("x", 65): false,
	} {
		if err := control.CheckName(name); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What status prints, whole: every table that it can have.
func TestRelayStatusText(t *testing.T) {
	peer := func(at string) netip.AddrPort { return netip.MustParseAddrPort(at) }
	started := time.Date(2026, 1, 31, 12, 0, 0, 0, time.Local)
	s := &relay.Status{
		ID: "02:00:00:00:00:01", Started: started, Ports: "5064-5065,5076", Groups: []string{"224.0.0.128 port 5076"}, Direction: "read-only",
		Segments: []relay.SegmentStatus{
			{
				Interface: "eth0", Up: true, Serving: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}, Captured: 12, Relayed: 9, Emitted: 5,
				Dropped: map[string]uint64{"port": 1, "copy": 2}, NotEmitted: map[string]uint64{"standby": 4, "of another version": 1},
				Talkers: []guard.Talker{{Source: netip.MustParseAddr("192.0.2.9"), Packets: 9, Bytes: 900, Dropped: 1}},
			},
			{Interface: "eth1", Problem: "interface eth1: no such device"},
			{Interface: "eth2", Up: true, Relays: []string{"02:00:00:00:00:00"}},
		},
		Mesh: relay.MeshStatus{Listen: peer("[::]:7124"), Mode: "sealed", Received: 7, Sent: 8, SendErrors: 2, KernelDropped: 3, Dropped: map[string]uint64{"open-refused": 6}},
		Peers: []mesh.PeerStatus{
			{Address: peer("198.51.100.1:7124"), Name: "ring", Kind: mesh.Ours, State: mesh.Up, Sealed: true, Origin: "configured", RTT: 251_400, Version: "v1.2.3"},
			{Address: peer("198.51.100.2:7124"), Kind: mesh.Original, Origin: "configured"},
			{Address: peer("198.51.100.3:7124"), Kind: mesh.Self, Origin: "configured"},
			{Address: peer("198.51.100.4:7124"), Kind: mesh.Ours, State: mesh.Up, Origin: "configured", Through: peer("198.51.100.1:7124")},
			{Address: peer("198.51.100.5:7124"), Kind: mesh.Unknown, Origin: "heard"},
			{Address: peer("198.51.100.2:7124"), Kind: mesh.Unknown, Origin: "heard"}, // a peer by now
		},
	}
	s.Sources = []discovery.SourceStatus{{Name: "dns relays.example.net", Problem: "no such host"}, {Name: "static"}}
	ta := newTestApp(nil)
	if err := ta.printRelayStatus(s); err != nil {
		t.Fatal(err)
	}
	if got := ta.out.String(); got != relayStatusText {
		t.Errorf("printed\n%s\nwant\n%s", got, relayStatusText)
	}
}

const relayStatusText = `relay 02:00:00:00:00:01, NOT READY, up since 2026-01-31 12:00:00
ports 5064-5065,5076, groups 224.0.0.128 port 5076, read-only
mesh sealed on [::]:7124, 7 datagrams received, 8 sent, 2 not sent, 3 lost for want of room

SEGMENT  STATE                                 ADDRESS       CAPTURED  RELAYED  EMITTED  KERNEL DROPS  OTHER RELAYS
eth0     serving                               192.0.2.1/24  12        9        5        0             -
eth1     down: interface eth1: no such device  -             0         0        0        0             -
eth2     standby                               -             0         0        0        0             02:00:00:00:00:00

PEER                    KIND      STATE                 RTT    LAST HEARD  SENT  RECEIVED  VERSION
198.51.100.1:7124 ring  ours      up, sealed            251µs  never       0     0         v1.2.3
198.51.100.2:7124       original  -                     -      never       0     0         -
198.51.100.3:7124       self      -                     -      never       0     0         -
198.51.100.4:7124       ours      as 198.51.100.1:7124  -      never       0     0         -
198.51.100.5:7124       unknown   not a peer            -      never       0     0         -

dns relays.example.net: no such host (peers known before are kept)

DROPPED    COUNT  REASON              MEANING
from eth0  2      copy                the segment has had it already
from eth0  1      port                to a UDP port that is not relayed
to eth0    4      standby             another relay serves the segment
to eth0    1      of another version  -
mesh       6      open-refused        in clear, to a relay with a key

TOP TALKERS  eth0       BROADCASTS/MIN  BYTES/MIN  OVER THE LIMIT
             192.0.2.9  9               900        1
`

func TestRelaySearchesText(t *testing.T) {
	client := func(a string) epics.ClientStats { return epics.ClientStats{Addr: netip.MustParseAddr(a)} }
	report := &relay.SearchReport{
		Summary: epics.StatsSummary{Since: time.Date(2026, 1, 31, 12, 0, 0, 0, time.Local), Datagrams: 1, Searches: 1, Forgotten: 1},
	}
	ta := newTestApp(nil)
	if err := ta.printSearches(report); err != nil {
		t.Fatal(err)
	}
	if got, want := ta.out.String(), "since 2026-01-31 12:00:00: 1 search in 1 datagram\n1 name forgotten for want of room\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	ta.out.Reset()
	last := time.Now().Add(-3 * time.Second)
	report.Summary.Searches, report.Summary.Forgotten = 900, 0
	report.Names = []epics.NameStats{
		{Protocol: epics.ChannelAccess, Name: "a:name", Count: 880, PerMinute: 60.25, Last: last, Clients: []epics.ClientStats{client("192.0.2.1"), client("192.0.2.2"), client("192.0.2.3")}, MoreClients: true},
		{Protocol: epics.PVAccess, Name: "b", Count: 20, Last: last, Clients: []epics.ClientStats{client("192.0.2.1")}},
	}
	if err := ta.printSearches(report); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(ta.out.String(), "\n")
	if len(lines) != 6 || strings.Join(strings.Fields(lines[3]), " ") != "880 60.2 3s ago "+epics.ChannelAccess.String()+" 3+ 192.0.2.1 192.0.2.2 ... a:name" ||
		strings.Join(strings.Fields(lines[4]), " ") != "20 0.0 3s ago "+epics.PVAccess.String()+" 1 192.0.2.1 b" {
		t.Errorf("printed\n%s", ta.out.String())
	}
}

func TestRelayEventText(t *testing.T) {
	at := time.Date(2026, 1, 31, 12, 0, 0, 123_456_000, time.Local)
	from, to := netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("255.255.255.255:5064")
	for _, test := range []struct {
		e    relay.Event
		want string
	}{
		{relay.Event{Action: relay.Relayed, Interface: "eth0", Source: from, Destination: to, Text: "CA search x"}, "eth0     relayed  192.0.2.1:40000 > 255.255.255.255:5064  CA search x"},
		{relay.Event{Action: relay.Emitted, Interface: "eth0", Peer: "198.51.100.1:7124", Source: from, Destination: to, Text: "x"}, "eth0     emitted  192.0.2.1:40000 > 255.255.255.255:5064 by 198.51.100.1:7124  x"},
		{relay.Event{Action: relay.Dropped, Reason: "malformed", Length: 60, Peer: "198.51.100.1:7124"}, "mesh     dropped (malformed) - by 198.51.100.1:7124  60 bytes"},
	} {
		ta := newTestApp(nil)
		test.e.Time = at
		if err := ta.printRelayEvent(&test.e); err != nil {
			t.Fatal(err)
		}
		if got, want := ta.out.String(), "12:00:00.123456  "+test.want+"\n"; got != want {
			t.Errorf("printed %q, want %q", got, want)
		}
	}
}

// All presets are completed, and stand in the reference.
func TestPresetsAreKnown(t *testing.T) {
	ta := newTestApp(nil)
	if code := ta.fathom(t.Context(), "__complete", "relay", "--preset", ""); code != exitDone {
		t.Fatalf("exit code %d: %s", code, ta.err.String())
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "reference", "relay.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range relay.Presets() {
		if !strings.Contains("\n"+ta.out.String(), "\n"+p.Name+"\n") {
			t.Errorf("preset %s is not completed: %q", p.Name, ta.out.String())
		}
		if !strings.Contains(string(text), "`"+p.Name+"`") {
			t.Errorf("docs/reference/relay.md does not tell of preset %s", p.Name)
		}
	}
}

// The guide tells of each reason for which something is dropped what to do about it.
func TestGuideTellsOfEveryReason(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "guides", "relay.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range drop.Reasons() {
		if !strings.Contains(string(text), "| `"+r.String()+"` |") {
			t.Errorf("docs/guides/relay.md does not tell what to do about %s", r)
		}
	}
}
