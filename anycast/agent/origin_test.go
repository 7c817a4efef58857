// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/packet"
)

// original is a fake of one of Voltadomar's controllers.
type original struct {
	anycastpb.UnimplementedAnycastServiceServer
	dialect  volta.Dialect
	t        testing.TB
	listener *bufconn.Listener
	server   *grpc.Server
	dialled  int
	agents   chan *originalAgent
}

// originalAgent is a stream of an agent, seen from there.
type originalAgent struct {
	t        testing.TB
	register []byte // as it came
	stream   grpc.BidiStreamingServer[anycastpb.Message, anycastpb.Message]
	in       chan *anycastpb.Message
	over     chan error
}

func newOriginal(t testing.TB, d volta.Dialect) *original {
	o := &original{dialect: d, t: t, listener: bufconn.Listen(1 << 20), server: grpc.NewServer(), agents: make(chan *originalAgent, 16)}
	anycastpb.RegisterAnycastServiceServer(o.server, o)
	serve(t, o.server, o.listener)
	return o
}

func (o *original) dial(ctx context.Context, _ string) (net.Conn, error) {
	o.dialled++
	return o.listener.DialContext(ctx)
}

func (o *original) ControlStream(stream grpc.BidiStreamingServer[anycastpb.Message, anycastpb.Message]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if _, d, err := volta.Decode(first); err != nil || d != o.dialect {
		if o.dialect == volta.Go {
			return status.Error(codes.Internal, "grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data")
		}
		<-stream.Context().Done() // the other one stays silent
		return nil
	}
	a := &originalAgent{t: o.t, stream: stream, in: make(chan *anycastpb.Message, 1<<16), over: make(chan error, 1)}
	if a.register, err = proto.Marshal(first); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer close(a.in)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			a.in <- m
		}
	}()
	o.agents <- a
	select {
	case err = <-a.over:
	case <-gone:
	case <-stream.Context().Done():
	}
	return err
}

func (o *original) accept() *originalAgent {
	o.t.Helper()
	select {
	case a := <-o.agents:
		return a
	case <-time.After(patience):
		o.t.Fatal("no agent came")
		return nil
	}
}

// send sends bytes given in hexadecimal.
func (a *originalAgent) send(text string) {
	a.t.Helper()
	m := new(anycastpb.Message)
	if err := proto.Unmarshal(unhex(a.t, text), m); err != nil {
		a.t.Fatal(err)
	}
	if err := a.stream.Send(m); err != nil {
		a.t.Logf("controller sends: %v", err)
	}
}

func (a *originalAgent) next() (volta.Message, volta.Dialect, string) {
	a.t.Helper()
	select {
	case m, ok := <-a.in:
		if !ok {
			a.t.Fatal("stream has ended")
		}
		msg, d, err := volta.Decode(m)
		if err != nil {
			a.t.Fatal(err)
		}
		return msg, d, string(m.GetHead()) + string(m.GetPayload())
	case <-time.After(patience):
		a.t.Fatal("the agent says nothing")
	}
	return nil, 0, ""
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Messages and packets as the originals make and accept them: session 10000, base port 10000, destination
// 203.0.113.10, source 192.0.2.1.
var (
	registerVector = map[volta.Dialect]string{
		volta.Seed: "0a085245474953544552122f0a23747970652e676f6f676c65617069732e636f6d2f52656769737465725061796c6f616412080a066167656e7431",
		volta.Go:   "0a280a1c747970652e676f6f676c65617069732e636f6d2f526567697374657212080a066167656e7431",
	}
	jobVector = map[volta.Dialect]string{
		volta.Seed: "0a034a4f42123a0a1e747970652e676f6f676c65617069732e636f6d2f4a6f625061796c6f6164121808904e120c3230332e302e3131332e31301802200228904e",
		volta.Go:   "0a330a17747970652e676f6f676c65617069732e636f6d2f4a6f62121808904e120c3230332e302e3131332e31301802200228904e",
	}
	exceededVector    = "45000038000000003e01a7ba0a090901c00002010b004b4d000000004500001c000000000111bbc5c0000201cb00710a2710829a00080000"
	unreachableVector = "45000038000000003e017eb9cb00710ac000020103035347000000004500001c000000000111bbc5c0000201cb00710a2713829a00080000"
	timePattern       = map[volta.Dialect]*regexp.Regexp{
		volta.Seed: regexp.MustCompile(`(1999-12-31|2000-01-01)T\d\d:\d\d:\d\d(\.\d{6})?$`),
		volta.Go:   regexp.MustCompile(`2000-01-01T00:00:0\d(\.\d{0,8}[1-9])?Z$`),
	}
)

// TestOriginalJob does one of Voltadomar's jobs in both dialects.
func TestOriginalJob(t *testing.T) {
	for d, dialect := range map[volta.Dialect]Dialect{volta.Seed: Seed, volta.Go: Go} {
		t.Run(d.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newOriginal(t, d)
				s := start(t, Options{ID: "agent1", Links: []Link{{Address: "control.test:50051", Dialect: dialect}}, Dial: c.dial})
				a := c.accept()
				if got := hex.EncodeToString(a.register); got != registerVector[d] {
					t.Errorf("REGISTER %s, want %s", got, registerVector[d])
				}
				time.Sleep(time.Second)
				began := time.Now()
				a.send(jobVector[d])

				msg, got, text := a.next()
				done, ok := msg.(volta.Done)
				if !ok || got != d || done.SessionID != 10000 || len(done.Acks) != 4 {
					t.Fatalf("%v message %+v, want DONE", got, msg)
				}
				for i, ack := range done.Acks {
					if ack.Seq != d.AckSeq(10000, i) || ack.Sent.IsZero() {
						t.Errorf("ack %d: %+v", i, ack)
					}
					if at := ack.Sent.Time().Sub(began); at < 0 || at > time.Millisecond {
						t.Errorf("ack %d is %v after the job", i, at)
					}
				}
				if !timePattern[d].MatchString(text) {
					t.Errorf("DONE %q has no time of the dialect at its end", text)
				}
				// What left is what the original sends, but for what the kernel fills in there, too.
				for i, p := range s.net.packets() {
					want := unhex(t, "4500001c000100000111bbc4c0000201cb00710a2710829a00080000")
					want[8] = byte(i/2 + 1)
					want[21] += byte(i)
					want[10], want[11] = p[10], p[11]
					if !slices.Equal(p, want) || packet.Checksum(p[:20]) != 0 {
						t.Errorf("probe %d: %x, want %x", i, p, want)
					}
				}
				for i := range 4 {
					msg, _, text := a.next()
					r, ok := msg.(volta.Reply)
					if !ok || r.Time.Time().Sub(began) != 10*time.Millisecond {
						t.Fatalf("message %+v, want a REPLY of 10 ms later", msg)
					}
					if want := answer(s.net.packets()[i]); !slices.Equal(r.Packet, want) {
						t.Errorf("REPLY %d: %x, want %x", i, r.Packet, want)
					}
					if !timePattern[d].MatchString(text) {
						t.Errorf("REPLY %q has no time of the dialect at its end", text)
					}
				}
			})
		})
	}
}

// TestOriginalForwarding checks what Voltadomar's controllers get to hear: answers to other sites' probes, but nothing that
// ends their streams.
func TestOriginalForwarding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newOriginal(t, volta.Seed)
		s := start(t, Options{ID: "agent1", Links: []Link{{Address: "control.test:50051", Dialect: Seed}}, Dial: c.dial})
		a := c.accept()
		time.Sleep(time.Second)
		quote := unhex(t, exceededVector)[28:]
		tcp := slices.Clone(quote)
		tcp[9] = 6
		for _, p := range [][]byte{
			unhex(t, exceededVector),
			whole(router[0], shared[0], packet.ProtocolICMP, packet.AppendICMPEcho(nil, packet.ICMPv4EchoReply, 1, 2, quote)),
			whole(router[0], shared[0], packet.ProtocolICMP, packet.AppendICMPEcho(nil, packet.ICMPv4Echo, 1, 2, []byte("hello"))),
			icmpError(router[0], shared[0], &packet.ICMPError{Type: packet.ICMPv4Redirect, Gateway: router[0], Quote: quote}),
			icmpError(router[0], shared[0], &packet.ICMPError{Type: packet.ICMPv4ParameterProblem, Quote: quote}),
			icmpError(router[0], shared[0], &packet.ICMPError{Type: packet.ICMPv4TimeExceeded, Quote: tcp}),
			whole(router[0], shared[0], packet.ProtocolICMP, append([]byte{11, 0, 0xf4, 0xff, 0, 0, 0, 0}, quote[:27]...)),
			unhex(t, unreachableVector),
		} {
			s.host.Deliver(p)
		}
		for _, want := range []string{exceededVector, unreachableVector} {
			msg, _, _ := a.next()
			if r, ok := msg.(volta.Reply); !ok || hex.EncodeToString(r.Packet) != want {
				t.Errorf("%+v, want REPLY %s", msg, want)
			}
		}
		time.Sleep(time.Second)
		if len(a.in) > 0 {
			t.Error("more was forwarded")
		}
	})
}

// TestOriginalErrors gives impossible jobs, and jobs whose probes cannot be sent.
func TestOriginalErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newOriginal(t, volta.Seed)
		s := start(t, Options{ID: "agent1", Links: []Link{{Address: "control.test:50051", Dialect: Seed}}, Dial: c.dial})
		a := c.accept()
		job := func(j volta.Job) {
			m, err := volta.Encode(volta.Seed, j)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		fails := func(name string, code int32, words ...string) {
			t.Helper()
			msg, _, _ := a.next()
			e, ok := msg.(volta.Error)
			if !ok || e.Code != code {
				t.Fatalf("%s: %+v, want ERROR %d", name, msg, code)
			}
			for _, w := range words {
				if !strings.Contains(e.Message, w) {
					t.Errorf("%s: %q, want %q in it", name, e.Message, w)
				}
			}
		}
		job(volta.Job{SessionID: 1, MaxTTL: 1, ProbeNum: 1, BasePort: 10000})
		fails("no address", 400, "job 1")
		job(volta.Job{SessionID: 2, DstIP: "203.0.113.10", MaxTTL: 2, ProbeNum: 2, BasePort: 65534})
		fails("port", 400, "job 2")
		job(volta.Job{SessionID: 4, DstIP: "203.0.113.10", MaxTTL: 256, ProbeNum: 1, BasePort: 10000})
		fails("hop limit", 400, "job 4")
		job(volta.Job{SessionID: 5, DstIP: "224.0.0.5", MaxTTL: 1, ProbeNum: 1, BasePort: 10000})
		fails("group", 500, "job 5")
		a.send("0a034a4f4212020a00") // JOB with an empty payload
		fails("payload", 400)
		job(volta.Job{SessionID: 7, DstIP: "203.0.113.10"})
		if msg, _, _ := a.next(); !isDone(msg, 7, 0) {
			t.Errorf("%+v for a job without probes", msg)
		}
		s.host.SetFaults(rawiotest.Faults{Send: func(rawio.Spec, *rawio.Message) error { return syscall.EACCES }})
		job(volta.Job{SessionID: 8, DstIP: "203.0.113.10", MaxTTL: 5, ProbeNum: 2, BasePort: 10000})
		fails("refused", 500, "job 8", "permission denied")
		s.host.SetFaults(rawiotest.Faults{})
		job(volta.Job{SessionID: 9, DstIP: "203.0.113.10", MaxTTL: 255, ProbeNum: 100, BasePort: 10000})
		for {
			msg, _, _ := a.next()
			if _, ok := msg.(volta.Reply); ok {
				continue // it may be quicker
			}
			if !isDone(msg, 9, 25500) {
				t.Errorf("%T for a large job", msg)
			}
			break
		}
	})
}

func isDone(m volta.Message, session int32, acks int) bool {
	d, ok := m.(volta.Done)
	return ok && d.SessionID == session && len(d.Acks) == acks
}

// TestOriginalReconnect checks that the agent registers again, and then reports what was begun before.
func TestOriginalReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newOriginal(t, volta.Seed)
		s := start(t, Options{ID: "agent1", Links: []Link{{Address: "control.test:50051", Dialect: Seed}}, Dial: c.dial, Rate: 1})
		for _, end := range []error{nil, status.Error(codes.Unavailable, "restart"), nil} {
			a := c.accept()
			a.send(jobVector[volta.Seed]) // 4 s at 1 probe per second
			time.Sleep(100 * time.Millisecond)
			a.over <- end
		}
		a := c.accept()
		dones := 0
		for dones < 3 {
			if msg, _, _ := a.next(); isDone(msg, 10000, 4) {
				dones++
			}
		}
		if st := s.Stats().Links[0]; st.Connects != 4 || !st.Connected || st.Dialect != Seed {
			t.Errorf("%+v", st)
		}
	})
}

// breaking is a stream whose connection breaks when it is next used.
type breaking struct {
	controlStream
	sent []*anycastpb.Message
	err  error
}

func (b *breaking) Send(m *anycastpb.Message) error {
	if b.err != nil {
		return b.err
	}
	b.sent = append(b.sent, m)
	return nil
}

// TestOriginalReportAgain loses the connection with a report: the next one must bring it, and only once.
func TestOriginalReportAgain(t *testing.T) {
	l := &link{log: slog.New(slog.DiscardHandler)}
	n := l.jobs.add(volta.Job{SessionID: 10000, BasePort: 10000})
	r := &report{batch: n, count: 1, times: []int64{1}}
	stream := &breaking{err: io.EOF}
	if err := l.sendReport(volta.Seed, stream, r); err == nil {
		t.Fatal("no error of a broken stream")
	}
	stream.err = nil
	for range 2 {
		if err := l.sendReport(volta.Seed, stream, r); err != nil {
			t.Fatal(err)
		}
	}
	if len(stream.sent) != 1 {
		t.Fatalf("%d reports, want 1", len(stream.sent))
	}
	if msg, _, err := volta.Decode(stream.sent[0]); err != nil || !isDone(msg, 10000, 1) {
		t.Errorf("%+v, %v", msg, err)
	}
}

// TestAuto meets controllers of all three kinds, one after the other, at one address.
func TestAuto(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, seed, goes := newController(t), newOriginal(t, volta.Seed), newOriginal(t, volta.Go)
		dial := ours.dial
		s := start(t, Options{ID: "agent1", Links: []Link{{Address: "control.test:50051"}}, Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return dial(ctx, address)
		}})
		want := func(d Dialect) {
			t.Helper()
			time.Sleep(time.Second)
			if st := s.Stats().Links[0]; st.Dialect != d || !st.Connected {
				t.Errorf("%+v, want dialect %v", st, d)
			}
		}
		a := ours.accept(0)
		a.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
		want(Native)
		dial = seed.dial
		a.over <- errors.New("moved")
		b := seed.accept()
		want(Seed)
		if n := s.Stats().Sessions; n > 1 {
			t.Errorf("%d sessions are left of the controller before", n)
		}
		dial = goes.dial
		b.over <- status.Error(codes.Internal, "not because of the dialect: there is no second message to misunderstand")
		b = goes.accept()
		want(Go)
		b.send(jobVector[volta.Go])
		if msg, d, _ := b.next(); !isDone(msg, 10000, 4) || d != volta.Go {
			t.Errorf("%v %+v", d, msg)
		}
		dial = ours.dial
		b.over <- nil
		a = ours.accept(0)
		if len(a.hello.GetSessions()) != 0 {
			t.Errorf("hello %v has sessions of long ago", a.hello)
		}
		want(Native)
		// What was dropped while Voltadomar's controller was away is kept for ours.
		a.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
		a.order(send(1, 1, 0, 1, 7))
		a.collect(1, 1)
	})
}

// TestOriginalRoute sends from the address that the routes choose, if no other is known.
func TestOriginalRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newOriginal(t, volta.Seed)
		s := start(t, Options{ID: "agent1", Links: []Link{{Address: "control.test:50051", Dialect: Seed}}, Dial: c.dial, Anycast: []netip.Addr{}})
		a := c.accept()
		a.send(jobVector[volta.Seed])
		a.next()
		if src := netip.AddrFrom4([4]byte(s.net.packets()[0][12:])); src != own[0] {
			t.Errorf("probes from %v, want %v", src, own[0])
		}
	})
}
