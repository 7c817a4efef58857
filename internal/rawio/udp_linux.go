// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UDPOptions are the options of a [UDPConn]. The zero value is a socket of both versions of IP on a port that the
// kernel chooses.
type UDPOptions struct {
	// Local is where to receive, and the source of what is sent. The unspecified IPv6 address, and no address, are
	// both versions of IP (IPv4 alone where the kernel has no IPv6). Port 0 lets the kernel choose.
	Local netip.AddrPort
	// ReceiveBuffer and SendBuffer are the sizes of the kernel's buffers in bytes; a datagram costs some hundred more
	// than it has. Without CAP_NET_ADMIN the kernel grants no more than net.core.rmem_max and wmem_max.
	// Default 0: the kernel's.
	ReceiveBuffer, SendBuffer int
	// Mark marks what is sent (SO_MARK), for which the kernel wants CAP_NET_RAW, before Linux 5.17
	// CAP_NET_ADMIN. Default 0: no mark.
	Mark uint32
}

// Outgoing is a datagram to send.
type Outgoing struct {
	// To is where it goes: IPv4 (also in its IPv6-mapped form) or IPv6, link-local with a zone.
	To netip.AddrPort
	// Head and Data, one after the other, are the payload. Either may be empty.
	Head, Data []byte
}

// Incoming is a received datagram.
type Incoming struct {
	// From is the sender; an IPv4 address comes as such, not in its IPv6-mapped form.
	From netip.AddrPort
	// Data is the payload, a view that is valid until the next Receive. It may be written to.
	Data []byte
}

// SendError says that one item of a batch was not sent.
type SendError struct {
	Index int        // of the item in the batch
	Errno unix.Errno // why
}

// Limits of merged datagrams, UDP_SEGMENT in udp(7).
const (
	maxSegments      = 64    // UDP_MAX_SEGMENTS until Linux 6.9, 128 since
	maxMerged        = 65000 // bytes: with its headers it must fit an IP packet
	maxMergedPayload = 1400  // bytes of each: the kernel merges none that do not fit the MTU
	segmentControl   = unix.SizeofCmsghdr + 8
)

// Sizes of what one system call works on.
const (
	udpMessages = BatchSize
	udpIovecs   = 512
	udpBuffers  = 32
	udpBuffer   = 1 << 16 // no datagram is longer, merged or not
)

// UDPConn is a UDP socket that sends and receives in batches without allocation. Datagrams of one length that follow
// each other to one place cross the kernel as one packet, which only the device, or the receiving
// socket, takes apart (GSO and GRO in udp(7)). Path MTU discovery is off: what exceeds the MTU goes in
// fragments.
//
// It never blocks; wait for FD with a [Poller]. One goroutine may receive while another sends.
type UDPConn struct {
	fd     int
	v4     bool // a socket of IPv4 alone
	tx     *udpSender
	rx     *udpReceiver
	drops  dropCounter
	closed atomic.Bool
}

type udpSender struct {
	gso    bool
	zones  zones
	failed []SendError

	hdrs   [udpMessages]mmsghdr
	names  [udpMessages]unix.RawSockaddrInet6
	ctls   [udpMessages][segmentControl]byte
	counts [udpMessages]int // of datagrams in a message
	iovs   [udpIovecs]unix.Iovec
}

type udpReceiver struct {
	zones zones
	mem   []byte // udpBuffers of udpBuffer bytes; the kernel provides pages for what is used of them

	hdrs  [udpBuffers]mmsghdr
	names [udpBuffers]unix.RawSockaddrInet6
	ctls  [udpBuffers][64]byte
	iovs  [udpBuffers]unix.Iovec

	// Messages [next, n) are received and not handed out, the first of them from offset on.
	next, n, offset int
}

// OpenUDP opens a socket in the calling thread's network namespace; afterwards the UDPConn can be used from any thread.
func OpenUDP(o UDPOptions) (*UDPConn, error) {
	local := o.Local
	if !local.Addr().IsValid() {
		local = netip.AddrPortFrom(netip.IPv6Unspecified(), local.Port())
	}
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	open := func(family int) (int, error) {
		return unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	}
	family := unix.AF_INET6
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := open(family)
	if err == unix.EAFNOSUPPORT && local.Addr() == netip.IPv6Unspecified() {
		local = netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port())
		fd, err = open(unix.AF_INET)
	}
	if err != nil {
		return nil, fmt.Errorf("open UDP socket for %v: %w", local, err)
	}
	c := &UDPConn{fd: fd, v4: local.Addr().Is4(), tx: new(udpSender), rx: newUDPReceiver()}
	if err := c.configure(o, local); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("UDP socket on %v: %w", local, err)
	}
	runtime.SetFinalizer(c, (*UDPConn).Close)
	return c, nil
}

func (c *UDPConn) configure(o UDPOptions, local netip.AddrPort) error {
	set := func(level, opt, value int) error { return unix.SetsockoptInt(c.fd, level, opt, value) }
	if !c.v4 {
		only := 0
		if !local.Addr().IsUnspecified() {
			only = 1
		}
		if err := set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return fmt.Errorf("set IPV6_V6ONLY: %w", err)
		}
		if err := set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT); err != nil {
			return fmt.Errorf("switch path MTU discovery off: %w", err)
		}
	}
	// A socket of IPv6 has options of IPv4 as well, for when it sends such.
	if err := set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT); err != nil {
		return fmt.Errorf("switch path MTU discovery off: %w", err)
	}
	if err := setBuffers(c.fd, o.ReceiveBuffer, o.SendBuffer); err != nil {
		return err
	}
	if o.Mark != 0 {
		if err := set(unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)); err != nil {
			return fmt.Errorf("set mark %#x: %w", o.Mark, err)
		}
	}
	// Without merging, before Linux 5.0 and 4.18, all works as well, but slower.
	_ = set(unix.SOL_UDP, unix.UDP_GRO, 1)
	_, err := unix.GetsockoptInt(c.fd, unix.SOL_UDP, unix.UDP_SEGMENT)
	c.tx.gso = err == nil
	if err := unix.Bind(c.fd, sockaddr(local)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// setBuffers sets the sizes of a socket's buffers that are not 0, as far as the kernel grants them.
func setBuffers(fd, receive, send int) error {
	for _, b := range [...]struct {
		size, force, plain int
		name               string
	}{
		{receive, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, "receive"},
		{send, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, "send"},
	} {
		if b.size <= 0 || unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.force, b.size) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.plain, b.size); err != nil {
			return fmt.Errorf("set %s buffer to %d: %w", b.name, b.size, err)
		}
	}
	return nil
}

// FD is the descriptor to poll: readable when datagrams wait, writable when the send buffer has room.
func (c *UDPConn) FD() int { return c.fd }

// LocalAddr is where the socket receives; the address is unspecified if it does on all.
func (c *UDPConn) LocalAddr() netip.AddrPort {
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return fromSockaddr(sa)
}

// Send sends items in order. It returns how many it has dealt with: less than all when the
// send buffer is full, and then the caller may wait until FD is writable. What it has dealt with is
// sent, except what failed lists, in order; that slice is valid until the next Send. One that fails does not stop the others. An
// err is about the socket.
//
// To port 0, or to no address, an item fails with EINVAL; an IPv6 address that the socket cannot reach
// gives EAFNOSUPPORT.
func (c *UDPConn) Send(items []Outgoing) (n int, failed []SendError, err error) {
	if c.closed.Load() {
		return 0, nil, net.ErrClosed
	}
	s := c.tx
	s.failed = s.failed[:0]
	plain := 0       // items before are not merged
	doubted := false // because the kernel refused them merged
	for n < len(items) {
		sent := 0
		messages, errno := c.fill(items[n:], plain-n)
		if errno == 0 {
			sent, errno = sendmmsg(c.fd, s.hdrs[:messages])
		}
		switch {
		case errno == 0:
			if doubted && n < plain {
				s.gso = false // one by one they go
			}
			for _, k := range s.counts[:sent] {
				n += k
			}
		case errno == unix.EAGAIN:
			return n, s.failed, nil
		case s.counts[0] > 1 && refusesMerged(errno):
			plain = n + s.counts[0]
			// A device with a small MTU says nothing about the others.
			doubted = errno != unix.EMSGSIZE
		default:
			if zone := items[n].To.Addr().Zone(); zone != "" {
				s.zones.forget(zone)
			}
			for range s.counts[0] {
				s.failed = append(s.failed, SendError{n, errno})
				n++
			}
		}
	}
	return n, s.failed, nil
}

// refusesMerged tells whether an error may be about merging: the device computes no checksums (EIO), a tunnel is in the way
// (EIO), or the datagrams do not fit the MTU (EMSGSIZE, EINVAL in older kernels).
func refusesMerged(errno unix.Errno) bool {
	return errno == unix.EIO || errno == unix.EMSGSIZE || errno == unix.EINVAL || errno == unix.EOPNOTSUPP
}

// fill makes messages of the first items, those behind the first plain ones merged where they can be. An errno is about the
// first item.
func (c *UDPConn) fill(items []Outgoing, plain int) (messages int, errno unix.Errno) {
	s := c.tx
	iovs := 0
	for i := 0; i < len(items) && messages < udpMessages && iovs+2 <= udpIovecs; messages++ {
		to := items[i].To
		nameLen, errno := c.setName(&s.names[messages], to)
		if errno != 0 && i > 0 {
			break // the next call begins with it
		} else if errno != 0 {
			s.counts[0] = 1
			return 0, errno
		}
		h := &s.hdrs[messages].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.names[messages])), Namelen: nameLen, Iov: &s.iovs[iovs]}
		first := iovs
		size := s.add(&iovs, &items[i])
		count := 1
		if s.gso && i >= plain && size > 0 && size <= maxMergedPayload {
			total := size
			for last := size; last == size && i+count < len(items) && count < maxSegments && iovs+2 <= udpIovecs; count++ {
				next := &items[i+count]
				last = len(next.Head) + len(next.Data)
				if last == 0 || last > size || total+last > maxMerged || next.To != to {
					break
				}
				total += s.add(&iovs, next)
			}
		}
		h.SetIovlen(iovs - first)
		if count > 1 {
			ctl, d := control(s.ctls[messages][:0], unix.SOL_UDP, unix.UDP_SEGMENT, 2)
			binary.NativeEndian.PutUint16(d, uint16(size))
			h.Control = &ctl[0]
			h.SetControllen(len(ctl))
		}
		s.counts[messages] = count
		i += count
	}
	return messages, 0
}

// add appends the vectors of an item and returns its length.
func (s *udpSender) add(iovs *int, item *Outgoing) int {
	for _, b := range [...][]byte{item.Head, item.Data} {
		if len(b) > 0 {
			v := &s.iovs[*iovs]
			v.Base = unsafe.SliceData(b)
			v.SetLen(len(b))
			*iovs++
		}
	}
	return len(item.Head) + len(item.Data)
}

// setName writes where a message goes, in the form that the socket understands.
func (c *UDPConn) setName(name *unix.RawSockaddrInet6, to netip.AddrPort) (uint32, unix.Errno) {
	addr := to.Addr()
	if !addr.IsValid() || to.Port() == 0 {
		return 0, unix.EINVAL
	}
	if c.v4 {
		if addr = addr.Unmap(); !addr.Is4() {
			return 0, unix.EAFNOSUPPORT
		}
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr.As4()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], to.Port())
		return unix.SizeofSockaddrInet4, 0
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: addr.As16()} // IPv4 becomes IPv6-mapped
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&name.Port))[:], to.Port())
	if zone := addr.Zone(); zone != "" {
		index, err := c.tx.zones.number(zone)
		if err != nil {
			return 0, unix.ENODEV
		}
		name.Scope_id = index
	}
	return unix.SizeofSockaddrInet6, 0
}

// sendmmsg sends messages and returns how many. An errno is about the first of them. It does not wait, so that the runtime
// need not know of it: telling it costs as much as a small packet.
func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(msgs))),
			uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func newUDPReceiver() *udpReceiver {
	r := &udpReceiver{mem: make([]byte, udpBuffers*udpBuffer)}
	for i := range r.hdrs {
		r.iovs[i].Base = &r.mem[i*udpBuffer]
		r.iovs[i].SetLen(udpBuffer)
		r.reset(i)
	}
	return r
}

// reset prepares message i for the kernel, which overwrites the header with what it has received.
func (r *udpReceiver) reset(i int) {
	h := &r.hdrs[i].hdr
	*h = unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&r.names[i])), Namelen: unix.SizeofSockaddrInet6,
		Iov: &r.iovs[i], Control: &r.ctls[i][0],
	}
	h.SetIovlen(1)
	h.SetControllen(len(r.ctls[i]))
}

// Receive fills batch with datagrams that wait and returns how many they are, 0 when there are none. The views of
// the previous Receive end here. When it fills the whole batch, others may have left the kernel already, and FD is
// not readable for them: call again before waiting.
func (c *UDPConn) Receive(batch []Incoming) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	r := c.rx
	if r.next == r.n { // else the views of this call come from what is there
		for i := range r.n {
			r.reset(i)
		}
		r.next, r.n, r.offset = 0, 0, 0
		var n uintptr
		errno := unix.EINTR
		for errno == unix.EINTR {
			n, _, errno = unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&r.hdrs[0])),
				udpBuffers, unix.MSG_DONTWAIT, 0, 0)
		}
		if errno == unix.EAGAIN {
			return 0, nil
		} else if errno != 0 {
			return 0, fmt.Errorf("receive datagrams: %w", errno)
		}
		r.n = int(n)
	}
	n := 0
	for n < len(batch) && r.next < r.n {
		n += r.split(c.fd, batch[n:])
	}
	return n, nil
}

// split hands out what message next has left, as far as there is room.
func (r *udpReceiver) split(fd int, batch []Incoming) int {
	i := r.next
	length := int(r.hdrs[i].n)
	data := r.mem[i*udpBuffer:][:length]
	segment := r.segment(i)
	if segment <= 0 {
		segment = length
	}
	from := r.zones.addrPort(fd, &r.names[i])
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	for n := range batch {
		end := min(r.offset+segment, length)
		batch[n] = Incoming{From: from, Data: data[r.offset:end:end]}
		if r.offset = end; end == length {
			r.next++
			r.offset = 0
			return n + 1
		}
	}
	return len(batch)
}

// segment is the length of the datagrams that message i was merged from, 0 if it was not.
func (r *udpReceiver) segment(i int) int {
	b := r.ctls[i][:min(int(r.hdrs[i].hdr.Controllen), len(r.ctls[i]))]
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < unix.CmsgLen(0) || n > len(b) {
			break
		}
		if d := b[unix.CmsgLen(0):n]; h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(d) >= 4 {
			return int(binary.NativeEndian.Uint32(d))
		}
		b = b[min(len(b), unix.CmsgSpace(n-unix.CmsgLen(0))):]
	}
	return 0
}

// Dropped is how many datagrams the kernel has dropped since the socket was opened, for want of room in the receive buffer or
// for a wrong checksum; merged ones may count as one. It belongs to the goroutine that receives.
func (c *UDPConn) Dropped() (uint64, error) {
	if c.closed.Load() {
		return c.drops.total, net.ErrClosed
	}
	q, err := socketQueue(c.fd)
	if err != nil {
		return c.drops.total, err
	}
	return c.drops.add(q.Dropped), nil
}

// dropCounter makes of the kernel's 32-bit count one that does not wrap.
type dropCounter struct {
	total uint64
	last  uint32
}

func (d *dropCounter) add(now uint32) uint64 {
	d.total += uint64(now - d.last)
	d.last = now
	return d.total
}

// Close closes the socket; nothing else may be under way. It is idempotent.
func (c *UDPConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	runtime.SetFinalizer(c, nil)
	if err := unix.Close(c.fd); err != nil {
		return fmt.Errorf("close UDP socket: %w", err)
	}
	return nil
}
