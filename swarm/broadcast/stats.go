// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

// Stats is what an engine has counted since it was made, and what it holds.
type Stats struct {
	Begun      uint64 // broadcasts that began here
	Injected   uint64 // broadcasts of originals that came in here
	Delivered  uint64 // broadcasts of others handed to Deliver
	Copies     uint64 // payloads received, pushed or fetched
	Duplicates uint64 // of these, not needed
	Pushed     uint64 // payloads pushed
	Offered    uint64 // offers made
	Failed     uint64 // pushes and offers that were not acknowledged
	Replaced   uint64 // parts given to another member for that
	Told       uint64 // messages of news sent
	Fetched    uint64 // broadcasts that came by repair
	Served     uint64 // broadcasts given to those who missed them
	Conflicts  uint64 // copies refused: not what their tag names
	Forged     uint64 // refused: not signed as they should be
	Stale      uint64 // refused: too old, or from the future
	Malformed  uint64 // refused: breaks a rule of the format
	Foreign    uint64 // refused: begun by an original
	Limited    uint64 // refused: too many, or from a member that misbehaved
	Dropped    uint64 // sends, news and wishes given up, as too many waited

	Tags      int // remembered
	Kept      int // payloads kept for repair
	KeptBytes int
	Missing   int // broadcasts heard of that have not come
	Waiting   int // pushes and offers that wait to be sent
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Tags, s.Kept, s.KeptBytes = len(e.memory.tags), len(e.items), e.keptBytes
	s.Missing, s.Waiting = len(e.missing), len(e.queue)
	return s
}
