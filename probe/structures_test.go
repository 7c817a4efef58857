// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// someSlots gives memory for n slots, from 1.
func someSlots(n int) *slots {
	s := &slots{}
	for range (n + chunkSize) / chunkSize {
		s.chunks = append(s.chunks, new([chunkSize]slot))
	}
	return s
}

func (s *slots) list(head uint32, l int) (out []uint32) {
	for i := head; i != 0; {
		out = append(out, i)
		if i = s.at(i).links[l].next; i == head {
			break
		}
	}
	return out
}

// TestLists compares the lists with slices.
func TestLists(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 20
		s := someSlots(n)
		var heads [3]uint32
		var model [3][]uint32
		free := make([]uint32, 0, n)
		for i := uint32(1); i <= n; i++ {
			free = append(free, i)
		}
		which := rapid.IntRange(0, 2)
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				if len(free) == 0 {
					t.Skip()
				}
				k := which.Draw(t, "list")
				s.push(&heads[k], free[0], byTime)
				model[k] = append(model[k], free[0])
				free = free[1:]
			},
			"pushFront": func(t *rapid.T) {
				if len(free) == 0 {
					t.Skip()
				}
				k := which.Draw(t, "list")
				s.pushFront(&heads[k], free[0], byTime)
				model[k] = slices.Insert(model[k], 0, free[0])
				free = free[1:]
			},
			"pop": func(t *rapid.T) {
				k := which.Draw(t, "list")
				i := s.pop(&heads[k], byTime)
				if len(model[k]) == 0 {
					if i != 0 {
						t.Fatalf("popped %d from nothing", i)
					}
					return
				}
				if i != model[k][0] {
					t.Fatalf("popped %d, want %d", i, model[k][0])
				}
				model[k] = model[k][1:]
				free = append(free, i)
			},
			"remove": func(t *rapid.T) {
				k := which.Draw(t, "list")
				if len(model[k]) == 0 {
					t.Skip()
				}
				at := rapid.IntRange(0, len(model[k])-1).Draw(t, "at")
				i := model[k][at]
				s.remove(&heads[k], i, byTime)
				model[k] = slices.Delete(model[k], at, at+1)
				free = append(free, i)
			},
			"splice": func(t *rapid.T) {
				a, b := which.Draw(t, "to"), which.Draw(t, "from")
				if a == b {
					t.Skip()
				}
				s.splice(&heads[a], &heads[b], byTime)
				model[a], model[b] = append(model[a], model[b]...), nil
			},
			"": func(t *rapid.T) {
				for k := range heads {
					if got := s.list(heads[k], byTime); !slices.Equal(got, model[k]) {
						t.Fatalf("list %d: %v, want %v", k, got, model[k])
					}
					if n := s.length(heads[k], byTime); n != len(model[k]) {
						t.Fatalf("list %d: length %d, want %d", k, n, len(model[k]))
					}
				}
				for _, i := range free {
					if s.at(i).links[byTime] != (link{}) {
						t.Fatalf("slot %d is in no list, but linked", i)
					}
				}
			},
		})
	})
}

// TestWheel compares the wheel with a map of deadlines, over sleeps of all lengths.
func TestWheel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 30
		w := wheel{slots: someSlots(n)}
		model := map[uint32]int64{}
		due := map[uint32]int64{} // the tick at which it must have ended
		now := rapid.Int64Range(int64(time.Second), int64(time.Hour)).Draw(t, "start")
		w.expire(now, func(uint32) { t.Fatal("expired something of nothing") })
		expire := func(t *rapid.T) {
			var got []uint32
			w.expire(now, func(i uint32) { got = append(got, i) })
			for _, i := range got {
				if d, ok := model[i]; !ok || d > now {
					t.Fatalf("slot %d of deadline %d ended at %d", i, d, now)
				}
				delete(model, i)
			}
			for i, d := range model {
				if due[i] <= now/wheelTick {
					t.Fatalf("slot %d of deadline %d has not ended at %d", i, d, now)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				i := uint32(1)
				for _, ok := model[i]; ok; _, ok = model[i] {
					i++
				}
				if i > n {
					t.Skip()
				}
				after := rapid.OneOf(
					rapid.Int64Range(-int64(time.Second), int64(time.Second)),
					rapid.Int64Range(0, int64(time.Minute)),
					rapid.Int64Range(0, int64(MaxTimeout)),
					rapid.Just(wheelTick*wheelBuckets),
				).Draw(t, "after")
				w.slots.at(i).deadline = now + after
				w.add(i)
				model[i] = now + after
				due[i] = max(tickOf(now+after), now/wheelTick+1) // one that has passed: at the next
			},
			"remove": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip()
				}
				keys := make([]uint32, 0, len(model))
				for i := range model {
					keys = append(keys, i)
				}
				slices.Sort(keys)
				i := rapid.SampledFrom(keys).Draw(t, "slot")
				w.remove(i)
				delete(model, i)
			},
			"pass": func(t *rapid.T) {
				now += rapid.OneOf(
					rapid.Int64Range(0, 3*wheelTick), rapid.Int64Range(0, int64(time.Minute)), rapid.Int64Range(0, 2*int64(MaxTimeout)),
				).Draw(t, "time")
				expire(t)
			},
			"sleep": func(t *rapid.T) { // as long as the wheel says: nobody is late by more than a tick
				d := w.next(now)
				if len(model) == 0 {
					if d >= 0 {
						t.Fatalf("an empty wheel says %v", d)
					}
					return
				}
				first := int64(1 << 62)
				for _, deadline := range model {
					first = min(first, deadline)
				}
				if d < 0 || now+int64(d) > max(now, first)+2*wheelTick {
					t.Fatalf("next in %v, first deadline in %v", d, time.Duration(first-now))
				}
				now += int64(d)
				expire(t)
			},
			"": func(t *rapid.T) {
				if w.n != len(model) {
					t.Fatalf("%d slots, want %d", w.n, len(model))
				}
				for b := range w.buckets {
					if (w.buckets[b] != 0) != (w.used[b/64]&(1<<(b%64)) != 0) {
						t.Fatalf("bucket %d: wrong bit", b)
					}
				}
			},
		})
	})
}

// TestIndex compares the index with a map, through its growth and with many equal hashes.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 3000
		s := someSlots(n)
		x := newIndex(s, byFlow)
		model := map[uint32][]uint32{} // slots by hash, oldest first
		bits := rapid.SampledFrom([]uint32{0, 3, 0xff, 0xfffff}).Draw(t, "mask")
		steps := rapid.IntRange(1, n).Draw(t, "slots")
		for i := uint32(1); i <= uint32(steps); i++ {
			h := i * 2654435761 & bits
			s.at(i).hash[byFlow] = h
			x.add(i)
			model[h] = append(model[h], i)
		}
		seed := rapid.Uint32().Draw(t, "remove")
		for i := uint32(1); i <= uint32(steps); i++ {
			if (i*seed)>>31 == 0 {
				continue
			}
			h := s.at(i).hash[byFlow]
			x.remove(i)
			x.remove(i) // the second time it is not there
			model[h] = slices.DeleteFunc(model[h], func(k uint32) bool { return k == i })
		}
		left := 0
		for h, want := range model {
			left += len(want)
			if len(want) == 0 {
				if i := x.find(h, func(*slot) bool { return true }); i != 0 {
					t.Fatalf("hash %d: found %d, want nothing", h, i)
				}
				continue
			}
			if i := x.find(h, func(*slot) bool { return true }); i != want[0] {
				t.Fatalf("hash %d: found %d, want the oldest, %d", h, i, want[0])
			}
			last := want[len(want)-1]
			if i := x.find(h, func(p *slot) bool { return p == s.at(last) }); i != last {
				t.Fatalf("hash %d: found %d, want %d", h, i, last)
			}
			if i := x.find(h, func(*slot) bool { return false }); i != 0 {
				t.Fatalf("hash %d: found %d although none matches", h, i)
			}
		}
		if x.n != left {
			t.Fatalf("%d slots, want %d", x.n, left)
		}
	})
}

// TestHashes: identities that differ in one field only have different hashes, and tokens do not change the flow's.
func TestHashes(t *testing.T) {
	id := identity{proto: UDP, a: 1, b: 2, token: 3, dst: target[0]}
	exact, flow := id.hashes(42)
	for name, other := range map[string]identity{
		"protocol":    {proto: TCP, a: 1, b: 2, token: 3, dst: target[0]},
		"source":      {proto: UDP, a: 9, b: 2, token: 3, dst: target[0]},
		"destination": {proto: UDP, a: 1, b: 9, token: 3, dst: target[0]},
		"address":     {proto: UDP, a: 1, b: 2, token: 3, dst: target[0].Next()},
		"version":     {proto: UDP, v6: true, a: 1, b: 2, token: 3, dst: netip.AddrFrom16(target[0].As16())},
	} {
		e, f := other.hashes(42)
		if e == exact || f == flow {
			t.Errorf("another %s has the same hashes", name)
		}
	}
	token := id
	token.token++
	if e, f := token.hashes(42); e == exact || f != flow {
		t.Error("the token is not what the exact hash alone depends on")
	}
	if e, f := id.hashes(43); e == exact && f == flow {
		t.Error("the seed changes nothing")
	}
	// The source of an echo reply is anyone.
	echo := identity{proto: ICMP, a: 1, b: 2, dst: target[0]}
	e1, _ := echo.hashes(42)
	echo.dst = netip.Addr{}
	if e2, _ := echo.hashes(42); e1 != e2 {
		t.Error("the hash of an echo depends on the address")
	}
}

// TestCollisions: two identities with one hash are still two.
func TestCollisions(t *testing.T) {
	e, _ := fuzzEngine(t, func(Result) {})
	for i := uint32(1); i <= uint32(len(fuzzProbes())); i++ {
		s := e.slots.at(i)
		id := identity{proto: s.req.Protocol, v6: s.dst.Is6(), a: s.a, b: s.b, token: s.token, dst: s.dst}
		if got := e.lookup(s.hash[byIdentity], id); got != i {
			t.Fatalf("probe %d: found %d", i, got)
		}
		others := map[string]identity{}
		for _, field := range []string{"a", "b", "token", "version", "protocol", "dst"} {
			o := id
			switch field {
			case "a":
				o.a++
			case "b":
				o.b++
			case "token":
				o.token++
			case "version":
				o.v6 = !o.v6
			case "protocol":
				o.proto = (o.proto + 1) % 4
			case "dst":
				if o.proto == ICMP {
					continue // an echo reply may come from anywhere
				}
				o.dst = o.dst.Next()
			}
			others[field] = o
		}
		for field, o := range others {
			if got := e.lookup(s.hash[byIdentity], o); got != 0 {
				t.Errorf("probe %d: another %s found %d", i, field, got)
			}
		}
	}
}
