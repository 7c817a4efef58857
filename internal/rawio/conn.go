// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/net/bpf"
)

// BatchSize is how many messages one system call carries at most. Above 64 the
// cost of the system call is below a hundredth of that of the packets, and the
// buffers would leave the first-level cache.
const BatchSize = 64

// Message is one packet to send, or one that arrived. Fields that a kind of
// socket has no use for are ignored when sending and zero when receiving.
type Message struct {
	// Data is what to send. For receiving it is the buffer; N tells how much of it is filled.
	Data []byte
	// N is how many bytes of Data were received; what did not fit is lost, see Truncated.
	N int
	// Addr is where to send to, or who sent. Raw IPv4 sockets leave it zero when
	// receiving: the IP header, which they deliver, has the address.
	// From an error queue it is the destination of the packet that failed.
	Addr netip.AddrPort
	// Time is the kernel's time stamp in nanoseconds since 1970, 0 if it gave none:
	// the arrival for Receive, the departure for an error-queue entry of origin OriginTimestamp.
	Time int64
	// TTL is the hop limit: when sending, 0 leaves it to the system; when receiving, 0 is unknown.
	// Raw IPv4, header-included and Link sockets carry it in Data.
	TTL uint8
	// TOS is the type of service or traffic class, as TTL.
	TOS uint8
	// StampTX asks for a departure time stamp in the error queue. The socket counts
	// the messages sent with it from 0 on: that number comes back in Failure.ID.
	StampTX bool
	// Truncated tells that the packet was longer than Data.
	Truncated bool
	// IfIndex is the interface to send through, 0 for routing's choice; Link sockets need it.
	IfIndex int
	// Link is the Ethernet address to send to, for Link sockets.
	Link LinkAddr
	// Local is the address that an arrival came to, if Spec.ReceiveLocal asks for it.
	Local netip.Addr
	// Source is the source address to send from, for sockets that do not carry it in Data. For RawHeader
	// sockets of IPv6 it is a hint: while it is the same for all messages, and what routing chooses for them, the
	// kernel need not choose again for each, which takes about 5 % of the processor time of an echo.
	Source netip.Addr
	// Mark is the routing mark to send with; needs CAP_NET_RAW or CAP_NET_ADMIN at that moment.
	Mark uint32
	// Failure is what an entry of the error queue says.
	Failure Failure
}

// Origin says who made an entry of the error queue.
type Origin uint8

// Origins, as in linux/errqueue.h.
const (
	OriginNone      Origin = 0
	OriginLocal     Origin = 1 // this host's stack
	OriginICMP      Origin = 2
	OriginICMPv6    Origin = 3
	OriginTimestamp Origin = 4 // not an error: a departure time stamp
)

// Failure is an entry of a socket's error queue (struct sock_extended_err).
type Failure struct {
	Errno      uint32
	Origin     Origin
	Type, Code uint8  // of the ICMP message
	Info       uint32 // the MTU, for "packet too big"
	ID         uint32 // OriginTimestamp: which message, see Message.StampTX
	// ExtensionOffset is where in Data the ICMP extension structure (RFC 4884) begins, counted
	// in bytes, 0 if there is none.
	ExtensionOffset int
	// Offender sent the ICMP message.
	Offender netip.Addr
}

// Kind is a kind of socket.
type Kind uint8

// Kinds. The invalid zero catches a forgotten field.
const (
	_ Kind = iota
	// RawHeader sends whole IP packets, header included, and receives nothing (IPPROTO_RAW).
	RawHeader
	// Raw sends and receives one protocol. IPv4 delivers packets with their IP header, IPv6 without.
	Raw
	// Datagram is a UDP socket, or an ICMP echo ("ping") socket.
	Datagram
	// Link sends whole IP packets, complete to the last checksum, in Ethernet frames to Message.Link
	// through Message.IfIndex, past the host's routing and firewall, and receives nothing (AF_PACKET).
	Link
)

// sends tells that sockets of the kind receive nothing.
func (k Kind) sends() bool { return k == RawHeader || k == Link }

// LinkAddr is an Ethernet address.
type LinkAddr [6]byte

// NextHop says how the packets to a destination leave over Ethernet.
type NextHop struct {
	// Source is the address that routing chooses for them.
	Source netip.Addr
	// IfIndex is the interface that they leave through, and Link the address of the neighbour there: the
	// gateway, or the destination itself.
	IfIndex int
	Link    LinkAddr
	// MTU is how long a packet may be, in bytes.
	MTU int
	// Fresh tells that the host is sure of Link. Otherwise the neighbour has not been heard from for a while, and
	// a packet sent through a socket of another kind makes the host ask whether it is still there.
	Fresh bool
}

// ErrNoNeighbour says that the Ethernet address of a next hop is not known: the host has not asked for it yet, is
// asking, or got no answer. A packet sent through a socket of another kind makes it ask.
var ErrNoNeighbour = errors.New("no Ethernet address known for the neighbour")

// Spec describes a socket to open.
type Spec struct {
	Version  int // 4 or 6
	Kind     Kind
	Protocol int            // IP protocol number; RawHeader ignores it
	Local    netip.AddrPort // address and port to bind to; the zero value binds to nothing
	// ReceiveErrors turns the error queue on (IP_RECVERR), for Conn.ReceiveErrors.
	ReceiveErrors bool
	// ReceiveLocal fills Message.Local. Raw IPv4 sockets deliver it in Data anyway.
	ReceiveLocal bool
	// Filter drops packets in the kernel before they reach the socket.
	Filter []bpf.RawInstruction
	// ReceiveBuffer is the size of the receive queue in bytes, 0 for the system's.
	ReceiveBuffer int
}

// QueueState is what became of arrivals so far. The system charges a queue for more than the bytes of a packet: Linux at
// least 768 per packet.
type QueueState struct {
	// Size is how much the queue takes, in the bytes that the system charges for.
	Size int
	// Dropped counts arrivals that found it full, modulo 2^32.
	Dropped uint32
}

// Conn is a socket that works in batches. No method waits, none allocates.
// A Conn belongs to one goroutine.
type Conn interface {
	// Send sends the messages in order and tells how many the system took. If that is
	// fewer than len(msgs), err says why msgs[n] was refused; those after it were not tried.
	Send(msgs []Message) (n int, err error)
	// Receive fills messages from the front and tells how many; 0 means that nothing is there.
	Receive(msgs []Message) (n int, err error)
	// ReceiveErrors does the same for the error queue.
	ReceiveErrors(msgs []Message) (n int, err error)
	// SetFilter replaces the kernel filter.
	SetFilter(prog []bpf.RawInstruction) error
	// LocalAddr is the address and port that the socket is bound to, as far as it is.
	LocalAddr() netip.AddrPort
	// ResetStamps starts the count of StampTX messages again at 0.
	ResetStamps() error
	// Queue tells about the receive queue.
	Queue() (QueueState, error)
	Close() error
}

// Route says how a packet will leave, for [Host.Source] and [Host.NextHop].
type Route struct {
	Interface string
	Mark      uint32
}

// Host is what an engine needs of a system: sockets, the wait for them, and
// the source address that routing chooses. [NewHost] gives the kernel's;
// package rawiotest has an in-memory twin.
type Host interface {
	// Open opens a socket and adds it to the set that Wait watches, unless it receives nothing.
	Open(Spec) (Conn, error)
	// Source is the address that packets to dst leave from.
	Source(dst netip.Addr, via Route) (netip.Addr, error)
	// NextHop looks up how packets to dst leave over Ethernet. It fails with [ErrNoNeighbour], with
	// [errors.ErrUnsupported] where they do not (to the host itself, to a group, over
	// something else, in a tunnel), and as Source does where there is no route. A mark is not supported.
	NextHop(dst netip.Addr, via Route) (NextHop, error)
	// CheckLocal fails with EADDRNOTAVAIL if addr is not one of the host's.
	CheckLocal(addr netip.Addr) error
	// IfIndex is the number of a network interface.
	IfIndex(name string) (int, error)
	// Wait sleeps until a socket has something, Wake is called, or timeout has passed (negative: for ever).
	Wait(timeout time.Duration) error
	// Nap is Wait, whatever the sockets have: for one who would rather find several arrivals at once than be woken for each.
	Nap(timeout time.Duration) error
	// Wake ends the present or the next Wait or Nap. Any goroutine may call it.
	Wake()
	// Close closes what is left open.
	Close() error
}
