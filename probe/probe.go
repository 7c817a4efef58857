// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/packet"
)

// Limits and defaults of a [Request].
const (
	// DefaultTTL is the hop limit of a request that names none.
	DefaultTTL = 255
	// DefaultSize is the length of the whole IP packet, in bytes, of a request that names none.
	DefaultSize = 64
	// DefaultTimeout is how long a probe waits for its answer when the request does not say.
	DefaultTimeout = 10 * time.Second
	// MaxSize is the longest IP packet that a probe may be. IPv6 payload lengths and IPv4 total
	// lengths are 16 bits wide.
	MaxSize = 65535
	// MaxTimeout bounds [Request.Timeout].
	MaxTimeout = 24 * time.Hour
	// MaxFlow is how many flows differ from each other: source ports from 1024 on.
	MaxFlow = 65536 - lowestPort
	// DefaultTCPPort is the destination port of TCP and SCTP probes that name none.
	DefaultTCPPort = 80
)

// Protocol is what a probe is made of.
type Protocol uint8

// The protocols a probe can be made of. The zero value is ICMP echo.
const (
	ICMP Protocol = iota // echo request, of ICMP or ICMPv6 by the target's version
	UDP                  // a datagram; the answer is ICMP port unreachable, or a datagram back
	TCP                  // a SYN; the answer is a SYN-ACK or RST
	SCTP                 // an INIT chunk; the answer is an INIT-ACK or ABORT
)

// String gives the lower-case name that command lines use.
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case UDP:
		return "udp"
	case TCP:
		return "tcp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

// ParseProtocol is the inverse of [Protocol.String].
func ParseProtocol(s string) (Protocol, error) {
	for p := ICMP; p <= SCTP; p++ {
		if p.String() == s {
			return p, nil
		}
	}
	return 0, &RequestError{Field: "protocol", Value: s, Reason: "want icmp, udp, tcp or sctp"}
}

// Request describes one probe. Only Target must be set.
type Request struct {
	// Target is where the probe goes. An IPv6 link-local target carries its zone (fe80::1%eth0).
	Target netip.Addr
	// Protocol is ICMP unless set.
	Protocol Protocol
	// TTL is the IPv4 time to live or IPv6 hop limit; 0 means DefaultTTL.
	TTL uint8
	// TOS is the IPv4 type-of-service byte or the IPv6 traffic class.
	TOS uint8
	// Pattern fills the payload.
	Pattern byte
	// Port is the destination port. 0 means: for UDP a port that differs from probe to probe
	// (33434 and up, or 33434 itself when Flow is set), for TCP and SCTP DefaultTCPPort. ICMP ignores it.
	Port uint16
	// LocalPort is the source port of UDP probes. 0 lets the prober choose. TCP and SCTP
	// ignore it unless Flow is set, and then count flows up from it.
	LocalPort uint16
	// LocalAddr is the source address; the zero Addr leaves it to routing.
	LocalAddr netip.Addr
	// Interface is the name of the network interface to send through; empty leaves it to routing.
	Interface string
	// Mark is the Linux routing mark (SO_MARK); 0 means none.
	Mark uint32
	// Size is the length of the whole IP packet in bytes, at most MaxSize. 0 means DefaultSize;
	// smaller than the protocol's headers means just the headers. TCP and SCTP ignore it.
	Size int
	// Timeout is how long to wait for the answer; 0 means DefaultTimeout, less than 0 means not at all.
	Timeout time.Duration
	// Flow tells load balancers apart. With 0, probes differ from each other in the fields that
	// load balancers hash, as classic traceroute's and mtr's do. All probes with the same Flow above 0
	// (and the same target, protocol and ports) agree in every such field: addresses, protocol, ports,
	// the first four bytes of the transport header, the ICMP checksum, the IPv6 flow label. Different Flows differ in
	// at least one of them, up to MaxFlow; above it they may repeat. (Paris traceroute, Augustin et al. 2006.)
	Flow uint16
	// Tag is the caller's own number; the result carries it back.
	Tag uint64
}

// Status says how a probe ended.
type Status uint8

// How a probe can end. The comment gives mtr-packet's word for it.
const (
	_               Status = iota
	Replied                // the target answered: "reply"
	TimeExceeded           // a router on the way said that the TTL ran out: "ttl-expired"
	HostUnreachable        // a router, or the local kernel, said that the target can't be reached: "no-route-host"
	NetUnreachable         // this host has no route to the target: "no-route-network"
	NetworkDown            // the local network is down: "network-down"
	HostDown               // the local kernel says that the target is down: "host-down"
	NoReply                // nothing came back in time: "no-reply"
	Failed                 // it could not be sent, or was given up; Result.Err says why
)

var statusNames = [...]string{
	Replied: "reply", TimeExceeded: "time-exceeded", HostUnreachable: "host-unreachable", NetUnreachable: "net-unreachable",
	NetworkDown: "network-down", HostDown: "host-down", NoReply: "no-reply", Failed: "failed",
}

// String gives a lower-case name, as in JSON output.
func (s Status) String() string {
	if s > 0 && int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

// MarshalText gives String, so that JSON has the name.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *Status) UnmarshalText(text []byte) error {
	for i := Replied; i <= Failed; i++ {
		if i.String() == string(text) {
			*s = i
			return nil
		}
	}
	return fmt.Errorf("unknown status %q", text)
}

// Result is what became of one probe.
type Result struct {
	// Tag is the request's.
	Tag uint64
	// Target is the request's.
	Target netip.Addr
	// Status says which of the other fields mean something.
	Status Status
	// HasICMP tells that an ICMP message ended the probe, so that ICMPType and ICMPCode are set.
	HasICMP bool
	// ICMPType and ICMPCode are as received, in the numbers of the target's IP version.
	ICMPType, ICMPCode uint8
	// ReplyTTL is the hop limit left in the answer when it arrived, 0 if unknown.
	ReplyTTL uint8
	// QuotedTTL is the hop limit of our probe as the router quoted it (normally 1), 0 if nothing was quoted.
	QuotedTTL uint8
	// QuotedTOS is the TOS or traffic class of our probe as quoted: it differs from the request's where something on the way changed it.
	QuotedTOS uint8
	// KernelTimed tells that both ends of RTT are kernel time stamps. Otherwise the departure was
	// measured around the system call (batches, and systems without such stamps).
	KernelTimed bool
	// TTL is the hop limit that the probe was sent with.
	TTL uint8
	// Flow is the request's.
	Flow uint16
	// Responder sent the answer; the zero Addr if there was none, or it came from the local kernel.
	Responder netip.Addr
	// Receiver is where the answer came home, when probes are sent over something that listens at several
	// places, as the sites of an anycast address do; empty means at the sender.
	Receiver string
	// RTT is the time from departure to arrival; 0 if there was no answer, or if it came home at a place whose
	// clock is not known well enough (see Receiver).
	RTT time.Duration
	// ClockError bounds how far RTT may be off, either way, because departure and arrival were read from different
	// clocks; 0 if it was one clock.
	ClockError time.Duration
	// MTU is the next hop's MTU if the answer names one (fragmentation needed, packet too big).
	MTU uint32
	// Sent is when the probe left, by the wall clock; zero if it never did.
	Sent time.Time
	// MPLS is the label stack that the router put into its answer (RFC 4950), outermost first.
	MPLS []packet.Label
	// Err says why Status is Failed. It wraps one of this package's errors, or a system error.
	Err error
}

// Answered tells whether anything at all came back from the network.
func (r *Result) Answered() bool { return r.Responder.IsValid() }
