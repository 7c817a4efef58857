// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// life is a record of identity n under a name from now on.
func life(tb testing.TB, n byte, name string, sequence uint64, d time.Duration) []byte {
	tb.Helper()
	now := time.Now()
	return sign(tb, n, Record{Name: name, Contact: contact(tb, n), Sequence: sequence, Issued: now, Expires: now.Add(d)})
}

// names lists "publisher name/sequence" of records.
func names(tb testing.TB, records [][]byte) (list []string) {
	tb.Helper()
	for _, b := range records {
		r, err := Decode(b)
		if err != nil {
			tb.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%d %s/%d", r.Contact.Addr().Addr().As4()[3], r.Name, r.Sequence))
	}
	return list
}

func expect(tb testing.TB, what string, records [][]byte, want ...string) {
	tb.Helper()
	if got := names(tb, records); !slices.Equal(got, want) {
		tb.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func put(tb testing.TB, s *Store, record []byte, want error) {
	tb.Helper()
	key, err := s.Put(record, time.Now())
	if !errors.Is(err, want) || (err == nil) != (want == nil) || (key == member.ID{}) != (want != nil) {
		tb.Errorf("Put: %s, %v, want %v", key.Short(), err, want)
	}
}

func TestStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(StoreOptions{Binding: member.ByKey})
		first := life(t, 1, "name", 5, time.Hour)
		put(t, s, first, nil)
		put(t, s, first, nil) // once more
		put(t, s, life(t, 2, "name", 1, time.Hour), nil)
		expect(t, "two publishers", s.Get(Key("name")), "1 name/5", "2 name/1")

		put(t, s, life(t, 1, "name", 4, time.Hour), ErrStale)
		put(t, s, life(t, 1, "name", 5, 2*time.Hour), ErrStale) // the same number for something else
		put(t, s, life(t, 1, "name", 6, time.Hour), nil)
		put(t, s, first, ErrStale)
		expect(t, "renewed, the first still first", s.Get(Key("name")), "1 name/6", "2 name/1")
		expect(t, "another name", s.Get(Key("Name")))

		forged := life(t, 3, "name", 1, time.Hour)
		forged[1]++
		put(t, s, forged, ErrSignature)
		put(t, s, nil, ErrRecord)
		put(t, s, sign(t, 3, record(t, 3, "name", 1)), ErrTime) // not of the bubble's time
		unbound := Record{Name: "name", Contact: contact(t, 3)}
		unbound.Contact.ID[0]++
		put(t, s, sign(t, 3, unbound), member.ErrUnbound)
		if got := s.Stats(); got.Names != 1 || got.Records != 2 || got.Refused != 7 || got.Bytes == 0 {
			t.Errorf("%+v", got)
		}

		time.Sleep(time.Hour)
		expect(t, "after an hour", s.Get(Key("name")))
		put(t, s, life(t, 3, "other", 1, time.Hour), nil)
		if got := s.Stats(); got.Names != 1 || got.Records != 1 {
			t.Errorf("what expired is kept: %+v", got)
		}
		time.Sleep(time.Hour)
		if got := s.Stats(); got != (Stats{Refused: 7}) {
			t.Errorf("an empty store: %+v", got)
		}
	})
}

// TestStoreWithdrawal holds that a short record takes a longer, older one back for good.
func TestStoreWithdrawal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(StoreOptions{Binding: member.ByKey})
		long := life(t, 1, "name", 1, 10*time.Hour)
		put(t, s, long, nil)
		put(t, s, life(t, 1, "name", 2, time.Second), nil)
		time.Sleep(time.Hour)
		expect(t, "withdrawn", s.Get(Key("name")))
		put(t, s, long, ErrStale)
		expect(t, "not to be handed over", s.Range(member.ID{}, member.ID{}))
		put(t, s, life(t, 1, "name", 3, time.Hour), nil)
		expect(t, "published again", s.Get(Key("name")), "1 name/3")
		time.Sleep(10 * time.Hour)
		if got := s.Stats(); got.Records != 0 {
			t.Errorf("%+v", got)
		}
	})
}

func TestStoreBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(StoreOptions{Binding: member.ByKey, MaxRecords: 6, MaxPerPublisher: 2, MaxPerName: 3})
		put(t, s, life(t, 1, "a", 1, time.Hour), nil)
		put(t, s, life(t, 1, "b", 1, time.Hour), nil)
		put(t, s, life(t, 1, "c", 1, time.Hour), ErrQuota)
		put(t, s, life(t, 2, "a", 1, time.Minute), nil)
		put(t, s, life(t, 3, "a", 1, time.Hour), nil)
		put(t, s, life(t, 4, "a", 1, time.Hour), ErrFull)
		put(t, s, life(t, 4, "b", 1, time.Hour), nil)
		put(t, s, life(t, 5, "b", 1, time.Hour), nil)
		put(t, s, life(t, 5, "c", 1, time.Hour), ErrFull)
		put(t, s, life(t, 1, "a", 2, time.Hour), nil) // a full store renews
		time.Sleep(time.Minute)
		put(t, s, life(t, 5, "c", 1, time.Hour), nil) // one has expired
		if got := s.Stats(); got.Records != 6 || got.Names != 3 {
			t.Errorf("%+v", got)
		}
	})
}

// TestStoreHandover moves all that a member has to another, in the order that Range gives.
func TestStoreHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := NewStore(StoreOptions{Binding: member.ByKey}), NewStore(StoreOptions{Binding: member.ByKey})
		var keys []member.ID
		for i := range 8 {
			name := fmt.Sprint("name ", i)
			keys = append(keys, Key(name))
			put(t, from, life(t, byte(2+i%2), name, 1, time.Hour), nil)
			put(t, from, life(t, byte(3-i%2), name, 1, time.Hour), nil)
		}
		slices.SortFunc(keys, member.ID.Compare)
		for _, c := range []struct {
			from, to member.ID
			want     []member.ID
		}{
			{keys[2], keys[5], keys[3:6]},
			{keys[5], keys[2], slices.Concat(keys[6:], keys[:3])},
			{keys[0], keys[0], slices.Concat(keys[1:], keys[:1])},
			{keys[0].After(0), keys[1].Before(0), nil},
			{member.ID{}, member.ID{}, keys},
		} {
			var got []member.ID
			for i, b := range from.Range(c.from, c.to) {
				r, err := Decode(b)
				if err != nil {
					t.Fatal(err)
				}
				if key := Key(r.Name); i%2 == 0 {
					got = append(got, key)
				} else if key != got[len(got)-1] {
					t.Error("the records of a name are not together")
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("(%s, %s]: got %v, want %v", c.from.Short(), c.to.Short(), got, c.want)
			}
		}
		for _, b := range from.Range(keys[0], keys[0]) {
			put(t, to, b, nil)
		}
		for _, key := range keys {
			expect(t, "handed over", to.Get(key), names(t, from.Get(key))...)
		}
	})
}

func TestStoreKeepsCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(StoreOptions{Binding: member.ByKey})
		b := life(t, 1, "name", 1, time.Hour)
		put(t, s, b, nil)
		clear(b)
		expect(t, "after the buffer was reused", s.Get(Key("name")), "1 name/1")
	})
}

func TestStoreConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(StoreOptions{Binding: member.ByKey})
		for n := range byte(4) {
			go func() {
				for i := range 20 {
					put(t, s, life(t, n+1, fmt.Sprint(i%5), uint64(i+1), time.Hour), nil)
					s.Get(Key("0"))
					s.Range(member.ID{}, Key("0"))
				}
			}()
		}
		synctest.Wait()
		if got := s.Stats(); got.Names != 5 || got.Records != 20 || got.Refused != 0 {
			t.Errorf("%+v", got)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	now := time.Now()
	known := life(b, 1, "name", 1, time.Hour)
	forged := life(b, 2, "name", 1, time.Hour)
	forged[1]++
	s := NewStore(StoreOptions{Binding: member.ByKey})
	if _, err := s.Put(known, now); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		record []byte
		want   error
	}{{"known", known, nil}, {"forged", forged, ErrSignature}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Put(c.record, now); !errors.Is(err, c.want) {
					b.Fatal(err)
				}
			}
		})
	}
}
