// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natsim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// lanDelay is the one-way delay of networks inside NATs.
const lanDelay = 100 * time.Microsecond

// Options of a network. The zero value is a perfect network.
type Options struct {
	Delay time.Duration // of the public network, one way; default 0
	// Jitter is added to Delay, evenly distributed from 0. It reorders datagrams.
	Jitter time.Duration
	// Loss is the probability that a packet is lost in the public network. Established TCP
	// connections lose nothing.
	Loss float64
	// Seed of the losses, of the jitter and of the ports of NATs.
	Seed uint64
}

// A Network is the public network, with everything behind it. Its methods and those of its hosts may be called
// from several goroutines.
type Network struct {
	opts   Options
	mu     sync.Mutex // guards everything of the network but what is inside sockets
	rng    *rand.Rand
	public segment
}

// New makes an empty network.
func New(o Options) *Network {
	n := &Network{opts: o, rng: rand.New(rand.NewPCG(o.Seed, 0))}
	n.public = segment{network: n, nodes: map[netip.Addr]node{}}
	return n
}

// Host puts a host into the public network.
func (n *Network) Host(addr netip.Addr) *Host { return n.public.host(addr) }

// NAT puts a NAT into the public network.
func (n *Network) NAT(addr netip.Addr, cfg NATConfig) *NAT { return n.public.nat(addr, cfg) }

// A segment is the public network, or the one inside a NAT.
type segment struct {
	network *Network
	nodes   map[netip.Addr]node
	gateway *NAT // nil in the public network
}

// A node takes packets that a segment has for its address.
type node interface{ receiveLocked(p packet) }

// put gives a node its address. That an address is used twice is a mistake in the test.
func (s *segment) put(addr netip.Addr, n node) {
	s.network.mu.Lock()
	defer s.network.mu.Unlock()
	if _, ok := s.nodes[addr]; ok || !addr.IsValid() {
		panic(fmt.Sprintf("natsim: address %v is taken, or none", addr))
	}
	s.nodes[addr] = n
}

func (s *segment) host(addr netip.Addr) *Host {
	h := &Host{
		network: s.network, segment: s, addr: addr, ephemeral: 32768,
		udp: map[uint16]*udpConn{}, listeners: map[uint16]*listener{}, conns: map[pair]*conn{},
	}
	s.put(addr, h)
	return h
}

func (s *segment) nat(addr netip.Addr, cfg NATConfig) *NAT {
	t := newNAT(s, addr, cfg)
	s.put(addr, t)
	return t
}

// packet is a datagram, or a step in setting up a connection.
type packet struct {
	proto    Protocol
	kind     kind
	src, dst netip.AddrPort
	data     []byte // of a datagram
	from     *conn  // whose SYN or SYN-ACK it is: stands for the initial sequence number
	acks     *conn  // which end of a connection is acknowledged or reset
}

// Protocol is UDP or TCP.
type Protocol uint8

// Protocols.
const (
	UDP Protocol = iota + 1
	TCP
)

// String is the protocol's name.
func (p Protocol) String() string {
	switch p {
	case UDP:
		return "UDP"
	case TCP:
		return "TCP"
	default:
		return fmt.Sprintf("Protocol(%d)", uint8(p))
	}
}

type kind uint8

const (
	datagram kind = iota
	syn
	synAck
	ack
	rst
)

// sendLocked takes a packet from a node of the segment to where it is going. What has no way there vanishes.
func (s *segment) sendLocked(p packet) {
	if to, ok := s.nodes[p.dst.Addr()]; ok {
		s.deliverLocked(to, p)
	} else if s.gateway != nil {
		s.gateway.outboundLocked(p)
	}
}

func (s *segment) deliverLocked(to node, p packet) {
	n := s.network
	delay := lanDelay
	if s.gateway == nil {
		if n.rng.Float64() < n.opts.Loss {
			return
		}
		delay = n.opts.Delay
		if n.opts.Jitter > 0 {
			delay += time.Duration(n.rng.Int64N(int64(n.opts.Jitter)))
		}
	}
	time.AfterFunc(delay, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		to.receiveLocked(p)
	})
}
