// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/seed5728abee/fathom/probe"
)

// Table is a catchment map: for each [Network], how many answers came home at each site. It takes about 60 bytes for each
// network. The zero Table is empty and ready.
type Table struct {
	names []string // of sites
	sites map[string]uint16
	nets  map[uint64]heard
}

// heard is the answers of one network. Nearly all networks reach one site.
type heard struct {
	site  uint16
	n     uint32 // answers at site
	none  uint32 // probes without one
	other []siteCount
}

type siteCount struct {
	site uint16
	n    uint32
}

// TableOf makes a table of catches, such as those in a store.
func TableOf(catches iter.Seq[*Catch]) *Table {
	t := &Table{}
	for c := range catches {
		t.Add(c)
	}
	return t
}

// Add books a catch: an answer if the target replied, else a probe without one.
func (t *Table) Add(c *Catch) {
	if t.nets == nil {
		t.nets, t.sites = make(map[uint64]heard), make(map[string]uint16)
	}
	if !c.Target.IsValid() {
		return
	}
	key := networkKey(c.Target.Unmap())
	h := t.nets[key]
	if c.Receiver == "" || c.Status != probe.Replied {
		h.none++
		t.nets[key] = h
		return
	}
	site, ok := t.sites[c.Receiver]
	if !ok {
		site = uint16(len(t.names))
		t.sites[c.Receiver] = site
		t.names = append(t.names, c.Receiver)
	}
	if h.n == 0 {
		h.site = site
	}
	if h.site == site {
		h.n++
	} else if at := slices.IndexFunc(h.other, func(o siteCount) bool { return o.site == site }); at >= 0 {
		h.other[at].n++
	} else {
		h.other = append(h.other, siteCount{site, 1})
	}
	t.nets[key] = h
}

// Tables are the catchment maps of the origins of a measurement. The zero Tables is empty and ready.
type Tables struct{ byOrigin map[string]*Table }

// Add books a catch in the table of its origin.
func (t *Tables) Add(c *Catch) { t.Table(c.Origin).Add(c) }

// Table gives the map of an origin, "" for the only one of a measurement. It is empty at first.
func (t *Tables) Table(origin string) *Table {
	if t.byOrigin == nil {
		t.byOrigin = make(map[string]*Table)
	}
	table := t.byOrigin[origin]
	if table == nil {
		table = &Table{}
		t.byOrigin[origin] = table
	}
	return table
}

// Row is a network's catchment.
type Row struct {
	Network netip.Prefix
	// Site heard most of the answers, the first by name if there are several such; empty if there were none.
	Site string
	// Share is how much of the answers that was, from 0 to 1: below 1 the network is split.
	Share float64
	// Answers is how many came, Silent how many probes had none.
	Answers, Silent int
}

// row gives the catchment of a network.
func (t *Table) row(key uint64) Row {
	h := t.nets[key]
	r := Row{Network: keyNetwork(key), Silent: int(h.none), Answers: int(h.n)}
	if h.n == 0 {
		return r
	}
	most := int(h.n)
	r.Site = t.names[h.site]
	for _, o := range h.other {
		r.Answers += int(o.n)
		if name := t.names[o.site]; int(o.n) > most || int(o.n) == most && name < r.Site {
			r.Site, most = name, int(o.n)
		}
	}
	r.Share = float64(most) / float64(r.Answers)
	return r
}

// Len is how many networks there are.
func (t *Table) Len() int { return len(t.nets) }

// Lookup gives the catchment of an address' network; ok is false if nothing is known about it.
func (t *Table) Lookup(a netip.Addr) (r Row, ok bool) {
	key := networkKey(a.Unmap())
	_, ok = t.nets[key]
	return t.row(key), ok
}

// Rows gives all networks, IPv4 first, by address.
func (t *Table) Rows() iter.Seq[Row] {
	return func(yield func(Row) bool) {
		keys := make([]uint64, 0, len(t.nets))
		for k := range t.nets {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if !yield(t.row(k)) {
				return
			}
		}
	}
}

// Total sums up a table.
type Total struct {
	// Networks is how many each site catches; Silent how many do not answer; Split how many reach several sites (they
	// count for the one that hears most).
	Networks      map[string]int
	Silent, Split int
	// Weight is the same as Networks in the user's query counts, Unmapped the queries of networks that are not in
	// the table or are silent. Both are empty without weights.
	Weight   map[string]float64
	Unmapped float64
}

// Total sums up. The queries of a network count for the sites of what lies inside it, in proportion to their number of
// networks; those of a network smaller than the table's count for the site that this one reaches.
func (t *Table) Total(weights []Weight) Total {
	total := Total{Networks: make(map[string]int)}
	var index *bart.Table[int]
	counts := make([]map[string]int, len(weights))
	if len(weights) > 0 {
		index, total.Weight = new(bart.Table[int]), make(map[string]float64)
		for i, w := range weights {
			index.Insert(w.Network.Masked(), i)
		}
	}
	for key := range t.nets {
		r := t.row(key)
		switch {
		case r.Site == "":
			total.Silent++
			continue
		case r.Share < 1:
			total.Split++
		}
		total.Networks[r.Site]++
		if index == nil {
			continue
		}
		if i, ok := index.LookupPrefix(r.Network); ok {
			if counts[i] == nil {
				counts[i] = make(map[string]int, 1)
			}
			counts[i][r.Site]++
		}
	}
	for i, w := range weights {
		at := counts[i]
		if at == nil {
			if r, ok := t.Lookup(w.Network.Addr()); ok && r.Site != "" && r.Network.Bits() <= w.Network.Bits() {
				at = map[string]int{r.Site: 1}
			}
		}
		sum := 0
		for _, n := range at {
			sum += n
		}
		if sum == 0 {
			total.Unmapped += w.Queries
			continue
		}
		for site, n := range at {
			total.Weight[site] += w.Queries * float64(n) / float64(sum)
		}
	}
	return total
}

// Shift is a network that another site catches than before.
type Shift struct {
	Network netip.Prefix `json:"network"`
	// From and To are sites; From is empty if the network was silent or not probed before, To if it is now.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Queries is the network's share of the user's query counts, if given.
	Queries float64 `json:"queries,omitempty"`
}

// Comparison is what changed between two tables.
type Comparison struct {
	// Shifts are the networks that moved, appeared or vanished, by network.
	Shifts []Shift
	// Same is how many networks are where they were; Moved reach another site; Appeared are silent or missing in
	// the first table, Vanished in the second.
	Same, Moved, Appeared, Vanished int
	// Matrix counts networks by the site before and the site after, empty for none.
	Matrix map[[2]string]int
	// SameQueries and MovedQueries are Same and Moved in the user's query counts.
	SameQueries, MovedQueries float64
}

// Share is how much moved, from 0 to 1, of the networks that answer in both tables; in queries if there are any.
func (c *Comparison) Share() float64 {
	same, moved := float64(c.Same), float64(c.Moved)
	if c.SameQueries+c.MovedQueries > 0 {
		same, moved = c.SameQueries, c.MovedQueries
	}
	if same+moved == 0 {
		return 0
	}
	return moved / (same + moved)
}

// Compare tells what changed from one table to another: who moved, from where to where. A network counts for
// the site that hears most of it. Weights may be nil; the queries of a network larger than the table's are
// shared out evenly over what both tables have inside it.
func Compare(before, after *Table, weights []Weight) *Comparison {
	c := &Comparison{Matrix: make(map[[2]string]int)}
	queries := spreadQueries(before, after, weights)
	one := func(key uint64) {
		a, b := before.row(key), after.row(key)
		if a.Site == "" && b.Site == "" {
			return
		}
		c.Matrix[[2]string{a.Site, b.Site}]++
		q := queries[key]
		switch {
		case a.Site == b.Site:
			c.Same++
			c.SameQueries += q
			return
		case a.Site == "":
			c.Appeared++
		case b.Site == "":
			c.Vanished++
		default:
			c.Moved++
			c.MovedQueries += q
		}
		c.Shifts = append(c.Shifts, Shift{Network: a.Network, From: a.Site, To: b.Site, Queries: q})
	}
	for key := range before.nets {
		one(key)
	}
	for key := range after.nets {
		if _, ok := before.nets[key]; !ok {
			one(key)
		}
	}
	slices.SortFunc(c.Shifts, func(a, b Shift) int {
		return cmp.Or(a.Network.Addr().Compare(b.Network.Addr()), cmp.Compare(a.Network.Bits(), b.Network.Bits()))
	})
	return c
}

// spreadQueries gives each network of two tables its queries.
func spreadQueries(before, after *Table, weights []Weight) map[uint64]float64 {
	queries := make(map[uint64]float64)
	if len(weights) == 0 {
		return queries
	}
	index := new(bart.Table[int])
	for i, w := range weights {
		if p := w.Network.Masked(); p.Bits() > Network(p.Addr()).Bits() {
			queries[networkKey(p.Addr())] += w.Queries // smaller than a network
		} else {
			index.Insert(p, i)
		}
	}
	owner := make(map[uint64]int)
	counts := make([]int, len(weights))
	for _, t := range []*Table{before, after} {
		for key := range t.nets {
			if _, ok := owner[key]; ok {
				continue
			}
			if i, ok := index.LookupPrefix(keyNetwork(key)); ok {
				owner[key] = i
				counts[i]++
			}
		}
	}
	for key, i := range owner {
		queries[key] += weights[i].Queries / float64(counts[i])
	}
	return queries
}
