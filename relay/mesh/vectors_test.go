// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

var update = flag.Bool("update", false, "write testdata/vectors.txt anew")

const vectorsFile = "testdata/vectors.txt"

// vectors reads the file: a name, a colon, hex, of one datagram each.
func vectors(tb testing.TB) map[string][]byte {
	tb.Helper()
	f, err := os.Open(vectorsFile)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	all := make(map[string][]byte)
	for s := bufio.NewScanner(f); s.Scan(); {
		name, digits, ok := strings.Cut(s.Text(), ": ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if all[name], err = hex.DecodeString(digits); err != nil {
			tb.Fatal(err)
		}
	}
	return all
}

// scripted is a mesh whose random bytes are the same each time.
func scripted(t *testing.T, n byte, o Options) *Mesh {
	t.Helper()
	o.ID = [6]byte{2, 0, 0, 0, 0, n}
	o.Version = "v1.0.0"
	m, err := newMesh(o, rand.NewChaCha8([32]byte{n}))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// record lets two relays, of which the first knows the second, say everything there is to say, and gives the datagrams.
func record(t *testing.T, o Options) map[string][]byte {
	t.Helper()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b := scripted(t, 1, o), scripted(t, 2, o)
	a.SetPeers([]netip.AddrPort{address(2)})
	a.SetSegments([][8]byte{{'s', 'e', 'g', 'm', 'e', 'n', 't', '1'}})
	a.byAddr[address(2)].frameTurn = 6
	mode := "open"
	if a.sealed {
		mode = "sealed"
	}
	all := make(map[string][]byte)
	say := func(name string, to *Mesh, from int, data []byte) *Outbox {
		t.Helper()
		all[mode+" "+name] = bytes.Clone(data)
		var in Inbox
		var out Outbox
		if r := to.Receive(address(from), bytes.Clone(data), &in, &out, now); r != drop.None {
			t.Fatalf("%s %s: %v", mode, name, r)
		}
		for _, i := range in.Items {
			if want := ssFrame(9, len(i.IP)); !bytes.Equal(i.IP, want[ssHeader:]) || i.Link != sender {
				t.Errorf("%s %s: got %x from %x", mode, name, i.IP, i.Link)
			}
		}
		return &out
	}
	var out Outbox
	a.Tick(now, &out)
	if a.sealed {
		two := say("handshake 1", b, 1, out.Items[0].Data)
		three := say("handshake 2", a, 2, two.Items[0].Data)
		greeting := say("handshake 3", b, 1, three.Items[0].Data)
		own := say("hello of the one that answered", a, 2, greeting.Items[0].Data)
		if len(own.Items) != 2 { // a hello in turn, because the session is confirmed, and the answer
			t.Fatalf("%d datagrams after the first hello", len(own.Items))
		}
		ack := say("hello", b, 1, own.Items[0].Data)
		say("hello ack of the one that began", b, 1, own.Items[1].Data)
		say("hello ack", a, 2, ack.Items[0].Data)
	} else {
		ack := say("hello", b, 1, out.Items[0].Data)
		say("hello ack", a, 2, ack.Items[0].Data)
	}
	out.Reset()
	a.Send([]Frame{multicast(9, 64), multicast(9, 48)}, &out, now)
	say("two frames", b, 1, out.Items[0].Data)
	out.Reset()
	a.Send([]Frame{multicast(9, 1500)}, &out, now)
	for i, o := range out.Items {
		say(fmt.Sprintf("part %d of %d", i+1, len(out.Items)), b, 1, o.Data)
	}
	out.Reset()
	a.SendReport(1, TestReport{Nonce: [16]byte{0: 1, 15: 16}, Segment: "eth0", Outcome: "emitted"}, &out, now)
	say("test report", b, 1, out.Items[0].Data)
	out.Reset()
	a.Close(&out)
	say("bye", b, 1, out.Items[0].Data)
	if a.sealed {
		out.Reset()
		a.sendReset(address(2), 0x01020304, &out)
		all["reset"] = bytes.Clone(out.Items[0].Data)
	}
	return all
}

// TestVectors holds that the format stays as it is: what relays say with fixed random bytes is what is on file.
func TestVectors(t *testing.T) {
	got := record(t, Options{})
	maps.Copy(got, record(t, keyed(1)))
	got["ss"] = ssFrame(9, 64)
	if *update {
		writeVectors(t, got)
	}
	want := vectors(t)
	for name, data := range got {
		if !bytes.Equal(data, want[name]) {
			t.Errorf("%s:\ngot  %x\nwant %x", name, data, want[name])
		}
	}
	for name := range want {
		if got[name] == nil {
			t.Errorf("%s is on file, but nobody says it", name)
		}
	}
}

func writeVectors(t *testing.T, all map[string][]byte) {
	t.Helper()
	var b bytes.Buffer
	fmt.Fprint(&b, "# One UDP payload each, as relay 02:00:00:00:00:01 (random bytes: ChaCha8 seeded with 1 and 31 zeros) says it to\n"+
		"# relay 02:00:00:00:00:02 (seeded with 2), or is answered. The key of the sealed ones is the bytes 01 to 20.\n"+
		"# Written by go test ./relay/mesh -run TestVectors -update, when the format changes its version.\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "%s: %x\n", name, all[name])
	}
	if err := os.WriteFile(vectorsFile, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestTruncated feeds every prefix of every datagram to a relay of each kind: no more comes out than went in.
func TestTruncated(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	compat := keyed(1)
	compat.Compat = true
	for _, o := range []Options{{}, keyed(1), compat} {
		m := scripted(t, 2, o)
		m.SetPeers([]netip.AddrPort{address(1)})
		for name, data := range vectors(t) {
			for n := range data {
				var in Inbox
				var out Outbox
				reason := m.Receive(address(1), bytes.Clone(data[:n]), &in, &out, now)
				// A datagram that ends between two records is a shorter one, and an SS datagram that
				// has an IP header is for others to look into.
				if len(in.Items) > 0 && name != "ss" && name != "open two frames" || len(in.Reports) > 0 {
					t.Errorf("%s: %d of %d bytes give something", name, n, len(data))
				}
				if reason == drop.None && len(in.Items) == 0 && n > headerLen && name == "ss" {
					t.Errorf("%s: %d of %d bytes vanish", name, n, len(data))
				}
			}
		}
	}
}

// TestRecordsMalformed lists what is wrong with records that come in a datagram that is in order.
func TestRecordsMalformed(t *testing.T) {
	record := func(kind byte, body string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(body, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return append(appendRecordHeader(nil, kind, len(b)), b...)
	}
	identity := strings.Repeat("00", helloFixed)
	part := func(h partHeader, n int) []byte {
		return append(h.append(appendRecordHeader(nil, recordPart, partHeaderLen+n)), make([]byte, n)...)
	}
	m := scripted(t, 2, Options{})
	for _, c := range []struct {
		name string
		b    []byte
		want drop.Reason
	}{
		{"unknown type", record(200, "010203"), drop.None},
		{"header cut short", []byte{1, 0}, drop.Truncated},
		{"length beyond the end", []byte{1, 0, 5, 1, 2}, drop.Truncated},
		{"after an unknown type", append(record(200, ""), 1), drop.Truncated},
		{"frame without IP", record(recordFrame, "020000000001"), drop.Malformed},
		{"hello too short", record(recordHello, identity), drop.Truncated},
		{"hello version beyond the end", record(recordHello, identity+"05 4142"), drop.Malformed},
		{"hello version too long", record(recordHello, identity+"21"+strings.Repeat("41", 33)+"00"), drop.Malformed},
		{"hello version with an escape", record(recordHello, identity+"02 1b41 00"), drop.Malformed},
		{"hello segments beyond the end", record(recordHello, identity+"00 01 0102"), drop.Malformed},
		{"hello too many segments", record(recordHello, identity+"00 21"+strings.Repeat("00", 33*8)), drop.Malformed},
		{"hello of another mesh", record(recordHello, strings.Repeat("11", helloFixed)+"0000"), drop.Unauthenticated},
		{"ack of no hello", record(recordHelloAck, identity+"0000"), drop.Replayed},
		{"report too short", record(recordTestReport, "00"), drop.Truncated},
		{"report without texts", record(recordTestReport, strings.Repeat("00", 16)), drop.Malformed},
		{"report with one text", record(recordTestReport, strings.Repeat("00", 16)+"0141"), drop.Malformed},
		{"report with an escape", record(recordTestReport, strings.Repeat("00", 16)+"011b 0141"), drop.Malformed},
		{"part too short", record(recordPart, "0000"), drop.Truncated},
		{"part of nothing", part(partHeader{total: 10, size: 500}, 10), drop.Malformed},
		{"part of too much", part(partHeader{total: maxFrame + 1, size: 500}, 500), drop.Malformed},
		{"part of size 0", part(partHeader{total: 1000}, 0), drop.Malformed},
		{"part too small", part(partHeader{total: 1000, size: minPart - 1}, minPart-1), drop.Malformed},
		{"part behind the end", part(partHeader{total: 1000, size: 500, index: 2}, 0), drop.Malformed},
		{"part too long", part(partHeader{total: 1000, size: 500}, 501), drop.Malformed},
		{"last part too long", part(partHeader{total: 999, size: 500, index: 1}, 500), drop.Malformed},
		{"first part", part(partHeader{frame: 5, total: 1000, size: 500}, 500), drop.None},
		{"the same once more", part(partHeader{frame: 5, total: 1000, size: 500}, 500), drop.Replayed},
		{"a part that contradicts it", part(partHeader{frame: 5, total: 1001, size: 501, index: 1}, 500), drop.Overlapping},
	} {
		var in Inbox
		var out Outbox
		if got := m.Receive(address(1), append(appendHeader(nil, kindOpen), c.b...), &in, &out, time.Unix(1, 0)); got != c.want || len(in.Items) != 0 {
			t.Errorf("%s: %v and %d frames, want %v", c.name, got, len(in.Items), c.want)
		}
	}
}
