// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics

import (
	"encoding/binary"
	"net/netip"
)

// A PVAName is a name to search for, and the client's identifier of it.
type PVAName struct {
	ID   uint32
	Name string // not empty
}

// AppendPVASearch encodes a search for names as a whole message in a byte order. Clients in
// general speak one protocol, "tcp".
func AppendPVASearch(b []byte, order binary.AppendByteOrder, s PVASearch, protocols []string, names ...PVAName) []byte {
	return appendPVA(b, order, 0, PVACommandSearch, func(b []byte) []byte {
		b = order.AppendUint32(b, s.Sequence)
		b = append(b, byte(s.Flags), 0, 0, 0)
		b = appendAddrPort(b, order, s.ReplyTo)
		b = appendSize(b, order, len(protocols))
		for _, p := range protocols {
			b = appendString(b, order, p)
		}
		b = order.AppendUint16(b, uint16(len(names)))
		for _, n := range names {
			b = order.AppendUint32(b, n.ID)
			b = appendString(b, order, n.Name)
		}
		return b
	})
}

// AppendPVASearchResponse encodes the answer to a search, as a whole message in a byte order.
func AppendPVASearchResponse(b []byte, order binary.AppendByteOrder, s PVASearchResponse, ids ...uint32) []byte {
	return appendPVA(b, order, PVAFromServer, PVACommandSearchResponse, func(b []byte) []byte {
		b = append(b, s.GUID[:]...)
		b = order.AppendUint32(b, s.Sequence)
		b = appendAddrPort(b, order, s.Server)
		b = appendString(b, order, string(s.Protocol))
		found := byte(0)
		if s.Found {
			found = 1
		}
		b = append(b, found)
		b = order.AppendUint16(b, uint16(len(ids)))
		for _, id := range ids {
			b = order.AppendUint32(b, id)
		}
		return b
	})
}

// AppendPVABeacon encodes a beacon without a status, as a whole message in a byte order.
func AppendPVABeacon(b []byte, order binary.AppendByteOrder, s PVABeacon) []byte {
	return appendPVA(b, order, PVAFromServer, PVACommandBeacon, func(b []byte) []byte {
		b = append(b, s.GUID[:]...)
		b = append(b, s.Flags, s.Sequence)
		b = order.AppendUint16(b, s.Changes)
		b = appendAddrPort(b, order, s.Server)
		b = appendString(b, order, string(s.Protocol))
		return append(b, 0xff) // the type of a status that is not there
	})
}

// AppendPVAOrigin encodes an origin tag as a whole message in a byte order.
func AppendPVAOrigin(b []byte, order binary.AppendByteOrder, origin netip.Addr) []byte {
	return appendPVA(b, order, 0, PVACommandOrigin, func(b []byte) []byte { return appendAddr(b, origin) })
}

func appendPVA(b []byte, order binary.AppendByteOrder, f PVAFlags, c PVACommand, payload func([]byte) []byte) []byte {
	if order == binary.AppendByteOrder(binary.BigEndian) {
		f |= PVABigEndian
	}
	b = append(b, pvaMagic, PVAVersion, byte(f), byte(c))
	head := len(b)
	b = payload(append(b, 0, 0, 0, 0))
	order.AppendUint32(b[:head], uint32(len(b)-head-4))
	return b
}

func appendSize(b []byte, order binary.AppendByteOrder, n int) []byte {
	if n < 254 {
		return append(b, byte(n))
	}
	return order.AppendUint32(append(b, 254), uint32(n))
}

func appendString(b []byte, order binary.AppendByteOrder, s string) []byte {
	return append(appendSize(b, order, len(s)), s...)
}

// appendAddr writes no address, and 0.0.0.0, as zeros, like the clients in use.
func appendAddr(b []byte, a netip.Addr) []byte {
	var as [16]byte
	if a.IsValid() && !a.IsUnspecified() {
		as = a.As16()
	}
	return append(b, as[:]...)
}

func appendAddrPort(b []byte, order binary.AppendByteOrder, a netip.AddrPort) []byte {
	return order.AppendUint16(appendAddr(b, a.Addr()), a.Port())
}
