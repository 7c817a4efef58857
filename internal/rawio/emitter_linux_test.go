// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// emitted describes a UDP datagram in an IP packet.
type emitted struct {
	from, to     string
	port         uint16
	id, fragment uint16
	ttl          byte
	data         []byte
}

// packet makes the packet, checksums included.
func (m emitted) packet() []byte {
	from, to := netip.MustParseAddr(m.from), netip.MustParseAddr(m.to)
	udp := make([]byte, 8, 8+len(m.data))
	binary.BigEndian.PutUint16(udp, 40000)
	binary.BigEndian.PutUint16(udp[2:], m.port)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(m.data)))
	udp = append(udp, m.data...)
	sum := onesSum(slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, protoUDP}, udp[4:6], udp))
	binary.BigEndian.PutUint16(udp[6:], ^sum)
	var h []byte
	if from.Is6() {
		h = make([]byte, 8, 40+len(udp))
		h[0], h[6], h[7] = 0x60, protoUDP, m.ttl
		binary.BigEndian.PutUint16(h[4:], uint16(len(udp)))
		return slices.Concat(h, from.AsSlice(), to.AsSlice(), udp)
	}
	h = make([]byte, 12, 20+len(udp))
	h[0], h[8], h[9] = 0x45, m.ttl, protoUDP
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(udp)))
	binary.BigEndian.PutUint16(h[4:], m.id)
	binary.BigEndian.PutUint16(h[6:], m.fragment)
	h = slices.Concat(h, from.AsSlice(), to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], ^onesSum(h))
	return append(h, udp...)
}

// onesSum is the sum of RFC 1071.
func onesSum(b []byte) uint16 {
	var s uint32
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) > 0 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func openEmitter(t testing.TB, ifname string, o EmitterOptions) *Emitter {
	t.Helper()
	e, err := OpenEmitter(ifname, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// listener is an application of the host.
type listener struct {
	name string
	*UDPConn
}

// listen opens applications on port 5064: on all addresses, on one that stands for everybody, and in groups.
func listen(t testing.TB, broadcast string) []listener {
	t.Helper()
	var all []listener
	for _, local := range []string{"0.0.0.0:5064", broadcast + ":5064", "[::]:5064"} {
		ap := netip.MustParseAddrPort(local)
		family := unix.AF_INET
		if ap.Addr().Is6() {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c := &UDPConn{fd: fd, tx: new(udpSender), rx: newUDPReceiver()}
		t.Cleanup(func() { c.Close() })
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), setBuffers(fd, 1<<20, 0))
		if family == unix.AF_INET6 {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
		}
		if err = errors.Join(err, unix.Bind(fd, sockaddr(ap))); err != nil {
			t.Fatal(err)
		}
		all = append(all, listener{local, c})
	}
	return all
}

// TestEmitter looks at what the kernel makes of packets, on the wire and in the applications of the host.
func TestEmitter(t *testing.T) {
	inNamespaces(t, func(there func(func())) {
		for _, name := range []string{"all", "a", "lo", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
		}
		linkLocal(t, "a")
		const mark = 99
		groups := []netip.Addr{netip.MustParseAddr("239.1.2.3"), netip.MustParseAddr("ff02::fb"), netip.MustParseAddr("ff05::1:3")}
		member, err := JoinGroups("a", groups)
		if err != nil {
			t.Fatal(err)
		}
		defer member.Close()
		apps := listen(t, "192.0.2.255")
		e := openEmitter(t, "a", EmitterOptions{Mark: mark})
		if !e.HasMark() {
			t.Error("no mark")
		}
		var wire *FrameConn
		there(func() {
			wire = openFrames(t, "b", FrameOptions{Filter: FilterBroadcast([]PortRange{{5064, 5064}},
				BroadcastFilter{IPv4Groups: true, IPv6Groups: true})})
		})
		own := openFrames(t, "a", FrameOptions{Outgoing: true, Filter: FilterBroadcast([]PortRange{{5064, 5064}},
			BroadcastFilter{IPv4Groups: true, IPv6Groups: true, Mark: mark})})

		const all, directed, six = 1, 2, 4 // applications
		body := []byte("a question to everybody")
		for _, test := range []struct {
			name string
			emitted
			mac  string
			apps int
			id   bool // the kernel makes one up
		}{
			{"own source", emitted{"192.0.2.1", "255.255.255.255", 5064, 7, 0, 64, body}, everybody, all, false},
			{"source of the segment", emitted{"192.0.2.77", "255.255.255.255", 5064, 7, 0, 64, body}, everybody, all, false},
			{"source from elsewhere, one hop", emitted{"203.0.113.7", "255.255.255.255", 5064, 8, 0, 1, body}, everybody, all, false},
			{"to the directed address", emitted{"203.0.113.7", "192.0.2.255", 5064, 9, 0, 3, body}, everybody, all | directed, false},
			{"no ID", emitted{"203.0.113.7", "255.255.255.255", 5064, 0, 0, 64, body}, everybody, all, true},
			{"no ID, DF", emitted{"203.0.113.7", "255.255.255.255", 5064, 0, 0x4000, 64, body}, everybody, all, false},
			{"odd length", emitted{"203.0.113.7", "255.255.255.255", 5064, 10, 0x4000, 64, body[:7]}, everybody, all, false},
			{"no payload", emitted{"203.0.113.7", "255.255.255.255", 5064, 10, 0, 64, nil}, everybody, all, false},
			{"as long as the MTU", emitted{"203.0.113.7", "192.0.2.255", 5064, 11, 0, 64, make([]byte, 1472)}, everybody, all | directed, false},
			{"to a group", emitted{"203.0.113.7", "239.1.2.3", 5064, 12, 0, 1, body}, "\x01\x00\x5e\x01\x02\x03", all, false},
			{"to a group without members", emitted{"203.0.113.7", "239.129.2.4", 5064, 12, 0, 4, body}, "\x01\x00\x5e\x01\x02\x04", 0, false},
			{"from nowhere", emitted{"0.0.0.0", "255.255.255.255", 5064, 0, 0, 64, body}, everybody, 0, false},
			{"from nowhere to a group", emitted{"0.0.0.0", "239.129.2.4", 5064, 0, 0, 64, body}, "\x01\x00\x5e\x01\x02\x04", 0, false},
			{"IPv6 to a group of the link", emitted{"fe80::77", "ff02::fb", 5064, 0, 0, 1, body}, group6, six, false},
			{"IPv6 to a group of the site", emitted{"2001:db8:1::7", "ff05::1:3", 5064, 0, 0, 8, body}, "\x33\x33\x00\x01\x00\x03", six, false},
			{"IPv6 to a group without members", emitted{"fe80::77", "ff02::1:4", 5064, 0, 0, 1, body}, "\x33\x33\x00\x01\x00\x04", 0, false},
		} {
			p := test.packet()
			if n, failed, err := e.Emit([][]byte{p}); n != 1 || len(failed) > 0 || err != nil {
				t.Errorf("%s: Emit: %d, %v, %v", test.name, n, failed, err)
				continue
			}
			typ := uint16(0x0800)
			if p[0]>>4 == 6 {
				typ = 0x86dd
			}
			data, frames := receiveN(t, wire, 1)
			if test.id {
				if id := data[0][18:20]; bytes.Equal(id, []byte{0, 0}) {
					t.Errorf("%s: ID still 0", test.name)
				}
				test.emitted.id = binary.BigEndian.Uint16(data[0][18:])
				p = test.packet()
			}
			if want := ether(test.mac, string(e.Interface().HardwareAddr), typ, p); !bytes.Equal(data[0], want) {
				t.Errorf("%s: on the wire\ngot  %x\nwant %x", test.name, data[0], want)
			}
			if frames[0].PartialChecksum || frames[0].Tagged {
				t.Errorf("%s: partial checksum %v, tagged %v", test.name, frames[0].PartialChecksum, frames[0].Tagged)
			}
			for i, app := range apps {
				if test.apps&(1<<i) == 0 {
					continue
				}
				in := receiveDatagrams(t, app.UDPConn, 1, 4)[0]
				from := netip.AddrPortFrom(netip.MustParseAddr(test.from), 40000)
				if in.From.Addr().WithZone("") != from.Addr() || in.From.Port() != from.Port() || !bytes.Equal(in.Data, test.data) {
					t.Errorf("%s: %s got %q from %v", test.name, app.name, in.Data, in.From)
				}
			}
		}
		// Nobody gets anything twice, nor what is for others. Those copies would be there: what goes to the host itself comes first.
		for _, app := range apps {
			if n, err := app.Receive(make([]Incoming, 4)); n != 0 || err != nil {
				t.Errorf("%s: %d datagrams too many, %v", app.name, n, err)
			}
		}
		if n, err := wire.Receive(make([]Frame, 4)); n != 0 || err != nil {
			t.Errorf("%d frames too many, %v", n, err)
		}
		if n, err := own.Receive(make([]Frame, 4)); n != 0 || err != nil {
			t.Errorf("%d frames pass the filter for the mark, %v", n, err)
		}

		// What the kernel refuses does not stop the rest, whatever way it takes.
		good := emitted{"203.0.113.7", "255.255.255.255", 5064, 5, 0, 1, body}.packet()
		good6 := emitted{"fe80::77", "ff02::1:4", 5064, 5, 0, 1, body}.packet()
		long := emitted{"203.0.113.7", "255.255.255.255", 5064, 5, 0, 1, make([]byte, 1473)}.packet()
		long6 := emitted{"fe80::77", "ff02::1:4", 5064, 5, 0, 1, make([]byte, 1453)}.packet()
		n, failed, err := e.Emit([][]byte{nil, good, good6, long, long6, good6[:39], good[:19], {0x50}, good})
		want := []SendError{{0, unix.EINVAL}, {3, unix.EMSGSIZE}, {4, unix.EMSGSIZE}, {5, unix.EINVAL}, {6, unix.EINVAL}, {7, unix.EINVAL}}
		if n != 9 || !slices.Equal(failed, want) || err != nil {
			t.Errorf("Emit: %d, %v, %v; want %v", n, failed, err, want)
		}
		receiveN(t, wire, 3)
		for _, app := range apps[:1] {
			receiveDatagrams(t, app.UDPConn, 2, 4)
		}

		// Fragments stay what they are on the wire, and are one datagram to an application.
		whole := emitted{"203.0.113.7", "255.255.255.255", 5064, 77, 0, 1, payload(1, 2000)}.packet()
		var fragments [][]byte
		for off := 0; off < 2008; off += 1480 {
			end := min(off+1480, 2008)
			h := bytes.Clone(whole[:20])
			binary.BigEndian.PutUint16(h[2:], uint16(20+end-off))
			field := uint16(off / 8)
			if end < 2008 {
				field |= 0x2000
			}
			binary.BigEndian.PutUint16(h[6:], field)
			h[10], h[11] = 0, 0
			binary.BigEndian.PutUint16(h[10:], ^onesSum(h))
			fragments = append(fragments, append(h, whole[20+off:20+end]...))
		}
		if n, failed, err := e.Emit(fragments); n != 2 || len(failed) > 0 || err != nil {
			t.Errorf("Emit fragments: %d, %v, %v", n, failed, err)
		}
		data, _ := receiveN(t, wire, 2)
		for i, d := range data {
			if !bytes.Equal(d[14:], fragments[i]) {
				t.Errorf("fragment %d:\ngot  %x\nwant %x", i, d[14:], fragments[i])
			}
		}
		if in := receiveDatagrams(t, apps[0].UDPConn, 1, 4)[0]; !bytes.Equal(in.Data, payload(1, 2000)) {
			t.Errorf("from fragments an application got %d bytes, want 2000", len(in.Data))
		}

		// What an application of this host sends to everybody is seen once, as going out; its copy for this host is not.
		if err := errors.Join(unix.SetsockoptInt(apps[0].FD(), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			unix.SetsockoptIPMreqn(apps[0].FD(), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(e.Interface().Index)}),
		); err != nil {
			t.Fatal(err)
		}
		for _, to := range [][4]byte{{192, 0, 2, 255}, {239, 1, 2, 3}} {
			if err := unix.Sendto(apps[0].FD(), body, 0, &unix.SockaddrInet4{Port: 5064, Addr: to}); err != nil {
				t.Fatal(err)
			}
			receiveDatagrams(t, apps[0].UDPConn, 1, 4)
			if _, frames := receiveN(t, own, 1); !frames[0].Outgoing {
				t.Errorf("what goes to %v is not marked as going out", to)
			}
		}
		receiveN(t, wire, 2)
		if n, err := own.Receive(make([]Frame, 4)); n != 0 || err != nil {
			t.Errorf("%d frames too many, %v", n, err)
		}
	})
}

// TestEmitterBare uses an interface that has no address, and one that goes down and away.
func TestEmitterBare(t *testing.T) {
	inNamespace(t, func() {
		e := openEmitter(t, "a", EmitterOptions{})
		if e.HasMark() {
			t.Error("a mark that nobody asked for")
		}
		b := openFrames(t, "b", FrameOptions{EtherType: unix.ETH_P_IP})
		p := emitted{"203.0.113.7", "255.255.255.255", 5064, 5, 0, 1, []byte("x")}.packet()
		if n, failed, err := e.Emit([][]byte{p, p}); n != 2 || len(failed) > 0 || err != nil {
			t.Errorf("Emit without an address: %d, %v, %v", n, failed, err)
		}
		receiveN(t, b, 2)
		link, err := netlink.LinkByName("a")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetDown(link); err != nil {
			t.Fatal(err)
		}
		n, failed, err := e.Emit([][]byte{p, p})
		if n != 2 || len(failed) != 2 || err != nil {
			t.Errorf("Emit on an interface that is down: %d, %v, %v", n, failed, err)
		}
		t.Logf("down: %v", failed)
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		if n, failed, err := e.Emit([][]byte{p}); n != 1 || len(failed) > 0 || err != nil {
			t.Errorf("Emit after it is up again: %d, %v, %v", n, failed, err)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		n, failed, err = e.Emit([][]byte{p})
		if n != 1 || len(failed) != 1 || err != nil {
			t.Errorf("Emit on an interface that is gone: %d, %v, %v", n, failed, err)
		}
		t.Logf("gone: %v", failed)
		for range 2 {
			if err := e.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if _, _, err := e.Emit(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Emit after Close: %v", err)
		}
		if _, err := OpenEmitter("a", EmitterOptions{}); err == nil {
			t.Error("OpenEmitter of an interface that is gone succeeded")
		}
	})
}

func TestEmitterAllocs(t *testing.T) {
	inNamespaces(t, func(func(func())) {
		e := openEmitter(t, "a", EmitterOptions{})
		var packets [][]byte
		for _, to := range [][2]string{{"203.0.113.7", "255.255.255.255"}, {"fe80::77", "ff02::fb"}, {"0.0.0.0", "192.0.2.255"}, {"203.0.113.7", "192.0.2.255"}} {
			packets = append(packets, emitted{to[0], to[1], 9, 5, 0, 1, nil}.packet())
		}
		packets = append(packets, nil)
		linkLocal(t, "a")
		if n := testing.AllocsPerRun(100, func() {
			if n, failed, err := e.Emit(packets); n != len(packets) || len(failed) != 1 || err != nil {
				t.Errorf("Emit: %d, %v, %v", n, failed, err)
			}
		}); n != 0 {
			t.Errorf("%v allocations per batch, want 0", n)
		}
	})
}

// TestNetRawOnly opens everything that a relay needs with no other capability than CAP_NET_RAW.
func TestNetRawOnly(t *testing.T) {
	inNamespaces(t, func(there func(func())) {
		var wire *FrameConn
		there(func() { wire = openFrames(t, "b", FrameOptions{EtherType: unix.ETH_P_IP}) })
		// Only this thread loses the others, and it ends with the test.
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_RAW, Permitted: 1 << unix.CAP_NET_RAW}}
		if err := unix.Capset(&header, &data[0]); err != nil {
			t.Fatal(err)
		}
		if err := setUp("a"); err == nil {
			t.Fatal("the thread may still change the network")
		}
		c := openFrames(t, "a", FrameOptions{Outgoing: true, Filter: FilterBroadcast([]PortRange{{1, 2}}, BroadcastFilter{Mark: 5, IPv6Groups: true})})
		if err := c.Err(); err != nil {
			t.Error(err)
		}
		u := openUDP(t, UDPOptions{ReceiveBuffer: 8 << 20, SendBuffer: 8 << 20, Mark: 5})
		if n, failed, err := u.Send([]Outgoing{{To: netip.MustParseAddrPort("192.0.2.2:9"), Data: []byte("x")}}); n != 1 || len(failed) > 0 || err != nil {
			t.Errorf("Send: %d, %v, %v", n, failed, err)
		}
		e := openEmitter(t, "a", EmitterOptions{Mark: 5, SendBuffer: 8 << 20})
		if !e.HasMark() {
			t.Error("no mark") // Linux 5.17 has been out since 2022
		}
		p := emitted{"203.0.113.7", "255.255.255.255", 5064, 5, 0, 1, []byte("x")}.packet()
		if n, failed, err := e.Emit([][]byte{p}); n != 1 || len(failed) > 0 || err != nil {
			t.Errorf("Emit: %d, %v, %v", n, failed, err)
		}
		receiveN(t, wire, 2)
		g, err := JoinGroups("a", []netip.Addr{netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb")})
		if err != nil {
			t.Error(err)
		} else if err := g.Close(); err != nil {
			t.Error(err)
		}
		if _, err := LookupInterface("a"); err != nil {
			t.Error(err)
		}
		// Without any the error says what is missing.
		if err := unix.Capset(&header, &new([2]unix.CapUserData)[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenEmitter("a", EmitterOptions{}); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_RAW") {
			t.Errorf("OpenEmitter without CAP_NET_RAW: %v", err)
		}
		if _, err := OpenUDP(UDPOptions{Mark: 5}); !errors.Is(err, unix.EPERM) {
			t.Errorf("OpenUDP with a mark without CAP_NET_RAW: %v", err)
		}
		openUDP(t, UDPOptions{})
	})
}

var _ io.Closer = (*Emitter)(nil)

// BenchmarkEmitter sends broadcasts of 128 bytes to a port of a bridge, with and without an application that
// listens, and for comparison from nowhere: by packet socket.
func BenchmarkEmitter(b *testing.B) {
	for _, mode := range []struct {
		name, from string
		listener   bool
	}{{"raw", "203.0.113.7", false}, {"raw, heard", "203.0.113.7", true}, {"packet socket", "0.0.0.0", false}} {
		b.Run(mode.name, func(b *testing.B) {
			inNamespaces(b, func(there func(func())) {
				var err error
				there(func() {
					bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}
					if err = netlink.LinkAdd(bridge); err != nil {
						return
					}
					link, e := netlink.LinkByName("b")
					if err = e; err == nil {
						err = errors.Join(netlink.LinkSetMaster(link, bridge), netlink.LinkSetUp(bridge))
					}
				})
				if err != nil {
					b.Fatal(err)
				}
				if mode.listener {
					listen(b, "192.0.2.255")
				}
				e := openEmitter(b, "a", EmitterOptions{SendBuffer: 8 << 20, Mark: 1})
				packets := make([][]byte, 256)
				for i := range packets {
					packets[i] = emitted{mode.from, "255.255.255.255", 5064, uint16(i + 1), 0, 64, payload(i, 100)}.packet()
				}
				b.ReportAllocs()
				start := time.Now()
				for b.Loop() {
					if n, failed, err := e.Emit(packets); n != len(packets) || len(failed) > 0 || err != nil {
						b.Fatal(fmt.Sprint(n, failed, err))
					}
				}
				b.ReportMetric(float64(b.N*len(packets))/time.Since(start).Seconds(), "packets/s")
			})
		})
	}
}
