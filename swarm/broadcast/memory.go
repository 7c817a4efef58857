// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"time"

	"github.com/seed5728abee/fathom/swarm/wire"
)

// ForeignMemory is how long the tags of broadcasts that originals began are remembered. It is short, since they have to
// say the same again at times; those who missed one get it for a third of that.
const ForeignMemory = time.Minute

// memory knows which broadcasts have been seen. Tags are forgotten in the order of the second they were sent in, and
// nothing that was sent in a second forgotten, or before, is taken: so whatever is forgotten stays seen.
type memory struct {
	span    int64 // seconds
	limit   int   // tags
	tags    map[wire.Tag]struct{}
	seconds map[int64][]wire.Tag
	horizon int64 // the last second forgotten
}

func newMemory(span time.Duration, limit int) *memory {
	return &memory{
		span: int64(span / time.Second), limit: limit,
		tags: make(map[wire.Tag]struct{}), seconds: make(map[int64][]wire.Tag),
	}
}

func (m *memory) has(t wire.Tag) bool {
	_, ok := m.tags[t]
	return ok
}

// add remembers a tag that was sent at some time. It reports false if that is too long ago, or too far ahead, to tell
// whether it has been seen.
func (m *memory) add(t wire.Tag, sent, now time.Time) bool {
	m.forget(now)
	second := sent.Unix()
	if second > now.Unix()+m.span {
		return false
	}
	for len(m.tags) >= m.limit && m.horizon < second {
		m.drop()
	}
	if second <= m.horizon {
		return false
	}
	m.tags[t] = struct{}{}
	m.seconds[second] = append(m.seconds[second], t)
	return true
}

// forget lets go of what is older than the span.
func (m *memory) forget(now time.Time) {
	last := now.Unix() - m.span
	for m.horizon < last && len(m.tags) > 0 {
		m.drop()
	}
	m.horizon = max(m.horizon, last)
}

// drop forgets one more second.
func (m *memory) drop() {
	m.horizon++
	for _, t := range m.seconds[m.horizon] {
		delete(m.tags, t)
	}
	delete(m.seconds, m.horizon)
}
