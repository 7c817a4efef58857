// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import "sync/atomic"

// counters count since the node was made.
type counters struct {
	lookups, lookupsFailed, passed, conflicts atomic.Uint64
	died, rejoined, merged                    atomic.Uint64
	strikes, banned, refused                  atomic.Uint64
}

// Stats is a snapshot of a node's counters and sizes.
type Stats struct {
	Lookups       uint64 // begun here
	LookupsFailed uint64
	Passed        uint64 // lookups of others that were answered
	Conflicts     uint64 // lookups with more than one member that claimed to own the key
	Died          uint64 // members dropped because they did not answer
	Rejoined      uint64 // times that all neighbours were lost and others found
	Merged        uint64 // members met that were in another ring
	Strikes       uint64 // messages that break the rules
	Banned        uint64 // members refused for too many of those
	Refused       uint64 // requests of such members
	Neighbours    int    // members in the lists, those before and those after
	Fingers       int
	Leaves        int // that this member is a host of
}

// Stats returns the counters.
func (n *Node) Stats() Stats {
	c := &n.count
	s := Stats{
		Lookups: c.lookups.Load(), LookupsFailed: c.lookupsFailed.Load(), Passed: c.passed.Load(),
		Conflicts: c.conflicts.Load(), Died: c.died.Load(), Rejoined: c.rejoined.Load(), Merged: c.merged.Load(),
		Strikes: c.strikes.Load(), Banned: c.banned.Load(), Refused: c.refused.Load(),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Neighbours, s.Fingers = len(n.table.after)+len(n.table.before), len(n.table.forward)+len(n.table.backward)
	s.Leaves = len(n.leaves)
	return s
}
