// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/relay/drop"
)

const (
	// EthernetHeaderLen is the length in bytes of destination, source and type.
	EthernetHeaderLen = 14
	// MaxPacketLen is the length in bytes of the longest packet that is relayed: what IPv4 can be, and 40 less than IPv6 can be.
	MaxPacketLen = 0xffff
)

const (
	etherIPv4   = 0x0800
	etherIPv6   = 0x86dd
	etherVLAN   = 0x8100 // IEEE 802.1Q
	etherQinQ   = 0x88a8 // IEEE 802.1ad
	udpProtocol = byte(packet.ProtocolUDP)
)

// MAC is an Ethernet address.
type MAC [6]byte

// Broadcast is the Ethernet address of all.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// String is the address as six hexadecimal numbers with colons.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// limited is the limited broadcast address (RFC 919).
var limited = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Limited returns 255.255.255.255, the broadcast address that means each segment's own hosts.
func Limited() netip.Addr { return limited }

// Capture is what the kernel knows about a frame that its bytes do not tell.
type Capture struct {
	Partial bool // the sender's network card was to finish the UDP checksum (TP_STATUS_CSUMNOTREADY)
	Tagged  bool // the kernel took a VLAN tag off the frame (TP_STATUS_VLAN_VALID)
}

// checksum is what Finish has to do about the UDP checksum.
type checksum uint8

const (
	verify   checksum = iota // it has to be right
	compute                  // it may be unfinished
	finished                 // it is right
)

// A Datagram is a view of one UDP datagram, or of a fragment of one, in the caller's buffer. Those of
// its fields that are exported are not to be changed by hand.
type Datagram struct {
	IP       []byte         // the whole IP packet, without what padded its frame
	Src, Dst netip.AddrPort // with port 0 in a fragment
	Link     MAC            // Ethernet source: the host that put the broadcast on its segment
	Fragment bool           // it goes to a Reassembler; there are no ports and no payload yet

	checksum checksum
	at       int // offset in IP of the UDP header, or of a fragment's data

	// Of a fragment:
	more   bool
	offset int    // of its data, in the data of the whole, in bytes
	id     uint32 // 16 bits in IPv4
	next   int    // IPv6: offset in IP of the byte that names the fragment header
}

// Payload is what the datagram carries, 0 to 65507 bytes (65487 in IPv6); nil in a fragment.
func (d *Datagram) Payload() []byte {
	if d.Fragment {
		return nil
	}
	return d.IP[d.at+packet.UDPHeaderLen:]
}

// Directed tells that the datagram is for the hosts of one IPv4 subnet, or for a single one: neither a
// limited broadcast nor for a group.
func (d *Datagram) Directed() bool {
	dst := d.Dst.Addr()
	return dst != limited && !dst.IsMulticast()
}

// Group tells that the datagram is for a multicast group.
func (d *Datagram) Group() bool { return d.Dst.Addr().IsMulticast() }

// Parse reads a frame captured on a segment, from its Ethernet destination on and with or without the
// padding at its end: IPv4 to the Ethernet broadcast address, IPv4 or IPv6 to a group. Whether that broadcast
// address or group is one to relay, and the port, is left to [Policy.Check].
//
// After any reason but None the datagram must not be used.
func (d *Datagram) Parse(frame []byte, c Capture) drop.Reason {
	if len(frame) < EthernetHeaderLen {
		return drop.Truncated
	}
	if c.Tagged {
		return drop.Tagged
	}
	d.checksum = verify
	if c.Partial {
		d.checksum = compute
	}
	d.Link = MAC(frame[6:12])
	var reason drop.Reason
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		if frame[0]&1 == 0 {
			return drop.NotBroadcast
		}
		reason = d.parse4(frame[EthernetHeaderLen:])
	case etherIPv6:
		if frame[0]&1 == 0 {
			return drop.NotBroadcast
		}
		reason = d.parse6(frame[EthernetHeaderLen:])
	case etherVLAN, etherQinQ:
		return drop.Tagged
	default:
		return drop.NotUDP
	}
	if reason == drop.None && !d.addressedAs(MAC(frame[:6])) {
		return drop.Malformed
	}
	return reason
}

// addressedAs tells that the IP destination goes with an Ethernet destination. A group may be sent to all
// where hosts cannot filter (RFC 1112 section 6.4); a broadcast is never sent to a group.
func (d *Datagram) addressedAs(to MAC) bool {
	if d.IP[0]>>4 == 6 {
		return to == MAC{0x33, 0x33, d.IP[36], d.IP[37], d.IP[38], d.IP[39]}
	}
	return to == Broadcast || d.IP[16]>>4 == 14 && to == MAC{0x01, 0x00, 0x5e, d.IP[17] & 0x7f, d.IP[18], d.IP[19]}
}

// ParseSS reads the Ethernet frame inside an SS datagram, which is all of it but its first 2 bytes. Only
// IPv4 broadcasts come that way, and Ethernet's padding may be there. Senders pass on checksums as they
// captured them, some of them unfinished, so [Datagram.Finish] computes the UDP checksum instead of looking at it.
//
// After any reason but None the datagram must not be used.
func (d *Datagram) ParseSS(frame []byte) drop.Reason {
	if len(frame) < EthernetHeaderLen {
		return drop.Truncated
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
	case etherVLAN, etherQinQ:
		return drop.Tagged
	default:
		return drop.NotUDP
	}
	if MAC(frame[:6]) != Broadcast {
		return drop.NotBroadcast
	}
	d.checksum = compute
	d.Link = MAC(frame[6:12])
	reason := d.parse4(frame[EthernetHeaderLen:])
	if reason == drop.None && d.Dst.Addr().IsMulticast() {
		return drop.Destination
	}
	return reason
}

// ParsePacket reads an IP packet, of either version and with nothing behind it, that a relay like this one has
// captured from a host with the given Ethernet address. Such a relay finishes checksums before it
// sends, so [Datagram.Finish] verifies them: what was damaged in between is not made to look whole again.
//
// After any reason but None the datagram must not be used.
func (d *Datagram) ParsePacket(link MAC, ip []byte) (reason drop.Reason) {
	if len(ip) == 0 {
		return drop.Truncated
	}
	d.checksum = verify
	d.Link = link
	switch ip[0] >> 4 {
	case 4:
		reason = d.parse4(ip)
	case 6:
		reason = d.parse6(ip)
	default:
		return drop.Malformed
	}
	if reason == drop.None && len(d.IP) != len(ip) {
		return drop.Malformed
	}
	return reason
}

// parse4 reads an IPv4 packet with anything behind it, and tests all but what a policy does.
func (d *Datagram) parse4(b []byte) drop.Reason {
	if len(b) < packet.IPv4HeaderLen {
		return drop.Truncated
	}
	n := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case b[0]>>4 != 4 || n < packet.IPv4HeaderLen || total < n:
		return drop.Malformed
	case total > len(b):
		return drop.Truncated
	case packet.Checksum(b[:n]) != 0:
		return drop.BadChecksum
	case b[9] != udpProtocol:
		return drop.NotUDP
	case !possibleSource4([4]byte(b[12:])):
		return drop.BadSource
	}
	if n > packet.IPv4HeaderLen {
		if reason := checkOptions4(b[packet.IPv4HeaderLen:n]); reason != drop.None {
			return reason
		}
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	d.IP = b[:total:total]
	d.at = n
	flags := binary.BigEndian.Uint16(b[6:])
	switch {
	case flags&0x8000 != 0: // reserved, and zero since 1981
		return drop.Malformed
	case flags&0x3fff == 0:
		return d.parseUDP(src, dst)
	}
	d.more = flags&0x2000 != 0
	d.offset = int(flags&0x1fff) * 8
	d.id = uint32(binary.BigEndian.Uint16(b[4:]))
	return d.parseFragment(src, dst, n)
}

// possibleSource4 tells that a host can have sent from an address: itself, or 0.0.0.0 when it has none
// yet (RFC 1122 section 3.2.1.3).
func possibleSource4(a [4]byte) bool {
	return a[0] < 224 && a[0] != 127 && (a[0] != 0 || a == [4]byte{})
}

// checkOptions4 holds that options are whole and that none of them sends the packet elsewhere.
func checkOptions4(b []byte) drop.Reason {
	const end, nop, looseRoute, strictRoute = 0, 1, 131, 137
	for len(b) > 0 {
		switch b[0] {
		case end:
			return drop.None
		case nop:
			b = b[1:]
			continue
		case looseRoute, strictRoute:
			return drop.Destination
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return drop.Malformed
		}
		b = b[b[1]:]
	}
	return drop.None
}

// parse6 is parse4 for an IPv6 packet, which must be for a group: there is no broadcast in IPv6.
func (d *Datagram) parse6(b []byte) drop.Reason {
	if len(b) < packet.IPv6HeaderLen {
		return drop.Truncated
	}
	total := packet.IPv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	switch {
	case b[0]>>4 != 6 || total > MaxPacketLen:
		return drop.Malformed
	case total > len(b):
		return drop.Truncated
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	switch {
	case src.IsMulticast() || src.IsLoopback() || src.Is4In6():
		return drop.BadSource
	case !dst.IsMulticast():
		return drop.NotBroadcast
	}
	d.IP = b[:total:total]
	next, at := 6, packet.IPv6HeaderLen // where the byte is that names the header at at
	// Each of the four is there once at most, in any order but hop-by-hop first (RFC 8200 section 4.1).
	for destinations := 0; ; {
		p := packet.Protocol(b[next])
		switch p {
		case packet.ProtocolUDP:
			d.at = at
			return d.parseUDP(src, dst)
		case packet.ProtocolHopByHop:
			if next != 6 {
				return drop.Malformed
			}
		case packet.ProtocolDestination:
			if destinations++; destinations > 1 {
				return drop.Malformed
			}
		case packet.ProtocolFragment:
		default:
			return drop.NotUDP
		}
		if at+8 > total {
			return drop.Truncated
		}
		if p == packet.ProtocolFragment {
			offset := binary.BigEndian.Uint16(b[at+2:])
			d.id = binary.BigEndian.Uint32(b[at+4:])
			d.next, d.at = next, at+8
			d.more, d.offset = offset&1 != 0, int(offset&^7)
			return d.parseFragment(src, dst, at)
		}
		next, at = at, at+8+int(b[at+1])*8
		if at > total {
			return drop.Truncated
		}
	}
}

// parseUDP reads the header at d.at, which nothing follows but what it tells of.
func (d *Datagram) parseUDP(src, dst netip.Addr) drop.Reason {
	b := d.IP[d.at:]
	if len(b) < packet.UDPHeaderLen {
		return drop.Truncated
	}
	if int(binary.BigEndian.Uint16(b[4:])) != len(b) {
		return drop.Malformed
	}
	d.Fragment = false
	d.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	d.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	return drop.None
}

// parseFragment tests the place of a fragment, whose data may look like anything, in a whole with a header of
// so many bytes. An IPv6 fragment that is all of its datagram (RFC 6946) goes this way too.
func (d *Datagram) parseFragment(src, dst netip.Addr, header int) drop.Reason {
	n := len(d.IP) - d.at
	if n == 0 || d.more && n%8 != 0 || header+d.offset+n > MaxPacketLen {
		return drop.Malformed
	}
	d.Fragment = true
	d.Src, d.Dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	return drop.None
}

// Finish makes the UDP checksum right in place, if that is what the datagram's origin calls for, or else
// verifies it: then a wrong one is [drop.BadChecksum]. A sender's choice of none is left alone in IPv4, where it
// has that choice. After None a second call does nothing.
//
// A fragment has no checksum; it is left as it is.
func (d *Datagram) Finish() drop.Reason {
	if d.Fragment || d.checksum == finished {
		return drop.None
	}
	u := packet.UDP(d.IP[d.at:])
	switch {
	case d.checksum == compute:
		packet.SetUDPChecksum(u, d.Src.Addr(), d.Dst.Addr())
	case !u.ChecksumOK(d.Src.Addr(), d.Dst.Addr()):
		return drop.BadChecksum
	}
	d.checksum = finished
	return drop.None
}

// SetDestination puts another address in place of the destination, in the buffer too, and keeps both checksums
// right. The address is of the packet's IP version, and the datagram is whole and has been finished: anything else
// is a mistake of the caller and panics.
func (d *Datagram) SetDestination(to netip.Addr) {
	old := d.Dst.Addr()
	if to == old {
		return
	}
	if d.Fragment || d.checksum != finished {
		panic("datagram: SetDestination before Finish")
	}
	var err error
	if old.Is4() {
		err = packet.IPv4(d.IP).SetDst(to)
	} else {
		err = packet.IPv6(d.IP).SetDst(to)
	}
	if err != nil {
		panic("datagram: SetDestination: " + err.Error())
	}
	packet.UDP(d.IP[d.at:]).UpdateAddr(old, to)
	d.Dst = netip.AddrPortFrom(to, d.Dst.Port())
}
