// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/member"
)

// Sizes of the data of messages, in bytes.
const (
	idSize   = len(member.ID{})
	addrSize = 6 // IPv4 address, port
	refSize  = idSize + addrSize
	nodeSize = refSize + 2*(1+refSize)
)

// A Ref names a member as originals do: by its ID and the IPv4 address it listens on. The zero Ref is nobody.
type Ref struct {
	ID   member.ID
	Addr netip.AddrPort
}

// IsZero reports whether r is nobody.
func (r Ref) IsZero() bool { return !r.Addr.IsValid() }

// A Node is what an original tells of its place on the ring.
type Node struct {
	Self        Ref
	Predecessor Ref // zero: none
	Successor   Ref // zero: none
}

// A JoinAnswer names the successor of the one that asked to join.
type JoinAnswer struct {
	Node      Node
	Successor Ref
}

// A Search is the data of a lookup: the ID whose owner is asked for, and what an application sends with it.
type Search struct {
	Key  member.ID
	Body []byte // empty or a [Body]
}

// A SearchAnswer names the owner of an ID. Hops is 1 from the one that knew it, and one more for each that passed the
// answer back.
type SearchAnswer struct {
	Key   member.ID
	Owner Ref
	Hops  uint16
}

// AppendJoin appends the data of a request to join: the address the member listens on.
func AppendJoin(b []byte, addr netip.AddrPort) []byte { return appendAddr(b, addr) }

// DecodeJoin reads the data of a request to join. The error wraps [ErrMessage].
func DecodeJoin(b []byte) (netip.AddrPort, error) {
	if len(b) != addrSize {
		return netip.AddrPort{}, fmt.Errorf("%w: %d bytes to join", ErrMessage, len(b))
	}
	return decodeAddr(b), nil
}

// AppendNode appends the data of a notification, or of an answer to an information request. Only IPv4 addresses can be
// told: a neighbour without one is left out.
func AppendNode(b []byte, n Node) []byte {
	b = appendRef(b, n.Self)
	for _, r := range [...]Ref{n.Predecessor, n.Successor} {
		if r.Addr.Addr().Unmap().Is4() {
			b = appendRef(append(b, 1), r)
			continue
		}
		b = append(b, 0)
		for range idSize {
			b = append(b, '0') // an original's idea of nothing
		}
		b = append(b, make([]byte, addrSize)...)
	}
	return b
}

// DecodeNode reads the data of a notification, or of an answer to an information request. Whatever follows is ignored,
// as by originals. The error wraps [ErrMessage].
func DecodeNode(b []byte) (Node, error) {
	if len(b) < nodeSize {
		return Node{}, fmt.Errorf("%w: %d bytes of a node's %d", ErrMessage, len(b), nodeSize)
	}
	n := Node{Self: decodeRef(b)}
	b = b[refSize:]
	for _, r := range [...]*Ref{&n.Predecessor, &n.Successor} {
		if b[0] != 0 {
			*r = decodeRef(b[1:])
		}
		b = b[1+refSize:]
	}
	return n, nil
}

// AppendJoinAnswer appends the data of an answer to a request to join.
func AppendJoinAnswer(b []byte, a JoinAnswer) []byte {
	return appendRef(AppendNode(b, a.Node), a.Successor)
}

// DecodeJoinAnswer reads the data of an answer to a request to join. The error wraps [ErrMessage].
func DecodeJoinAnswer(b []byte) (JoinAnswer, error) {
	n, err := DecodeNode(b)
	if err != nil {
		return JoinAnswer{}, err
	}
	if len(b) < nodeSize+refSize {
		return JoinAnswer{}, fmt.Errorf("%w: %d bytes of an answer's %d", ErrMessage, len(b), nodeSize+refSize)
	}
	return JoinAnswer{Node: n, Successor: decodeRef(b[nodeSize:])}, nil
}

// AppendSearch appends the data of a lookup.
func AppendSearch(b []byte, s Search) []byte {
	b = append(b, s.Key[:]...)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s.Body))), s.Body...)
}

// DecodeSearch reads the data of a lookup. Body shares memory with b. The error wraps [ErrMessage].
func DecodeSearch(b []byte) (Search, error) {
	if len(b) < idSize+4 {
		return Search{}, fmt.Errorf("%w: %d bytes of a lookup's %d", ErrMessage, len(b), idSize+4)
	}
	s := Search{Key: member.ID(b), Body: b[idSize+4:]}
	if n := binary.BigEndian.Uint32(b[idSize:]); uint64(n) != uint64(len(s.Body)) {
		return Search{}, fmt.Errorf("%w: a lookup with a body of %d bytes where %d are", ErrMessage, n, len(s.Body))
	}
	return s, nil
}

// AppendSearchAnswer appends the data of an answer to a lookup.
func AppendSearchAnswer(b []byte, a SearchAnswer) []byte {
	return binary.BigEndian.AppendUint16(appendRef(append(b, a.Key[:]...), a.Owner), a.Hops)
}

// DecodeSearchAnswer reads the data of an answer to a lookup. The error wraps [ErrMessage].
func DecodeSearchAnswer(b []byte) (SearchAnswer, error) {
	const size = idSize + refSize + 2
	if len(b) < size {
		return SearchAnswer{}, fmt.Errorf("%w: %d bytes of an answer's %d", ErrMessage, len(b), size)
	}
	return SearchAnswer{
		Key:   member.ID(b),
		Owner: decodeRef(b[idSize:]),
		Hops:  binary.BigEndian.Uint16(b[idSize+refSize:]),
	}, nil
}

// DecodeAccepted reads the data of an answer to a notification: whether the sender is the other's predecessor now. The
// error wraps [ErrMessage].
func DecodeAccepted(b []byte) (bool, error) {
	if len(b) == 0 {
		return false, fmt.Errorf("%w: an empty answer to a notification", ErrMessage)
	}
	return b[0] != 0, nil
}

// AppendAccepted appends the data of an answer to a notification.
func AppendAccepted(b []byte, accepted bool) []byte {
	if accepted {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendRef(b []byte, r Ref) []byte { return appendAddr(append(b, r.ID[:]...), r.Addr) }

func decodeRef(b []byte) Ref { return Ref{ID: member.ID(b), Addr: decodeAddr(b[idSize:])} }

// appendAddr writes what is not IPv4 as zeros.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	if ip := a.Addr().Unmap(); ip.Is4() {
		four := ip.As4()
		return binary.BigEndian.AppendUint16(append(b, four[:]...), a.Port())
	}
	return append(b, make([]byte, addrSize)...)
}

func decodeAddr(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[4:]))
}
