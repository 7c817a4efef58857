// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"context"
	"sync"

	"github.com/seed5728abee/fathom/probe"
)

// Via is a way to send probes: this host's [probe.Prober], or anything that sends them from
// elsewhere or over another kind of network.
//
// Probe sends one probe with the request's hop limit and tells what came back. It waits for the
// answer, for the request's timeout, or for ctx, whichever comes first, and is called from
// several goroutines at once. Losing a probe is a result (probe.NoReply), not an error: an error
// means that probing as asked is not possible, and ends the trace.
type Via interface {
	Probe(ctx context.Context, req probe.Request) (probe.Result, error)
}

// starter is Starter as *probe.Prober has it.
type starter interface {
	Start(req probe.Request, done func(probe.Result)) (probe.Handle, error)
	Cancel(probe.Handle)
}

var _ starter = (*probe.Prober)(nil)

// Starter is what a Via may have beside Probe: a way to send without a goroutine for each probe, and in the order of
// the calls.
//
// StartProbe sends a probe. done is called once with what Probe would return (the error as Result.Err), on any
// goroutine, and does not block; cancel ends the probe early. If StartProbe fails, done is not called.
type Starter interface {
	StartProbe(req probe.Request, done func(probe.Result)) (cancel func(), err error)
}

// send sends a probe. done is called once with what Probe would return, on any goroutine, and must
// not block; wg has it counted until then. The probe ends early when cancel is called, which has to be done in any case.
func send(ctx context.Context, wg *sync.WaitGroup, via Via, req probe.Request, done func(probe.Result, error)) (cancel func()) {
	var start func(probe.Request, func(probe.Result)) (func(), error)
	switch s := via.(type) {
	case Starter:
		start = s.StartProbe
	case starter:
		start = func(req probe.Request, ended func(probe.Result)) (func(), error) {
			h, err := s.Start(req, ended)
			return func() { s.Cancel(h) }, err
		}
	default:
		ctx, cancel = context.WithCancel(ctx)
		wg.Go(func() { done(via.Probe(ctx, req)) })
		return cancel
	}
	wg.Add(1)
	cancel, err := start(req, func(r probe.Result) {
		defer wg.Done()
		done(r, r.Err)
	})
	if err != nil {
		defer wg.Done()
		done(probe.Result{Status: probe.Failed, Err: err}, err)
		return func() {}
	}
	return cancel
}
