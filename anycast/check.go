// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/seed5728abee/fathom/probe/stateless"
)

// ErrDefinition means that a definition makes no sense; the error says which field, and what it wants.
var ErrDefinition = errors.New("invalid measurement")

// FieldError says what is wrong with one field of a [Definition]. It is an ErrDefinition.
type FieldError struct {
	Field  string // as in JSON
	Value  any
	Reason string // what is wanted
}

// Error gives all of it.
func (e *FieldError) Error() string {
	return fmt.Sprintf("%v: %s %v: %s", ErrDefinition, e.Field, e.Value, e.Reason)
}

// Unwrap gives ErrDefinition.
func (e *FieldError) Unwrap() error { return ErrDefinition }

// Defaults and limits of a [Definition].
const (
	DefaultTimeout       = 2 * time.Second
	DefaultAttempts      = 1
	DefaultTraceAttempts = 3
	DefaultRate          = 1000
	DefaultPerNetwork    = 1
	DefaultSiteGap       = time.Second
	DefaultMaxHops       = 30
	DefaultGapLimit      = 8
	DefaultConfidence    = 0.95
	DefaultFlows         = 8
	DefaultRounds        = 2
	DefaultRoundInterval = 10 * time.Second
	DefaultWatchInterval = 100 * time.Millisecond
	DefaultWatchDuration = time.Minute
	DefaultSettle        = 3 * time.Second

	// MaxRate bounds Pace.Rate, in probes per second.
	MaxRate = 10_000_000
	// MaxTimeout bounds Definition.Timeout.
	MaxTimeout = time.Minute
	// MaxAttempts bounds Definition.Attempts.
	MaxAttempts = 100
	// MaxFlows bounds FlippingOptions.Flows: each takes a source port.
	MaxFlows = 64
	// MaxRounds bounds FlippingOptions.Rounds.
	MaxRounds = 100
	// MinWatchInterval bounds WatchOptions.Interval.
	MinWatchInterval = time.Millisecond
	// MaxWatchDuration bounds WatchOptions.Duration.
	MaxWatchDuration = 24 * time.Hour
	// MinEvery is the shortest Schedule.Every.
	MinEvery = time.Second
)

// set fills in a default.
func set[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// WithDefaults gives a copy with what is not set filled in. The copy shares slices with d but not its options.
func (d *Definition) WithDefaults() Definition {
	c := *d
	set(&c.Protocol, stateless.ICMP)
	set(&c.Timeout, DefaultTimeout)
	set(&c.Pace.Rate, DefaultRate)
	set(&c.Pace.PerNetwork, DefaultPerNetwork)
	set(&c.Pace.SiteGap, DefaultSiteGap)
	switch c.Program {
	case KindTrace:
		set(&c.Attempts, DefaultTraceAttempts)
		o := copyOf(c.Trace)
		set(&o.Method, MethodParis)
		set(&o.FirstHop, 1)
		set(&o.MaxHops, max(DefaultMaxHops, o.FirstHop))
		set(&o.GapLimit, DefaultGapLimit)
		set(&o.Confidence, DefaultConfidence)
		c.Trace = o
	case KindFlipping:
		o := copyOf(c.Flipping)
		set(&o.Flows, DefaultFlows)
		set(&o.Rounds, DefaultRounds)
		set(&o.Interval, DefaultRoundInterval)
		if len(o.Protocols) == 0 {
			o.Protocols = []stateless.Kind{c.Protocol}
		}
		c.Flipping = o
	case KindWatch:
		o := copyOf(c.Watch)
		set(&o.Interval, DefaultWatchInterval)
		set(&o.Duration, DefaultWatchDuration)
		set(&o.Settle, DefaultSettle)
		c.Watch = o
	case KindCatchment, KindLatency, KindVolta:
	}
	set(&c.Attempts, DefaultAttempts)
	return c
}

func copyOf[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	return new(*p)
}

// checker collects what is wrong.
type checker struct{ errs []error }

func (c *checker) want(ok bool, field string, value any, format string, args ...any) {
	if !ok {
		c.errs = append(c.errs, &FieldError{Field: field, Value: value, Reason: fmt.Sprintf(format, args...)})
	}
}

// Check tells whether d, with its defaults, can be run. Its error joins a [FieldError] for each field that is
// wrong, so that errors.Is finds ErrDefinition.
func (d *Definition) Check() error {
	var c checker
	full := d.WithDefaults()
	switch d.Program {
	case KindTrace, KindCatchment, KindLatency, KindFlipping, KindWatch:
		full.checkProbes(&c)
	case KindVolta:
		c.want(d.Command != "", "command", `""`, "want the text of the request, such as \"volta SITE HOST\"")
	default:
		c.want(false, "program", fmt.Sprintf("%q", string(d.Program)), "want trace, catchment, latency, flipping or watch")
	}
	switch d.Program {
	case KindTrace:
		full.checkTrace(&c)
	case KindFlipping:
		full.checkFlipping(&c)
	case KindWatch:
		full.checkWatch(&c)
	case KindCatchment, KindLatency, KindVolta:
	}
	c.want(d.Trace == nil || d.Program == KindTrace, "trace", "options", "are for the program trace, not %s", d.Program)
	c.want(d.Flipping == nil || d.Program == KindFlipping, "flipping", "options", "are for the program flipping, not %s", d.Program)
	c.want(d.Watch == nil || d.Program == KindWatch, "watch", "options", "are for the program watch, not %s", d.Program)
	if d.Feed {
		c.want(d.Program == KindCatchment || d.Program == KindLatency || d.Program == KindFlipping, "feed", d.Feed,
			"%s needs all targets at the start", d.Program)
		c.want(d.Schedule == nil, "feed", d.Feed, "a schedule needs its targets again and again")
	}
	full.checkOrigins(&c)
	c.want(!d.Responsive || d.Program == KindCatchment, "responsive", d.Responsive, "is for the program catchment, not %s", d.Program)
	for _, w := range d.Weights {
		c.want(w.Network.IsValid(), "weights", w.Network, "want a network such as 192.0.2.0/24")
		c.want(w.Queries >= 0 && !math.IsInf(w.Queries, 1), "weights", w.Queries, "want a number of queries, 0 or more")
	}
	for _, p := range d.OptOut {
		c.want(p.IsValid(), "opt_out", p, "want a network such as 192.0.2.0/24")
	}
	if s := d.Schedule; s != nil {
		c.want(s.Every >= MinEvery, "schedule.every", s.Every, "want at least %v", MinEvery)
		c.want(s.Alarm >= 0 && s.Alarm <= 1, "schedule.alarm", s.Alarm, "want a share from 0 to 1")
		c.want(s.Alarm == 0 || d.Program == KindCatchment, "schedule.alarm", s.Alarm, "only catchments can be compared from run to run")
	}
	return errors.Join(c.errs...)
}

// checkProbes checks what all programs have in common.
func (d *Definition) checkProbes(c *checker) {
	codec := d.probes(1)
	codec.Key, codec.FirstPort = stateless.Key{1}, 1 // the fleet's
	if _, err := stateless.New(codec); err != nil {
		c.errs = append(c.errs, fmt.Errorf("%w: %w", ErrDefinition, err))
	}
	c.want(d.Query == "" || d.Protocol == stateless.DNS || d.Program == KindFlipping, "query", d.Query, "only the protocol dns asks for a name")
	c.want(d.Timeout > 0 && d.Timeout <= MaxTimeout, "timeout", d.Timeout, "want more than 0, at most %v", MaxTimeout)
	c.want(d.Attempts >= 1 && d.Attempts <= MaxAttempts, "attempts", d.Attempts, "want 1 to %d", MaxAttempts)
	c.want(d.Pace.Rate > 0 && d.Pace.Rate <= MaxRate, "pace.rate", d.Pace.Rate, "want probes per second, more than 0, at most %d", MaxRate)
	c.want(!math.IsNaN(d.Pace.PerNetwork), "pace.per_network", d.Pace.PerNetwork, "want probes per second")
}

func (d *Definition) checkTrace(c *checker) {
	o := d.Trace
	switch o.Method {
	case MethodParis, MethodClassic, MethodMultipath:
	default:
		c.want(false, "trace.method", o.Method, "want paris, classic or multipath")
	}
	switch d.Protocol {
	case stateless.ICMP, stateless.UDP, stateless.TCP:
	default:
		c.want(false, "protocol", d.Protocol, "traces are made of icmp, udp or tcp")
	}
	c.want(len(d.Sites) <= 1, "sites", d.Sites, "a trace is sent from one site: name one")
	c.want(o.FirstHop >= 1 && o.FirstHop <= 255, "trace.first_hop", o.FirstHop, "want 1 to 255")
	c.want(o.MaxHops >= o.FirstHop && o.MaxHops <= 255, "trace.max_hops", o.MaxHops, "want %d to 255", o.FirstHop)
	c.want(o.Confidence > 0 && o.Confidence < 0.999999, "trace.confidence", o.Confidence, "want a probability above 0 and below 0.999999")
}

func (d *Definition) checkFlipping(c *checker) {
	o := d.Flipping
	c.want(o.Flows >= 1 && o.Flows <= MaxFlows, "flipping.flows", o.Flows, "want 1 to %d", MaxFlows)
	c.want(o.Rounds >= 1 && o.Rounds <= MaxRounds, "flipping.rounds", o.Rounds, "want 1 to %d", MaxRounds)
	c.want(o.Interval > 0, "flipping.interval", o.Interval, "want more than 0")
	seen := make(map[stateless.Kind]bool)
	for _, k := range o.Protocols {
		_, err := stateless.ParseKind(k.String())
		c.want(err == nil, "flipping.protocols", k, "want icmp, udp, tcp, dns or chaos")
		c.want(!seen[k], "flipping.protocols", k, "is there twice")
		c.want(k != stateless.CHAOS || o.Flows*o.Rounds*d.Attempts*len(o.Protocols)*len(d.OriginList()) <= MaxFlows, "flipping.protocols", k,
			"each of its probes takes a source port: want flows x rounds x protocols x origins x attempts of at most %d", MaxFlows)
		seen[k] = true
	}
}

func (d *Definition) checkWatch(c *checker) {
	o := d.Watch
	c.want(o.Interval >= MinWatchInterval, "watch.interval", o.Interval, "want at least %v", MinWatchInterval)
	c.want(o.Duration >= o.Interval && o.Duration <= MaxWatchDuration, "watch.duration", o.Duration, "want %v to %v", o.Interval, MaxWatchDuration)
	c.want(o.Settle > 0, "watch.settle", o.Settle, "want more than 0")
	c.want(d.Protocol != stateless.CHAOS || d.Timeout/o.Interval < MaxFlows-2, "watch.interval", o.Interval,
		"each probe under way takes a source port with chaos: want at least %v", d.Timeout/(MaxFlows-2))
}

// probes is what the probes look like, with a number of source ports. The fleet adds key and first port.
func (d *Definition) probes(ports int) stateless.Config {
	return d.probesOf(d.Protocol, ports)
}

func (d *Definition) probesOf(kind stateless.Kind, ports int) stateless.Config {
	conf := stateless.Config{Kind: kind, Ports: uint16(ports), DstPort: d.Port, TOS: d.TOS}
	if kind == stateless.DNS {
		conf.Name = d.Query
	}
	if kind == stateless.ICMP || kind == stateless.UDP {
		conf.Size, conf.Note = d.Size, d.Note
	}
	if kind != d.Protocol {
		conf.DstPort = 0 // the user's is for the other protocol
	}
	return conf
}
