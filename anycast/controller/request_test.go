// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
	"github.com/seed5728abee/fathom/probe/stateless"
)

func TestCommands(t *testing.T) {
	s := start(t, Options{Start: 10000, End: 10200, Block: 100, Resolver: noResolver(), Programs: map[string]anycast.NewProgram{
		"sites": func(c anycast.ProgramConf) (anycast.Program, error) {
			if len(c.Words) > 1 {
				return nil, errors.New("usage: sites [fail|panic]")
			}
			return sitesProgram(c), nil
		},
	}})
	w := &world{hops: 4, receiver: atSite("a"), silent: func(hop int, _ netip.Addr) bool { return hop == 2 }}
	a := w.agent("a")
	a.attach(s)
	s.connected("a")
	old := s.origin("old", volta.Seed)
	defer old.run(func(j volta.Job) {
		if j.DstIP == "203.0.113.66" {
			old.send(volta.Error{Code: 500, Message: fmt.Sprintf("Socket error during sending for job %d: [Errno 13] Permission denied", j.SessionID)})
		}
	})()

	header := "Traceroute to 203.0.113.10 (203.0.113.10) from a, "
	for _, c := range []struct {
		command string
		code    int32
		output  string // or its beginning, with ...
	}{
		{"volta a 203.0.113.10 -q 0 -m 2", 200, header + "0 probes, 2 hops max\n1\n2"},
		{"volta a 203.0.113.10 -m 0", 200, header + "3 probes, 0 hops max"},
		{"volta a 203.0.113.10 -w 0 -m 2 -q 2", 200, header + "2 probes, 2 hops max\n1  *  *\n2  *  *"},
		{"x -w3 a -I -q=1 203.0.113.10 -m2", 200, header + "1 probes, 2 hops max\n1  10.9.9.1 (10.9.9.1) a  0.1..."},
		{"volta a 203.0.113.10 -m 51 -q 2", 400, "Max hops * probe num (51 * 2) exceeds block size (100)"},
		{"", 400, "Invalid command: ..."},
		{"volta", 400, "Invalid command: ..."},
		{"volta a", 400, "Invalid command: ..."},
		{"volta -h", 400, "Invalid command: usage: volta ..."},
		{"volta a 203.0.113.10 -m -1", 400, "Invalid command: ..."},
		{"volta a 203.0.113.10 -w -1", 400, "Invalid command: ..."},
		{"volta a 203.0.113.10 -m 99999999999999999999", 400, "Invalid command: ..."},
		{"volta nosuch 203.0.113.10", 500, "Program execution failed: failed to send job to agent nosuch: agent nosuch not connected"},
		{"volta a nowhere.example", 500, "Failed to create traceroute: failed to resolve destination hostname 'nowhere.example': ..."},
		{"volta old 203.0.113.66 -w 60", 500, "Program execution failed: agent: ..."},
		{"volta old 203.0.113.10 -w 60 -I", 500, "Internal server error: ..."},
		{"sites", 200, "a old"},
		{"sites fail", 500, "Program execution failed: failed"},
		{"sites panic", 500, "Internal server error: program sites failed"},
		{"sites 1 2", 400, "Invalid command: usage: sites [fail|panic]"},
		{strings.Repeat("x", 1<<20), 400, "Invalid command: ..."},
		{"volta \x1b[2J \u202e", 400, "Invalid command: ..."},
	} {
		begin := time.Now()
		code, output := s.request(c.command)
		beginning, open := strings.CutSuffix(c.output, "...")
		if code != c.code || open && !strings.HasPrefix(output, beginning) || !open && output != c.output {
			t.Errorf("%.60q\ngot  %d %s\nwant %d %s", c.command, code, output, c.code, c.output)
		}
		if strings.ContainsRune(output, '\x1b') {
			t.Errorf("%.60q: the answer steers terminals", c.command)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%.60q took %v", c.command, took)
		}
	}
	if n := s.fleet.ports.blocks.InUse(); n > 10 {
		t.Errorf("%d ports are not given back", n) // those of sessions rest for a while
	}

	// A hop that does not answer costs its own timeout, not the whole wait.
	begin := time.Now()
	code, output := s.request("volta a 203.0.113.10 -w 30 -q 1")
	if lines := strings.Split(output, "\n"); code != 200 || len(lines) != 5 || lines[2] != "2  *" {
		t.Errorf("%d\n%s", code, output)
	}
	if took := time.Since(begin); took < anycast.DefaultHopTimeout || took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

type sitesProgram anycast.ProgramConf

func (p sitesProgram) Run(context.Context) (string, error) {
	if len(p.Words) == 1 && p.Words[0] == "fail" {
		return "", errors.New("failed")
	}
	if len(p.Words) == 1 {
		panic("a program's fault")
	}
	var names []string
	for _, site := range p.Fleet.Sites() {
		names = append(names, site.Name)
	}
	return strings.Join(names, " "), nil
}

// TestBlocksExhausted: when every port is taken, requests say so in the original's words, and later ones find them given back.
func TestBlocksExhausted(t *testing.T) {
	s := start(t, Options{Start: 1000, End: 1200, Block: 100})
	old := s.origin("old", volta.Seed)
	jobs := make(chan volta.Job, 2)
	wait := old.run(func(j volta.Job) { jobs <- j })
	defer wait()
	c := s.client()
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() { c.Request(t.Context(), "volta old 203.0.113.10 -w 2") })
		<-jobs
	}
	if code, output := s.request("volta old 203.0.113.10"); code != 500 || output != "Internal server error: No free session ID blocks available" {
		t.Errorf("%d %s", code, output)
	}
	group.Wait()
	if n := s.fleet.ports.blocks.InUse(); n != 0 {
		t.Errorf("%d ports in use", n)
	}
}

// TestDeadline: an answer comes before the caller's deadline, with what there is.
func TestDeadline(t *testing.T) {
	s := start(t, Options{})
	w := &world{hops: 4, receiver: atSite("a"), silent: func(hop int, _ netip.Addr) bool { return hop == 2 }}
	w.agent("a").attach(s)
	old := s.origin("old", volta.Go)
	defer old.run(func(volta.Job) {})()
	s.connected("a")
	for _, source := range []string{"a", "old"} {
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		code, output, err := s.client().Request(ctx, "volta "+source+" 203.0.113.10 -w 60")
		cancel()
		if err != nil || code != 200 || !strings.Contains(output, "\n2  *  *  *") {
			t.Errorf("%s: %v, %d\n%s", source, err, code, output)
		}
	}
}

// TestDeadResolver: a DNS server that does not answer delays a request by a bounded time, once, and others not at all.
func TestDeadResolver(t *testing.T) {
	s := start(t, Options{Resolver: deadResolver(), NameTimeout: 500 * time.Millisecond})
	w := &world{hops: 20, receiver: atSite("a")}
	w.agent("a").attach(s)
	s.connected("a")
	named := make(chan time.Duration)
	go func() {
		begin := time.Now()
		code, output := s.request("volta a some.example")
		if code != 500 || !strings.Contains(output, "failed to resolve") {
			t.Errorf("%d %s", code, output)
		}
		named <- time.Since(begin)
	}()
	for round := range 3 {
		begin := time.Now()
		code, output := s.request("volta a 203.0.113.10")
		if code != 200 || !strings.Contains(output, "20  203.0.113.10 (203.0.113.10) a") {
			t.Errorf("%d\n%s", code, output)
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("round %d took %v", round, took)
		}
	}
	if took := <-named; took > 5*time.Second {
		t.Errorf("a name took %v", took)
	}
}

// garbage sends bytes as they are.
type garbage struct{}

func (garbage) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (garbage) Unmarshal(b []byte, v any) error { *v.(*[]byte) = append([]byte(nil), b...); return nil }
func (garbage) Name() string                    { return "proto" }

var _ encoding.Codec = garbage{}

// TestHostilePeers: one sends garbage, one opens streams and says nothing, one asks for thousands of things;
// an honest client is served as if they were not there.
func TestHostilePeers(t *testing.T) {
	s := start(t, Options{MaxRequests: 4, MaxWaiting: 500})
	w := &world{hops: 20, receiver: atSite("a")}
	w.agent("a").attach(s)
	s.connected("a")
	old := s.origin("old", volta.Seed)
	defer old.run(func(volta.Job) {})()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cc := s.conn()
	for _, method := range []string{
		anycastpb.AnycastService_UserRequest_FullMethodName, measurepb.Measure_List_FullMethodName, measurepb.Enrolment_Enroll_FullMethodName,
		measurepb.Measure_Cancel_FullMethodName, "/no/Method",
	} {
		for _, b := range [][]byte{{0xff}, []byte(strings.Repeat("\x0a", 1000)), make([]byte, 5<<20)} {
			var reply []byte
			if err := cc.Invoke(ctx, method, b, &reply, grpc.ForceCodec(garbage{})); err == nil && len(b) == 1 {
				t.Errorf("%s took %d bytes of garbage", method, len(b))
			}
		}
	}
	for _, method := range []string{
		anycastpb.AnycastService_ControlStream_FullMethodName, measurepb.Fleet_Attach_FullMethodName, measurepb.Measure_Start_FullMethodName,
		measurepb.Measure_Feed_FullMethodName,
	} {
		for _, b := range [][]byte{nil, {0xff}, []byte("\x0a\x08REGISTER\x12\x03abc"), []byte("\x0a\x02\x08\x01"), make([]byte, 5<<20)} {
			stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodec(garbage{}))
			if err != nil {
				t.Fatal(err)
			}
			if b != nil { // else it is left open
				stream.SendMsg(b)
			}
		}
	}
	// Names that nobody has: they cannot be asked for, logged or labelled.
	for _, name := range []string{"", strings.Repeat("x", 1<<16), "a b", "\x1b[2J", "../a"} {
		o := w.agent(name)
		if err := o.tryAttach(t, cc); status.Code(err) != codes.PermissionDenied {
			t.Errorf("agent %.20q: %v", name, err)
		}
		delete(w.agents, name)
	}
	odd := w.agent("odd")
	stream, err := measurepb.NewFleetClient(cc).Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stream.Send(&measurepb.FromAgent{Event: &measurepb.FromAgent_Hello{Hello: &measurepb.Hello{AgentId: odd.name, Anycast: [][]byte{{1, 2, 3}}}}})
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("odd addresses: %v", err)
	}

	// Thousands of requests at an agent that never answers, each for an hour.
	hog := anycastpb.NewAnycastServiceClient(cc)
	var refused, asked atomic.Int64
	var group sync.WaitGroup
	for range 1000 {
		group.Go(func() {
			resp, err := hog.UserRequest(ctx, &anycastpb.Request{Command: "volta old 203.0.113.10 -w 2 -m 5"})
			asked.Add(1)
			if err == nil && resp.GetCode() == 503 {
				refused.Add(1)
			}
		})
	}
	eventually(t, "refusals", func() bool { return refused.Load() >= 1000-4-500 })
	if code, output := s.request("volta a 203.0.113.10 -w 5"); code != 200 || strings.Contains(output, "*") {
		t.Errorf("beside the hog: %d\n%s", code, output)
	}
	if sites, err := s.client().Sites(t.Context()); err != nil || len(sites) != 2 {
		t.Errorf("%v %v", sites, err)
	}
	cancel()
	group.Wait()
	if code, output := s.request("volta a 203.0.113.10 -w 5"); code != 200 || strings.Contains(output, "*") {
		t.Errorf("%d\n%s", code, output)
	}
}

// TestTenThousandRequests: all of them are queued or run at once, and all end with every answer shown.
func TestTenThousandRequests(t *testing.T) {
	if testing.Short() {
		t.Skip("ten thousand requests take some seconds")
	}
	s, _ := threeSites(t, 20)
	c := s.client()
	var group sync.WaitGroup
	var stars, failed atomic.Int64
	requests := 10000
	if raceEnabled {
		requests /= 5
	}
	for range requests {
		group.Go(func() {
			n, err := request(t, c, "volta a 203.0.113.10 -w 60 -q 1")
			if err != nil {
				if failed.Add(1) < 4 {
					t.Error(err)
				}
			}
			stars.Add(int64(n))
		})
	}
	group.Wait()
	if failed.Load() > 0 || stars.Load() > 0 {
		t.Errorf("%d failed, %d answered probes are shown as lost", failed.Load(), stars.Load())
	}
	eventually(t, "all is given back", func() bool {
		running, waiting := s.requests.load()
		s.fleet.mu.RLock()
		defer s.fleet.mu.RUnlock()
		return running == 0 && waiting == 0 && len(s.fleet.sessions) == 0 && s.fleet.ports.blocks.InUse() == 0
	})
}

// TestStopWithOpenStreams: the end does not wait for agents, followers or requests.
func TestStopWithOpenStreams(t *testing.T) {
	s := start(t, Options{})
	w := &world{hops: 20, receiver: atSite("a")}
	a := w.agent("a")
	a.attach(s)
	old := s.origin("old", volta.Seed)
	defer old.run(func(volta.Job) {})()
	s.connected("a", "old")
	c := s.client()
	answered := make(chan error, 1)
	go func() {
		code, output, err := c.Request(t.Context(), "volta old 203.0.113.10 -w 3600")
		if err == nil && code == 200 {
			err = fmt.Errorf("answered with %s", output)
		} else {
			err = nil
		}
		answered <- err
	}()
	stream := must(c.Start(t.Context(), anycast.Definition{
		Program: anycast.KindCatchment, Protocol: stateless.ICMP, AllowPrivate: true, Pace: anycast.Pace{Rate: 1, SiteGap: -1},
	}, clientTargets(20), false))
	defer stream.Close()
	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the end took %v", took)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := s.Serve(t.Context(), s.listen); !errors.Is(err, ErrOptions) {
		t.Errorf("a second Serve: %v", err)
	}
}

// deaf is a program that ignores that it is to end, until it is let go.
type deaf chan struct{}

func (d deaf) Run(context.Context) (string, error) {
	<-d
	return "", nil
}

// TestStopWithDeafProgram: not even that keeps a controller from ending.
func TestStopWithDeafProgram(t *testing.T) {
	t.Parallel() // it mostly waits
	program := make(deaf)
	begun := make(chan struct{})
	s := start(t, Options{Programs: map[string]anycast.NewProgram{"deaf": func(anycast.ProgramConf) (anycast.Program, error) {
		close(begun)
		return program, nil
	}}})
	ended := make(chan struct{})
	c := s.client()
	go func() {
		defer close(ended)
		c.Request(context.Background(), "deaf")
	}()
	<-begun
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	<-ended
	close(program)
	// Then the last handler ends as well, before goleak looks.
	eventually(t, "all is given back", func() bool { running, _ := s.requests.load(); return running == 0 })
}
