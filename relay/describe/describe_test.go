// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package describe_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/seed5728abee/fathom/relay/describe"
	"github.com/seed5728abee/fathom/relay/epics"
)

type example struct {
	port    uint16
	payload []byte
	want    string
}

func fromHex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func dns(response bool, names ...string) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{Response: response})
	b.EnableCompression()
	var err error
	check := func(e error) {
		if e != nil {
			err = e
		}
	}
	if response {
		check(b.StartAnswers())
	} else {
		check(b.StartQuestions())
	}
	for i, name := range names {
		n := dnsmessage.MustNewName(name)
		switch {
		case !response:
			check(b.Question(dnsmessage.Question{Name: n, Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET}))
		case i == 0:
			check(b.AResource(dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET}, dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}))
		default:
			check(b.UnknownResource(dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET}, dnsmessage.UnknownResource{Type: 999}))
		}
	}
	m, e := b.Finish()
	check(e)
	if err != nil {
		panic(err)
	}
	return m
}

func pvaSearch(reply string, protocols []string, names ...string) []byte {
	var all []epics.PVAName
	for i, name := range names {
		all = append(all, epics.PVAName{ID: uint32(i), Name: name})
	}
	return epics.AppendPVASearch(nil, binary.LittleEndian, epics.PVASearch{Sequence: 12, ReplyTo: netip.MustParseAddrPort(reply)}, protocols, all...)
}

func caSearches(n int) []byte {
	b := epics.CAVersionMessage(7).Append(nil)
	for i := range n {
		b = epics.CASearch(uint32(i), fmt.Sprintf("SR01:BPM:%02d", i)).Append(b)
	}
	return b
}

var (
	magicPacket = append(bytes.Repeat([]byte{0xff}, 6), bytes.Repeat([]byte{2, 0, 0, 2, 0, 0x0b}, 16)...)
	guid        = epics.GUID{1}

	examples = []example{
		{5076, pvaSearch("10.0.0.1:40000", []string{"tcp"}, "two:val"), "PVA search #12 two:val (reply to 10.0.0.1:40000, tcp)"},
		{5076, pvaSearch("0.0.0.0:40000", []string{"tls", "tcp"}, "a", "b"), "PVA search #12 a, b (reply to sender:40000, tls, tcp)"},
		{5076, pvaSearch("0.0.0.0:40000", nil), "PVA search #12 for servers (reply to sender:40000)"},
		{9999, pvaSearch("0.0.0.0:40000", nil, "x"), "PVA search #12 x (reply to sender:40000)"},
		{5076, epics.AppendPVABeacon(nil, binary.BigEndian, epics.PVABeacon{
			GUID: guid, Sequence: 3, Changes: 1, Server: netip.MustParseAddrPort("0.0.0.0:5075"), Protocol: []byte("tcp"),
		}), "PVA beacon sender:5075 tcp #3, change 1"},
		{5076, epics.AppendPVASearchResponse(nil, binary.BigEndian, epics.PVASearchResponse{
			Sequence: 12, Server: netip.MustParseAddrPort("[2001:db8::1]:5075"), Protocol: []byte("tcp"), Found: true,
		}, 1, 2), "PVA answer #12 from [2001:db8::1]:5075 tcp to search 1, 2"},
		{5076, epics.AppendPVASearchResponse(nil, binary.BigEndian, epics.PVASearchResponse{
			Sequence: 12, Server: netip.MustParseAddrPort("0.0.0.0:5075"), Protocol: []byte("tcp"),
		}), "PVA not found #12 from sender:5075 tcp"},
		{
			5076, append(epics.AppendPVAOrigin(nil, binary.BigEndian, netip.MustParseAddr("10.0.0.2")), fromHex("ca02800c00000000")...),
			"PVA origin 10.0.0.2, command 12",
		},
		{5076, []byte("hello"), `not PVAccess: udp 5 bytes "hello"`},

		{5064, caSearches(1), "CA search #7 SR01:BPM:00"},
		{
			5064, caSearches(20),
			"CA search #7 SR01:BPM:00, SR01:BPM:01, SR01:BPM:02, SR01:BPM:03, SR01:BPM:04, SR01:BPM:05, SR01:BPM:06, SR01:BPM:07, SR01:BPM:08 and 11 more",
		},
		{5064, epics.CASearch(1, "x").Append(nil), "CA search x"},
		{5065, epics.CABeacon(3, netip.MustParseAddrPort("0.0.0.0:5064")).Append(nil), "CA beacon sender:5064 #3"},
		{5065, epics.CABeacon(3, netip.MustParseAddrPort("10.0.0.9:5064")).Append(nil), "CA beacon 10.0.0.9:5064 #3"},
		{5064, epics.CASearchResponse(9, 5064).Append(epics.CAVersionMessage(1).Append(nil)), "CA answer from sender:5064 to search 9"},
		{5064, epics.CASearchResponse(9, 5064).Append(caSearches(1)), "CA search #7 SR01:BPM:00 and answer from sender:5064 to search 9"},
		{5064, epics.CAVersionMessage(1).Append(nil), "CA version 4.13"},
		{5064, fromHex("000e0000000500000000000100000002"), "CA not found: search 2"},
		{5065, fromHex("0018000000000000000000007f000001"), "CA register with the repeater"},
		{5065, fromHex("0011000000000000000000007f000001"), "CA confirm from the repeater"},
		{5065, fromHex("00ff0000000000000000000000000000"), "CA command 255"},
		{5064, []byte{1}, `not Channel Access: udp 1 bytes "\x01"`},

		{5353, dns(false, "_http._tcp.local."), "mDNS query _http._tcp.local. PTR"},
		{5353, dns(true, "printer.local.", "b\x1b[2J.local."), `mDNS answer printer.local. A, b\x1b[2J.local. TYPE999`},
		{5353, dns(true), "mDNS answer without names"},
		{5355, dns(false, "nas."), "LLMNR query nas. PTR"},
		{5353, dns(false, "_http._tcp.local.")[:20], `udp 20 bytes "\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05_http\x04_"`},
		{5353, dns(true, "printer.local.")[:30], `udp 30 bytes "\x00\x00\x80\x00\x00\x00\x00\x01\x00\x00\x00\x00\x07printer\x05local\x00\x00\x01\x00"`},
		{5353, []byte("short"), `udp 5 bytes "short"`},

		{1900, []byte("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nst:ssdp:all\r\n\r\n"), "SSDP M-SEARCH * HTTP/1.1, ST: ssdp:all"},
		{1900, []byte("NOTIFY * HTTP/1.1\r\nNT: upnp:rootdevice\r\nNTS: ssdp:alive\r\n\r\n"), "SSDP NOTIFY * HTTP/1.1, NT: upnp:rootdevice"},
		{1900, []byte("HTTP/1.1 200 OK\nST: \x1b]0;x\x07\n"), `SSDP HTTP/1.1 200 OK, ST: \x1b]0;x\x07`},
		{1900, []byte("HTTP/1.1 200 OK"), "SSDP HTTP/1.1 200 OK"},
		{1900, []byte("hello"), `udp 5 bytes "hello"`},

		{9, magicPacket, "wake-on-LAN 02:00:00:02:00:0b"},
		{40000, append(slices.Clip(magicPacket), "secret"...), "wake-on-LAN 02:00:00:02:00:0b"},
		{9, append(slices.Clip(magicPacket[:len(magicPacket)-1]), 0), ""},

		{7, nil, "udp 0 bytes"},
		{7, []byte("Grüße\n\x1b[31m\\"), `udp 14 bytes "Grüße\x0a\x1b[31m\\"`},
		{7, bytes.Repeat([]byte("a"), 1000), `udp 1000 bytes "` + strings.Repeat("a", 97) + `…"`},
	}
)

func TestDatagram(t *testing.T) {
	for _, e := range examples {
		got := describe.Datagram(e.port, e.payload)
		if e.want == "" {
			if strings.HasPrefix(got, "wake") {
				t.Errorf("a damaged magic packet is %q", got)
			}
			continue
		}
		if got != e.want {
			t.Errorf("port %d, %x:\ngot  %s\nwant %s", e.port, e.payload, got, e.want)
		}
		if got := string(describe.Append([]byte("> "), e.port, e.payload)); got != "> "+e.want {
			t.Errorf("appended: %s", got)
		}
	}
}

// TestBounds fills lines with what is as long as can be.
func TestBounds(t *testing.T) {
	long := strings.Repeat("ä", 500)
	var names []string
	for range 100 {
		names = append(names, long)
	}
	for _, e := range []example{
		{5076, pvaSearch("[2001:db8:1111:2222:3333:4444:5555:6666]:40000", names, names...), "PVA search #12 ää"},
		{5064, epics.CASearch(1, long).Append(nil), "CA search ää"},
		{1900, []byte(strings.Repeat("\x1b", 500) + "HTTP/1.1\nST:" + long), `SSDP \x1b`},
		{5353, dns(false, strings.Repeat(strings.Repeat("\x01", 60)+".", 4), strings.Repeat(strings.Repeat("b", 60)+".", 4)), `mDNS query \x01`},
		{5076, []byte(long), `not PVAccess: udp 1000 bytes "ää`},
	} {
		got := describe.Datagram(e.port, e.payload)
		check(t, e.payload, got)
		if !strings.HasPrefix(got, e.want) || !strings.Contains(got, "…") {
			t.Errorf("%q, want %q and …", got, e.want)
		}
	}
}

func check(t *testing.T, payload []byte, got string) {
	t.Helper()
	if len(got) == 0 || len(got) > describe.MaxLen || !utf8.ValidString(got) {
		t.Fatalf("%x: %d bytes: %q", payload, len(got), got)
	}
	for _, r := range got {
		if !strconv.IsPrint(r) {
			t.Fatalf("%x: %q has the character %U", payload, got, r)
		}
	}
}

func FuzzDatagram(f *testing.F) {
	for _, e := range examples {
		f.Add(e.port, e.payload)
	}
	f.Fuzz(func(t *testing.T, port uint16, payload []byte) {
		check(t, payload, describe.Datagram(port, payload))
	})
}

func BenchmarkDatagram(b *testing.B) {
	payload := pvaSearch("10.0.0.1:40000", []string{"tcp"}, "two:val")
	b.ReportAllocs()
	for b.Loop() {
		if describe.Datagram(5076, payload) == "" {
			b.Fatal("nothing")
		}
	}
}

func ExampleDatagram() {
	search := epics.CASearch(1, "SR01:BPM:X").Append(epics.CAVersionMessage(7).Append(nil))
	fmt.Println(describe.Datagram(epics.CAPort, search))
	fmt.Println(describe.Datagram(40000, []byte("beep\a")))
	// Output:
	// CA search #7 SR01:BPM:X
	// udp 5 bytes "beep\x07"
}
