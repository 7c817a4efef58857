// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/nat/natpmp"
	"github.com/seed5728abee/fathom/nat/pcp"
)

func TestEpoch(t *testing.T) {
	for _, tt := range []struct {
		name          string
		version       byte
		before, value uint32
		elapsed       time.Duration
		want          bool
	}{
		{"PCP, on time", pcp.Version, 1000, 1600, 10 * time.Minute, false},
		{"PCP, overtaken", pcp.Version, 1000, 999, 0, false},
		{"PCP, back", pcp.Version, 1000, 998, time.Second, true},
		{"PCP, from 0", pcp.Version, 1000, 3, time.Minute, true},
		{"PCP, restarted and past where it was", pcp.Version, 10, 60, 10 * time.Minute, true},
		{"PCP, a little slow", pcp.Version, 1000, 1570, 10 * time.Minute, false},
		{"PCP, too slow", pcp.Version, 1000, 1560, 10 * time.Minute, true},
		{"PCP, a little fast", pcp.Version, 1000, 1630, 10 * time.Minute, false},
		{"PCP, too fast", pcp.Version, 1000, 1650, 10 * time.Minute, true},
		{"NAT-PMP, on time", natpmp.Version, 1000, 1600, 10 * time.Minute, false},
		{"NAT-PMP, a little slow", natpmp.Version, 1000, 1561, 10 * time.Minute, false},
		{"NAT-PMP, too slow", natpmp.Version, 1000, 1560, 10 * time.Minute, true},
		{"NAT-PMP, restarted just after the start", natpmp.Version, 1, 1, 3 * time.Second, true},
		{"NAT-PMP, fast", natpmp.Version, 1000, 9000, 10 * time.Minute, false},
		{"NAT-PMP, from 0", natpmp.Version, 1000, 0, time.Second, true},
	} {
		now := time.Now()
		var e epoch
		if e.restarted(tt.version, tt.before, now) {
			t.Errorf("%s: the first answer tells of a restart", tt.name)
		}
		if got := e.restarted(tt.version, tt.value, now.Add(tt.elapsed)); got != tt.want {
			t.Errorf("%s: restarted is %v, want %v", tt.name, got, tt.want)
		}
		if e.restarted(tt.version, tt.value+1, now.Add(tt.elapsed+time.Second)) {
			t.Errorf("%s: the answer after it tells of a restart again", tt.name)
		}
	}
}

const procRoutes = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wlan0	00000000	0100A8C0	0003	0	0	600	00000000	0	0	0
eth0	00000000	010200C0	0003	0	0	100	00000000	0	0	0
tun0	00000000	00000000	0001	0	0	50	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	100	00FFFFFF	0	0	0
eth1	00000000	037100CB	0002	0	0	10	00000000	0	0	0
`

func TestProcRoutes(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"the lowest metric of those that are up and lead over a gateway", procRoutes, "192.0.2.1"},
		{"none", "Iface\tDestination\n", ""},
		{"empty", "", ""},
		{"garbage", "eth0\t00000000\tzz\t0003\t0\t0\t0\t00000000\t0\n", ""},
		{"more than an address", "eth0\t00000000\t0100A8C0FF\t0003\t0\t0\t0\t00000000\t0\n", ""},
	} {
		got, err := parseProcRoutes(tt.text, binary.LittleEndian)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%s: got %v", tt.name, got)
			}
		} else if err != nil || got.String() != tt.want {
			t.Errorf("%s: got %v, %v, want %s", tt.name, got, err, tt.want)
		}
	}
	big, err := parseProcRoutes("eth0\t00000000\tC0000201\t0003\t0\t0\t0\t00000000\t0\n", binary.BigEndian)
	if err != nil || big.String() != "192.0.2.1" {
		t.Errorf("big-endian: got %v, %v", big, err)
	}
}

func FuzzProcRoutes(f *testing.F) {
	f.Add(procRoutes)
	f.Fuzz(func(t *testing.T, text string) {
		if a, err := parseProcRoutes(text, binary.LittleEndian); err == nil && !a.Is4() {
			t.Errorf("got %v", a)
		}
	})
}

const searchAnswer = "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nEXT:\r\nLocation: http://192.0.2.1:5000/rootDesc.xml\r\n\r\n"

func TestSearchAnswer(t *testing.T) {
	gateway := netip.MustParseAddr("192.0.2.1")
	f, err := parseSearchAnswer([]byte(searchAnswer), gateway)
	if err != nil || f.location.String() != "http://192.0.2.1:5000/rootDesc.xml" || f.from != gateway {
		t.Errorf("got %+v, %v", f, err)
	}
	for _, tt := range []struct{ name, packet string }{
		{"of another host", "HTTP/1.1 200 OK\r\nLocation: http://192.0.2.9/\r\n\r\n"},
		{"of a name", "HTTP/1.1 200 OK\r\nLocation: http://router.example/\r\n\r\n"},
		{"of a file", "HTTP/1.1 200 OK\r\nLocation: file://192.0.2.1/etc/passwd\r\n\r\n"},
		{"an error", "HTTP/1.1 404 Not Found\r\nLocation: http://192.0.2.1/\r\n\r\n"},
		{"a request", "NOTIFY * HTTP/1.1\r\nLocation: http://192.0.2.1/\r\n\r\n"},
		{"without a place", "HTTP/1.1 200 OK\r\n\r\n"},
		{"empty", ""},
	} {
		if f, err := parseSearchAnswer([]byte(tt.packet), gateway); err == nil {
			t.Errorf("an answer %s leads to %v", tt.name, f.location)
		}
	}
}

func FuzzSearchAnswer(f *testing.F) {
	gateway := netip.MustParseAddr("192.0.2.1")
	f.Add([]byte(searchAnswer))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if found, err := parseSearchAnswer(packet, gateway); err == nil && found.location.Hostname() != gateway.String() {
			t.Errorf("leads to %v", found.location)
		}
	})
}

const describedBy = `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device><friendlyName>r</friendlyName><deviceList><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:%s</serviceType><controlURL>%s</controlURL></service></serviceList></device></deviceList></device></root>`

// Where a device says that its service is, decides whether it is asked.
func TestDescriptions(t *testing.T) {
	f, err := parseSearchAnswer([]byte(searchAnswer), netip.MustParseAddr("192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ service, at, want string }{
		{"WANIPConnection:2", "/ctl", "http://192.0.2.1:5000/ctl"},
		{"WANIPConnection:1", "ctl", "http://192.0.2.1:5000/ctl"},
		{"WANPPPConnection:1", "http://192.0.2.1:49000/ctl", "http://192.0.2.1:49000/ctl"},
		{"WANIPConnection:1", "http://192.0.2.9/ctl", ""},
		{"WANIPConnection:1", "https://192.0.2.1/ctl", ""},
		{"WANIPConnection:1", "http://router.example/ctl", ""},
		{"WANIPConnection:1", "http://[::1%25/%zz", ""},
		{"WANIPConnection:1", "//192.0.2.9/", ""},
		{"Layer3Forwarding:1", "/ctl", ""},
	} {
		root, err := parseDescription(strings.NewReader(fmt.Sprintf(describedBy, tt.service, tt.at)), f)
		if err != nil {
			t.Errorf("%s at %s: %v", tt.service, tt.at, err)
			continue
		}
		got := ""
		if all := connections(root, f); len(all) > 0 {
			got = all[0].GetServiceClient().SOAPClient.EndpointURL.String()
		}
		if got != tt.want {
			t.Errorf("%s at %s: asked at %q, want %q", tt.service, tt.at, got, tt.want)
		}
	}
}

func FuzzDescription(f *testing.F) {
	from, err := parseSearchAnswer([]byte(searchAnswer), netip.MustParseAddr("192.0.2.1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(fmt.Sprintf(describedBy, "WANIPConnection:1", "/ctl")))
	f.Add([]byte(fmt.Sprintf(describedBy, "WANPPPConnection:1", "%")))
	f.Add([]byte("<root><URLBase>http://192.0.2.1/</URLBase></root>"))
	f.Fuzz(func(t *testing.T, text []byte) {
		root, err := parseDescription(bytes.NewReader(text), from)
		if err != nil {
			return
		}
		for _, s := range connections(root, from) {
			if u := s.GetServiceClient().SOAPClient.EndpointURL; u.Hostname() != "192.0.2.1" || u.Scheme != "http" {
				t.Errorf("would ask at %v", &u)
			}
		}
		deviceName(&root.Device)
	})
}

func TestCandidates(t *testing.T) {
	ports := candidates(65530)
	if !slices.Equal(ports[:8], []uint16{65530, 65531, 65532, 65533, 65534, 65535, 1024, 1025}) {
		t.Errorf("got %v", ports)
	}
	if len(ports) != portsInTurn+portsAtRandom {
		t.Errorf("got %d", len(ports))
	}
	for _, p := range ports[portsInTurn:] {
		if p < firstDynamic {
			t.Errorf("%d is not in the dynamic range", p)
		}
	}
}

func TestIsPublic(t *testing.T) {
	for text, want := range map[string]bool{
		"203.0.113.1": true, "192.0.2.1": true, "8.8.8.8": true, "::ffff:203.0.113.1": true, "2001:db8::1": true,
		"10.0.0.1": false, "172.31.0.1": false, "192.168.1.1": false, "100.64.0.1": false, "169.254.1.1": false, "127.0.0.1": false,
		"0.0.0.0": false, "0.1.2.3": false, "192.0.0.2": false, "224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false, "fd00::1": false,
	} {
		if got := IsPublic(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: got %v", text, got)
		}
	}
	if IsPublic(netip.Addr{}) {
		t.Error("an invalid address is public")
	}
}

func TestNames(t *testing.T) {
	for _, m := range []Method{Auto, Off, UPnP, NATPMP, PCP} {
		if got, err := ParseMethod(m.String()); err != nil || got != m {
			t.Errorf("%v is read as %v (%v)", m, got, err)
		}
	}
	for _, p := range []Protocol{TCP, UDP, TCP | UDP} {
		if got, err := ParseProtocol(p.String()); err != nil || got != p {
			t.Errorf("%v is read as %v (%v)", p, got, err)
		}
	}
	if _, err := ParseMethod("igd"); err == nil {
		t.Error("read a method that is none")
	}
	if _, err := ParseProtocol("sctp"); err == nil {
		t.Error("read a protocol that cannot be mapped")
	}
	for got, want := range map[string]string{
		Method(37).String(): "Method(37)", Protocol(37).String(): "Protocol(37)", EventKind(37).String(): "EventKind(37)",
		Changed.String(): "changed", Lost.String(): "lost", Mapped.String(): "mapped", Renewed.String(): "renewed",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := printable("a\x1b[31mb\u202e" + string(make([]byte, 100))); len([]rune(got)) != maxDescription || got[:7] != "a?[31mb" {
		t.Errorf("got %q", got)
	}
}
