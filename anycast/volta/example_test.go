// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

func Example() {
	// What an agent says first tells which dialect its stream has.
	b, _ := hex.DecodeString("0a280a1c747970652e676f6f676c65617069732e636f6d2f526567697374657212080a066167656e7431")
	var m anycastpb.Message
	if err := proto.Unmarshal(b, &m); err != nil {
		fmt.Println(err)
		return
	}
	msg, dialect, err := volta.Decode(&m)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%v: %s %+v\n", dialect, msg.Kind(), msg)

	// A job for it goes back in that dialect.
	answer, err := volta.Encode(dialect, volta.Job{SessionID: 10000, DstIP: "203.0.113.10", MaxTTL: 20, ProbeNum: 3, BasePort: 10000})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%q\n", answer.GetHead())
	// Output:
	// go: REGISTER {AgentID:agent1}
	// "\n\x17type.googleapis.com/Job\x12\x18\b\x90N\x12\f203.0.113.10\x18\x14 \x03(\x90N"
}

func ExampleParseCommand() {
	c, err := volta.ParseCommand("volta agent-a 203.0.113.10 --max 2 -q1")
	fmt.Println(c.Source, c.Destination, c.MaxTTL, c.Queries, c.Wait, err)

	_, err = volta.ParseCommand("volta agent-a 203.0.113.10 -m many")
	fmt.Println(volta.ResponseFor(err))
	// Output:
	// agent-a 203.0.113.10 2 1 5s <nil>
	// 400 Invalid command: argument -m/--max-ttls: invalid int value: "many"; usage: volta <source> <destination> [-m <max-ttls>] [-w <waittime>] [-q <nqueries>] [-t <tos>] [-I]
}

func ExampleTraceroute() {
	command, err := volta.ParseCommand("volta agent-a 203.0.113.10 -m 1 -q 1")
	if err != nil {
		fmt.Println(err)
		return
	}
	tr, err := volta.NewTraceroute(volta.TracerouteConf{
		Command: command, Target: netip.MustParseAddr("203.0.113.10"), SessionID: 10000,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	// send puts the job on agent-a's stream; here it also is all the agents there are.
	send := func(job volta.Job) error {
		sent, _ := volta.ParseTime("2026-01-02T03:04:05")
		received, _ := volta.ParseTime("2026-01-02T03:04:05.010500")
		packet, _ := hex.DecodeString("45000038000000003e01a7ba0a090901c00002010b004b4d000000004500001c000000000111bbc5c0000201cb00710a2710829a00080000")
		tr.HandleReply(volta.Reply{Packet: packet, Time: received}, "agent-b")
		tr.HandleDone(volta.Seed, volta.Done{SessionID: job.SessionID, Acks: []volta.Ack{{Seq: job.BasePort, Sent: sent}}})
		return nil
	}
	result, err := tr.Run(context.Background(), send)
	if err != nil {
		fmt.Println(volta.ResponseFor(err))
		return
	}
	fmt.Println(result.Text())
	// Output:
	// Traceroute to 203.0.113.10 (203.0.113.10) from agent-a, 1 probes, 1 hops max
	// 1  10.9.9.1 (10.9.9.1) agent-b  10.500 ms
}

func ExampleBlocks() {
	blocks, err := volta.NewBlocks(10000, 10200, 100)
	if err != nil {
		fmt.Println(err)
		return
	}
	first, _ := blocks.Allocate()
	fmt.Println(first)
	second, _ := blocks.Allocate()
	fmt.Println(second)
	_, err = blocks.Allocate()
	fmt.Println(volta.ResponseFor(err))
	blocks.Release(first)
	third, _ := blocks.Allocate()
	fmt.Println(third)
	// Output:
	// 10000
	// 10100
	// 500 Internal server error: No free session ID blocks available
	// 10000
}
