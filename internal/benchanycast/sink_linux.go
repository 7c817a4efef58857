// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// sink is a controller that does nothing but to order probes and to count answers, so that what is measured is the agent.
type sink struct {
	measurepb.UnimplementedFleetServer
	first   uint32 // address
	targets int
	over    chan sunk // has room for one: the rest is of no interest

	mu    sync.Mutex // guards found
	found sunk
}

// sunk is what a sink has seen.
type sunk struct {
	answered int // targets
	twice    int // answers to one target
	elapsed  time.Duration
	err      error
}

const (
	// sinkBatch is how many probes one order has, and sinkAhead how many may be ordered before they have been sent.
	sinkBatch, sinkAhead = 2048, 32768
	// sinkPatience is how long the sink waits for an answer after another.
	sinkPatience = 5 * time.Second
	sinkSession  = 1
	sinkPort     = 10000
	sinkAck      = 16
)

var errOrder = errors.New("the agent could not send")

// drain serves one agent until all its probes are answered, or no more answers come.
func drain(ctx context.Context, address string, first netip.Addr, targets int, o *outcome) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	b := first.As4()
	s := &sink{first: binary.BigEndian.Uint32(b[:]), targets: targets, over: make(chan sunk, 1)}
	server := grpc.NewServer(grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(1<<20))
	measurepb.RegisterFleetServer(server, s)
	serving := make(chan error, 1)
	go func() { serving <- server.Serve(l) }()
	var found sunk
	select {
	case found = <-s.over:
	case <-ctx.Done():
		found.err = ctx.Err()
	}
	server.Stop()
	if err := <-serving; err != nil && found.err == nil {
		found.err = err
	}
	o.Requests, o.Wrong, o.Silent, o.Elapsed = found.answered, found.twice, targets-found.answered, found.elapsed
	return found.err
}

// Attach orders the probes and counts what comes.
func (s *sink) Attach(stream grpc.BidiStreamingServer[measurepb.FromAgent, measurepb.ToAgent]) error {
	err := s.attach(stream)
	s.end(err)
	return err
}

// end tells what was found. The first one counts.
func (s *sink) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found.err = err
	select {
	case s.over <- s.found:
	default:
	}
}

func (s *sink) attach(stream grpc.BidiStreamingServer[measurepb.FromAgent, measurepb.ToAgent]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if m.GetHello() == nil {
		return fmt.Errorf("first message is %T, want a hello", m.GetEvent())
	}
	key := stateless.NewKey()
	orders := []*measurepb.ToAgent{
		{Order: &measurepb.ToAgent_Welcome{Welcome: &measurepb.Welcome{Controller: "sink"}}},
		{Order: &measurepb.ToAgent_Open{Open: &measurepb.Open{
			Session: sinkSession, Key: key[:], Protocol: measurepb.Protocol_PROTOCOL_ICMP, FirstPort: sinkPort, Ports: 1,
		}}},
	}
	for _, o := range orders {
		if err := stream.Send(o); err != nil {
			return err
		}
	}
	silence := time.AfterFunc(sinkPatience, func() { s.end(nil) })
	defer silence.Stop()
	seen := make([]bool, s.targets)
	start := time.Now()
	ordered, sent := 0, 0
	for answered := 0; answered < s.targets; {
		for ordered < s.targets && ordered-sent < sinkAhead {
			n := min(sinkBatch, s.targets-ordered)
			if err := stream.Send(&measurepb.ToAgent{Order: &measurepb.ToAgent_Send{Send: s.order(ordered, n)}}); err != nil {
				return err
			}
			ordered += n
		}
		if m, err = stream.Recv(); err != nil {
			return err
		}
		for _, m := range append([]*measurepb.FromAgent{m}, m.GetMore()...) {
			seq := m.GetAnswers().GetSeq()
			if r := m.GetSent(); r != nil {
				if r.GetError() != "" {
					return fmt.Errorf("%w: %s", errOrder, r.GetError())
				}
				sent += int(r.GetCount())
				seq = r.GetSeq()
			}
			if a := m.GetAnswers(); a != nil {
				answered = s.count(a, seen, time.Since(start))
				silence.Reset(sinkPatience)
			}
			if seq != 0 && seq%sinkAck == 0 {
				if err := stream.Send(&measurepb.ToAgent{Order: &measurepb.ToAgent_Acknowledge{Acknowledge: &measurepb.Acknowledge{Seq: seq}}}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// order makes one of probes to n targets from some on.
func (s *sink) order(from, n int) *measurepb.Send {
	o := &measurepb.Send{Session: sinkSession, Batch: uint64(from), Ttls: []uint32{64}}
	for i := range n {
		o.Targets = binary.BigEndian.AppendUint32(o.Targets, s.first+uint32(from+i))
	}
	return o
}

// count notes from whom answers came, and tells how many have answered.
func (s *sink) count(a *measurepb.Answers, seen []bool, elapsed time.Duration) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	packets := a.GetPackets()
	for _, n := range a.GetLengths() {
		// The agent has checked them; bytes 12 to 15 are the source.
		at := binary.BigEndian.Uint32(packets[12:]) - s.first
		packets = packets[n:]
		switch {
		case int(at) >= len(seen) || seen[at]:
			s.found.twice++
		default:
			seen[at] = true
			s.found.answered++
		}
	}
	s.found.elapsed = elapsed
	return s.found.answered
}
