// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package ring_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/ring"
	"github.com/seed5728abee/fathom/swarm/ring/ringtest"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// shelf is the simplest of stores: a record is a text, its key the hash of that.
type shelf struct {
	mu      sync.Mutex
	records map[member.ID][]byte
}

var errShelf = errors.New("not worth keeping")

func (s *shelf) Put(record []byte, _ time.Time) (member.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.HasPrefix(record, []byte("bad")) {
		return member.ID{}, errShelf
	}
	key := member.HashOf(record)
	s.records[key] = record
	return key, nil
}

func (s *shelf) Get(key member.ID) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.records[key]; r != nil {
		return [][]byte{r}
	}
	return nil
}

func (s *shelf) Range(from, to member.ID) (list [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, r := range s.records {
		if key.In(from, to) {
			list = append(list, r)
		}
	}
	return list
}

func TestRecordsOutliveTheirKeepers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ringtest.New(1, simnet.Options{}, ring.Options{})
		s.Options = func(o *ring.Options) { o.Records = &shelf{records: map[member.ID][]byte{}} }
		defer s.Close()
		if err := s.Grow(t.Context(), 10, 8); err != nil {
			t.Fatal(err)
		}
		const count = 40
		record := func(i int) []byte { return fmt.Appendf(nil, "record %d", i) }
		for i := range count {
			if err := s.Random().Put(t.Context(), member.HashOf(record(i)), record(i)); err != nil {
				t.Fatal(err)
			}
		}
		all := func(when string) {
			t.Helper()
			for i := range count {
				got, err := s.Random().Get(t.Context(), member.HashOf(record(i)))
				if err != nil || len(got) != 1 || !bytes.Equal(got[0], record(i)) {
					t.Fatalf("%s: record %d: %q, %v", when, i, got, err)
				}
			}
		}
		all("at once")
		time.Sleep(5 * time.Second)
		s.Kill(s.Pick(0.2)...)
		time.Sleep(10 * time.Second)
		all("after deaths")
		if err := s.Grow(t.Context(), 20, 8); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		all("after joins")
		s.Kill(s.Pick(0.1)...)
		time.Sleep(10 * time.Second)
		all("after joins and deaths")
		for len(s.Live()) > 3 {
			if err := s.Leave(t.Context(), s.Random()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		all("after all but three left")
		if got, err := s.Random().Get(t.Context(), s.Key()); len(got) > 0 || err != nil {
			t.Errorf("what was never put: %q, %v", got, err)
		}
		var refused wire.Refused
		if err := s.Random().Put(t.Context(), member.HashOf("bad"), []byte("bad")); !errors.As(err, &refused) || refused.Code != wire.Invalid {
			t.Errorf("a record that is refused: %v", err)
		}
	})
}

func TestWithoutStore(t *testing.T) {
	bubble(t, 2, func(t *testing.T, s *ringtest.Swarm) {
		var refused wire.Refused
		if err := s.Random().Put(t.Context(), s.Key(), []byte("x")); !errors.As(err, &refused) || refused.Code != wire.Unsupported {
			t.Errorf("put: %v", err)
		}
	})
}
