// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Job is a measurement to run.
type Job struct {
	Fleet      Fleet
	Definition Definition
	Targets    []Target
	// Feed, if it is set, gives the targets in place of Targets, while the measurement runs: catchment, latency and flipping only.
	Feed Feed
	Sink Sink
	// Done tells which targets have their results already, from a run that was cut: they are skipped. May be nil.
	Done func(netip.Addr) bool
	// Prior gives these targets, each once, with the site that it reaches under each of the definition's origins ("" is none), so that
	// the summary of a catchment is about all targets. May be nil.
	Prior iter.Seq2[netip.Addr, []string]
	// Log is for what the operator should know. By default nothing is logged.
	Log *slog.Logger
	// Seed makes the order of the targets repeatable; 0 is another order each time.
	Seed uint64
}

// Feed gives targets as they become known. It waits until there are some, in any number, and is called again when these are
// as good as sent, by one goroutine. The slice is the callee's again with the next call; its order may be changed. io.EOF tells that there
// are no more, and another error ends the measurement as it is, with that error. It must return when ctx ends.
type Feed func(ctx context.Context) ([]Target, error)

// Run runs a measurement of any kind but KindVolta to its end. What it finds goes to the sink, a [Summary] last. When ctx ends or
// the sink fails, what was found by then has been given to the sink, the summary included.
func Run(ctx context.Context, f Fleet, d Definition, targets []Target, s Sink) error {
	return (&Job{Fleet: f, Definition: d, Targets: targets, Sink: s}).Run(ctx)
}

// Run runs the job. Errors: ErrDefinition; ErrNoSite if none of the sites asked for is there; ErrNoSource; those of
// Fleet.Open, of the sink and of ctx.
func (j *Job) Run(ctx context.Context) error {
	def := j.Definition
	def.Feed = j.Feed != nil
	if err := def.Check(); err != nil {
		return err
	}
	r, err := j.begin()
	if err != nil {
		return fmt.Errorf("%s: %w", j.Definition.Program, err)
	}
	switch r.def.Program {
	case KindTrace:
		err = r.trace(ctx)
	case KindCatchment:
		err = r.catchment(ctx)
	case KindLatency:
		err = r.latency(ctx)
	case KindFlipping:
		err = r.flipping(ctx)
	case KindWatch:
		err = r.watch(ctx)
	case KindVolta:
		return fmt.Errorf("%w: program volta is the controller's", ErrDefinition)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	r.summary.Took = time.Since(r.start)
	if sinkErr := j.Sink.Results([]Result{&r.summary}); err == nil {
		err = sinkErr
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.def.Program, err)
	}
	return nil
}

// run is a job under way.
type run struct {
	*Job
	def     Definition // with defaults
	senders []Site
	origins []sender // at least one
	start   time.Time
	summary Summary
	rng     *rand.Rand
}

func (j *Job) begin() (*run, error) {
	r := &run{Job: j, def: j.Definition.WithDefaults(), start: time.Now()}
	seed := j.Seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	r.rng = rand.New(rand.NewPCG(seed, 0))
	r.summary.Targets = len(j.Targets)
	if err := r.chooseSenders(); err != nil {
		return nil, err
	}
	r.placeOrigins()
	return r, nil
}

// chooseSenders finds the sites to send from.
func (r *run) chooseSenders() error {
	all := r.Fleet.Sites()
	origins := r.def.OriginList()
	asked := r.def.Sites
	if len(asked) == 0 {
		for i := range all {
			asked = append(asked, all[i].Name)
		}
	}
	var missing []string
	why := ErrNoSite
	for _, name := range slices.Compact(slices.Sorted(slices.Values(asked))) {
		i := slices.IndexFunc(all, func(s Site) bool { return s.Name == name })
		switch {
		case i < 0:
			missing = append(missing, name)
			r.note("site %s was not connected", name)
		case !all[i].Native:
			if len(r.def.Sites) > 0 {
				missing, why = append(missing, name), ErrCannotSend
				r.note("site %s cannot send: it does not run Fathom's agent", name)
			}
		case !slices.ContainsFunc(origins, func(o Origin) bool { return o.uses(&all[i]) }):
			if len(r.def.Origins) > 0 && len(r.def.Sites) == 0 {
				continue // others hold them
			}
			missing, why = append(missing, name), ErrNoSource
			r.note("site %s has no address to send from", name)
		default:
			r.senders = append(r.senders, all[i])
		}
	}
	if len(r.senders) == 0 {
		if len(missing) == 0 && len(r.def.Origins) > 0 && len(all) > 0 {
			return fmt.Errorf("origins: %w", ErrNoSource)
		}
		if len(missing) == 0 {
			return ErrNoSite
		}
		return fmt.Errorf("%s: %w", strings.Join(missing, ", "), why)
	}
	if r.def.Program == KindTrace && len(r.senders) > 1 {
		return &FieldError{Field: "sites", Value: asked, Reason: "a trace is sent from one site: name one"}
	}
	return nil
}

// note adds to what the user should know, once.
func (r *run) note(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if !slices.Contains(r.summary.Notes, s) {
		r.summary.Notes = append(r.summary.Notes, s)
		if r.Log != nil {
			r.Log.Info("measurement", "note", s)
		}
	}
}

// take filters the targets, shuffles them, and drops those that are there twice. Those of a feed are yet to come.
func (r *run) take() *targetSet {
	if r.Feed != nil {
		return newTargetSet(nil)
	}
	f := newFilter(&r.def, r.Done, r.origins)
	addrs := make([]netip.Addr, 0, len(r.Targets))
	for i := range r.Targets {
		if a := r.Targets[i].Addr.Unmap(); f.takes(a) {
			addrs = append(addrs, a)
		}
	}
	r.rng.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	set := newTargetSet(addrs)
	if n := len(addrs) - len(set.addrs); n > 0 {
		f.skipped[SkipDuplicate] += n
	}
	if len(f.skipped) > 0 {
		r.summary.Skipped = f.skipped
	}
	return set
}
