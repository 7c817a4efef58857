// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Frame is one received Ethernet frame.
type Frame struct {
	// Data is the frame from its destination address on, VLAN tags included,
	// frame check sequence excluded. It is a view of memory shared with the
	// kernel: it may be written to, and is valid until the next Receive.
	Data []byte
	// Time is when the kernel took the frame from the device, in nanoseconds
	// of CLOCK_REALTIME since 1970. For a veth that is when the peer sent it.
	Time int64
	// Truncated reports a frame longer than the ring's slots: Data lacks the rest.
	Truncated bool
	// PartialChecksum reports a frame whose transport checksum was left to
	// hardware that a veth does not have. It is not a valid frame on any other
	// device; see [DisableOffload].
	PartialChecksum bool
	// Outgoing reports a frame that this host sends; see [FrameOptions]. Its
	// checksums are often unfinished, and it may be longer than the MTU.
	Outgoing bool
	// Tagged reports that Data begins with a VLAN tag behind the addresses.
	Tagged bool
}

// FrameOptions are the options of a FrameConn. The zero value receives what
// the interface would hand to the host's own protocols.
type FrameOptions struct {
	// RingFrames is how many frames the kernel can hold until they are read;
	// more are dropped and counted. Default 1024, which is 1.6 MB for an MTU
	// of 1500. The memory belongs to the kernel and is not swapped.
	RingFrames int
	// SnapLen is the longest frame received whole. Default: the interface's
	// MTU with Ethernet header and two VLAN tags.
	SnapLen int
	// EtherType selects a protocol, such as 0x0806 for ARP. Default: all.
	EtherType uint16
	// Promiscuous also receives frames addressed to others.
	Promiscuous bool
	// Outgoing also receives what this host sends on the interface, except by
	// the FrameConn itself, marked as such. The kernel does that only for all
	// protocols at once: with an EtherType there is nothing of it.
	Outgoing bool
	// Filter, a program of classic BPF that sees the frame from its
	// destination address on, selects frames. Default: all.
	Filter []bpf.RawInstruction
}

// FrameStats counts what became of the frames of a FrameConn.
type FrameStats struct {
	Received uint64 // put into the ring
	Dropped  uint64 // found the ring full
}

// FrameConn sends and receives Ethernet frames on one interface, in batches
// and without allocation: a ring shared with the kernel one way, sendmmsg(2)
// the other way. It never blocks; wait for FD with a [Poller].
//
// One goroutine may receive while another sends.
type FrameConn struct {
	fd    int
	ifi   net.Interface
	ring  *ring
	stats FrameStats

	msgs [frameBatch]mmsghdr // of Send
	iovs [frameBatch]unix.Iovec

	closed atomic.Bool
}

// frameBatch is how many frames go into one sendmmsg. Beyond 32 the gain is in
// the noise; 64 covers the batches that a ring gives.
const frameBatch = 64

// OpenFrameConn opens the interface ifname of the calling thread's network
// namespace; afterwards the FrameConn can be used from any thread. It needs
// CAP_NET_RAW in the user namespace that owns that network namespace.
func OpenFrameConn(ifname string, o FrameOptions) (*FrameConn, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", ifname, err)
	}
	// Protocol 0 receives nothing yet, so that no frame comes before the
	// filter is in place; bind sets the protocol.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("packet socket on %s needs CAP_NET_RAW: %w", ifname, err)
	} else if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", ifname, err)
	}
	c := &FrameConn{fd: fd, ifi: *ifi}
	if err := c.setup(o); err != nil {
		c.Close()
		return nil, fmt.Errorf("packet socket on %s: %w", ifname, err)
	}
	runtime.SetFinalizer(c, (*FrameConn).Close)
	return c, nil
}

func (c *FrameConn) setup(o FrameOptions) error {
	if o.RingFrames <= 0 {
		o.RingFrames = 1024
	}
	if o.SnapLen <= 0 {
		o.SnapLen = c.ifi.MTU + 14 + 2*vlanTagLen
	}
	if o.EtherType == 0 {
		o.EtherType = unix.ETH_P_ALL
	}
	if !o.Outgoing {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("set PACKET_IGNORE_OUTGOING: %w", err)
		}
	}
	// Without a user of timestamps the kernel stamps a frame when it reaches
	// the ring, with one when it enters the device: some µs earlier.
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("set SO_TIMESTAMPNS: %w", err)
	}
	if o.Filter != nil {
		if err := AttachFilter(c.fd, o.Filter); err != nil {
			return err
		}
	}
	var err error
	if c.ring, err = newRing(c.fd, o.RingFrames, o.SnapLen); err != nil {
		return err
	}
	if o.Promiscuous {
		mreq := unix.PacketMreq{Ifindex: int32(c.ifi.Index), Type: unix.PACKET_MR_PROMISC}
		if err := unix.SetsockoptPacketMreq(c.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &mreq); err != nil {
			return fmt.Errorf("set promiscuous: %w", err)
		}
	}
	sa := unix.SockaddrLinklayer{Protocol: o.EtherType<<8 | o.EtherType>>8, Ifindex: c.ifi.Index}
	if err := unix.Bind(c.fd, &sa); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	for i := range c.msgs {
		c.msgs[i].hdr.Iov = &c.iovs[i]
		c.msgs[i].hdr.SetIovlen(1)
	}
	return nil
}

// FD is the descriptor to poll: readable when frames wait, writable when the
// device accepts frames, errored when the interface went down or away (ask
// [FrameConn.Err], which also clears the condition).
func (c *FrameConn) FD() int { return c.fd }

// Interface describes the interface as it was when the FrameConn was opened.
func (c *FrameConn) Interface() net.Interface { return c.ifi }

// Receive fills frames with the frames that wait and returns how many they
// are, 0 when there are none. The views of the previous Receive end here.
func (c *FrameConn) Receive(frames []Frame) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	return c.ring.read(frames), nil
}

// Release ends the views of the last Receive before the next one, so that the
// kernel can use their slots.
func (c *FrameConn) Release() { c.ring.release() }

// Send sends frames, each from its destination address on, and returns how
// many the device took. When they are not all of them, err says why frame n
// was refused; the caller may skip it and go on. [unix.EAGAIN] and
// [unix.ENOBUFS] mean that the device's queue is full.
func (c *FrameConn) Send(frames [][]byte) (n int, err error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	for n < len(frames) {
		batch := frames[n:min(n+frameBatch, len(frames))]
		for i, f := range batch {
			c.iovs[i].Base = unsafe.SliceData(f)
			c.iovs[i].SetLen(len(f))
		}
		sent, errno := sendmmsg(c.fd, c.msgs[:len(batch)])
		if errno != 0 {
			return n, fmt.Errorf("send frame on %s: %w", c.ifi.Name, errno)
		}
		n += sent // fewer than asked: the next call reports why
	}
	return n, nil
}

// Err returns and clears the pending error, such as [unix.ENETDOWN] when the
// interface went down.
func (c *FrameConn) Err() error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	var pending int32
	errno := getsockopt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR, unsafe.Pointer(&pending), unsafe.Sizeof(pending))
	if errno == 0 {
		errno = unix.Errno(pending)
	}
	if errno != 0 {
		return fmt.Errorf("interface %s: %w", c.ifi.Name, errno)
	}
	return nil
}

// Stats returns the counts since the FrameConn was opened. It belongs to the
// goroutine that receives.
func (c *FrameConn) Stats() (FrameStats, error) {
	if c.closed.Load() {
		return c.stats, net.ErrClosed
	}
	var s unix.TpacketStats
	if errno := getsockopt(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS, unsafe.Pointer(&s), unsafe.Sizeof(s)); errno != 0 { // reading resets it
		return c.stats, fmt.Errorf("statistics of %s: %w", c.ifi.Name, errno)
	}
	c.stats.Received += uint64(s.Packets - s.Drops) // Packets counts the dropped ones too
	c.stats.Dropped += uint64(s.Drops)
	return c.stats, nil
}

// Close closes the socket and unmaps the ring: no view of a Frame may be
// touched afterwards, so only the goroutine that receives calls it, while no
// other sends. It is idempotent.
func (c *FrameConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	runtime.SetFinalizer(c, nil)
	var err error
	if c.ring != nil {
		err = c.ring.close()
	}
	return errors.Join(err, unix.Close(c.fd))
}

// ethtool requests, linux/ethtool.h: each takes a struct ethtool_value.
const (
	ethtoolSetTxChecksum = 0x17
	ethtoolSetTSO        = 0x1f
	ethtoolSetGSO        = 0x24
	ethtoolSetGRO        = 0x2c
)

// DisableOffload makes the interface ifname of the calling thread's network
// namespace send finished frames: checksums computed, no longer than its MTU,
// and none of those it receives merged.
//
// A veth pretends to have hardware for all of that, because a frame that stays
// in the machine needs none of it. Whoever reads frames from one end with a
// FrameConn must therefore call this for the other end, where they are made.
func DisableOffload(ifname string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("disable offload of %s: %w", ifname, err)
	}
	defer unix.Close(fd)
	// Checksums last: the kernel refuses nothing then, since segmentation depends on them.
	for _, cmd := range []uint32{ethtoolSetTSO, ethtoolSetGSO, ethtoolSetGRO, ethtoolSetTxChecksum} {
		value := struct{ cmd, data uint32 }{cmd: cmd}
		var req struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [24 - unsafe.Sizeof(uintptr(0))]byte // struct ifreq is 40 bytes
		}
		if len(ifname) >= len(req.name) {
			return fmt.Errorf("disable offload of %s: interface name too long", ifname)
		}
		copy(req.name[:], ifname)
		req.data = unsafe.Pointer(&value)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		runtime.KeepAlive(&value)
		if errno != 0 && errno != unix.EOPNOTSUPP {
			return fmt.Errorf("disable offload of %s: ethtool request %#x: %w", ifname, cmd, errno)
		}
	}
	return nil
}
