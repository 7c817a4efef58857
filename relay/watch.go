// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// An Action is what a relay did with a broadcast.
type Action string

// What a relay does.
const (
	Relayed Action = "relayed" // captured on the segment, sent to peers and other segments
	Emitted Action = "emitted" // put on the segment
	Dropped Action = "dropped"
)

// Event is a broadcast that a relay handled, for those who watch.
type Event struct {
	Time        time.Time      `json:"time"`
	Action      Action         `json:"action"`
	Reason      string         `json:"reason,omitempty"` // why it was dropped
	Interface   string         `json:"interface,omitempty"`
	Peer        string         `json:"peer,omitempty"` // whom it came from, over the mesh
	Source      netip.AddrPort `json:"source,omitzero"`
	Destination netip.AddrPort `json:"destination,omitzero"`
	MAC         string         `json:"mac,omitempty"` // the Ethernet address of who sent it
	Length      int            `json:"length"`        // of the payload, in bytes
	Text        string         `json:"text,omitempty"`
	// Missed is how many events before this one were left out because the watcher was slow.
	Missed uint64 `json:"missed,omitempty"`
}

// watchQueue is how many events wait for a slow watcher before some are left out.
const watchQueue = 1024

type watcher struct {
	events chan Event
	missed uint64
}

// watchers hand events out. Nobody watching costs one look at an atomic.
type watchers struct {
	active atomic.Int32
	mu     sync.Mutex
	list   []*watcher
}

// watched tells whether events are wanted.
func (w *watchers) watched() bool { return w.active.Load() > 0 }

func (w *watchers) tell(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, each := range w.list {
		e.Missed = each.missed
		select {
		case each.events <- e:
			each.missed = 0
		default:
			each.missed++
		}
	}
}

// add gives a channel of events until ctx ends; then it is closed.
func (w *watchers) add(ctx context.Context) <-chan Event {
	each := &watcher{events: make(chan Event, watchQueue)}
	w.mu.Lock()
	w.list = append(w.list, each)
	w.mu.Unlock()
	w.active.Add(1)
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.active.Add(-1)
		w.list = slices.DeleteFunc(w.list, func(other *watcher) bool { return other == each })
		close(each.events)
	})
	return each.events
}
