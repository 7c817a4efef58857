// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Room for control messages. Sending needs at most TTL, TOS, packet info, mark
// and stamp request (five of up to 40 bytes), receiving a stamp (64), hop limit
// and class (24 each), packet info (40) and an extended error with its offender (72).
const controlSize = 256

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// vector is the memory that one sendmmsg or recvmmsg call works on.
type vector struct {
	hdrs  [BatchSize]mmsghdr
	iovs  [BatchSize]unix.Iovec
	names [BatchSize]unix.RawSockaddrInet6 // large enough for IPv4, too
	ctls  [BatchSize][controlSize]byte
}

// socket is a kernel socket; see [Conn].
type socket struct {
	fd       int
	version  int
	kind     Kind
	stamping int        // SO_TIMESTAMPING flags to restore in ResetStamps
	hint     netip.Addr // of the last messages, see hintSource
	rx, tx   *vector
	zones    zones
	onClose  func()
}

var _ Conn = (*socket)(nil)

// openSocket opens the socket that s describes.
func openSocket(s Spec) (*socket, error) {
	family := unix.AF_INET
	switch s.Version {
	case 4:
	case 6:
		family = unix.AF_INET6
	default:
		return nil, fmt.Errorf("open socket: IP version %d is neither 4 nor 6", s.Version)
	}
	typ, proto := unix.SOCK_RAW, s.Protocol
	switch s.Kind {
	case Link:
		// For a datagram the kernel writes the Ethernet header, with the interface's own address. Protocol
		// 0 receives nothing. PACKET_QDISC_BYPASS is left off: over a veth it gains nothing, and
		// nobody could capture what is sent.
		family, typ, proto = unix.AF_PACKET, unix.SOCK_DGRAM, 0
	case RawHeader:
		proto = unix.IPPROTO_RAW
	case Raw:
	case Datagram:
		typ = unix.SOCK_DGRAM
	default:
		return nil, fmt.Errorf("open socket: unknown kind %d", s.Kind)
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		if s.Kind == Link {
			return nil, fmt.Errorf("open packet socket: %w", err)
		}
		return nil, fmt.Errorf("open IPv%d socket of type %d, protocol %d: %w", s.Version, typ, proto, err)
	}
	c := &socket{fd: fd, version: s.Version, kind: s.Kind, tx: new(vector)}
	if !s.Kind.sends() {
		c.rx = new(vector)
	}
	if err := c.configure(s); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func (c *socket) configure(s Spec) error {
	set := func(level, opt, value int) error { return unix.SetsockoptInt(c.fd, level, opt, value) }
	// Without the filter in place before the first wait, a raw socket would queue
	// packets of others in the meantime.
	if s.Filter != nil {
		if err := c.SetFilter(s.Filter); err != nil {
			return err
		}
	}
	// Broadcast targets are legitimate; the kernel refuses them by default.
	if err := set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return fmt.Errorf("allow broadcast: %w", err)
	}
	// Departure stamps are asked for message by message: only the report is switched on here.
	// A system without them still works, with stamps of our own.
	c.stamping = unix.SOF_TIMESTAMPING_SOFTWARE | unix.SOF_TIMESTAMPING_OPT_ID | unix.SOF_TIMESTAMPING_OPT_TSONLY
	if set(unix.SOL_SOCKET, unix.SO_TIMESTAMPING_NEW, c.stamping) != nil {
		c.stamping = 0
	}
	if s.ReceiveBuffer > 0 {
		// Beyond net.core.rmem_max only a privileged process gets what it asks for.
		if set(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, s.ReceiveBuffer) != nil {
			if err := set(unix.SOL_SOCKET, unix.SO_RCVBUF, s.ReceiveBuffer); err != nil {
				return fmt.Errorf("set receive buffer to %d: %w", s.ReceiveBuffer, err)
			}
		}
	}
	if c.rx != nil {
		if err := set(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1); err != nil {
			return fmt.Errorf("switch receive time stamps on: %w", err)
		}
		var err error
		switch {
		case s.Version == 6:
			if err = set(unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1); err == nil {
				err = set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
			}
		case s.Kind == Datagram:
			if err = set(unix.IPPROTO_IP, unix.IP_RECVTTL, 1); err == nil {
				err = set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
			}
		}
		if err != nil {
			return fmt.Errorf("ask for the hop limit of arrivals: %w", err)
		}
		if s.ReceiveLocal {
			if s.Version == 6 {
				err = set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			} else {
				err = set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
			if err != nil {
				return fmt.Errorf("ask for the address of arrivals: %w", err)
			}
		}
	}
	if s.Version == 6 && s.Kind == Datagram {
		// One socket, one version: an IPv4-mapped target has no business here.
		if err := set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("restrict to IPv6: %w", err)
		}
	}
	if !s.Kind.sends() {
		// A probe longer than the path's MTU is fragmented, as its size says; path MTU
		// discovery would make its fate depend on what other programs learned.
		var err error
		if s.Version == 4 {
			err = set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		} else {
			err = set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
		}
		if err != nil {
			return fmt.Errorf("switch path MTU discovery off: %w", err)
		}
	}
	if s.ReceiveErrors && s.Kind != Link { // which has nothing else than departure stamps there
		level, opt, ext := unix.IPPROTO_IP, unix.IP_RECVERR, unix.IP_RECVERR_RFC4884
		if s.Version == 6 {
			level, opt, ext = unix.IPPROTO_IPV6, unix.IPV6_RECVERR, unix.IPV6_RECVERR_RFC4884
		}
		if err := set(level, opt, 1); err != nil {
			return fmt.Errorf("switch the error queue on: %w", err)
		}
		_ = set(level, ext, 1) // Linux 5.9; without it there are no ICMP extensions
	}
	if s.Local.IsValid() && (s.Local.Port() != 0 || !s.Local.Addr().IsUnspecified()) {
		if err := unix.Bind(c.fd, sockaddr(s.Local)); err != nil {
			return fmt.Errorf("bind to %v: %w", s.Local, err)
		}
	}
	return nil
}

// sockaddr converts for the calls that are not hot.
func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	if zone := ap.Addr().Zone(); zone != "" {
		if index, err := zoneIndex(zone); err == nil {
			sa.ZoneId = uint32(index)
		}
	}
	return sa
}

// zoneIndex is the number of the interface that an IPv6 zone names: its name, or the number in decimal.
func zoneIndex(zone string) (int, error) {
	if n, err := strconv.ParseUint(zone, 10, 31); err == nil {
		return int(n), nil
	}
	return interfaceIndex(zone)
}

// interfaceIndex asks the kernel, with one ioctl; net.InterfaceByName dumps all interfaces.
func interfaceIndex(name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("interface %q: %w", name, unix.ENODEV)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("look up interface %q: %w", name, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, fmt.Errorf("interface %q: %w", name, err)
	}
	return int(ifr.Uint32()), nil
}

// setName writes ap where sendmmsg expects it and returns the length.
func setName(name *unix.RawSockaddrInet6, ap netip.AddrPort) (uint32, error) {
	addr := ap.Addr()
	if addr.Is4() {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr.As4()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], ap.Port())
		return unix.SizeofSockaddrInet4, nil
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: addr.As16()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&name.Port))[:], ap.Port())
	if zone := addr.Zone(); zone != "" {
		index, err := zoneIndex(zone)
		if err != nil {
			return 0, err
		}
		name.Scope_id = uint32(index)
	}
	return unix.SizeofSockaddrInet6, nil
}

// setLinkName writes where a packet socket shall send m, and returns the length.
func setLinkName(name *unix.RawSockaddrInet6, m *Message, version int) uint32 {
	sa := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(name))
	*sa = unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Ifindex: int32(m.IfIndex), Halen: uint8(len(m.Link))}
	etherType := uint16(unix.ETH_P_IP)
	if version == 6 {
		etherType = unix.ETH_P_IPV6
	}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Protocol))[:], etherType)
	copy(sa.Addr[:], m.Link[:])
	return unix.SizeofSockaddrLinklayer
}

// control appends one control message of n data bytes and returns them for filling.
func control(b []byte, level, typ int32, n int) ([]byte, []byte) {
	off := len(b)
	b = b[:off+unix.CmsgSpace(n)]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[off]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(n))
	return b, b[off+unix.CmsgLen(0):][:n]
}

// setControl writes the control messages that m needs.
func (c *socket) setControl(b []byte, m *Message) []byte {
	var d []byte
	header := c.kind.sends() // then Data carries the IP header's fields
	if !header && m.TTL != 0 {
		if c.version == 4 {
			b, d = control(b, unix.IPPROTO_IP, unix.IP_TTL, 4)
		} else {
			b, d = control(b, unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, 4)
		}
		binary.NativeEndian.PutUint32(d, uint32(m.TTL))
	}
	if !header && m.TOS != 0 {
		if c.version == 4 {
			b, d = control(b, unix.IPPROTO_IP, unix.IP_TOS, 4)
		} else {
			b, d = control(b, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 4)
		}
		binary.NativeEndian.PutUint32(d, uint32(m.TOS))
	}
	if m.IfIndex != 0 && c.kind != Link || m.Source.IsValid() && !header {
		if c.version == 4 {
			// struct in_pktinfo: int ifindex, in_addr source, in_addr (unused)
			b, d = control(b, unix.IPPROTO_IP, unix.IP_PKTINFO, 12)
			clear(d)
			binary.NativeEndian.PutUint32(d, uint32(m.IfIndex))
			if !header && m.Source.Is4() {
				a := m.Source.As4()
				copy(d[4:], a[:])
			}
		} else {
			// struct in6_pktinfo: in6_addr source, unsigned ifindex
			b, d = control(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, 20)
			clear(d)
			if !header && m.Source.IsValid() {
				a := m.Source.As16()
				copy(d, a[:])
			}
			binary.NativeEndian.PutUint32(d[16:], uint32(m.IfIndex))
		}
	}
	if m.Mark != 0 {
		b, d = control(b, unix.SOL_SOCKET, unix.SO_MARK, 4)
		binary.NativeEndian.PutUint32(d, m.Mark)
	}
	if m.StampTX && c.stamping != 0 {
		b, d = control(b, unix.SOL_SOCKET, unix.SO_TIMESTAMPING_NEW, 4)
		binary.NativeEndian.PutUint32(d, unix.SOF_TIMESTAMPING_TX_SOFTWARE)
	}
	return b
}

// Send implements [Conn].
func (c *socket) Send(msgs []Message) (int, error) {
	sent := 0
	for sent < len(msgs) {
		n, err := c.send(msgs[sent:min(len(msgs), sent+BatchSize)])
		sent += n
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// hintSource binds the socket to the source that all of msgs name, or to none. What a header has does not
// change by it, only whether the kernel chooses a source of its own before it looks at the header.
func (c *socket) hintSource(msgs []Message) {
	src := msgs[0].Source
	for i := range msgs {
		if msgs[i].Source != src {
			src = netip.Addr{}
			break
		}
	}
	if src == c.hint {
		return
	}
	c.hint = src
	if src.Is6() && unix.Bind(c.fd, &unix.SockaddrInet6{Addr: src.As16()}) == nil {
		return
	}
	_ = unix.Bind(c.fd, &unix.SockaddrInet6{}) // nothing is lost but time
}

func (c *socket) send(msgs []Message) (int, error) {
	if c.kind == RawHeader && c.version == 6 {
		c.hintSource(msgs)
	}
	v := c.tx
	for i := range msgs {
		m := &msgs[i]
		h := &v.hdrs[i].hdr
		*h = unix.Msghdr{}
		var n uint32
		if c.kind == Link {
			n = setLinkName(&v.names[i], m, c.version)
		} else {
			var err error
			if n, err = setName(&v.names[i], m.Addr); err != nil {
				if i == 0 {
					return 0, err
				}
				msgs = msgs[:i] // the next call starts with the bad one
				break
			}
		}
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&v.names[i])), n
		if len(m.Data) > 0 {
			v.iovs[i].Base = &m.Data[0]
		}
		v.iovs[i].SetLen(len(m.Data))
		h.Iov = &v.iovs[i]
		h.SetIovlen(1)
		if ctl := c.setControl(v.ctls[i][:0], m); len(ctl) > 0 {
			h.Control = &v.ctls[i][0]
			h.SetControllen(len(ctl))
		}
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&v.hdrs[0])), uintptr(len(msgs)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Receive implements [Conn].
func (c *socket) Receive(msgs []Message) (int, error) { return c.receive(msgs, 0) }

// ReceiveErrors implements [Conn].
func (c *socket) ReceiveErrors(msgs []Message) (int, error) {
	return c.receive(msgs, unix.MSG_ERRQUEUE)
}

func (c *socket) receive(msgs []Message, flags int) (int, error) {
	if c.rx == nil { // a sender's error queue: departure stamps only
		c.rx = new(vector)
	}
	v := c.rx
	if len(msgs) > BatchSize {
		msgs = msgs[:BatchSize]
	}
	// A raw IPv4 packet has its addresses in its header.
	named := c.version == 6 || c.kind != Raw || flags != 0
	for i := range msgs {
		h := &v.hdrs[i].hdr
		*h = unix.Msghdr{Control: &v.ctls[i][0], Iov: &v.iovs[i]}
		h.SetControllen(controlSize)
		h.SetIovlen(1)
		if named {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&v.names[i])), unix.SizeofSockaddrInet6
		}
		v.iovs[i].Base = &msgs[i].Data[0]
		v.iovs[i].SetLen(len(msgs[i].Data))
	}
	for {
		r, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&v.hdrs[0])), uintptr(len(msgs)), uintptr(flags|unix.MSG_DONTWAIT), 0, 0)
		switch errno {
		case 0:
			for i := range msgs[:r] {
				c.take(v, i, &msgs[i], named)
			}
			return int(r), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, errno
		}
	}
}

// take copies what the kernel said about message i into m.
func (c *socket) take(v *vector, i int, m *Message, named bool) {
	h := &v.hdrs[i]
	m.N = min(int(h.n), len(m.Data))
	m.Truncated = h.hdr.Flags&unix.MSG_TRUNC != 0
	m.Time, m.TTL, m.TOS = 0, 0, 0
	m.Local = netip.Addr{}
	m.Failure = Failure{}
	m.Addr = netip.AddrPort{}
	if named && h.hdr.Namelen > 0 {
		m.Addr = c.zones.addrPort(c.fd, &v.names[i])
	}
	b := v.ctls[i][:min(int(h.hdr.Controllen), controlSize)]
	for len(b) >= unix.SizeofCmsghdr {
		ch := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(ch.Len)
		if n < unix.CmsgLen(0) || n > len(b) {
			break
		}
		c.takeControl(m, ch.Level, ch.Type, b[unix.CmsgLen(0):n])
		b = b[min(len(b), unix.CmsgSpace(n-unix.CmsgLen(0))):]
	}
}

func (c *socket) takeControl(m *Message, level, typ int32, d []byte) {
	switch {
	case level == unix.SOL_SOCKET && typ == unix.SO_TIMESTAMPNS_NEW && len(d) >= 16,
		// The first of three stamps is the software one.
		level == unix.SOL_SOCKET && typ == unix.SO_TIMESTAMPING_NEW && len(d) >= 16:
		if t := int64(binary.NativeEndian.Uint64(d))*1e9 + int64(binary.NativeEndian.Uint64(d[8:])); t != 0 {
			m.Time = t
		}
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_HOPLIMIT && len(d) >= 4,
		level == unix.IPPROTO_IP && typ == unix.IP_TTL && len(d) >= 4:
		m.TTL = uint8(binary.NativeEndian.Uint32(d))
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_TCLASS && len(d) >= 4:
		m.TOS = uint8(binary.NativeEndian.Uint32(d))
	case level == unix.IPPROTO_IP && typ == unix.IP_TOS && len(d) >= 1:
		m.TOS = d[0]
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_PKTINFO && len(d) >= 16:
		m.Local = netip.AddrFrom16([16]byte(d))
	case level == unix.IPPROTO_IP && typ == unix.IP_PKTINFO && len(d) >= 12:
		m.Local = netip.AddrFrom4([4]byte(d[8:])) // ipi_addr, what the header says
	case level == unix.IPPROTO_IP && typ == unix.IP_RECVERR,
		level == unix.IPPROTO_IPV6 && typ == unix.IPV6_RECVERR,
		level == unix.SOL_PACKET && typ == unix.PACKET_TX_TIMESTAMP:
		takeFailure(m, d)
	}
}

// takeFailure reads a struct sock_extended_err and the offender's address behind it.
func takeFailure(m *Message, d []byte) {
	if len(d) < 16 {
		return
	}
	f := &m.Failure
	f.Errno = binary.NativeEndian.Uint32(d)
	f.Origin, f.Type, f.Code = Origin(d[4]), d[5], d[6]
	f.Info = binary.NativeEndian.Uint32(d[8:])
	data := binary.NativeEndian.Uint32(d[12:])
	switch f.Origin {
	case OriginNone, OriginLocal:
	case OriginTimestamp:
		f.ID = data
	case OriginICMP, OriginICMPv6:
		// struct sock_ee_data_rfc4884: u16 length, u8 flags (1: invalid)
		if n := binary.NativeEndian.Uint16(d[12:]); d[14]&1 == 0 {
			f.ExtensionOffset = int(n)
		}
	}
	switch sa := d[16:]; {
	case len(sa) >= 8 && binary.NativeEndian.Uint16(sa) == unix.AF_INET:
		f.Offender = netip.AddrFrom4([4]byte(sa[4:8]))
	case len(sa) >= 24 && binary.NativeEndian.Uint16(sa) == unix.AF_INET6:
		f.Offender = netip.AddrFrom16([16]byte(sa[8:24])).Unmap()
	}
}

// SetFilter implements [Conn].
func (c *socket) SetFilter(prog []bpf.RawInstruction) error { return AttachFilter(c.fd, prog) }

// LocalAddr implements [Conn].
func (c *socket) LocalAddr() netip.AddrPort {
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return fromSockaddr(sa)
}

func fromSockaddr(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// ResetStamps implements [Conn]. The kernel restarts the count when OPT_ID is switched on.
func (c *socket) ResetStamps() error {
	if c.stamping == 0 {
		return errors.ErrUnsupported
	}
	for _, flags := range [...]int{c.stamping &^ unix.SOF_TIMESTAMPING_OPT_ID, c.stamping} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING_NEW, flags); err != nil {
			return fmt.Errorf("reset departure stamps: %w", err)
		}
	}
	return nil
}

// Close implements [Conn]. It is idempotent.
func (c *socket) Close() error {
	if c.fd < 0 {
		return nil
	}
	if c.onClose != nil {
		c.onClose()
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}
