// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/simnet"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// A bench is one engine among members that only note what they get.
type bench struct {
	*Engine
	self    member.Contact
	members []member.Contact
	answer  func(to member.Contact, m wire.Message) (wire.Message, error) // nil: whatever pleases

	mu        sync.Mutex
	calls     []call
	casts     []call
	delivered []Message
	incidents []Incident
}

type call struct {
	to member.Contact
	m  wire.Message
}

var _ wire.Transport = (*bench)(nil)

func (b *bench) Call(_ context.Context, to member.Contact, m wire.Message) (wire.Message, error) {
	b.mu.Lock()
	b.calls = append(b.calls, call{to, m})
	b.mu.Unlock()
	if b.answer != nil {
		return b.answer(to, m)
	}
	if m.Kind() == wire.KindWant {
		return wire.Payloads{}, nil
	}
	return wire.Pushed{}, nil
}

func (b *bench) Cast(to member.Contact, m wire.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.casts = append(b.casts, call{to, m})
}

func (b *bench) RTT(member.ID) time.Duration { return 10 * time.Millisecond }

// onBench runs a test of an engine that knows n members, in a bubble.
func onBench(t *testing.T, n int, o Options, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(n, o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()
		f(t, b)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func newBench(n int, o Options) *bench {
	b := &bench{self: simnet.Contact(0)}
	for i := range n {
		b.members = append(b.members, simnet.Contact(1+i))
	}
	if o.Self != nil {
		b.self = o.Self()
	}
	o.Self = func() member.Contact { return b.self }
	o.Table = func() []member.Contact { return b.members }
	o.Neighbours = func() (before, after []member.Contact) { return nil, b.members }
	o.Transport = b
	o.Deliver = func(m Message) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.delivered = append(b.delivered, m)
	}
	o.Report = func(i Incident) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.incidents = append(b.incidents, i)
	}
	b.Engine = New(o)
	return b
}

// asks hands a message to the engine and returns the code it is refused with, 0 if it is taken.
func (b *bench) asks(from int, m wire.Message) wire.RefusalCode {
	switch a := b.Handle(context.Background(), simnet.Contact(from), m).(type) {
	case wire.Refused:
		return a.Code
	default:
		return 0
	}
}

// What has been noted so far.
func (b *bench) sent() []call { b.mu.Lock(); defer b.mu.Unlock(); return slices.Clone(b.calls) }

func (b *bench) told() []call { b.mu.Lock(); defer b.mu.Unlock(); return slices.Clone(b.casts) }

func (b *bench) got() []Message { b.mu.Lock(); defer b.mu.Unlock(); return slices.Clone(b.delivered) }

func (b *bench) reports() []Incident {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.incidents)
}

// copyOf returns a copy of a broadcast as it comes at the end of the tree.
func copyOf(origin int, sent time.Time, payload string) wire.Push {
	p := wire.Push{Origin: simnet.Contact(origin).ID, Sent: uint64(sent.UnixNano()), Limit: simnet.Contact(0).ID.After(0), Hops: 1, Payload: []byte(payload)}
	p.Tag = nativeTag(digest(p.Origin, p.Sent, p.Except, p.Payload))
	return p
}

func TestAltered(t *testing.T) {
	onBench(t, 5, Options{}, func(t *testing.T, b *bench) {
		good := copyOf(9, time.Now(), "hello")
		for i, alter := range []func(p *wire.Push){
			func(p *wire.Push) { p.Payload = []byte("hullo") },
			func(p *wire.Push) { p.Origin = simnet.Contact(8).ID },
			func(p *wire.Push) { p.Sent++ },
			func(p *wire.Push) { p.Except = []member.ID{b.self.ID} },
			func(p *wire.Push) { p.Tag[15]++ },
			func(p *wire.Push) { p.Tag[0] |= foreignBit },
		} {
			bad := good
			alter(&bad)
			if code := b.asks(100+i, bad); code != wire.Invalid {
				t.Errorf("alteration %d: %v", i, code)
			}
		}
		if len(b.got()) != 0 || len(b.sent()) != 0 {
			t.Errorf("delivered %v, sent %v", b.got(), b.sent())
		}
		// The true one still comes, and what differs from it is noticed as well.
		if code := b.asks(1, good); code != 0 {
			t.Errorf("the true copy: %v", code)
		}
		bad := good
		bad.Payload = []byte("hullo")
		if code := b.asks(200, bad); code != wire.Invalid {
			t.Errorf("an altered copy after the true one: %v", code)
		}
		if len(b.got()) != 1 || string(b.got()[0].Payload) != "hello" {
			t.Errorf("delivered %v", b.got())
		}
		if s := b.Stats(); s.Conflicts != 6 || s.Malformed != 1 {
			t.Errorf("%+v", s)
		}
		if i := b.reports()[6]; !errors.Is(i.Err, ErrConflict) || i.From != simnet.Contact(200).ID || i.Tag != good.Tag || i.Refused {
			t.Errorf("reported %+v", i)
		}
	})
}

// TestStrikes holds that a member is listened to no more after some misdeeds, for a while.
func TestStrikes(t *testing.T) {
	onBench(t, 5, Options{}, func(t *testing.T, b *bench) {
		bad := copyOf(9, time.Now(), "hello")
		bad.Payload = nil
		for range maxStrikes {
			b.asks(1, bad)
		}
		good := copyOf(9, time.Now(), "good")
		for _, m := range []wire.Message{good, wire.Offer{Tag: good.Tag}, wire.Want{}} {
			if code := b.asks(1, m); code != wire.Overloaded {
				t.Errorf("%s: %v", m.Kind(), code)
			}
		}
		b.asks(1, wire.Have{News: []wire.News{{Tag: good.Tag}}})
		if s := b.Stats(); s.Missing != 0 {
			t.Error("its news were taken")
		}
		if len(b.reports()) != maxStrikes || !b.reports()[maxStrikes-1].Refused {
			t.Errorf("reported %+v", b.reports())
		}
		if code := b.asks(2, good); code != 0 {
			t.Errorf("the same from another: %v", code)
		}
		time.Sleep(penalty)
		if code := b.asks(1, copyOf(9, time.Now(), "better")); code != 0 {
			t.Errorf("after the penalty: %v", code)
		}
	})
}

func TestSigned(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, ed25519.SeedSize))
	sign := func(key ed25519.PrivateKey, sent time.Time, payload string) wire.Push {
		p := wire.Push{Key: key.Public().(ed25519.PublicKey), Sent: uint64(sent.UnixNano()), Payload: []byte(payload)}
		p.Origin = member.OfKey(p.Key)
		d := digest(p.Origin, p.Sent, nil, p.Payload)
		p.Tag, p.Signature = nativeTag(d), ed25519.Sign(key, signed(d))
		return p
	}
	self := member.Contact{ID: member.OfKey(other.Public().(ed25519.PublicKey)), Dialect: member.Native, Key: other.Public().(ed25519.PublicKey)}
	onBench(t, 5, Options{
		Self: func() member.Contact { return self }, Binding: member.ByKey, Sign: func(m []byte) []byte { return ed25519.Sign(other, m) },
	}, func(t *testing.T, b *bench) {
		good := sign(key, time.Now(), "hello")
		bad := func(alter func(p *wire.Push)) wire.Push {
			p := good
			alter(&p)
			p.Tag = nativeTag(digest(p.Origin, p.Sent, p.Except, p.Payload))
			return p
		}
		for i, p := range []wire.Push{
			bad(func(p *wire.Push) { p.Payload = []byte("hullo") }),
			bad(func(p *wire.Push) { p.Sent++ }),
			bad(func(p *wire.Push) { p.Key, p.Signature = nil, nil }),
			bad(func(p *wire.Push) { p.Signature = nil }),
			bad(func(p *wire.Push) { p.Origin = b.self.ID }),
			bad(func(p *wire.Push) { p.Key = other.Public().(ed25519.PublicKey) }),
		} {
			if code := b.asks(100+i, p); code != wire.Invalid {
				t.Errorf("forgery %d: %v", i, code)
			}
		}
		foreign := wire.Push{Tag: ForeignTag([]byte("hello"), 1), Payload: []byte("hello")}
		if code := b.asks(200, foreign); code != wire.Unsupported {
			t.Errorf("of an original: %v", code)
		}
		if s := b.Stats(); s.Forged != 6 || s.Foreign != 1 || s.Delivered != 0 {
			t.Errorf("%+v", s)
		}
		if code := b.asks(1, good); code != 0 || len(b.got()) != 1 || !b.got()[0].Key.Equal(key.Public()) {
			t.Errorf("the true one: %v, %+v", code, b.got())
		}
		// What begins here satisfies another.
		if _, err := b.Broadcast(t.Context(), []byte("mine"), nil); err != nil {
			t.Fatal(err)
		}
		mine := b.sent()[len(b.sent())-1].m.(wire.Push)
		if err := verify(mine, member.ByKey, false); err != nil {
			t.Error(err)
		}
		if err := verify(mine, member.ByAddress, false); !errors.Is(err, ErrForm) {
			t.Errorf("in an open swarm: %v", err)
		}
	})
}

func TestReplay(t *testing.T) {
	onBench(t, 5, Options{}, func(t *testing.T, b *bench) {
		now := time.Now()
		for _, c := range []struct {
			sent time.Time
			want wire.RefusalCode
		}{
			{now.Add(-11 * time.Minute), wire.Stale},
			{now.Add(-9 * time.Minute), 0},
			{now, 0},
			{now.Add(9 * time.Minute), 0},
			{now.Add(11 * time.Minute), wire.Stale},
			{time.Unix(0, 0), wire.Stale},
			{time.Unix(0, -1), wire.Stale}, // 2^64-1, the year 2554
		} {
			if code := b.asks(1, copyOf(9, c.sent, "hello")); code != c.want {
				t.Errorf("sent at %v: %v, want %v", c.sent, code, c.want)
			}
		}
		if n := len(b.got()); n != 3 {
			t.Errorf("%d delivered", n)
		}
		if len(b.reports()) != 0 {
			t.Errorf("somebody's clock was reported: %v", b.reports())
		}
		// Again and again, until long after all has been forgotten.
		for range 30 {
			time.Sleep(time.Minute)
			for _, ago := range []time.Duration{-9 * time.Minute, 0, 9 * time.Minute} {
				b.asks(1, copyOf(9, now.Add(ago), "hello"))
			}
		}
		if n := len(b.got()); n != 3 {
			t.Errorf("%d delivered after replays", n)
		}
		if s := b.Stats(); s.Tags != 0 {
			t.Errorf("%d tags are remembered", s.Tags)
		}
	})
}

// TestFewTags holds that with more broadcasts than can be remembered the old ones are refused, not delivered again.
func TestFewTags(t *testing.T) {
	onBench(t, 5, Options{Tags: 100}, func(t *testing.T, b *bench) {
		var all []wire.Push
		for i := range 300 {
			all = append(all, copyOf(9, time.Now(), fmt.Sprint(i)))
			if code := b.asks(1, all[i]); code != 0 {
				t.Fatalf("broadcast %d: %v", i, code)
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, p := range all {
			b.asks(2, p)
		}
		if n := len(b.got()); n != len(all) {
			t.Errorf("%d delivered of %d", n, len(all))
		}
		if s := b.Stats(); s.Tags > 100 {
			t.Errorf("%d tags are remembered", s.Tags)
		}
	})
}

// TestForgedLimits holds that a hostile member cannot make another send more than so much.
func TestForgedLimits(t *testing.T) {
	onBench(t, 300, Options{}, func(t *testing.T, b *bench) {
		p := copyOf(9, time.Now(), "hello")
		for i := range member.Bits {
			p.Limit = b.self.ID.After(i)
			b.asks(1, p)
			p.Limit = b.self.ID.Before(member.Bits - 1 - i)
			b.asks(2, p)
		}
		p.Limit = b.self.ID
		for range 100 {
			b.asks(3, p)
			b.asks(3, wire.Offer{Tag: p.Tag, Limit: b.self.ID})
		}
		synctest.Wait()
		pushes := 0
		for _, c := range b.sent() {
			if c.m.Kind() == wire.KindPush {
				pushes++
			}
		}
		if n := len(b.sent()); n < 2 || n > maxSends || pushes > degreeSmall {
			t.Errorf("%d sent, %d with the payload", n, pushes)
		}
		p = copyOf(9, time.Now(), "far")
		p.Hops = maxHops + 1
		if code := b.asks(4, p); code != wire.Invalid {
			t.Errorf("%d hops: %v", p.Hops, code)
		}
		if code := b.asks(4, wire.Offer{Tag: wire.Tag{1}, Size: wire.MaxPayload + 1}); code != wire.Invalid {
			t.Errorf("an offer of too much: %v", code)
		}
	})
}

func TestFlood(t *testing.T) {
	onBench(t, 5, Options{Rate: 10}, func(t *testing.T, b *bench) {
		taken := 0
		for i := range 100 {
			if b.asks(1, copyOf(9, time.Now(), fmt.Sprint(i))) == 0 {
				taken++
			}
		}
		if taken != 20 {
			t.Errorf("%d of a flood were taken", taken)
		}
		if len(b.reports()) != 1 || !errors.Is(b.reports()[0].Err, ErrFlood) {
			t.Errorf("reported %+v", b.reports())
		}
		if code := b.asks(2, copyOf(9, time.Now(), "from another")); code != 0 {
			t.Errorf("another: %v", code)
		}
		time.Sleep(time.Second)
		if code := b.asks(1, copyOf(9, time.Now(), "later")); code != 0 {
			t.Errorf("later: %v", code)
		}
	})
}

// TestFalseNews holds that broadcasts that nobody has cost little and are forgotten.
func TestFalseNews(t *testing.T) {
	onBench(t, 5, Options{}, func(t *testing.T, b *bench) {
		for i := range 100 {
			news := make([]wire.News, wire.MaxTags)
			for k := range news {
				news[k] = wire.News{Tag: wire.Tag{1, byte(i), byte(k), byte(k >> 8)}}
			}
			b.asks(1, wire.Have{News: news})
		}
		b.asks(1, wire.Have{News: []wire.News{{Tag: wire.Tag{2}, Size: 1 << 60}, {Tag: wire.Tag{3}, Age: 1 << 63}}})
		s := b.Stats()
		if s.Missing != maxMissing || s.Dropped == 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Minute)
		if s := b.Stats(); s.Missing != 0 {
			t.Errorf("%d are still waited for", s.Missing)
		}
		if n := len(b.sent()); n > 2*maxMissing/wire.MaxTags {
			t.Errorf("%d wishes", n)
		}
	})
}

// TestFetch holds that a broadcast is asked of one after the other, and that what was not asked for is not taken.
func TestFetch(t *testing.T) {
	onBench(t, 5, Options{}, func(t *testing.T, b *bench) {
		wanted, other := copyOf(9, time.Now(), "wanted"), copyOf(9, time.Now(), "not wanted")
		altered := wanted
		altered.Payload = []byte("altered")
		var served atomic.Int32
		b.answer = func(to member.Contact, m wire.Message) (wire.Message, error) {
			if m.Kind() != wire.KindWant {
				return wire.Pushed{}, nil
			}
			served.Add(1)
			switch to.ID {
			case simnet.Contact(101).ID:
				return wire.Payloads{Pushes: []wire.Push{other, wanted}}, nil
			case simnet.Contact(102).ID:
				return wire.Payloads{Pushes: []wire.Push{altered}}, nil
			case simnet.Contact(103).ID:
				return nil, wire.ErrUnreachable
			case simnet.Contact(104).ID:
				return wire.Pong{}, nil
			}
			return wire.Payloads{Pushes: []wire.Push{wanted}}, nil
		}
		for from := range 4 {
			b.asks(101+from, wire.Have{News: []wire.News{{Tag: wanted.Tag, Size: 6}}})
		}
		time.Sleep(2 * time.Second)
		// One of the four does not answer, and is asked again.
		if n := served.Load(); n != 3+maxFailed || len(b.got()) != 0 {
			t.Errorf("%d asked, delivered %v", n, b.got())
		}
		if s := b.Stats(); s.Conflicts != 1 || s.Malformed != 1 || s.Missing != 0 {
			t.Errorf("%+v", s)
		}
		b.asks(105, wire.Have{News: []wire.News{{Tag: wanted.Tag, Size: 6}}})
		time.Sleep(2 * time.Second)
		if len(b.got()) != 1 || string(b.got()[0].Payload) != "wanted" {
			t.Errorf("delivered %v", b.got())
		}
	})
}

// TestServe bounds what members get by asking.
func TestServe(t *testing.T) {
	onBench(t, 5, Options{}, func(t *testing.T, b *bench) {
		big, err := b.Broadcast(t.Context(), make([]byte, 10<<20), nil)
		if err != nil {
			t.Fatal(err)
		}
		served := 0
		for range 100 {
			if p, ok := b.Handle(t.Context(), simnet.Contact(1), wire.Want{Tags: []wire.Tag{big, big, big}}).(wire.Payloads); ok {
				served += len(p.Pushes)
			}
		}
		if served != serveBurst/(10<<20) {
			t.Errorf("%d times 10 MiB", served)
		}
		for i := range 100 {
			if _, err := b.Broadcast(t.Context(), make([]byte, 10000+i), nil); err != nil {
				t.Fatal(err)
			}
		}
		var tags []wire.Tag
		for _, it := range b.order[1:] {
			tags = append(tags, it.push.Tag)
		}
		p := b.Handle(t.Context(), simnet.Contact(2), wire.Want{Tags: tags}).(wire.Payloads)
		if n := len(p.Pushes); n < 20 || n*10000 > maxTogether {
			t.Errorf("%d of 10 kB in one answer", n)
		}
		time.Sleep(2 * time.Minute)
		p = b.Handle(t.Context(), simnet.Contact(2), wire.Want{Tags: tags}).(wire.Payloads)
		if s := b.Stats(); len(p.Pushes) != 0 || s.Kept != 0 || s.KeptBytes != 0 {
			t.Errorf("%d kept, %d bytes, %d served after two minutes", s.Kept, s.KeptBytes, len(p.Pushes))
		}
	})
}

func TestKeepBytes(t *testing.T) {
	onBench(t, 5, Options{KeepBytes: 1 << 20}, func(t *testing.T, b *bench) {
		for i := range 50 {
			b.asks(1, copyOf(9, time.Now(), string(bytes.Repeat([]byte{byte(i)}, 100<<10))))
			if s := b.Stats(); s.KeptBytes > 1<<20 || s.Kept == 0 {
				t.Fatalf("%+v", s)
			}
		}
		if _, err := b.Broadcast(t.Context(), make([]byte, 4<<20), nil); err != nil {
			t.Fatal(err)
		}
		if s := b.Stats(); s.Kept != 1 {
			t.Errorf("%d kept, not the newest only", s.Kept)
		}
	})
}

// TestOwn holds that what began here is not delivered here, whoever sends it back.
func TestOwn(t *testing.T) {
	onBench(t, 5, Options{}, func(t *testing.T, b *bench) {
		if _, err := b.Broadcast(t.Context(), []byte("mine"), nil); err != nil {
			t.Fatal(err)
		}
		b.asks(1, b.sent()[0].m.(wire.Push))
		b.asks(1, copyOf(0, time.Now().Add(-time.Minute), "from before a restart"))
		if len(b.got()) != 0 {
			t.Errorf("delivered %v", b.got())
		}
	})
}

// TestReplace holds that the part of a member that does not answer goes to the next one known in it, and what is
// between the two to whom a lookup finds there.
func TestReplace(t *testing.T) {
	at := func(place byte) member.Contact { return member.Contact{ID: member.ID{place}, Dialect: member.Native} }
	self, dead, unknown, next, other := at(0x10), at(0x20), at(0x30), at(0x40), at(0x80)
	original := at(0x28)
	original.Dialect = member.Original
	onBench(t, 0, Options{
		Self: func() member.Contact { return self },
		Find: func(_ context.Context, place member.ID) (member.Contact, error) {
			for _, c := range []member.Contact{original, unknown, next} {
				if place.Compare(c.ID) <= 0 {
					return c, nil
				}
			}
			return self, nil
		},
	}, func(t *testing.T, b *bench) {
		b.members = []member.Contact{dead, next, other}
		b.answer = func(to member.Contact, _ wire.Message) (wire.Message, error) {
			if to.ID == dead.ID {
				return nil, wire.ErrUnreachable
			}
			return wire.Pushed{}, nil
		}
		p := copyOf(9, time.Now(), string(make([]byte, maxPushed+1))) // so large that the tree has a degree of 4
		p.Limit = self.ID
		many := []member.Contact{dead, next, at(0x41), at(0x42), at(0x43), other, at(0xc0)}
		b.members = many
		b.asks(1, p)
		synctest.Wait()
		limits := make(map[member.ID]member.ID)
		for _, c := range b.sent() {
			o, ok := c.m.(wire.Offer)
			if !ok {
				t.Fatalf("%s of %d bytes", c.m.Kind(), len(p.Payload))
			}
			limits[c.to.ID] = o.Limit
		}
		for _, c := range []struct{ to, limit member.Contact }{
			{dead, at(0x43)}, {next, at(0x43)}, {unknown, next}, {at(0x43), other}, {other, at(0xc0)}, {at(0xc0), self},
		} {
			if limits[c.to.ID] != c.limit.ID {
				t.Errorf("the part of %s ends at %s, want %s", c.to, limits[c.to.ID].Short(), c.limit)
			}
		}
		if len(limits) != 6 {
			t.Errorf("parts: %v", limits)
		}
		if s := b.Stats(); s.Failed != 1 || s.Replaced != 2 {
			t.Errorf("%+v", s)
		}
		// For a while it is passed over.
		before := len(b.sent())
		b.asks(1, copyOf(9, time.Now(), "hello"))
		q := copyOf(9, time.Now(), "hello again")
		q.Limit = self.ID
		b.asks(1, q)
		synctest.Wait()
		for _, c := range b.sent()[before:] {
			if c.to.ID == dead.ID {
				t.Error("who did not answer got a part again at once")
			}
		}
	})
}

// TestStaleOrigin holds that a member whose clock is wrong is told so.
func TestStaleOrigin(t *testing.T) {
	onBench(t, 5, Options{}, func(t *testing.T, b *bench) {
		b.answer = func(member.Contact, wire.Message) (wire.Message, error) {
			return nil, wire.Refused{Code: wire.Stale}
		}
		if _, err := b.Broadcast(t.Context(), []byte("hello"), nil); !errors.Is(err, ErrStale) {
			t.Error(err)
		}
	})
}

// TestOnlyNatives holds that nothing is ever sent to originals, nor to those of whom it is not known what they are.
func TestOnlyNatives(t *testing.T) {
	onBench(t, 30, Options{}, func(t *testing.T, b *bench) {
		for i := range b.members {
			b.members[i].Dialect = member.Dialect(i % 3)
		}
		if _, err := b.Broadcast(t.Context(), []byte("hello"), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if len(b.sent()) != 10 || len(b.told()) == 0 {
			t.Errorf("%d calls, %d casts", len(b.sent()), len(b.told()))
		}
		for _, c := range slices.Concat(b.sent(), b.told()) {
			if c.to.Dialect != member.Native {
				t.Errorf("%s to a member whose dialect is %s", c.m.Kind(), c.to.Dialect)
			}
		}
	})
}
