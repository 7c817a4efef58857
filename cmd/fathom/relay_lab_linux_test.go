// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/packet"
)

// TestRelay runs relays as users do, each in a process, on the segments of a lab. Most of it waits, so the parts go together,
// each in a lab of its own.
func TestRelay(t *testing.T) {
	needRelay(t)
	if !insideLab(t) {
		return
	}
	for _, part := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"Segments", relaySegments},
		{"Wire", relayWire},
		{"Forged", relayForged},
		{"EchoingPeer", relayEchoingPeer},
		{"TwoOnOneSegment", relayTwoOnOneSegment},
		{"Ring", relayRing},
		{"Discovery", relayDiscovery},
		{"Interface", relayInterface},
		{"PeerRestarts", relayPeerRestarts},
		{"Sealed", relaySealed},
		{"BesideAnother", relayBesideAnother},
		{"Process", relayProcess},
		{"Refuses", relayRefuses},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.f(t)
		})
	}
}

// relaySegments: among three segments with a relay each, every other segment hears each broadcast once and in order, and the
// own one hears nothing again.
func relaySegments(t *testing.T) {
	n := newRelayNet(t, "ra ha ha2", "rb hb hb2", "rc hc")
	a, b, c := n.addr("ra", 1), n.addr("rb", 2), n.addr("rc", 3)
	n.relay("ra", 1, []netip.Addr{b, c})
	n.relay("rb", 2, []netip.Addr{a, c})
	n.relay("rc", 3, []netip.Addr{a, b})
	ha, hb, hc := n.mouth("ha", 1), n.mouth("hb", 2), n.mouth("hc", 3)
	// The relays' own hosts hear what others sent, too.
	atA, atB, atC := []*ear{n.ear("ha2", 1), n.ear("ra", 1)}, []*ear{n.ear("hb", 2), n.ear("rb", 2)}, []*ear{n.ear("hc", 3), n.ear("rc", 3)}
	all := slices.Concat(atA, atB, atC)
	ha.open(patience, all...)
	hb.open(patience, all...)
	hc.open(patience, all...)

	t.Run("Once", func(t *testing.T) {
		mouths := []*mouth{ha, hb, hc}
		said := make([][]string, len(mouths))
		for i, m := range mouths {
			said[i] = numbered(m.from.String(), 200)
		}
		for i := range said[0] {
			for j, m := range mouths {
				m.say(everyone, said[j][i])
			}
			time.Sleep(time.Millisecond)
		}
		for j, m := range mouths {
			m.heardBy(said[j], all...)
		}
	})
	t.Run("Sizes", func(t *testing.T) {
		forgetAll(all)
		var said []string
		for _, size := range []int{0, 1, 2, 17, 18, 19, 63, 500, 981, 982} {
			said = append(said, strings.Repeat("x", size))
		}
		if !foreignRelay() {
			for _, size := range []int{983, 1024, 1400, 1471, 1472} {
				said = append(said, strings.Repeat("y", size))
			}
		}
		hb.sayAll(everyone, said)
		hb.heardBy(said, all...)
	})
	t.Run("Fragments", func(t *testing.T) {
		onlyOurs(t)
		forgetAll(all)
		var said []string
		for i, size := range []int{1473, 2952, 2953, 8000, 30_001, 65_507} {
			said = append(said, strings.Repeat(string(rune('a'+i)), size))
		}
		for _, p := range said {
			ha.say(everyone, p)
			time.Sleep(20 * time.Millisecond)
		}
		ha.heardBy(said, all...)
	})
	t.Run("Directed", func(t *testing.T) {
		onlyOurs(t)
		// Servers that bind the broadcast address of their segment hear only what is sent to it.
		bound := n.ear("hb2", 2, directed(2))
		said := numbered("to 10.77.1.255", 20)
		forgetAll(all)
		ha.sayAll(directed(1), said)
		ha.heardBy(said, append([]*ear{bound}, all[:2]...)...)
		ha.heardBy(said, atC...)
	})
	t.Run("OwnHost", func(t *testing.T) {
		onlyOurs(t)
		ra := n.mouth("ra", 1)
		said := numbered("from the relay's host", 20)
		ra.sayAll(everyone, said)
		ra.heardBy(said, slices.Concat(atB, atC)...)
		ra.heardBy(said, atA[0])
	})
}

func forgetAll(ears []*ear) {
	for _, e := range ears {
		e.forget()
	}
}

// Datagrams of the mesh, as the first relay of the kind sent them: from 10.77.2.11 port 40000, to port 5076.
const (
	vectorLimited  = "5353ffffffffffff02000002000b080045000021574e40004011d7260a4d020bffffffff9c4013d4000d0c7668656c6c6f"
	vectorDirected = "5353ffffffffffff02000002000b0800450000219baf4000401185790a4d020b0a4d02ff9c4013d4000d19c268656c6c6f"
	vectorPadded   = "5353ffffffffffff02000002000b0800450000210000000040116e750a4d020bffffffff9c4013d4000dff9568656c6c6f00000000000000000000000000"
	vectorSearch   = "5353ffffffffffff02000002000b0800450000445ba340004011d2ae0a4d020bffffffff820a13c800300c99000000000001000d0000000100000000000600080005000d000000010000000174776f3a76616c00"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// relayWire: what a relay puts on its segment and into the mesh, byte by byte.
func relayWire(t *testing.T) {
	n := newRelayNet(t, "r h tap", "peer")
	n.relay("r", 1, []netip.Addr{n.addr("peer", 2)})
	peer := n.listen("peer", netip.AddrPortFrom(n.addr("peer", 2), relayMeshPort))
	at := netip.AddrPortFrom(n.addr("r", 1), relayMeshPort)
	wire := n.tap("tap", 1)
	own := n.hardwareAddr("r", 1)

	// Out of the mesh. The first datagram is repeated until the relay is there.
	for _, v := range []struct {
		name, datagram, want string
		ours                 bool
	}{
		{"limited", vectorLimited, "45000021574e40004011d7260a4d020bffffffff9c4013d4000dff9568656c6c6f", false},
		{"directed", vectorDirected, "450000219baf4000401186790a4d020b0a4d01ff9c4013d4000df34968656c6c6f", true},
		// Its ID is 0 and it may be cut: the kernel chooses another. That is not compared.
		{"padded", vectorPadded, "450000210000000040116e750a4d020bffffffff9c4013d4000dff9568656c6c6f", true},
	} {
		if v.ours && foreignRelay() {
			continue
		}
		datagram, want := unhex(t, v.datagram), unhex(t, v.want)
		var got [][]byte
		var from []net.HardwareAddr
		wire.forget()
		for deadline := time.Now().Add(patience); len(got) == 0 && time.Now().Before(deadline); {
			if _, err := peer.WriteToUDPAddrPort(datagram, at); err != nil {
				t.Fatal(err)
			}
			for i := 0; i < 50 && len(got) == 0; i++ {
				time.Sleep(10 * time.Millisecond)
				from, got = wire.broadcasts()
			}
		}
		if len(got) != 1 {
			t.Errorf("%s: %d frames on the segment, want 1", v.name, len(got))
			continue
		}
		b := got[0][:min(len(got[0]), len(want))]
		if binary.BigEndian.Uint16(want[4:]) == 0 && len(b) > 20 {
			b[4], b[5] = 0, 0
			setHeaderChecksum(b)
		}
		if !bytes.Equal(b, want) {
			t.Errorf("%s: on the segment\n got %x\nwant %x", v.name, b, want)
		}
		if !bytes.Equal(from[0], own) {
			t.Errorf("%s: from %v, want the relay's own %v", v.name, from[0], own)
		}
	}

	// Into the mesh.
	h := n.mouth("h", 1)
	for deadline := time.Now().Add(patience); ; {
		h.say(everyone, wayTrial)
		if err := peer.SetReadDeadline(time.Now().Add(settled)); err != nil {
			t.Fatal(err)
		}
		if k, _, err := peer.ReadFromUDPAddrPort(make([]byte, 1<<16)); err == nil && k > 2+14+28 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no datagram for the peer")
		}
	}
	var ports []uint16
	for _, payload := range []string{"", "a", "hello", strings.Repeat("z", 982)} {
		h.say(everyone, payload)
		got, from := nextSS(t, peer)
		ports = append(ports, from.Port())
		ip := got[16:]
		udp := ip[20:]
		switch sum := packet.TransportChecksum(17, h.from.Addr(), everyone, udp); {
		case len(ip) != 28+len(payload) || int(binary.BigEndian.Uint16(ip[2:])) != len(ip):
			t.Errorf("%d bytes of payload make an IP packet of %d", len(payload), len(ip))
		case !bytes.Equal(got[2:8], []byte{255, 255, 255, 255, 255, 255}) || !bytes.Equal(got[8:14], n.hardwareAddr("h", 1)) || !bytes.Equal(got[14:16], []byte{8, 0}):
			t.Errorf("Ethernet header %x", got[2:16])
		case string(udp[8:]) != payload:
			t.Errorf("payload %q, want %q", udp[8:], payload)
		case sum != 0 && !foreignRelay():
			t.Errorf("checksum %x of %x is not finished", udp[6:8], got)
		}
	}
	if foreignRelay() {
		return
	}
	if slices.ContainsFunc(ports, func(p uint16) bool { return p != relayMeshPort }) {
		t.Errorf("sent from ports %d, want %d", ports, relayMeshPort)
	}
	// For originals a directed broadcast is made a limited one, which they cannot do themselves.
	h.say(directed(1), "directed")
	got, _ := nextSS(t, peer)
	if dst := netip.AddrFrom4([4]byte(got[32:36])); dst != everyone {
		t.Errorf("a directed broadcast goes to an original as one to %v", dst)
	}
	if sum := packet.TransportChecksum(17, h.from.Addr(), everyone, got[36:]); sum != 0 {
		t.Errorf("checksums of %x do not fit the new destination", got)
	}
	// One that needs fragments goes as one datagram for each.
	h.say(everyone, strings.Repeat("f", 3000))
	var whole []byte
	var ids []uint16
	for range 3 {
		got, _ := nextSS(t, peer)
		ip := got[16:]
		if len(ip) > 1500 {
			t.Errorf("a fragment of %d bytes", len(ip))
		}
		ids = append(ids, binary.BigEndian.Uint16(ip[4:]))
		whole = append(whole, ip[20:]...)
	}
	if ids[0] == 0 || ids[0] != ids[1] || ids[0] != ids[2] {
		t.Errorf("fragments have IDs %#x", ids)
	}
	if len(whole) != 3008 || !bytes.Equal(whole[8:], bytes.Repeat([]byte("f"), 3000)) {
		t.Errorf("the fragments make up %d bytes, want 3008", len(whole))
	}
}

// wayTrial is a payload that nextSS leaves out.
const wayTrial = "is there a way?"

// nextSS reads the next SS datagram; other datagrams are between relays of one kind.
func nextSS(t *testing.T, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 1<<16)
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		k, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatalf("no datagram for the peer: %v", err)
		}
		if k >= 2+14+28 && string(b[:2]) == "SS" && !bytes.HasSuffix(b[:k], []byte(wayTrial)) {
			return b[:k], from
		}
	}
}

// setHeaderChecksum puts the right one into an IPv4 packet, as far as it has a header.
func setHeaderChecksum(ip []byte) {
	ihl := int(ip[0]&15) * 4
	if ihl < 20 || ihl > len(ip) {
		ihl = min(20, len(ip))
	}
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip[:ihl]))
}

// relayForged: nothing that comes over the mesh makes a relay put anything but whole broadcasts to the relayed port on
// its segment.
func relayForged(t *testing.T) {
	onlyOurs(t)
	n := newRelayNet(t, "r h", "evil")
	n.relay("r", 1, []netip.Addr{n.addr("evil", 2)})
	evil := n.listen("evil", netip.AddrPortFrom(n.addr("evil", 2), 0))
	at := netip.AddrPortFrom(n.addr("r", 1), relayMeshPort)
	hears := n.ear("h", 1)
	wire := n.tap("h", 1)
	good := unhex(t, vectorLimited)
	eventually(t, "the relay serves", func() bool {
		_, err := evil.WriteToUDPAddrPort(good, at)
		return err == nil && hears.hears("hello")
	})
	time.Sleep(settled) // the last of the repeats
	own := n.hardwareAddr("r", 1)

	type forgery struct {
		name     string
		datagram []byte
	}
	var forgeries []forgery
	add := func(name string, datagram []byte) { forgeries = append(forgeries, forgery{name, datagram}) }
	for name, d := range map[string][]byte{
		"empty": {}, "one byte": {'S'}, "no more than its name": []byte("SS"), "half an Ethernet header": good[:9], "no IP": good[:16],
		"lower case": append([]byte("ss"), good[2:]...), "zeros": make([]byte, 1400), "long zeros": append([]byte("SS"), make([]byte, 65000)...),
	} {
		add(name, d)
	}
	for i := 16; i < len(good); i++ {
		add(fmt.Sprintf("cut to %d", i), good[:i])
	}
	for _, b := range []byte{0, 1, 2, 3, 4, 255} {
		add(fmt.Sprintf("our own framing, type %d", b), append([]byte{'F', 'R', 1, b}, good[2:]...))
	}
	// Each of the following is wrong in one way only: header checksums are right. The payload tells which it is.
	frame := func(name string, change func(b []byte) []byte) {
		b := slices.Clone(good)
		copy(b[len(b)-5:], fmt.Sprintf("%05d", len(forgeries)))
		add(name, change(b))
	}
	ip := func(name string, change func(p []byte) []byte) {
		frame(name, func(b []byte) []byte {
			p := change(b[16:])
			setHeaderChecksum(p)
			return append(b[:16:16], p...)
		})
	}
	set := func(at int, values ...byte) func([]byte) []byte {
		return func(b []byte) []byte {
			copy(b[at:], values)
			return b
		}
	}
	frame("to one host", set(2, 2, 0, 0, 0, 0, 9))
	frame("to a group", set(2, 1, 0, 0x5e, 0, 0, 1))
	frame("IPv6 by its type", set(14, 0x86, 0xdd))
	frame("ARP", set(14, 8, 6))
	frame("tagged", set(14, 0x81, 0))
	frame("header checksum", set(16+10, 1, 2))
	frame("from the relay itself", set(8, own...))
	ip("version 6", set(0, 0x65))
	ip("version 0", set(0, 0x05))
	ip("short header", set(0, 0x44))
	ip("header longer than the packet", set(0, 0x4f))
	ip("longer than there is", set(2, 0, 34))
	ip("very long", set(2, 0xff, 0xff))
	ip("shorter than its header", set(2, 0, 19))
	ip("without room for UDP", set(2, 0, 27))
	ip("TCP", set(9, 6))
	ip("ICMP", set(9, 1))
	ip("IGMP", set(9, 2))
	ip("raw protocol 255", set(9, 255))
	ip("reserved flag", set(6, 0x80))
	ip("first fragment", set(6, 0x20))
	ip("later fragment", set(6, 0, 1))
	ip("last fragment, far out", set(6, 0x1f, 0xff))
	for name, a := range map[string]string{
		"loopback": "127.0.0.1", "group": "224.0.0.1", "everyone": "255.255.255.255", "class E": "240.0.0.1", "this network": "0.0.0.7",
	} {
		b := netip.MustParseAddr(a).As4()
		if name != "this network" {
			ip("source "+name, set(12, b[:]...))
		}
		if name != "everyone" {
			ip("destination "+name, set(16, b[:]...))
		}
	}
	ip("another port", set(22, 0, 53))
	ip("mesh port", set(22, relayMeshPort>>8, relayMeshPort&255))
	ip("UDP longer than the packet", set(24, 0, 14))
	ip("UDP shorter than the packet", set(24, 0, 12))
	ip("UDP shorter than its header", set(24, 0, 7))
	ip("UDP of length 0", set(24, 0, 0))

	wire.forget()
	for _, f := range forgeries {
		if _, err := evil.WriteToUDPAddrPort(f.datagram, at); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		time.Sleep(time.Millisecond)
	}
	// What comes behind them still passes, so they have been looked at.
	last := slices.Clone(good)
	copy(last[len(last)-5:], "LAST!")
	eventually(t, "a good one behind the forged ones", func() bool {
		_, err := evil.WriteToUDPAddrPort(last, at)
		return err == nil && hears.hears("LAST!")
	})
	time.Sleep(settled)
	_, frames := wire.broadcasts()
	for _, f := range frames {
		if bytes.Contains(f, []byte("LAST!")) {
			continue
		}
		culprit := "of something cut"
		if i, err := strconv.Atoi(string(f[max(0, len(f)-5):])); err == nil && i < len(forgeries) {
			culprit = forgeries[i].name
		}
		t.Errorf("%s is on the segment: %x", culprit, f)
	}
}

// relayEchoingPeer: a peer that sends everything back makes no copies.
func relayEchoingPeer(t *testing.T) {
	onlyOurs(t)
	n := newRelayNet(t, "r h h2", "echo")
	echo := n.listen("echo", netip.AddrPortFrom(n.addr("echo", 2), relayMeshPort))
	go func() {
		b := make([]byte, 1<<16)
		for {
			k, from, err := echo.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDPAddrPort(b[:k], from) // as the relay would be sent it
		}
	}()
	n.relay("r", 1, []netip.Addr{n.addr("echo", 2)})
	h, own := n.mouth("h", 1), n.mouth("r", 1)
	at := []*ear{n.ear("h2", 1)}
	probe := n.listen("echo", netip.AddrPortFrom(n.addr("echo", 2), 0))
	eventually(t, "the relay serves", func() bool {
		_, err := probe.WriteToUDPAddrPort(unhex(t, vectorLimited), netip.AddrPortFrom(n.addr("r", 1), relayMeshPort))
		return err == nil && at[0].hears("hello")
	})
	said := numbered("echo", 100)
	h.sayAll(everyone, said)
	h.heardBy(said, at...)
	said = numbered("own host", 100)
	own.sayAll(everyone, said)
	own.heardBy(said, at...)
}

// relayTwoOnOneSegment: of two relays on a segment one serves it. When that one dies the other takes over.
func relayTwoOnOneSegment(t *testing.T) {
	onlyOurs(t)
	n := newRelayNet(t, "r1 r2 h h2", "r3 far")
	a, b, c := n.addr("r1", 1), n.addr("r2", 1), n.addr("r3", 2)
	relays := map[string]*process{
		"r1": n.relay("r1", 1, []netip.Addr{b, c}),
		"r2": n.relay("r2", 1, []netip.Addr{a, c}),
	}
	n.relay("r3", 2, []netip.Addr{a, b})
	h, far := n.mouth("h", 1), n.mouth("far", 2)
	near, atFar := []*ear{n.ear("h2", 1)}, []*ear{n.ear("far", 2)}
	h.open(patience, atFar...)
	far.open(patience, near...)
	time.Sleep(3 * time.Second) // they have found each other: that much time is theirs
	there, back := numbered("there", 100), numbered("back", 100)
	for i := range there {
		h.say(everyone, there[i])
		far.say(everyone, back[i])
		time.Sleep(2 * time.Millisecond)
	}
	h.heardBy(there, slices.Concat(near, atFar)...)
	far.heardBy(back, slices.Concat(near, atFar)...)

	// The one with the lower address serves.
	first := "r1"
	if bytes.Compare(n.hardwareAddr("r2", 1), n.hardwareAddr("r1", 1)) < 0 {
		first = "r2"
	}
	relays[first].kill()
	killed := time.Now()
	var said []string
	for time.Since(killed) < 4*time.Second {
		said = append(said, fmt.Sprintf("after %v", time.Since(killed)))
		h.say(everyone, said[len(said)-1])
		time.Sleep(50 * time.Millisecond)
	}
	served := atFar[0].from(h.from)[len(there):]
	seen := map[string]int{}
	for _, s := range served {
		if seen[s]++; seen[s] > 1 {
			t.Errorf("%q was heard %d times", s, seen[s])
		}
	}
	if len(served) == 0 {
		t.Errorf("within 4 s of the end of %s nobody took over", first)
	}
	forgetAll(atFar)
	forgetAll(near)
	there, back = numbered("there again", 50), numbered("back again", 50)
	for i := range there {
		h.say(everyone, there[i])
		far.say(everyone, back[i])
		time.Sleep(2 * time.Millisecond)
	}
	h.heardBy(there, slices.Concat(near, atFar)...)
	far.heardBy(back, slices.Concat(near, atFar)...)
}

// relayBesideAnother: ours with another on its segment, and with others elsewhere. Every host hears each broadcast, at
// most four times, and it ends.
func relayBesideAnother(t *testing.T) {
	if foreignRelay() || os.Getenv(originVariable) == "" {
		t.Skipf("%s does not name another relay", originVariable)
	}
	n := newRelayNet(t, "ours1 other1 h1 near1", "other2 h2", "ours3 h3")
	at := []netip.Addr{n.addr("ours1", 1), n.addr("other1", 1), n.addr("other2", 2), n.addr("ours3", 3)}
	but := func(i int) []netip.Addr { return slices.Delete(slices.Clone(at), i, i+1) }
	n.relay("ours1", 1, but(0))
	n.origin("other1", 1, but(1)...)
	n.origin("other2", 2, but(2)...)
	n.relay("ours3", 3, but(3))
	mouths := []*mouth{n.mouth("h1", 1), n.mouth("h2", 2), n.mouth("h3", 3)}
	ears := []*ear{n.ear("near1", 1), n.ear("h2", 2), n.ear("h3", 3)}
	for _, m := range mouths {
		m.open(patience, ears...)
	}
	time.Sleep(3 * time.Second)
	forgetAll(ears)
	const count = 50
	for i := range count {
		for _, m := range mouths {
			m.say(everyone, strconv.Itoa(i))
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(2 * time.Second)
	for _, m := range mouths {
		for _, e := range ears {
			copies := map[string]int{}
			for _, p := range e.from(m.from) {
				copies[p]++
			}
			least, most, sum := 1<<30, 0, 0
			for i := range count {
				k := copies[strconv.Itoa(i)]
				least, most, sum = min(least, k), max(most, k), sum+k
			}
			t.Logf("%s hears %v: %d to %d copies, %d of %d broadcasts", e.name, m.from, least, most, sum, count)
			if least < 1 || most > 4 {
				t.Errorf("%s hears %v %d to %d times, want 1 to 4", e.name, m.from, least, most)
			}
		}
	}
	heard := len(ears[0].from(mouths[0].from))
	time.Sleep(time.Second)
	if now := len(ears[0].from(mouths[0].from)); now != heard {
		t.Errorf("%d more copies after all was said", now-heard)
	}
}

// relayRing: relays that each join two segments, closed to a ring, and each other's peers on top of that.
//
//	h1 -- seg1 -- r12 -- seg2 -- h2
//	        \             /
//	        r31         r23
//	          \         /
//	           seg3 ---+
//	            |
//	            h3
func relayRing(t *testing.T) {
	onlyOurs(t)
	n := newRelayNet(t, "r12 r31 h1", "r12 r23 h2", "r23 r31 h3")
	peers := []netip.Addr{n.addr("r12", 1), n.addr("r23", 2), n.addr("r31", 3)}
	ring := []struct {
		host       string
		first, two int
	}{{"r12", 1, 2}, {"r23", 2, 3}, {"r31", 3, 1}}
	for i, r := range ring {
		others := slices.Delete(slices.Clone(peers), i, i+1)
		n.relay(r.host, r.first, others, "-t", "seg"+strconv.Itoa(r.two))
	}
	mouths := []*mouth{n.mouth("h1", 1), n.mouth("h2", 2), n.mouth("h3", 3)}
	ears := []*ear{n.ear("h1", 1), n.ear("h2", 2), n.ear("h3", 3)}
	for _, m := range mouths {
		m.open(patience, ears...)
	}
	time.Sleep(3 * time.Second)
	said := make([][]string, len(mouths))
	for i, m := range mouths {
		said[i] = numbered(m.from.String(), 100)
	}
	for i := range said[0] {
		for j, m := range mouths {
			m.say(everyone, said[j][i])
		}
		time.Sleep(2 * time.Millisecond)
	}
	for j, m := range mouths {
		m.heardBy(said[j], ears...)
	}
}

// nameServer is a real one, dnsmasq, on a host.
type nameServer struct {
	n       *relayNet
	host    string
	program string
	file    string
	process *process
}

// newNameServer prepares it, and makes it the one that all processes of this test ask.
func newNameServer(n *relayNet, host string) *nameServer {
	n.t.Helper()
	program, err := exec.LookPath("dnsmasq")
	if errors.Is(err, exec.ErrNotFound) {
		if program = "/usr/sbin/dnsmasq"; !exists(program) {
			n.t.Skip("dnsmasq is not installed (package dnsmasq-base)")
		}
	}
	dir, err := os.MkdirTemp("", "names")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { os.RemoveAll(dir) })
	s := &nameServer{n: n, host: host, program: program, file: filepath.Join(dir, "hosts")}
	resolver := filepath.Join(dir, "resolv.conf")
	text := fmt.Sprintf("nameserver %v\noptions timeout:1 attempts:1\n", n.lab.Host(host).Addr())
	if err := os.WriteFile(resolver, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	// The test program has mounts of its own.
	if err := unix.Mount(resolver, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		n.t.Skipf("/etc/resolv.conf cannot be replaced here: %v", err)
	}
	n.t.Cleanup(func() { _ = unix.Unmount("/etc/resolv.conf", unix.MNT_DETACH) })
	return s
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// members sets the addresses of tasks.relays.
func (s *nameServer) members(addrs ...netip.Addr) {
	s.n.t.Helper()
	var text strings.Builder
	for _, a := range addrs {
		fmt.Fprintf(&text, "%v tasks.relays\n", a)
	}
	for _, name := range s.n.hosts() {
		fmt.Fprintf(&text, "%v %s\n", s.n.lab.Host(name).Addr(), name)
	}
	if err := os.WriteFile(s.file, []byte(text.String()), 0o644); err != nil {
		s.n.t.Fatal(err)
	}
	if s.process != nil {
		if err := s.process.Process.Signal(syscall.SIGHUP); err != nil {
			s.n.t.Fatal(err)
		}
	}
}

func (s *nameServer) start() {
	s.n.t.Helper()
	c := s.n.lab.Host(s.host).Command(context.Background(), s.program, "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null",
		"--pid-file=", "--local=//", "--local=/relays/", "--local-ttl=0", "--user=root", "--addn-hosts="+s.file, "--log-queries", "--log-facility=-")
	s.process = startProcess(s.n.t, "dnsmasq", c)
}

func (s *nameServer) stop() {
	s.process.kill()
	s.process = nil
}

// hosts are the names of all hosts.
func (n *relayNet) hosts() (names []string) {
	for name := range n.lab.Topology().Hosts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// relayDiscovery: relays find each other by tasks.<SERVICENAME> of a real name server; what is known outlives an outage.
func relayDiscovery(t *testing.T) {
	n := newRelayNet(t, "r1 h1 dns", "r2 h2", "r3 h3")
	names := newNameServer(n, "dns")
	a, b, c := n.addr("r1", 1), n.addr("r2", 2), n.addr("r3", 3)
	names.members(a, b)
	run := func(host string, segment int) *process {
		return n.start(host, []string{"SERVICENAME=relays", "TARGET_INTERFACE=seg" + strconv.Itoa(segment)})
	}
	if foreignRelay() {
		names.start() // others end without
		time.Sleep(300 * time.Millisecond)
	}
	relays := []*process{run("r1", 1), run("r2", 2), run("r3", 3)}
	h1, h3 := n.mouth("h1", 1), n.mouth("h3", 3)
	at2, at3 := n.ear("h2", 2), n.ear("h3", 3)
	running := func() {
		t.Helper()
		for _, r := range relays {
			r.mustRun()
		}
	}
	if !foreignRelay() {
		time.Sleep(time.Second)
		running()
		names.start()
	}
	const refresh = 11500 * time.Millisecond
	h1.open(refresh, at2)
	h3.open(refresh, at2)
	if len(at3.from(h1.from)) > 0 {
		t.Error("r3 is sent to, though it is none of the members")
	}
	// It joins.
	names.members(a, b, c)
	h1.open(refresh, at2, at3)
	// Without answers, nothing changes.
	if !foreignRelay() {
		names.stop()
		time.Sleep(5 * time.Second)
		running()
		h1.open(time.Second, at2, at3)
		names.members(a) // r1 finds itself alone; the others a name that has nobody else, or nothing
		names.start()
		time.Sleep(5 * time.Second)
		running()
		h1.open(time.Second, at2, at3)
	}
	// It leaves.
	names.members(a, b)
	time.Sleep(refresh)
	at3.forget()
	said := numbered("left", 20)
	h1.sayAll(everyone, said)
	h1.heardBy(said, at2)
	h1.heardBy(nil, at3)
	running()
}

// relayInterface: a relay whose interface goes and comes, gets another address, or is made anew, works again.
func relayInterface(t *testing.T) {
	n := newRelayNet(t, "r1 h1", "r2 h2")
	a, b := n.addr("r1", 1), n.addr("r2", 2)
	r1 := n.relay("r1", 1, []netip.Addr{b})
	n.relay("r2", 2, []netip.Addr{a})
	h1, h2 := n.mouth("h1", 1), n.mouth("h2", 2)
	at1, at2 := n.ear("h1", 1), n.ear("h2", 2)
	h1.open(patience, at2)
	h2.open(patience, at1)
	const within = 15 * time.Second
	check := func(what string) {
		t.Helper()
		took := []time.Duration{h1.open(within, at2), h2.open(within, at1)}
		r1.mustRun()
		t.Logf("%s: works again after %v there and %v back", what, took[0].Round(time.Millisecond), took[1].Round(time.Millisecond))
		forgetAll([]*ear{at1, at2})
		said := numbered(what, 10)
		h1.sayAll(everyone, said)
		h2.sayAll(everyone, said)
		h1.heardBy(said, at2)
		h2.heardBy(said, at1)
	}
	on := func(host string, f func() error) {
		t.Helper()
		if err := n.lab.Host(host).Do(f); err != nil {
			t.Fatal(err)
		}
	}
	gateway := n.lab.Host("core").AddrTowards("seg1", 4)
	link := func() netlink.Link {
		t.Helper()
		l, err := netlink.LinkByName("seg1")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	addAddress := func(address string) error {
		p := netip.MustParsePrefix(address)
		if err := netlink.AddrReplace(link(), &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}); err != nil {
			return fmt.Errorf("add address: %w", err)
		}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link().Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
			return fmt.Errorf("add default route: %w", err)
		}
		return nil
	}
	address := netip.PrefixFrom(a, 24).String()

	on("r1", func() error { return netlink.LinkSetDown(link()) })
	time.Sleep(time.Second)
	on("r1", func() error {
		if err := netlink.LinkSetUp(link()); err != nil {
			return err
		}
		return addAddress(address)
	})
	check("down and up")

	if !foreignRelay() { // which stays bound to the address that it had
		on("r1", func() error {
			all, err := netlink.AddrList(link(), netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			if err := addAddress("10.77.1.99/24"); err != nil {
				return err
			}
			for _, old := range all {
				if err := netlink.AddrDel(link(), &old); err != nil {
					return err
				}
			}
			return addAddress("10.77.1.99/24")
		})
		// r2 knows r1 by its old address; what r1 sends is all it can hear.
		h1.open(within, at2)
		on("r1", func() error { return addAddress(address) })
		check("another address, and back")
	}

	// Made anew, with another index and Ethernet address.
	remove := func() {
		t.Helper()
		on("r1", func() error { return netlink.LinkDel(link()) })
	}
	var space int
	on("r1", func() (err error) {
		space, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	defer unix.Close(space)
	again := func() {
		t.Helper()
		on("seg1", func() error { return addPort("again", "seg1", space) })
		on("r1", func() error {
			if err := netlink.LinkSetUp(link()); err != nil {
				return err
			}
			return addAddress(address)
		})
		for _, host := range []string{"core", "h1"} { // they have been told the Ethernet address that was, or have asked for it
			on(host, func() error {
				err := netlink.NeighDel(&netlink.Neigh{LinkIndex: link().Attrs().Index, IP: a.AsSlice()})
				if errors.Is(err, unix.ENOENT) {
					return nil
				}
				return err
			})
		}
	}
	remove()
	time.Sleep(time.Second)
	again()
	check("made anew")

	if !foreignRelay() {
		r1.kill()
		remove()
		r1 = n.relay("r1", 1, []netip.Addr{b})
		time.Sleep(time.Second)
		again()
		check("made after the start of the relay")
	}
}

// addPort makes a veth pair, one end of which is a port of the bridge here, and the other an interface in another namespace.
func addPort(port, ifname string, namespace int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: ifname, PeerNamespace: netlink.NsFd(namespace)}); err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	link, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Type() == "bridge" {
			if err := netlink.LinkSetMaster(link, l); err != nil {
				return err
			}
		}
	}
	return netlink.LinkSetUp(link)
}

// relaySealed: relays with a key hear each other, and nobody else.
func relaySealed(t *testing.T) {
	onlyOurs(t)
	n := newRelayNet(t, "r1 h1", "r2 h2", "r3 h3")
	a, b, c := n.addr("r1", 1), n.addr("r2", 2), n.addr("r3", 3)
	key := filepath.Join(n.dir, "mesh.key")
	if err := os.WriteFile(key, []byte(strings.Repeat("A", 42)+"E=\n"), 0o600); err != nil { // 32 bytes in base64
		t.Fatal(err)
	}
	n.relay("r1", 1, []netip.Addr{b, c}, "--key", key)
	n.relay("r2", 2, []netip.Addr{a, c}, "--key", key)
	n.relay("r3", 3, []netip.Addr{a, b})
	h1, h2, h3 := n.mouth("h1", 1), n.mouth("h2", 2), n.mouth("h3", 3)
	at1, at2, at3 := n.ear("h1", 1), n.ear("h2", 2), n.ear("h3", 3)
	tap := n.tap("core", 1)
	h1.open(patience, at2)
	h2.open(patience, at1)
	said := append(numbered("sealed", 100), strings.Repeat("s", 65_507), "secret word")
	h1.sayAll(everyone, said)
	h3.sayAll(everyone, numbered("in clear", 20))
	evil := n.listen("h3", netip.AddrPortFrom(n.addr("h3", 3), 0))
	for range 3 {
		if _, err := evil.WriteToUDPAddrPort(unhex(t, vectorLimited), netip.AddrPortFrom(b, relayMeshPort)); err != nil {
			t.Fatal(err)
		}
	}
	h1.heardBy(said, at2)
	h1.heardBy(nil, at3)
	h3.heardBy(nil, at1, at2)
	if at2.hears("hello") {
		t.Error("a forged datagram in clear was put on the segment")
	}
	tap.mu.Lock()
	defer tap.mu.Unlock()
	for _, f := range tap.frames {
		if f[0]&1 == 0 && bytes.Contains(f, []byte("secret word")) {
			t.Fatalf("in clear on its way: %x", f)
		}
	}
}

// relayPeerRestarts: a peer that ends and comes back is served at once, and meanwhile others miss nothing.
func relayPeerRestarts(t *testing.T) {
	n := newRelayNet(t, "r1 h1", "r2 h2", "r3 h3")
	a, b, c := n.addr("r1", 1), n.addr("r2", 2), n.addr("r3", 3)
	unreachable := netip.MustParseAddr("203.0.113.1") // no relay minds one that there is no way to
	others := func(peers ...netip.Addr) []netip.Addr {
		if foreignRelay() {
			return peers
		}
		return append([]netip.Addr{unreachable}, peers...)
	}
	n.relay("r1", 1, others(b, c))
	r2 := n.relay("r2", 2, others(a, c))
	n.relay("r3", 3, others(a, b))
	h1 := n.mouth("h1", 1)
	at2, at3 := n.ear("h2", 2), n.ear("h3", 3)
	h1.open(patience, at2, at3)
	r2.kill()
	said := numbered("while r2 is away", 100)
	h1.sayAll(everyone, said)
	h1.heardBy(said, at3)
	h1.heardBy(nil, at2)
	n.relay("r2", 2, others(a, c))
	h1.open(12*time.Second, at2, at3)
}

// relayProcess: how a relay ends when it is told to.
func relayProcess(t *testing.T) {
	onlyOurs(t)
	n := newRelayNet(t, "r1", "r2")
	for _, tt := range []struct {
		name   string
		signal syscall.Signal
		first  bool // process 1, as in a container
	}{{"SIGTERM", syscall.SIGTERM, false}, {"SIGINT", syscall.SIGINT, false}, {"SIGTERM to process 1", syscall.SIGTERM, true}, {"SIGINT to process 1", syscall.SIGINT, true}} {
		c := n.command("r1", nil, "-t", "seg1", "--other-relays", n.addr("r2", 2).String())
		if tt.first {
			// With a /proc of its own, as there, and seen by nobody else.
			const start = `mount --make-rprivate / && mount -t proc proc /proc; exec "$@"`
			env := c.Env
			c = n.lab.Host("r1").Command(context.Background(), "sh", append([]string{"-c", start, "sh"}, c.Args...)...)
			c.Env = env
			c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
		}
		p := startProcess(t, tt.name, c)
		n.awaitPort("r1", relayMeshPort)
		start := time.Now()
		if err := p.Process.Signal(tt.signal); err != nil {
			t.Fatal(err)
		}
		code := p.code()
		if took := time.Since(start); took > 2*time.Second || code != 0 && tt.signal == syscall.SIGTERM {
			t.Errorf("%s: ended with %d after %v", tt.name, code, took)
		}
	}
	// Without peers it stays, and says so once.
	alone := n.start("r1", nil, "-t", "seg1")
	n.awaitPort("r1", relayMeshPort)
	time.Sleep(time.Second)
	alone.mustRun()
	if !strings.Contains(alone.log.String(), "WARN") {
		t.Errorf("nothing warns of a relay without peers: %s", alone.log.String())
	}
}

// awaitPort waits until a UDP port of a host is taken.
func (n *relayNet) awaitPort(host string, port int) {
	n.t.Helper()
	want := fmt.Sprintf(":%04X ", port)
	eventually(n.t, fmt.Sprintf("port %d of %s is taken", port, host), func() bool {
		found := false
		_ = n.lab.Host(host).Do(func() error { // a file that is not there has no sockets in it
			for _, name := range []string{"udp", "udp6"} {
				data, err := os.ReadFile("/proc/thread-self/net/" + name)
				if err == nil && strings.Contains(string(data), want) {
					found = true
				}
			}
			return nil
		})
		return found
	})
}

// relayRefuses: what cannot work ends at once, with a message for people.
func relayRefuses(t *testing.T) {
	onlyOurs(t)
	n := newRelayNet(t, "r", "x")
	taken := n.listen("r", netip.AddrPortFrom(netip.IPv4Unspecified(), 7999))
	defer taken.Close()
	peer := n.addr("x", 2).String()
	for _, tt := range []struct {
		name         string
		args         []string
		env          []string
		unprivileged bool
		usage        bool // exits with 2
	}{
		{name: "unknown flag", args: []string{"--no-such-flag"}, usage: true},
		{name: "port that is none", args: []string{"-b", "many"}, usage: true},
		{name: "mesh port that is none", args: []string{"-m", "7124x"}, usage: true},
		{name: "unknown level", args: []string{"-ll", "loud"}, usage: true},
		{name: "unknown level in the environment", env: []string{"LOGLEVEL=loud"}, usage: true},
		{name: "port in the environment that is none", env: []string{"BDCAST_PORT=x"}, usage: true},
		{name: "port too large", args: []string{"-b", "70000"}},
		{name: "port 0", args: []string{"-b", "0"}},
		{name: "mesh port too large", args: []string{"-m", "65536"}},
		{name: "equal ports", args: []string{"-b", "6000", "-m", "6000"}},
		{name: "mesh port in use", args: []string{"-m", "7999"}},
		{name: "no capabilities", unprivileged: true},
	} {
		args := append([]string{"-t", "seg1", "--other-relays", peer}, tt.args...)
		c := n.command("r", tt.env, args...)
		c.Unprivileged = tt.unprivileged
		start := time.Now()
		p := startProcess(t, tt.name, c)
		select {
		case <-p.ended:
		case <-time.After(8 * time.Second): // half of them the machine's
			t.Errorf("%s: still running after %v", tt.name, time.Since(start))
			p.kill()
			continue
		}
		code, text := p.code(), p.log.String()
		if took := time.Since(start); took > 4*time.Second {
			t.Logf("%s: took %v", tt.name, took)
		}
		if code == 0 || tt.usage && code != 2 {
			t.Errorf("%s: exit code %d", tt.name, code)
		}
		if text == "" || strings.Contains(text, "goroutine ") || strings.Contains(text, "panic") {
			t.Errorf("%s: says %q", tt.name, text)
		}
	}
}
