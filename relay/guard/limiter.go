// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

const (
	maxSources   = 8 << 10 // that a Limiter tells apart
	sourceWays   = 8       // places in which a source can be
	maxExcesses  = 64      // that are reported at a time
	talkerWindow = time.Minute

	// quiet is how long a source has to stay within its rate for the excess to be over.
	quiet = 5 * time.Second
)

// Rates bounds what a segment may send. A field that is 0 sets no bound.
type Rates struct {
	SourcePackets int // per second and source address
	SourceBytes   int // of IP packets, per second and source address
	TotalPackets  int // per second, of all sources
	TotalBytes    int // of IP packets, per second, of all sources

	// Burst is for how long a rate may be used up in advance: with 2 s, the default,
	// a source that was silent may send twice its packets per second at once.
	Burst time.Duration
}

// DefaultRates is far above what any application of broadcasts sends, and below
// what hurts the segments that it would be carried to.
func DefaultRates() Rates { return Rates{SourcePackets: 20_000, TotalPackets: 50_000} }

// A Limiter holds the datagrams of a segment to [Rates] and knows who sends most.
// Its memory is allocated at once, some 0.9 MB; of more than 8,192 sources those that were silent
// longest are forgotten.
//
// It is for one goroutine at a time, as [Copies] is.
type Limiter struct {
	burst  int64
	source [2]int64 // packets and bytes per second
	total  [2]int64
	all    [2]int64 // of the total: see take

	sources  []source
	excesses [maxExcesses + 1]Excess // one is for the segment
	n        int                     // of excesses
	excess   uint8                   // the segment's, as a source's
}

// source is one source address. Of the two windows of a minute, the second is
// the one before the current.
type source struct {
	addr   [16]byte
	last   int64
	due    [2]int64 // packets, bytes: see take
	began  int64    // the current window
	window [2]traffic
	used   bool
	v4     bool
	excess uint8 // 1 + the place in excesses, if that still is this source's
}

type traffic struct{ packets, bytes, dropped uint64 }

// An Excess is a time during which a source, or the whole segment, sent more than
// it may.
type Excess struct {
	Source  netip.Addr // not valid for the whole segment
	Since   int64      // when the first datagram was dropped
	Last    int64      // when the last one was
	Dropped uint64     // how many were
	Over    bool       // it is over
	told    bool
}

// A Talker is a source with what it sent within the last minute, dropped
// datagrams included.
type Talker struct {
	Source  netip.Addr `json:"source"`
	Packets uint64     `json:"packets"`
	Bytes   uint64     `json:"bytes"`
	Dropped uint64     `json:"dropped"`
}

// NewLimiter returns a limiter of a segment.
func NewLimiter(r Rates) *Limiter {
	l := &Limiter{sources: make([]source, maxSources)}
	l.SetRates(r)
	return l
}

// SetRates sets other rates.
func (l *Limiter) SetRates(r Rates) {
	l.burst = int64(cmp.Or(max(r.Burst, 0), 2*time.Second))
	l.source = [2]int64{int64(max(r.SourcePackets, 0)), int64(max(r.SourceBytes, 0))}
	l.total = [2]int64{int64(max(r.TotalPackets, 0)), int64(max(r.TotalBytes, 0))}
}

// Allow takes down a datagram of so many bytes. It is to be relayed when the result
// is [drop.None], otherwise that is [drop.Rate].
func (l *Limiter) Allow(src netip.Addr, bytes int, now int64) drop.Reason {
	s := l.find(src, now)
	s.turn(now)
	s.last = now
	w := &s.window[0]
	w.packets++
	w.bytes += uint64(bytes)
	// What is dropped counts for neither rate: a source that never stops still gets
	// its share, and takes none from the others.
	due, ok := take(s.due, l.source, bytes, now, l.burst)
	if !ok {
		w.dropped++
		s.excess = l.exceed(src, s.excess, now)
		return drop.Rate
	}
	all, ok := take(l.all, l.total, bytes, now, l.burst)
	if !ok {
		w.dropped++
		l.excess = l.exceed(netip.Addr{}, l.excess, now)
		return drop.Rate
	}
	s.due, l.all = due, all
	return drop.None
}

// take is the generic cell rate algorithm (ITU-T I.371, annex A) for packets and bytes: due is when
// what was let through would be worked off at exactly the rate; it may run ahead
// of now by the burst.
func take(due [2]int64, rates [2]int64, bytes int, now, burst int64) ([2]int64, bool) {
	for i, cost := range [2]int64{1, int64(bytes)} {
		if per := rates[i]; per > 0 {
			waits := due[i] > now
			due[i] = max(due[i], now) + cost*int64(time.Second)/per
			// Whoever has not sent for long enough may send one, however long it is.
			if waits && due[i]-now > burst {
				return due, false
			}
		}
	}
	return due, true
}

// find returns a source, or the place of one that was silent longest.
func (l *Limiter) find(src netip.Addr, now int64) *source {
	addr := src.As16()
	h := mix(binary.BigEndian.Uint64(addr[:8])^salt[0], binary.BigEndian.Uint64(addr[8:])^salt[1])
	h = mix(h^salt[0], salt[2])
	set := (*[sourceWays]source)(l.sources[h%(maxSources/sourceWays)*sourceWays:])
	oldest := &set[0]
	for i := range set {
		s := &set[i]
		switch {
		case s.used && s.addr == addr:
			return s
		case oldest.used && (!s.used || s.last < oldest.last):
			oldest = s
		}
	}
	*oldest = source{addr: addr, used: true, v4: src.Unmap().Is4(), began: now}
	return oldest
}

// turn begins a new window when the current one is full.
func (s *source) turn(now int64) {
	switch elapsed := now - s.began; {
	case elapsed < int64(talkerWindow):
		return
	case elapsed < 2*int64(talkerWindow):
		s.window[1], s.began = s.window[0], s.began+int64(talkerWindow)
	default:
		s.window[1], s.began = traffic{}, now
	}
	s.window[0] = traffic{}
}

// exceed counts a datagram dropped, for a source or for all, and returns where.
func (l *Limiter) exceed(src netip.Addr, hint uint8, now int64) uint8 {
	src = src.WithZone("")
	i := int(hint) - 1
	if i < 0 || i >= l.n || l.excesses[i].Source != src {
		i = slices.IndexFunc(l.excesses[:l.n], func(x Excess) bool { return x.Source == src })
	}
	if i < 0 {
		if l.n > maxExcesses || l.n == maxExcesses && src.IsValid() {
			return 0 // the sources are counted each, but there is enough to report
		}
		i = l.n
		l.n++
		l.excesses[i] = Excess{Source: src, Since: now}
	}
	x := &l.excesses[i]
	x.Last = now
	x.Dropped++
	return uint8(i + 1)
}

// AppendExcesses appends each excess that has begun or ended since the last
// call: one line of a log for each. Of at most 64 sources at a time.
func (l *Limiter) AppendExcesses(report []Excess, now int64) []Excess {
	kept := 0
	for _, x := range l.excesses[:l.n] {
		x.Over = now-x.Last >= int64(quiet)
		if x.Over || !x.told {
			x.told = true
			report = append(report, x)
		}
		if !x.Over {
			l.excesses[kept] = x
			kept++
		}
	}
	l.n = kept
	return report
}

// Talkers returns the sources that sent most within the last minute, at most n. For the part
// of it that lies in the window before the current, it takes the average of that.
func (l *Limiter) Talkers(n int, now int64) []Talker {
	var all []Talker
	for i := range l.sources {
		s := &l.sources[i]
		if !s.used {
			continue
		}
		s.turn(now)
		rest := 1 - float64(now-s.began)/float64(talkerWindow)
		share := func(now, before uint64) uint64 { return now + uint64(rest*float64(before)+0.5) }
		t := Talker{
			Source:  netip.AddrFrom16(s.addr),
			Packets: share(s.window[0].packets, s.window[1].packets),
			Bytes:   share(s.window[0].bytes, s.window[1].bytes),
			Dropped: share(s.window[0].dropped, s.window[1].dropped),
		}
		if s.v4 {
			t.Source = t.Source.Unmap()
		}
		if t.Packets > 0 {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b Talker) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(b.Bytes, a.Bytes), a.Source.Compare(b.Source))
	})
	return all[:min(n, len(all))]
}
