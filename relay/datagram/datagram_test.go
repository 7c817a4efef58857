// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/drop"
)

// TestRecorded takes what relays of the original kind sent, as they sent it and as they had captured it.
func TestRecorded(t *testing.T) {
	ports := map[string]uint16{"ss-ca-search": 5064}
	payloads := map[string]string{
		"ss-limited-hello": "hello", "ss-limited-empty": "", "ss-limited-snow": "SnowSignal!", "ss-directed-hello": "hello",
		"ss-finished-hello": "hello", "ss-padded-hello": "hello",
	}
	all := frames()
	if len(all) != 9 {
		t.Fatalf("%d recorded datagrams, want 9", len(all))
	}
	for name, original := range all {
		for _, way := range []string{"mesh", "capture"} {
			f := bytes.Clone(original)
			var d Datagram
			var reason drop.Reason
			if way == "mesh" {
				reason = d.ParseSS(f)
			} else {
				finished := name == "ss-finished-hello" || name == "ss-padded-hello"
				reason = d.Parse(f, Capture{Partial: !finished})
			}
			if reason != drop.None {
				t.Errorf("%s by %s: %v", name, way, reason)
				continue
			}
			if reason := d.Finish(); reason != drop.None {
				t.Errorf("%s by %s: Finish: %v", name, way, reason)
			}
			want := uint16(5076)
			if p := ports[name]; p != 0 {
				want = p
			}
			if d.Fragment || d.Link != link || d.Src.Addr() != sender.Addr() || d.Dst.Port() != want || d.Directed() != strings.Contains(name, "directed") || d.Group() {
				t.Errorf("%s by %s: %+v", name, way, d)
			}
			if p, ok := payloads[name]; ok && (string(d.Payload()) != p || d.Src != sender) {
				t.Errorf("%s by %s: payload %q from %v, want %q from %v", name, way, d.Payload(), d.Src, p, sender)
			}
			udp, err := packet.ParseUDP(packet.IPv4(d.IP).Payload())
			if err != nil || udp.Checksum() == 0 || !udp.ChecksumOK(d.Src.Addr(), d.Dst.Addr()) {
				t.Errorf("%s by %s: %v, UDP checksum %04x is wrong", name, way, err, udp.Checksum())
			}
			// Nothing else has changed.
			copy(udp[6:8], original[EthernetHeaderLen+20+6:])
			if !bytes.HasPrefix(original[EthernetHeaderLen:], d.IP) {
				t.Errorf("%s by %s: got %x, was %x", name, way, d.IP, original)
			}
		}
	}
}

func TestEgress(t *testing.T) {
	p, err := NewPolicy(Config{Ports: []PortRange{{5076, 5076}}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.1.3/24")}})
	if err != nil {
		t.Fatal(err)
	}
	for in, out := range map[string]string{"ss-limited-hello": "egress-limited-hello", "ss-directed-hello": "egress-directed-hello"} {
		var d Datagram
		if reason := d.ParseSS(vector(t, in)[2:]); reason != drop.None {
			t.Fatal(reason)
		}
		if reason := p.CheckMesh(&d); reason != drop.None {
			t.Fatal(reason)
		}
		d.Finish()
		d.SetDestination(p.Target(d.Dst.Addr()))
		if want := vector(t, out); !bytes.Equal(d.IP, want) {
			t.Errorf("%s:\n got %x\nwant %x", in, d.IP, want)
		}
		if d.Dst.Addr() != packet.IPv4(d.IP).Dst() || d.Dst.Port() != 5076 {
			t.Errorf("%s: Dst is %v", in, d.Dst)
		}
	}
}

// refusals are frames of which nothing must come out, whoever sent them.
func refusals() []struct {
	name   string
	frame  []byte
	reason drop.Reason
} {
	hello := ip4("255.255.255.255:5076", []byte("hello"))
	group := ip4("224.0.0.128:5076", []byte("hello"))
	hello6 := ip6("[ff02::42:1]:5076", []byte("hello"))
	to := func(mac MAC, ip []byte) []byte {
		f := frame(ip)
		copy(f, mac[:])
		return f
	}
	typed := func(t uint16, ip []byte) []byte {
		f := frame(ip)
		binary.BigEndian.PutUint16(f[12:], t)
		return f
	}
	from := func(a string) []byte {
		b := netip.MustParseAddr(a).As4()
		return frame(change(hello, 12, b[:]...))
	}
	from6 := func(a string) []byte {
		b := netip.MustParseAddr(a).As16()
		ip := bytes.Clone(hello6)
		copy(ip[8:], b[:])
		return frame(ip)
	}
	set6 := func(at int, b ...byte) []byte {
		ip := bytes.Clone(hello6)
		copy(ip[at:], b)
		return frame(ip)
	}
	options := func(o ...byte) []byte { return frame(ip4("255.255.255.255:5076", []byte("hello"), o...)) }
	long := frame(change(ip4("255.255.255.255:5076", payload(100)), 6, 0x20, 0))
	return []struct {
		name   string
		frame  []byte
		reason drop.Reason
	}{
		{"nothing", nil, drop.Truncated},
		{"half an Ethernet header", frame(hello)[:13], drop.Truncated},
		{"an Ethernet header", frame(hello)[:14], drop.Truncated},
		{"half an IPv4 header", frame(hello)[:33], drop.Truncated},
		{"to one host", to(MAC{2, 0, 0, 0, 0, 1}, hello), drop.NotBroadcast},
		{"ARP", typed(0x0806, hello), drop.NotUDP},
		{"announcement of relays", typed(0x88b5, hello), drop.NotUDP},
		{"802.1Q", typed(0x8100, hello), drop.Tagged},
		{"802.1ad", typed(0x88a8, hello), drop.Tagged},
		{"IPv6 in an IPv4 frame", typed(0x0800, hello6), drop.Malformed},
		{"version 5", frame(change(hello, 0, 0x55)), drop.Malformed},
		{"version 0", frame(change(hello, 0, 0x05)), drop.Malformed},
		{"header of 16 bytes", frame(change(hello, 0, 0x44)), drop.Malformed},
		{"header longer than the packet", frame(change(hello, 0, 0x4f)), drop.Malformed},
		{"total length 0", frame(change(hello, 2, 0, 0)), drop.Malformed},
		{"total length below the header", frame(change(hello, 2, 0, 19)), drop.Malformed},
		{"total length above the frame", frame(change(hello, 2, 0, 34)), drop.Truncated},
		{"total length 65535", frame(change(hello, 2, 0xff, 0xff)), drop.Truncated},
		{"damaged header", func() []byte { f := frame(hello); f[22] ^= 1; return f }(), drop.BadChecksum},
		{"header checksum 0", func() []byte { f := frame(hello); f[24], f[25] = 0, 0; return f }(), drop.BadChecksum},
		{"TCP", frame(change(hello, 9, 6)), drop.NotUDP},
		{"ICMP", frame(change(hello, 9, 1)), drop.NotUDP},
		{"IGMP", frame(change(hello, 9, 2)), drop.NotUDP},
		{"UDP-Lite", frame(change(hello, 9, 136)), drop.NotUDP},
		{"IPv6 in IPv4", frame(change(hello, 9, 41)), drop.NotUDP},
		{"reserved flag", frame(change(hello, 6, 0x80)), drop.Malformed},
		{"reserved flag in a fragment", frame(change(hello, 6, 0xa0)), drop.Malformed},
		{"from loopback", from("127.0.0.1"), drop.BadSource},
		{"from all of loopback", from("127.255.255.254"), drop.BadSource},
		{"from a group", from("224.0.0.251"), drop.BadSource},
		{"from the last group", from("239.255.255.255"), drop.BadSource},
		{"from class E", from("240.0.0.1"), drop.BadSource},
		{"from the limited broadcast address", from("255.255.255.255"), drop.BadSource},
		{"from this network", from("0.0.0.1"), drop.BadSource},
		{"no room for a UDP header", frame(change(hello[:27], 2, 0, 27)), drop.Truncated},
		{"no UDP header", frame(change(hello[:20], 2, 0, 20)), drop.Truncated},
		{"UDP length 0", frame(change(hello, 24, 0, 0)), drop.Malformed},
		{"UDP length 7", frame(change(hello, 24, 0, 7)), drop.Malformed},
		{"UDP length one short", frame(change(hello, 24, 0, 12)), drop.Malformed},
		{"UDP length one long", frame(change(hello, 24, 0, 14)), drop.Malformed},
		{"UDP length beyond the packet, inside the padding", append(frame(change(hello, 24, 0, 14)), make([]byte, 20)...), drop.Malformed},
		{"bytes behind the datagram", frame(change(append(bytes.Clone(hello), 0), 2, 0, 34)), drop.Malformed},
		{"fragment of nothing", frame(change(hello[:20], 2, 0, 20, 0x12, 0x34, 0x20, 0)), drop.Malformed},
		{"first fragment of odd length", frame(change(hello, 6, 0x20, 0)), drop.Malformed},
		{"fragment of odd length in the middle", frame(change(hello, 6, 0x20, 1)), drop.Malformed},
		{"fragment that ends beyond 65535", frame(change(hello, 6, 0x1f, 0xff)), drop.Malformed},
		{"fragment of TCP", frame(change(long[14:], 9, 6)), drop.NotUDP},
		{"loose source route", options(131, 7, 4, 192, 0, 2, 1, 0), drop.Destination},
		{"strict source route", options(1, 137, 7, 4, 192, 0, 2, 1), drop.Destination},
		{"option without a length", options(1, 1, 1, 7), drop.Malformed},
		{"option of length 0", options(7, 0, 0, 0), drop.Malformed},
		{"option of length 1", options(7, 1, 0, 0), drop.Malformed},
		{"option longer than the header", options(7, 5, 4, 0), drop.Malformed},
		{"broadcast to a group of hosts", to(MAC{1, 0, 0x5e, 0x7f, 0xff, 0xff}, hello), drop.Malformed},
		{"group under another one's address", to(MAC{1, 0, 0x5e, 0, 0, 0x81}, group), drop.Malformed},
		{"IPv4 under the address of an IPv6 group", to(MAC{0x33, 0x33, 0, 0, 0, 0x80}, group), drop.Malformed},
		{"IPv6 under the address of all", to(Broadcast, hello6), drop.Malformed},
		{"IPv6 under another group's address", to(MAC{0x33, 0x33, 0, 0x42, 0, 2}, hello6), drop.Malformed},
		{"IPv6 to one host by Ethernet", to(MAC{2, 0, 0, 0, 0, 1}, hello6), drop.NotBroadcast},
		{"IPv6 to one host", set6(24, 0x20, 1), drop.NotBroadcast},
		{"half an IPv6 header", frame(hello6)[:53], drop.Truncated},
		{"IPv6 version 4", set6(0, 0x40), drop.Malformed},
		{"IPv6 length above the frame", set6(4, 0, 14), drop.Truncated},
		{"IPv6 length 65535", set6(4, 0xff, 0xff), drop.Malformed},
		{"IPv6 length 0", set6(4, 0, 0), drop.Truncated},
		{"IPv6 from a group", from6("ff02::1"), drop.BadSource},
		{"IPv6 from loopback", from6("::1"), drop.BadSource},
		{"IPv6 from an IPv4 address", from6("::ffff:192.0.2.1"), drop.BadSource},
		{"ICMPv6", set6(6, 58), drop.NotUDP},
		{"no next header", set6(6, 59), drop.NotUDP},
		{"routing header", set6(6, 43), drop.NotUDP},
		{"encrypted", set6(6, 50), drop.NotUDP},
		{"hop-by-hop options behind others", frame(ip6("[ff02::42:1]:5076", nil, destination, hopByHop)), drop.Malformed},
		{"hop-by-hop options twice", frame(ip6("[ff02::42:1]:5076", nil, hopByHop, hopByHop)), drop.Malformed},
		{"destination options twice", frame(ip6("[ff02::42:1]:5076", nil, destination, destination)), drop.Malformed},
		{"options that are not there", set6(4, 0, 4, 0), drop.Truncated},
		{"options longer than the packet", set6(6, 0), drop.Truncated},
		{"IPv6 without UDP header", func() []byte {
			ip := bytes.Clone(hello6[:40])
			ip[4], ip[5] = 0, 0
			return frame(ip)
		}(), drop.Truncated},
		{"IPv6 UDP length one short", set6(44, 0, 12), drop.Malformed},
	}
}

func TestRefusals(t *testing.T) {
	for _, r := range refusals() {
		var d Datagram
		if got := d.Parse(r.frame, Capture{}); got != r.reason {
			t.Errorf("%s: %v, want %v", r.name, got, r.reason)
		}
		// Through the mesh it is refused as well, if not always for the same reason.
		if d.ParseSS(r.frame) == drop.None {
			t.Errorf("%s: taken from an SS datagram", r.name)
		}
		// In our framing there is no Ethernet header, and so nothing that can be wrong with it.
		if len(r.frame) <= EthernetHeaderLen {
			continue
		}
		ip := r.frame[EthernetHeaderLen:]
		if ethernet := bytes.Equal(ip, ip4("255.255.255.255:5076", []byte("hello"))) || bytes.Equal(ip, ip4("224.0.0.128:5076", []byte("hello"))) ||
			bytes.Equal(ip, ip6("[ff02::42:1]:5076", []byte("hello"))); !ethernet && d.ParsePacket(link, ip) == drop.None {
			t.Errorf("%s: taken as a packet of the mesh", r.name)
		}
	}
}

func TestMeshRefusals(t *testing.T) {
	hello := ip4("255.255.255.255:5076", []byte("hello"))
	one := frame(hello)
	one[0] = 2
	for name, c := range map[string]struct {
		frame  []byte
		reason drop.Reason
	}{
		"to a group":       {append(append(Broadcast[:6:6], link[:]...), append([]byte{8, 0}, ip4("224.0.0.128:5076", nil)...)...), drop.Destination},
		"under a group's":  {frame(ip4("224.0.0.128:5076", nil)), drop.NotBroadcast},
		"to one host":      {one, drop.NotBroadcast},
		"IPv6":             {frame(ip6("[ff02::42:1]:5076", nil)), drop.NotUDP},
		"cut by one byte":  {frame(hello)[:len(hello)+13], drop.Truncated},
		"cut to the start": {frame(hello)[:14], drop.Truncated},
	} {
		var d Datagram
		if got := d.ParseSS(c.frame); got != c.reason {
			t.Errorf("%s: %v, want %v", name, got, c.reason)
		}
	}
	var d Datagram
	if got := d.ParsePacket(link, append(bytes.Clone(hello), 0)); got != drop.Malformed {
		t.Errorf("a packet with a byte behind it: %v, want %v", got, drop.Malformed)
	}
	if got := d.ParsePacket(link, nil); got != drop.Truncated {
		t.Errorf("no packet: %v, want %v", got, drop.Truncated)
	}
	if got := d.ParsePacket(link, []byte{0x50}); got != drop.Malformed {
		t.Errorf("version 5: %v, want %v", got, drop.Malformed)
	}
}

func TestEveryPrefixIsTruncated(t *testing.T) {
	all := frames()
	all["group"] = frame(ip4("224.0.0.251:5353", payload(30)))
	all["options"] = frame(ip4("255.255.255.255:5076", payload(30), 7, 7, 4, 0, 0, 0, 0))
	all["ip6"] = frame(ip6("[ff02::fb]:5353", payload(30)))
	all["ip6 options"] = frame(ip6("[ff02::fb]:5353", payload(30), hopByHop, destination))
	for name, f := range all {
		var whole Datagram
		if reason := whole.Parse(f, Capture{Partial: true}); reason != drop.None {
			t.Fatalf("%s: %v", name, reason)
		}
		need := EthernetHeaderLen + len(whole.IP)
		for n := range len(f) + 1 {
			want := drop.Truncated
			if n >= need {
				want = drop.None // only padding is missing
			}
			var d Datagram
			b := slices.Clip(f[:n]) // so that reading beyond would panic
			if got := d.Parse(b, Capture{}); got != want {
				t.Errorf("%s, %d of %d bytes: %v, want %v", name, n, len(f), got, want)
			}
			if want == drop.None {
				continue
			}
			if d.ParseSS(b) == drop.None {
				t.Errorf("%s, %d of %d bytes taken from the mesh", name, n, len(f))
			}
			if n >= EthernetHeaderLen && d.ParsePacket(link, b[EthernetHeaderLen:]) == drop.None {
				t.Errorf("%s, %d of %d bytes taken as a packet", name, n, len(f))
			}
		}
	}
}

// TestCutCapture has the datagrams of a relay that captures 1024 bytes of a frame and sends them on.
func TestCutCapture(t *testing.T) {
	var d Datagram
	whole := frame(ip4("255.255.255.255:5076", payload(982)))
	if len(whole) != 1024 || d.ParseSS(whole) != drop.None || len(d.Payload()) != 982 {
		t.Errorf("%d bytes with all of 982: payload of %d", len(whole), len(d.Payload()))
	}
	cut := frame(ip4("255.255.255.255:5076", payload(983)))[:1024]
	if got := d.ParseSS(cut); got != drop.Truncated {
		t.Errorf("1024 bytes of 983: %v, want %v", got, drop.Truncated)
	}
}

func TestAccepted(t *testing.T) {
	unspecified := func(ip []byte) []byte { return change(ip, 12, 0, 0, 0, 0) }
	for name, ip := range map[string][]byte{
		"empty":               ip4("255.255.255.255:5076", nil),
		"longest":             ip4("255.255.255.255:5076", payload(65507)),
		"router alert":        ip4("255.255.255.255:5076", payload(3), 148, 4, 0, 0),
		"40 bytes of options": ip4("255.255.255.255:5076", payload(3), append(bytes.Repeat([]byte{1}, 39), 0)...),
		"a group":             ip4("239.255.255.250:1900", payload(3)),
		"from 0.0.0.0":        unspecified(ip4("255.255.255.255:67", payload(3))),
		"IPv6":                ip6("[ff02::fb]:5353", payload(3)),
		"IPv6, longest":       ip6("[ff02::fb]:5353", payload(65487)),
		"IPv6 with options":   ip6("[ff05::42]:5353", payload(3), hopByHop, destination),
	} {
		f := frame(ip)
		var d Datagram
		if reason := d.Parse(append(f, make([]byte, 17)...), Capture{Partial: true}); reason != drop.None {
			t.Errorf("%s: %v", name, reason)
			continue
		}
		if len(d.IP) != len(ip) || cap(d.IP) != len(ip) || d.Fragment {
			t.Errorf("%s: packet of %d bytes (cap %d), want %d", name, len(d.IP), cap(d.IP), len(ip))
		}
		if reason := d.ParsePacket(link, ip); reason != drop.None || d.Link != link {
			t.Errorf("%s as a packet: %v from %v", name, reason, d.Link)
		}
	}
	// Where hosts do not filter groups, they come under the address of all.
	f := frame(ip4("239.255.255.250:1900", payload(3)))
	copy(f, Broadcast[:])
	var d Datagram
	if reason := d.Parse(f, Capture{}); reason != drop.None || !d.Group() || d.Directed() {
		t.Errorf("group under the address of all: %v", reason)
	}
	if reason := d.Parse(f, Capture{Tagged: true}); reason != drop.Tagged {
		t.Errorf("with a tag that the kernel took off: %v", reason)
	}
}

func TestFinish(t *testing.T) {
	// A payload for which the checksum comes out as 0, which is written as its other form.
	zero := ip4("255.255.255.255:5076", []byte{0, 0})
	copy(zero[28:], zero[26:28])
	for name, c := range map[string]struct {
		ip       []byte
		field    uint16 // in the packet
		captured drop.Reason
		finished uint16 // 0: as in the packet
		sent     uint16 // what ParseSS makes of it
	}{
		"right":         {ip4("255.255.255.255:5076", []byte("hello")), 0xff95, drop.None, 0xff95, 0xff95},
		"wrong":         {ip4("255.255.255.255:5076", []byte("hello")), 0xff94, drop.BadChecksum, 0xff95, 0xff95},
		"none":          {ip4("255.255.255.255:5076", []byte("hello")), 0, drop.None, 0xff95, 0xff95},
		"unfinished":    {ip4("255.255.255.255:5076", []byte("hello")), 0x0c76, drop.BadChecksum, 0xff95, 0xff95},
		"comes to zero": {zero, 0xffff, drop.None, 0xffff, 0xffff},
	} {
		binary.BigEndian.PutUint16(c.ip[26:], c.field)
		for _, way := range []string{"captured", "partial", "packet", "SS"} {
			f := frame(c.ip)
			var d Datagram
			want, sum := drop.None, c.sent
			switch way {
			case "captured":
				d.Parse(f, Capture{})
				want, sum = c.captured, c.field
			case "partial":
				d.Parse(f, Capture{Partial: true})
				sum = c.finished
			case "packet":
				d.ParsePacket(link, f[14:])
				want, sum = c.captured, c.field
			case "SS":
				d.ParseSS(f)
			}
			for range 2 { // the second call finds nothing to do, or the same
				if got := d.Finish(); got != want {
					t.Errorf("%s, %s: %v, want %v", name, way, got, want)
				}
			}
			if got := binary.BigEndian.Uint16(d.IP[26:]); got != sum {
				t.Errorf("%s, %s: checksum %04x, want %04x", name, way, got, sum)
			}
		}
	}
	// IPv6 has no choice of none.
	ip := ip6("[ff02::fb]:5353", payload(3))
	ip[46], ip[47] = 0, 0
	if got := parsed(t, ip).Finish(); got != drop.BadChecksum {
		t.Errorf("IPv6 without a checksum: %v, want %v", got, drop.BadChecksum)
	}
}

func TestDamageIsSeen(t *testing.T) {
	for _, ip := range [][]byte{ip4("255.255.255.255:5076", payload(33)), ip6("[ff02::fb]:5353", payload(33), destination)} {
		for i := range len(ip) * 8 {
			b := bytes.Clone(ip)
			b[i/8] ^= 1 << (i % 8)
			var d Datagram
			reason := d.ParsePacket(link, b)
			if reason == drop.None && d.Fragment && ip[0]>>4 == 6 {
				continue // which the Reassembler puts to the test
			}
			if reason == drop.None {
				reason = d.Finish()
			}
			// No checksum covers IPv6's class and label, hop limit, and options.
			if bare := ip[0]>>4 == 6 && (i < 4 || i >= 8 && i < 32 || i/8 == 7 || i/8 >= 42 && i/8 < 48); reason == drop.None && !bare {
				t.Errorf("version %d, bit %d is wrong and nobody minds", ip[0]>>4, i)
			}
		}
	}
}

func TestSetDestination(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"10.77.2.255:5076", "10.77.1.255"},
		{"10.77.2.255:5076", "255.255.255.255"},
		{"255.255.255.255:5076", "10.77.1.255"},
		{"255.255.255.255:5076", "255.255.255.255"},
	} {
		for n := range 70 {
			d := finishedDatagram(t, ip4(c.from, payload(n), 148, 4, 0, 0))
			to := netip.MustParseAddr(c.to)
			other := *d
			other.IP = bytes.Clone(d.IP)
			other.SetDestination(to)
			want := ip4(c.to+":5076", payload(n), 148, 4, 0, 0)
			if !bytes.Equal(other.IP, want) || other.Dst != netip.AddrPortFrom(to, 5076) {
				t.Fatalf("%d bytes, %s to %s:\n got %x\nwant %x", n, c.from, c.to, other.IP, want)
			}
			if string(other.Payload()) != string(payload(n)) {
				t.Fatalf("payload %x", other.Payload())
			}
			if d.Dst.String() != c.from {
				t.Fatalf("the datagram that was copied now goes to %v", d.Dst)
			}
		}
	}
	// A checksum of none stays none.
	ip := ip4("10.77.2.255:5076", payload(5))
	ip[26], ip[27] = 0, 0
	d := finishedDatagram(t, ip)
	d.SetDestination(Limited())
	if !bytes.Equal(d.IP[26:28], []byte{0, 0}) || !packet.IPv4(d.IP).ChecksumOK() {
		t.Errorf("without a checksum: %x", d.IP)
	}
	d6 := finishedDatagram(t, ip6("[ff02::fb]:5353", payload(5)))
	d6.SetDestination(netip.MustParseAddr("ff05::fb"))
	if want := ip6("[ff05::fb]:5353", payload(5)); !bytes.Equal(d6.IP, want) {
		t.Errorf("IPv6:\n got %x\nwant %x", d6.IP, want)
	}
}

func TestMistakesPanic(t *testing.T) {
	for name, f := range map[string]func(){
		"SetDestination before Finish":          func() { parsed(t, ip4("10.77.2.255:5076", nil)).SetDestination(Limited()) },
		"SetDestination to the other version":   func() { finishedDatagram(t, ip4("10.77.2.255:5076", nil)).SetDestination(sender6.Addr()) },
		"Cut before Finish":                     func() { new(Fragmenter).Cut(parsed(t, ip4("10.77.2.255:5076", nil)), 1500, nil) },
		"SetDestination of IPv6 to an IPv4 one": func() { finishedDatagram(t, ip6("[ff02::fb]:5353", nil)).SetDestination(Limited()) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s does not panic", name)
				}
			}()
			f()
		}()
	}
}

func TestMACString(t *testing.T) {
	if got := link.String(); got != "02:00:00:02:00:0b" {
		t.Errorf("got %s", got)
	}
}
