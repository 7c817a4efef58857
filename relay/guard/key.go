// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"
)

// MAC is an Ethernet address.
type MAC = [6]byte

// A Key stands for a datagram wherever it shows up: for its source, its ports
// and its payload. The destination address and the IP identification are no part of it,
// because relays change them.
//
// It is a hash with a seed of the process: nobody outside can choose datagrams
// that share a key, and a key means nothing to another process.
type Key uint64

// anonymous is the bit of a key whose datagram comes from the unspecified
// address: it may be many hosts' (see Copies.accuse).
const anonymous Key = 1

var (
	seed = maphash.MakeSeed()
	salt = [3]uint64{maphash.String(seed, "address"), maphash.String(seed, "ports"), maphash.String(seed, "source") | 1}
)

// KeyOf returns the key of a UDP datagram.
func KeyOf(src netip.AddrPort, dstPort uint16, payload []byte) Key {
	a := src.Addr().As16()
	high, low := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	ports := uint64(src.Port())<<16 | uint64(dstPort)
	h := mix(maphash.Bytes(seed, payload)^high^ports, low^salt[0])
	h = mix(h^salt[1], ports^low^salt[0])
	k := Key(h) &^ anonymous
	if src.Addr().IsUnspecified() {
		k |= anonymous
	}
	return max(k, 2) // 0 marks an empty place of the table
}

// of is the key of what one source has sent of a datagram.
func (k Key) of(source uint32) Key {
	return max(Key(mix(mix(uint64(k)^salt[1], uint64(source)^salt[2])^salt[0], salt[2])), 2)
}

// mix is the multiplication of wyhash. Done twice, each bit of the result depends
// on all of a and b; done once, it leaves patterns in those that follow each other.
func mix(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}
