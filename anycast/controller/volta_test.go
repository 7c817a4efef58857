// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
	"github.com/seed5728abee/fathom/packet"
)

// timeExceeded is what a router answers to an original's probe, 28 bytes quoted.
func timeExceeded(t testing.TB, from netip.Addr, to netip.Addr, sport uint16) []byte {
	t.Helper()
	quote := packet.IPv4Header{TTL: 1, Protocol: packet.ProtocolUDP, Src: shared, Dst: to}
	b, err := quote.Append(nil, packet.UDPHeaderLen)
	if err == nil {
		b, err = packet.AppendUDPHeader(b, sport, volta.ProbePort, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	body, err := packet.AppendICMPError4(nil, &packet.ICMPError{Type: packet.ICMPv4TimeExceeded, Quote: b})
	if err != nil {
		t.Fatal(err)
	}
	h := packet.IPv4Header{TTL: 62, Protocol: packet.ProtocolICMP, Src: from, Dst: shared}
	out, err := h.Append(nil, len(body))
	if err != nil {
		t.Fatal(err)
	}
	return append(out, body...)
}

// TestDialogue is the conversation with an original's agent that ended as printed there, in both dialects.
func TestDialogue(t *testing.T) {
	want := strings.Join([]string{
		"Traceroute to 203.0.113.10 (203.0.113.10) from x, 2 probes, 2 hops max",
		"1  10.9.9.1 (10.9.9.1) x  10.500 ms  10.500 ms",
		"2  10.9.9.2 (10.9.9.2) x  10.500 ms  10.500 ms",
	}, "\n")
	for _, dialect := range []volta.Dialect{volta.Seed, volta.Go} {
		t.Run(dialect.String(), func(t *testing.T) {
			s := start(t, Options{})
			o := s.origin("x", dialect)
			base := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			wait := o.run(func(j volta.Job) {
				if j != (volta.Job{SessionID: 10000, DstIP: "203.0.113.10", MaxTTL: 2, ProbeNum: 2, BasePort: 10000}) {
					t.Errorf("job %+v", j)
				}
				done := volta.Done{SessionID: j.SessionID}
				for i := range 4 {
					at := base.Add(time.Duration(i) * time.Millisecond)
					done.Acks = append(done.Acks, volta.Ack{Seq: dialect.AckSeq(j.BasePort, i), Sent: volta.At(at)})
				}
				o.send(done)
				for i := range 4 {
					at := base.Add(time.Duration(i)*time.Millisecond + 10500*time.Microsecond)
					o.send(volta.Reply{Packet: timeExceeded(t, router(i/2+1), target, uint16(10000+i)), Time: volta.At(at)})
				}
			})
			begin := time.Now()
			code, output := s.request("volta x 203.0.113.10 -m 2 -q 2 -w 5")
			if code != 200 || output != want {
				t.Errorf("got %d\n%s\nwant 200\n%s", code, output, want)
			}
			if took := time.Since(begin); took > 4*time.Second {
				t.Errorf("took %v, as if an answer were missing", took)
			}
			wait()
		})
	}
}

// TestVectors feeds a stream with what the originals' agents sent, byte by byte.
func TestVectors(t *testing.T) {
	const packetHex = "45000038000000003e01a7ba0a090901c00002010b004b4d000000004500001c000000000111bbc5c0000201cb00710a2710829a00080000"
	for name, v := range map[string]struct{ register, job, done, reply string }{
		"seed": {
			register: "0a085245474953544552122f0a23747970652e676f6f676c65617069732e636f6d2f52656769737465725061796c6f616412080a066167656e7431",
			job:      "0a034a4f42123a0a1e747970652e676f6f676c65617069732e636f6d2f4a6f625061796c6f6164121808904e120c3230332e302e3131332e31301802200228904e",
			done:     "0a04444f4e4512610a1f747970652e676f6f676c65617069732e636f6d2f446f6e655061796c6f6164123e08904e121808904e1213323032362d30312d30325430333a30343a3035121f08914e121a323032362d30312d30325430333a30343a30352e303031303030",
			reply:    "0a055245504c59127a0a20747970652e676f6f676c65617069732e636f6d2f5265706c795061796c6f616412560a38" + packetHex + "121a323032362d30312d30325430333a30343a30352e303130353030",
		},
		"go": {
			register: "0a280a1c747970652e676f6f676c65617069732e636f6d2f526567697374657212080a066167656e7431",
			job:      "0a330a17747970652e676f6f676c65617069732e636f6d2f4a6f62121808904e120c3230332e302e3131332e31301802200228904e",
			done:     "0a550a18747970652e676f6f676c65617069732e636f6d2f446f6e65123908904e12161214323032362d30312d30325430333a30343a30355a121c08011218323032362d30312d30325430333a30343a30352e3030315a",
			reply:    "0a720a19747970652e676f6f676c65617069732e636f6d2f5265706c7912550a38" + packetHex + "1219323032362d30312d30325430333a30343a30352e303130355a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Options{})
			stream, err := anycastpb.NewAnycastServiceClient(s.conn()).ControlStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			send := func(text string) {
				t.Helper()
				b, err := hex.DecodeString(text)
				m := new(anycastpb.Message)
				if err == nil {
					err = proto.Unmarshal(b, m)
				}
				if err == nil {
					err = stream.Send(m)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			send(v.register)
			s.connected("agent1")
			answered := make(chan struct{})
			var code int32
			var output string
			go func() {
				defer close(answered)
				code, output = s.request("volta agent1 203.0.113.10 -m 2 -q 2 -w 1")
			}()
			job, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(job)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(b); got != v.job {
				t.Errorf("job\ngot  %s\nwant %s", got, v.job)
			}
			send(v.reply)
			send(v.done)
			<-answered
			want := "Traceroute to 203.0.113.10 (203.0.113.10) from agent1, 2 probes, 2 hops max\n1  10.9.9.1 (10.9.9.1) agent1  10.500 ms  *\n2  *  *"
			if code != 200 || output != want {
				t.Errorf("got %d\n%s\nwant 200\n%s", code, output, want)
			}
		})
	}
}

// TestMixedFleet: a native agent probes, and answers come home at agents of all dialects; then one of the originals' probes.
//
//	x (native) -- hop 1 home at x, 2 at y (seed), 3 at z (go), target at x
func TestMixedFleet(t *testing.T) {
	s := start(t, Options{})
	origins := map[string]*originAgent{"y": s.origin("y", volta.Seed), "z": s.origin("z", volta.Go)}
	w := &world{hops: 4}
	x := w.agent("x")
	// The fake world delivers to native agents; what comes home at the others is turned into their messages.
	for name := range origins {
		w.agent(name)
	}
	homes := []string{"", "x", "y", "z", "x"}
	w.receiver = func(hop int, _ netip.Addr) string { return homes[hop] }
	for name, o := range origins {
		fake := w.agents[name]
		fake.incarnation = 0
		go func() {
			for {
				fake.mu.Lock()
				kept := fake.kept
				fake.kept = nil
				fake.mu.Unlock()
				for _, m := range kept {
					packets := m.GetAnswers().GetPackets()
					for i, n := range m.GetAnswers().GetLengths() {
						o.send(volta.Reply{Packet: packets[:n], Time: volta.At(time.Unix(0, m.GetAnswers().GetTimes()[i]))})
						packets = packets[n:]
					}
				}
				select {
				case <-t.Context().Done():
					return
				case <-time.After(time.Millisecond):
				}
			}
		}()
	}
	x.attach(s)
	s.connected("x", "y", "z")
	code, output := s.request("volta x 203.0.113.10 -q 2 -w 3")
	if code != 200 {
		t.Fatalf("%d %s", code, output)
	}
	lines := strings.Split(output, "\n")
	if len(lines) != 5 {
		t.Fatalf("want 4 hops:\n%s", output)
	}
	for hop := 1; hop <= 4; hop++ {
		gateway := router(hop).String()
		if hop == 4 {
			gateway = target.String()
		}
		words := strings.Split(lines[hop], "  ")
		if len(words) != 4 || words[1] != gateway+" ("+gateway+") "+homes[hop] {
			t.Errorf("hop %d: %q", hop, lines[hop])
		}
		for _, ms := range words[2:] {
			if !strings.HasSuffix(ms, " ms") || strings.HasPrefix(ms, "-") {
				t.Errorf("hop %d: time %q", hop, ms)
			}
		}
	}

	// Now y sends, in the classic way, and hop 1's answer comes home at x, which runs our agent.
	wait := origins["y"].run(func(j volta.Job) {
		now := time.Now().Truncate(time.Millisecond) // the seed dialect has microseconds
		done := volta.Done{SessionID: j.SessionID, Acks: []volta.Ack{{Seq: j.BasePort, Sent: volta.At(now)}}}
		origins["y"].send(done)
		p := timeExceeded(t, router(1), target, uint16(j.BasePort))
		x.report(answersOf(now.Add(3*time.Millisecond), p))
	})
	code, output = s.request("volta y 203.0.113.10 -m 1 -q 1 -w 3")
	want := "Traceroute to 203.0.113.10 (203.0.113.10) from y, 1 probes, 1 hops max\n1  10.9.9.1 (10.9.9.1) x  3.000 ms"
	if code != 200 || output != want {
		t.Errorf("got %d\n%s\nwant 200\n%s", code, output, want)
	}
	wait()
}
