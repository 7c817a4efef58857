// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is the receive side of a FrameConn: memory shared with the kernel, in
// the TPACKET_V2 format (Documentation/networking/packet_mmap.rst), one slot
// per frame:
//
//	| header 32 | sockaddr_ll 20 | at least 14 free | frame ... |
//	^ slot                                          ^ slot + tp_mac
//
// The first word of the header says whose turn it is.
//
// Why version 2 and not 3: version 3 packs frames into blocks and hands over a
// block when it is full or its timer, of at least a millisecond, ends. That is
// a millisecond of latency which a wire of 1 ms cannot have. Version 2 wakes
// the reader with the first frame. Why not recvmmsg(2), which does so too: to
// take a frame of 60 bytes from the ring costs the reader 25 to 90 ns, with
// recvmmsg it is 0.9 to 1.1 µs, and the kernel's half is the same within the
// noise (BenchmarkFrameReceive and BenchmarkFrameReceiveMmsg).
type ring struct {
	mem       []byte
	slotSize  int
	perBlock  int
	blockSize int
	slots     int
	next      int // slot that the kernel fills next, as far as read
	held      int // slots before next that the reader still looks at
}

// Offsets in struct tpacket2_hdr, linux/if_packet.h.
const (
	tp2Status   = 0
	tp2Len      = 4
	tp2SnapLen  = 8
	tp2Mac      = 12
	tp2Sec      = 16
	tp2Nsec     = 20
	tp2VLANTCI  = 24
	tp2VLANTPID = 26
	tp2PktType  = 32 + 10 // sll_pkttype in the sockaddr_ll behind the header

	tp2DataOffset = 80 // where a frame's network header starts at the latest: TPACKET_ALIGN(52+16)
	vlanTagLen    = 4
)

// newRing asks the kernel for at least slots slots, each with room for frames of snapLen bytes.
func newRing(fd, slots, snapLen int) (*ring, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return nil, fmt.Errorf("set PACKET_VERSION: %w", err)
	}
	const align = 16 // TPACKET_ALIGNMENT
	r := &ring{slotSize: (tp2DataOffset + snapLen + align - 1) &^ (align - 1)}
	// A block is one physically contiguous allocation: small enough to be had
	// on a fragmented machine, large enough to waste little.
	r.blockSize = max(os.Getpagesize(), 1<<15)
	for r.blockSize < 4*r.slotSize {
		r.blockSize *= 2
	}
	r.perBlock = r.blockSize / r.slotSize
	blocks := (slots + r.perBlock - 1) / r.perBlock
	r.slots = blocks * r.perBlock
	req := unix.TpacketReq{
		Block_size: uint32(r.blockSize), Block_nr: uint32(blocks),
		Frame_size: uint32(r.slotSize), Frame_nr: uint32(r.slots),
	}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return nil, fmt.Errorf("receive ring of %d frames of %d bytes: %w", r.slots, r.slotSize, err)
	}
	var err error
	r.mem, err = unix.Mmap(fd, 0, blocks*r.blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map receive ring of %d bytes: %w", blocks*r.blockSize, err)
	}
	return r, nil
}

func (r *ring) slot(i int) []byte {
	off := i/r.perBlock*r.blockSize + i%r.perBlock*r.slotSize
	return r.mem[off : off+r.slotSize : off+r.slotSize]
}

// status is the word that passes a slot between kernel and reader. Slots are
// aligned to 16 bytes.
func status(slot []byte) *uint32 { return (*uint32)(unsafe.Pointer(&slot[tp2Status])) }

// release gives the slots of the last read back to the kernel.
func (r *ring) release() {
	first := r.next - r.held
	if first < 0 {
		first += r.slots
	}
	for ; r.held > 0; r.held-- {
		atomic.StoreUint32(status(r.slot(first)), unix.TP_STATUS_KERNEL)
		if first++; first == r.slots {
			first = 0
		}
	}
}

// read fills frames with the next frames in the ring, after releasing those of
// the last read.
func (r *ring) read(frames []Frame) int {
	r.release()
	n := 0
	for n < len(frames) && r.held < r.slots {
		s := r.slot(r.next)
		st := atomic.LoadUint32(status(s))
		if st&unix.TP_STATUS_USER == 0 {
			break
		}
		decodeSlot(&frames[n], s, st)
		n++
		r.held++
		if r.next++; r.next == r.slots {
			r.next = 0
		}
	}
	return n
}

// decodeSlot makes f a view of the frame in a slot. The tag of a VLAN, which
// the kernel keeps beside the frame, is put back in its place.
func decodeSlot(f *Frame, s []byte, st uint32) {
	ne := binary.NativeEndian
	mac := int(ne.Uint16(s[tp2Mac:]))
	end := min(mac+int(ne.Uint32(s[tp2SnapLen:])), len(s))
	data := s[min(mac, end):end:end]
	f.Tagged = st&unix.TP_STATUS_VLAN_VALID != 0
	if f.Tagged && len(data) >= 12 && mac >= vlanTagLen {
		tpid := uint16(unix.ETH_P_8021Q)
		if st&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			tpid = ne.Uint16(s[tp2VLANTPID:])
		}
		tagged := s[mac-vlanTagLen : end : end]
		copy(tagged, data[:12])
		binary.BigEndian.PutUint16(tagged[12:], tpid)
		binary.BigEndian.PutUint16(tagged[14:], ne.Uint16(s[tp2VLANTCI:]))
		data = tagged
	} else if len(data) >= 14 {
		// A tag that this host put into the frame itself is still there on the way out.
		tpid := binary.BigEndian.Uint16(data[12:])
		f.Tagged = f.Tagged || tpid == unix.ETH_P_8021Q || tpid == unix.ETH_P_8021AD
	}
	f.Data = data
	f.Outgoing = s[tp2PktType] == unix.PACKET_OUTGOING
	f.Time = int64(ne.Uint32(s[tp2Sec:]))*1e9 + int64(ne.Uint32(s[tp2Nsec:]))
	f.Truncated = ne.Uint32(s[tp2Len:]) > ne.Uint32(s[tp2SnapLen:])
	f.PartialChecksum = st&unix.TP_STATUS_CSUMNOTREADY != 0
}

func (r *ring) close() error { return unix.Munmap(r.mem) }
