// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linkTable asks the kernel for routes, neighbours and interfaces, over a netlink socket: rtnetlink(7).
// The kernel answers in the call that asks, so that nothing waits.
type linkTable struct {
	fd  int
	buf []byte

	// Many destinations share a gateway. What was asked for is good for linkLife.
	asked      time.Time
	neighbours map[neighbourKey]neighbour
	interfaces map[int]linkInterface
}

// linkLife is short against the time for which a user of NextHop remembers its answers, which comes on top.
const linkLife = 100 * time.Millisecond

// linkBound is how many neighbours are remembered.
const linkBound = 4096

// linkAnswer is more than the kernel says about an interface, the longest of the answers.
const linkAnswer = 16384

// skipStats leaves the counters out of an answer about an interface (RTEXT_FILTER_SKIP_STATS in linux/rtnetlink.h).
const skipStats = 1 << 3

type neighbourKey struct {
	index int
	addr  netip.Addr
}

type neighbour struct {
	link  LinkAddr
	fresh bool
}

type linkInterface struct {
	ethernet bool
	mtu      int
}

func openLinkTable() (*linkTable, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &linkTable{
		fd: fd, buf: make([]byte, linkAnswer),
		neighbours: make(map[neighbourKey]neighbour), interfaces: make(map[int]linkInterface),
	}, nil
}

func (t *linkTable) close() { unix.Close(t.fd) }

// ask sends a request and gives the body of the answer of type want, which is valid until the next call.
func (t *linkTable) ask(req *nl.NetlinkRequest, want uint16) ([]byte, error) {
	if err := unix.Sendto(t.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	for {
		n, from, err := unix.Recvfrom(t.fd, t.buf, 0)
		if err == unix.EINTR {
			continue
		} else if err != nil {
			return nil, err
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 { // only the kernel has the number 0
			continue
		}
		msgs, err := syscall.ParseNetlinkMessage(t.buf[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			switch {
			case m.Header.Seq != req.Seq: // of a request that failed half way
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				return nil, syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			case m.Header.Type == want:
				return m.Data, nil
			}
		}
	}
}

// body gives the fixed part of an answer and the attributes behind it.
func body[T any](b []byte) (*T, []syscall.NetlinkRouteAttr, error) {
	var t T
	n := int(unsafe.Sizeof(t))
	if len(b) < n {
		return nil, nil, fmt.Errorf("netlink answer of %d bytes: %w", len(b), unix.EBADMSG)
	}
	attrs, err := nl.ParseRouteAttr(b[n:])
	return (*T)(unsafe.Pointer(&b[0])), attrs, err
}

// NextHop implements [Host].
func (h *KernelHost) NextHop(dst netip.Addr, via Route) (NextHop, error) {
	if via.Mark != 0 {
		return NextHop{}, fmt.Errorf("next hop to %v with mark %d: %w", dst, via.Mark, errors.ErrUnsupported)
	}
	if h.links == nil {
		t, err := openLinkTable()
		if err != nil {
			return NextHop{}, err
		}
		h.links = t
	}
	hop, err := h.links.nextHop(dst, via.Interface)
	if err != nil {
		return NextHop{}, fmt.Errorf("next hop to %v: %w", dst, err)
	}
	return hop, nil
}

func (t *linkTable) nextHop(dst netip.Addr, through string) (NextHop, error) {
	if now := time.Now(); now.Sub(t.asked) > linkLife || len(t.neighbours) > linkBound {
		clear(t.neighbours)
		clear(t.interfaces)
		t.asked = now
	}
	if through == "" {
		through = dst.Zone()
	}
	index := 0
	if through != "" {
		var err error
		if index, err = zoneIndex(through); err != nil {
			return NextHop{}, err
		}
	}
	hop, gateway, err := t.route(dst.WithZone(""), index)
	if err != nil {
		return NextHop{}, err
	}
	ifc, ok := t.interfaces[hop.IfIndex]
	if !ok {
		if ifc, err = t.link(hop.IfIndex); err != nil {
			return NextHop{}, err
		}
		t.interfaces[hop.IfIndex] = ifc
	}
	if !ifc.ethernet {
		return NextHop{}, errors.ErrUnsupported
	}
	key := neighbourKey{hop.IfIndex, gateway}
	n, ok := t.neighbours[key]
	if !ok {
		if n, err = t.neighbour(key); err != nil {
			return NextHop{}, err
		}
		t.neighbours[key] = n
	}
	hop.Link, hop.Fresh = n.link, n.fresh
	if hop.MTU = min(hop.MTU, ifc.mtu); hop.MTU == 0 {
		hop.MTU = ifc.mtu
	}
	return hop, nil
}

// route looks dst up in the routing tables, and gives the address of the neighbour to hand packets to, too. The
// MTU is 0 unless a route, or what a router said, makes it less than the interface's.
func (t *linkTable) route(dst netip.Addr, index int) (hop NextHop, gateway netip.Addr, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Dst_len: uint8(dst.BitLen())}}
	if dst.Is6() {
		msg.Family = unix.AF_INET6
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, dst.AsSlice()))
	if index != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	}
	b, err := t.ask(req, unix.RTM_NEWROUTE)
	if err != nil {
		return hop, gateway, err
	}
	r, attrs, err := body[unix.RtMsg](b)
	if err != nil {
		return hop, gateway, err
	}
	if r.Type != unix.RTN_UNICAST {
		return hop, gateway, errors.ErrUnsupported
	}
	gateway = dst
	for _, a := range attrs {
		switch v := a.Value; a.Attr.Type {
		case unix.RTA_OIF:
			if len(v) >= 4 {
				hop.IfIndex = int(binary.NativeEndian.Uint32(v))
			}
		case unix.RTA_PREFSRC:
			hop.Source, _ = netip.AddrFromSlice(v)
		case unix.RTA_GATEWAY:
			gateway, _ = netip.AddrFromSlice(v)
		case unix.RTA_VIA: // struct rtvia: a family and a gateway of it, as of an IPv4 route over IPv6
			if len(v) > 2 {
				gateway, _ = netip.AddrFromSlice(v[2:])
			}
		case unix.RTA_ENCAP, unix.RTA_NEWDST:
			return hop, gateway, errors.ErrUnsupported // the kernel puts something around the packets
		case unix.RTA_METRICS:
			metrics, err := nl.ParseRouteAttr(v)
			if err != nil {
				return hop, gateway, err
			}
			for _, m := range metrics {
				if m.Attr.Type == unix.RTAX_MTU && len(m.Value) >= 4 {
					hop.MTU = int(binary.NativeEndian.Uint32(m.Value))
				}
			}
		}
	}
	if !hop.Source.IsValid() || !gateway.IsValid() || hop.IfIndex == 0 {
		return hop, gateway, errors.ErrUnsupported
	}
	return hop, gateway, nil
}

// link looks an interface up.
func (t *linkTable) link(index int) (ifc linkInterface, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	b, err := t.ask(req, unix.RTM_NEWLINK)
	if err != nil {
		return ifc, err
	}
	r, attrs, err := body[unix.IfInfomsg](b)
	if err != nil {
		return ifc, err
	}
	ifc.ethernet = r.Type == unix.ARPHRD_ETHER
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_MTU && len(a.Value) >= 4 {
			ifc.mtu = int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	return ifc, nil
}

// States of a neighbour in which the kernel sends to it, and those of them in which it does so without
// asking whether it is still there (NUD_VALID and NUD_CONNECTED in the kernel's include/net/neighbour.h).
const (
	neighbourConnected = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE
	neighbourValid     = neighbourConnected | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY
)

// neighbour looks a neighbour up in the tables of ARP or neighbour discovery.
func (t *linkTable) neighbour(key neighbourKey) (n neighbour, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	family := uint8(unix.AF_INET)
	if key.addr.Is6() {
		family = unix.AF_INET6
	}
	req.AddData(&neighbourMsg{unix.NdMsg{Family: family, Ifindex: int32(key.index)}})
	req.AddData(nl.NewRtAttr(unix.NDA_DST, key.addr.AsSlice()))
	b, err := t.ask(req, unix.RTM_NEWNEIGH)
	switch {
	case err == unix.ENOENT:
		return n, ErrNoNeighbour
	case err != nil:
		return n, err // before Linux 5.0: not supported
	}
	r, attrs, err := body[unix.NdMsg](b)
	if err != nil {
		return n, err
	}
	if r.State&neighbourValid == 0 {
		return n, ErrNoNeighbour
	}
	n.fresh = r.State&neighbourConnected != 0
	for _, a := range attrs {
		if a.Attr.Type == unix.NDA_LLADDR && len(a.Value) == len(n.link) {
			copy(n.link[:], a.Value)
			return n, nil
		}
	}
	return n, ErrNoNeighbour
}

// neighbourMsg makes a struct ndmsg what a request takes.
type neighbourMsg struct{ unix.NdMsg }

func (m *neighbourMsg) Len() int { return unix.SizeofNdMsg }

func (m *neighbourMsg) Serialize() []byte {
	return (*[unix.SizeofNdMsg]byte)(unsafe.Pointer(&m.NdMsg))[:]
}
