// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trust

const (
	windowWords = 32

	// windowSize is how far a message may fall behind the newest one of its session and still be taken: at least this
	// many messages.
	windowSize = (windowWords - 1) * 64
)

// A window remembers which counters were there, in the manner of RFC 6479: a ring of words, of which the newest holds
// the highest counter so far. The zero window has seen nothing.
type window struct {
	top  uint64 // highest word
	bits [windowWords]uint64
}

// admit reports whether a counter is new, and remembers it. A counter that is too old to tell is not.
func (w *window) admit(counter uint64) bool {
	word, bit := counter/64, uint64(1)<<(counter%64)
	switch {
	case word > w.top:
		for i := range min(word-w.top, windowWords) {
			w.bits[(word-i)%windowWords] = 0
		}
		w.top = word
	case w.top-word >= windowWords:
		return false
	}
	if w.bits[word%windowWords]&bit != 0 {
		return false
	}
	w.bits[word%windowWords] |= bit
	return true
}
