// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// Result is something that a program found: *TraceResult, *Catch, *LatencyResult, *FlipResult, *Move, *WatchResult, *Summary, *Alarm or *TextResult.
type Result interface{ result() }

func (*TraceResult) result()   {}
func (*Catch) result()         {}
func (*LatencyResult) result() {}
func (*FlipResult) result()    {}
func (*Move) result()          {}
func (*WatchResult) result()   {}
func (*Summary) result()       {}
func (*Alarm) result()         {}
func (*TextResult) result()    {}

// TraceResult is a trace from one site to one target.
type TraceResult struct {
	Site     string         `json:"site"`
	Source   netip.Addr     `json:"source"`
	Target   netip.Addr     `json:"target"`
	Name     string         `json:"name,omitempty"` // of the target, as the user gave it
	Protocol stateless.Kind `json:"protocol"`
	Method   Method         `json:"method"`
	SrcPort  uint16         `json:"src_port,omitempty"` // of flow 0
	DstPort  uint16         `json:"dst_port,omitempty"`
	Size     int            `json:"size"`
	TOS      uint8          `json:"tos,omitempty"`
	FirstHop int            `json:"first_hop"`
	MaxHops  int            `json:"max_hops"`
	Attempts int            `json:"attempts"` // probes per hop
	// Stop is why the trace ended, in the words of package trace, and Silent how many silent hops it left out at the end.
	Stop   string `json:"stop"`
	Silent int    `json:"silent_hops,omitempty"`
	// Replies are the probes of the path and what became of them, by hop limit, then in the order sent.
	Replies []Reply `json:"replies"`
	// Links are the ways that a multipath trace found, with the confidence that none was missed.
	Links      []Link  `json:"links,omitempty"`
	Confidence float64 `json:"confidence,omitempty"`
	// Probes is how many were sent in all.
	Probes int       `json:"probes"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
}

// Reply is one probe of a trace and what became of it.
type Reply struct {
	TTL    uint8        `json:"ttl"`
	Flow   uint16       `json:"flow"`
	Status probe.Status `json:"status"`
	// Responder answered, and Receiver is the site that heard it; both empty if nothing came back.
	Responder netip.Addr `json:"responder,omitzero"`
	Receiver  string     `json:"receiver,omitempty"`
	// RTT is 0 if it is not known; ClockError bounds its error where sender and receiver differ.
	RTT        time.Duration `json:"rtt_ns,omitempty"`
	ClockError time.Duration `json:"clock_error_ns,omitempty"`
	HasICMP    bool          `json:"has_icmp,omitempty"`
	ICMPType   uint8         `json:"icmp_type"`
	ICMPCode   uint8         `json:"icmp_code"`
	// The answer's own header fields.
	ReplyTTL  uint8  `json:"reply_ttl,omitempty"`
	ReplyTOS  uint8  `json:"reply_tos,omitempty"`
	ReplyID   uint16 `json:"reply_id,omitempty"`
	ReplySize uint16 `json:"reply_size,omitempty"`
	// The probe's, as quoted.
	QuotedTTL uint8          `json:"quoted_ttl,omitempty"`
	QuotedTOS uint8          `json:"quoted_tos,omitempty"`
	MTU       uint32         `json:"mtu,omitempty"`
	MPLS      []packet.Label `json:"mpls,omitempty"`
	Sent      time.Time      `json:"sent,omitzero"`
}

// Link is a way from a router to one at the next distance. The zero Addr is the source, or a silent hop.
type Link struct {
	TTL       int        `json:"ttl"` // of From
	From      netip.Addr `json:"from,omitzero"`
	To        netip.Addr `json:"to,omitzero"`
	Flows     []uint16   `json:"flows"`
	Uncertain bool       `json:"uncertain,omitempty"`
}

// Catch is where one target's answer to one probe came home, or that there was none.
type Catch struct {
	Target netip.Addr `json:"target"`
	// Sender is the site that probed; Receiver the one that heard the answer, empty if none did.
	Sender   string `json:"sender"`
	Receiver string `json:"receiver,omitempty"`
	// Origin is the name of what the probe was sent from, if the definition has several origins.
	Origin string `json:"origin,omitempty"`
	// Responder is who answered, if it was not the target.
	Responder netip.Addr     `json:"responder,omitzero"`
	Protocol  stateless.Kind `json:"protocol"`
	Status    probe.Status   `json:"status"`
	// Flow and Round tell the probes of one target apart.
	Flow  uint16 `json:"flow,omitempty"`
	Round int    `json:"round,omitempty"`
	// RTT is 0 if it is not known; ClockError bounds its error where sender and receiver differ.
	RTT        time.Duration `json:"rtt_ns,omitempty"`
	ClockError time.Duration `json:"clock_error_ns,omitempty"`
	ReplyTTL   uint8         `json:"reply_ttl,omitempty"`
	// Text is what a CHAOS or NSID query brought.
	Text string `json:"text,omitempty"`
	// Duplicates is how many more answers to the same probe came, from anywhere.
	Duplicates int       `json:"duplicates,omitempty"`
	Time       time.Time `json:"time"`
}

// SiteRTT is a round-trip time from one site.
type SiteRTT struct {
	Site string        `json:"site"`
	RTT  time.Duration `json:"rtt_ns"`
}

// LatencyResult is how far a target is from the site that catches it, and from the others.
type LatencyResult struct {
	Target netip.Addr `json:"target"`
	// Origin is the name of the one of several that it is about. Unicast is the same for all of them.
	Origin string `json:"origin,omitempty"`
	// Catcher is the site that catches the target's answers, RTT the time from there and back: one clock.
	Catcher string        `json:"catcher,omitempty"`
	RTT     time.Duration `json:"rtt_ns,omitempty"`
	// Unicast are the times from every site by its own address, nearest first.
	Unicast []SiteRTT `json:"unicast,omitempty"`
	// Best is the nearest site, Inflation how much longer than from there it takes to the catcher, by unicast if that is known.
	Best      string        `json:"best,omitempty"`
	Inflation time.Duration `json:"inflation_ns"`
	Time      time.Time     `json:"time"`
}

// FlipResult is a target that reaches several sites.
type FlipResult struct {
	Target netip.Addr `json:"target"`
	// Origin is the name of the one of several under which it does.
	Origin string `json:"origin,omitempty"`
	// Seen is how many answers came home at each site.
	Seen map[string]int `json:"seen"`
	// ByFlow, ByProtocol and ByTime tell what the site changed with, all else equal.
	ByFlow     bool `json:"by_flow"`
	ByProtocol bool `json:"by_protocol"`
	ByTime     bool `json:"by_time"`
	// Catches are the observations.
	Catches []Catch `json:"catches"`
	// Spread is the difference between the slowest and the fastest site's median RTT, where known.
	Spread time.Duration `json:"spread_ns,omitempty"`
	// Parting is the hop after which the paths of two flows part, nil if it was not looked for or found.
	Parting *Parting `json:"parting,omitempty"`
}

// Parting is where two flows to one target part.
type Parting struct {
	TTL    int          `json:"ttl"`    // of the last common hop, 0 if they never met
	Common netip.Addr   `json:"common"` // the last common hop
	Flows  [2]uint16    `json:"flows"`
	Hops   []netip.Addr `json:"hops"` // the next hop of each
}

// Move is a target that changed site.
type Move struct {
	Target netip.Addr `json:"target"`
	// From and To are sites; empty means that no answer came home.
	From string    `json:"from,omitempty"`
	To   string    `json:"to,omitempty"`
	Time time.Time `json:"time"`
	// Gap is how long no answer came home in between.
	Gap time.Duration `json:"gap_ns,omitempty"`
}

// WatchResult is the catchments during one interval of a watch.
type WatchResult struct {
	Time  time.Time      `json:"time"`
	Sites map[string]int `json:"sites"` // answers by site
	Lost  int            `json:"lost"`  // probes without an answer
	Moved int            `json:"moved"` // targets that changed site in this interval
}

// Summary ends a measurement's results.
type Summary struct {
	// Targets is how many there were; Sent, Answered, Duplicates and Refused count probes. Refused are those that a site could not send.
	Targets    int    `json:"targets"`
	Sent       uint64 `json:"sent"`
	Answered   uint64 `json:"answered"`
	Duplicates uint64 `json:"duplicates,omitempty"`
	Refused    uint64 `json:"refused,omitempty"`
	// Late is how many of the answered came after their probe had been reported as unanswered; Unknown counts
	// answers that fit no probe that was sent.
	Late    uint64 `json:"late,omitempty"`
	Unknown uint64 `json:"unknown,omitempty"`
	// Skipped counts targets that were left out, by reason: opt-out, private, multicast, ...
	Skipped map[string]int `json:"skipped,omitempty"`
	// Sites is how many targets each site catches; Weight the same in the user's query counts. With several origins
	// Sites is the sum over all of them, and Weight is left to Origins.
	Sites  map[string]int     `json:"sites,omitempty"`
	Weight map[string]float64 `json:"weight,omitempty"`
	// Origins is the same for each of the definition's origins, in their order. Differ counts the targets that different
	// sites catch under different origins.
	Origins []OriginSummary `json:"origins,omitempty"`
	Differ  int             `json:"differ,omitempty"`
	// Converged is how long the catchments of a watch took to settle after the first move, at least 1 ns; it is 0 if
	// nothing moved, or if they were still moving at the end. Moved counts its moves, or the targets that flip.
	Converged time.Duration `json:"converged_ns,omitempty"`
	Moved     int           `json:"moved,omitempty"`
	// Notes are what the user should know, such as a site that was lost on the way.
	Notes []string      `json:"notes,omitempty"`
	Took  time.Duration `json:"took_ns"`
}

// OriginSummary is how many targets each site catches under one of several origins, and the same in the user's query counts.
type OriginSummary struct {
	Name   string             `json:"name"`
	Sites  map[string]int     `json:"sites"`
	Weight map[string]float64 `json:"weight,omitempty"`
}

// Alarm tells that catchments shifted between two runs of a schedule.
type Alarm struct {
	Before string    `json:"before"` // measurement ids
	After  string    `json:"after"`
	Share  float64   `json:"share"` // of networks or queries that moved
	Limit  float64   `json:"limit"`
	Time   time.Time `json:"time"`
	// Origin is the one of several that it is about.
	Origin string `json:"origin,omitempty"`
}

// TextResult is the answer to a text request.
type TextResult struct {
	Code int32  `json:"code"`
	Text string `json:"text"`
}

// Progress tells how far a measurement is.
type Progress struct {
	Done  int `json:"done"`  // targets
	Total int `json:"total"` // 0 as long as a feed may bring more
	// Sent and Answered count probes so far.
	Sent     uint64 `json:"sent"`
	Answered uint64 `json:"answered"`
	// Left is the time that the rest will take, 0 if that is not known.
	Left time.Duration `json:"left_ns,omitempty"`
}

// Sink takes what a program finds, as it finds it. Its methods may be called from several goroutines; an error (a full
// disk, a user who went away) ends the program.
type Sink interface {
	// Results takes what was found since the last call, at least one. The slice is the sink's to keep.
	Results([]Result) error
	Progress(Progress)
}
