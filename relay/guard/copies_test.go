// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// Some who send on a segment.
var (
	host    = MAC{2, 0, 0, 0, 0, 1}
	host2   = MAC{2, 0, 0, 0, 0, 2}
	other   = MAC{2, 0, 0, 0, 1, 1} // a relay that is not ours
	self    = MAC{2, 0, 0, 0, 2, 1}
	partner = MAC{2, 0, 0, 0, 2, 2}
)

const (
	ms = int64(time.Millisecond)
	s  = int64(time.Second)
)

func testKey(n int) Key {
	return KeyOf(netip.MustParseAddrPort("192.0.2.1:5076"), 5076, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

func newCopies() *Copies {
	c := new(Copies)
	c.SetOwn([]MAC{self})
	return c
}

func TestKey(t *testing.T) {
	src := netip.MustParseAddrPort("192.0.2.1:5076")
	base := KeyOf(src, 5076, []byte("search"))
	if KeyOf(netip.AddrPortFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 5076), 5076, []byte("search")) != base {
		t.Error("the key depends on how the address is written")
	}
	different := []Key{
		base,
		KeyOf(src, 5075, []byte("search")),
		KeyOf(src, 5076, []byte("searcH")),
		KeyOf(src, 5076, nil),
		KeyOf(netip.MustParseAddrPort("192.0.2.1:5077"), 5076, []byte("search")),
		KeyOf(netip.MustParseAddrPort("192.0.2.2:5076"), 5076, []byte("search")),
		KeyOf(netip.MustParseAddrPort("[2001:db8::1]:5076"), 5076, []byte("search")),
		KeyOf(netip.MustParseAddrPort("[2001:db8:0:1::1]:5076"), 5076, []byte("search")),
		KeyOf(netip.MustParseAddrPort("0.0.0.0:5076"), 5076, []byte("search")),
		base.of(0), base.of(1), base.of(LocalSource(0)), base.of(LocalSource(1)),
	}
	for i, k := range different {
		if j := slices.Index(different, k); j != i || k == 0 {
			t.Errorf("keys %d and %d are both %x", i, j, k)
		}
	}
}

// TestKeySpreads puts many keys that differ little into sets: with a good hash
// the fullest of 1024 sets has few more than its share of 64.
func TestKeySpreads(t *testing.T) {
	for name, key := range map[string]func(i int) Key{
		"payload": testKey,
		"port": func(i int) Key {
			return KeyOf(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i)), 5076, nil)
		},
		"address": func(i int) Key {
			return KeyOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 5076), 5076, nil)
		},
		"source": func(i int) Key { return Key(42).of(uint32(i)) },
	} {
		var sets [1024]int
		for i := range 64 << 10 {
			sets[key(i)>>32%1024]++
		}
		if most := slices.Max(sets[:]); most > 120 {
			t.Errorf("keys that differ in %s: %d in one set, want about 64", name, most)
		}
	}
}

// A step is something that happens to a datagram; want is what Copies says.
type step struct {
	at    time.Duration
	from  MAC
	peer  uint32 // 0: captured; otherwise received from this peer
	want  drop.Reason
	times int // 0 is 1
}

func TestCopies(t *testing.T) {
	const (
		yes         = drop.None
		copied      = drop.Copy
		rebroadcast = drop.Rebroadcast
	)
	millis := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for name, steps := range map[string][]step{
		"repeats of a host are relayed each": {
			{from: host, times: 100},
			{at: millis(999), from: host, times: 2},
			{at: millis(5000), from: host},
		},
		"repeats of a peer are emitted each": {
			{from: host, peer: 1, times: 100},
			{at: millis(999), from: host, peer: 1, times: 2},
			{at: millis(5000), from: host, peer: 1},
		},
		"a second way adds nothing": {
			{from: host, peer: 1},
			{from: host, peer: 2, want: copied},
			{at: millis(10), from: host, peer: 2},
			{at: millis(20), from: host, peer: 1, want: copied},
		},
		"a second way that is far behind in a burst adds nothing": {
			{from: host, peer: 1, times: 150},
			{at: millis(300), from: host, peer: 2, times: 150, want: copied},
		},
		"what one way loses comes by the other": {
			{from: host, peer: 1, times: 3},
			{at: millis(1), from: host, peer: 2, times: 3, want: copied},
			{at: millis(2), from: host, peer: 2, times: 2},
			{at: millis(3), from: host, peer: 1, times: 2, want: copied},
		},
		"a repeat on the edge of the second is no duplicate": {
			{from: host, peer: 1},
			{at: millis(5), from: host, peer: 2, want: copied},
			{at: millis(1003), from: host, peer: 1},
			{at: millis(1008), from: host, peer: 2, want: copied},
			{at: millis(2006), from: host, peer: 1},
			{at: millis(2011), from: host, peer: 2, want: copied},
		},
		"what was forgotten is forgotten of all ways": {
			{from: host, peer: 1, times: 5},
			{from: host, peer: 2, times: 5, want: copied},
			{at: millis(2000), from: host, peer: 1, times: 3},
			{at: millis(2001), from: host, peer: 2, times: 3, want: copied},
		},
		"three ways": {
			{from: host, peer: 1},
			{from: host, peer: 2, want: copied},
			{from: host, peer: 3, want: copied},
			{at: millis(900), from: host, peer: 3},
			{at: millis(901), from: host, peer: 1, want: copied},
			{at: millis(902), from: host, peer: 2, want: copied},
		},
		"what comes back of the own segment's is not emitted": {
			{from: host, times: 5},
			{at: millis(3), from: host, peer: 1, times: 5, want: copied},
		},
		"an own interface's is an echo": {
			{from: self, peer: 1, want: drop.Echo},
			{from: self, want: drop.Echo},
		},
		"a relay that repeats what a peer has sent": {
			{from: host, peer: 1},
			{at: millis(1), from: other, want: rebroadcast},
		},
		"a relay that repeats what a host has sent": {
			{from: host},
			{at: millis(1), from: other, want: rebroadcast},
			{at: millis(2), from: host},
		},
		"a relay that is faster than the peer": {
			{from: other},
			{at: millis(1), from: host, peer: 1, want: copied},
			{at: millis(2), from: other, want: rebroadcast},
			{at: millis(900), from: other, want: rebroadcast},
		},
		"a peer that takes a relay on its segment for the owner costs a second of repeats": {
			{from: host},
			{at: millis(1), from: other, peer: 1, want: copied},
			{at: millis(2), from: host, want: rebroadcast},
			{at: millis(900), from: host, want: rebroadcast},
			{at: millis(1800), from: host, want: rebroadcast},
			{at: millis(2100), from: host},
		},
		"a source that lost copies catches up in two seconds": {
			{from: host, peer: 2},
			{from: host, peer: 1, want: copied},
			{from: host, peer: 1, times: 50},
			{at: millis(900), from: host, peer: 1},
			{at: millis(1200), from: host, peer: 1},
			{at: millis(1800), from: host, peer: 2, want: copied},
			{at: millis(2200), from: host, peer: 2, want: copied}, // owes that of 1200 ms
			{at: millis(2210), from: host, peer: 2},
			{at: millis(2220), from: host, peer: 1, want: copied},
		},
		"a source that is new to an old datagram": {
			{from: host, peer: 1, times: 50},
			{at: millis(800), from: host, peer: 1},
			{at: millis(1600), from: host, peer: 1},
			{at: millis(2400), from: host, peer: 3, want: copied},
			{at: millis(2500), from: host, peer: 3},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCopies()
			// Whatever the clock reads: also when its milliseconds are about to overflow.
			for i, start := range []int64{0, 1_700_000_000 * s, (1<<32 - 500) * ms, (1<<16 - 700) * ms} {
				for j, step := range steps {
					for n := range max(1, step.times) {
						now := start + int64(step.at)
						var got drop.Reason
						if step.peer == 0 {
							got = c.Captured(testKey(i), step.from, false, now)
						} else {
							got = c.Received(testKey(i), step.from, step.peer, now)
						}
						if got != step.want {
							t.Fatalf("start %d, step %d (%v from %x, peer %d), time %d: %v, want %v",
								start, j+1, step.at, step.from[5], step.peer, n+1, got, step.want)
						}
					}
				}
				c.nlearn = 0 // each start has relays of its own to find out
			}
		})
	}
}

// TestRelaysAreRemembered accuses an address once and again.
func TestRelaysAreRemembered(t *testing.T) {
	c := newCopies()
	accuse := func(n int, now int64) {
		c.Received(testKey(n), host, 1, now)
		if got := c.Captured(testKey(n), other, false, now); got != drop.Rebroadcast {
			t.Errorf("a repeat of another's datagram: %v, want %v", got, drop.Rebroadcast)
		}
	}
	check := func(n int, now int64, want drop.Reason) {
		t.Helper()
		if got := c.Captured(testKey(n), other, false, now); got != want {
			t.Errorf("first of its kind, at %v: %v, want %v", time.Duration(now), got, want)
		}
		known := slices.Contains(relaysOf(c, now), other)
		if known != (want == drop.Rebroadcast) {
			t.Errorf("at %v, known as a relay: %v", time.Duration(now), known)
		}
	}
	accuse(1, 0)
	accuse(1, 1*ms)
	check(2, 9*s, drop.Rebroadcast)
	check(3, 10*s, drop.None)
	accuse(4, 20*s)
	accuse(5, 25*s)
	check(6, 5*60*s+24*s, drop.Rebroadcast)
	check(7, 5*60*s+25*s, drop.None)

	// A datagram of a relay is there all the same.
	c.SetNeighbours(nil, []MAC{partner})
	if got := c.Captured(testKey(8), partner, false, 400*s); got != drop.Rebroadcast {
		t.Errorf("from a known relay: %v, want %v", got, drop.Rebroadcast)
	}
	if got := c.Received(testKey(8), host, 1, 400*s); got != drop.Copy {
		t.Errorf("what a known relay has emitted: %v, want %v", got, drop.Copy)
	}
	// The one that it was received from is not taken for its owner.
	if got := c.Captured(testKey(9), host, false, 400*s); got != drop.None {
		t.Errorf("captured: %v", got)
	}
	c.Received(testKey(9), partner, 1, 400*s)
	if got := c.Captured(testKey(9), host, false, 400*s); got != drop.None {
		t.Errorf("repeat of a host whose first a known relay has repeated: %v", got)
	}
}

// TestOurs has a relay of ours beside this one. In the first moment both serve and do
// not know each other; then it says that it stands by, and its host is one like any.
func TestOurs(t *testing.T) {
	c := newCopies()
	for n := range 2 {
		c.Received(testKey(n), host, 1, 0)
		c.Captured(testKey(n), partner, false, 0)
	}
	for _, test := range []struct {
		name             string
		trusted, serving bool
		want             drop.Reason
	}{
		{"unconfirmed", false, false, drop.Rebroadcast}, // found out
		{"serving", true, true, drop.Rebroadcast},
		{"standing by", true, false, drop.None},
		{"unconfirmed again", false, false, drop.None},
	} {
		c.SetNeighbours([]Neighbour{{Announcement: Announcement{Serving: test.serving}, MAC: partner, Trusted: test.trusted}}, nil)
		if got := c.Captured(KeyOf(netip.AddrPort{}, 0, []byte(test.name)), partner, false, s); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		if test.trusted {
			// Whatever it repeats, it is not found out.
			for n := range 2 {
				c.Received(testKey(10+n), host, 1, s)
				c.Captured(testKey(10+n), partner, false, s)
			}
		}
	}
}

// relaysOf returns the addresses that were found to be relays'.
func relaysOf(c *Copies, now int64) []MAC {
	var macs []MAC
	for _, s := range c.learned[:c.nlearn] {
		if s.until > now {
			macs = append(macs, s.mac)
		}
	}
	return macs
}

// TestManyRelays invents more relays than are remembered.
func TestManyRelays(t *testing.T) {
	c := newCopies()
	for i := range 3 * maxRelays {
		c.Captured(testKey(i), host, false, int64(i)*ms)
		c.Captured(testKey(i), MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}, false, int64(i)*ms)
	}
	got := relaysOf(c, int64(3*maxRelays)*ms)
	if len(got) != maxRelays || !slices.Contains(got, MAC{2, 1, 0, 0, 0, 3*maxRelays - 1}) {
		t.Errorf("%d relays are remembered, want the last %d", len(got), maxRelays)
	}
}

func TestHostsWithoutAddress(t *testing.T) {
	c := newCopies()
	k := KeyOf(netip.MustParseAddrPort("0.0.0.0:68"), 67, []byte("who am I"))
	if got := c.Captured(k, host, false, 0); got != drop.None {
		t.Errorf("first host: %v", got)
	}
	c.Captured(k, host2, false, 0)
	if got := c.Captured(testKey(1), host2, false, 0); got != drop.None || len(relaysOf(c, 0)) > 0 {
		t.Errorf("a host that said the same before it had an address: %v, taken for a relay: %v", got, relaysOf(c, 0))
	}
}

// TestOwnHost relays what this host's applications send, between its segments too.
func TestOwnHost(t *testing.T) {
	first, second := newCopies(), newCopies()
	first.SetNeighbours(nil, []MAC{self}) // also if it is a peer by mistake
	for n := range 3 {
		if got := first.Captured(testKey(1), self, true, 0); got != drop.None {
			t.Errorf("time %d: outgoing: %v", n, got)
		}
		if got := second.Received(testKey(1), self, LocalSource(1), 0); got != drop.None {
			t.Errorf("time %d: from the other segment: %v", n, got)
		}
		if got := second.Received(testKey(1), self, 7, 0); got != drop.Echo {
			t.Errorf("time %d: from the mesh: %v", n, got)
		}
	}
}

func TestStorm(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(c *Copies, now int64) drop.Reason
	}{
		{"captured", func(c *Copies, now int64) drop.Reason { return c.Captured(testKey(1), host, false, now) }},
		{"received", func(c *Copies, now int64) drop.Reason { return c.Received(testKey(1), host, 1, now) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCopies()
			c.SetStorm(200)
			count := func(start, length int64, perSecond int) (passed int) {
				for i := range int64(perSecond) * length / s {
					switch got := test.do(c, start+i*s/int64(perSecond)); got {
					case drop.None:
						passed++
					case drop.Storm:
					default:
						t.Fatalf("%v", got)
					}
				}
				return passed
			}
			if got := count(0, 10*s, 190); got != 1900 {
				t.Errorf("below the limit: %d of 1900 passed", got)
			}
			if got := count(10*s, 10*s, 5000); got > 400 {
				t.Errorf("of a storm of 10 s %d passed, want at most those of its first second", got)
			}
			if got := count(22*s, 2*s, 100); got < 100 {
				t.Errorf("after the storm %d of 200 passed, want all but those of a second", got)
			}
			if got := count(30*s, 1*s, 100); got != 100 {
				t.Errorf("long after the storm %d of 100 passed", got)
			}
			c.SetStorm(0)
			if got := count(40*s, 1*s, 5000); got != 5000 {
				t.Errorf("without a limit %d of 5000 passed", got)
			}
		})
	}
}

// TestStormLeavesNoDebt has two ways, of which each brings all repeats; after a
// storm, and without a pause in which it could be forgotten, one copy of each passes.
func TestStormLeavesNoDebt(t *testing.T) {
	c := newCopies()
	c.SetStorm(50)
	passed := 0
	for i := range 4000 {
		now := int64(i) * ms
		if i > 1000 {
			now = s + int64(i-1000)*100*ms
		}
		for peer := range uint32(2) {
			if got := c.Received(testKey(1), host, peer+1, now); got == drop.None && now > 10*s {
				passed++
			}
		}
	}
	if passed != 2909 {
		t.Errorf("after the storm %d passed, want one for each of 2909", passed)
	}
}

func TestTableGrowsAndShrinks(t *testing.T) {
	if size := reflect.TypeFor[entry]().Size(); size != entrySize {
		t.Errorf("an entry takes %d bytes, want %d", size, entrySize)
	}
	c := newCopies()
	if c.Memory() != 0 {
		t.Errorf("%d bytes before the first datagram", c.Memory())
	}
	c.Captured(testKey(1), host, false, 0)
	if c.Memory() != minEntries*entrySize {
		t.Errorf("%d bytes for one datagram", c.Memory())
	}
	// Slowly, for long: old ones make room.
	for i := range 20_000 {
		c.Received(testKey(i), host, 1, int64(i)*2*ms)
	}
	if c.Memory() > 2*minEntries*entrySize {
		t.Errorf("%d bytes for 500 datagrams a second", c.Memory())
	}
	// At once, two ways: nearly each is remembered until its second copy. (A table of
	// sets is not used evenly.)
	start := 100 * s
	const burst = maxEntries / 3
	forgotten := 0
	for peer := range uint32(2) {
		for i := range burst {
			got := c.Received(testKey(i), host, peer, start)
			if peer == 0 && got != drop.None {
				t.Fatalf("datagram %d: %v", i, got)
			}
			if peer == 1 && got == drop.None {
				forgotten++
			}
		}
	}
	if forgotten > burst/100 {
		t.Errorf("%d of %d datagrams were forgotten within a burst", forgotten, burst)
	}
	for i := range 150_000 {
		c.Captured(testKey(i), host, false, start+s)
	}
	if c.Memory() != maxEntries*entrySize {
		t.Errorf("%d bytes under a flood, want %d", c.Memory(), maxEntries*entrySize)
	}
	for i := range 27 {
		now := start + int64(i)*5*s
		if i == 10 { // a moment of noise
			for j := range maxEntries / 8 {
				c.Captured(testKey(j), host, false, now)
			}
		}
		c.Captured(testKey(-1), host, false, now)
		c.Tick(now)
		if i == 22 && c.Memory() != maxEntries*entrySize {
			t.Errorf("%d bytes less than a minute after noise, want %d", c.Memory(), maxEntries*entrySize)
		}
	}
	if c.Memory() != minEntries*entrySize {
		t.Errorf("%d bytes after a quiet minute, want %d", c.Memory(), minEntries*entrySize)
	}
}

// TestTableKeeps fills a set: whichever is kept, another makes room.
func TestTableKeeps(t *testing.T) {
	var full table
	full.resize(ways, 0)
	for k := Key(2); k < 2+ways; k++ {
		e, _ := full.at(k, 0, 5)
		*e = entry{key: k, last: 5}
	}
	for k := Key(2); k < 2+ways; k++ {
		if e, found := full.at(100, k, 5); found || e.key == k {
			t.Errorf("entry %d makes room for its own child", k)
		}
	}
	e, _ := full.at(4, 0, 5)
	e.last = 4
	if e, _ := full.at(100, 2, 5); e.key != 4 {
		t.Errorf("entry %d makes room, want the oldest, 4", e.key)
	}
}

func TestCopiesAllocateNothing(t *testing.T) {
	c := newCopies()
	c.SetStorm(DefaultStorm)
	payload := make([]byte, 100)
	src := netip.MustParseAddrPort("192.0.2.1:5076")
	n := uint64(0)
	do := func() {
		n++
		binary.BigEndian.PutUint64(payload, n)
		k := KeyOf(src, 5076, payload)
		c.Captured(k, host, false, int64(n)*ms)
		c.Received(k, host, 1, int64(n)*ms)
	}
	do()
	if got := testing.AllocsPerRun(1000, do); got != 0 {
		t.Errorf("%v allocations per datagram", got)
	}
}

func BenchmarkKeyOf(b *testing.B) {
	payload := make([]byte, 100)
	src := netip.MustParseAddrPort("192.0.2.1:5076")
	b.ReportAllocs()
	for b.Loop() {
		sink += KeyOf(src, 5076, payload)
	}
}

var sink Key

// Each datagram is new, and they come at 100,000 a second: the table is as large
// as it gets.
func BenchmarkCaptured(b *testing.B) {
	benchmark(b, func(c *Copies, k Key, now int64) { c.Captured(k, host, false, now) })
}

func BenchmarkReceived(b *testing.B) {
	benchmark(b, func(c *Copies, k Key, now int64) { c.Received(k, host, 1, now) })
}

func benchmark(b *testing.B, do func(c *Copies, k Key, now int64)) {
	c := newCopies()
	c.SetStorm(DefaultStorm)
	c.SetNeighbours(nil, []MAC{partner})
	now := int64(0)
	step := func() {
		now += 10_000
		do(c, Key(mix(uint64(now), salt[0]))&^anonymous, now)
	}
	for range 300_000 {
		step()
	}
	b.ReportAllocs()
	for b.Loop() {
		step()
	}
	b.ReportMetric(float64(c.Memory())/1e6, "MB")
}
