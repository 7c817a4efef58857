// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/packet"
)

var (
	target = netip.MustParseAddr("203.0.113.10")
	source = netip.MustParseAddr("192.0.2.1")
	r1     = netip.MustParseAddr("10.9.9.1")
	r2     = netip.MustParseAddr("10.9.9.2")
	r3     = netip.MustParseAddr("10.9.9.3")
	sentAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

const session = 10000

// after is the stamp of an agent without zone, some milliseconds behind sentAt.
func after(t testing.TB, ms float64) volta.Time {
	t.Helper()
	return stamp(t, sentAt.Add(time.Duration(ms*float64(time.Millisecond))).Format("2006-01-02T15:04:05.000000"))
}

// reply is an ICMP packet about a UDP probe to the target, as a raw socket reads it.
func reply(t testing.TB, gateway netip.Addr, port uint16, typ, code uint8) []byte {
	t.Helper()
	probe, err := packet.AppendUDPProbe(nil, netip.AddrPortFrom(source, port), netip.AddrPortFrom(target, volta.ProbePort), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	message, err := packet.AppendICMPError4(nil, &packet.ICMPError{Type: typ, Code: code, Quote: probe})
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, gateway, message)
}

// wrap puts an IP header before an ICMP message.
func wrap(t testing.TB, from netip.Addr, message []byte) []byte {
	t.Helper()
	b := append([]byte{0x45, 0, 0, byte(20 + len(message)), 0, 0, 0, 0, 62, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, message...)
	ip, err := packet.ParseIPv4(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ip.SetSrc(from), ip.SetDst(source)); err != nil {
		t.Fatal(err)
	}
	return ip
}

func newTraceroute(t testing.TB, text string) *volta.Traceroute {
	t.Helper()
	c, err := volta.ParseCommand(text)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := volta.NewTraceroute(volta.TracerouteConf{Command: c, Target: target, SessionID: session})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// setNames names routers without asking anybody.
func setNames(r *volta.Result, names map[netip.Addr]string) {
	for _, hop := range r.Hops {
		for i := range hop.Probes {
			hop.Probes[i].Name = names[hop.Probes[i].Gateway]
		}
	}
}

// event is a REPLY that agent sends: gateway's answer to the probe from the port seq behind the first.
type event struct {
	seq       uint16
	gateway   netip.Addr
	agent     string
	ms        float64 // after the probe was sent
	unreached bool    // type 3 code 1 or, from the target, 3; else time exceeded
}

func (e event) send(t testing.TB, tr *volta.Traceroute) bool {
	t.Helper()
	typ, code := packet.ICMPv4TimeExceeded, packet.ICMPCodeHopLimit
	if e.unreached {
		typ, code = packet.ICMPv4Unreachable, packet.ICMPv4CodeHost
		if e.gateway == target {
			code = packet.ICMPv4CodePort
		}
	}
	return tr.HandleReply(volta.Reply{Packet: reply(t, e.gateway, session+e.seq, typ, code), Time: after(t, e.ms)}, e.agent)
}

// done acknowledges n probes, all sent at sentAt.
func done(t testing.TB, n int) volta.Done {
	t.Helper()
	d := volta.Done{SessionID: session}
	for i := range n {
		d.Acks = append(d.Acks, volta.Ack{Seq: volta.Seed.AckSeq(session, i), Sent: after(t, 0)})
	}
	return d
}

// TestText has what the original prints, byte for byte, behind the header; probes go from x.
func TestText(t *testing.T) {
	for _, tt := range []struct {
		name, options string
		events        []event
		want          []string
	}{
		{"all stars", "-q 2 -m 2", nil, []string{"1  *  *", "2  *  *"}},
		{"no queries", "-q 0 -m 2", nil, []string{"1", "2"}},
		{"no hops", "-m 0", nil, nil},
		{
			"first slot answered three times, second never", "-q 2 -m 1",
			[]event{{0, r1, "x", 5.001, false}, {0, r1, "x", 6, false}, {0, r2, "y", 7, false}},
			[]string{"1  10.9.9.1 (10.9.9.1) x  5.001 ms  *"},
		},
		{
			"gap", "-q 3 -m 1",
			[]event{{0, r1, "x", 1, false}, {2, r1, "x", 1.5, false}},
			[]string{"1  10.9.9.1 (10.9.9.1) x  1.000 ms  *  1.500 ms"},
		},
		{
			"same router, other receiver", "-q 3 -m 1",
			[]event{{0, r1, "x", 5, false}, {1, r1, "y", 5, false}, {2, r1, "y", 5, false}},
			[]string{"1  10.9.9.1 (10.9.9.1) x  5.000 ms  10.9.9.1 (10.9.9.1) y  5.000 ms  5.000 ms"},
		},
		{
			"router then receiver change", "-q 3 -m 2",
			[]event{{3, r2, "y", 5, false}, {4, r3, "y", 5, false}, {5, r3, "x", 5, false}},
			[]string{
				"1  *  *  *",
				"2  10.9.9.2 (10.9.9.2) y  5.000 ms  10.9.9.3 (10.9.9.3) y  5.000 ms  10.9.9.3 (10.9.9.3) x  5.000 ms",
			},
		},
		{
			"the router before a star is remembered", "-q 4 -m 1",
			[]event{{0, r1, "x", 1, false}, {2, r1, "x", 2, false}, {3, r2, "x", 3, false}},
			[]string{"1  10.9.9.1 (10.9.9.1) x  1.000 ms  *  2.000 ms  10.9.9.2 (10.9.9.2) x  3.000 ms"},
		},
		{
			"a line remembers nothing of the one before", "-q 1 -m 2",
			[]event{{0, r1, "x", 1, false}, {1, r1, "x", 1, false}},
			[]string{"1  10.9.9.1 (10.9.9.1) x  1.000 ms", "2  10.9.9.1 (10.9.9.1) x  1.000 ms"},
		},
		{
			"clocks apart", "-q 1 -m 1",
			[]event{{0, r1, "x", -10, false}},
			[]string{"1  10.9.9.1 (10.9.9.1) x  -10.000 ms"},
		},
		{
			"host unreachable ends the path", "-q 2 -m 2",
			[]event{{0, r1, "x", 50, true}, {2, r2, "x", 1, false}},
			[]string{"1  10.9.9.1 (10.9.9.1) x  50.000 ms  *"},
		},
		{
			"the lowest end of the path counts", "-q 1 -m 3",
			[]event{{2, target, "y", 3, true}, {1, target, "x", 2, true}, {0, r1, "x", 1, false}},
			[]string{"1  10.9.9.1 (10.9.9.1) x  1.000 ms", "2  203.0.113.10 (203.0.113.10) x  2.000 ms"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTraceroute(t, "volta x 203.0.113.10 "+tt.options)
			for _, e := range tt.events {
				if !e.send(t, tr) {
					t.Errorf("refused %+v", e)
				}
			}
			tr.HandleDone(volta.Seed, done(t, tr.Conf().Probes()))
			c := tr.Conf()
			want := fmt.Sprintf("Traceroute to 203.0.113.10 (203.0.113.10) from x, %d probes, %d hops max", c.Queries, c.MaxTTL)
			want = strings.Join(append([]string{want}, tt.want...), "\n")
			if got := tr.Result().Text(); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestTextSample is the original's output of a path whose answers came home at three sites.
func TestTextSample(t *testing.T) {
	const want = `Traceroute to 203.0.113.10 (203.0.113.10) from agent-a, 3 probes, 20 hops max
1  ra.edge.test (10.80.1.2) agent-a  6.154 ms  6.144 ms  6.161 ms
2  10.81.1.2 (10.81.1.2) agent-a  6.168 ms  6.183 ms  6.195 ms
3  10.88.1.2 (10.88.1.2) agent-a  6.202 ms  6.209 ms  6.218 ms
4  10.88.2.2 (10.88.2.2) agent-b  -0.455 ms  3.769 ms  3.873 ms
5  10.88.3.2 (10.88.3.2) agent-b  3.890 ms  3.911 ms  3.935 ms
6  10.88.4.2 (10.88.4.2) agent-c  0.853 ms  1.016 ms  1.042 ms
7  10.88.5.2 (10.88.5.2) agent-c  1.058 ms  1.073 ms  1.087 ms
8  target.test (203.0.113.10) agent-c  1.095 ms  1.113 ms  1.141 ms`
	tr := newTraceroute(t, "volta agent-a 203.0.113.10")
	if !strings.HasPrefix(want, strings.SplitN(tr.Result().Text(), "\n", 2)[0]+"\n") {
		t.Errorf("header of %s", tr.Result().Text())
	}
	tr.HandleDone(volta.Seed, done(t, 60))
	seq := uint16(0)
	for hop, line := range []struct {
		gateway, agent string
		ms             [3]float64
	}{
		{"10.80.1.2", "agent-a", [3]float64{6.154, 6.144, 6.161}},
		{"10.81.1.2", "agent-a", [3]float64{6.168, 6.183, 6.195}},
		{"10.88.1.2", "agent-a", [3]float64{6.202, 6.209, 6.218}},
		{"10.88.2.2", "agent-b", [3]float64{-0.455, 3.769, 3.873}},
		{"10.88.3.2", "agent-b", [3]float64{3.890, 3.911, 3.935}},
		{"10.88.4.2", "agent-c", [3]float64{0.853, 1.016, 1.042}},
		{"10.88.5.2", "agent-c", [3]float64{1.058, 1.073, 1.087}},
		{"203.0.113.10", "agent-c", [3]float64{1.095, 1.113, 1.141}},
	} {
		for _, ms := range line.ms {
			e := event{seq, netip.MustParseAddr(line.gateway), line.agent, ms, hop == 7}
			if !e.send(t, tr) {
				t.Fatalf("refused %+v", e)
			}
			seq++
		}
	}
	r := tr.Result()
	if got, want := len(r.Gateways()), 8; got != want {
		t.Errorf("%d routers, want %d", got, want)
	}
	setNames(r, map[netip.Addr]string{netip.MustParseAddr("10.80.1.2"): "ra.edge.test", target: "target.test"})
	if got := r.Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestTextUnknownTimes: an answer is worth showing without a time.
func TestTextUnknownTimes(t *testing.T) {
	tr := newTraceroute(t, "volta x 203.0.113.10 -q 2 -m 2")
	event{0, r1, "x", 1, false}.send(t, tr)
	event{1, r2, "y", 1, false}.send(t, tr)
	tr.HandleReply(volta.Reply{Packet: reply(t, target, session+2, packet.ICMPv4Unreachable, 3)}, "x")
	event{3, target, "x", 2, true}.send(t, tr)
	tr.HandleDone(volta.Seed, volta.Done{SessionID: session, Acks: []volta.Ack{
		{Seq: session + 1},
		{Seq: session + 2, Sent: after(t, 0)},
		{Seq: session + 3, Sent: after(t, 0)},
		{Seq: session + 3, Sent: after(t, 1)},  // the first counts
		{Seq: session - 1, Sent: after(t, 99)}, // nobody's
		{Seq: session + 4, Sent: after(t, 99)},
	}})
	const want = `Traceroute to 203.0.113.10 (203.0.113.10) from x, 2 probes, 2 hops max
1  10.9.9.1 (10.9.9.1) x  10.9.9.2 (10.9.9.2) y
2  203.0.113.10 (203.0.113.10) x  2.000 ms`
	if got := tr.Result().Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestTextRounds: nanoseconds of our own agents are rounded, and nothing becomes -0.000.
func TestTextRounds(t *testing.T) {
	for ns, want := range map[time.Duration]string{
		499: "0.000", 500: "0.001", -499: "0.000", -500: "-0.001", 1234567: "1.235", -455 * time.Microsecond: "-0.455",
		3599999999999: "3600000.000",
	} {
		r := volta.Result{Target: target, Hops: []volta.Hop{{TTL: 1, Probes: []volta.TracerouteResult{
			{Gateway: r1, Receiver: "x", RTT: ns, HasRTT: true},
		}}}}
		if got := r.Text(); !strings.HasSuffix(got, "x  "+want+" ms") {
			t.Errorf("%v: %s, want %s", ns, got, want)
		}
	}
}

// TestResultJSON: programs read back what was found.
func TestResultJSON(t *testing.T) {
	tr := newTraceroute(t, "volta x 203.0.113.10 -q 2 -m 1")
	event{0, r1, "y", 1.5, false}.send(t, tr)
	tr.HandleDone(volta.Seed, done(t, 2))
	b, err := json.Marshal(tr.Result())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"source":"x","destination":"203.0.113.10","target":"203.0.113.10","queries":2,"max_ttl":1,"hops":[{"ttl":1,"probes":[` +
		`{"seq":0,"gateway":"10.9.9.1","receiver":"y","sent":"2026-01-02T03:04:05","received":"2026-01-02T03:04:05.0015","rtt_ns":1500000,"has_rtt":true},` +
		`{"seq":1,"timeout":true,"sent":"2026-01-02T03:04:05"}]}]}`
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
	var back volta.Result
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tr.Result(), &back, compareTimes, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// TestVectorPackets holds what packets that the original's agents forwarded say.
func TestVectorPackets(t *testing.T) {
	for _, tt := range []struct {
		hex  string
		want volta.Answer
	}{
		{timeExceeded, volta.Answer{Gateway: r1, Type: 11, Source: source, Destination: target, SourcePort: 10000, DestinationPort: 33434}},
		{unreachable, volta.Answer{Gateway: target, Type: 3, Code: 3, Source: source, Destination: target, SourcePort: 10003, DestinationPort: 33434}},
	} {
		got, err := volta.ParseAnswer(unhex(t, tt.hex))
		if err != nil || got != tt.want {
			t.Errorf("%+v, %v; want %+v", got, err, tt.want)
		}
	}
}

// TestForeignPackets: every agent forwards all ICMP that its host sees. None of this is ours.
func TestForeignPackets(t *testing.T) {
	about := func(change func(probe []byte)) []byte {
		b := reply(t, r1, session, packet.ICMPv4TimeExceeded, 0)
		change(b[28:]) // the quote
		return b
	}
	outer := func(change func(b []byte)) []byte {
		b := reply(t, r1, session, packet.ICMPv4TimeExceeded, 0)
		change(b)
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"too short":           unhex(t, "4500"),
		"IPv6":                outer(func(b []byte) { b[0] = 0x60 }),
		"no ICMP":             outer(func(b []byte) { b[9] = 17 }),
		"a fragment":          outer(func(b []byte) { b[7] = 1 }),
		"header too long":     outer(func(b []byte) { b[0] = 0x4f }),
		"an echo request":     wrap(t, r1, packet.AppendICMPEcho(nil, packet.ICMPv4Echo, 1, 1, make([]byte, 48))),
		"an echo reply":       wrap(t, r1, packet.AppendICMPEcho(nil, packet.ICMPv4EchoReply, 1, 1, make([]byte, 48))),
		"a redirect":          outer(func(b []byte) { b[20] = packet.ICMPv4Redirect }),
		"a parameter problem": outer(func(b []byte) { b[20] = packet.ICMPv4ParameterProblem }),
		"about TCP":           about(func(b []byte) { b[9] = 6 }),
		"about ICMP":          about(func(b []byte) { b[9] = 1 }),
		"about IPv6":          about(func(b []byte) { b[0] = 0x60 }),
		"about a fragment":    about(func(b []byte) { b[7] = 1 }),
		"about somebody else": about(func(b []byte) { b[19]++ }),
		"port before":         about(func(b []byte) { b[20], b[21] = 9999>>8, 9999&255 }),
		"port behind":         about(func(b []byte) { b[20], b[21] = 10060>>8, 10060&255 }),
		"quote cut short":     reply(t, r1, session, packet.ICMPv4TimeExceeded, 0)[:50],
		"no quote":            reply(t, r1, session, packet.ICMPv4TimeExceeded, 0)[:28],
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTraceroute(t, "volta x 203.0.113.10")
			if tr.HandleReply(volta.Reply{Packet: b, Time: after(t, 1)}, "x") {
				t.Errorf("took %x", b)
			}
			if _, err := volta.ParseAnswer(b); err != nil && !errors.Is(err, volta.ErrMalformed) && !errors.Is(err, volta.ErrForeign) {
				t.Error(err)
			}
		})
	}
}

// TestOptionsAndExtensions: an answer with IP options around and in the quote, as routers send them.
func TestOptionsAndExtensions(t *testing.T) {
	probe := append([]byte{0x46, 0, 0, 32, 0, 0, 0, 0, 1, 17, 0, 0}, source.AsSlice()...)
	probe = append(append(probe, target.AsSlice()...), 1, 1, 1, 0)
	probe = append(probe, 0x27, 0x10, 0x82, 0x9a, 0, 8, 0, 0)
	ext, err := packet.AppendMPLS(nil, []packet.Label{{Label: 17, TTL: 1, Bottom: true}})
	if err != nil {
		t.Fatal(err)
	}
	message, err := packet.AppendICMPError4(nil, &packet.ICMPError{Type: packet.ICMPv4TimeExceeded, Quote: probe, Extensions: ext})
	if err != nil {
		t.Fatal(err)
	}
	b := wrap(t, r1, message)
	b = append(append(append([]byte{}, b[:20]...), 1, 1, 1, 0), b[20:]...)
	b[0], b[3] = 0x46, b[3]+4
	got, err := volta.ParseAnswer(b)
	if err != nil || got.SourcePort != session || got.Gateway != r1 || got.Destination != target {
		t.Errorf("%+v, %v", got, err)
	}
	b[2], b[3] = 0, 20 // a length that some socket left as it was
	if again, err := volta.ParseAnswer(b); err != nil || again != got {
		t.Errorf("with a wrong length: %+v, %v", again, err)
	}
}

func TestParseAnswerAllocs(t *testing.T) {
	good, foreign := unhex(t, timeExceeded), wrap(t, r1, packet.AppendICMPEcho(nil, packet.ICMPv4Echo, 1, 1, nil))
	if n := testing.AllocsPerRun(100, func() {
		if _, err := volta.ParseAnswer(good); err != nil {
			t.Fatal(err)
		}
		if _, err := volta.ParseAnswer(foreign); err == nil {
			t.Fatal("took an echo request")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNewTracerouteRefuses(t *testing.T) {
	c := command("a", "b")
	for _, conf := range []volta.TracerouteConf{
		{Command: c, SessionID: session},
		{Command: c, SessionID: session, Target: netip.MustParseAddr("2001:db8::1")},
		{Command: c, Target: target},
		{Command: c, SessionID: 65500, Target: target},
	} {
		if _, err := volta.NewTraceroute(conf); !errors.Is(err, volta.ErrJob) {
			t.Errorf("%+v: %v", conf, err)
		}
	}
	c.ICMP = true
	_, err := volta.NewTraceroute(volta.TracerouteConf{Command: c, Target: target, SessionID: session})
	if code, output := volta.ResponseFor(err); code != 400 || !strings.Contains(output, "agent a sends UDP only") {
		t.Errorf("-I: %d %s", code, output)
	}
}

// outcome is what Run returned, and how long it took.
type outcome struct {
	text string
	err  error
	took time.Duration
}

// run runs a traceroute against an agent that plays what script says once the job has come, in a bubble
// where time is as the script has it.
func run(t *testing.T, text string, script func(t *testing.T, tr *volta.Traceroute)) (got outcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tr := newTraceroute(t, text)
		var agent sync.WaitGroup
		start := time.Now()
		r, err := tr.Run(t.Context(), func(volta.Job) error {
			agent.Go(func() { script(t, tr) })
			return nil
		})
		got.err, got.took = err, time.Since(start)
		if r != nil {
			got.text = r.Text()
		}
		agent.Wait()
	})
	return got
}

// TestRunDialogue is a dialogue that the original had with an agent: four answers, then at once the result.
func TestRunDialogue(t *testing.T) {
	var job volta.Job
	synctest.Test(t, func(t *testing.T) {
		tr := newTraceroute(t, "volta x 203.0.113.10 -m 2 -q 2 -w 5")
		start := time.Now()
		r, err := tr.Run(t.Context(), func(j volta.Job) error {
			job = j
			acks := volta.Done{SessionID: j.SessionID}
			for i := range 4 {
				acks.Acks = append(acks.Acks, volta.Ack{Seq: j.BasePort + int32(i), Sent: after(t, float64(i))})
			}
			tr.HandleDone(volta.Seed, acks)
			for i := range uint16(4) {
				e := event{seq: i, gateway: r1, agent: "x", ms: 10.5 + float64(i)}
				if i >= 2 {
					e.gateway = r2
				}
				if !e.send(t, tr) {
					t.Errorf("refused %+v", e)
				}
			}
			return nil
		})
		if err != nil || time.Since(start) != 0 {
			t.Fatalf("%v, after %v", err, time.Since(start))
		}
		const want = `Traceroute to 203.0.113.10 (203.0.113.10) from x, 2 probes, 2 hops max
1  10.9.9.1 (10.9.9.1) x  10.500 ms  10.500 ms
2  10.9.9.2 (10.9.9.2) x  10.500 ms  10.500 ms`
		if got := r.Text(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
	if want := (volta.Job{SessionID: 10000, DstIP: "203.0.113.10", MaxTTL: 2, ProbeNum: 2, BasePort: 10000}); job != want {
		t.Errorf("job %+v, want %+v", job, want)
	}
}

func TestRunEnds(t *testing.T) {
	silence := func(*testing.T, *volta.Traceroute) {}
	for _, tt := range []struct {
		name, text string
		script     func(t *testing.T, tr *volta.Traceroute)
		took       time.Duration
		lines      int // behind the header
	}{
		{"silence", "volta x h -w 5", silence, 5 * time.Second, 20},
		{"no wait", "volta x h -w 0", silence, 0, 20},
		{"no hops", "volta x h -m 0", silence, 0, 0},
		{"no queries", "volta x h -q 0", silence, 0, 20},
		{
			"all answered, but not sent", "volta x h -m 1 -q 1",
			func(t *testing.T, tr *volta.Traceroute) { event{0, r1, "x", 1, false}.send(t, tr) },
			5 * time.Second, 1,
		},
		{
			"all answered, then DONE", "volta x h -m 1 -q 1",
			func(t *testing.T, tr *volta.Traceroute) {
				event{0, r1, "x", 1, false}.send(t, tr)
				time.Sleep(time.Second)
				tr.HandleDone(volta.Seed, done(t, 1))
			},
			time.Second, 1,
		},
		{
			"the end of the path answers, and all before it", "volta x h -q 1",
			func(t *testing.T, tr *volta.Traceroute) {
				tr.HandleDone(volta.Seed, done(t, 20))
				time.Sleep(30 * time.Millisecond)
				event{3, target, "x", 2, true}.send(t, tr) // behind the end: the target answers all of them
				event{2, target, "x", 2, true}.send(t, tr)
				event{0, r1, "x", 1, false}.send(t, tr)
				time.Sleep(30 * time.Millisecond)
				event{1, r2, "y", 1, false}.send(t, tr)
			},
			60 * time.Millisecond, 3,
		},
		{
			"a router before the end is silent", "volta x h -q 1",
			func(t *testing.T, tr *volta.Traceroute) {
				tr.HandleDone(volta.Seed, done(t, 20))
				event{0, r1, "x", 1, false}.send(t, tr)
				event{2, target, "x", 2, true}.send(t, tr)
			},
			volta.DefaultHopTimeout, 3,
		},
		{
			"a silent router, and the end answers late", "volta x h -q 1",
			func(t *testing.T, tr *volta.Traceroute) {
				tr.HandleDone(volta.Seed, done(t, 20))
				time.Sleep(3 * time.Second)
				event{2, target, "x", 2, true}.send(t, tr)
			},
			3 * time.Second, 3,
		},
		{
			"the end is never reached", "volta x h -q 1 -m 3 -w 2",
			func(t *testing.T, tr *volta.Traceroute) {
				tr.HandleDone(volta.Seed, done(t, 3))
				event{0, r1, "x", 1, false}.send(t, tr)
			},
			2 * time.Second, 3,
		},
		{
			"the agent gives up in the middle", "volta x h -q 1",
			func(t *testing.T, tr *volta.Traceroute) {
				event{0, r1, "x", 1, false}.send(t, tr)
				time.Sleep(time.Second)
				tr.HandleError(volta.Error{Code: 500, Message: "boom"})
			},
			time.Second, 20,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, tt.text, tt.script)
			if got.err != nil || got.took != tt.took || strings.Count(got.text, "\n") != tt.lines {
				t.Errorf("%v after %v, want no error after %v and %d lines; got\n%s", got.err, got.took, tt.took, tt.lines, got.text)
			}
		})
	}
}

func TestRunFails(t *testing.T) {
	got := run(t, "volta x h", func(_ *testing.T, tr *volta.Traceroute) {
		time.Sleep(time.Second)
		tr.HandleError(volta.Error{Code: 500, Message: "boom"})
	})
	if e, ok := errors.AsType[volta.Error](got.err); !ok || e.Message != "boom" || got.took != time.Second {
		t.Errorf("%v after %v", got.err, got.took)
	}
	tr := newTraceroute(t, "volta x h")
	gone := &volta.NotConnectedError{AgentID: "x"}
	if r, err := tr.Run(t.Context(), func(volta.Job) error { return gone }); r != nil || !errors.Is(err, gone) {
		t.Errorf("%v, %v", r, err)
	}
}

// TestRunDeadline: the asker gets what there is before it stops listening.
func TestRunDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		tr := newTraceroute(t, "volta x h -w 5")
		start := time.Now()
		r, err := tr.Run(ctx, func(volta.Job) error {
			event{0, r1, "x", 1, false}.send(t, tr)
			return nil
		})
		if err != nil || time.Since(start) != 1800*time.Millisecond || !strings.Contains(r.Text(), "\n1  10.9.9.1 (10.9.9.1) x") {
			t.Errorf("%v, %v after %v", r, err, time.Since(start))
		}
		if !(event{1, r1, "x", 1, false}).send(t, tr) {
			t.Error("a late answer is not known for ours")
		}
		if !tr.Result().Hops[0].Probes[1].Timeout {
			t.Error("a late answer changed the result")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		tr := newTraceroute(t, "volta x h")
		_, err := tr.Run(ctx, func(volta.Job) error { cancel(); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestMixedDialects: who sends and who hears may be agents of different kinds, one of them without a zone.
func TestMixedDialects(t *testing.T) {
	tr := newTraceroute(t, "volta x h -q 1 -m 1")
	tr.HandleDone(volta.Go, volta.Done{SessionID: session, Acks: []volta.Ack{{Seq: 0, Sent: stamp(t, "2026-01-02T08:49:05Z")}}})
	event{0, r1, "y", 3, false}.send(t, tr)
	if got := tr.Result().Text(); !strings.HasSuffix(got, "1  10.9.9.1 (10.9.9.1) y  3.000 ms") {
		t.Error(got)
	}
}
