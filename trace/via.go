// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"context"

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
