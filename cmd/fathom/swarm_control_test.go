// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm"
)

// fakePeer is a swarmPeer that notes what it was told to do.
type fakePeer struct {
	self  swarm.Member
	state swarm.State
	walk  []swarm.Neighbourhood
	inbox chan swarm.Message

	mu     sync.Mutex
	calls  []string
	fail   error
	slow   time.Duration // how long sending takes
	closed chan struct{}
}

func newFakePeer(addr string) *fakePeer {
	self := swarm.Member{ID: swarm.HashOf(addr), Addr: netip.MustParseAddrPort(addr)}
	return &fakePeer{self: self, state: swarm.State{Self: self}, inbox: make(chan swarm.Message, 16), closed: make(chan struct{})}
}

func (p *fakePeer) did(ctx context.Context, format string, args ...any) error {
	p.mu.Lock()
	p.calls = append(p.calls, fmt.Sprintf(format, args...))
	slow, fail := p.slow, p.fail
	p.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fail
}

func (p *fakePeer) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.calls...)
}

func (p *fakePeer) Connect(ctx context.Context, entries ...string) error {
	return p.did(ctx, "connect %s", strings.Join(entries, " "))
}
func (p *fakePeer) Disconnect(ctx context.Context) error { return p.did(ctx, "disconnect") }
func (p *fakePeer) Self() swarm.Member                   { return p.self }
func (p *fakePeer) State() swarm.State                   { return p.state }

func (p *fakePeer) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *fakePeer) Send(ctx context.Context, to swarm.Target, data []byte) error {
	return p.did(ctx, "send %s %q", to, data)
}

func (p *fakePeer) SendDisjoint(ctx context.Context, to swarm.Target, data []byte, duplicates int) error {
	return p.did(ctx, "send %s %q by %d more", to, data, duplicates)
}

func (p *fakePeer) SendAsync(ctx context.Context, to swarm.Target, data []byte, done func(error)) error {
	go func() { done(p.did(ctx, "post %s %d", to, len(data))) }()
	return nil
}

func (p *fakePeer) Broadcast(ctx context.Context, data []byte, _ ...swarm.Hash) error {
	return p.did(ctx, "broadcast %q", data)
}

func (p *fakePeer) Recv(ctx context.Context) (swarm.Message, error) {
	select {
	case m := <-p.inbox:
		return m, nil
	case <-p.closed:
		return swarm.Message{}, net.ErrClosed
	case <-ctx.Done():
		return swarm.Message{}, ctx.Err()
	}
}

func (p *fakePeer) Lookup(ctx context.Context, key swarm.Hash, _ swarm.LookupOptions) (swarm.Result, error) {
	return swarm.Result{Owner: p.self, Hops: 2, Path: []swarm.Hash{{1}, p.self.ID}}, p.did(ctx, "lookup %s", key.Short())
}

func (p *fakePeer) Walk(_ context.Context, visit func(swarm.Neighbourhood) bool) error {
	for _, n := range p.walk {
		if !visit(n) {
			break
		}
	}
	return nil
}

var _ swarmPeer = (*fakePeer)(nil)

// controlled is a machine interface with a fake peer.
type controlled struct {
	t     *testing.T
	peer  *fakePeer
	in    *io.PipeWriter
	lines *bufio.Scanner
	ended chan error
}

func newControlled(ctx context.Context, t *testing.T) *controlled {
	t.Helper()
	inRead, in := io.Pipe()
	outRead, outWrite := io.Pipe()
	c := &controlled{t: t, peer: newFakePeer("192.0.2.1:49610"), in: in, lines: bufio.NewScanner(outRead), ended: make(chan error, 1)}
	c.lines.Buffer(nil, 1<<20)
	out := newLineWriter(outWrite)
	go func() {
		err := newSwarmControl(c.peer, out).run(ctx, inRead)
		err = errors.Join(err, out.close())
		inRead.Close()
		outWrite.Close()
		c.ended <- err
	}()
	return c
}

func (c *controlled) say(lines ...string) {
	c.t.Helper()
	for _, line := range lines {
		if _, err := io.WriteString(c.in, line+"\n"); err != nil {
			c.t.Fatal(err)
		}
	}
}

// hear gives the next line of output as an object.
func (c *controlled) hear() map[string]any {
	c.t.Helper()
	if !c.lines.Scan() {
		c.t.Fatalf("no more output: %v", c.lines.Err())
	}
	var v map[string]any
	if err := json.Unmarshal(c.lines.Bytes(), &v); err != nil {
		c.t.Fatalf("%s: %v", c.lines.Text(), err)
	}
	return v
}

// ask gives the answer to a command.
func (c *controlled) ask(line string) map[string]any {
	c.t.Helper()
	c.say(line)
	return c.hear()
}

func (c *controlled) end() error {
	c.t.Helper()
	for c.lines.Scan() {
	}
	return <-c.ended
}

func TestControlCommands(t *testing.T) {
	t.Parallel()
	c := newControlled(t.Context(), t)
	for _, tt := range []struct{ command, told string }{
		{`{"seq":1,"op":"join","host":"192.0.2.7","port":49610,"timeout":2.5}`, `connect 192.0.2.7:49610`},
		{`{"seq":1,"op":"join","host":"2001:db8::1","port":1}`, `connect [2001:db8::1]:1`},
		{`{"seq":1,"op":"send","host":"localhost","port":49611,"data":"a\u0000\u00ff\n"}`, `send localhost:49611 "a\x00\xff\n"`},
		{`{"seq":1,"op":"send","host":"192.0.2.7","port":49611,"data":"x","duplicates":3}`, `send 192.0.2.7:49611 "x" by 3 more`},
		{`{"seq":1,"op":"bcast","data":"é"}`, `broadcast "\xe9"`},
		{`{"seq":1,"op":"lookup","key":"foo"}`, `lookup 2c26b46b`},
		{`{"seq":1,"op":"lookup","key":""}`, `lookup e3b0c442`},
		{`{"seq":1,"op":"lookup","id":"` + strings.Repeat("ab", 32) + `"}`, `lookup abababab`},
		{`{"seq":1,"op":"leave"}`, `disconnect`},
	} {
		got := c.ask(tt.command)
		if got["re"] != 1.0 || got["ok"] != true || got["error"] != nil || got["seconds"] == nil {
			t.Errorf("%s: %v", tt.command, got)
		}
		if told := c.peer.told(); told[len(told)-1] != tt.told {
			t.Errorf("%s: %s, want %s", tt.command, told[len(told)-1], tt.told)
		}
	}
	if got := c.ask(`{"seq":2,"op":"lookup","key":"foo"}`); got["addr"] != "192.0.2.1:49610" || got["hops"] != 2.0 ||
		got["id"] != c.peer.self.ID.String() || len(got["path"].([]any)) != 2 {
		t.Errorf("lookup: %v", got)
	}
	before := len(c.peer.told())
	if got := c.ask(`{"seq":3,"op":"flood","host":"192.0.2.7","port":1,"count":50,"size":7}`); got["ok"] != true {
		t.Errorf("flood: %v", got)
	}
	if told := c.peer.told()[before:]; len(told) != 50 || told[49] != "post 192.0.2.7:1 7" {
		t.Errorf("flood: %d times, %s", len(told), told[len(told)-1])
	}
	if got := c.ask(`{"seq":"last","op":"quit"}`); got["re"] != "last" || got["ok"] != true {
		t.Errorf("quit: %v", got)
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
	select {
	case <-c.peer.closed:
	default:
		t.Error("the peer is open")
	}
}

func TestControlRefusals(t *testing.T) {
	t.Parallel()
	c := newControlled(t.Context(), t)
	for command, want := range map[string]string{
		`{`:                     "cannot read",
		`[]`:                    "cannot read",
		`{"seq":7,"op":5}`:      "cannot read",
		`{"seq":7,"op":"sing"}`: `unknown op "sing"`,
		`{"seq":7}`:             "unknown op",
		`{"seq":7,"op":"send","host":"h","port":0}`:                         "port 0: want",
		`{"seq":7,"op":"send","host":"h","port":65536}`:                     "port 65536: want",
		`{"seq":7,"op":"send","port":1}`:                                    "no host",
		`{"seq":7,"op":"send","host":"h","port":1,"data":"\u0100"}`:         "above U+00FF",
		`{"seq":7,"op":"bcast","data":"\ud800"}`:                            "above U+00FF",
		`{"seq":7,"op":"send","host":"h","port":1,"duplicates":-1}`:         "-1 duplicates",
		`{"seq":7,"op":"send","host":"h","port":1,"duplicates":65}`:         "65 duplicates",
		`{"seq":7,"op":"join","host":"h","port":1,"timeout":0}`:             "timeout 0: want",
		`{"seq":7,"op":"join","host":"h","port":1,"timeout":-1}`:            "timeout -1: want",
		`{"seq":7,"op":"lookup"}`:                                           "give a key",
		`{"seq":7,"op":"lookup","key":"k","id":"1"}`:                        "not both",
		`{"seq":7,"op":"lookup","id":"xyz"}`:                                "not an ID",
		`{"seq":7,"op":"flood","host":"h","port":1}`:                        "count 0: want",
		`{"seq":7,"op":"flood","host":"h","port":1,"count":1,"size":-1}`:    "size -1: want",
		`{"seq":7,"op":"flood","host":"h","port":1,"count":1,"size":1e300}`: "cannot read",
	} {
		got := c.ask(command)
		if text, _ := got["error"].(string); got["ok"] != false || !strings.Contains(text, want) {
			t.Errorf("%s: %v, want %q", command, got, want)
		}
		if strings.Contains(command, `"seq":7`) && got["re"] != 7.0 {
			t.Errorf("%s: answers %v", command, got["re"])
		}
	}
	if told := c.peer.told(); len(told) > 0 {
		t.Errorf("the peer was told to %q", told)
	}
	c.peer.fail = swarm.ErrNoSuchMember
	for _, command := range []string{`{"seq":8,"op":"send","host":"h","port":1}`, `{"seq":8,"op":"flood","host":"h","port":1,"count":3}`, `{"seq":8,"op":"lookup","key":"k"}`} {
		if got := c.ask(command); got["ok"] != false || !strings.Contains(got["error"].(string), "no such member") || got["seconds"] != nil {
			t.Errorf("%s: %v", command, got)
		}
	}
	c.say("", "  ") // nothing is said to blank lines
	c.in.Close()
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

// Commands run at once, those under way have a little time when the input ends, and none when ctx does.
func TestControlConcurrency(t *testing.T) {
	t.Parallel()
	for what, stop := range map[string]func(c *controlled, cancel func()){
		"end of input": func(c *controlled, _ func()) { c.in.Close() },
		"quit":         func(c *controlled, _ func()) { c.say(`{"seq":99,"op":"quit"}`) },
		"signal":       func(_ *controlled, cancel func()) { cancel() },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c := newControlled(ctx, t)
				c.peer.slow = time.Second
				began := time.Now()
				for i := range 20 {
					c.say(fmt.Sprintf(`{"seq":%d,"op":"bcast","data":"x"}`, i))
				}
				if got := c.ask(`{"seq":50,"op":"state"}`); got["re"] != 50.0 {
					t.Errorf("state has to wait: %v", got)
				}
				synctest.Wait()
				stop(c, cancel)
				done := 0
				for c.lines.Scan() {
					if strings.Contains(c.lines.Text(), `"seconds"`) {
						done++
					}
				}
				if err := <-c.ended; err != nil {
					t.Error(err)
				}
				want, took := 20, time.Second
				if what == "signal" {
					want, took = 0, 0
				}
				if done != want || time.Since(began) != took {
					t.Errorf("%d done after %v, want %d after %v", done, time.Since(began), want, took)
				}
				c.in.Close()
			})
		})
	}
}

func TestControlEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newControlled(t.Context(), t)
		at := time.Unix(1700000000, 250_000_000)
		from := swarm.Member{ID: swarm.Hash{0xab}, Addr: netip.MustParseAddrPort("192.0.2.9:1")}
		c.peer.inbox <- swarm.Message{From: from, Data: []byte("a\xff<\"\x00"), Time: at}
		want := map[string]any{"ev": "recv", "src": "192.0.2.9:1", "src_id": from.ID.String(), "data": "aÿ<\"\x00", "t": 1700000000.25, "kind": "data"}
		if got := c.hear(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
		c.peer.inbox <- swarm.Message{Broadcast: true, Sealed: true, Time: at}
		want = map[string]any{"ev": "recv", "src": nil, "src_id": strings.Repeat("0", 64), "data": "", "t": 1700000000.25, "kind": "bcast", "sealed": true}
		if got := c.hear(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if got := c.ask(`{"seq":1,"op":"quiet","on":true}`); got["ok"] != true {
			t.Errorf("quiet: %v", got)
		}
		c.peer.inbox <- swarm.Message{Data: []byte("unheard")}
		synctest.Wait()
		if got := c.ask(`{"seq":2,"op":"quiet","on":false}`); got["re"] != 2.0 {
			t.Errorf("quiet: %v", got)
		}
		c.peer.inbox <- swarm.Message{Data: []byte("heard")}
		if got := c.hear(); got["data"] != "heard" {
			t.Errorf("got %v", got)
		}
		c.in.Close()
		if err := c.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestControlState(t *testing.T) {
	t.Parallel()
	c := newControlled(t.Context(), t)
	member := func(n int) swarm.Member {
		return swarm.Member{ID: swarm.Hash{byte(n)}, Addr: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:49610", n))}
	}
	got := c.ask(`{"seq":1,"op":"state"}`)
	if got["pred"] != nil || got["succ"] != nil || got["mapping"] != nil || fmt.Sprint(got["peers"], got["fingers"]) != "[] []" || got["addr"] != "192.0.2.1:49610" {
		t.Errorf("alone: %v", got)
	}
	c.peer.state.Predecessors = []swarm.Member{member(2), member(3)}
	c.peer.state.Successors = []swarm.Member{member(3), member(2)}
	c.peer.state.Forward = []swarm.Member{member(3), member(4)}
	c.peer.state.Backward = []swarm.Member{member(4), {ID: swarm.Hash{9}}}
	c.peer.state.Peers = []swarm.PeerState{{Member: member(2), RTT: time.Millisecond}, {Member: member(3), How: swarm.Circuit}}
	c.peer.state.Received = 12
	c.peer.state.Mapping = &nat.State{Method: nat.PCP, Protocol: nat.TCP | nat.UDP, External: netip.MustParseAddrPort("203.0.113.5:49610"), Lifetime: time.Hour}
	got = c.ask(`{"seq":1,"op":"state"}`)
	for key, want := range map[string]string{
		"pred": "192.0.2.2:49610", "succ": "192.0.2.3:49610", "peers": "[192.0.2.2:49610 192.0.2.3:49610]",
		"fingers": "[192.0.2.3:49610 192.0.2.4:49610]", "received": "12",
		"mapping": "map[external:203.0.113.5:49610 lifetime:3600 method:pcp proto:tcp+udp]",
	} {
		if fmt.Sprint(got[key]) != want {
			t.Errorf("%s is %v, want %s", key, got[key], want)
		}
	}
	c.in.Close()
	if err := c.end(); err != nil {
		t.Error(err)
	}
}

func TestMappingEvents(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	out := newLineWriter(&b)
	state := nat.State{Protocol: nat.TCP | nat.UDP, External: netip.MustParseAddrPort("203.0.113.5:49610"), Lifetime: 2 * time.Minute}
	for _, kind := range []nat.EventKind{nat.Mapped, nat.Renewed, nat.Changed} {
		mappingEvents(out, nat.Event{Kind: kind, State: state})
	}
	state.Protocol = nat.TCP
	mappingEvents(out, nat.Event{Kind: nat.Lost, State: state, Err: nat.ErrNoAnswer})
	if err := out.close(); err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, event := range []string{"mapping", "mapping_renewed", "mapping"} {
		for _, proto := range []string{"tcp", "udp"} {
			want += fmt.Sprintf(`{"ev":%q,"proto":%q,"external":"203.0.113.5:49610","lifetime":120}`+"\n", event, proto)
		}
	}
	want += `{"ev":"mapping_lost","proto":"tcp","external":"203.0.113.5:49610","lifetime":120,"error":"no answer from the gateway"}` + "\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// When nobody reads the answers, there is no use in going on.
func TestControlUnread(t *testing.T) {
	t.Parallel()
	in, inWrite := io.Pipe()
	defer inWrite.Close()
	out := newLineWriter(brokenWriter{})
	c := newSwarmControl(newFakePeer("192.0.2.1:1"), out)
	c.ready()
	if err := c.run(t.Context(), in); err != nil {
		t.Error(err)
	}
	if err := out.close(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v, want the error of the write", err)
	}
}

func TestControlLongLine(t *testing.T) {
	t.Parallel()
	lines := make(chan []byte, 10)
	if err := scanLines(t.Context(), strings.NewReader("a\nbbbbbbbbbbbbbbbbbbb\nc\n"), 8, lines); err == nil || !strings.Contains(err.Error(), "longer than 8 bytes") {
		t.Errorf("%v", err)
	}
}

func FuzzDecodeSwarmCommand(f *testing.F) {
	f.Add([]byte(`{"seq":1,"op":"send","host":"h","port":1,"data":"\u00ff","duplicates":2}`))
	f.Add([]byte(`{"seq":{"a":[]},"op":"join","timeout":1e9}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := decodeSwarmCommand(line)
		if err != nil {
			return
		}
		if len(c.Data) > len(line) {
			t.Errorf("%d bytes of data in %d bytes", len(c.Data), len(line))
		}
		// What it says can be said again.
		if _, err := json.Marshal(swarmReceived{Data: c.Data}); err != nil {
			t.Error(err)
		}
		if _, err := json.Marshal(swarmAnswer{Re: c.Seq}); err != nil {
			t.Error(err)
		}
	})
}
