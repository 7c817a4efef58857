// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

var (
	// ErrStale says that the store has a newer record of the publisher under the name.
	ErrStale = errors.New("a newer record is there")
	// ErrQuota says that the publisher has as many records in the store as one may have.
	ErrQuota = errors.New("too many records of one publisher")
	// ErrFull says that the store, or what it keeps of one name, is full.
	ErrFull = errors.New("no room for more records")
)

// StoreOptions are the bounds of a [Store]. The zero value is ready for use in an open swarm.
type StoreOptions struct {
	// Binding is that of the swarm.
	Binding member.Binding

	// MaxRecords bounds the store. A record takes some 600 bytes, and never more than 5 kB. 0: 4096. A full store
	// refuses new names and goes on renewing those it has: others can fill it, but push nobody out.
	MaxRecords int

	// MaxPerPublisher is how many names a publisher can have in the store. In an open swarm keys are for the taking,
	// so this holds back the careless rather than the hostile. 0: 64.
	MaxPerPublisher int

	// MaxPerName is how many publishers a name can have in the store. 0: 8. Above wire.MaxRecords, an answer would not
	// hold them.
	MaxPerName int
}

// A Store keeps the records that a member is in charge of, in memory. It is safe for concurrent use.
type Store struct {
	o StoreOptions

	mu         sync.Mutex // guards what follows
	names      map[member.ID][]entry
	publishers map[publisher]int // records of each
	records    int
	bytes      int
	swept      time.Time
	refused    uint64
}

type publisher [ed25519.PublicKeySize]byte

// An entry is the newest record of one publisher under one name.
type entry struct {
	publisher publisher
	sequence  uint64
	raw       []byte // never changed
	expires   time.Time

	// until is when the last record that was seen of the publisher expires, which may be an older one than this: an
	// entry stays that long, so that the older one is not taken for news.
	until time.Time
}

// NewStore returns an empty store.
func NewStore(o StoreOptions) *Store {
	o.MaxRecords = cmp.Or(max(o.MaxRecords, 0), 4096)
	o.MaxPerPublisher = cmp.Or(max(o.MaxPerPublisher, 0), 64)
	o.MaxPerName = min(cmp.Or(max(o.MaxPerName, 0), 8), wire.MaxRecords)
	return &Store{o: o, names: make(map[member.ID][]entry), publishers: make(map[publisher]int)}
}

// Put checks a record and keeps a copy of it, in place of an older one of the same publisher and name. It returns the
// key that the record lives under. Putting the same record again is no error. Otherwise the error wraps [ErrRecord],
// [ErrSignature], [ErrTime], [ErrStale], [ErrQuota], [ErrFull] or an error of [member.Contact.Verify].
func (s *Store) Put(record []byte, now time.Time) (member.ID, error) {
	key, err := s.put(record, now)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused++
		return member.ID{}, fmt.Errorf("put record: %w", err)
	}
	return key, nil
}

func (s *Store) put(raw []byte, now time.Time) (member.ID, error) {
	r, err := parse(raw)
	if err != nil {
		return member.ID{}, err
	}
	key, from := Key(r.Name), publisher(r.Contact.Key)
	// Neighbours hand the same records over again and again; that is to cost no signature, and no lock meanwhile.
	if s.has(key, from, raw) {
		return key, nil
	}
	if err := r.Check(s.o.Binding, now); err != nil {
		return member.ID{}, err
	}
	if err := r.verify(raw); err != nil {
		return member.ID{}, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked(now)
	list := s.names[key]
	e := entry{publisher: from, sequence: r.Sequence, raw: bytes.Clone(raw), expires: r.Expires, until: r.Expires}
	if i := slices.IndexFunc(list, func(e entry) bool { return e.publisher == from }); i >= 0 {
		old := list[i]
		switch {
		case bytes.Equal(raw, old.raw):
			return key, nil
		case r.Sequence <= old.sequence:
			return member.ID{}, ErrStale
		case old.until.After(e.until):
			e.until = old.until
		}
		list[i] = e
		s.bytes += len(e.raw) - len(old.raw)
		return key, nil
	}
	switch {
	case s.publishers[from] >= s.o.MaxPerPublisher:
		return member.ID{}, ErrQuota
	case len(list) >= s.o.MaxPerName || s.records >= s.o.MaxRecords:
		return member.ID{}, ErrFull
	}
	s.names[key] = append(list, e)
	s.publishers[from]++
	s.records++
	s.bytes += len(e.raw)
	return key, nil
}

func (s *Store) has(key member.ID, from publisher, raw []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.names[key], func(e entry) bool { return e.publisher == from && bytes.Equal(e.raw, raw) })
}

// sweepInterval is how often the store looks for what has expired: often enough that a full store soon takes new
// records, and seldom enough that the look at all records does not count.
const sweepInterval = time.Second

func (s *Store) sweepLocked(now time.Time) {
	if now.Sub(s.swept).Abs() < sweepInterval {
		return
	}
	s.swept = now
	for key, list := range s.names {
		kept := slices.DeleteFunc(list, func(e entry) bool {
			if now.Before(e.until) {
				return false
			}
			s.records--
			s.bytes -= len(e.raw)
			if s.publishers[e.publisher]--; s.publishers[e.publisher] == 0 {
				delete(s.publishers, e.publisher)
			}
			return true
		})
		if len(kept) == 0 {
			delete(s.names, key)
		} else {
			s.names[key] = kept
		}
	}
}

// Get returns the records under a key that have not expired, one of each publisher, in the order in which the
// publishers came. They are not to be changed.
func (s *Store) Get(key member.ID) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return appendLive(nil, s.names[key], time.Now())
}

// Range returns the records that have not expired with keys in (from, to], clockwise; all of them if both are equal.
// They come in the order of their keys, and under each as Get returns them, for members that take over a part of the
// ring: what they Put in this order they have in this order.
func (s *Store) Range(from, to member.ID) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []member.ID
	for key := range s.names {
		if key.In(from, to) {
			keys = append(keys, key)
		}
	}
	// The place of from itself comes last: it is the end of the whole ring.
	slices.SortFunc(keys, func(a, b member.ID) int { return b.Distance(from).Compare(a.Distance(from)) })
	var list [][]byte
	now := time.Now()
	for _, key := range keys {
		list = appendLive(list, s.names[key], now)
	}
	return list
}

func appendLive(list [][]byte, entries []entry, now time.Time) [][]byte {
	for _, e := range entries {
		if now.Before(e.expires) {
			list = append(list, e.raw)
		}
	}
	return list
}

// Stats are figures of a [Store].
type Stats struct {
	Names   int    // names with a record
	Records int    // records kept, with expired ones that are remembered as such
	Bytes   int    // size of these
	Refused uint64 // records that Put refused
}

// Stats returns the figures of the store as of now.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked(time.Now())
	return Stats{Names: len(s.names), Records: s.records, Bytes: s.bytes, Refused: s.refused}
}
