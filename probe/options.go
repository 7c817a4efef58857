// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// Mode says which sockets a prober uses.
type Mode uint8

// Modes.
const (
	// Auto uses raw sockets if the process may open them, else Unprivileged.
	Auto Mode = iota
	// Privileged uses raw sockets, which need CAP_NET_RAW. All protocols, all options.
	Privileged
	// Unprivileged uses what any user may open: ICMP echo ("ping") sockets, where the
	// sysctl net.ipv4.ping_group_range lets the user's group, and UDP and TCP sockets.
	Unprivileged
)

// String gives the lower-case name.
func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case Privileged:
		return "privileged"
	case Unprivileged:
		return "unprivileged"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// DefaultMaxInFlight is how many probes may be in flight if Options does not say.
const DefaultMaxInFlight = 1 << 20

// DefaultFirstSequence is where sequence numbers start, as mtr 0.96's: the
// first port of classic traceroute, so that UDP probes go to ports nobody uses.
const DefaultFirstSequence = 33434

// Options configure a [Prober]. The zero value is good.
type Options struct {
	// Mode is Auto unless set.
	Mode Mode
	// MaxInFlight bounds the probes between Start and result; 0 means DefaultMaxInFlight.
	// Each costs about 400 bytes.
	MaxInFlight int
	// ICMPID is the identifier of echo requests, and the source port of UDP probes that name none (plus
	// 64512 if below 1024). 0 chooses a random one, and more than one identifier where
	// the 16-bit sequence numbers do not suffice for MaxInFlight.
	ICMPID uint16
	// FirstSequence is the lowest sequence number; 0 means DefaultFirstSequence. The numbers
	// from it to 65535 are used in turn, by all protocols.
	FirstSequence uint16
	// ReceiveBuffer is the size of each receive queue in bytes, 0 for 4 MiB (or what the system grants).
	ReceiveBuffer int
	// SendFrames sends probes in Ethernet frames of the prober's own (packet sockets), where that can be done.
	// This is faster by a fifth, over IPv6 by a third, but not what other programs of the host experience:
	// packets pass by its firewall, connection tracking, NAT and IPsec, and do not see routing rules for marks, protocols and ports.
	// A firewall that lets in only what belongs to a tracked connection drops their answers. A
	// change of a route or of a neighbour's Ethernet address is noticed after up to a second.
	//
	// Probes go through raw sockets as ever where frames cannot be had: without raw sockets, on systems other than
	// Linux, to this host and to groups, through tunnels and what else is not Ethernet, longer than the MTU, with
	// a mark, and while the neighbour's address is not known or has to be confirmed.
	//
	// It pays with many probes per target: each target costs a look-up per second that takes as long as two probes.
	SendFrames bool
	// Loop lets a program that is driven by descriptors share the prober's thread. Linux only.
	Loop *Loop

	// host is the system below, in tests an in-memory one.
	host rawio.Host
}

// Loop is for a program that reads requests from one descriptor and writes
// results to another, such as mtr-packet, and can't afford a switch between
// threads per request. All functions are called on the prober's goroutine and must not block.
type Loop struct {
	// In is watched for reading while WantRead returns true; OnReadable is called
	// when it is readable, at its end, or in error.
	In         int
	WantRead   func() bool
	OnReadable func()
	// Out is watched for writing while WantWrite returns true; OnWritable is called
	// when it is writable. OnBroken is called when nobody can read Out any more.
	Out        int
	WantWrite  func() bool
	OnWritable func()
	OnBroken   func()
	// AfterTurn is called at the end of each turn, when the results in hand have been
	// delivered and before the prober waits: the time to flush.
	AfterTurn func()
}

// Features tell what a prober can do, on this system and with the privileges it has.
type Features struct {
	// Mode is Privileged or Unprivileged.
	Mode Mode
	// IPv4 and IPv6 tell whether sockets of that version could be opened.
	IPv4, IPv6 bool
	// The protocols.
	ICMP, UDP, TCP, SCTP bool
	// Mark: requests may carry a routing mark. The kernel still checks the privilege for each.
	Mark bool
	// Interface: requests may name the interface to leave through.
	Interface bool
	// Flow: probes can keep every field constant that load balancers hash. In unprivileged mode the
	// system chooses the IPv6 flow label: constant, but not always different between flows.
	Flow bool
	// KernelTime: the kernel stamps arrivals and departures.
	KernelTime bool
	// Frames: probes are sent in frames where that can be done, see Options.SendFrames.
	Frames bool
	// Missing says what is missing and how to get it, one sentence each.
	Missing []string
}

// Supports tells whether probes of this protocol and IP version (4 or 6) can be sent.
func (f *Features) Supports(p Protocol, version int) bool {
	if version == 4 && !f.IPv4 || version == 6 && !f.IPv6 {
		return false
	}
	switch p {
	case ICMP:
		return f.ICMP
	case UDP:
		return f.UDP
	case TCP:
		return f.TCP
	case SCTP:
		return f.SCTP
	}
	return false
}

// Counters count since New. They tell what became of every packet that a prober looked at.
type Counters struct {
	Sent       uint64 // probes that left
	Framed     uint64 // of these: in frames, see Options.SendFrames
	Answered   uint64 // probes that something came back for
	TimedOut   uint64 // probes that nothing came back for
	Failed     uint64 // probes that could not be sent or were given up
	Retried    uint64 // sends that the system put off (full queue, no buffers)
	Received   uint64 // packets received
	Unmatched  uint64 // of these: answers to no probe in flight (late, duplicate, forged, or not ours)
	Malformed  uint64 // of these: not decodable
	Irrelevant uint64 // of these: of a kind that answers no probe
}
