// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicada

import (
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/member"
)

// A standing is all that decides what an original can be sent at a moment. Its functions are asked under no lock.
type standing struct {
	self Ref // who we are to originals

	// unproved says that nothing has come from the other end: it may not even be an original.
	unproved bool
	// knowsSomebody says that it was seen, just now, to have a peer at all.
	knowsSomebody bool
	// knows reports whether it has a peer with this ID.
	knows func(member.ID) bool
	// awaits says which request of its own a sequence number was, if it still waits for the answer.
	awaits func(sequence uint32) (Type, bool)
	// live reports whether somebody can be reached: by a connection that stands, or by an answer just received.
	live func(Ref) bool
}

// check decides whether a message may be sent to an original, and with what is known of it. Every rule is a way in which
// originals were seen to break: the message is fine by their protocol, and one of their threads ends all the same.
func check(m Message, s standing) error {
	if !usable(s.self) {
		return fmt.Errorf("%w: %s: we have no address that it could be told", ErrForbidden, m.Type)
	}
	if len(m.Data) > MaxMessage-MinMessage-responseHeader {
		return fmt.Errorf("%w: %s: %d bytes", ErrForbidden, m.Type, len(m.Data))
	}
	if m.Response {
		return checkResponse(m, s)
	}
	// It looks the sender up, and for a broadcast does not do without.
	relayed := m.Sender != s.self.ID
	if relayed && !s.knows(m.Sender) {
		return fmt.Errorf("%w: %s in the name of %s, whom it does not know", ErrForbidden, m.Type, m.Sender.Short())
	}
	switch m.Type {
	case Join:
		addr, err := DecodeJoin(m.Data)
		if err != nil || relayed || addr != s.self.Addr {
			return fmt.Errorf("%w: join of %s", ErrForbidden, addr)
		}
	case Info:
		if len(m.Data) != 0 || relayed {
			return fmt.Errorf("%w: info with data", ErrForbidden)
		}
	case Notify:
		n, err := DecodeNode(m.Data)
		if err != nil || relayed || len(m.Data) != nodeSize || n.Self != s.self {
			return fmt.Errorf("%w: malformed notification", ErrForbidden)
		}
		if s.unproved || !s.knowsSomebody {
			return fmt.Errorf("%w: notify to one that knows nobody", ErrForbidden)
		}
		return checkNeighbours(n, s)
	case Lookup:
		search, err := DecodeSearch(m.Data)
		if err != nil {
			return fmt.Errorf("%w: malformed lookup", ErrForbidden)
		}
		if s.unproved || !s.knowsSomebody {
			return fmt.Errorf("%w: lookup by one that knows nobody", ErrForbidden)
		}
		return checkBody(m, search.Body, relayed, s)
	default:
		return fmt.Errorf("%w: %s", ErrForbidden, m.Type)
	}
	return nil
}

// checkBody looks at what the application of an original will get.
func checkBody(m Message, b []byte, relayed bool, s standing) error {
	if len(b) == 0 {
		if relayed {
			return fmt.Errorf("%w: lookup in another's name", ErrForbidden)
		}
		return nil
	}
	body, err := DecodeBody(b)
	switch {
	case err != nil:
		return fmt.Errorf("%w: malformed body", ErrForbidden)
	case !body.Broadcast && relayed:
		return fmt.Errorf("%w: a message in another's name", ErrForbidden)
	case body.Broadcast && !s.knows(m.Sender):
		return fmt.Errorf("%w: broadcast by %s, whom it does not know", ErrForbidden, m.Sender.Short())
	case len(body.Visited) >= MaxVisited:
		return fmt.Errorf("%w: %d visited members", ErrForbidden, len(body.Visited))
	}
	return nil
}

func checkResponse(m Message, s standing) error {
	kind, waits := s.awaits(m.RequestSequence)
	if !waits || kind != m.Type {
		return fmt.Errorf("%w: an answer (%s) that it does not wait for", ErrForbidden, m.Type)
	}
	if m.Sender != s.self.ID {
		return fmt.Errorf("%w: an answer in the name of %s", ErrForbidden, m.Sender.Short())
	}
	switch m.Type {
	case Info:
		n, err := DecodeNode(m.Data)
		if err != nil || len(m.Data) != nodeSize || n.Self != s.self || n.Predecessor.IsZero() || n.Successor.IsZero() {
			return fmt.Errorf("%w: an answer without both neighbours", ErrForbidden)
		}
		return checkNeighbours(n, s)
	case Join:
		a, err := DecodeJoinAnswer(m.Data)
		if err != nil || len(m.Data) != nodeSize+refSize || a.Node.Self != s.self || a.Node.Successor.IsZero() {
			return fmt.Errorf("%w: an answer without a successor", ErrForbidden)
		}
		if !usable(a.Successor) || !s.live(a.Successor) {
			return fmt.Errorf("%w: a successor that is not there: %s", ErrForbidden, a.Successor.Addr)
		}
		return checkNeighbours(a.Node, s)
	case Lookup:
		a, err := DecodeSearchAnswer(m.Data)
		if err != nil || a.Hops == 0 {
			return fmt.Errorf("%w: malformed answer to a lookup", ErrForbidden)
		}
		if !usable(a.Owner) || !s.live(a.Owner) {
			return fmt.Errorf("%w: an owner that is not there: %s", ErrForbidden, a.Owner.Addr)
		}
	case Notify:
		if len(m.Data) != 1 || m.Data[0] > 1 {
			return fmt.Errorf("%w: malformed answer to a notification", ErrForbidden)
		}
	default:
		return fmt.Errorf("%w: %s", ErrForbidden, m.Type)
	}
	return nil
}

// checkNeighbours looks at the neighbours that we say we have: an original dials them, and does not expect to fail.
func checkNeighbours(n Node, s standing) error {
	for _, r := range [...]Ref{n.Predecessor, n.Successor} {
		if !r.IsZero() && (!usable(r) || !s.live(r)) {
			return fmt.Errorf("%w: a neighbour that is not there: %s", ErrForbidden, r.Addr)
		}
	}
	return nil
}

var broadcastAddr = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// usable reports whether an original could dial somebody.
func usable(r Ref) bool {
	ip := r.Addr.Addr()
	return ip.Is4() && !ip.IsUnspecified() && !ip.IsMulticast() && ip != broadcastAddr && r.Addr.Port() != 0
}
