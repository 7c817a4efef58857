// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/export"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
	"github.com/seed5728abee/fathom/trace"
)

// scampers is the trace that scamper 20211212 made: trace -P udp-paris -q 1 -w 1 -m 5.
func scampers() (*anycast.Measurement, *anycast.TraceResult) {
	m := measurement("default", anycast.KindTrace)
	m.Definition.Name, m.End = "default", start
	m.Definition.Trace = &anycast.TraceOptions{GapLimit: 5}
	hop := func(ttl uint8, from string, sent, rtt time.Duration, id uint16) anycast.Reply {
		return anycast.Reply{
			TTL: ttl, Status: probe.TimeExceeded, Responder: addr(from), RTT: rtt, HasICMP: true, ICMPType: 11, ReplyTTL: 65 - ttl, ReplyTOS: 192,
			ReplyID: id, ReplySize: 72, QuotedTTL: 1, Sent: start.Truncate(time.Second).Add(sent),
		}
	}
	t := &anycast.TraceResult{
		Site: "vm", Source: addr("192.0.2.1"), Target: addr("203.0.113.20"), Protocol: stateless.UDP, Method: anycast.MethodParis, SrcPort: 48523,
		DstPort: 33435, Size: 44, FirstHop: 1, MaxHops: 5, Attempts: 1, Stop: trace.StopReached.String(), Probes: 3, Start: start, End: start,
		Replies: []anycast.Reply{
			hop(1, "10.80.1.2", 33808*time.Microsecond, 53*time.Microsecond, 45458), hop(2, "10.81.1.2", 84061*time.Microsecond, 77*time.Microsecond, 63078),
			hop(3, "203.0.113.20", 134340*time.Microsecond, 25*time.Microsecond, 31516),
		},
	}
	last := &t.Replies[2]
	last.Status, last.ICMPType, last.ICMPCode = probe.Replied, 3, 3
	return m, t
}

func TestWartsByteForByte(t *testing.T) {
	want, err := os.ReadFile("testdata/scamper.warts")
	if err != nil {
		t.Fatal(err)
	}
	m, r := scampers()
	got := write(t, export.Warts, "", all(m, r))
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%x\nwant\n%x", got, want)
	}
}

func TestScamperJSONAsScamper(t *testing.T) {
	want, err := os.ReadFile("testdata/scamper.json")
	if err != nil {
		t.Fatal(err)
	}
	m, r := scampers()
	got := objects(t, write(t, export.ScamperJSON, "", all(m, r)))
	withoutOurs(got)
	if diff := cmp.Diff(objects(t, want), got); diff != "" {
		t.Errorf("-scamper +ours:\n%s", diff)
	}
}

// objects decodes JSON Lines. Numbers stay as they are printed.
func objects(t *testing.T, lines []byte) []map[string]any {
	t.Helper()
	var list []map[string]any
	for s := bufio.NewScanner(bytes.NewReader(lines)); s.Scan(); {
		d := json.NewDecoder(bytes.NewReader(s.Bytes()))
		d.UseNumber()
		var o map[string]any
		if err := d.Decode(&o); err != nil {
			t.Fatalf("%v in %s", err, s.Text())
		}
		list = append(list, o)
	}
	return list
}

// withoutOurs takes away what sc_warts2json does not print.
func withoutOurs(list []map[string]any) {
	for _, o := range list {
		delete(o, "measurement")
		delete(o, "site")
		hops, _ := o["hops"].([]any)
		for _, h := range hops {
			for _, key := range []string{"receiver", "clock_error", "flow"} {
				delete(h.(map[string]any), key)
			}
			// Warts has no way to say that it is not known.
			if h.(map[string]any)["rtt"] == nil {
				h.(map[string]any)["rtt"] = json.Number("0.000")
			}
		}
	}
}

// asScamper takes away what sc_warts2json prints in another way than it means to.
func asScamper(list []map[string]any) {
	for _, o := range list {
		hops, _ := o["hops"].([]any)
		for _, h := range hops {
			hop := h.(map[string]any)
			if mtu, ok := hop["icmp_nhmtu:"]; ok { // the colon is a slip
				hop["icmp_nhmtu"] = mtu
				delete(hop, "icmp_nhmtu:")
			}
		}
	}
}

// zoo is traces with all that warts can say.
func zoo() []anycast.Result {
	var list []anycast.Result
	add := func(t anycast.TraceResult) { list = append(list, &t) }

	// Both IP versions, all protocols and methods, several attempts, stars, answers of all kinds.
	for _, six := range []bool{false, true} {
		source, target, router := addr("192.0.2.1"), addr("203.0.113.9"), addr("198.51.100.1")
		exceeded, unreachable, port := packet.ICMPv4TimeExceeded, packet.ICMPv4Unreachable, packet.ICMPv4CodePort
		tooBig, tooBigCode := packet.ICMPv4Unreachable, packet.ICMPv4CodeFragNeeded
		if six {
			source, target, router = addr("2001:db8::1"), addr("2001:db8:1::9"), addr("2001:db8:2::1")
			exceeded, unreachable, port = packet.ICMPv6TimeExceeded, packet.ICMPv6Unreachable, 4
			tooBig, tooBigCode = packet.ICMPv6PacketTooBig, 0
		}
		for _, protocol := range []stateless.Kind{stateless.ICMP, stateless.UDP, stateless.TCP, stateless.DNS} {
			for _, method := range []anycast.Method{anycast.MethodParis, anycast.MethodClassic, anycast.MethodMultipath} {
				t := anycast.TraceResult{
					Site: "fra1", Source: source, Target: target, Protocol: protocol, Method: method, SrcPort: 10000, DstPort: 33434, Size: 64, TOS: 8,
					FirstHop: 1, MaxHops: 30, Attempts: 3, Stop: trace.StopReached.String(), Probes: 15, Start: start, End: start.Add(time.Second),
				}
				for i := range 15 {
					r := anycast.Reply{
						TTL: uint8(i/3 + 1), Flow: uint16(i), Status: probe.TimeExceeded, Responder: router, Receiver: "ams2", RTT: time.Duration(i) * 1234567,
						HasICMP: true, ICMPType: exceeded, ReplyTTL: 60, ReplySize: 92, QuotedTTL: 1, Sent: start.Add(time.Duration(i) * 20 * time.Millisecond),
					}
					if !six {
						r.ReplyID, r.ReplyTOS, r.QuotedTOS = uint16(1000*i), 192, 8
					}
					switch {
					case i == 1: // stars at the beginning and the end of a hop, and a whole hop
						r = anycast.Reply{TTL: 1, Status: probe.NoReply, Sent: r.Sent}
					case i == 5:
						r = anycast.Reply{TTL: 2, Status: probe.Failed}
					case i/3 == 2:
						r = anycast.Reply{TTL: 3, Status: probe.NoReply, Sent: r.Sent}
					case i == 3:
						r.MPLS = []packet.Label{{Label: 24001, TC: 5, TTL: 1}, {Label: 16, TTL: 255, Bottom: true}}
						r.QuotedTTL, r.RTT, r.ReplyTTL = 2, 0, 0
					case i == 4:
						r.Status, r.ICMPType, r.ICMPCode, r.MTU = probe.HostUnreachable, tooBig, tooBigCode, 1400
					case i == 9:
						r.Responder = addr("198.51.100.77")
						if six {
							r.Responder = addr("2001:db8:2::77")
						}
					case i/3 == 4: // the target
						r.Status, r.Responder = probe.Replied, target
						if protocol == stateless.UDP && i < 14 {
							r.ICMPType, r.ICMPCode = unreachable, port
						} else {
							r.HasICMP, r.ICMPType, r.QuotedTTL, r.QuotedTOS = false, 0, 0, 0
						}
					}
					t.Replies = append(t.Replies, r)
				}
				add(t)
			}
		}
	}

	// All ways to end, one that there is not, and paths of nothing but silence.
	_, one := scampers()
	for stop := trace.StopReached; stop <= trace.StopInterrupted+1; stop++ {
		t := *one
		t.Site, t.Stop, t.Silent = fmt.Sprintf("site%d", stop%3), stop.String(), int(stop)
		t.Replies = append([]anycast.Reply(nil), one.Replies...)
		t.Replies[2].Status, t.Replies[2].ICMPCode = probe.HostUnreachable, 13
		add(t)
		t.Replies, t.Source, t.FirstHop = nil, t.Source.Next(), 4
		add(t)
	}
	// More of everything than fits.
	many := *one
	many.Attempts, many.MaxHops, many.Probes, many.Size, many.Silent = 1000, 300, 100_000, 70_000, 70_000
	for i := range 300 {
		r := one.Replies[0]
		r.RTT = time.Duration(i) * 20 * time.Second
		many.Replies = append(many.Replies, r)
	}
	add(many)
	return list
}

func TestWartsReadByScamper(t *testing.T) {
	tool := findTool(t, "sc_warts2json")
	m := measurement("2026-11-20T12:33:02-trace", anycast.KindTrace)
	other := measurement("other", anycast.KindTrace)
	other.End = time.Time{} // it is running
	other.Definition.Timeout, other.Definition.Name = 1500*time.Millisecond, ""
	other.Definition.Trace = &anycast.TraceOptions{GapLimit: -1}
	records := func(yield func(export.Record, error) bool) {
		for i, r := range zoo() {
			if !yield(export.Record{Measurement: []*anycast.Measurement{m, other}[i/3%2], Result: r}, nil) {
				return
			}
		}
	}
	got := objects(t, run(t, tool, write(t, export.Warts, "", records)))
	asScamper(got)
	want := objects(t, write(t, export.ScamperJSON, "", records))
	withoutOurs(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-our JSON +scamper's from our warts:\n%s", diff)
	}
	if traces := len(zoo()); len(got) <= traces {
		t.Errorf("scamper read %d objects, want more than %d traces", len(got), traces)
	}
}

// TestRandomTracesReadByScamper goes where no trace has gone, with whatever a responder may send.
func TestRandomTracesReadByScamper(t *testing.T) {
	tool := findTool(t, "sc_warts2json")
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	address := func(six bool) netip.Addr {
		b := [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(r.IntN(4))} // few, so that they come back
		if six {
			return netip.AddrFrom16(b)
		}
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	var results []anycast.Result
	for range 200 {
		six := r.IntN(2) == 0
		tr := &anycast.TraceResult{
			Site: []string{"fra1", "ams2"}[r.IntN(2)], Source: address(six), Target: address(six), Protocol: stateless.Kind(1 + r.IntN(5)),
			Method: []anycast.Method{anycast.MethodParis, anycast.MethodClassic, anycast.MethodMultipath}[r.IntN(3)], SrcPort: uint16(r.Uint32()),
			DstPort: uint16(r.Uint32()), Size: r.IntN(70_000), TOS: uint8(r.Uint32()), FirstHop: 1 + r.IntN(5), MaxHops: r.IntN(300), Attempts: r.IntN(300),
			Stop: trace.StopReason(r.IntN(9)).String(), Silent: r.IntN(20), Probes: r.IntN(100_000), Start: start.Add(time.Duration(r.Int64N(1e15))),
		}
		for ttl := tr.FirstHop; ttl < 256 && r.IntN(20) > 0; ttl += r.IntN(3) {
			reply := anycast.Reply{
				TTL: uint8(ttl), Flow: uint16(r.Uint32()), Status: probe.Status(1 + r.IntN(8)), RTT: time.Duration(r.Int64N(1e10)),
				HasICMP: r.IntN(3) > 0, ICMPType: uint8(r.IntN(16)), ICMPCode: uint8(r.IntN(256)), ReplyTTL: uint8(r.IntN(256)), ReplySize: uint16(r.Uint32()),
				QuotedTTL: uint8(r.IntN(256)), MTU: r.Uint32N(100_000),
			}
			if r.IntN(4) > 0 {
				reply.Responder = address(six)
			}
			if r.IntN(4) > 0 {
				reply.Sent = tr.Start.Add(time.Duration(r.Int64N(1e10)))
			}
			if !six {
				reply.ReplyTOS, reply.ReplyID, reply.QuotedTOS = uint8(r.Uint32()), uint16(r.Uint32()), uint8(r.Uint32())
			}
			for range r.IntN(4) {
				reply.MPLS = append(reply.MPLS, packet.Label{Label: r.Uint32N(1 << 20), TC: uint8(r.IntN(8)), Bottom: r.IntN(2) == 0, TTL: uint8(r.IntN(256))})
			}
			tr.Replies = append(tr.Replies, reply)
		}
		results = append(results, tr)
	}
	records := all(measurement("m1", anycast.KindTrace), results...)
	got := objects(t, run(t, tool, write(t, export.Warts, "", records)))
	asScamper(got)
	want := objects(t, write(t, export.ScamperJSON, "", records))
	withoutOurs(want)
	if len(got) != len(want) {
		t.Fatalf("seed %d: scamper reads %d objects, want %d", seed, len(got), len(want))
	}
	for i := range want { // comparing all at once takes long and shows little
		gotHops, _ := got[i]["hops"].([]any)
		wantHops, _ := want[i]["hops"].([]any)
		delete(got[i], "hops")
		delete(want[i], "hops")
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			t.Fatalf("seed %d, object %d: -our JSON +scamper's from our warts:\n%s", seed, i, diff)
		}
		if len(gotHops) != len(wantHops) {
			t.Fatalf("seed %d, object %d: scamper reads %d hops, want %d\n%v\n%v", seed, i, len(gotHops), len(wantHops), want[i], wantHops)
		}
		for k := range wantHops {
			if diff := cmp.Diff(wantHops[k], gotHops[k]); diff != "" {
				t.Fatalf("seed %d, object %d, hop %d: -our JSON +scamper's from our warts:\n%s", seed, i, k, diff)
			}
		}
	}
}

func TestWartsAsText(t *testing.T) {
	tool := findTool(t, "sc_warts2text")
	m, r := scampers()
	r.Silent, r.Stop = 2, trace.StopGapLimit.String()
	r.Replies = r.Replies[:2]
	want := "traceroute from 192.0.2.1 to 203.0.113.20\n 1  10.80.1.2  0.053 ms\n 2  10.81.1.2  0.077 ms\n 3  *\n 4  *\n"
	if got := string(run(t, tool, write(t, export.Warts, "", all(m, r)))); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func findTool(t *testing.T, name string) string {
	t.Helper()
	tool, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("compares with scamper's %s, which is not here: install scamper, or run make deps", name)
	}
	return tool
}

func run(t *testing.T, tool string, file []byte) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file.warts")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tool, name)
	cmd.Env = []string{"TZ=UTC"}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%s: %v %s", tool, err, stderr.String())
	}
	return out
}

// TestScamperExtras holds that the JSON tells what warts cannot.
func TestScamperExtras(t *testing.T) {
	list := objects(t, write(t, export.ScamperJSON, "", all(measurement("m1", anycast.KindTrace), multipath())))
	if len(list) != 3 {
		t.Fatalf("got %d objects, want the start of a cycle, a trace, and the end", len(list))
	}
	o := list[1]
	hop := o["hops"].([]any)[0].(map[string]any)
	for key, want := range map[string]any{"receiver": "lon3", "clock_error": json.Number("0.250"), "flow": json.Number("1")} {
		if hop[key] != want {
			t.Errorf("a hop has %s %v, want %v", key, hop[key], want)
		}
	}
	if o["site"] != "fra1" || o["measurement"] != "m1" {
		t.Errorf("got site %v, measurement %v", o["site"], o["measurement"])
	}
}

func TestWartsTooLarge(t *testing.T) {
	m, r := scampers()
	r.Replies[0].MPLS = make([]packet.Label, 20_000)
	for _, change := range []func(){
		func() {},
		func() {
			r.Replies[0].MPLS = nil
			for range math.MaxUint16 {
				r.Replies = append(r.Replies, r.Replies[0])
			}
		},
	} {
		change()
		var b bytes.Buffer
		if err := export.Write(&b, export.Warts, "", all(m, r)); !errors.Is(err, export.ErrTooLarge) {
			t.Errorf("got %v, want ErrTooLarge", err)
		}
	}
	r.Replies = r.Replies[:1]
	r.Replies[0].MPLS = []packet.Label{{Label: 1 << 20}}
	if err := export.Write(&bytes.Buffer{}, export.Warts, "", all(m, r)); !errors.Is(err, packet.ErrMalformed) {
		t.Errorf("a label of 21 bits: %v, want packet.ErrMalformed", err)
	}
}
