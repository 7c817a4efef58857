// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"net/netip"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

var (
	_ trace.Via = (*probe.Prober)(nil)
	_ trace.Via = (*tracetest.Network)(nil)
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
