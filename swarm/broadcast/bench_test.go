// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// BenchmarkPush is a member in the middle of the tree: it takes a broadcast, delivers it, and passes it on to two.
func BenchmarkPush(b *testing.B) {
	for _, size := range []int{100, 10000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			e := newBench(40, Options{Rate: 1e9, Tags: 1 << 16})
			defer e.stop()
			p := copyOf(9, time.Now(), string(make([]byte, size)))
			t := newTable(e.self.ID, e.members)
			p.Limit = t.members[2].ID // so that two are before it
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				p.Sent++
				p.Tag = nativeTag(digest(p.Origin, p.Sent, nil, p.Payload))
				for {
					if _, ok := e.Handle(b.Context(), e.members[0], p).(wire.Pushed); ok {
						break
					}
				}
				e.forget()
			}
		})
	}
}

// BenchmarkDuplicate is a second copy.
func BenchmarkDuplicate(b *testing.B) {
	e := newBench(40, Options{Rate: 1e9})
	defer e.stop()
	var p wire.Message = copyOf(9, time.Now(), string(make([]byte, 100)))
	e.Handle(b.Context(), e.members[0], p)
	b.ReportAllocs()
	for b.Loop() {
		e.Handle(b.Context(), e.members[0], p)
	}
}

// BenchmarkHave is news of which all is known.
func BenchmarkHave(b *testing.B) {
	e := newBench(40, Options{Rate: 1e9})
	defer e.stop()
	var h wire.Have
	for i := range 100 {
		p := copyOf(9, time.Now(), fmt.Sprint(i))
		e.Handle(b.Context(), e.members[0], p)
		h.News = append(h.News, wire.News{Tag: p.Tag, Size: 2})
	}
	var m wire.Message = h
	b.ReportAllocs()
	for b.Loop() {
		e.Handle(b.Context(), e.members[1], m)
	}
}

func BenchmarkVerify(b *testing.B) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	for _, size := range []int{100, 1 << 20} {
		p := wire.Push{Key: key.Public().(ed25519.PublicKey), Sent: 1, Payload: make([]byte, size)}
		p.Origin = member.OfKey(p.Key)
		d := digest(p.Origin, p.Sent, nil, p.Payload)
		p.Tag, p.Signature = nativeTag(d), ed25519.Sign(key, signed(d))
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				if err := verify(p, member.ByKey, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSplit(b *testing.B) {
	var list []member.Contact
	for i := range uint64(60) {
		c := member.Contact{Dialect: member.Native}
		binary.BigEndian.PutUint64(c.ID[:], i<<56)
		list = append(list, c)
	}
	t := newTable(member.ID{1}, list)
	b.ReportAllocs()
	for b.Loop() {
		t.split(member.ID{}, member.ID{1}, degreeSmall, func(member.ID) bool { return false })
	}
}

// stop ends an engine that Run was not called for.
func (b *bench) stop() {
	b.cancel()
	b.running.Wait()
}

// forget drops what the bench has noted.
func (b *bench) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls, b.delivered = b.calls[:0], b.delivered[:0]
}
