// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

const (
	replicas       = 3   // members after the owner that keep its records as well
	maxReplication = 256 // new records waiting to be sent to them
)

// handover says what has to be given to whom.
type handover struct {
	due      bool // neighbours changed
	fresh    [][]byte
	given    map[member.ID]bool // members after this one that have its records, and before it that have theirs
	previous member.ID          // the member before it when they were given
}

// maxOriginals is how many originals in a row a record's way leads past.
const maxOriginals = 32

// keeper returns the member that has the records under a key: its owner, or, since originals keep nothing, the first
// native member after that.
func (n *Node) keeper(ctx context.Context, key member.ID) (member.Contact, error) {
	for range maxOriginals {
		found, err := n.Lookup(ctx, key, LookupOptions{})
		if err != nil {
			return member.Contact{}, err
		}
		if found.Owner.Dialect == member.Native || found.Owner.ID == n.table.self {
			return found.Owner, nil
		}
		key = found.Owner.ID.After(0)
	}
	return member.Contact{}, fmt.Errorf("%w: originals only", ErrNotFound)
}

// Put stores a record at the owner of its key and the members after that.
func (n *Node) Put(ctx context.Context, key member.ID, record []byte) error {
	var err error
	for range lookupAttempts + 1 {
		var owner member.Contact
		if owner, err = n.keeper(ctx, key); err != nil {
			return fmt.Errorf("put: %w", err)
		}
		if owner.ID == n.table.self {
			if answer, refused := n.handleStore(wire.Store{Record: record}).(wire.Refused); refused {
				return fmt.Errorf("put: %w", answer)
			}
			return nil
		}
		if _, err = call[wire.Stored](ctx, n, owner, wire.Store{Record: record}); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
		n.doubt(ctx, owner, err)
	}
	return fmt.Errorf("put: %w", err)
}

// Get returns the records under a key, unchecked, from its owner, or from one of the members after it when the owner
// has none.
func (n *Node) Get(ctx context.Context, key member.ID) ([][]byte, error) {
	owner, err := n.keeper(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	var around wire.Neighbours
	if owner.ID == n.table.self {
		if n.o.Records != nil {
			if list := n.o.Records.Get(key); len(list) > 0 {
				return list, nil
			}
		}
		around = n.neighbours()
	} else {
		answer, err := call[wire.Records](ctx, n, owner, wire.Fetch{Key: key})
		if err == nil && len(answer.Records) > 0 {
			return answer.Records, nil
		}
		if around, err = call[wire.Neighbours](ctx, n, owner, wire.State{}); err != nil {
			return nil, fmt.Errorf("get: %w", err)
		}
	}
	for _, c := range around.Successors[:min(len(around.Successors), replicas)] {
		if c.Dialect != member.Native || c.ID == n.table.self {
			continue
		}
		if answer, err := call[wire.Records](ctx, n, c, wire.Fetch{Key: key}); err == nil && len(answer.Records) > 0 {
			return answer.Records, nil
		}
	}
	return nil, ctx.Err()
}

// handleStore keeps a record that belongs to this member or to one of the few before it.
func (n *Node) handleStore(m wire.Store) wire.Message {
	if n.o.Records == nil {
		return wire.Refused{Code: wire.Unsupported, Reason: ErrNoRecords.Error()}
	}
	key, err := n.o.Records.Put(m.Record, time.Now())
	if err != nil {
		return wire.Refused{Code: wire.Invalid, Reason: err.Error()}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	natives := 0
	for _, e := range n.table.before {
		if e.contact.Dialect != member.Native {
			continue
		}
		if natives++; natives > replicas && !key.In(e.contact.ID, n.self.ID) {
			return wire.Refused{Code: wire.NotOwner}
		}
	}
	if n.table.owns(key) && len(n.handover.fresh) < maxReplication {
		n.handover.fresh = append(n.handover.fresh, m.Record)
	}
	return wire.Stored{}
}

func (n *Node) handleFetch(m wire.Fetch) wire.Message {
	if n.o.Records == nil {
		return wire.Refused{Code: wire.Unsupported, Reason: ErrNoRecords.Error()}
	}
	list := n.o.Records.Get(m.Key)
	return wire.Records{Records: list[:min(len(list), wire.MaxRecords)]}
}

// handOver gives records to those who have to have them: new ones to the members after this one, all of its own to
// those who have become such, and to a new member before it what has become that one's.
func (n *Node) handOver(ctx context.Context) time.Duration {
	if n.o.Records == nil {
		return time.Hour
	}
	n.mu.Lock()
	var after []member.Contact
	for _, e := range n.table.after {
		if e.contact.Dialect == member.Native && len(after) < replicas {
			after = append(after, e.contact)
		}
	}
	before := contacts(n.table.before) // all: several may have come at a time
	fresh := n.handover.fresh
	n.handover.fresh = nil
	due := n.handover.due && time.Since(n.changed) > n.o.Interval/2 // when things have settled
	var given map[member.ID]bool
	previous := n.handover.previous
	if due {
		n.handover.due = false
		given, n.handover.given = n.handover.given, map[member.ID]bool{}
		for _, c := range slices.Concat(before, after) {
			n.handover.given[c.ID] = true
		}
		if len(before) > 0 {
			n.handover.previous = before[0].ID
		}
	}
	n.mu.Unlock()
	for _, c := range after {
		for _, record := range fresh {
			n.give(ctx, c, record)
		}
	}
	if !due || len(before) == 0 {
		return n.o.Interval / 4
	}
	own := n.o.Records.Range(before[0].ID, n.table.self)
	for _, c := range after {
		if !given[c.ID] || before[0].ID != previous { // then it may have become the owner of more
			for _, record := range own {
				n.give(ctx, c, record)
			}
		}
	}
	for i, c := range before {
		if given[c.ID] || c.Dialect != member.Native {
			continue
		}
		from := n.table.self // the last of a list that holds the whole ring
		if i+1 < len(before) {
			from = before[i+1].ID
		} else if i+1 == n.o.Neighbours {
			break // nobody knows here how far back its part goes
		}
		for _, record := range n.o.Records.Range(from, c.ID) {
			n.give(ctx, c, record)
		}
	}
	return n.o.Interval / 4
}

// handAllOn gives the records that the node owns, or keeps for others, to the member after it, before it leaves.
func (n *Node) handAllOn(ctx context.Context, after []member.Contact) {
	if n.o.Records == nil {
		return
	}
	for _, c := range after {
		if c.Dialect != member.Native {
			continue
		}
		for _, record := range n.o.Records.Range(n.table.self, n.table.self) {
			n.give(ctx, c, record)
		}
		return
	}
}

// give stores a record at another member, as far as it takes it.
func (n *Node) give(ctx context.Context, to member.Contact, record []byte) {
	if ctx.Err() == nil {
		_, _ = call[wire.Stored](ctx, n, to, wire.Store{Record: record}) // publishers renew what got lost
	}
}
