// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/probe"
)

// Bounds of what is kept of one measurement, whatever it finds.
const (
	maxNetworks = 4 << 20 // more than the Internet has announced /24s that answer; about 300 MB
	maxSites    = 1 << 12
	maxTraces   = 2000
	maxMoves    = 1000
	maxFlips    = 500
	maxWorst    = 100
	maxTexts    = 1000
	maxAlarms   = 1000
	maxPoints   = 1024 // of a watch; neighbours are merged beyond
	maxText     = 1 << 16
)

// siteNo is a site's place in aggregate.names; 0 is nobody.
type siteNo uint16

// aggregate is the sums of a measurement.
type aggregate struct {
	names   []string // names[0] is empty: nobody
	numbers map[string]siteNo
	results int

	// origins are the sums of a measurement's several origins, by name. They share held, the networks of all of them together.
	origins map[string]*aggregate
	held    *int

	networks []network
	index    map[uint64]int32 // by key
	beyond   int              // answers of networks for which there was no room
	sorted   []int32          // of networks, by key; nil when it has to be made again

	rtts map[siteNo]*hdrhistogram.Histogram // of the site that heard, in microseconds

	latencies int
	inflated  int                     // for which the catching site is not the nearest
	worst     []anycast.LatencyResult // by falling inflation

	points                     []point
	moves                      []anycast.Move // a ring, once it is full
	moved                      int
	matrix                     map[[2]siteNo]int
	flips                      []flip
	flipped                    int
	byFlow, byProtocol, byTime int

	traces  []traceLine
	traced  int
	texts   map[text]int
	alarms  []anycast.Alarm
	answers []anycast.TextResult
	summary *anycast.Summary
}

// network is what is known about one /24 or /48.
type network struct {
	key    uint64
	probes uint32
	rtt    uint32 // shortest, in microseconds; 0 is unknown
	first  votes
	others []votes // few networks reach several sites
}

// votes are answers that came home at a site.
type votes struct {
	count uint32
	site  siteNo
}

// point is an interval of a watch.
type point struct {
	time        time.Time
	sites       map[siteNo]int
	lost, moved int
}

// flip is a target that reaches several sites.
type flip struct {
	Target     netip.Addr       `json:"target"`
	Seen       map[string]int   `json:"seen"`
	ByFlow     bool             `json:"by_flow"`
	ByProtocol bool             `json:"by_protocol"`
	ByTime     bool             `json:"by_time"`
	Spread     time.Duration    `json:"spread_ns,omitempty"`
	Parting    *anycast.Parting `json:"parting,omitempty"`
}

// traceLine is a trace in the list of them.
type traceLine struct {
	N         int        `json:"n"`
	Site      string     `json:"site"`
	Target    netip.Addr `json:"target"`
	Name      string     `json:"name,omitempty"`
	Method    string     `json:"method"`
	Stop      string     `json:"stop"`
	Hops      int        `json:"hops"`
	Probes    int        `json:"probes"`
	Receivers []string   `json:"receivers"`
	nth       int        // of those to the same target
}

// text is what name servers at a site call themselves.
type text struct {
	site siteNo
	text string
}

func newAggregate() *aggregate {
	return &aggregate{
		origins: make(map[string]*aggregate), held: new(int),
		names: []string{""}, numbers: map[string]siteNo{"": 0}, index: make(map[uint64]int32),
		rtts: make(map[siteNo]*hdrhistogram.Histogram), matrix: make(map[[2]siteNo]int), texts: make(map[text]int),
	}
}

// origin gives the sums of an origin, those of the whole measurement for the only one.
func (a *aggregate) origin(name string) *aggregate {
	if name == "" {
		return a
	}
	o := a.origins[name]
	if o == nil {
		if len(a.origins) >= anycast.MaxOrigins { // no measurement has so many
			return a
		}
		o = newAggregate()
		o.held = a.held
		a.origins[name] = o
	}
	return o
}

// choose gives the sums of one of a measurement's origins, the first one for "".
func (a *aggregate) choose(d *anycast.Definition, name string) (*aggregate, string, error) {
	switch {
	case len(d.Origins) == 0:
		return a, "", nil
	case name == "":
		name = d.Origins[0].Name
	default:
		if _, ok := d.Origin(name); !ok {
			return nil, "", fmt.Errorf("%w: the measurement has no origin %q", errRequest, name)
		}
	}
	return a.origin(name), name, nil
}

// site gives the number of a name. Beyond maxSites all are one.
func (a *aggregate) site(name string) siteNo {
	if n, ok := a.numbers[name]; ok {
		return n
	}
	if len(a.names) >= maxSites {
		name = "(others)"
		if n, ok := a.numbers[name]; ok {
			return n
		}
	}
	n := siteNo(len(a.names))
	a.names = append(a.names, name)
	a.numbers[name] = n
	return n
}

// keyOf is a network as a number: IPv4 first, and in the order of the addresses.
func keyOf(a netip.Addr) uint64 {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:]) >> 8)
	}
	b := a.As16()
	return 1<<63 | binary.BigEndian.Uint64(b[:])>>16
}

// prefixOf is its inverse.
func prefixOf(key uint64) netip.Prefix {
	if key&(1<<63) == 0 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(key)<<8)
		return netip.PrefixFrom(netip.AddrFrom4(b), 24)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], key<<16)
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

// network gives the sums of the network of an address, nil if there is no room for it.
func (a *aggregate) network(addr netip.Addr) *network {
	if !addr.IsValid() {
		return nil
	}
	key := keyOf(addr)
	i, ok := a.index[key]
	if !ok {
		if *a.held >= maxNetworks {
			a.beyond++
			return nil
		}
		*a.held++
		i = int32(len(a.networks))
		a.networks = append(a.networks, network{key: key})
		a.index[key] = i
		a.sorted = nil
	}
	return &a.networks[i]
}

// vote counts an answer that came home at a site; site 0 is a probe without one.
func (n *network) vote(site siteNo) {
	n.probes++
	switch {
	case site == 0:
	case n.first.count == 0 || n.first.site == site:
		n.first.site = site
		n.first.count++
	default:
		for i := range n.others {
			if n.others[i].site == site {
				n.others[i].count++
				return
			}
		}
		n.others = append(n.others, votes{count: 1, site: site})
	}
}

func (n *network) answered() int {
	sum := int(n.first.count)
	for _, v := range n.others {
		sum += int(v.count)
	}
	return sum
}

// home is the site that caught most, of several the first by name; 0 if none caught anything.
func (a *aggregate) home(n *network) siteNo {
	best := n.first
	for _, v := range n.others {
		if v.count > best.count || v.count == best.count && a.names[v.site] < a.names[best.site] {
			best = v
		}
	}
	return best.site
}

// order gives the networks in the order of their addresses.
func (a *aggregate) order() []int32 {
	if a.sorted == nil {
		a.sorted = make([]int32, len(a.networks))
		for i := range a.sorted {
			a.sorted[i] = int32(i)
		}
		slices.SortFunc(a.sorted, func(x, y int32) int { return cmp.Compare(a.networks[x].key, a.networks[y].key) })
	}
	return a.sorted
}

// measured notes a round-trip time of answers heard at a site.
func (a *aggregate) measured(n *network, site siteNo, rtt time.Duration) {
	if rtt <= 0 {
		return
	}
	us := max(1, min(rtt.Microseconds(), maxRTT))
	if n != nil && (n.rtt == 0 || uint32(us) < n.rtt) {
		n.rtt = uint32(us)
	}
	hist := a.rtts[site]
	if hist == nil {
		hist = hdrhistogram.New(1, maxRTT, 2)
		a.rtts[site] = hist
	}
	_ = hist.RecordValue(us) // fails only for values above maxRTT
}

// maxRTT is a minute, in microseconds: longer than any program waits for an answer.
const maxRTT = 60_000_000

// add counts a result.
func (a *aggregate) add(r anycast.Result) {
	a.results++
	switch r := r.(type) {
	case *anycast.Catch:
		a.origin(r.Origin).addCatch(r)
	case *anycast.LatencyResult:
		a.origin(r.Origin).addLatency(r)
	case *anycast.WatchResult:
		a.addPoint(r)
	case *anycast.Move:
		a.addMove(r)
	case *anycast.FlipResult:
		a.origin(r.Origin).addFlip(r)
	case *anycast.TraceResult:
		a.addTrace(r)
	case *anycast.Summary:
		a.summary = r
	case *anycast.Alarm:
		if len(a.alarms) < maxAlarms {
			a.alarms = append(a.alarms, *r)
		}
	case *anycast.TextResult:
		if len(a.answers) < maxAlarms {
			a.answers = append(a.answers, anycast.TextResult{Code: r.Code, Text: r.Text[:min(len(r.Text), maxText)]})
		}
	}
}

func (a *aggregate) addCatch(r *anycast.Catch) {
	site := siteNo(0)
	// As in the programs, only the target's own answer tells where the target is caught, not a router's error.
	if r.Status == probe.Replied {
		site = a.site(r.Receiver)
	}
	n := a.network(r.Target)
	if n != nil {
		n.vote(site)
	}
	if site == 0 {
		return
	}
	a.measured(n, site, r.RTT)
	if r.Text != "" {
		t := text{site: site, text: r.Text[:min(len(r.Text), 255)]}
		if _, known := a.texts[t]; known || len(a.texts) < maxTexts {
			a.texts[t]++
		}
	}
}

func (a *aggregate) addLatency(r *anycast.LatencyResult) {
	site := a.site(r.Catcher)
	n := a.network(r.Target)
	if n != nil {
		n.vote(site)
	}
	if site == 0 {
		return
	}
	a.latencies++
	a.measured(n, site, r.RTT)
	if r.Inflation <= 0 {
		return
	}
	a.inflated++
	at, _ := slices.BinarySearchFunc(a.worst, r.Inflation, func(w anycast.LatencyResult, d time.Duration) int { return cmp.Compare(d, w.Inflation) })
	if at < maxWorst {
		a.worst = slices.Insert(a.worst, at, *r)
		a.worst = a.worst[:min(len(a.worst), maxWorst)]
	}
}

func (a *aggregate) addPoint(r *anycast.WatchResult) {
	p := point{time: r.Time, sites: make(map[siteNo]int, len(r.Sites)), lost: r.Lost, moved: r.Moved}
	for name, n := range r.Sites {
		p.sites[a.site(name)] += n
	}
	if len(a.points) == maxPoints {
		for i := range maxPoints / 2 {
			a.points[i] = a.points[2*i].with(a.points[2*i+1])
		}
		a.points = a.points[:maxPoints/2]
	}
	a.points = append(a.points, p)
}

// with merges two neighbours into one.
func (p point) with(q point) point {
	p.lost += q.lost
	p.moved += q.moved
	for site, n := range q.sites {
		p.sites[site] += n
	}
	return p
}

func (a *aggregate) addMove(r *anycast.Move) {
	a.matrix[[2]siteNo{a.site(r.From), a.site(r.To)}]++
	if len(a.moves) < maxMoves {
		a.moves = append(a.moves, *r)
	} else {
		a.moves[a.moved%maxMoves] = *r
	}
	a.moved++
}

// newestMoves gives those that are kept, newest first.
func (a *aggregate) newestMoves() []anycast.Move {
	moves := make([]anycast.Move, 0, len(a.moves))
	for i := range a.moves {
		moves = append(moves, a.moves[(a.moved-1-i)%maxMoves])
	}
	return moves
}

func (a *aggregate) addFlip(r *anycast.FlipResult) {
	a.flipped++
	if r.ByFlow {
		a.byFlow++
	}
	if r.ByProtocol {
		a.byProtocol++
	}
	if r.ByTime {
		a.byTime++
	}
	for name := range r.Seen {
		a.site(name)
	}
	if len(a.flips) < maxFlips {
		a.flips = append(a.flips, flip{
			Target: r.Target, Seen: r.Seen, ByFlow: r.ByFlow, ByProtocol: r.ByProtocol, ByTime: r.ByTime, Spread: r.Spread, Parting: r.Parting,
		})
	}
}

func (a *aggregate) addTrace(r *anycast.TraceResult) {
	a.traced++
	line := traceLine{
		N: a.traced, Site: r.Site, Target: r.Target, Name: r.Name, Method: string(r.Method), Stop: r.Stop, Probes: r.Probes, Receivers: []string{},
	}
	last := -1
	for i := range r.Replies {
		p := &r.Replies[i]
		if int(p.TTL) != last {
			last = int(p.TTL)
			line.Hops++
		}
		if p.Receiver != "" {
			a.site(p.Receiver)
			if at, found := slices.BinarySearch(line.Receivers, p.Receiver); !found {
				line.Receivers = slices.Insert(line.Receivers, at, p.Receiver)
			}
		}
	}
	a.site(r.Site)
	if len(a.traces) >= maxTraces {
		return
	}
	for i := range a.traces {
		if a.traces[i].Target == r.Target {
			line.nth++
		}
	}
	a.traces = append(a.traces, line)
}
