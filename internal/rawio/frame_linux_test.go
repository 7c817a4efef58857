// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread of its own, in a new network namespace that
// holds a veth pair:
//
//	a ---- b
//
// It skips without privileges.
func inNamespace(t testing.TB, f func()) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread, and the namespace with it, goes with the goroutine
		var ns netns.NsHandle
		if ns, err = netns.New(); err != nil {
			return
		}
		defer ns.Close()
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}
		if err = netlink.LinkAdd(veth); err != nil {
			return
		}
		for _, name := range []string{"a", "b"} {
			// No IPv6: its own frames would get between those of the test.
			os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
			link, e := netlink.LinkByName(name)
			if e == nil {
				e = netlink.LinkSetUp(link)
			}
			if e != nil {
				err = e
				return
			}
		}
		f()
	}()
	<-done
	if errors.Is(err, os.ErrPermission) {
		t.Skip("needs CAP_SYS_ADMIN to make a network namespace")
	} else if err != nil {
		t.Fatal(err)
	}
}

// testEtherType is set aside for experiments (IEEE 802, local experimental).
const testEtherType = 0x88b5

func openFrames(t testing.TB, ifname string, o FrameOptions) *FrameConn {
	t.Helper()
	c, err := OpenFrameConn(ifname, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func makeFrame(size int, seq uint32) []byte {
	f := make([]byte, size)
	copy(f, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5")
	binary.BigEndian.PutUint32(f[14:], seq)
	return f
}

// receiveN waits until n frames have come and returns copies.
func receiveN(t testing.TB, c *FrameConn, n int) (data [][]byte, got []Frame) {
	t.Helper()
	p := newPoller(t)
	p.Add(c.FD(), Readable)
	frames := make([]Frame, 16)
	deadline := time.Now().Add(5 * time.Second)
	for len(data) < n && time.Now().Before(deadline) {
		if err := p.Wait(100 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		k, err := c.Receive(frames)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames[:k] {
			data = append(data, bytes.Clone(f.Data))
			got = append(got, f)
		}
	}
	if len(data) < n {
		t.Fatalf("received %d frames in 5s, want %d", len(data), n)
	}
	return data, got
}

func TestFrameConn(t *testing.T) {
	inNamespace(t, func() {
		a := openFrames(t, "a", FrameOptions{EtherType: testEtherType})
		b := openFrames(t, "b", FrameOptions{EtherType: testEtherType, RingFrames: 300})
		const count = 250
		var out [][]byte
		for i := range count {
			out = append(out, makeFrame(60+i*5, uint32(i)))
		}
		before := time.Now()
		n, err := a.Send(out)
		if n != count || err != nil {
			t.Fatalf("Send: %d, %v", n, err)
		}
		after := time.Now()
		data, frames := receiveN(t, b, count)
		for i := range data {
			if !bytes.Equal(data[i], out[i]) {
				t.Fatalf("frame %d:\ngot  %x\nwant %x", i, data[i], out[i])
			}
			at := time.Unix(0, frames[i].Time)
			if at.Before(before.Add(-time.Millisecond)) || at.After(after.Add(50*time.Millisecond)) {
				t.Errorf("frame %d has time %v, was sent between %v and %v", i, at, before, after)
			}
			if frames[i].Truncated || frames[i].PartialChecksum {
				t.Errorf("frame %d: truncated %v, partial checksum %v", i, frames[i].Truncated, frames[i].PartialChecksum)
			}
		}
		if k, err := a.Receive(make([]Frame, 8)); k != 0 || err != nil {
			t.Errorf("the sender received %d frames of its own, %v", k, err)
		}
		if s, err := b.Stats(); s.Received != count || s.Dropped != 0 || err != nil {
			t.Errorf("Stats = %+v, %v; want %d received", s, err, count)
		}
	})
}

func TestFrameConnRingFull(t *testing.T) {
	inNamespace(t, func() {
		a := openFrames(t, "a", FrameOptions{EtherType: testEtherType})
		b := openFrames(t, "b", FrameOptions{EtherType: testEtherType, RingFrames: 64})
		var out [][]byte
		for i := range 4 * b.ring.slots {
			out = append(out, makeFrame(60, uint32(i)))
		}
		if _, err := a.Send(out); err != nil {
			t.Fatal(err)
		}
		data, _ := receiveN(t, b, b.ring.slots)
		for i, d := range data {
			if seq := binary.BigEndian.Uint32(d[14:]); seq != uint32(i) {
				t.Fatalf("frame %d is number %d", i, seq)
			}
		}
		s, err := b.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if s.Received+s.Dropped != uint64(len(out)) || s.Dropped == 0 {
			t.Errorf("Stats = %+v, want a sum of %d and some dropped", s, len(out))
		}
		// The ring works on after an overflow.
		b.Release()
		if _, err := a.Send([][]byte{makeFrame(60, 7777)}); err != nil {
			t.Fatal(err)
		}
		data, _ = receiveN(t, b, 1)
		if seq := binary.BigEndian.Uint32(data[0][14:]); seq != 7777 {
			t.Errorf("after overflow got number %d, want 7777", seq)
		}
	})
}

func TestFrameConnOptions(t *testing.T) {
	inNamespace(t, func() {
		filter, err := bpf.Assemble([]bpf.Instruction{
			bpf.LoadAbsolute{Off: 17, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 2, SkipTrue: 1},
			bpf.RetConstant{Val: 0},
			bpf.RetConstant{Val: 1 << 16},
		})
		if err != nil {
			t.Fatal(err)
		}
		a := openFrames(t, "a", FrameOptions{})
		watch := openFrames(t, "a", FrameOptions{Outgoing: true})
		b := openFrames(t, "b", FrameOptions{EtherType: testEtherType, Filter: filter, SnapLen: 100})
		if _, err := a.Send([][]byte{makeFrame(60, 1), makeFrame(1000, 2), makeFrame(60, 3)}); err != nil {
			t.Fatal(err)
		}
		data, frames := receiveN(t, b, 1)
		if len(data) != 1 || data[0][17] != 2 {
			t.Errorf("filter let %x pass", data)
		}
		if !frames[0].Truncated || len(data[0]) >= 1000 || len(data[0]) < 100 {
			t.Errorf("frame of 1000 with SnapLen 100: truncated %v, %d bytes", frames[0].Truncated, len(data[0]))
		}
		data, frames = receiveN(t, watch, 3)
		for i, d := range data {
			if d[17] != byte(i+1) || !frames[i].Outgoing {
				t.Errorf("watching what goes out: frame %d is %x, outgoing %v", i, d, frames[i].Outgoing)
			}
		}
		// What comes in is not marked so.
		if _, err := b.Send([][]byte{makeFrame(60, 4)}); err != nil {
			t.Fatal(err)
		}
		if data, frames = receiveN(t, watch, 1); frames[0].Outgoing || frames[0].Tagged {
			t.Errorf("%x from the peer: outgoing %v, tagged %v", data[0], frames[0].Outgoing, frames[0].Tagged)
		}
	})
}

func TestFrameConnVLAN(t *testing.T) {
	inNamespace(t, func() {
		a := openFrames(t, "a", FrameOptions{})
		b := openFrames(t, "b", FrameOptions{Promiscuous: true})
		f := makeFrame(80, 5)
		tagged := append([]byte{}, f[:12]...)
		tagged = append(tagged, 0x81, 0x00, 0x60, 0x2a) // priority 3, VLAN 42
		tagged = append(tagged, f[12:]...)
		if _, err := a.Send([][]byte{tagged}); err != nil {
			t.Fatal(err)
		}
		watch := openFrames(t, "b", FrameOptions{Outgoing: true})
		data, frames := receiveN(t, b, 1)
		if !bytes.Equal(data[0], tagged) || !frames[0].Tagged {
			t.Errorf("got  %x, tagged %v\nwant %x", data[0], frames[0].Tagged, tagged)
		}
		// On the way out the tag may still be a part of the frame.
		if _, err := b.Send([][]byte{tagged}); err != nil {
			t.Fatal(err)
		}
		data, frames = receiveN(t, watch, 1)
		if !bytes.Equal(data[0], tagged) || !frames[0].Tagged || !frames[0].Outgoing {
			t.Errorf("outgoing: got  %x, tagged %v, outgoing %v\nwant %x", data[0], frames[0].Tagged, frames[0].Outgoing, tagged)
		}
	})
}

func TestFrameConnDown(t *testing.T) {
	inNamespace(t, func() {
		a := openFrames(t, "a", FrameOptions{})
		if err := a.Err(); err != nil {
			t.Errorf("Err of a healthy interface: %v", err)
		}
		link, err := netlink.LinkByName("a")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		p := newPoller(t)
		i := p.Add(a.FD(), Readable)
		if p.Wait(0); p.Events(i)&Errored == 0 {
			t.Errorf("events %#x after the interface went away, want Errored", p.Events(i))
		}
		if err := a.Err(); !errors.Is(err, unix.ENETDOWN) {
			t.Errorf("Err = %v, want ENETDOWN", err)
		}
		if p.Wait(0); p.Ready(i) {
			t.Errorf("still %#x after Err: a loop would spin", p.Events(i))
		}
		if n, err := a.Send([][]byte{makeFrame(60, 1)}); n != 0 || err == nil {
			t.Errorf("Send on a vanished interface: %d, %v", n, err)
		}
		for range 2 {
			if err := a.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if _, err := a.Receive(make([]Frame, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive after Close: %v", err)
		}
		if _, err := a.Send(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
		if _, err := OpenFrameConn("a", FrameOptions{}); err == nil {
			t.Error("OpenFrameConn of an interface that is gone succeeded")
		}
	})
}

// TestDisableOffload sends segmented datagrams out of a and looks at the frames that b gets.
func TestDisableOffload(t *testing.T) {
	for _, disable := range []bool{false, true} {
		var partial, long, total int
		inNamespace(t, func() {
			la, err := netlink.LinkByName("a")
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(la, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}); err != nil {
				t.Fatal(err)
			}
			if disable {
				if err := DisableOffload("a"); err != nil {
					t.Fatal(err)
				}
			}
			// A static neighbour instead of a second host: datagrams need no answer.
			if err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: la.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: net.IPv4(192, 0, 2, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9},
			}); err != nil {
				t.Fatal(err)
			}
			c := openFrames(t, "b", FrameOptions{Promiscuous: true, EtherType: unix.ETH_P_IP})
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			// UDP_SEGMENT: one write of 8000 bytes, segments of 1000.
			if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, 1000); err != nil {
				t.Fatal(err)
			}
			if err := unix.Sendto(fd, make([]byte, 8000), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 2}}); err != nil {
				t.Fatal(err)
			}
			want := 1
			if disable {
				want = 8
			}
			data, frames := receiveN(t, c, want)
			for i := range data {
				total++
				if frames[i].PartialChecksum {
					partial++
				}
				if len(data[i]) > 1514 || frames[i].Truncated {
					long++
				}
			}
		})
		if t.Skipped() {
			return
		}
		t.Logf("disabled %v: %d frames, %d with partial checksum, %d too long", disable, total, partial, long)
		if disable && (partial > 0 || long > 0 || total != 8) {
			t.Errorf("with offload disabled: %d frames, %d with partial checksum, %d too long; want 8, 0, 0", total, partial, long)
		}
		if !disable && partial+long == 0 {
			t.Error("without DisableOffload all frames were finished: this test proves nothing")
		}
	}
	if err := DisableOffload("no-such-if"); err == nil {
		t.Error("DisableOffload of a missing interface succeeded")
	}
}

func TestFrameConnAllocs(t *testing.T) {
	inNamespace(t, func() {
		a := openFrames(t, "a", FrameOptions{EtherType: testEtherType})
		b := openFrames(t, "b", FrameOptions{EtherType: testEtherType})
		out := [][]byte{makeFrame(60, 1), makeFrame(60, 2)}
		in := make([]Frame, 16)
		if n := testing.AllocsPerRun(200, func() {
			if _, err := a.Send(out); err != nil {
				t.Error(err)
			}
			if _, err := b.Receive(in); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations per batch, want 0", n)
		}
	})
}

// BenchmarkFrameSend and BenchmarkFrameReceive give the cost of one frame of
// 60 bytes on a veth pair, the device's included.
func BenchmarkFrameSend(b *testing.B) {
	inNamespace(b, func() {
		a := openFrames(b, "a", FrameOptions{EtherType: testEtherType})
		out := make([][]byte, frameBatch)
		for i := range out {
			out[i] = makeFrame(60, uint32(i))
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.Send(out); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*frameBatch), "ns/frame")
	})
}

func BenchmarkFrameReceive(b *testing.B) {
	inNamespace(b, func() {
		c := openFrames(b, "b", FrameOptions{EtherType: testEtherType})
		in := make([]Frame, frameBatch)
		benchmarkReceive(b, func() (int, error) { return c.Receive(in) })
	})
}

// BenchmarkFrameReceiveMmsg is the alternative to the ring: recvmmsg with a
// control message for the time.
func BenchmarkFrameReceiveMmsg(b *testing.B) {
	inNamespace(b, func() {
		ifi, err := net.InterfaceByName("b")
		if err != nil {
			b.Fatal(err)
		}
		const proto = testEtherType<<8&0xff00 | testEtherType>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			b.Fatal(err)
		}
		defer unix.Close(fd)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifi.Index}); err != nil {
			b.Fatal(err)
		}
		var msgs [frameBatch]mmsghdr
		var iovs [frameBatch]unix.Iovec
		var data [frameBatch][2048]byte
		var oob [frameBatch][64]byte
		for i := range msgs {
			iovs[i].Base = &data[i][0]
			iovs[i].SetLen(len(data[i]))
			msgs[i].hdr.Iov = &iovs[i]
			msgs[i].hdr.SetIovlen(1)
			msgs[i].hdr.Control = &oob[i][0]
		}
		benchmarkReceive(b, func() (int, error) {
			for i := range msgs {
				msgs[i].hdr.SetControllen(len(oob[i]))
			}
			n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs)),
				frameBatch, unix.MSG_DONTWAIT, 0, 0)
			if errno == unix.EAGAIN {
				return 0, nil
			} else if errno != 0 {
				return 0, errno
			}
			return int(n), nil
		})
	})
}

func benchmarkReceive(b *testing.B, receive func() (int, error)) {
	a := openFrames(b, "a", FrameOptions{EtherType: testEtherType})
	out := make([][]byte, 512)
	for i := range out {
		out[i] = makeFrame(60, uint32(i))
	}
	var sending, receiving time.Duration
	total := 0
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if _, err := a.Send(out); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		for {
			n, err := receive()
			if err != nil {
				b.Fatal(err)
			}
			if n == 0 {
				break
			}
			total += n
		}
		sending += middle.Sub(start)
		receiving += time.Since(middle)
	}
	b.ReportMetric(float64(sending.Nanoseconds())/float64(b.N*len(out)), "ns-to-send/frame") // with the kernel's half of receiving
	b.ReportMetric(float64(receiving.Nanoseconds())/float64(total), "ns-to-receive/frame")
	b.ReportMetric(float64(total)/float64(b.N*len(out)), "received/sent")
}
