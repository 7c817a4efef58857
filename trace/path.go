// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/probe"
)

// Path is what [Run] found: one hop for each hop limit, up to where it stopped.
type Path struct {
	// Target, Protocol and Flow are those of the probes. Flow is 0 for a classic trace.
	Target   netip.Addr
	Protocol probe.Protocol
	Flow     uint16
	// Hops are in order and without gaps, from Options.FirstHop. Silent hops at the end are left out.
	Hops []Hop
	// Stop says why the trace ended, and Silent how many silent hops it left out at the end.
	Stop   StopReason
	Silent int
	// Start is when the trace began, Duration how long it took, and Probes how many it sent.
	Start    time.Time
	Duration time.Duration
	Probes   int
}

// Hop is what came back from one distance.
type Hop struct {
	// TTL is the hop limit that the probes were sent with.
	TTL int
	// Replies are the results of this hop's probes in the order they were sent, those without an
	// answer included (probe.NoReply).
	Replies []probe.Result
}

// Responders gives the addresses that answered, each once, in the order of the probes.
func (h *Hop) Responders() []netip.Addr {
	var addrs []netip.Addr
	for i := range h.Replies {
		if a := h.Replies[i].Responder; a.IsValid() && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// Silent tells that nothing came back from this hop: neither an answer, nor an error of the local system.
func (h *Hop) Silent() bool {
	return !slices.ContainsFunc(h.Replies, func(r probe.Result) bool { return r.Status != probe.NoReply })
}

// has tells whether a reply of the hop is of the given kind.
func (h *Hop) has(kind func(probe.Status) bool) bool {
	return slices.ContainsFunc(h.Replies, func(r probe.Result) bool { return kind(r.Status) })
}

// StopReason says why a trace ended.
type StopReason uint8

// Why a trace ended.
const (
	_               StopReason = iota
	StopReached                // the target answered
	StopUnreachable            // a router, or this host, says that it can't get there
	StopLoop                   // the same routers come round again and again
	StopGapLimit               // too many silent hops in a row: a firewall, most likely
	StopMaxHops                // the last hop allowed was tried
	StopProbeLimit             // the number of probes allowed was used up (multipath only)
	StopInterrupted            // the caller ended it, or an error did
)

var stopNames = [...]string{
	StopReached: "reached", StopUnreachable: "unreachable", StopLoop: "loop", StopGapLimit: "gap limit",
	StopMaxHops: "max hops", StopProbeLimit: "probe limit", StopInterrupted: "interrupted",
}

// String gives a name in lower case.
func (s StopReason) String() string {
	if s > 0 && int(s) < len(stopNames) {
		return stopNames[s]
	}
	return fmt.Sprintf("StopReason(%d)", uint8(s))
}

// MarshalText gives String, so that JSON has the name.
func (s StopReason) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// isReached, isExpired and isUnreachable sort the ways a probe can end.
func isReached(s probe.Status) bool { return s == probe.Replied }
func isExpired(s probe.Status) bool { return s == probe.TimeExceeded }
func isUnreachable(s probe.Status) bool {
	switch s {
	case probe.HostUnreachable, probe.NetUnreachable, probe.NetworkDown, probe.HostDown:
		return true
	case probe.Replied, probe.TimeExceeded, probe.NoReply, probe.Failed:
	}
	return false
}

// limits are the rules that end a trace before its last hop.
type limits struct {
	gap  int // silent hops in a row, 0 = no limit
	loop int // rounds of the same router, 0 = no limit
}

// judge applies the stop rules to the hops known so far, nearest first. It gives how many of them
// belong to the path, and why the path ends there; the reason is 0 if the trace has to go on.
//
// A loop is a router that comes back after others, or silence, took their turn. The same address
// several times in a row is none: routers that forward a dead packet, and address translation
// that hides many routers behind one address, look like that.
func judge(hops []Hop, lim limits) (keep int, reason StopReason) {
	silent := 0
	turns := make(map[netip.Addr]int)
	var last []netip.Addr
	for i := range hops {
		h := &hops[i]
		switch {
		case h.has(isReached):
			return i + 1, StopReached
		case h.has(isUnreachable) && !h.has(isExpired):
			return i + 1, StopUnreachable
		case h.Silent():
			silent++
			if lim.gap > 0 && silent >= lim.gap {
				return i + 1 - silent, StopGapLimit
			}
			last = nil
			continue
		}
		silent = 0
		now := h.Responders()
		for _, a := range now {
			if slices.Contains(last, a) {
				continue
			}
			turns[a]++
			if lim.loop > 0 && turns[a] >= lim.loop {
				return i + 1, StopLoop
			}
		}
		last = now
	}
	return len(hops) - silent, 0
}
