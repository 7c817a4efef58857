// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package tracetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// Balance is how a node with several next nodes chooses one.
type Balance uint8

// The ways to balance load. The zero value is PerFlow.
const (
	PerFlow        Balance = iota // by the flow; probes of flow 0 are all different flows
	PerPacket                     // at random for each probe
	PerDestination                // by the target alone: in effect one way
)

// Node is a router or a host of a [Network]. While probes are under way,
// its fields must only be changed in Network.Change.
type Node struct {
	// Addr answers probes. A target is a node whose Addr is probed.
	Addr netip.Addr
	// Delay is the time from the node before to this one, one way; Jitter is the most that is
	// added at random to the way there and back.
	Delay, Jitter time.Duration
	// Loss is the share (0 to 1) of the probes that are lost on the way to this node.
	Loss float64

	// Silent nodes forward but do not answer.
	Silent bool
	// AnswerLoss is the share (0 to 1) of probes that end here and get no answer.
	AnswerLoss float64
	// RateLimit is the number of answers in a second, 0 for no limit; Burst of them may come at
	// once (1 unless set).
	RateLimit float64
	Burst     int
	// AnswerDelay is the time that the node takes to make an answer, on top of the path's.
	AnswerDelay time.Duration
	// Source, if valid, is the address in answers instead of Addr.
	Source netip.Addr
	// MPLS is the label stack in this node's answers.
	MPLS []packet.Label
	// QuotedTTL and TOS, if above 0, are what the node claims to have received; TOS also is what
	// the nodes behind it see.
	QuotedTTL, TOS uint8
	// ReplyTTL is the hop limit that answers start with: 255 for routers and 64 for targets unless set.
	ReplyTTL uint8

	// Next are the nodes that packets go on to. Balance says how one of them is chosen; Weights, if set, are their
	// shares. A node without Next swallows what is not for itself.
	Next    []*Node
	Weights []int
	Balance Balance
	// Firewall nodes answer when a probe ends here, but let nothing through.
	Firewall bool
	// Unreachable nodes answer what they would have to forward with destination unreachable;
	// Code is that message's code.
	Unreachable bool
	Code        uint8

	tokens float64
	filled time.Time
}

// Network is a simulated network that is a trace.Via. Time comes from the time package: in a
// testing/synctest bubble a probe takes exactly its simulated time and no real time.
type Network struct {
	// Source is this host; its Next are the first hops. Only Next, Weights and Balance matter.
	Source Node
	// Err, if set, is the error of every probe, as of a Via that does not work.
	Err error

	seed        uint64
	mu          sync.Mutex // guards all following fields, and the nodes
	sent        map[uint8]int
	drawn       map[[2]uint16]uint64 // probes by flow and hop limit
	rng         *rand.Rand           // of the probe that is on its way
	flying, top int
}

// New makes a network without nodes. What is random follows from the seed, and for each probe from its flow, its hop
// limit and how many such probes there were before, so that the order of different probes does not matter.
func New(seed uint64) *Network {
	return &Network{seed: seed, sent: make(map[uint8]int), drawn: make(map[[2]uint16]uint64)}
}

// Chain makes a network of n nodes in a row, the last of which is the target, 192.0.2.n. The
// nodes before it are 10.0.0.1, 10.0.0.2 and so on. Each is delay away from the one before.
func Chain(seed uint64, n int, delay time.Duration) (*Network, []*Node) {
	net := New(seed)
	nodes := make([]*Node, n)
	from := &net.Source
	for i := range nodes {
		nodes[i] = &Node{Addr: netip.AddrFrom4([4]byte{10, 0, byte((i + 1) >> 8), byte(i + 1)}), Delay: delay}
		from.Next = []*Node{nodes[i]}
		from = nodes[i]
	}
	nodes[n-1].Addr = netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
	return net, nodes
}

// Link makes each node of from go on to all nodes of to.
func Link(from, to []*Node) {
	for _, f := range from {
		f.Next = append(f.Next, to...)
	}
}

// Change runs f, which may change nodes, while no probe is on its way through them.
func (n *Network) Change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// Sent gives the number of probes sent with each hop limit.
func (n *Network) Sent() map[uint8]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.sent)
}

// MaxInFlight gives the largest number of probes that were under way at the same time.
func (n *Network) MaxInFlight() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.top
}

// Probe sends one probe through the network. It is trace.Via's method.
func (n *Network) Probe(ctx context.Context, req probe.Request) (probe.Result, error) {
	if n.Err != nil {
		return probe.Result{Status: probe.Failed, Target: req.Target, Tag: req.Tag, Err: n.Err}, n.Err
	}
	sent := time.Now()
	res, after := n.walk(req, sent)
	res.Tag, res.Target, res.TTL, res.Flow, res.Sent = req.Tag, req.Target, req.TTL, req.Flow, sent
	if !res.Answered() || after > req.Timeout {
		res = probe.Result{
			Tag: req.Tag, Target: req.Target, TTL: req.TTL, Flow: req.Flow, Sent: sent, Status: probe.NoReply,
		}
		after = req.Timeout
	}
	defer n.land()
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
		return res, nil
	case <-ctx.Done():
		err := fmt.Errorf("probe %s: %w", req.Target, context.Cause(ctx))
		return probe.Result{Tag: req.Tag, Target: req.Target, TTL: req.TTL, Flow: req.Flow, Sent: sent, Status: probe.Failed, Err: err}, err
	}
}

func (n *Network) land() {
	n.mu.Lock()
	n.flying--
	n.mu.Unlock()
}

// walk follows the probe to where it ends. It gives the answer, without a responder if there is
// none, and how long it takes.
func (n *Network) walk(req probe.Request, now time.Time) (probe.Result, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent[req.TTL]++
	n.flying++
	n.top = max(n.top, n.flying)

	kind := [2]uint16{req.Flow, uint16(req.TTL)}
	n.drawn[kind]++
	n.rng = rand.New(rand.NewPCG(n.seed, uint64(kind[0])<<48|uint64(kind[1])<<40|n.drawn[kind]))
	flow := uint64(req.Flow)
	if flow == 0 {
		flow = n.rng.Uint64() | 1<<32
	}
	tos := req.TOS
	var rtt time.Duration
	at := &n.Source
	for hop := uint8(1); ; hop++ {
		if len(at.Next) == 0 || at.Firewall {
			return probe.Result{}, 0
		}
		at = n.next(at, flow, req.Target)
		rtt += 2 * at.Delay
		if at.Jitter > 0 {
			rtt += time.Duration(n.rng.Int64N(int64(at.Jitter)))
		}
		if at.Loss > 0 && n.rng.Float64() < at.Loss {
			return probe.Result{}, 0
		}
		if at.TOS > 0 {
			tos = at.TOS
		}
		var res probe.Result
		switch {
		case at.Addr == req.Target:
			res = replied(req)
		case hop == req.TTL:
			res = probe.Result{Status: probe.TimeExceeded, HasICMP: true, ICMPType: 11, QuotedTTL: 1}
			if req.Target.Is6() {
				res.ICMPType = 3
			}
		case at.Unreachable:
			res = probe.Result{
				Status: probe.HostUnreachable, HasICMP: true, ICMPType: 3, ICMPCode: at.Code, QuotedTTL: req.TTL - hop + 1,
			}
			if req.Target.Is6() {
				res.ICMPType = 1
			}
		default:
			continue
		}
		if !n.answers(at, now.Add(rtt)) {
			return probe.Result{}, 0
		}
		res.Responder, res.MPLS, res.QuotedTOS = at.Addr, at.MPLS, tos
		if at.Source.IsValid() {
			res.Responder = at.Source
		}
		if at.QuotedTTL > 0 {
			res.QuotedTTL = at.QuotedTTL
		}
		start := at.ReplyTTL
		if start == 0 {
			start = 255
			if at.Addr == req.Target {
				start = 64
			}
		}
		res.ReplyTTL = start - (hop - 1)
		res.RTT = rtt + at.AnswerDelay
		return res, res.RTT
	}
}

// replied is the target's answer: what a host without the service says.
func replied(req probe.Request) probe.Result {
	res := probe.Result{Status: probe.Replied}
	six := req.Target.Is6()
	switch req.Protocol {
	case probe.ICMP:
		res.HasICMP = true
		if six {
			res.ICMPType = 129
		}
	case probe.UDP:
		res.HasICMP, res.ICMPType, res.ICMPCode, res.QuotedTTL = true, 3, 3, 1
		if six {
			res.ICMPType, res.ICMPCode = 1, 4
		}
	case probe.TCP, probe.SCTP: // a segment of their own
	}
	return res
}

// next chooses the node that a probe goes on to.
func (n *Network) next(at *Node, flow uint64, target netip.Addr) *Node {
	if len(at.Next) == 1 {
		return at.Next[0]
	}
	var pick uint64
	switch at.Balance {
	case PerPacket:
		pick = n.rng.Uint64()
	case PerDestination:
		pick = hash(at, 0, target)
	default:
		pick = hash(at, flow, target)
	}
	if len(at.Weights) != len(at.Next) {
		return at.Next[pick%uint64(len(at.Next))]
	}
	total := 0
	for _, w := range at.Weights {
		total += w
	}
	rest := int(pick % uint64(total))
	for i, w := range at.Weights {
		if rest -= w; rest < 0 {
			return at.Next[i]
		}
	}
	return at.Next[0]
}

// hash mixes what a balancer looks at with who it is, so that balancers in a row decide
// independently of each other.
func hash(at *Node, flow uint64, target netip.Addr) uint64 {
	h := fnv.New64a()
	a := at.Addr.As16()
	h.Write(a[:])
	a = target.As16()
	h.Write(a[:])
	var f [8]byte
	binary.BigEndian.PutUint64(f[:], flow)
	h.Write(f[:])
	x := h.Sum64()
	// FNV's low bits depend on the low bits of its input only: finish as splitmix64 does.
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// answers tells whether a node says anything about a probe that ends there.
func (n *Network) answers(at *Node, now time.Time) bool {
	if at.Silent || at.AnswerLoss > 0 && n.rng.Float64() < at.AnswerLoss {
		return false
	}
	if at.RateLimit <= 0 {
		return true
	}
	burst := float64(max(1, at.Burst))
	if at.filled.IsZero() {
		at.tokens = burst
	} else if now.After(at.filled) {
		at.tokens = min(burst, at.tokens+at.RateLimit*now.Sub(at.filled).Seconds())
	}
	at.filled = now
	if at.tokens < 1 {
		return false
	}
	at.tokens--
	return true
}
