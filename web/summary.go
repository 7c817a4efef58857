// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/trace"
)

// summaryJSON is what a measurement found, in sums.
type summaryJSON struct {
	Measurement anycast.Measurement `json:"measurement"`
	Results     int                 `json:"results"`
	// Origin is what the sums are about, if the measurement has several, and Origins are all of them.
	Origin  string       `json:"origin,omitempty"`
	Origins []originSums `json:"origins,omitempty"`
	// Networks counts those with an answer, Silent those without, Split those that reach several sites. Beyond is how
	// many probes were about networks for which there was no room.
	Networks int                  `json:"networks"`
	Silent   int                  `json:"silent"`
	Split    int                  `json:"split"`
	IPv4     int                  `json:"ipv4"` // of the networks, silent ones included
	Beyond   int                  `json:"beyond,omitempty"`
	Sites    []siteSums           `json:"sites"`
	Texts    []textSums           `json:"texts,omitempty"`
	Latency  *latencySums         `json:"latency,omitempty"`
	Watch    *watchSums           `json:"watch,omitempty"`
	Flips    *flipSums            `json:"flips,omitempty"`
	Traces   []traceLine          `json:"traces,omitempty"`
	Traced   int                  `json:"traced,omitempty"`
	Alarms   []anycast.Alarm      `json:"alarms,omitempty"`
	Answers  []anycast.TextResult `json:"answers,omitempty"`
	Summary  *anycast.Summary     `json:"summary,omitempty"`
}

// originSums is what is reached from one of several origins.
type originSums struct {
	anycast.Origin
	Networks int `json:"networks"` // with an answer
	Silent   int `json:"silent"`
	Split    int `json:"split"`
	// Caught is how many networks each site catches.
	Caught map[string]int `json:"caught"`
	// Elsewhere is how many networks are caught by another site than under the first origin, of Compared that answer under both.
	Elsewhere int `json:"elsewhere"`
	Compared  int `json:"compared"`
}

// siteSums is what one site caught.
type siteSums struct {
	Name     string   `json:"name"`
	Networks int      `json:"networks"`
	Answers  int      `json:"answers"`
	Share    float64  `json:"share"` // of the networks with an answer
	RTT      *rttSums `json:"rtt,omitempty"`
}

// rttSums is a distribution of round-trip times.
type rttSums struct {
	Count  int64         `json:"count"`
	P5     time.Duration `json:"p5_ns"`
	Median time.Duration `json:"p50_ns"`
	P95    time.Duration `json:"p95_ns"`
	// Curve has the quantiles 0, 0.02 and so on to 1.
	Curve []time.Duration `json:"curve_ns"`
}

type textSums struct {
	Site  string `json:"site"`
	Text  string `json:"text"`
	Count int    `json:"count"`
}

type latencySums struct {
	Targets  int `json:"targets"`  // that a site catches
	Inflated int `json:"inflated"` // that another site is nearer to
	// Worst are those that lose most, worst first.
	Worst []anycast.LatencyResult `json:"worst"`
}

type watchSums struct {
	Times []time.Time      `json:"times"`
	Sites map[string][]int `json:"sites"` // answers in each interval
	Lost  []int            `json:"lost"`
	Moved []int            `json:"moved"`
	// Moves are the newest, newest first; Matrix counts all.
	Moves  []anycast.Move `json:"moves"`
	Total  int            `json:"total"`
	Matrix []flow         `json:"matrix"`
}

// flow is how much went from one site to another; an empty name is no answer.
type flow struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Count int    `json:"count"`
}

type flipSums struct {
	Targets    int    `json:"targets"`
	ByFlow     int    `json:"by_flow"`
	ByProtocol int    `json:"by_protocol"`
	ByTime     int    `json:"by_time"`
	List       []flip `json:"list"`
}

// summarizeOrigin is summarize for one of several origins, "" for the first one.
func (a *aggregate) summarizeOrigin(m *anycast.Measurement, name string) (*summaryJSON, error) {
	o, name, err := a.choose(&m.Definition, name)
	if err != nil || o == a {
		return a.summarize(m), err
	}
	s := o.summarize(m)
	whole := a.summarize(m)
	s.Results, s.Alarms, s.Summary = whole.Results, whole.Alarms, whole.Summary
	s.Origin = name
	first := a.origin(m.Definition.Origins[0].Name)
	for _, origin := range m.Definition.Origins {
		o := a.origin(origin.Name)
		all := o.summarize(m)
		sums := originSums{Origin: origin, Networks: all.Networks, Silent: all.Silent, Split: all.Split, Caught: map[string]int{}}
		for _, site := range all.Sites {
			if site.Networks > 0 {
				sums.Caught[site.Name] = site.Networks
			}
		}
		c := compare(first, o, moverFilter{})
		sums.Elsewhere, sums.Compared = c.Moved, c.Moved+c.Same
		s.Origins = append(s.Origins, sums)
	}
	return s, nil
}

func (a *aggregate) summarize(m *anycast.Measurement) *summaryJSON {
	s := &summaryJSON{
		Measurement: brief(*m), Results: a.results, Beyond: a.beyond, Traces: slices.Clone(a.traces), Traced: a.traced,
		Alarms: slices.Clone(a.alarms), Answers: slices.Clone(a.answers), Summary: a.summary, Sites: []siteSums{},
	}
	sums := make([]siteSums, len(a.names))
	for i := range a.networks {
		n := &a.networks[i]
		if n.key < 1<<63 {
			s.IPv4++
		}
		home := a.home(n)
		if home == 0 {
			s.Silent++
			continue
		}
		s.Networks++
		if len(n.others) > 0 {
			s.Split++
		}
		sums[home].Networks++
		sums[n.first.site].Answers += int(n.first.count)
		for _, v := range n.others {
			sums[v.site].Answers += int(v.count)
		}
	}
	for i := 1; i < len(sums); i++ {
		sums[i].Name = a.names[i]
		if s.Networks > 0 {
			sums[i].Share = float64(sums[i].Networks) / float64(s.Networks)
		}
		sums[i].RTT = rttsOf(a.rtts[siteNo(i)])
		s.Sites = append(s.Sites, sums[i])
	}
	slices.SortFunc(s.Sites, func(x, y siteSums) int { return strings.Compare(x.Name, y.Name) })
	for t, n := range a.texts {
		s.Texts = append(s.Texts, textSums{a.names[t.site], t.text, n})
	}
	slices.SortFunc(s.Texts, func(x, y textSums) int {
		if x.Count != y.Count {
			return y.Count - x.Count
		}
		return strings.Compare(x.Site+"\x00"+x.Text, y.Site+"\x00"+y.Text)
	})
	s.Texts = s.Texts[:min(len(s.Texts), defaultRows)]
	if a.latencies > 0 {
		s.Latency = &latencySums{Targets: a.latencies, Inflated: a.inflated, Worst: append([]anycast.LatencyResult{}, a.worst...)}
	}
	if len(a.points) > 0 || a.moved > 0 {
		s.Watch = a.watched()
	}
	if a.flipped > 0 {
		s.Flips = &flipSums{Targets: a.flipped, ByFlow: a.byFlow, ByProtocol: a.byProtocol, ByTime: a.byTime, List: slices.Clone(a.flips)}
	}
	return s
}

func rttsOf(h *hdrhistogram.Histogram) *rttSums {
	if h == nil {
		return nil
	}
	at := func(percent float64) time.Duration {
		return time.Duration(h.ValueAtQuantile(percent)) * time.Microsecond
	}
	r := &rttSums{Count: h.TotalCount(), P5: at(5), Median: at(50), P95: at(95)}
	for percent := 0.0; percent <= 100; percent += 2 {
		r.Curve = append(r.Curve, at(percent))
	}
	r.Curve[0] = time.Duration(h.Min()) * time.Microsecond
	return r
}

func (a *aggregate) watched() *watchSums {
	w := &watchSums{
		Times: []time.Time{}, Sites: make(map[string][]int), Lost: []int{}, Moved: []int{}, Moves: a.newestMoves(), Total: a.moved, Matrix: flows(a.matrix, a.names),
	}
	for i, p := range a.points {
		w.Times = append(w.Times, p.time)
		w.Lost = append(w.Lost, p.lost)
		w.Moved = append(w.Moved, p.moved)
		for site, n := range p.sites {
			name := a.names[site]
			if w.Sites[name] == nil {
				w.Sites[name] = make([]int, len(a.points))
			}
			w.Sites[name][i] = n
		}
	}
	return w
}

func flows(matrix map[[2]siteNo]int, names []string) []flow {
	list := []flow{}
	for pair, n := range matrix {
		list = append(list, flow{names[pair[0]], names[pair[1]], n})
	}
	slices.SortFunc(list, func(x, y flow) int { return strings.Compare(x.From+"\x00"+x.To, y.From+"\x00"+y.To) })
	return list
}

// networkFilter chooses networks.
type networkFilter struct {
	search        string // an address, a prefix, or a part of one
	site          string // that reach it
	split, silent bool   // only those that reach several sites, or none
	offset, limit int
}

// networkJSON is a row of the table.
type networkJSON struct {
	Network netip.Prefix `json:"network"`
	// Site caught most of it, and is empty if nothing was answered.
	Site   string         `json:"site"`
	Seen   map[string]int `json:"seen"`
	Probes int            `json:"probes"`
	RTT    time.Duration  `json:"rtt_ns,omitempty"`
}

type networkPage struct {
	Networks []networkJSON `json:"networks"`
	Total    int           `json:"total"`
	Offset   int           `json:"offset"`
}

func (a *aggregate) page(f networkFilter) networkPage {
	p := networkPage{Networks: []networkJSON{}, Offset: f.offset}
	match := matcher(f.search)
	number, known := a.numbers[f.site]
	for _, i := range a.order() {
		n := &a.networks[i]
		if f.split && len(n.others) == 0 || f.silent && n.first.count > 0 || f.site != "" && (!known || !n.reaches(number)) || !match(n.key) {
			continue
		}
		if p.Total++; p.Total > f.offset && len(p.Networks) < f.limit {
			p.Networks = append(p.Networks, a.row(n))
		}
	}
	return p
}

func (n *network) reaches(site siteNo) bool {
	return n.first.count > 0 && n.first.site == site || slices.ContainsFunc(n.others, func(v votes) bool { return v.site == site })
}

func (a *aggregate) row(n *network) networkJSON {
	row := networkJSON{
		Network: prefixOf(n.key), Site: a.names[a.home(n)], Seen: map[string]int{}, Probes: int(n.probes), RTT: time.Duration(n.rtt) * time.Microsecond,
	}
	if n.first.count > 0 {
		row.Seen[a.names[n.first.site]] = int(n.first.count)
	}
	for _, v := range n.others {
		row.Seen[a.names[v.site]] = int(v.count)
	}
	return row
}

// matcher reads what somebody looks for.
func matcher(search string) func(key uint64) bool {
	search = strings.ToLower(strings.TrimSpace(search))
	if search == "" {
		return func(uint64) bool { return true }
	}
	if a, err := netip.ParseAddr(search); err == nil {
		want := keyOf(a)
		return func(key uint64) bool { return key == want }
	}
	if p, err := netip.ParsePrefix(search); err == nil {
		return func(key uint64) bool { return prefixOf(key).Overlaps(p) }
	}
	return func(key uint64) bool { return strings.HasPrefix(prefixOf(key).String(), search) }
}

// mapJSON is a part of the IPv4 Internet in cells along a Hilbert curve. Index and Site have an element for each cell in which there
// is something.
type mapJSON struct {
	Prefix   netip.Prefix `json:"prefix"`
	CellBits int          `json:"cell_bits"`
	Sites    []string     `json:"sites"` // the first is empty: no answer
	Index    []int        `json:"index"` // of the cell, by address
	Site     []int        `json:"site"`  // that catches most of its networks, in Sites
	// Blocks are the 256 squares of cells in which there is something, with all that is in them.
	Blocks []blockJSON `json:"blocks"`
}

type blockJSON struct {
	Index    int            `json:"index"`
	Networks int            `json:"networks"`
	Sites    map[string]int `json:"sites"` // networks by the site that catches them; "" is no answer
}

// hilbert sums up what lies in an IPv4 prefix, in at most 65536 cells of at least a /24.
func (a *aggregate) hilbert(p netip.Prefix) (*mapJSON, error) {
	if !p.Addr().Is4() || p.Bits() > 16 || p.Bits()%2 != 0 {
		return nil, fmt.Errorf("%w: a map is of an IPv4 prefix of 0, 2, ... or 16 bits", errRequest)
	}
	m := &mapJSON{
		Prefix: p, CellBits: min(24, p.Bits()+16), Sites: slices.Clone(a.names), Index: []int{}, Site: []int{}, Blocks: []blockJSON{},
	}
	first := keyOf(p.Addr())
	last := first + 1<<(24-p.Bits())
	shift := 24 - m.CellBits
	count := make(map[siteNo]int)
	cell, networks := -1, 0
	flush := func() {
		if networks == 0 {
			return
		}
		best := siteNo(0)
		for site, n := range count { // what answers decides, however much of the cell does not
			if site != 0 && (best == 0 || n > count[best] || n == count[best] && a.names[site] < a.names[best]) {
				best = site
			}
		}
		m.Index, m.Site = append(m.Index, cell), append(m.Site, int(best))
		clear(count)
		networks = 0
	}
	order := a.order()
	start, _ := slices.BinarySearchFunc(order, first, func(i int32, key uint64) int {
		if a.networks[i].key < key {
			return -1
		}
		return 1
	})
	for _, i := range order[start:] {
		n := &a.networks[i]
		if n.key >= last {
			break
		}
		if at := int((n.key - first) >> shift); at != cell {
			flush()
			cell = at
		}
		home := a.home(n)
		count[home]++
		networks++
		if block := int((n.key - first) >> (16 - p.Bits())); len(m.Blocks) == 0 || m.Blocks[len(m.Blocks)-1].Index != block {
			m.Blocks = append(m.Blocks, blockJSON{Index: block, Sites: map[string]int{}})
		}
		block := &m.Blocks[len(m.Blocks)-1]
		block.Networks++
		block.Sites[a.names[home]]++
	}
	flush()
	return m, nil
}

// moverFilter chooses networks that moved.
type moverFilter struct {
	search        string
	from, to      *string
	offset, limit int
}

type comparison struct {
	A anycast.Measurement `json:"a"`
	B anycast.Measurement `json:"b"`
	// Same networks are caught by the same site, Moved by another; Appeared were silent or not probed in A, Vanished in B.
	Same     int    `json:"same"`
	Moved    int    `json:"moved"`
	Appeared int    `json:"appeared"`
	Vanished int    `json:"vanished"`
	Matrix   []flow `json:"matrix"`
	// Movers are a page of those that are not the same, Total many after the filter.
	Movers []mover `json:"movers"`
	Total  int     `json:"total"`
	Offset int     `json:"offset"`
}

type mover struct {
	Network netip.Prefix `json:"network"`
	From    string       `json:"from"`
	To      string       `json:"to"`
}

// compare tells who moved from one measurement to another. A network counts for the site that caught most of it.
func compare(before, after *aggregate, f moverFilter) *comparison {
	c := &comparison{Movers: []mover{}, Offset: f.offset}
	match := matcher(f.search)
	count := make(map[[2]string]int)
	one := func(key uint64, from, to string) {
		if from == "" && to == "" {
			return
		}
		count[[2]string{from, to}]++
		switch {
		case from == to:
			c.Same++
			return
		case from == "":
			c.Appeared++
		case to == "":
			c.Vanished++
		default:
			c.Moved++
		}
		if f.from != nil && *f.from != from || f.to != nil && *f.to != to || !match(key) {
			return
		}
		if c.Total++; c.Total > f.offset && len(c.Movers) < f.limit {
			c.Movers = append(c.Movers, mover{prefixOf(key), from, to})
		}
	}
	x, y := before.order(), after.order()
	for len(x) > 0 || len(y) > 0 {
		switch {
		case len(y) == 0 || len(x) > 0 && before.networks[x[0]].key < after.networks[y[0]].key:
			n := &before.networks[x[0]]
			one(n.key, before.names[before.home(n)], "")
			x = x[1:]
		case len(x) == 0 || after.networks[y[0]].key < before.networks[x[0]].key:
			n := &after.networks[y[0]]
			one(n.key, "", after.names[after.home(n)])
			y = y[1:]
		default:
			m, n := &before.networks[x[0]], &after.networks[y[0]]
			one(m.key, before.names[before.home(m)], after.names[after.home(n)])
			x, y = x[1:], y[1:]
		}
	}
	c.Matrix = []flow{}
	for pair, n := range count {
		c.Matrix = append(c.Matrix, flow{pair[0], pair[1], n})
	}
	slices.SortFunc(c.Matrix, func(x, y flow) int { return strings.Compare(x.From+"\x00"+x.To, y.From+"\x00"+y.To) })
	return c
}

// graphJSON is a path as nodes and links.
type graphJSON struct {
	Nodes      []nodeJSON `json:"nodes"`
	Edges      []edgeJSON `json:"edges"`
	Confidence float64    `json:"confidence,omitempty"`
}

type nodeJSON struct {
	TTL       int           `json:"ttl"`
	Kind      string        `json:"kind"`
	Addr      netip.Addr    `json:"addr,omitzero"`
	Receivers []string      `json:"receivers"`
	Answers   int           `json:"answers"`
	Timed     int           `json:"timed"`
	Min       time.Duration `json:"min_ns"`
	Avg       time.Duration `json:"avg_ns"`
	Max       time.Duration `json:"max_ns"`
	MPLS      string        `json:"mpls,omitempty"`
	PerPacket bool          `json:"per_packet,omitempty"`
}

type edgeJSON struct {
	From      int  `json:"from"`
	To        int  `json:"to"`
	Flows     int  `json:"flows"`
	Uncertain bool `json:"uncertain,omitempty"`
}

func graphOf(g *trace.Graph) graphJSON {
	j := graphJSON{Nodes: []nodeJSON{}, Edges: []edgeJSON{}, Confidence: g.Confidence}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		j.Nodes = append(j.Nodes, nodeJSON{
			TTL: n.TTL, Kind: n.Kind.String(), Addr: n.Addr, Receivers: append([]string{}, n.Receivers...), Answers: n.Answers,
			Timed: n.Timed, Min: n.Min, Avg: n.Avg, Max: n.Max, MPLS: trace.LabelsText(n.MPLS), PerPacket: n.PerPacket,
		})
	}
	for _, e := range g.Edges {
		j.Edges = append(j.Edges, edgeJSON{From: e.From, To: e.To, Flows: len(e.Flows), Uncertain: e.Uncertain})
	}
	return j
}
