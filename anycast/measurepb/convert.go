// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package measurepb

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// The enumerations of the protocol have the numbers that the packages' had when the protocol was made; these
// tables keep them apart, so that a new constant on either side does not change the meaning of what is on the wire or stored.
var (
	protocols = map[stateless.Kind]Protocol{
		stateless.ICMP: Protocol_PROTOCOL_ICMP, stateless.UDP: Protocol_PROTOCOL_UDP, stateless.TCP: Protocol_PROTOCOL_TCP,
		stateless.DNS: Protocol_PROTOCOL_DNS, stateless.CHAOS: Protocol_PROTOCOL_CHAOS,
	}
	methods = map[anycast.Method]Method{
		anycast.MethodParis: Method_METHOD_PARIS, anycast.MethodClassic: Method_METHOD_CLASSIC, anycast.MethodMultipath: Method_METHOD_MULTIPATH,
	}
	states = map[anycast.State]State{
		anycast.Waiting: State_STATE_WAITING, anycast.Running: State_STATE_RUNNING, anycast.Done: State_STATE_DONE,
		anycast.Cancelled: State_STATE_CANCELLED, anycast.Failed: State_STATE_FAILED, anycast.Interrupted: State_STATE_INTERRUPTED,
	}
	statuses = map[probe.Status]Status{
		probe.Replied: Status_STATUS_REPLIED, probe.TimeExceeded: Status_STATUS_TIME_EXCEEDED,
		probe.HostUnreachable: Status_STATUS_HOST_UNREACHABLE, probe.NetUnreachable: Status_STATUS_NET_UNREACHABLE,
		probe.NetworkDown: Status_STATUS_NETWORK_DOWN, probe.HostDown: Status_STATUS_HOST_DOWN,
		probe.NoReply: Status_STATUS_NO_REPLY, probe.Failed: Status_STATUS_FAILED,
	}
	protocolsBack = inverse(protocols)
	methodsBack   = inverse(methods)
	statesBack    = inverse(states)
	statusesBack  = inverse(statuses)
)

func inverse[A, B comparable](m map[A]B) map[B]A {
	back := make(map[B]A, len(m))
	for a, b := range m {
		back[b] = a
	}
	return back
}

// FromProtocol and ToProtocol convert what probes are made of. What is unknown becomes the zero value.
func FromProtocol(k stateless.Kind) Protocol { return protocols[k] }

// ToProtocol is the inverse of FromProtocol.
func ToProtocol(p Protocol) stateless.Kind { return protocolsBack[p] }

// FromAddr gives the bytes of an address, none for the zero Addr.
func FromAddr(a netip.Addr) []byte { return a.AsSlice() }

// ToAddr is the inverse of FromAddr. It fails for any other length than 0, 4 and 16.
func ToAddr(b []byte) (netip.Addr, error) {
	if len(b) == 0 {
		return netip.Addr{}, nil
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return a, fmt.Errorf("address of %d bytes: want 4 or 16", len(b))
	}
	return a, nil
}

// FromTime gives nanoseconds since 1970, 0 for the zero Time.
func FromTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// ToTime is the inverse of FromTime, in UTC.
func ToTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// decoder converts a message, and remembers the first thing that was wrong with it.
type decoder struct{ err error }

func (d *decoder) addr(field string, b []byte) netip.Addr {
	a, err := ToAddr(b)
	if err != nil && d.err == nil {
		d.err = fmt.Errorf("%s: %w", field, err)
	}
	return a
}

func (d *decoder) prefix(field string, b []byte, bits uint32) netip.Prefix {
	if len(b) == 0 {
		return netip.Prefix{}
	}
	a := d.addr(field, b)
	p := netip.PrefixFrom(a, int(bits))
	if !p.IsValid() && d.err == nil {
		d.err = fmt.Errorf("%s: %v/%d is no prefix", field, a, bits)
	}
	return p
}

// number checks that v fits.
func number[T ~uint8 | ~uint16](d *decoder, field string, v uint32) T {
	if uint32(T(v)) != v && d.err == nil {
		d.err = fmt.Errorf("%s: %d is too large", field, v)
	}
	return T(v)
}

func (d *decoder) numbers(field string, vs []uint32) []uint16 {
	if len(vs) == 0 {
		return nil
	}
	out := make([]uint16, len(vs))
	for i, v := range vs {
		out[i] = number[uint16](d, field, v)
	}
	return out
}

func widen(vs []uint16) []uint32 {
	if len(vs) == 0 {
		return nil
	}
	out := make([]uint32, len(vs))
	for i, v := range vs {
		out[i] = uint32(v)
	}
	return out
}

func counts64(m map[string]int) map[string]int64 {
	if m == nil {
		return nil
	}
	out := make(map[string]int64, len(m))
	for k, v := range m {
		out[k] = int64(v)
	}
	return out
}

func counts(m map[string]int64) map[string]int {
	if m == nil {
		return nil
	}
	out := make(map[string]int, len(m))
	for k, v := range m {
		out[k] = int(v)
	}
	return out
}

// FromDefinition converts a definition.
func FromDefinition(d *anycast.Definition) *Definition {
	p := &Definition{
		Name: d.Name, Sites: d.Sites, Source: FromAddr(d.Source), Protocol: protocols[d.Protocol], Port: uint32(d.Port),
		Size: uint32(d.Size), Tos: uint32(d.TOS), Query: d.Query, Note: d.Note, Timeout: int64(d.Timeout), Attempts: int32(d.Attempts),
		AllowPrivate: d.AllowPrivate, Responsive: d.Responsive, Feed: d.Feed,
	}
	for i := range d.Origins {
		o := &d.Origins[i]
		p.Origins = append(p.Origins, &Origin{
			Name: o.Name, Source: FromAddr(o.Source), SourcePort: uint32(o.SourcePort), DestinationPort: uint32(o.Port), Sites: o.Sites,
		})
	}
	if d.Pace != (anycast.Pace{}) {
		p.Pace = &Pace{Rate: d.Pace.Rate, PerNetwork: d.Pace.PerNetwork, SiteGap: int64(d.Pace.SiteGap)}
	}
	if s := d.Schedule; s != nil {
		p.Schedule = &Schedule{Every: int64(s.Every), Until: FromTime(s.Until), Alarm: s.Alarm}
	}
	for _, w := range d.Weights {
		p.Weights = append(p.Weights, &Weight{Network: FromAddr(w.Network.Addr()), Bits: uint32(max(w.Network.Bits(), 0)), Queries: w.Queries})
	}
	for _, o := range d.OptOut {
		p.OptOut = append(p.OptOut, &Network{Address: FromAddr(o.Addr()), Bits: uint32(max(o.Bits(), 0))})
	}
	switch d.Program {
	case anycast.KindTrace:
		t := &Trace{}
		if o := d.Trace; o != nil {
			t = &Trace{
				Method: methods[o.Method], FirstHop: int32(o.FirstHop), MaxHops: int32(o.MaxHops),
				GapLimit: int32(o.GapLimit), Confidence: o.Confidence,
			}
		}
		p.Program = &Definition_Trace{Trace: t}
	case anycast.KindCatchment:
		p.Program = &Definition_Catchment{Catchment: &Catchment{}}
	case anycast.KindLatency:
		p.Program = &Definition_Latency{Latency: &Latency{}}
	case anycast.KindFlipping:
		f := &Flipping{}
		if o := d.Flipping; o != nil {
			f = &Flipping{Flows: int32(o.Flows), Rounds: int32(o.Rounds), Interval: int64(o.Interval), NoPaths: o.NoPaths}
			for _, k := range o.Protocols {
				f.Protocols = append(f.Protocols, protocols[k])
			}
		}
		p.Program = &Definition_Flipping{Flipping: f}
	case anycast.KindWatch:
		w := &Watch{}
		if o := d.Watch; o != nil {
			w = &Watch{Interval: int64(o.Interval), Duration: int64(o.Duration), Settle: int64(o.Settle)}
		}
		p.Program = &Definition_Watch{Watch: w}
	case anycast.KindVolta:
		p.Program = &Definition_Volta{Volta: &Volta{Command: d.Command}}
	}
	return p
}

// ToDefinition is the inverse of FromDefinition. It fails where a message says what no definition can; whether the
// definition makes sense is for its own check.
func ToDefinition(p *Definition) (anycast.Definition, error) {
	var dec decoder
	d := anycast.Definition{
		Name: p.GetName(), Sites: p.GetSites(), Source: dec.addr("source", p.GetSource()), Protocol: protocolsBack[p.GetProtocol()],
		Port: number[uint16](&dec, "port", p.GetPort()), Size: int(p.GetSize()), TOS: number[uint8](&dec, "tos", p.GetTos()),
		Query: p.GetQuery(), Note: p.GetNote(), Timeout: time.Duration(p.GetTimeout()), Attempts: int(p.GetAttempts()),
		AllowPrivate: p.GetAllowPrivate(), Responsive: p.GetResponsive(), Feed: p.GetFeed(),
	}
	for _, o := range p.GetOrigins() {
		d.Origins = append(d.Origins, anycast.Origin{
			Name: o.GetName(), Source: dec.addr("origin", o.GetSource()), SourcePort: number[uint16](&dec, "source port", o.GetSourcePort()),
			Port: number[uint16](&dec, "destination port", o.GetDestinationPort()), Sites: o.GetSites(),
		})
	}
	if q := p.GetPace(); q != nil {
		d.Pace = anycast.Pace{Rate: q.GetRate(), PerNetwork: q.GetPerNetwork(), SiteGap: time.Duration(q.GetSiteGap())}
	}
	if s := p.GetSchedule(); s != nil {
		d.Schedule = &anycast.Schedule{Every: time.Duration(s.GetEvery()), Until: ToTime(s.GetUntil()), Alarm: s.GetAlarm()}
	}
	for _, w := range p.GetWeights() {
		d.Weights = append(d.Weights, anycast.Weight{Network: dec.prefix("weight", w.GetNetwork(), w.GetBits()), Queries: w.GetQueries()})
	}
	for _, o := range p.GetOptOut() {
		d.OptOut = append(d.OptOut, dec.prefix("opt-out", o.GetAddress(), o.GetBits()))
	}
	switch q := p.GetProgram().(type) {
	case *Definition_Trace:
		d.Program = anycast.KindTrace
		t := q.Trace
		d.Trace = &anycast.TraceOptions{
			Method: methodsBack[t.GetMethod()], FirstHop: int(t.GetFirstHop()), MaxHops: int(t.GetMaxHops()),
			GapLimit: int(t.GetGapLimit()), Confidence: t.GetConfidence(),
		}
	case *Definition_Catchment:
		d.Program = anycast.KindCatchment
	case *Definition_Latency:
		d.Program = anycast.KindLatency
	case *Definition_Flipping:
		d.Program = anycast.KindFlipping
		f := q.Flipping
		d.Flipping = &anycast.FlippingOptions{
			Flows: int(f.GetFlows()), Rounds: int(f.GetRounds()), Interval: time.Duration(f.GetInterval()), NoPaths: f.GetNoPaths(),
		}
		for _, k := range f.GetProtocols() {
			d.Flipping.Protocols = append(d.Flipping.Protocols, protocolsBack[k])
		}
	case *Definition_Watch:
		d.Program = anycast.KindWatch
		w := q.Watch
		d.Watch = &anycast.WatchOptions{
			Interval: time.Duration(w.GetInterval()), Duration: time.Duration(w.GetDuration()), Settle: time.Duration(w.GetSettle()),
		}
	case *Definition_Volta:
		d.Program = anycast.KindVolta
		d.Command = q.Volta.GetCommand()
	default:
		return d, fmt.Errorf("definition: no program, or one that is not known here")
	}
	if dec.err != nil {
		return d, fmt.Errorf("definition: %w", dec.err)
	}
	return d, nil
}

// FromProgress converts progress.
func FromProgress(p anycast.Progress) *Progress {
	return &Progress{Done: int64(p.Done), Total: int64(p.Total), Sent: p.Sent, Answered: p.Answered, Left: int64(p.Left)}
}

// ToProgress is the inverse of FromProgress.
func ToProgress(p *Progress) anycast.Progress {
	return anycast.Progress{
		Done: int(p.GetDone()), Total: int(p.GetTotal()), Sent: p.GetSent(), Answered: p.GetAnswered(), Left: time.Duration(p.GetLeft()),
	}
}

// FromMeasurement converts a measurement.
func FromMeasurement(m *anycast.Measurement) *Measurement {
	return &Measurement{
		Id: m.ID, Definition: FromDefinition(&m.Definition), Owner: m.Owner, Parent: m.Parent, State: states[m.State], Error: m.Error,
		Start: FromTime(m.Start), End: FromTime(m.End), Targets: int64(m.Targets), Progress: FromProgress(m.Progress),
	}
}

// ToMeasurement is the inverse of FromMeasurement.
func ToMeasurement(p *Measurement) (anycast.Measurement, error) {
	d, err := ToDefinition(p.GetDefinition())
	return anycast.Measurement{
		ID: p.GetId(), Definition: d, Owner: p.GetOwner(), Parent: p.GetParent(), State: statesBack[p.GetState()], Error: p.GetError(),
		Start: ToTime(p.GetStart()), End: ToTime(p.GetEnd()), Targets: int(p.GetTargets()), Progress: ToProgress(p.GetProgress()),
	}, err
}

// FromSite converts a site.
func FromSite(s *anycast.Site) *Site {
	p := &Site{
		Name: s.Name, Native: s.Native, Rate: s.Rate, ClockOffset: int64(s.Clock.Offset), ClockError: int64(s.Clock.Error),
		Since: FromTime(s.Since), Version: s.Version,
	}
	for _, a := range s.Anycast {
		p.Anycast = append(p.Anycast, FromAddr(a))
	}
	for _, a := range s.Unicast {
		p.Unicast = append(p.Unicast, FromAddr(a))
	}
	return p
}

// ToSite is the inverse of FromSite.
func ToSite(p *Site) (anycast.Site, error) {
	var dec decoder
	s := anycast.Site{
		Name: p.GetName(), Native: p.GetNative(), Rate: p.GetRate(), Since: ToTime(p.GetSince()), Version: p.GetVersion(),
		Clock: anycast.Clock{Offset: time.Duration(p.GetClockOffset()), Error: time.Duration(p.GetClockError())},
	}
	for _, b := range p.GetAnycast() {
		s.Anycast = append(s.Anycast, dec.addr("anycast", b))
	}
	for _, b := range p.GetUnicast() {
		s.Unicast = append(s.Unicast, dec.addr("unicast", b))
	}
	return s, dec.err
}

// FromQuery converts a query.
func FromQuery(q anycast.Query) *ListRequest {
	return &ListRequest{
		Id: q.Measurement, Program: string(q.Program), Name: q.Name, Target: FromAddr(q.Target.Addr()), TargetBits: uint32(max(q.Target.Bits(), 0)),
		Site: q.Site, From: FromTime(q.From), Until: FromTime(q.Until), Limit: int32(q.Limit),
	}
}

// ToQuery is the inverse of FromQuery.
func ToQuery(p *ListRequest) (anycast.Query, error) {
	var dec decoder
	q := anycast.Query{
		Measurement: p.GetId(), Program: anycast.ProgramKind(p.GetProgram()), Name: p.GetName(), Target: dec.prefix("target", p.GetTarget(), p.GetTargetBits()),
		Site: p.GetSite(), From: ToTime(p.GetFrom()), Until: ToTime(p.GetUntil()), Limit: int(p.GetLimit()),
	}
	return q, dec.err
}

// FromResult converts a result.
func FromResult(r anycast.Result) *Result {
	switch r := r.(type) {
	case *anycast.TraceResult:
		return &Result{Result: &Result_Trace{Trace: fromTrace(r)}}
	case *anycast.Catch:
		return &Result{Result: &Result_Catch{Catch: fromCatch(r)}}
	case *anycast.LatencyResult:
		p := &LatencyResult{
			Target: FromAddr(r.Target), Catcher: r.Catcher, Rtt: int64(r.RTT), Best: r.Best, Inflation: int64(r.Inflation), Time: FromTime(r.Time),
			Origin: r.Origin,
		}
		for _, u := range r.Unicast {
			p.Unicast = append(p.Unicast, &SiteRTT{Site: u.Site, Rtt: int64(u.RTT)})
		}
		return &Result{Result: &Result_Latency{Latency: p}}
	case *anycast.FlipResult:
		p := &FlipResult{
			Target: FromAddr(r.Target), Seen: counts64(r.Seen), ByFlow: r.ByFlow, ByProtocol: r.ByProtocol, ByTime: r.ByTime, Spread: int64(r.Spread),
			Origin: r.Origin,
		}
		for i := range r.Catches {
			p.Catches = append(p.Catches, fromCatch(&r.Catches[i]))
		}
		if q := r.Parting; q != nil {
			p.Parting = &Parting{Ttl: int32(q.TTL), Common: FromAddr(q.Common), Flows: widen(q.Flows[:])}
			for _, h := range q.Hops {
				p.Parting.Hops = append(p.Parting.Hops, FromAddr(h))
			}
		}
		return &Result{Result: &Result_Flip{Flip: p}}
	case *anycast.Move:
		return &Result{Result: &Result_Move{Move: &Move{
			Target: FromAddr(r.Target), From: r.From, To: r.To, Time: FromTime(r.Time), Gap: int64(r.Gap),
		}}}
	case *anycast.WatchResult:
		return &Result{Result: &Result_Watch{Watch: &WatchResult{
			Time: FromTime(r.Time), Sites: counts64(r.Sites), Lost: int64(r.Lost), Moved: int64(r.Moved),
		}}}
	case *anycast.Summary:
		s := &Summary{
			Targets: int64(r.Targets), Sent: r.Sent, Answered: r.Answered, Duplicates: r.Duplicates, Refused: r.Refused,
			Skipped: counts64(r.Skipped), Sites: counts64(r.Sites), Weight: r.Weight, Converged: int64(r.Converged), Moved: int64(r.Moved),
			Notes: r.Notes, Took: int64(r.Took), Late: r.Late, Unknown: r.Unknown, Differ: int64(r.Differ),
		}
		for _, o := range r.Origins {
			s.Origins = append(s.Origins, &OriginSummary{Name: o.Name, Sites: counts64(o.Sites), Weight: o.Weight})
		}
		return &Result{Result: &Result_Summary{Summary: s}}
	case *anycast.Alarm:
		return &Result{Result: &Result_Alarm{Alarm: &Alarm{
			Before: r.Before, After: r.After, Share: r.Share, Limit: r.Limit, Time: FromTime(r.Time), Origin: r.Origin,
		}}}
	case *anycast.TextResult:
		return &Result{Result: &Result_Text{Text: &TextResult{Code: r.Code, Text: r.Text}}}
	}
	panic(fmt.Sprintf("measurepb: result of type %T", r))
}

// ToResult is the inverse of FromResult.
func ToResult(p *Result) (anycast.Result, error) {
	var dec decoder
	r, err := dec.result(p)
	if err == nil {
		err = dec.err
	}
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	return r, nil
}

func (d *decoder) result(p *Result) (anycast.Result, error) {
	switch q := p.GetResult().(type) {
	case *Result_Trace:
		return d.trace(q.Trace), nil
	case *Result_Catch:
		return d.caught(q.Catch), nil
	case *Result_Latency:
		l := q.Latency
		r := &anycast.LatencyResult{
			Target: d.addr("target", l.GetTarget()), Catcher: l.GetCatcher(), RTT: time.Duration(l.GetRtt()),
			Best: l.GetBest(), Inflation: time.Duration(l.GetInflation()), Time: ToTime(l.GetTime()),
			Origin: l.GetOrigin(),
		}
		for _, u := range l.GetUnicast() {
			r.Unicast = append(r.Unicast, anycast.SiteRTT{Site: u.GetSite(), RTT: time.Duration(u.GetRtt())})
		}
		return r, nil
	case *Result_Flip:
		f := q.Flip
		r := &anycast.FlipResult{
			Target: d.addr("target", f.GetTarget()), Seen: counts(f.GetSeen()), ByFlow: f.GetByFlow(), ByProtocol: f.GetByProtocol(),
			ByTime: f.GetByTime(), Spread: time.Duration(f.GetSpread()), Origin: f.GetOrigin(),
		}
		for _, c := range f.GetCatches() {
			r.Catches = append(r.Catches, *d.caught(c))
		}
		if g := f.GetParting(); g != nil {
			r.Parting = &anycast.Parting{TTL: int(g.GetTtl()), Common: d.addr("parting", g.GetCommon())}
			copy(r.Parting.Flows[:], d.numbers("parting", g.GetFlows()))
			for _, h := range g.GetHops() {
				r.Parting.Hops = append(r.Parting.Hops, d.addr("parting", h))
			}
		}
		return r, nil
	case *Result_Move:
		m := q.Move
		return &anycast.Move{
			Target: d.addr("target", m.GetTarget()), From: m.GetFrom(), To: m.GetTo(), Time: ToTime(m.GetTime()), Gap: time.Duration(m.GetGap()),
		}, nil
	case *Result_Watch:
		w := q.Watch
		return &anycast.WatchResult{Time: ToTime(w.GetTime()), Sites: counts(w.GetSites()), Lost: int(w.GetLost()), Moved: int(w.GetMoved())}, nil
	case *Result_Summary:
		s := q.Summary
		r := &anycast.Summary{
			Targets: int(s.GetTargets()), Sent: s.GetSent(), Answered: s.GetAnswered(), Duplicates: s.GetDuplicates(), Refused: s.GetRefused(),
			Skipped: counts(s.GetSkipped()), Sites: counts(s.GetSites()), Weight: s.GetWeight(), Converged: time.Duration(s.GetConverged()),
			Moved: int(s.GetMoved()), Notes: s.GetNotes(), Took: time.Duration(s.GetTook()), Late: s.GetLate(), Unknown: s.GetUnknown(),
			Differ: int(s.GetDiffer()),
		}
		for _, o := range s.GetOrigins() {
			r.Origins = append(r.Origins, anycast.OriginSummary{Name: o.GetName(), Sites: counts(o.GetSites()), Weight: o.GetWeight()})
		}
		return r, nil
	case *Result_Alarm:
		a := q.Alarm
		return &anycast.Alarm{Before: a.GetBefore(), After: a.GetAfter(), Share: a.GetShare(), Limit: a.GetLimit(), Time: ToTime(a.GetTime()), Origin: a.GetOrigin()}, nil
	case *Result_Text:
		return &anycast.TextResult{Code: q.Text.GetCode(), Text: q.Text.GetText()}, nil
	}
	return nil, fmt.Errorf("of a kind that is not known here")
}

func fromCatch(c *anycast.Catch) *Catch {
	return &Catch{
		Target: FromAddr(c.Target), Sender: c.Sender, Receiver: c.Receiver, Responder: FromAddr(c.Responder), Protocol: protocols[c.Protocol],
		Status: statuses[c.Status], Flow: uint32(c.Flow), Round: int32(c.Round), Rtt: int64(c.RTT), ClockError: int64(c.ClockError),
		ReplyTtl: uint32(c.ReplyTTL), Text: c.Text, Duplicates: int32(c.Duplicates), Time: FromTime(c.Time),
		Origin: c.Origin,
	}
}

func (d *decoder) caught(p *Catch) *anycast.Catch {
	return &anycast.Catch{
		Target: d.addr("target", p.GetTarget()), Sender: p.GetSender(), Receiver: p.GetReceiver(), Responder: d.addr("responder", p.GetResponder()),
		Protocol: protocolsBack[p.GetProtocol()], Status: statusesBack[p.GetStatus()], Flow: number[uint16](d, "flow", p.GetFlow()), Round: int(p.GetRound()),
		RTT: time.Duration(p.GetRtt()), ClockError: time.Duration(p.GetClockError()), ReplyTTL: number[uint8](d, "reply ttl", p.GetReplyTtl()),
		Text: p.GetText(), Duplicates: int(p.GetDuplicates()), Time: ToTime(p.GetTime()), Origin: p.GetOrigin(),
	}
}

func fromTrace(r *anycast.TraceResult) *TraceResult {
	p := &TraceResult{
		Site: r.Site, Source: FromAddr(r.Source), Target: FromAddr(r.Target), Name: r.Name, Protocol: protocols[r.Protocol], Method: methods[r.Method],
		SrcPort: uint32(r.SrcPort), DstPort: uint32(r.DstPort), Size: uint32(r.Size), Tos: uint32(r.TOS), FirstHop: int32(r.FirstHop),
		MaxHops: int32(r.MaxHops), Attempts: int32(r.Attempts), Stop: r.Stop, Silent: int32(r.Silent), Confidence: r.Confidence,
		Probes: int32(r.Probes), Start: FromTime(r.Start), End: FromTime(r.End),
	}
	for i := range r.Replies {
		a := &r.Replies[i]
		q := &Reply{
			Ttl: uint32(a.TTL), Flow: uint32(a.Flow), Status: statuses[a.Status], Responder: FromAddr(a.Responder), Receiver: a.Receiver,
			Rtt: int64(a.RTT), ClockError: int64(a.ClockError), HasIcmp: a.HasICMP, IcmpType: uint32(a.ICMPType), IcmpCode: uint32(a.ICMPCode),
			ReplyTtl: uint32(a.ReplyTTL), ReplyTos: uint32(a.ReplyTOS), ReplyId: uint32(a.ReplyID), ReplySize: uint32(a.ReplySize),
			QuotedTtl: uint32(a.QuotedTTL), QuotedTos: uint32(a.QuotedTOS), Mtu: a.MTU, Sent: FromTime(a.Sent),
		}
		for _, l := range a.MPLS {
			q.Mpls = append(q.Mpls, &Label{Label: l.Label, TrafficClass: uint32(l.TC), Bottom: l.Bottom, Ttl: uint32(l.TTL)})
		}
		p.Replies = append(p.Replies, q)
	}
	for _, l := range r.Links {
		p.Links = append(p.Links, &Link{Ttl: int32(l.TTL), From: FromAddr(l.From), To: FromAddr(l.To), Flows: widen(l.Flows), Uncertain: l.Uncertain})
	}
	return p
}

func (d *decoder) trace(p *TraceResult) *anycast.TraceResult {
	r := &anycast.TraceResult{
		Site: p.GetSite(), Source: d.addr("source", p.GetSource()), Target: d.addr("target", p.GetTarget()), Name: p.GetName(),
		Protocol: protocolsBack[p.GetProtocol()], Method: methodsBack[p.GetMethod()], SrcPort: number[uint16](d, "source port", p.GetSrcPort()),
		DstPort: number[uint16](d, "port", p.GetDstPort()), Size: int(p.GetSize()), TOS: number[uint8](d, "tos", p.GetTos()), FirstHop: int(p.GetFirstHop()),
		MaxHops: int(p.GetMaxHops()), Attempts: int(p.GetAttempts()), Stop: p.GetStop(), Silent: int(p.GetSilent()), Confidence: p.GetConfidence(),
		Probes: int(p.GetProbes()), Start: ToTime(p.GetStart()), End: ToTime(p.GetEnd()),
	}
	for _, a := range p.GetReplies() {
		q := anycast.Reply{
			TTL: number[uint8](d, "ttl", a.GetTtl()), Flow: number[uint16](d, "flow", a.GetFlow()), Status: statusesBack[a.GetStatus()],
			Responder: d.addr("responder", a.GetResponder()), Receiver: a.GetReceiver(), RTT: time.Duration(a.GetRtt()), ClockError: time.Duration(a.GetClockError()),
			HasICMP: a.GetHasIcmp(), ICMPType: number[uint8](d, "type", a.GetIcmpType()), ICMPCode: number[uint8](d, "code", a.GetIcmpCode()),
			ReplyTTL: number[uint8](d, "reply ttl", a.GetReplyTtl()), ReplyTOS: number[uint8](d, "reply tos", a.GetReplyTos()),
			ReplyID: number[uint16](d, "reply id", a.GetReplyId()), ReplySize: number[uint16](d, "reply size", a.GetReplySize()),
			QuotedTTL: number[uint8](d, "quoted ttl", a.GetQuotedTtl()), QuotedTOS: number[uint8](d, "quoted tos", a.GetQuotedTos()),
			MTU: a.GetMtu(), Sent: ToTime(a.GetSent()),
		}
		for _, l := range a.GetMpls() {
			q.MPLS = append(q.MPLS, packet.Label{
				Label: l.GetLabel(), TC: number[uint8](d, "label", l.GetTrafficClass()), Bottom: l.GetBottom(), TTL: number[uint8](d, "label", l.GetTtl()),
			})
		}
		r.Replies = append(r.Replies, q)
	}
	for _, l := range p.GetLinks() {
		r.Links = append(r.Links, anycast.Link{
			TTL: int(l.GetTtl()), From: d.addr("from", l.GetFrom()), To: d.addr("to", l.GetTo()),
			Flows: d.numbers("flows", l.GetFlows()), Uncertain: l.GetUncertain(),
		})
	}
	return r
}
