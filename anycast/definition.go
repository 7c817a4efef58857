// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/probe/stateless"
)

// ProgramKind names what a measurement does.
type ProgramKind string

// The programs of this package.
const (
	KindTrace     ProgramKind = "trace"
	KindCatchment ProgramKind = "catchment"
	KindLatency   ProgramKind = "latency"
	KindFlipping  ProgramKind = "flipping"
	KindWatch     ProgramKind = "watch"
	// KindVolta is a text request in Voltadomar's language, kept so that it is listed and stored with the others.
	KindVolta ProgramKind = "volta"
)

// Definition says what to measure. It is kept with the results for as long as they are.
// The zero value of an option is its default.
type Definition struct {
	// Program is what to do.
	Program ProgramKind `json:"program"`
	// Name is a label of the user's.
	Name string `json:"name,omitempty"`
	// Sites are the senders; none means all (a trace needs exactly one).
	Sites []string `json:"sites,omitempty"`
	// Source is the anycast address to send from; by default each site's first of the target's IP version.
	Source netip.Addr `json:"source,omitzero"`
	// Origins are several things to send from, side by side, in place of Source: for catchment, latency and flipping. The
	// pace holds for all of them together. Each result says which of them it is about.
	Origins []Origin `json:"origins,omitempty"`
	// Feed tells that the targets come while the measurement runs, see [Job.Feed].
	Feed bool `json:"feed,omitempty"`
	// Protocol is what probes are made of.
	Protocol stateless.Kind `json:"protocol,omitzero"`
	// Port is the destination port, Size the length of the IP packets in bytes, TOS their type of service.
	Port uint16 `json:"port,omitempty"`
	Size int    `json:"size,omitempty"`
	TOS  uint8  `json:"tos,omitempty"`
	// Query is the DNS name asked for, for the protocol DNS.
	Query string `json:"query,omitempty"`
	// Note is put into the probes' payload where there is one: the address of a page that explains the measurement, say.
	Note string `json:"note,omitempty"`
	// Timeout is how long an answer is waited for. Default 2 s.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	// Attempts is how often a target without an answer is probed. Default 1; for a trace, the probes per hop, default 3.
	Attempts int `json:"attempts,omitempty"`

	// Responsive has the further sites of a catchment leave out the targets that did not answer the sites before them: with
	// many sites and a hit list that is mostly silent, most probes are spared. The sites take turns in being the first.
	Responsive bool `json:"responsive,omitempty"`

	Pace Pace `json:"pace,omitzero"`
	// AllowPrivate probes private and other special addresses too, which are otherwise skipped.
	AllowPrivate bool `json:"allow_private,omitempty"`
	// OptOut are networks that must not be probed.
	OptOut []netip.Prefix `json:"opt_out,omitempty"`

	Trace    *TraceOptions    `json:"trace,omitempty"`
	Flipping *FlippingOptions `json:"flipping,omitempty"`
	Watch    *WatchOptions    `json:"watch,omitempty"`

	// Weights are the user's query counts per network, for load-weighted catchments.
	Weights []Weight `json:"weights,omitempty"`
	// Schedule repeats the measurement; nil runs it once, now.
	Schedule *Schedule `json:"schedule,omitempty"`
	// Command is the request of a KindVolta measurement.
	Command string `json:"command,omitempty"`
}

// Pace bounds how fast targets are probed.
type Pace struct {
	// Rate is probes per second in all. Default 1000.
	Rate float64 `json:"rate,omitempty"`
	// PerNetwork is probes per second to one /24 or /48. Default 1: routers and hosts limit ICMP, and above
	// about that the answers are distorted (ISI-TR-717). Less than 0 is no limit.
	PerNetwork float64 `json:"per_network,omitempty"`
	// SiteGap is the least time between probes from different sites to one target. Default 1 s, less than 0 is none.
	SiteGap time.Duration `json:"site_gap_ns,omitempty"`
}

// Method is how a trace looks for the path.
type Method string

// The methods of a trace.
const (
	MethodParis     Method = "paris"
	MethodClassic   Method = "classic"
	MethodMultipath Method = "multipath"
)

// TraceOptions are those of a trace.
type TraceOptions struct {
	// Method is Paris unless set.
	Method Method `json:"method,omitempty"`
	// FirstHop and MaxHops bound the hop limits. Defaults 1 and 30.
	FirstHop int `json:"first_hop,omitempty"`
	MaxHops  int `json:"max_hops,omitempty"`
	// GapLimit ends the trace after so many silent hops. Default 8, less than 0 is never.
	GapLimit int `json:"gap_limit,omitempty"`
	// Confidence of a multipath trace that no way was missed. Default 0.95.
	Confidence float64 `json:"confidence,omitempty"`
}

// FlippingOptions are those of a search for targets that change site.
type FlippingOptions struct {
	// Flows is how many flows each target is probed with. Default 8.
	Flows int `json:"flows,omitempty"`
	// Protocols are tried beside each other. Default: the definition's.
	Protocols []stateless.Kind `json:"protocols,omitempty"`
	// Rounds is how often all of it is repeated, Interval how far apart. Defaults 2 and 10 s.
	Rounds   int           `json:"rounds,omitempty"`
	Interval time.Duration `json:"interval_ns,omitempty"`
	// NoPaths leaves out the traces that look for the hop where the paths of a flipping target part.
	NoPaths bool `json:"no_paths,omitempty"`
}

// WatchOptions are those of a convergence watch.
type WatchOptions struct {
	// Interval is how often each target is probed. Default 100 ms.
	Interval time.Duration `json:"interval_ns,omitempty"`
	// Duration is how long. Default 60 s.
	Duration time.Duration `json:"duration_ns,omitempty"`
	// Settle is how long nothing may have moved for the catchments to count as converged. Default 3 s.
	Settle time.Duration `json:"settle_ns,omitempty"`
}

// Weight is how much a network counts.
type Weight struct {
	Network netip.Prefix `json:"network"`
	Queries float64      `json:"queries"`
}

// Schedule repeats a measurement.
type Schedule struct {
	// Every is the time from one start to the next, at least a second. A run that is not over by then delays the next.
	Every time.Duration `json:"every_ns"`
	// Until is when it ends; zero means when it is cancelled.
	Until time.Time `json:"until,omitzero"`
	// Alarm is the share of the networks (or, with weights, of the queries), from 0 to 1, whose catchment
	// must have moved since the run before for an alarm. 0 raises none.
	Alarm float64 `json:"alarm,omitempty"`
}
