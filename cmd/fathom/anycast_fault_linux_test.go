// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// TestAnycastAgentKilled kills the only sender of a catchment, and starts it again. The measurement waits for it, repeats what
// was lost with it, and says what happened.
func TestAnycastAgentKilled(t *testing.T) {
	if !insideLab(t) {
		return
	}
	f := newTestFleet(t)
	f.start()
	targets := f.targets(40, f.customers()...)
	d := catchment(150, "nyc")
	d.Attempts = 4
	m := f.measure(d, targets)
	eventually(t, "a third of the results", func() bool { return m.found() >= len(targets)/3 })
	f.agents["nyc"].kill()
	eventually(t, "the loss is noticed", func() bool { return len(f.siteNames()) == 2 })
	f.startAgent("nyc")
	m.end()
	if answered := m.once(targets); answered != len(targets) {
		t.Errorf("%d of %d answered", answered, len(targets))
	}
	if !slices.ContainsFunc(m.summary.Notes, func(n string) bool { return strings.Contains(n, "nyc") && strings.Contains(n, "lost") }) {
		t.Errorf("the notes do not tell: %q", m.summary.Notes)
	}
}

// TestAnycastControllerRestarted kills the controller in the middle of a catchment and of a trace. The next one goes on with the
// catchment, what was found is kept, and the command that showed it comes back and ends well. The trace is reported as cut.
func TestAnycastControllerRestarted(t *testing.T) {
	if !insideLab(t) {
		return
	}
	f := newTestFleet(t)
	f.start()
	targets := f.targets(50, f.customers()...)
	list := filepath.Join(f.dir, "hitlist")
	var text strings.Builder
	for _, a := range targets {
		fmt.Fprintln(&text, a)
	}
	if err := os.WriteFile(list, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := f.run("control", "catchment", "--insecure", "--json", "--allow-private", "--rate", "150", "--per-network", "-1", "--site-gap", "0", "--site", "ams", list)
	// Nobody answers there, and nobody says so: the trace takes a while.
	f.blackhole("198.19.0.0/16")
	cut := f.run("control", "trace", "--insecure", "--timeout", "20s", "nyc", "198.19.0.1")
	lines := func() int { return strings.Count(cmd.out.String(), "\n") }
	eventually(t, "a third of the results", func() bool {
		cmd.mustRun()
		return lines() >= len(targets)/3
	})
	cut.mustRun()
	f.controller.kill()
	time.Sleep(500 * time.Millisecond)
	f.startController()
	if code := cmd.code(); code != 0 {
		t.Errorf("exit code %d: %s", code, cmd.log.String())
	}
	if !strings.Contains(cmd.log.String(), "Waiting for the controller") {
		t.Errorf("the command did not say what happened: %s", cmd.log.String())
	}
	// What was shown, each result once.
	seen := map[string]int{}
	answered := 0
	var notes []string
	for sc := bufio.NewScanner(strings.NewReader(cmd.out.String())); sc.Scan(); {
		var line struct {
			Type     string   `json:"type"`
			Target   string   `json:"target"`
			Receiver string   `json:"receiver"`
			Notes    []string `json:"notes"`
		}
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			t.Fatalf("%v: %s", err, sc.Text())
		}
		if line.Target != "" {
			seen[line.Target]++
			if line.Receiver != "" {
				answered++
			}
		}
		notes = append(notes, line.Notes...)
	}
	for _, a := range targets {
		if seen[a.String()] != 1 {
			t.Errorf("%v was shown %d times", a, seen[a.String()])
		}
	}
	if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "restarted") }) {
		t.Errorf("the notes do not tell: %q", notes)
	}
	if answered != len(targets) {
		t.Errorf("%d of %d answered", answered, len(targets))
	}
	if code := cut.code(); code != exitFailed || !strings.Contains(cut.log.String(), "cut by a restart of the controller") {
		t.Errorf("trace: exit code %d: %s", code, cut.log.String())
	}
	// What is kept is what was shown.
	all, err := f.client.List(t.Context(), anycast.Query{})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d measurements, %v", len(all), err)
	}
	for _, m := range all {
		want := anycast.Done
		if m.Definition.Program == anycast.KindTrace {
			want = anycast.Interrupted
		}
		if m.State != want {
			t.Errorf("%s %s is %v: %s; want %v", m.Definition.Program, m.ID, m.State, m.Error, want)
		}
		stored := map[string]int{}
		for r, err := range f.client.Results(t.Context(), anycast.Query{Measurement: m.ID}) {
			if err != nil {
				t.Fatal(err)
			}
			if c, ok := r.Result.(*anycast.Catch); ok {
				stored[c.Target.String()]++
			}
		}
		if want == anycast.Done && len(stored) != len(targets) {
			t.Errorf("%d targets in the store", len(stored))
		}
		for a, n := range stored {
			if n != 1 {
				t.Errorf("%s has %d results in the store", a, n)
			}
		}
	}
}

// TestAnycastDuplicateAgent starts a second agent with the id of one that is there. The newer one replaces the older one, with a
// warning, and the older one's end changes nothing.
func TestAnycastDuplicateAgent(t *testing.T) {
	if !insideLab(t) {
		return
	}
	f := newTestFleet(t)
	f.start()
	older := f.agents["nyc"]
	since := func() time.Time {
		sites, err := f.client.Sites(t.Context())
		if err != nil || len(sites) != len(demoSites) {
			return time.Time{}
		}
		return sites[1].Since
	}
	first := since()
	f.startAgent("nyc")
	eventually(t, "the newer one replaces the older one", func() bool { return since().After(first) })
	if log := f.controller.log.String(); !strings.Contains(log, `level=WARN msg="agent replaced`) {
		t.Errorf("no warning: %s", log)
	}
	// The older one tries again, but they do not take the name from each other.
	newer := since()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if !since().Equal(newer) {
			t.Fatal("the older one took the name back")
		}
	}
	older.kill()
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if names := f.siteNames(); !slices.Equal(names, demoSites) {
			t.Fatalf("sites %v after the older one's end", names)
		}
	}
	targets := f.targets(2, f.customers()...)
	m := f.measure(catchment(1000, "nyc"), targets)
	m.end()
	if n := m.once(targets); n != len(targets) {
		t.Errorf("%d of %d answered", n, len(targets))
	}
}

// TestAnycastPartition cuts the controller off from all sites in the middle of a catchment, and then gives it a slow and lossy
// wire. Every result is delivered, once.
func TestAnycastPartition(t *testing.T) {
	if !insideLab(t) {
		return
	}
	f := newTestFleet(t)
	f.start()
	wire, err := f.lab.Wire("control", "core-us")
	if err != nil {
		t.Fatal(err)
	}
	set := func(i lab.Impairment) {
		t.Helper()
		if err := wire.Set(i); err != nil {
			t.Fatal(err)
		}
	}
	targets := f.targets(30, f.customers()...)
	d := catchment(400)
	d.Timeout = 15 * time.Second // longer than the partition
	m := f.measure(d, targets)
	eventually(t, "a third of the probes", func() bool { return m.found() >= len(targets) })
	set(lab.Impairment{Loss: 1})
	time.Sleep(2 * time.Second)
	set(lab.Impairment{Delay: 100 * time.Millisecond, Loss: 0.02})
	m.end()
	m.exactly(targets, demoSites)
	if m.summary.Duplicates != 0 || m.summary.Unknown != 0 || m.summary.Answered != uint64(len(targets)*len(demoSites)) {
		t.Errorf("%+v", m.summary)
	}
	set(lab.Impairment{})
}

// TestAnycastForged throws all kinds of packets at the sites while they measure: strays, forgeries, duplicates, and answers that
// come too late. None counts.
func TestAnycastForged(t *testing.T) {
	if !insideLab(t) {
		return
	}
	f := newTestFleet(t)
	f.start()
	stop := f.forge("eu1")
	defer stop()
	// Half of the targets do not answer at all: a forger would like to answer for them.
	silent := []netip.Addr{}
	for i := range 100 {
		silent = append(silent, netip.AddrFrom4([4]byte{198, 19, 0, byte(i + 1)}))
	}
	f.blackhole("198.19.0.0/16")
	live := f.targets(8, f.customers()...)
	targets := append(slices.Clone(live), silent...)
	for _, kind := range []stateless.Kind{stateless.ICMP, stateless.UDP, stateless.TCP} {
		d := catchment(400, "nyc")
		d.Protocol = kind
		m := f.measure(d, targets)
		m.end()
		if n := m.once(targets); n != len(live) {
			t.Errorf("%v: %d answered, want %d", kind, n, len(live))
		}
		for _, a := range live {
			c := m.catches[a][0]
			if want := f.home(a); !slices.Contains(want, c.Receiver) || c.Duplicates != 0 {
				t.Errorf("%v: %v heard at %q, want %q; %d duplicates", kind, a, c.Receiver, want, c.Duplicates)
			}
		}
	}
	// A text request, whose answers can be told from others only by what they quote.
	code, text, err := f.client.Request(t.Context(), "volta nyc 198.19.0.1 -m 5 -q 2 -w 2")
	if err != nil || code != 200 {
		t.Fatalf("%d %s, %v", code, text, err)
	}
	if strings.Contains(text, forgedRouter.String()) {
		t.Errorf("a forgery in the answer:\n%s", text)
	}
	if n := stop(); n < 1000 {
		t.Errorf("only %d forged packets were sent", n)
	}

	// Every answer arrives twice at ams.
	wire, err := f.lab.Wire("ams", "core-eu")
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.SetFrom("core-eu", lab.Impairment{Duplicate: 1}); err != nil {
		t.Fatal(err)
	}
	eu := f.targets(20, "eu1", "eu2", "eu3")
	m := f.measure(catchment(200, "nyc"), eu)
	m.end()
	// The measurement is over with the last target's answer, the second copy of which may come just after.
	twice := m.summary.Duplicates
	if n := m.once(eu); n != len(eu) || m.summary.Answered != uint64(len(eu)) || twice != uint64(len(eu)) && twice != uint64(len(eu)-1) {
		t.Errorf("%d of %d answered; %+v", n, len(eu), m.summary)
	}

	// Every answer comes when the wait for it is over.
	if err := wire.SetFrom("core-eu", lab.Impairment{Delay: 700 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	d := catchment(200, "nyc")
	d.Timeout = 200 * time.Millisecond
	m = f.measure(d, eu)
	m.end()
	if n := m.once(eu); n != 0 {
		t.Errorf("%d late answers counted; %+v", n, m.summary)
	}
}

// TestAnycastDeadResolver gives the controller a name server that does not answer. Requests that need it are answered in time,
// others are not delayed.
func TestAnycastDeadResolver(t *testing.T) {
	if !insideLab(t) {
		return
	}
	f := newTestFleet(t)
	var asked atomic.Int64
	server := f.lab.Host("ap2")
	var conn net.PacketConn
	if err := server.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", netip.AddrPortFrom(server.Addr(), 53).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var listening sync.WaitGroup
	listening.Go(func() {
		b := make([]byte, 512)
		for {
			if _, _, err := conn.ReadFrom(b); err != nil {
				return
			}
			asked.Add(1)
		}
	})
	t.Cleanup(func() { conn.Close(); listening.Wait() })
	resolv := filepath.Join(f.dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver "+server.Addr().String()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.controllerVia = []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolv}
	f.start()

	request := func(command string) (code int32, text string, took time.Duration) {
		t.Helper()
		began := time.Now()
		code, text, err := f.client.Request(t.Context(), command)
		if err != nil {
			t.Fatal(err)
		}
		return code, text, time.Since(began)
	}
	// A name that the server is asked for, while others ask for what needs none.
	named := make(chan string, 1)
	go func() {
		began := time.Now()
		code, text, err := f.client.Request(t.Context(), "volta nyc www.example.com")
		named <- fmt.Sprintf("%d %s %v", code, text, err)
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("a request for a name took %v", took)
		}
	}()
	for range 5 {
		code, text, took := request("volta nyc " + f.lab.Host("la1").Addr().String() + " -m 3 -w 5")
		if code != 200 || strings.Contains(text, "*") || took > 2*time.Second {
			t.Errorf("%d in %v:\n%s", code, took, text)
		}
	}
	select {
	case answer := <-named:
		if !strings.HasPrefix(answer, "500 ") || !strings.Contains(answer, "failed to resolve destination hostname 'www.example.com'") {
			t.Errorf("answer %s", answer)
		}
	case <-time.After(patience):
		t.Error("no answer to the request for a name")
	}
	if asked.Load() == 0 {
		t.Error("the server was not asked: the test shows nothing")
	}
	// A measurement's targets may be names, too.
	began := time.Now()
	_, err := f.client.Start(t.Context(), catchment(100, "nyc"), client.Targets{Text: []string{"www.example.org"}}, false)
	if took := time.Since(began); err == nil || took > 10*time.Second {
		t.Errorf("a measurement of a name: %v, in %v", err, took)
	}
}

// TestAnycastHostileClient has a client ask for far too much, send what is no message to every call, and ask thousands of
// things at once. Another client is served meanwhile.
func TestAnycastHostileClient(t *testing.T) {
	if !insideLab(t) {
		return
	}
	f := newTestFleet(t)
	f.start("--quota-requests", "1000")
	hostile := f.grpc("eu1")
	ctx := t.Context()
	requests := anycastpb.NewAnycastServiceClient(hostile)

	for _, size := range []int{1 << 20, 8 << 20} {
		resp, err := requests.UserRequest(ctx, &anycastpb.Request{Command: "volta nyc " + strings.Repeat("a", size)})
		if size < 4<<20 && (err != nil || resp.GetCode() != 400) {
			t.Errorf("%d bytes: %v, code %d", size, err, resp.GetCode())
		}
		if size > 4<<20 && status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%d bytes: %v", size, err)
		}
	}

	for _, method := range []string{
		anycastpb.AnycastService_UserRequest_FullMethodName, anycastpb.AnycastService_ControlStream_FullMethodName,
		measurepb.Fleet_Attach_FullMethodName, measurepb.Enrolment_Enroll_FullMethodName,
		measurepb.Measure_Start_FullMethodName, measurepb.Measure_Feed_FullMethodName, measurepb.Measure_Follow_FullMethodName, measurepb.Measure_Cancel_FullMethodName,
		measurepb.Measure_Delete_FullMethodName, measurepb.Measure_List_FullMethodName, measurepb.Measure_Results_FullMethodName, measurepb.Measure_Sites_FullMethodName,
	} {
		for range 3 {
			garbage := make([]byte, 1+rand.IntN(300))
			for i := range garbage {
				garbage[i] = byte(rand.Uint32())
			}
			garbage[0] = 0x0a // a field with a length, which is too long
			if len(garbage) > 1 {
				garbage[1] = 0xff
			}
			f.throw(hostile, method, garbage)
		}
	}

	// Thousands at once: most are over the quota, and the others take their turn.
	var codesSeen sync.Map
	var all sync.WaitGroup
	const flood = 5000
	for range flood {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			resp, err := requests.UserRequest(ctx, &anycastpb.Request{Command: "volta nyc 198.18.9.1 -m 3 -q 1 -w 1"})
			n, _ := codesSeen.LoadOrStore(fmt.Sprintf("%v %d", status.Code(err), resp.GetCode()), new(atomic.Int64))
			n.(*atomic.Int64).Add(1)
		})
	}
	other, err := f.dial(ctx, "us1")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for range 5 {
		began := time.Now()
		code, text, err := other.Request(ctx, "volta sin 198.18.9.1 -m 4 -q 1 -w 5")
		if err != nil || code != 200 || strings.Contains(text, "*") {
			t.Errorf("another client: %d, %v:\n%s", code, err, text)
		}
		t.Logf("another client was answered within %v", time.Since(began))
	}
	all.Wait()
	answers, refused := int64(0), int64(0)
	codesSeen.Range(func(k, v any) bool {
		n := v.(*atomic.Int64).Load()
		t.Logf("%d times %v", n, k)
		switch k {
		case "OK 200":
			answers = n
		case "OK 429":
			refused = n
		}
		return true
	})
	if answers < 500 || refused < 500 || answers+refused != flood {
		t.Errorf("%d answers and %d refusals, want some of both, and %d in all", answers, refused, flood)
	}
	f.controller.mustRun()
	f.waitForSites(demoSites...)
}

// TestAnycastDiskFull gives the store a disk that is too small. A measurement that finds no room fails and says why; the
// controller lives, and what needs no store works.
func TestAnycastDiskFull(t *testing.T) {
	if !insideLab(t) {
		return
	}
	f := newTestFleet(t)
	disk := filepath.Join(f.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	f.controllerVia = []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs -o size=512k tmpfs "$0" && exec "$@"`, disk}
	f.start("--store", disk)
	s, err := f.client.Start(t.Context(), catchment(20000, "nyc"), client.Targets{Text: []string{"198.18.0.0/16"}}, false)
	var last anycast.Measurement
	for err == nil {
		d := catchment(20000, "nyc")
		var targets []netip.Addr
		for i := range 20000 {
			targets = append(targets, netip.AddrFrom4([4]byte{198, 18, byte(1 + i/250%12), byte(i % 250)}))
		}
		for e, serr := range s.All() {
			if serr != nil {
				err = serr
			} else if e.Measurement != nil {
				last = *e.Measurement
			}
		}
		if err != nil || last.State != anycast.Done {
			break
		}
		s, err = f.client.Start(t.Context(), d, client.Targets{Addrs: targets}, false)
	}
	t.Logf("%v; %v %s", err, last.State, last.Error)
	if err == nil && last.State != anycast.Failed || err != nil && !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("with a full disk: %v, measurement %v: %s", err, last.State, last.Error)
	}
	if text := fmt.Sprint(err, last.Error); !strings.Contains(text, "full") {
		t.Errorf("the error does not say why: %s", text)
	}
	f.controller.mustRun()
	code, text, err := f.client.Request(t.Context(), "volta nyc 198.18.9.1 -m 3")
	if err != nil || code != 200 || strings.Contains(text, "*") {
		t.Errorf("a request: %d, %v:\n%s", code, err, text)
	}
	f.waitForSites(demoSites...)
	if _, err := f.client.List(t.Context(), anycast.Query{}); err != nil {
		t.Errorf("list: %v", err)
	}
}

// forgedRouter is who the forger's ICMP errors come from.
var forgedRouter = netip.MustParseAddr("198.18.1.66")

// forge has a host send packets to the anycast address that look like answers, until the function that it gives is called,
// which tells how many.
func (f *testFleet) forge(host string) (stop func() int) {
	f.t.Helper()
	var conn rawio.Conn
	var raw *rawio.KernelHost
	h := f.lab.Host(host)
	if err := h.Do(func() (err error) {
		if raw, err = rawio.NewHost(); err != nil {
			return err
		}
		conn, err = raw.Open(rawio.Spec{Version: 4, Kind: rawio.RawHeader})
		return err
	}); err != nil {
		f.t.Fatal(err)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	sent := 0
	go func() {
		defer close(done)
		defer raw.Close()
		rng := rand.New(rand.NewPCG(1, 2))
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			for _, b := range forgeries(rng) {
				msgs := []rawio.Message{{Data: b, Addr: netip.AddrPortFrom(demoAnycast[0], 0)}}
				if n, err := conn.Send(msgs); err == nil {
					sent += n
				}
			}
		}
	}()
	var once sync.Once
	stop = func() int {
		once.Do(func() { close(quit); <-done })
		return sent
	}
	f.t.Cleanup(func() { stop() })
	return stop
}

// forgeries makes one packet of each kind: echo replies, ICMP errors that quote probes, TCP resets and UDP answers, with source ports of
// the controller's range, about targets that are being measured.
func forgeries(rng *rand.Rand) (packets [][]byte) {
	anycastAddr := demoAnycast[0]
	target := netip.AddrFrom4([4]byte{198, 19, 0, byte(1 + rng.IntN(100))})
	port := uint16(10000 + rng.IntN(600))
	number := uint16(rng.IntN(500))
	payload := make([]byte, rng.IntN(40))
	add := func(proto packet.Protocol, src netip.Addr, segment []byte) {
		h := packet.IPv4Header{TTL: 60, Protocol: proto, Src: src, Dst: anycastAddr}
		b, err := h.Append(nil, len(segment))
		if err != nil {
			panic(err)
		}
		packets = append(packets, append(b, segment...))
	}
	echo := packet.AppendICMPEcho(nil, 0, port, number, payload)
	packet.SetICMPChecksum(echo)
	add(packet.ProtocolICMP, target, echo)

	var quotes [][]byte
	if q, err := packet.AppendUDPProbe(nil, netip.AddrPortFrom(anycastAddr, port), netip.AddrPortFrom(target, 33434), 1, payload); err == nil {
		quotes = append(quotes, q)
	}
	if q, err := packet.AppendICMPProbe(nil, anycastAddr, target, 1, port, number, payload); err == nil {
		quotes = append(quotes, q)
	}
	for _, q := range quotes {
		for _, e := range []packet.ICMPError{{Type: 11, Quote: q}, {Type: 3, Code: 3, Quote: q}} {
			if b, err := packet.AppendICMPError4(nil, &e); err == nil {
				add(packet.ProtocolICMP, forgedRouter, b)
			}
		}
	}
	udp, err := packet.AppendUDP(nil, netip.AddrPortFrom(target, 33434), netip.AddrPortFrom(anycastAddr, port), payload)
	if err == nil {
		add(packet.ProtocolUDP, target, udp)
	}
	return packets
}

// blackhole makes the lab drop what is sent to a network.
func (f *testFleet) blackhole(network string) {
	f.t.Helper()
	for _, router := range []string{"core-us", "core-ap"} {
		if out, err := f.lab.Host(router).Command(f.t.Context(), "ip", "route", "add", "blackhole", network).CombinedOutput(); err != nil {
			f.t.Fatalf("%v: %s", err, out)
		}
	}
}

// home is the sites where the answers of a customer's address come home.
func (f *testFleet) home(a netip.Addr) []string {
	for _, c := range f.customers() {
		if anycast.Network(f.lab.Host(c).Addr()).Contains(a) {
			sites, err := f.lab.Catchment(c, demoAnycast[0])
			if err != nil {
				f.t.Fatal(err)
			}
			return sites
		}
	}
	return nil
}

// exactly holds that each target has one answered result from each sender.
func (w *watched) exactly(targets []netip.Addr, senders []string) {
	w.t.Helper()
	for _, a := range targets {
		var from []string
		for _, c := range w.catches[a] {
			if c.Receiver != "" {
				from = append(from, c.Sender)
			}
		}
		slices.Sort(from)
		if !slices.Equal(from, senders) {
			w.t.Errorf("%v answered probes of %q, want %q", a, from, senders)
		}
	}
}

// grpc connects to the controller from a host, to call what a client would not.
func (f *testFleet) grpc(host string) *grpc.ClientConn {
	f.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+controllerAddress, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(1<<30)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialFrom(f.lab.Host(host))(ctx, "tcp", address)
		}))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return conn
}

// bytesCodec sends and receives messages as they are.
type bytesCodec struct{}

var _ encoding.CodecV2 = bytesCodec{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// throw sends bytes to a call, and holds that it ends with an error, or that the stream stays and can be ended.
func (f *testFleet) throw(conn *grpc.ClientConn, method string, b []byte) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodecV2(bytesCodec{}))
	if err != nil {
		f.t.Errorf("%s: %v", method, err)
		return
	}
	_ = s.SendMsg(&b) // the answer says what became of it
	if err := s.CloseSend(); err != nil {
		f.t.Errorf("%s: %v", method, err)
	}
	for err == nil {
		var answer []byte
		err = s.RecvMsg(&answer)
	}
	if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
		f.t.Errorf("%s of % x: %v", method, b[:min(len(b), 20)], err)
	}
}
