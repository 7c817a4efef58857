// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"encoding/json"
	"net/netip"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// The rows of the tables. A field's parquet tag names its column in CSV as well, in the order of the fields; the types
// are the few that csvTable knows. An optional field is empty (CSV) or null (Parquet) if it is zero or nil. Times between
// two moments are in milliseconds, addresses are text, lists and maps are JSON in text.

type measurementRow struct {
	Measurement string    `parquet:"measurement"`
	Program     string    `parquet:"program,dict"`
	Name        string    `parquet:"name,optional,dict"`
	Owner       string    `parquet:"owner,optional,dict"`
	Parent      string    `parquet:"parent,optional,dict"`
	State       string    `parquet:"state,dict"`
	Error       string    `parquet:"error,optional"`
	Start       time.Time `parquet:"start,timestamp(nanosecond)"`
	End         time.Time `parquet:"end,optional,timestamp(nanosecond)"`
	Targets     int64     `parquet:"targets"`
	Definition  string    `parquet:"definition"`
}

func measurementRows(rows []measurementRow, m *anycast.Measurement) ([]measurementRow, error) {
	definition, err := json.Marshal(&m.Definition)
	return append(rows, measurementRow{
		m.ID, string(m.Definition.Program), text(m.Definition.Name), text(m.Owner), m.Parent, m.State.String(), text(m.Error), m.Start, m.End,
		int64(m.Targets), string(definition),
	}), err
}

// traceRow is a probe of a trace. A trace of which nothing is left after the silent hops at its end is one row without a ttl.
type traceRow struct {
	Measurement string    `parquet:"measurement,dict"`
	Site        string    `parquet:"site,dict"`
	Source      string    `parquet:"source,optional,dict"`
	Target      string    `parquet:"target,dict"`
	Name        string    `parquet:"name,optional,dict"`
	Start       time.Time `parquet:"start,timestamp(nanosecond)"`
	Protocol    string    `parquet:"protocol,dict"`
	Method      string    `parquet:"method,dict"`
	SrcPort     int32     `parquet:"src_port,optional"`
	DstPort     int32     `parquet:"dst_port,optional"`
	Stop        string    `parquet:"stop,dict"`
	SilentHops  int32     `parquet:"silent_hops"`
	TTL         int32     `parquet:"ttl,optional"`
	Flow        int32     `parquet:"flow"`
	Status      string    `parquet:"status,optional,dict"`
	Responder   string    `parquet:"responder,optional,dict"`
	Receiver    string    `parquet:"receiver,optional,dict"`
	RTT         float64   `parquet:"rtt_ms,optional"`
	ClockError  float64   `parquet:"clock_error_ms,optional"`
	ICMPType    *int32    `parquet:"icmp_type,optional"`
	ICMPCode    *int32    `parquet:"icmp_code,optional"`
	ReplyTTL    int32     `parquet:"reply_ttl,optional"`
	ReplyTOS    *int32    `parquet:"reply_tos,optional"`
	ReplyID     *int32    `parquet:"reply_id,optional"`
	ReplySize   int32     `parquet:"reply_size,optional"`
	QuotedTTL   int32     `parquet:"quoted_ttl,optional"`
	QuotedTOS   *int32    `parquet:"quoted_tos,optional"`
	MTU         int64     `parquet:"mtu,optional"`
	MPLS        string    `parquet:"mpls,optional,dict"`
	Sent        time.Time `parquet:"sent,optional,timestamp(nanosecond)"`
}

func traceRows(rows []traceRow, m *anycast.Measurement, r anycast.Result) ([]traceRow, error) {
	t, ok := r.(*anycast.TraceResult)
	if !ok {
		return rows, nil
	}
	row := traceRow{
		Measurement: m.ID, Site: t.Site, Source: address(t.Source), Target: address(t.Target), Name: text(t.Name), Start: t.Start,
		Protocol: t.Protocol.String(), Method: string(t.Method), SrcPort: int32(t.SrcPort), DstPort: int32(t.DstPort), Stop: t.Stop,
		SilentHops: int32(t.Silent),
	}
	if len(t.Replies) == 0 {
		return append(rows, row), nil
	}
	for i := range t.Replies {
		a := &t.Replies[i]
		row := row
		row.TTL, row.Flow, row.Status, row.Sent = int32(a.TTL), int32(a.Flow), a.Status.String(), a.Sent
		if answered := a.Responder.IsValid(); answered {
			row.Responder, row.Receiver, row.RTT, row.ClockError = address(a.Responder), a.Receiver, millis(a.RTT), millis(a.ClockError)
			row.ReplyTTL, row.ReplySize = int32(a.ReplyTTL), int32(a.ReplySize)
			if a.ReplySize != 0 { // the header is known
				row.ReplyTOS = new(int32(a.ReplyTOS))
				if a.Responder.Is4() {
					row.ReplyID = new(int32(a.ReplyID))
				}
			}
		}
		if a.HasICMP {
			row.ICMPType, row.ICMPCode = new(int32(a.ICMPType)), new(int32(a.ICMPCode))
		}
		if a.QuotedTTL != 0 {
			row.QuotedTTL, row.QuotedTOS = int32(a.QuotedTTL), new(int32(a.QuotedTOS))
		}
		row.MTU = int64(a.MTU)
		if len(a.MPLS) > 0 {
			var err error
			if row.MPLS, err = labels(a.MPLS); err != nil {
				return rows, err
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func labels(stack []packet.Label) (string, error) {
	type label struct {
		Label  uint32 `json:"label"`
		TC     uint8  `json:"tc"`
		Bottom bool   `json:"bottom"`
		TTL    uint8  `json:"ttl"`
	}
	list := make([]label, len(stack))
	for i, l := range stack {
		list[i] = label(l)
	}
	return inText(list)
}

type linkRow struct {
	Measurement string    `parquet:"measurement,dict"`
	Site        string    `parquet:"site,dict"`
	Target      string    `parquet:"target,dict"`
	Start       time.Time `parquet:"start,timestamp(nanosecond)"`
	Confidence  float64   `parquet:"confidence,optional"`
	TTL         int32     `parquet:"ttl"`
	From        string    `parquet:"from,optional,dict"`
	To          string    `parquet:"to,optional,dict"`
	Flows       string    `parquet:"flows"`
	Uncertain   bool      `parquet:"uncertain"`
}

func linkRows(rows []linkRow, m *anycast.Measurement, r anycast.Result) ([]linkRow, error) {
	t, ok := r.(*anycast.TraceResult)
	if !ok {
		return rows, nil
	}
	for _, l := range t.Links {
		flows, err := listInText(l.Flows)
		if err != nil {
			return rows, err
		}
		rows = append(rows, linkRow{
			m.ID, t.Site, address(t.Target), t.Start, t.Confidence, int32(l.TTL), address(l.From), address(l.To), flows, l.Uncertain,
		})
	}
	return rows, nil
}

type catchRow struct {
	Measurement string    `parquet:"measurement,dict"`
	Target      string    `parquet:"target"`
	Network     string    `parquet:"network"`
	Sender      string    `parquet:"sender,dict"`
	Receiver    string    `parquet:"receiver,optional,dict"`
	Origin      string    `parquet:"origin,optional,dict"`
	Source      string    `parquet:"source,optional,dict"`
	Responder   string    `parquet:"responder,optional,dict"`
	Protocol    string    `parquet:"protocol,dict"`
	Status      string    `parquet:"status,dict"`
	Flow        int32     `parquet:"flow"`
	Round       int32     `parquet:"round"`
	RTT         float64   `parquet:"rtt_ms,optional"`
	ClockError  float64   `parquet:"clock_error_ms,optional"`
	ReplyTTL    int32     `parquet:"reply_ttl,optional"`
	Text        string    `parquet:"text,optional,dict"`
	Duplicates  int32     `parquet:"duplicates"`
	Time        time.Time `parquet:"time,timestamp(nanosecond)"`
}

func catchRows(rows []catchRow, m *anycast.Measurement, r anycast.Result) ([]catchRow, error) {
	switch r := r.(type) {
	case *anycast.Catch:
		rows = append(rows, oneCatch(m, r))
	case *anycast.FlipResult:
		for i := range r.Catches {
			rows = append(rows, oneCatch(m, &r.Catches[i]))
		}
	}
	return rows, nil
}

func oneCatch(m *anycast.Measurement, c *anycast.Catch) catchRow {
	row := catchRow{
		Measurement: m.ID, Target: address(c.Target), Sender: c.Sender, Receiver: c.Receiver,
		Origin: text(c.Origin), Source: address(sourceOf(m, c.Origin)), Responder: address(c.Responder), Protocol: c.Protocol.String(),
		Status: c.Status.String(), Flow: int32(c.Flow), Round: int32(c.Round), RTT: millis(c.RTT), ClockError: millis(c.ClockError),
		ReplyTTL: int32(c.ReplyTTL), Text: text(c.Text), Duplicates: int32(c.Duplicates), Time: c.Time,
	}
	if row.Responder == "" && c.Status == probe.Replied {
		row.Responder = row.Target
	}
	if n := anycast.Network(c.Target); n.IsValid() {
		row.Network = n.String()
	}
	return row
}

// sourceOf is the address that the probes of an origin are sent from, the zero Addr if each site chose its own.
func sourceOf(m *anycast.Measurement, origin string) netip.Addr {
	o, _ := m.Definition.Origin(origin)
	return o.Source
}

type latencyRow struct {
	Measurement string    `parquet:"measurement,dict"`
	Target      string    `parquet:"target"`
	Origin      string    `parquet:"origin,optional,dict"`
	Catcher     string    `parquet:"catcher,optional,dict"`
	RTT         float64   `parquet:"rtt_ms,optional"`
	Best        string    `parquet:"best,optional,dict"`
	Inflation   *float64  `parquet:"inflation_ms,optional"`
	Unicast     string    `parquet:"unicast_ms"`
	Time        time.Time `parquet:"time,timestamp(nanosecond)"`
}

func latencyRows(rows []latencyRow, m *anycast.Measurement, r anycast.Result) ([]latencyRow, error) {
	l, ok := r.(*anycast.LatencyResult)
	if !ok {
		return rows, nil
	}
	sites := make(map[string]float64, len(l.Unicast))
	for _, s := range l.Unicast {
		sites[s.Site] = millis(s.RTT)
	}
	unicast, err := inText(sites)
	row := latencyRow{
		Measurement: m.ID, Target: address(l.Target), Origin: text(l.Origin), Catcher: l.Catcher, RTT: millis(l.RTT), Best: l.Best, Unicast: unicast, Time: l.Time,
	}
	if l.Best != "" && l.Catcher != "" {
		row.Inflation = new(millis(l.Inflation))
	}
	return append(rows, row), err
}

type flipRow struct {
	Measurement   string  `parquet:"measurement,dict"`
	Target        string  `parquet:"target"`
	Origin        string  `parquet:"origin,optional,dict"`
	Sites         int32   `parquet:"sites"`
	Seen          string  `parquet:"seen"`
	ByFlow        bool    `parquet:"by_flow"`
	ByProtocol    bool    `parquet:"by_protocol"`
	ByTime        bool    `parquet:"by_time"`
	Spread        float64 `parquet:"spread_ms,optional"`
	PartingTTL    *int32  `parquet:"parting_ttl,optional"`
	PartingCommon string  `parquet:"parting_common,optional"`
	PartingFlows  string  `parquet:"parting_flows,optional"`
	PartingHops   string  `parquet:"parting_hops,optional"`
}

func flipRows(rows []flipRow, m *anycast.Measurement, r anycast.Result) ([]flipRow, error) {
	f, ok := r.(*anycast.FlipResult)
	if !ok {
		return rows, nil
	}
	seen, err := counts(f.Seen)
	row := flipRow{
		Measurement: m.ID, Target: address(f.Target), Origin: text(f.Origin), Sites: int32(len(f.Seen)), Seen: seen, ByFlow: f.ByFlow, ByProtocol: f.ByProtocol,
		ByTime: f.ByTime, Spread: millis(f.Spread),
	}
	if p := f.Parting; p != nil && err == nil {
		row.PartingTTL, row.PartingCommon = new(int32(p.TTL)), address(p.Common)
		if row.PartingFlows, err = inText(p.Flows); err == nil {
			row.PartingHops, err = listInText(p.Hops)
		}
	}
	return append(rows, row), err
}

type moveRow struct {
	Measurement string    `parquet:"measurement,dict"`
	Target      string    `parquet:"target"`
	From        string    `parquet:"from,optional,dict"`
	To          string    `parquet:"to,optional,dict"`
	Time        time.Time `parquet:"time,timestamp(nanosecond)"`
	Gap         float64   `parquet:"gap_ms"`
}

func moveRows(rows []moveRow, m *anycast.Measurement, r anycast.Result) ([]moveRow, error) {
	if r, ok := r.(*anycast.Move); ok {
		rows = append(rows, moveRow{m.ID, address(r.Target), r.From, r.To, r.Time, millis(r.Gap)})
	}
	return rows, nil
}

type watchRow struct {
	Measurement string    `parquet:"measurement,dict"`
	Time        time.Time `parquet:"time,timestamp(nanosecond)"`
	Sites       string    `parquet:"sites"`
	Lost        int64     `parquet:"lost"`
	Moved       int64     `parquet:"moved"`
}

func watchRows(rows []watchRow, m *anycast.Measurement, r anycast.Result) ([]watchRow, error) {
	w, ok := r.(*anycast.WatchResult)
	if !ok {
		return rows, nil
	}
	sites, err := counts(w.Sites)
	return append(rows, watchRow{m.ID, w.Time, sites, int64(w.Lost), int64(w.Moved)}), err
}

type summaryRow struct {
	Measurement string  `parquet:"measurement"`
	Targets     int64   `parquet:"targets"`
	Sent        uint64  `parquet:"sent"`
	Answered    uint64  `parquet:"answered"`
	Duplicates  uint64  `parquet:"duplicates"`
	Refused     uint64  `parquet:"refused"`
	Late        uint64  `parquet:"late"`
	Unknown     uint64  `parquet:"unknown"`
	Skipped     string  `parquet:"skipped"`
	Sites       string  `parquet:"sites"`
	Weight      string  `parquet:"weight"`
	Origins     string  `parquet:"origins"`
	Differ      int64   `parquet:"differ"`
	Converged   float64 `parquet:"converged_ms,optional"`
	Moved       int64   `parquet:"moved"`
	Notes       string  `parquet:"notes"`
	Took        float64 `parquet:"took_ms"`
}

func summaryRows(rows []summaryRow, m *anycast.Measurement, r anycast.Result) ([]summaryRow, error) {
	s, ok := r.(*anycast.Summary)
	if !ok {
		return rows, nil
	}
	row := summaryRow{
		Measurement: m.ID, Targets: int64(s.Targets), Sent: s.Sent, Answered: s.Answered, Duplicates: s.Duplicates, Refused: s.Refused, Late: s.Late,
		Unknown: s.Unknown, Converged: millis(s.Converged), Moved: int64(s.Moved), Took: millis(s.Took),
		Differ: int64(s.Differ),
	}
	var err error
	if row.Skipped, err = counts(s.Skipped); err != nil {
		return rows, err
	}
	if row.Sites, err = counts(s.Sites); err != nil {
		return rows, err
	}
	if row.Weight, err = counts(s.Weight); err != nil {
		return rows, err
	}
	if row.Origins, err = listInText(s.Origins); err != nil {
		return rows, err
	}
	row.Notes, err = listInText(s.Notes)
	return append(rows, row), err
}

type alarmRow struct {
	Measurement string    `parquet:"measurement"`
	Origin      string    `parquet:"origin,optional"`
	Before      string    `parquet:"before"`
	After       string    `parquet:"after"`
	Share       float64   `parquet:"share"`
	Limit       float64   `parquet:"limit"`
	Time        time.Time `parquet:"time,timestamp(nanosecond)"`
}

func alarmRows(rows []alarmRow, m *anycast.Measurement, r anycast.Result) ([]alarmRow, error) {
	if r, ok := r.(*anycast.Alarm); ok {
		rows = append(rows, alarmRow{m.ID, text(r.Origin), r.Before, r.After, r.Share, r.Limit, r.Time})
	}
	return rows, nil
}

type textRow struct {
	Measurement string `parquet:"measurement"`
	Command     string `parquet:"command,optional"`
	Code        int32  `parquet:"code"`
	Text        string `parquet:"text"`
}

func textRows(rows []textRow, m *anycast.Measurement, r anycast.Result) ([]textRow, error) {
	if r, ok := r.(*anycast.TextResult); ok {
		rows = append(rows, textRow{m.ID, text(m.Definition.Command), r.Code, text(r.Text)})
	}
	return rows, nil
}

// address is empty for the zero Addr.
func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// text is what is shown of text from outside: Parquet's strings must be UTF-8.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// inText gives a value as JSON, in a column of text.
func inText(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// listInText is inText of a list, the empty one if it is nil.
func listInText[T any](list []T) (string, error) {
	if list == nil {
		return "[]", nil
	}
	return inText(list)
}

// counts is inText of a map, the empty one if it is nil.
func counts[V int | float64](m map[string]V) (string, error) {
	if m == nil {
		return "{}", nil
	}
	return inText(m)
}
