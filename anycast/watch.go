// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/probe/stateless"
)

// watchSlices is how many batches a round is sent as, at least: probes are spread over the interval.
const watchSlices = 4

// watch is the program of KindWatch: every target is probed once per interval, a round, and a probe's number is its round's. All
// probes come from one sender, the first that is there. A round is judged when the time for its answers is over.
type watch struct {
	r       *run
	targets *targetSet
	session Session
	wake    chan struct{}
	rounds  int // in all
	numbers int // a round's number is its index modulo that

	mu      sync.Mutex // guards all following fields
	sites   []string
	byName  map[string]uint16
	open    []*watchRound // in order; the first has index judged
	judged  int
	batches map[uint64]watchBatch
	lastID  uint64
	lost    string // site whose connection was
	counts  counts
	why     error // a site could not send something

	// What run knows; only its goroutine touches these.
	last  []watched // by target
	waves []wave
	moved int // in all
}

// watchRound is one probe to each target.
type watchRound struct {
	index    int
	start    time.Time
	records  []watchRecord
	left     int // probes that are not reported
	reported time.Time
}

// watchRecord is 16 bytes: who heard the answer, and when by the controller's clock, since the round's start.
type watchRecord struct {
	state recordState
	site  uint16
	after time.Duration
}

type watchBatch struct {
	round *watchRound
	first int
	n     int
}

// watched is what is known about a target.
type watched struct {
	site  uint16
	heard time.Time // the last answer
	known bool
	round int // of the last answer
}

// wave is a time in which targets moved, with no pause as long as Settle.
type wave struct{ first, last time.Time }

func (r *run) watch(ctx context.Context) error {
	o := r.def.Watch
	p := &watch{
		r: r, targets: r.take(), wake: make(chan struct{}, 1), byName: make(map[string]uint16), batches: make(map[uint64]watchBatch),
		rounds: int((o.Duration + o.Interval - 1) / o.Interval), numbers: stateless.MaxNumber + 1,
	}
	n := len(p.targets.addrs)
	if n == 0 {
		return nil
	}
	if rate := float64(n) / o.Interval.Seconds(); rate > r.def.Pace.Rate {
		return &FieldError{
			Field: "pace.rate", Value: r.def.Pace.Rate,
			Reason: fmt.Sprintf("%d targets every %v are %.0f probes per second: allow that, or watch fewer targets, or less often", n, o.Interval, rate),
		}
	}
	ports := 1
	if r.def.Protocol == chaos {
		p.numbers = int(r.def.Timeout/o.Interval) + 2
		ports = p.numbers
	}
	p.last = make([]watched, n)
	session, err := r.Fleet.Open(ctx, SessionConfig{Probes: r.def.probes(ports), Handler: p, Linger: r.def.Timeout})
	if err != nil {
		return fmt.Errorf("open a session: %w", err)
	}
	defer session.Close()
	p.session = session
	return errors.Join(p.run(ctx), p.finish())
}

// run sends rounds and judges them.
func (p *watch) run(ctx context.Context) error {
	o := p.r.def.Watch
	slices := max(1, min(watchSlices, len(p.targets.addrs)))
	for (len(p.targets.addrs)+slices-1)/slices > maxBatch {
		slices++
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	begin := time.Now()
	for sent := 0; ; { // batches
		now := time.Now()
		for sent < p.rounds*slices {
			due := begin.Add(time.Duration(float64(o.Interval) * float64(sent) / float64(slices)))
			if due.After(now) {
				timer.Reset(due.Sub(now))
				break
			}
			p.send(sent/slices, sent%slices, slices, now)
			sent++
		}
		wait, err := p.judge(now)
		if err != nil {
			return err
		}
		if sent == p.rounds*slices {
			if p.judged == p.rounds {
				return nil
			}
			timer.Reset(wait)
		}
		select {
		case <-timer.C:
		case <-p.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// send sends one slice of a round.
func (p *watch) send(index, slice, slices int, now time.Time) {
	n := len(p.targets.addrs)
	first, last := n*slice/slices, n*(slice+1)/slices
	p.mu.Lock()
	if slice == 0 {
		p.open = append(p.open, &watchRound{index: index, start: now, records: make([]watchRecord, n), left: n})
	}
	round := p.open[len(p.open)-1]
	for i := first; i < last; i++ {
		round.records[i].state = flying
	}
	p.mu.Unlock()
	for _, six := range []bool{false, true} {
		// The targets of one IP version in a row go into one batch; a sample is rarely mixed.
		for at := first; at < last; {
			end := at
			for end < last && p.targets.addrs[end].Is6() == p.targets.addrs[at].Is6() {
				end++
			}
			if p.targets.addrs[at].Is6() == six {
				p.sendBatch(round, at, end)
			}
			at = end
		}
	}
}

// sendBatch has some targets of a round probed by the first sender that can.
func (p *watch) sendBatch(round *watchRound, first, last int) {
	p.mu.Lock()
	p.lastID++
	id := p.lastID
	p.batches[id] = watchBatch{round: round, first: first, n: last - first}
	p.mu.Unlock()
	b := Batch{
		ID: id, Targets: p.targets.addrs[first:last], TTLs: []uint8{probeTTL}, Flows: []uint16{0},
		Numbers: []uint16{uint16(round.index % p.numbers)},
	}
	err := ErrNoSite
	for i := range p.r.senders {
		s := &p.r.senders[i]
		b.Source = sourceOf(s, p.r.def.Source, b.Targets[0].Is6())
		if !b.Source.IsValid() {
			continue
		}
		if err = p.session.Send(s.Name, b); err == nil {
			return
		}
	}
	p.HandleSent(Sent{Batch: id, Err: err})
}

// HandleSent implements Handler.
func (p *watch) HandleSent(e Sent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.batches[e.Batch]
	if !ok {
		return
	}
	delete(p.batches, e.Batch)
	b.round.reported = time.Now()
	b.round.left -= b.n
	for k := range b.n {
		rec := &b.round.records[b.first+k]
		switch {
		case k < e.Count || rec.state == answered:
			p.counts.sent++
			if rec.state == flying {
				rec.state = pending
			}
		case rec.state == flying:
			rec.state = refused
			p.counts.refused++
		}
	}
	if e.Err != nil {
		p.why = e.Err
		if errors.Is(e.Err, ErrSiteLost) {
			p.lost = e.Site
		}
	}
	p.look()
}

// HandleAnswers implements Handler.
func (p *watch) HandleAnswers(all []Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for i := range all {
		a := &all[i]
		at, ok := p.targets.find(a.Target)
		index := p.indexLocked(int(a.Number))
		switch {
		case !ok || index < 0:
			p.counts.unknown++
			continue
		case index < p.judged:
			// First or again: that is not known any more, since only rounds that are not judged are kept.
			p.counts.late++
			continue
		}
		round := p.open[index-p.judged]
		rec := &round.records[at]
		switch rec.state {
		case answered:
			p.counts.duplicates++
			continue
		case idle: // not sent yet
			p.counts.unknown++
			continue
		case refused:
			p.counts.refused--
			p.counts.sent++
		default:
		}
		p.counts.answered++
		if !isReply(a.Status) {
			continue
		}
		site, ok := p.byName[a.Site]
		if !ok {
			site = uint16(len(p.sites))
			p.byName[a.Site] = site
			p.sites = append(p.sites, a.Site)
		}
		*rec = watchRecord{state: answered, site: site, after: now.Sub(round.start)}
	}
}

// indexLocked is the latest round with a number; less than 0 if none has had it yet.
func (p *watch) indexLocked(number int) int {
	latest := p.judged + len(p.open) - 1
	return latest - ((latest-number)%p.numbers+p.numbers)%p.numbers
}

func (p *watch) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// judge takes the rounds whose time is over, and gives the time until the next one's is.
func (p *watch) judge(now time.Time) (time.Duration, error) {
	for {
		p.mu.Lock()
		if len(p.open) == 0 || p.open[0].left > 0 {
			p.mu.Unlock()
			return time.Hour, nil // until it is reported, or begun
		}
		round := p.open[0]
		if left := round.reported.Add(p.r.def.Timeout).Sub(now); left > 0 {
			p.mu.Unlock()
			return left, nil
		}
		p.open[0] = nil
		p.open = p.open[1:]
		p.judged++
		sites := p.sites
		progress := Progress{Total: p.rounds, Done: p.judged, Sent: p.counts.sent, Answered: p.counts.answered}
		p.mu.Unlock()

		results := p.take(round, sites)
		if err := p.r.Sink.Results(results); err != nil {
			return 0, err
		}
		if p.judged%max(1, int(time.Second/p.r.def.Watch.Interval)) == 0 {
			progress.Left = time.Duration(p.rounds-p.judged) * p.r.def.Watch.Interval
			p.r.Sink.Progress(progress)
		}
	}
}

// take says what a round shows.
func (p *watch) take(round *watchRound, sites []string) []Result {
	res := &WatchResult{Time: round.start, Sites: make(map[string]int)}
	results := []Result{res}
	for i := range round.records {
		rec := &round.records[i]
		if rec.state == pending {
			res.Lost++
		}
		if rec.state != answered {
			continue
		}
		res.Sites[sites[rec.site]]++
		w := &p.last[i]
		heard := round.start.Add(rec.after)
		if w.known && w.site != rec.site {
			m := &Move{Target: p.targets.addrs[i], From: sites[w.site], To: sites[rec.site], Time: heard}
			if round.index > w.round+1 {
				m.Gap = heard.Sub(w.heard)
			}
			results = append(results, m)
			res.Moved++
			p.move(heard)
		}
		*w = watched{site: rec.site, heard: heard, known: true, round: round.index}
	}
	return results
}

// move books when a target moved.
func (p *watch) move(at time.Time) {
	p.moved++
	if n := len(p.waves); n == 0 || at.Sub(p.waves[n-1].last) > p.r.def.Watch.Settle {
		p.waves = append(p.waves, wave{at, at})
		return
	}
	w := &p.waves[len(p.waves)-1]
	if at.After(w.last) {
		w.last = at
	}
	if at.Before(w.first) {
		w.first = at
	}
}

// finish sums up, and tells of the targets that fell silent.
func (p *watch) finish() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := &p.r.summary
	sum.Sent, sum.Answered, sum.Duplicates = p.counts.sent, p.counts.answered, p.counts.duplicates
	sum.Late, sum.Unknown, sum.Refused = p.counts.late, p.counts.unknown, p.counts.refused
	sum.Answered += p.counts.late
	sum.Moved = p.moved
	sum.Sites = make(map[string]int)
	end := time.Now()
	gone := 0
	var results []Result
	for i := range p.last {
		w := &p.last[i]
		switch {
		case !w.known:
		case p.judged-1-w.round > int(p.r.def.Watch.Settle/p.r.def.Watch.Interval):
			gone++
			results = append(results, &Move{Target: p.targets.addrs[i], From: p.sites[w.site], Time: w.heard, Gap: end.Sub(w.heard)})
		default:
			sum.Sites[p.sites[w.site]]++
		}
	}
	var err error
	if len(results) > 0 {
		err = p.r.Sink.Results(results)
		p.r.note("%d targets had not answered for %v at the end", gone, p.r.def.Watch.Settle)
	}
	switch {
	case p.lost != "":
		p.r.note("the connection to site %s was lost on the way", p.lost)
	case p.why != nil:
		p.r.note("some probes could not be sent: %v", p.why)
	}
	if len(p.waves) == 0 {
		return err
	}
	first := p.waves[0]
	sum.Converged = max(first.last.Sub(first.first), 1)
	if len(p.waves) == 1 && end.Add(-p.r.def.Timeout).Sub(first.last) < p.r.def.Watch.Settle {
		sum.Converged = 0
		p.r.note("catchments were still moving at the end")
	}
	for _, w := range p.waves[1:] {
		p.r.note("catchments moved again, from %v to %v after the first move",
			w.first.Sub(first.first).Round(time.Millisecond), w.last.Sub(first.first).Round(time.Millisecond))
	}
	return err
}

var _ Handler = (*watch)(nil)
