// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/discovery"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// ErrOptions is in every error about options that cannot work.
var ErrOptions = errors.New("bad options")

// Defaults of [Options].
const (
	DefaultMeshPort    = 7124 // SnowSignal's
	DefaultMeshMTU     = mesh.DefaultPayload
	DefaultSourceRate  = 20_000 // broadcasts per second; a busy EPICS client sends some hundreds
	DefaultSegmentRate = 50_000 // broadcasts per second
	DefaultRepeatRate  = 200    // identical broadcasts per second
)

// A Direction says which way a relay carries broadcasts.
type Direction uint8

// The directions.
const (
	Both     Direction = iota
	ReadOnly           // from the segments to the mesh
	EmitOnly           // from the mesh to the segments
)

// String is "both", "read-only" or "emit-only".
func (d Direction) String() string {
	switch d {
	case Both:
		return "both"
	case ReadOnly:
		return "read-only"
	case EmitOnly:
		return "emit-only"
	}
	return fmt.Sprintf("Direction(%d)", uint8(d))
}

// Options are what a relay is made of. Interfaces and ports are needed; the zero value of everything else is what
// its comment says.
type Options struct {
	// Interfaces are those whose segments the relay serves, between each other as well.
	Interfaces []string
	// Ports are the UDP ports whose broadcasts are relayed.
	Ports []datagram.PortRange
	// Groups are multicast groups to relay, on their own ports or those above.
	Groups []datagram.Group

	// MeshPort is the UDP port for other relays. 0 is DefaultMeshPort.
	MeshPort uint16
	// MeshAddress is the address to hear the mesh on. The zero Addr is all, or with BindToInterface the
	// first IPv4 address of the first interface.
	MeshAddress     netip.Addr
	BindToInterface bool
	// MeshMTU is the longest UDP payload, in bytes, between relays like this one. 0 is DefaultMeshMTU.
	MeshMTU int
	// Sources are where peers come from. None: there are no peers but those that come by themselves, which
	// takes a key.
	Sources []discovery.Source
	// Keys or Identity make a mesh of its own, authenticated and sealed. The first key is used, the others are accepted.
	// Neither: an open mesh.
	Keys     []mesh.Key
	Identity *mesh.Identity
	// Compat lets SnowSignal's relays into a sealed mesh, in clear.
	Compat bool
	// OnlyPeers refuses what does not come from a peer or one of AllowMesh, in an open mesh.
	OnlyPeers bool
	AllowMesh []netip.Prefix

	// AllowSources and DenySources say whose broadcasts are relayed; the longest prefix wins. Neither: everybody's.
	AllowSources, DenySources []netip.Prefix
	Direction                 Direction
	// Rewrite emits limited broadcasts to the segment's directed broadcast address.
	Rewrite bool
	// Validate drops what is no message of the EPICS protocol whose port it is sent to.
	Validate bool
	// CountSearches keeps account of who searches for which process variable, for [Relay.Searches].
	CountSearches bool
	// Echo repeats each broadcast once on its own segment while there are no sources of peers: SnowSignal's self test.
	Echo bool

	// SourceRate and SegmentRate limit the broadcasts per second of one source and of all of a segment, with bursts of two
	// seconds' worth; RepeatRate those that are identical. 0 is no limit.
	SourceRate, SegmentRate, RepeatRate int

	// RequireInterfaces makes New fail when an interface is not there or not up. Otherwise the relay waits for it.
	RequireInterfaces bool

	// Housekeeping, if not nil, is called every second or two, when the relay is awake anyway: to wake up for it costs more than most
	// that is done then. It must not block.
	Housekeeping func()

	Version string
	Log     *slog.Logger          // nil logs nothing
	Metrics prometheus.Registerer // nil registers none
}

// complete puts the defaults in and checks what can be checked without the system.
func (o *Options) complete() error {
	if len(o.Interfaces) == 0 {
		return fmt.Errorf("%w: no interface to relay", ErrOptions)
	}
	for i, name := range o.Interfaces {
		if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n") {
			return fmt.Errorf("%w: %q is not the name of an interface", ErrOptions, name)
		}
		if slices.Contains(o.Interfaces[:i], name) {
			return fmt.Errorf("%w: interface %s is named twice", ErrOptions, name)
		}
	}
	if o.MeshPort == 0 {
		o.MeshPort = DefaultMeshPort
	}
	ports := slices.Clone(o.Ports)
	for _, g := range o.Groups {
		ports = append(ports, g.Ports...)
	}
	for _, r := range ports {
		if r.First <= o.MeshPort && o.MeshPort <= r.Last {
			return fmt.Errorf("%w: port %d cannot be both a broadcast port and the mesh port", ErrOptions, o.MeshPort)
		}
	}
	if o.SourceRate < 0 || o.SegmentRate < 0 || o.RepeatRate < 0 {
		return fmt.Errorf("%w: a rate below 0", ErrOptions)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	// The policy of a segment without addresses shows whether ports and groups are sound.
	if _, err := datagram.NewPolicy(o.policy(nil, nil)); err != nil {
		return fmt.Errorf("%w: %w", ErrOptions, err)
	}
	return nil
}

// policy is what a segment with these prefixes and broadcast addresses relays.
func (o *Options) policy(prefixes []netip.Prefix, broadcasts []netip.Addr) datagram.Config {
	return datagram.Config{
		Ports: o.Ports, Groups: o.Groups, Prefixes: prefixes, Broadcasts: broadcasts,
		Allow: o.AllowSources, Deny: o.DenySources, RewriteDirected: o.Rewrite,
	}
}

// ParsePorts reads ports and ranges, each "5064", "5064-5065" or several with commas.
func ParsePorts(lists []string) ([]datagram.PortRange, error) {
	var all []datagram.PortRange
	for _, list := range lists {
		ranges, err := datagram.ParsePorts(list)
		if err != nil {
			return nil, err
		}
		all = append(all, ranges...)
	}
	return all, nil
}

// ParseGroups reads groups: "224.0.0.128", with a port "239.255.255.250:1900", "ff02::fb" or "[ff02::fb]:5353".
func ParseGroups(texts []string) ([]datagram.Group, error) {
	var groups []datagram.Group
	for _, text := range texts {
		var g datagram.Group
		if ap, err := netip.ParseAddrPort(text); err == nil {
			g = datagram.Group{Addr: ap.Addr(), Ports: []datagram.PortRange{{First: ap.Port(), Last: ap.Port()}}}
		} else if g.Addr, err = netip.ParseAddr(text); err != nil {
			return nil, fmt.Errorf("%q: want a multicast address, or ADDRESS:PORT", text)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// Preset is what a well-known protocol needs.
type Preset struct {
	Name, About string
	Ports       []datagram.PortRange
	Groups      []datagram.Group
}

func onePort(n uint16) []datagram.PortRange { return []datagram.PortRange{{First: n, Last: n}} }

var presets = []Preset{
	{Name: "epics-ca", About: "EPICS Channel Access: searches and beacons", Ports: []datagram.PortRange{{First: 5064, Last: 5065}}},
	{Name: "epics-pva", About: "EPICS PVAccess: searches and beacons, also to its group", Ports: onePort(5076), Groups: []datagram.Group{
		{Addr: netip.MustParseAddr("224.0.0.128"), Ports: onePort(5076)},
	}},
	{Name: "mdns", About: "multicast DNS (RFC 6762)", Groups: []datagram.Group{
		{Addr: netip.MustParseAddr("224.0.0.251"), Ports: onePort(5353)}, {Addr: netip.MustParseAddr("ff02::fb"), Ports: onePort(5353)},
	}},
	{Name: "ssdp", About: "discovery of UPnP", Groups: []datagram.Group{
		{Addr: netip.MustParseAddr("239.255.255.250"), Ports: onePort(1900)},
		{Addr: netip.MustParseAddr("ff02::c"), Ports: onePort(1900)},
		{Addr: netip.MustParseAddr("ff05::c"), Ports: onePort(1900)},
	}},
	{Name: "wol", About: "Wake-on-LAN over UDP", Ports: []datagram.PortRange{{First: 7, Last: 7}, {First: 9, Last: 9}}},
}

// Presets returns all presets.
func Presets() []Preset { return slices.Clone(presets) }

// PresetNames returns the names of all presets.
func PresetNames() []string {
	names := make([]string, len(presets))
	for i, p := range presets {
		names[i] = p.Name
	}
	return names
}

// FindPreset returns the preset with a name.
func FindPreset(name string) (Preset, error) {
	i := slices.IndexFunc(presets, func(p Preset) bool { return p.Name == name })
	if i < 0 {
		return Preset{}, fmt.Errorf("no preset %q: there are %s", name, strings.Join(PresetNames(), ", "))
	}
	return presets[i], nil
}
