// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// StatsOptions bound the memory of [Stats]. The zero value is good for a large
// site: 20,000 names of 20 bytes with a client each take 6 MB; all bounds reached at once, by names as long as can be, 16 MB.
type StatsOptions struct {
	// MaxNames is how many names are remembered. Default 20,000.
	MaxNames int
	// MaxClients is how many clients are remembered of each name. Default 64.
	MaxClients int
	// MaxPairs is how many clients are remembered of all names together. Default 8 for
	// each of MaxNames. A pair takes 40 bytes.
	MaxPairs int
}

// MaxStatsName is the length in bytes of the longest name that [Stats] remembers. EPICS allows 60 for a record;
// fields, filters and PVAccess make longer ones.
const MaxStatsName = 256

// A Datagram is what [Stats.Add] counts.
type Datagram struct {
	Protocol Protocol
	Client   netip.Addr // where it comes from
	Payload  []byte     // of UDP; not kept
}

// Stats keeps account of who searches for what, and how often. Its memory is
// bounded: of more names than it may remember, those not searched for for the longest time are
// forgotten. Whether a name was found it cannot know, because servers answer the client alone.
//
// All methods can be called from any goroutine.
type Stats struct {
	opts StatsOptions

	mu sync.Mutex // guards what follows

	names map[statsKey]*statsName
	// recent is the ring of all names around this one: recent.next was searched for last, recent.prev the longest time ago.
	recent statsName
	pairs  int
	sum    StatsSummary
	now    time.Time // of the Add under way
}

type statsKey struct {
	protocol Protocol
	name     string
}

type statsName struct {
	key         statsKey
	next, prev  *statsName
	count       uint64
	first, last time.Time
	clients     []statsClient
	more        bool // other clients than those

	// Searches in the minute of last, and in the one before it.
	thisMinute, lastMinute uint32
}

type statsClient struct {
	addr  netip.Addr
	count uint64
	last  int64 // seconds since 1970: half the size of a time
}

// NewStats returns empty statistics.
func NewStats(opts StatsOptions) *Stats {
	opts.MaxNames = cmp.Or(max(opts.MaxNames, 0), 20_000)
	opts.MaxClients = cmp.Or(max(opts.MaxClients, 0), 64)
	opts.MaxPairs = cmp.Or(max(opts.MaxPairs, 0), 8*opts.MaxNames)
	s := &Stats{opts: opts}
	s.resetLocked()
	return s
}

// Reset forgets everything.
func (s *Stats) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resetLocked()
}

func (s *Stats) resetLocked() {
	s.names = make(map[statsKey]*statsName)
	s.recent.next, s.recent.prev = &s.recent, &s.recent
	s.pairs = 0
	s.sum = StatsSummary{Since: time.Now()}
}

// Add counts the searches of a batch of datagrams that were received now. It takes
// one lock, and allocates only for names and clients that are new. Datagrams without a search count for nothing.
func (s *Stats) Add(now time.Time, batch []Datagram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
	for i := range batch {
		d := &batch[i]
		searched := false
		for search := range Searches(d.Protocol, d.Payload) {
			searched = true
			s.searchedLocked(d.Protocol, d.Client, search.Name)
		}
		if searched {
			s.sum.Datagrams++
		}
	}
}

func (s *Stats) searchedLocked(p Protocol, client netip.Addr, name []byte) {
	s.sum.Searches++
	if len(name) > MaxStatsName {
		s.sum.TooLong++
		return
	}
	n := s.names[statsKey{p, string(name)}] // the compiler makes no string for this
	if n == nil {
		if len(s.names) >= s.opts.MaxNames {
			s.forgetLocked(s.recent.prev)
		}
		n = &statsName{key: statsKey{p, string(name)}, first: s.now, last: s.now}
		s.names[n.key] = n
	} else {
		n.unlink()
	}
	n.linkAfter(&s.recent)

	n.count++
	n.turn(s.now)
	n.thisMinute++
	n.last = s.now
	s.clientLocked(n, client)
}

// clientLocked counts a search by a client. Where there is room for no more clients of this name, the one
// that has not searched for the longest time makes some.
func (s *Stats) clientLocked(n *statsName, client netip.Addr) {
	now := s.now.Unix()
	if i := slices.IndexFunc(n.clients, func(c statsClient) bool { return c.addr == client }); i >= 0 {
		n.clients[i].count++
		n.clients[i].last = now
		return
	}
	fresh := statsClient{addr: client, count: 1, last: now}
	if len(n.clients) >= s.opts.MaxClients {
		n.more = true
		oldest := 0
		for i := range n.clients {
			if n.clients[i].last < n.clients[oldest].last {
				oldest = i
			}
		}
		n.clients[oldest] = fresh
		return
	}
	for s.pairs >= s.opts.MaxPairs && s.recent.prev != n {
		s.forgetLocked(s.recent.prev)
	}
	if s.pairs >= s.opts.MaxPairs {
		n.more = true
		return
	}
	n.clients = append(n.clients, fresh)
	s.pairs++
}

func (s *Stats) forgetLocked(n *statsName) {
	n.unlink()
	delete(s.names, n.key)
	s.pairs -= len(n.clients)
	s.sum.Forgotten++
}

func (n *statsName) linkAfter(at *statsName) {
	n.prev, n.next = at, at.next
	n.prev.next, n.next.prev = n, n
}

func (n *statsName) unlink() {
	n.prev.next, n.next.prev = n.next, n.prev
	n.prev, n.next = nil, nil
}

// minutes is the number of the minute of a time.
func minutes(t time.Time) int64 { return t.Unix() / 60 }

// turn moves on to the minute of now.
func (n *statsName) turn(now time.Time) {
	switch minutes(now) - minutes(n.last) {
	case 0:
	case 1:
		n.lastMinute, n.thisMinute = n.thisMinute, 0
	default:
		n.lastMinute, n.thisMinute = 0, 0
	}
}

// perMinute estimates the searches in the 60 seconds before now, as if those of the last
// full minute had been evenly spread.
func (n *statsName) perMinute(now time.Time) float64 {
	m := *n
	m.turn(now)
	passed := float64(now.Unix()%60) + float64(now.Nanosecond())/1e9
	return float64(m.thisMinute) + float64(m.lastMinute)*(1-passed/60)
}

// A StatsSummary says how much [Stats] has counted.
type StatsSummary struct {
	Since     time.Time `json:"since"`     // of the start, or the last reset
	Datagrams uint64    `json:"datagrams"` // with at least one search
	Searches  uint64    `json:"searches"`  // for single names
	TooLong   uint64    `json:"too_long"`  // searches for names of more than [MaxStatsName] bytes, which are not remembered
	Names     int       `json:"names"`     // remembered now
	Clients   int       `json:"clients"`   // of them: each client once for each name
	Forgotten uint64    `json:"forgotten"` // names forgotten for want of room
}

// Summary returns the totals.
func (s *Stats) Summary() StatsSummary {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.sum
	sum.Names, sum.Clients = len(s.names), s.pairs
	return sum
}

// StatsOrder is an order of names.
type StatsOrder uint8

// The orders.
const (
	ByCount  StatsOrder = iota // most often searched for first
	ByRecent                   // last searched for first
	ByRate                     // most searches per minute first
)

// String is "count", "recent" or "rate".
func (o StatsOrder) String() string {
	switch o {
	case ByCount:
		return "count"
	case ByRecent:
		return "recent"
	case ByRate:
		return "rate"
	}
	return fmt.Sprintf("StatsOrder(%d)", uint8(o))
}

// A StatsQuery asks for some of the names. The zero value asks for all, the most frequent first.
type StatsQuery struct {
	Order    StatsOrder
	Limit    int        // 0: no limit
	Contains string     // only names with this in them
	Protocol Protocol   // only names searched for by this protocol; None: both
	Client   netip.Addr // only names that this client is known to have searched for; invalid: all
}

// A NameStats says how often and by whom a name was searched for.
type NameStats struct {
	Protocol  Protocol  `json:"protocol"`
	Name      string    `json:"name"` // made printable, see [AppendPrintable]
	Count     uint64    `json:"count"`
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
	PerMinute float64   `json:"per_minute"` // about how often in the minute before the query
	// Clients have searched for it, the most frequent first.
	Clients []ClientStats `json:"clients"`
	// MoreClients tells that there were others too, for which there was no room.
	MoreClients bool `json:"more_clients,omitempty"`
}

// A ClientStats says how often a client searched for a name.
type ClientStats struct {
	Addr  netip.Addr `json:"addr"`
	Count uint64     `json:"count"`
	Last  time.Time  `json:"last"` // to the second, in the time zone of the query
}

// Top returns what is known now of the names of a query, in its order. Names that are alike in that are
// in the order of their last search.
func (s *Stats) Top(now time.Time, q StatsQuery) []NameStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	type ranked struct {
		*statsName
		rank float64
	}
	var found []ranked
	for n := s.recent.next; n != &s.recent; n = n.next {
		if q.Order == ByRecent && q.Limit > 0 && len(found) == q.Limit {
			break
		}
		if !n.matches(&q) {
			continue
		}
		r := ranked{statsName: n}
		switch q.Order {
		case ByCount:
			r.rank = float64(n.count)
		case ByRate:
			r.rank = n.perMinute(now)
		case ByRecent: // as they are
		}
		found = append(found, r)
	}
	slices.SortStableFunc(found, func(a, b ranked) int { return cmp.Compare(b.rank, a.rank) })
	if q.Limit > 0 {
		found = found[:min(q.Limit, len(found))]
	}
	top := make([]NameStats, len(found))
	for i, n := range found {
		top[i] = n.stats(now)
	}
	return top
}

func (n *statsName) matches(q *StatsQuery) bool {
	return (q.Protocol == None || n.key.protocol == q.Protocol) && strings.Contains(n.key.name, q.Contains) &&
		(!q.Client.IsValid() || slices.ContainsFunc(n.clients, func(c statsClient) bool { return c.addr == q.Client }))
}

func (n *statsName) stats(now time.Time) NameStats {
	t := NameStats{
		Protocol: n.key.protocol, Name: string(AppendPrintable(nil, n.key.name, 4*MaxStatsName)), Count: n.count,
		First: n.first, Last: n.last, PerMinute: n.perMinute(now),
		Clients: make([]ClientStats, len(n.clients)), MoreClients: n.more,
	}
	for i, c := range n.clients {
		t.Clients[i] = ClientStats{Addr: c.addr, Count: c.count, Last: time.Unix(c.last, 0).In(now.Location())}
	}
	slices.SortStableFunc(t.Clients, func(a, b ClientStats) int { return cmp.Compare(b.Count, a.Count) })
	return t
}
