// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFilterBroadcastKernel lets the kernel run the filter where it has ancillary data: over a veth pair, with frames
// of others and of the own host.
func TestFilterBroadcastKernel(t *testing.T) {
	inNamespace(t, func() {
		ifi, err := net.InterfaceByName("b")
		if err != nil {
			t.Fatal(err)
		}
		const mark = 77
		own := [6]byte(ifi.HardwareAddr)
		a := openFrames(t, "a", FrameOptions{})
		marked := openFrames(t, "b", FrameOptions{EtherType: testEtherType})
		if err := unix.SetsockoptInt(marked.FD(), unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			t.Fatal(err)
		}
		unmarked := openFrames(t, "b", FrameOptions{EtherType: testEtherType})
		filter := FilterBroadcast([]PortRange{{5064, 5065}}, BroadcastFilter{Mark: mark, Announcements: true})
		watch := openFrames(t, "b", FrameOptions{Outgoing: true, Filter: filter})

		// Frames are told apart by their length.
		frame := func(from string, typ uint16, n int) []byte {
			return append(ether(everybody, from, typ, datagram4(0, 0, 17, 5064)), make([]byte, n)...)
		}
		tagged := append([]byte{}, frame(host1, 0x0800, 1)...)
		tagged = append(tagged[:12], append([]byte{0x81, 0, 0, 42}, tagged[12:]...)...)
		for _, s := range []struct {
			c     *FrameConn
			frame []byte
		}{
			{a, tagged},
			{marked, frame(string(own[:]), 0x0800, 3)},
			{a, frame(host1, 0x0806, 4)},
			{a, frame(host1, 0x0800, 5)},
			{unmarked, frame(string(own[:]), 0x0800, 6)},
			{a, frame(host1, 0x88b5, 7)},
		} {
			if n, err := s.c.Send([][]byte{s.frame}); n != 1 || err != nil {
				t.Fatalf("send %x: %v", s.frame, err)
			}
		}
		data, frames := receiveN(t, watch, 3)
		for i, want := range []struct {
			frame    []byte
			outgoing bool
		}{
			{frame(host1, 0x0800, 5), false},
			{frame(string(own[:]), 0x0800, 6), true},
			{frame(host1, 0x88b5, 7), false},
		} {
			if !bytes.Equal(data[i], want.frame) || frames[i].Outgoing != want.outgoing {
				t.Errorf("frame %d: %x, outgoing %v; want %x, %v", i, data[i], frames[i].Outgoing, want.frame, want.outgoing)
			}
		}
		if n, err := watch.Receive(make([]Frame, 4)); n != 0 || err != nil {
			t.Errorf("%d frames too many, %v", n, err)
		}
	})
}

// BenchmarkFilterBroadcast gives what the filter costs for one frame that it refuses at its last step, beside
// what the kernel does with a frame anyway: compare with BenchmarkFrameSend.
func BenchmarkFilterBroadcast(b *testing.B) {
	inNamespace(b, func() {
		var ranges []PortRange
		for lo := range uint16(maxBroadcastRanges) {
			ranges = append(ranges, PortRange{1000 + 10*lo, 1001 + 10*lo})
		}
		a := openFrames(b, "a", FrameOptions{EtherType: testEtherType})
		openFrames(b, "b", FrameOptions{Filter: FilterBroadcast(ranges, BroadcastFilter{Mark: 1, IPv4Groups: true, IPv6Groups: true})})
		out := make([][]byte, frameBatch)
		for i := range out {
			out[i] = append(ether(everybody, host1, 0x0800, datagram4(0, 0, 17, 1005)), make([]byte, 18)...)
			binary.BigEndian.PutUint16(out[i][16:], 46)
		}
		start := time.Now()
		for b.Loop() {
			if _, err := a.Send(out); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N*len(out)), "ns/frame")
	})
}
