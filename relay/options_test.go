// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/seed5728abee/fathom/relay/datagram"
)

func TestOptions(t *testing.T) {
	good := func() Options { return Options{Interfaces: []string{"eth0"}, Ports: onePort(5076)} }
	o := good()
	if err := o.complete(); err != nil || o.MeshPort != DefaultMeshPort || o.Log == nil {
		t.Fatalf("%v: %+v", err, o)
	}
	for name, tt := range map[string]struct {
		change func(*Options)
		says   string
	}{
		"no interface":      {func(o *Options) { o.Interfaces = nil }, "no interface"},
		"an empty name":     {func(o *Options) { o.Interfaces = []string{""} }, "not the name of an interface"},
		"a long name":       {func(o *Options) { o.Interfaces = []string{"0123456789abcdef"} }, "not the name of an interface"},
		"a path":            {func(o *Options) { o.Interfaces = []string{"../x"} }, "not the name of an interface"},
		"twice":             {func(o *Options) { o.Interfaces = []string{"eth0", "eth0"} }, "named twice"},
		"no port":           {func(o *Options) { o.Ports = nil }, "port"},
		"port 0":            {func(o *Options) { o.Ports = onePort(0) }, "port 0"},
		"backward range":    {func(o *Options) { o.Ports = []datagram.PortRange{{First: 9, Last: 8}} }, "greater"},
		"the mesh port":     {func(o *Options) { o.Ports = []datagram.PortRange{{First: 7000, Last: 8000}} }, "7124 cannot be both"},
		"another mesh port": {func(o *Options) { o.MeshPort = 5076 }, "5076 cannot be both"},
		"the mesh port of a group": {func(o *Options) {
			o.Groups = []datagram.Group{{Addr: netip.MustParseAddr("224.0.0.251"), Ports: onePort(DefaultMeshPort)}}
		}, "7124 cannot be both"},
		"a rate": {func(o *Options) { o.SourceRate = -1 }, "below 0"},
		"no group": {func(o *Options) {
			o.Groups = []datagram.Group{{Addr: netip.MustParseAddr("192.0.2.1"), Ports: onePort(9)}}
		}, "not a multicast group"},
		"allowed and denied": {func(o *Options) {
			o.AllowSources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			o.DenySources = o.AllowSources
		}, "both allowed and denied"},
	} {
		o := good()
		tt.change(&o)
		err := o.complete()
		if !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %v with %q", name, err, ErrOptions, tt.says)
		}
	}
	// Groups alone will do.
	o = Options{Interfaces: []string{"eth0"}, Groups: []datagram.Group{{Addr: netip.MustParseAddr("ff02::fb"), Ports: onePort(5353)}}}
	if err := o.complete(); err != nil {
		t.Error(err)
	}
	// What the mesh refuses is an error of options as well.
	o = good()
	o.MeshMTU = 100
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	if _, err := newEngine(&o, datagram.MAC{2}); !errors.Is(err, ErrOptions) {
		t.Errorf("%v, want %v", err, ErrOptions)
	}
}

func TestParsePorts(t *testing.T) {
	got, err := ParsePorts([]string{"5064-5065", "9,7"})
	if want := []datagram.PortRange{{First: 5064, Last: 5065}, {First: 9, Last: 9}, {First: 7, Last: 7}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if text := portsText(got); text != "5064-5065,9,7" {
		t.Error(text)
	}
	for _, bad := range []string{"", "0", "x", "1-", "65536", "5-4", "1,,2"} {
		if got, err := ParsePorts([]string{"7", bad}); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestParseGroups(t *testing.T) {
	got, err := ParseGroups([]string{"224.0.0.128", "239.255.255.250:1900", "ff02::fb", "[ff02::fb]:5353"})
	want := []datagram.Group{
		{Addr: netip.MustParseAddr("224.0.0.128")},
		{Addr: netip.MustParseAddr("239.255.255.250"), Ports: onePort(1900)},
		{Addr: netip.MustParseAddr("ff02::fb")},
		{Addr: netip.MustParseAddr("ff02::fb"), Ports: onePort(5353)},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "x", "224.0.0.1:", "224.0.0.1:99999", "[ff02::1]"} {
		if got, err := ParseGroups([]string{bad}); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// Every preset works alone, and all of them work together.
func TestPresets(t *testing.T) {
	all := Options{Interfaces: []string{"eth0"}}
	for _, p := range Presets() {
		o := Options{Interfaces: []string{"eth0"}, Ports: p.Ports, Groups: p.Groups}
		if err := o.complete(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if found, err := FindPreset(p.Name); err != nil || !reflect.DeepEqual(found, p) || p.About == "" {
			t.Errorf("%s: %+v, %v", p.Name, found, err)
		}
		all.Ports, all.Groups = append(all.Ports, p.Ports...), append(all.Groups, p.Groups...)
	}
	if err := all.complete(); err != nil {
		t.Error(err)
	}
	if _, err := FindPreset("x"); err == nil || !strings.Contains(err.Error(), "epics-ca, epics-pva, mdns, ssdp, wol") {
		t.Errorf("%v does not say which there are", err)
	}
}

func TestDirectionString(t *testing.T) {
	for d, want := range map[Direction]string{Both: "both", ReadOnly: "read-only", EmitOnly: "emit-only", 9: "Direction(9)"} {
		if d.String() != want {
			t.Errorf("%d: %s", d, d)
		}
	}
}
