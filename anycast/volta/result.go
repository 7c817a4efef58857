// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Result is what a traceroute found, up to the first hop limit that reached the end of the path.
type Result struct {
	Source      string     `json:"source"`      // the agent that probed
	Destination string     `json:"destination"` // as asked for
	Target      netip.Addr `json:"target"`      // what Destination resolved to
	Queries     int        `json:"queries"`     // probes for each hop limit
	MaxTTL      int        `json:"max_ttl"`
	Hops        []Hop      `json:"hops"`
}

// Hop is what became of the probes with one hop limit, in the order of their source ports.
type Hop struct {
	TTL    int                `json:"ttl"`
	Probes []TracerouteResult `json:"probes"`
}

// TracerouteResult is what became of one probe.
type TracerouteResult struct {
	// Seq counts the probes of a traceroute from 0.
	Seq int `json:"seq"`
	// Timeout tells that no answer came. Of the other fields only Sent and Seq then mean anything.
	Timeout bool `json:"timeout,omitempty"`
	// Gateway is the source of the answer.
	Gateway netip.Addr `json:"gateway,omitzero"`
	// Name is the reverse name of Gateway; empty if it has none or nobody asked.
	Name string `json:"name,omitempty"`
	// Receiver is the id of the agent at which the answer arrived.
	Receiver string `json:"receiver,omitempty"`
	// Sent and Received are the stamps of the two agents. Either may be unknown.
	Sent     Time `json:"sent,omitzero"`
	Received Time `json:"received,omitzero"`
	// RTT is the time from Sent to Received; it contains the difference of the agents' clocks, so that
	// it may be below 0. HasRTT tells that it is known.
	RTT    time.Duration `json:"rtt_ns,omitempty"`
	HasRTT bool          `json:"has_rtt,omitempty"`
	// Final tells that the path ends here: the answer was "destination unreachable", of any code, or the
	// reply to an echo request.
	Final bool `json:"final,omitempty"`
}

// Text is the result as the original prints it, without a newline at the end:
//
//	Traceroute to 203.0.113.10 (203.0.113.10) from agent-a, 2 probes, 20 hops max
//	1  ra.example (192.0.2.1) agent-a  6.154 ms  6.144 ms
//	2  192.0.2.9 (192.0.2.9) agent-b  6.168 ms  *
//
// A router and the agent that heard it stand before the first of the probes, in a row, that they answered.
// A probe whose time is unknown shows nothing else.
func (r *Result) Text() string {
	probes := 0
	for i := range r.Hops {
		probes += len(r.Hops[i].Probes)
	}
	b := make([]byte, 0, 128+len(r.Hops)*lineLen+probes*timeLen)
	b = fmt.Appendf(b, "Traceroute to %s (%s) from %s, %d probes, %d hops max",
		r.Destination, r.Target, r.Source, r.Queries, r.MaxTTL)
	for _, hop := range r.Hops {
		b = append(b, '\n')
		b = strconv.AppendInt(b, int64(hop.TTL), 10)
		var gateway netip.Addr
		var receiver string
		for i := range hop.Probes {
			probe := &hop.Probes[i]
			if probe.Timeout {
				b = append(b, "  *"...)
				continue
			}
			if probe.Gateway != gateway || probe.Receiver != receiver {
				gateway, receiver = probe.Gateway, probe.Receiver
				b = append(b, "  "...)
				if probe.Name == "" {
					b = gateway.AppendTo(b)
				} else {
					b = append(b, probe.Name...)
				}
				b = append(b, " ("...)
				b = gateway.AppendTo(b)
				b = append(b, ") "...)
				b = append(b, receiver...)
			}
			if probe.HasRTT {
				b = append(b, "  "...)
				b = appendMilliseconds(b, probe.RTT)
				b = append(b, " ms"...)
			}
		}
	}
	return string(b)
}

// What is likely to be enough for the router and the receiver of a line, and for a time.
const lineLen, timeLen = 64, 12

// appendMilliseconds writes d in milliseconds with three decimals, rounded, and never as -0.000.
func appendMilliseconds(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d.Round(time.Microsecond)/time.Microsecond)/1000, 'f', 3, 64)
}

// Gateways gives every router that answered, each once, in the order of the hops.
func (r *Result) Gateways() []netip.Addr {
	var found []netip.Addr
	for _, hop := range r.Hops {
		for i := range hop.Probes {
			// There are few, and the one that was found last is the likeliest.
			addr := hop.Probes[i].Gateway
			if !addr.IsValid() || len(found) > 0 && found[len(found)-1] == addr || slices.Contains(found, addr) {
				continue
			}
			if found == nil {
				found = make([]netip.Addr, 0, len(r.Hops))
			}
			found = append(found, addr)
		}
	}
	return found
}
