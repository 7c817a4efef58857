// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/seed5728abee/fathom/lab/dataplane"
)

// ReadFile reads and validates a topology file. A topology that names itself nothing is named
// after the file.
func ReadFile(path string) (*Topology, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, err
	}
	return ParseNamed(path, data)
}

// ParseNamed is [Parse] of a file that has been read: its path appears in errors, and names the topology.
func ParseNamed(path string, data []byte) (*Topology, error) {
	t, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if base, _, _ := strings.Cut(filepath.Base(path), "."); t.Name == "" && validName(base) {
		t.Name = base
	}
	return t, nil
}

// Parse decodes and validates a topology in TOML; docs/guides/lab.md lists the keys. The error
// of a malformed file shows the offending line.
func Parse(data []byte) (*Topology, error) {
	if len(data) > MaxFileSize {
		return nil, fmt.Errorf("%w: file is longer than %d bytes", ErrTopology, MaxFileSize)
	}
	var f file
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return nil, fmt.Errorf("%w: %s", ErrTopology, describeUnknown(strict, data))
		}
		if decode, ok := errors.AsType[*toml.DecodeError](err); ok {
			return nil, fmt.Errorf("%w: %w\n%s", ErrTopology, decode, decode.String())
		}
		return nil, fmt.Errorf("%w: %w", ErrTopology, err)
	}
	t, err := f.topology()
	if err != nil {
		return nil, err
	}
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return t, nil
}

// tables are the names of the tables of a topology file.
var tables = []string{"host", "router", "bridge", "nat", "wire", "route"}

// describeUnknown names the first keys and tables of a file that a topology has not, each with its line.
func describeUnknown(strict *toml.StrictMissingError, data []byte) string {
	const most = 8
	lines := strings.Split(string(data), "\n")
	var out []string
	for i := range strict.Errors[:min(most, len(strict.Errors))] {
		row, _ := strict.Errors[i].Position()
		line := strings.TrimSpace(lines[row-1])
		key := strict.Errors[i].Key()
		what := fmt.Sprintf("unknown key %q", strings.Join(key, "."))
		switch {
		case strings.HasPrefix(line, "[") && !slices.Contains(tables, key[0]):
			what = fmt.Sprintf("unknown table %q%s; want one of %s", key[0], didYouMean(key[0], tables), strings.Join(tables, ", "))
		case strings.HasPrefix(line, "["):
			what = fmt.Sprintf("unknown table %q", strings.Join(key, "."))
		}
		out = append(out, fmt.Sprintf("%s\n%d| %s", what, row, line))
	}
	return strings.Join(out, "\n")
}

// didYouMean suggests the closest of some words, if at most two letters, and not more than half of them, are wrong.
func didYouMean(word string, words []string) string {
	best, least := "", min(2, len(word)/2)+1
	for _, w := range words {
		if d := editDistance(word, w); d < least {
			best, least = w, d
		}
	}
	if best == "" {
		return ""
	}
	return " (did you mean " + best + "?)"
}

// editDistance is how many bytes must be inserted, deleted or replaced to make b of a (Levenshtein 1966).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1) // distances from the part of a that was looked at to each beginning of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// MustParse is [Parse] for topologies written in a program. It panics on a malformed one.
func MustParse(text string) *Topology {
	t, err := Parse([]byte(text))
	if err != nil {
		panic(err)
	}
	return t
}

// The structs below are the file's form of the exported ones: text for durations, rates and
// prefixes, inline tables for directions.

type file struct {
	Name   string                `toml:"name"`
	Host   map[string]fileHost   `toml:"host"`
	Router map[string]fileRouter `toml:"router"`
	Bridge map[string]fileBridge `toml:"bridge"`
	NAT    map[string]fileNAT    `toml:"nat"`
	Wire   []fileWire            `toml:"wire"`
	Route  []fileRoute           `toml:"route"`
}

type fileHost struct {
	Addresses []prefixText   `toml:"addresses"`
	Announce  []fileAnnounce `toml:"announce"`
	Routes    []fileRoute    `toml:"routes"`
}

type fileAnnounce struct {
	Prefix    prefixText `toml:"prefix"`
	Cost      int        `toml:"cost"`
	Withdrawn bool       `toml:"withdrawn"`
}

type fileBehaviour struct {
	Silent      bool         `toml:"silent"`
	SilentPing  bool         `toml:"silent_ping"`
	ICMPRate    float64      `toml:"icmp_rate"`
	ICMPBurst   int          `toml:"icmp_burst"`
	ICMPDelay   durationText `toml:"icmp_delay"`
	ErrorSource []netip.Addr `toml:"error_source"`
	MPLS        []fileLabel  `toml:"mpls"`
	Balance     *balanceText `toml:"balance"`
	TTL         uint8        `toml:"ttl"`
	Firewall    []fileRule   `toml:"firewall"`
}

type fileLabel struct {
	Label uint32 `toml:"label"`
	TC    uint8  `toml:"tc"`
	TTL   *uint8 `toml:"ttl"`
}

type fileRule struct {
	Action   actionText   `toml:"action"`
	Protocol protocolText `toml:"protocol"`
	From     prefixText   `toml:"from"`
	To       prefixText   `toml:"to"`
	Port     uint16       `toml:"port"`
}

type fileRouter struct {
	Addresses  []prefixText   `toml:"addresses"`
	Announce   []fileAnnounce `toml:"announce"`
	Routes     []fileRoute    `toml:"routes"`
	Hops       int            `toml:"hops"`
	Adjustable bool           `toml:"adjustable"`
	fileBehaviour
}

type fileBridge struct {
	Subnets []prefixText `toml:"subnets"`
}

type fileNAT struct {
	Addresses []prefixText `toml:"addresses"`
	Routes    []fileRoute  `toml:"routes"`
	Outside   string       `toml:"outside"`
	Ports     portsText    `toml:"ports"`
	Type      natTypeText  `toml:"type"`
	Hairpin   bool         `toml:"hairpin"`
	Timeout   durationText `toml:"timeout"`
	fileBehaviour
}

type fileImpairment struct {
	Delay     durationText `toml:"delay"`
	Jitter    durationText `toml:"jitter"`
	Uniform   bool         `toml:"jitter_uniform"`
	Loss      float64      `toml:"loss"`
	LossEvery uint64       `toml:"loss_every"`
	Duplicate float64      `toml:"duplicate"`
	Reorder   float64      `toml:"reorder"`
	Corrupt   float64      `toml:"corrupt"`
	Rate      rateText     `toml:"rate"`
	Queue     int          `toml:"queue_bytes"`
}

type fileWire struct {
	Ends       []string        `toml:"ends"`
	Forward    *fileImpairment `toml:"forward"`
	Backward   *fileImpairment `toml:"backward"`
	Seed       uint64          `toml:"seed"`
	MTU        int             `toml:"mtu"`
	Cost       any             `toml:"cost"` // a number, or two
	Subnets    []prefixText    `toml:"subnets"`
	Addresses  [][]prefixText  `toml:"addresses"`
	Adjustable bool            `toml:"adjustable"`
	fileImpairment
}

type fileRoute struct {
	At     string `toml:"at"`
	To     string `toml:"to"`
	Via    any    `toml:"via"` // a name, or several
	Reject string `toml:"reject"`
	Hops   []int  `toml:"hops"`
}

func (f *file) topology() (*Topology, error) {
	t := &Topology{
		Name:    f.Name,
		Hosts:   make(map[string]HostConfig, len(f.Host)),
		Routers: make(map[string]RouterConfig, len(f.Router)),
		Bridges: make(map[string]BridgeConfig, len(f.Bridge)),
		NATs:    make(map[string]NATConfig, len(f.NAT)),
	}
	for name, h := range f.Host {
		routes, err := routeConfigs(h.Routes)
		if err != nil {
			return nil, fmt.Errorf("%w: host %s: %w", ErrTopology, name, err)
		}
		t.Hosts[name] = HostConfig{Addresses: prefixes(h.Addresses), Announce: announceConfigs(h.Announce), Routes: routes}
	}
	for name, r := range f.Router {
		routes, err := routeConfigs(r.Routes)
		if err != nil {
			return nil, fmt.Errorf("%w: router %s: %w", ErrTopology, name, err)
		}
		t.Routers[name] = RouterConfig{
			Addresses: prefixes(r.Addresses), Announce: announceConfigs(r.Announce), Routes: routes, Hops: r.Hops,
			// The kernel balances by flow too, but sees no flows in ICMP: who asks gets the real thing.
			Adjustable: r.Adjustable || r.Balance != nil, Behaviour: r.behaviour(),
		}
	}
	for name, b := range f.Bridge {
		t.Bridges[name] = BridgeConfig{Subnets: prefixes(b.Subnets)}
	}
	for name, n := range f.NAT {
		routes, err := routeConfigs(n.Routes)
		if err != nil {
			return nil, fmt.Errorf("%w: nat %s: %w", ErrTopology, name, err)
		}
		t.NATs[name] = NATConfig{
			Addresses: prefixes(n.Addresses), Routes: routes, Outside: n.Outside, Type: NATType(n.Type),
			Hairpin: n.Hairpin, Ports: dataplane.PortAllocation(n.Ports), Timeout: n.Timeout.Duration,
			Behaviour: n.behaviour(),
		}
	}
	for i := range f.Wire {
		w, err := f.Wire[i].config()
		if err != nil {
			return nil, fmt.Errorf("%w: wire %d: %w", ErrTopology, i+1, err)
		}
		t.Wires = append(t.Wires, w)
	}
	var err error
	if t.Routes, err = routeConfigs(f.Route); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTopology, err)
	}
	return t, nil
}

func (b *fileBehaviour) behaviour() Behaviour {
	out := Behaviour{
		Silent: b.Silent, SilentPing: b.SilentPing, ICMPRate: b.ICMPRate, ICMPBurst: b.ICMPBurst,
		ICMPDelay: b.ICMPDelay.Duration, ErrorSource: b.ErrorSource, TTL: b.TTL,
	}
	if b.Balance != nil {
		out.Balance = Balance(*b.Balance)
	}
	for _, l := range b.MPLS {
		ttl := uint8(1)
		if l.TTL != nil {
			ttl = *l.TTL
		}
		out.MPLS = append(out.MPLS, Label{Label: l.Label, TC: l.TC, TTL: ttl})
	}
	for _, r := range b.Firewall {
		out.Firewall = append(out.Firewall, Rule{
			Action: dataplane.Action(r.Action), Protocol: uint8(r.Protocol),
			From: r.From.Prefix.Masked(), To: r.To.Prefix.Masked(), PortMin: r.Port,
		})
	}
	return out
}

func (i *fileImpairment) impairment() Impairment {
	return Impairment{
		Delay: i.Delay.Duration, Jitter: i.Jitter.Duration, JitterUniform: i.Uniform,
		Loss: i.Loss, LossEvery: i.LossEvery, Duplicate: i.Duplicate, Reorder: i.Reorder, Corrupt: i.Corrupt,
		Rate: float64(i.Rate), QueueBytes: i.Queue,
	}
}

func (f *fileWire) config() (WireConfig, error) {
	w := WireConfig{
		Impairment: f.impairment(), Seed: f.Seed, MTU: f.MTU,
		Subnets: prefixes(f.Subnets), Adjustable: f.Adjustable,
	}
	if len(f.Ends) != 2 {
		return w, fmt.Errorf("ends must be two node names, not %d", len(f.Ends))
	}
	w.Ends = [2]string(f.Ends)
	switch cost := f.Cost.(type) {
	case nil:
	case int64:
		w.Cost = int(min(cost, math.MaxInt32)) // more is refused later
	case []any:
		if len(cost) != 2 {
			return w, fmt.Errorf("cost must be a number or two, not %d", len(cost))
		}
		for i, v := range cost {
			c, ok := v.(int64)
			if !ok || c < 1 { // 0 would stand for the default
				return w, fmt.Errorf("cost %v is not a whole number from 1", v)
			}
			w.Costs[i] = int(min(c, math.MaxInt32))
		}
	default:
		return w, fmt.Errorf("cost must be a whole number, or two in a list")
	}
	if f.Forward != nil {
		w.Forward = new(f.Forward.impairment())
	}
	if f.Backward != nil {
		w.Backward = new(f.Backward.impairment())
	}
	if len(f.Addresses) > 2 {
		return w, errors.New("addresses must be two lists, one for each end")
	}
	for end, list := range f.Addresses {
		w.Addresses[end] = prefixes(list)
	}
	return w, nil
}

func announceConfigs(in []fileAnnounce) []AnnounceConfig {
	var out []AnnounceConfig
	for _, a := range in {
		out = append(out, AnnounceConfig{Prefix: a.Prefix.Prefix, Cost: a.Cost, Withdrawn: a.Withdrawn})
	}
	return out
}

func routeConfigs(in []fileRoute) ([]RouteConfig, error) {
	var out []RouteConfig
	for _, r := range in {
		c := RouteConfig{At: r.At, To: r.To, Reject: r.Reject}
		switch len(r.Hops) {
		case 0:
		case 2:
			c.Hops = [2]int(r.Hops)
		default:
			return nil, fmt.Errorf("route to %q: hops must be two numbers, the first and the last", r.To)
		}
		switch via := r.Via.(type) {
		case nil:
		case string:
			c.Via = []string{via}
		case []any:
			for _, v := range via {
				s, ok := v.(string)
				if !ok {
					return nil, fmt.Errorf("route to %q: via must be a name or a list of names", r.To)
				}
				c.Via = append(c.Via, s)
			}
		default:
			return nil, fmt.Errorf("route to %q: via must be a name or a list of names", r.To)
		}
		out = append(out, c)
	}
	return out, nil
}

func prefixes(in []prefixText) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range in {
		out = append(out, p.Prefix)
	}
	return out
}

// prefixText is a prefix, or a bare address: all its bits.
type prefixText struct{ netip.Prefix }

func (p *prefixText) UnmarshalText(b []byte) (err error) {
	if addr, e := netip.ParseAddr(string(b)); e == nil && addr.Zone() == "" {
		p.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	if p.Prefix, err = netip.ParsePrefix(string(b)); err != nil {
		return fmt.Errorf("%q is no address or prefix; want one like 192.0.2.1 or 192.0.2.0/24", b)
	}
	return nil
}

type durationText struct{ time.Duration }

func (d *durationText) UnmarshalText(b []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(b))
	return err
}

type rateText float64

func (r *rateText) UnmarshalText(b []byte) error {
	rate, err := ParseRate(string(b))
	*r = rateText(rate)
	return err
}

// ParseRate reads a rate such as "64kbit", "10Mbit", "2.5Gbit" or "1200bit", in bits per second.
func ParseRate(s string) (float64, error) {
	number, ok := strings.CutSuffix(s, "bit")
	scale := 1.0
	if n := len(number); ok && n > 0 {
		switch number[n-1] {
		case 'k':
			scale = 1e3
		case 'M':
			scale = 1e6
		case 'G':
			scale = 1e9
		}
		if scale > 1 {
			number = number[:n-1]
		}
	}
	rate, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("rate %q is not a number followed by bit, kbit, Mbit or Gbit", s)
	}
	if rate *= scale; !(rate >= 0 && rate <= MaxRate) {
		return 0, fmt.Errorf("rate %q is not between 0 and %g bits per second", s, float64(MaxRate))
	}
	return rate, nil
}

// formatRate is the inverse of ParseRate.
func formatRate(rate float64) string {
	for _, unit := range []struct {
		scale  float64
		suffix string
	}{{1e9, "Gbit"}, {1e6, "Mbit"}, {1e3, "kbit"}} {
		if rate >= unit.scale {
			return strconv.FormatFloat(rate/unit.scale, 'f', -1, 64) + unit.suffix
		}
	}
	return strconv.FormatFloat(rate, 'f', -1, 64) + "bit"
}

// ImpairmentKeys are the keys that [SetImpairment] knows, in the order of the guide.
var ImpairmentKeys = []string{"delay", "jitter", "jitter_uniform", "loss", "loss_every", "duplicate", "reorder", "corrupt", "rate", "queue_bytes"}

// SetImpairment changes one field of an impairment, by its key and value in the topology file.
func SetImpairment(i *Impairment, key, value string) (err error) {
	switch key {
	case "delay":
		i.Delay, err = time.ParseDuration(value)
	case "jitter":
		i.Jitter, err = time.ParseDuration(value)
	case "jitter_uniform":
		i.JitterUniform, err = strconv.ParseBool(value)
	case "loss":
		i.Loss, err = strconv.ParseFloat(value, 64)
	case "loss_every":
		i.LossEvery, err = strconv.ParseUint(value, 10, 64)
	case "duplicate":
		i.Duplicate, err = strconv.ParseFloat(value, 64)
	case "reorder":
		i.Reorder, err = strconv.ParseFloat(value, 64)
	case "corrupt":
		i.Corrupt, err = strconv.ParseFloat(value, 64)
	case "rate":
		if value == "0" {
			i.Rate = 0
		} else {
			i.Rate, err = ParseRate(value)
		}
	case "queue_bytes":
		i.QueueBytes, err = strconv.Atoi(value)
	default:
		return bad("a wire has no %q; it has %s", key, strings.Join(ImpairmentKeys, ", "))
	}
	if err != nil {
		return bad("%s %q: %w", key, value, err)
	}
	return nil
}

// FormatImpairment describes an impairment in a few words: "20ms ±2ms, loss 10%, 10Mbit". It is
// empty for a perfect wire.
func FormatImpairment(i Impairment) string {
	var parts []string
	if i.Delay != 0 || i.Jitter != 0 {
		s := i.Delay.String()
		if i.Jitter != 0 {
			s += " ±" + i.Jitter.String()
		}
		parts = append(parts, s)
	}
	for _, p := range []struct {
		name  string
		value float64
	}{{"loss", i.Loss}, {"duplicate", i.Duplicate}, {"reorder", i.Reorder}, {"corrupt", i.Corrupt}} {
		if p.value != 0 {
			parts = append(parts, fmt.Sprintf("%s %s%%", p.name, strconv.FormatFloat(p.value*100, 'g', 6, 64)))
		}
	}
	if i.LossEvery != 0 {
		parts = append(parts, fmt.Sprintf("loses 1 in %d", i.LossEvery))
	}
	if i.Rate != 0 {
		parts = append(parts, formatRate(i.Rate))
	}
	return strings.Join(parts, ", ")
}

type balanceText Balance

func (v *balanceText) UnmarshalText(b []byte) error {
	return enumText((*uint8)(v), b, map[string]uint8{
		"flow":          uint8(dataplane.BalanceFlow),
		"destination":   uint8(dataplane.BalanceDestination),
		"packet":        uint8(dataplane.BalancePacket),
		"packet-random": uint8(dataplane.BalancePacketRandom),
	})
}

type actionText dataplane.Action

func (v *actionText) UnmarshalText(b []byte) error {
	return enumText((*uint8)(v), b, map[string]uint8{
		"accept": uint8(dataplane.Accept),
		"drop":   uint8(dataplane.Drop),
		"reject": uint8(dataplane.RejectAdmin),
	})
}

type portsText dataplane.PortAllocation

func (v *portsText) UnmarshalText(b []byte) error {
	return enumText((*uint8)(v), b, map[string]uint8{
		"preserve":   uint8(dataplane.PreservePort),
		"sequential": uint8(dataplane.SequentialPort),
		"random":     uint8(dataplane.RandomPort),
	})
}

type natTypeText NATType

func (v *natTypeText) UnmarshalText(b []byte) error {
	values := map[string]uint8{}
	for i, name := range natTypeNames {
		values[name] = uint8(i)
	}
	return enumText((*uint8)(v), b, values)
}

// protocolText is an IP protocol number. The rules of a firewall take 1 as ICMP of either version.
type protocolText uint8

func (v *protocolText) UnmarshalText(b []byte) error {
	return enumText((*uint8)(v), b, map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132})
}

func enumText(v *uint8, b []byte, values map[string]uint8) error {
	value, ok := values[string(b)]
	if !ok {
		return fmt.Errorf("%q is not one of %s", b, strings.Join(slices.Sorted(maps.Keys(values)), ", "))
	}
	*v = value
	return nil
}
