// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/seed5728abee/fathom/relay/drop"
)

// EtherType is that of announcements: the first of the two that IEEE 802 sets
// aside for local experiments.
const EtherType = 0x88b5

// MaxAddrs is how many addresses an announcement carries.
const MaxAddrs = 8

const (
	announcementVersion = 1
	ethernetHeader      = 14
	announcementFixed   = 38 // without the addresses
	minFrame            = 60 // an Ethernet frame without its checksum
)

// magic tells announcements from what others try out in the same EtherType.
var magic = []byte("FTHM")

// An Announcement is what a relay says on each of its segments every [Interval].
// It is an Ethernet frame to all:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------------------------------------------------------+
//	|                           "FTHM"                              |
//	+---------------+---------------+---------------+---------------+
//	|  version = 1  |     flags     |   addresses   |    0          |
//	+---------------+---------------+---------------+---------------+
//	|                           relay (6 bytes)     :               |
//	+                               +-------------------------------+
//	|                               :         mesh (8 bytes)        |
//	+                                                               +
//	|                                                               |
//	+                               +-------------------------------+
//	|                               :        token (8 bytes)        |
//	+                                                               +
//	|                                                               |
//	+                               +-------------------------------+
//	|                               :       sequence (8 bytes)      |
//	+                                                               +
//	|                                                               |
//	+                               +-------------------------------+
//	|                               :          addresses …          |
//	+-------------------------------+-------------------------------+
//
// An address is its length in bytes (4 or 16, others are skipped), its bytes and
// two bytes of port. What follows the addresses is for later versions, and
// ignored; a later version keeps what is here.
type Announcement struct {
	Relay    MAC     // who: the lowest address of the relay's interfaces
	Mesh     [8]byte // which mesh: only relays of one mesh elect among each other
	Token    [8]byte // random, for this segment and this run of the relay
	Sequence uint64  // goes up by one with each announcement of a token
	Ready    bool    // it can serve: has its mesh, is not told only to listen, is not about to leave
	Serving  bool    // it does: what comes from its address are broadcasts of other segments, otherwise its host's own

	// MeshAddrs is where the mesh finds the relay, at most MaxAddrs.
	MeshAddrs []netip.AddrPort
}

const (
	flagReady   = 1 << 0
	flagServing = 1 << 1
)

// Append appends the whole Ethernet frame, without its checksum, at least 60 bytes long.
// Addresses beyond MaxAddrs are left out.
func (a *Announcement) Append(b []byte, from MAC) []byte {
	start := len(b)
	addrs := a.MeshAddrs[:min(len(a.MeshAddrs), MaxAddrs)]
	var flags byte
	if a.Ready {
		flags |= flagReady
	}
	if a.Serving {
		flags |= flagServing
	}
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, from[:]...)
	b = binary.BigEndian.AppendUint16(b, EtherType)
	b = append(b, magic...)
	b = append(b, announcementVersion, flags, byte(len(addrs)), 0)
	b = append(b, a.Relay[:]...)
	b = append(b, a.Mesh[:]...)
	b = append(b, a.Token[:]...)
	b = binary.BigEndian.AppendUint64(b, a.Sequence)
	for _, ap := range addrs {
		addr := ap.Addr().Unmap()
		if addr.Is4() {
			a4 := addr.As4()
			b = append(append(b, 4), a4[:]...)
		} else {
			a16 := addr.As16()
			b = append(append(b, 16), a16[:]...)
		}
		b = binary.BigEndian.AppendUint16(b, ap.Port())
	}
	for len(b)-start < minFrame {
		b = append(b, 0)
	}
	return b
}

// Parse reads the Ethernet frame of an announcement and gives the address that
// it comes from. The error is a [drop.Reason]: Invalid for what is no announcement,
// Truncated or Malformed for a damaged one.
func Parse(frame []byte) (a Announcement, from MAC, err error) {
	if len(frame) < ethernetHeader+len(magic) {
		return a, from, drop.Truncated
	}
	b := frame[ethernetHeader:]
	if binary.BigEndian.Uint16(frame[12:]) != EtherType || !bytes.HasPrefix(b, magic) {
		return a, from, drop.Invalid
	}
	if len(b) < announcementFixed {
		return a, from, drop.Truncated
	}
	from = MAC(frame[6:12])
	a.Relay = MAC(b[8:14])
	if b[4] < announcementVersion || from[0]&1 != 0 || from == (MAC{}) || a.Relay == (MAC{}) {
		return Announcement{}, MAC{}, drop.Malformed
	}
	a.Ready, a.Serving = b[5]&flagReady != 0, b[5]&flagServing != 0
	a.Mesh = [8]byte(b[14:22])
	a.Token = [8]byte(b[22:30])
	a.Sequence = binary.BigEndian.Uint64(b[30:38])
	count := b[6]
	b = b[announcementFixed:]
	for range count {
		if len(b) < 1 || len(b) < 1+int(b[0])+2 {
			return Announcement{}, MAC{}, drop.Truncated
		}
		size := int(b[0])
		addr, ok := netip.AddrFromSlice(b[1 : 1+size])
		port := binary.BigEndian.Uint16(b[1+size:])
		if ok && port != 0 && len(a.MeshAddrs) < MaxAddrs {
			a.MeshAddrs = append(a.MeshAddrs, netip.AddrPortFrom(addr.Unmap(), port))
		}
		b = b[1+size+2:]
	}
	return a, from, nil
}
