// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// stamps keeps account of the departure stamps that the kernel owes a socket. It numbers
// the messages that ask for one, and so do we.
//
// Whether the kernel has counted a message that it refused depends on the reason and on its version. So after a
// refusal no stamp is asked for until those owed have come, perhaps from the end of a slow link's queue, and the
// numbers start again.
type stamps struct {
	next    uint32
	owed    int
	unsure  bool
	since   int64       // mono: when it became so
	awaited [256]Handle // of number k at k%len
}

const (
	// stampWait is how long stamps are waited for before the numbers start again: some may have been lost.
	stampWait = int64(2 * time.Second)
	// stampSlack is how far from our own time a stamp may lie. One farther off is from before
	// the clock was set, or after.
	stampSlack = 100 * time.Millisecond
)

// sure tells whether messages may ask for stamps now.
func (w *stamps) sure(e *engine, c rawio.Conn) bool {
	if w.unsure && (w.owed <= 0 || e.now-w.since > stampWait) && c.ResetStamps() == nil {
		w.next, w.owed, w.unsure = 0, 0, false
	}
	return !w.unsure
}

// await notes that slot i has asked for the next stamp.
func (w *stamps) await(e *engine, i uint32) {
	w.awaited[w.next%uint32(len(w.awaited))] = Handle{i, e.slots.at(i).gen}
	w.next++
	w.owed++
}

// refused notes that a message that asked for a stamp was refused.
func (w *stamps) refused(e *engine) {
	if !w.unsure {
		w.unsure, w.since = true, e.now
	}
}

// take gives the stamp in m to its probe.
func (w *stamps) take(e *engine, m *rawio.Message) {
	w.owed--
	if back := w.next - m.Failure.ID; m.Time == 0 || back == 0 || back > uint32(len(w.awaited)) {
		return
	}
	h := w.awaited[m.Failure.ID%uint32(len(w.awaited))]
	s := e.slots.at(h.slot)
	if s.gen != h.gen || s.state != slotFlying {
		return
	}
	if d := m.Time - s.sentWall; time.Duration(d).Abs() < stampSlack {
		s.sentWall, s.kernelSent = m.Time, true
		s.sentMono += d
	}
}
