// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A leaf is a member that cannot be reached from outside, as its host sees it.
type leaf struct {
	contact member.Contact
	until   time.Time
}

// Leaves returns the leaves that the node is a host of, sorted by ID.
func (n *Node) Leaves() []member.Contact {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leavesLocked(time.Now())
}

func (n *Node) leavesLocked(now time.Time) []member.Contact {
	n.expireLeavesLocked(now)
	list := make([]member.Contact, 0, len(n.leaves))
	for _, l := range n.leaves {
		list = append(list, l.contact)
	}
	slices.SortFunc(list, func(a, b member.Contact) int { return a.ID.Compare(b.ID) })
	return list
}

func (n *Node) expireLeavesLocked(now time.Time) {
	for id, l := range n.leaves {
		if now.After(l.until) {
			delete(n.leaves, id)
		}
	}
}

// leafLocked returns the leaf with this ID, in a list of one, if there is one.
func (n *Node) leafLocked(id member.ID) []member.Contact {
	if l := n.leaves[id]; l != nil && time.Now().Before(l.until) {
		return []member.Contact{l.contact}
	}
	return nil
}

// hostsLocked returns the hosts of the leaf with this ID: the first members at or after it, as far as they are known.
func (n *Node) hostsLocked(id member.ID) []member.Contact {
	list := []member.Contact{n.self}
	for _, e := range [...][]*entry{n.table.after, n.table.before} {
		for _, other := range e {
			if other.contact.Dialect == member.Native && !names(list, other.contact.ID) {
				list = append(list, other.contact)
			}
		}
	}
	slices.SortFunc(list, nearest(id))
	return list[:min(len(list), member.MaxHosts)]
}

// handleAttach makes the node a host of a leaf whose place is close before its own.
func (n *Node) handleAttach(from member.Contact, m wire.Attach) wire.Message {
	c := m.From
	c.Hosts = nil
	if c.ID != from.ID || !c.Leaf || c.Verify(n.o.Binding) != nil {
		n.misbehaved(from.ID)
		return wire.Refused{Code: wire.Invalid, Reason: "not the sender's own contact, or not that of a leaf"}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	hosts := n.hostsLocked(c.ID)
	if !names(hosts, n.self.ID) {
		return wire.Refused{Code: wire.NotOwner, Reason: "others are closer to the leaf's place"}
	}
	if n.leaves[c.ID] == nil && len(n.leaves) >= n.o.MaxLeaves {
		if n.expireLeavesLocked(now); len(n.leaves) >= n.o.MaxLeaves {
			return wire.Refused{Code: wire.Overloaded, Reason: "host of too many leaves"}
		}
	}
	n.dropLocked(c.ID) // it may have had a place before
	n.memory.forget(c.ID)
	c.Hosts = hosts
	n.leaves[c.ID] = &leaf{c, now.Add(wire.AttachLife)}
	return wire.Attached{Hosts: hosts}
}

// attach makes the node, a leaf, known to its hosts, old and new.
func (n *Node) attach(ctx context.Context) time.Duration {
	soon := n.somewhat(n.o.Interval)
	owner, err := n.ownHost(ctx)
	if err == nil && owner.Dialect != member.Native {
		// An original is host of nobody.
		hosts, _ := n.hostsOf(ctx, n.table.self)
		if err = ErrNoEntry; len(hosts) > 0 {
			owner, err = hosts[0], nil
		}
	}
	if err != nil {
		n.mu.Lock()
		n.hosts = nil
		n.mu.Unlock()
		return soon
	}
	n.mu.Lock()
	self := n.selfLocked()
	n.mu.Unlock()
	attached, err := call[wire.Attached](ctx, n, owner, wire.Attach{From: self})
	if err != nil {
		n.doubt(ctx, owner, err)
		return soon
	}
	var all sync.WaitGroup
	var mu sync.Mutex // guards hosts
	hosts := []member.Contact{owner}
	for _, h := range attached.Hosts[:min(len(attached.Hosts), member.MaxHosts)] {
		if h.ID == owner.ID || h.Leaf || h.Dialect != member.Native || h.Verify(n.o.Binding) != nil {
			continue
		}
		all.Go(func() {
			if _, err := call[wire.Attached](ctx, n, h, wire.Attach{From: self}); err == nil {
				mu.Lock()
				defer mu.Unlock()
				hosts = append(hosts, h)
			}
		})
	}
	all.Wait()
	slices.SortFunc(hosts, nearest(self.ID))
	n.mu.Lock()
	n.hosts = hosts
	now := time.Now()
	for _, h := range hosts {
		n.table.insert(h, 0, now)
	}
	n.changed = now
	n.mu.Unlock()
	return n.somewhat(wire.AttachLife / 3)
}

// ownHost returns the member that owns the leaf's ID.
func (n *Node) ownHost(ctx context.Context) (member.Contact, error) {
	found, err := n.pass(ctx, n.table.self, 0)
	if err == nil && found.Owner.ID != n.table.self {
		return found.Owner, nil
	}
	err = ErrNoEntry
	for _, via := range n.outsiders(3) {
		limited, cancel := context.WithTimeout(ctx, patience)
		found, failure := call[wire.Found](limited, n, via, wire.Lookup{Key: n.table.self})
		cancel()
		if err = failure; err == nil && found.Owner.ID != n.table.self {
			return found.Owner, nil
		}
	}
	return member.Contact{}, err
}

// FindLeaf finds the leaf with an ID by asking those who are its hosts, or may be. [Node.Lookup] is quicker, and asks the owner of its
// place alone: that may be an original, or so new there that the leaf has not come to it yet. The error wraps [ErrNotFound].
func (n *Node) FindLeaf(ctx context.Context, id member.ID) (member.Contact, error) {
	n.mu.Lock()
	found := n.leafLocked(id)
	n.mu.Unlock()
	if len(found) == 0 {
		_, found = n.hostsOf(ctx, id)
	}
	if len(found) == 0 {
		return member.Contact{}, fmt.Errorf("leaf %s: %w", id.Short(), ErrNotFound)
	}
	return found[0], nil
}

// hostsOf asks members ever closer to a place for the hosts of a leaf there: the first native members at or after it, the nearest
// first. It ends early when one of them has the leaf.
func (n *Node) hostsOf(ctx context.Context, id member.ID) (hosts, leaf []member.Contact) {
	add := func(c member.Contact) {
		if c.Dialect == member.Native && !c.Leaf && c.ID != n.table.self && !names(hosts, c.ID) && c.Verify(n.o.Binding) == nil {
			hosts = append(hosts, c)
		}
	}
	n.mu.Lock()
	for _, c := range contacts(n.table.closest(id, wire.MaxNeighbours)) {
		add(c)
	}
	n.mu.Unlock()
	for _, c := range n.outsiders(passAttempts) {
		add(c)
	}
	asked := make(map[member.ID]bool)
	for range 2 * passAttempts {
		slices.SortFunc(hosts, nearest(id))
		hosts = hosts[:min(len(hosts), wire.MaxNeighbours)]
		i := slices.IndexFunc(hosts, func(c member.Contact) bool { return !asked[c.ID] })
		if i < 0 || i >= member.MaxHosts {
			break
		}
		c := hosts[i]
		asked[c.ID] = true
		limited, cancel := context.WithTimeout(ctx, patience)
		answer, err := call[wire.Closest](limited, n, c, wire.Step{Key: id, Count: wire.MaxNeighbours})
		cancel()
		if err != nil {
			hosts = slices.Delete(hosts, i, i+1)
			continue
		}
		if l := answer.Leaf; len(l) > 0 && l[0].ID == id && l[0].Leaf && l[0].Verify(n.o.Binding) == nil {
			leaf = l[:1]
			break
		}
		for _, other := range answer.Contacts {
			add(other)
		}
	}
	return hosts[:min(len(hosts), member.MaxHosts)], leaf
}

func dropHost(hosts *[]member.Contact, id member.ID) bool {
	before := len(*hosts)
	*hosts = slices.DeleteFunc(slices.Clone(*hosts), func(c member.Contact) bool { return c.ID == id })
	return len(*hosts) < before
}
