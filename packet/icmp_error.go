// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
)

// Longest ICMP error messages, without the IP header around them: what fits a datagram of
// 576 bytes (RFC 1812, section 4.3.2.3) and of 1280 bytes (RFC 4443, section 2.4(c)).
const (
	maxICMPv4Error = 576 - IPv4HeaderLen
	maxICMPv6Error = 1280 - IPv6HeaderLen
)

// extensionOffset is where in the quoted packet extensions begin if the length field does not say: RFC 4884
// section 5.5. It is also the shortest quote that may stand before an extension structure.
const extensionOffset = 128

// IsICMPError tells that a message of this type, in this IP version, reports about a packet which it quotes.
// ICMPv6 reserves all types below 128 for that.
func IsICMPError(version int, typ uint8) bool {
	switch version {
	case 4:
		switch typ {
		case ICMPv4Unreachable, ICMPv4SourceQuench, ICMPv4Redirect, ICMPv4TimeExceeded, ICMPv4ParameterProblem:
			return true
		}
	case 6:
		return typ < 128
	}
	return false
}

// ICMPError is an ICMP or ICMPv6 error message. Which of the fields between Code and Quote are used
// depends on the type; the others are zero.
type ICMPError struct {
	Type, Code uint8
	MTU        uint32     // next hop's MTU: IPv4 "fragmentation needed" (16 bits, 0 from very old routers), ICMPv6 "packet too big"
	Pointer    uint32     // byte of the quoted packet that is wrong: parameter problem (IPv4: 8 bits)
	Gateway    netip.Addr // better first hop: IPv4 redirect
	// Quote is the packet that the message is about, from its IP header on: see [ParseQuote].
	// Where extensions follow it may be padded with zeros.
	Quote []byte
	// Extensions is the RFC 4884 extension structure, nil if there is none or not a right one.
	Extensions Extensions
}

// ParseICMPError decodes an error message of the IP version 4 or 6. The checksum is not looked at.
//
// Extensions are found by the length field (RFC 4884), or if that is zero at byte 128 of
// the quote, where routers put them before there was a length field. What
// is there but is not version 2, has a checksum that is neither zero nor right, or has objects that
// do not add up, is not taken for extensions; that is not an error.
//
// Errors: [ErrTruncated] below 8 bytes, [ErrVersion], [ErrMalformed] for a message that is not an error.
func ParseICMPError(version int, b []byte) (e ICMPError, err error) {
	err = e.Decode(version, b)
	return e, err
}

// Decode is [ParseICMPError] into an ICMPError that is used again, which spares copying it.
// On an error e is left as it was.
func (e *ICMPError) Decode(version int, b []byte) error {
	if version != 4 && version != 6 {
		return errICMPVersion
	}
	if len(b) < ICMPHeaderLen {
		return errICMPShort
	}
	if !IsICMPError(version, b[0]) {
		return errICMPNotError
	}
	*e = ICMPError{Type: b[0], Code: b[1], Quote: b[ICMPHeaderLen:]}
	rest := binary.BigEndian.Uint32(b[4:])
	if version == 4 {
		switch {
		case e.Type == ICMPv4Unreachable && e.Code == ICMPv4CodeFragNeeded:
			e.MTU = rest & 0xffff
		case e.Type == ICMPv4ParameterProblem:
			e.Pointer = rest >> 24
		case e.Type == ICMPv4Redirect:
			e.Gateway = netip.AddrFrom4([4]byte(b[4:8]))
		}
	} else {
		switch e.Type {
		case ICMPv6PacketTooBig:
			e.MTU = rest
		case ICMPv6ParameterProblem:
			e.Pointer = rest
		}
	}
	if unit, field := extensionLength(version, e.Type); unit != 0 {
		at := extensionOffset
		if b[field] != 0 {
			at = int(b[field]) * unit
		}
		e.split(at, b[field] != 0)
	}
	return nil
}

// split divides what follows the ICMP header at the offset. If the length field gave the
// offset, the quote ends there whatever follows.
func (e *ICMPError) split(at int, told bool) {
	if at > len(e.Quote) {
		return
	}
	quote, rest := e.Quote[:at:at], e.Quote[at:]
	x, err := ParseExtensions(rest)
	if err == nil {
		e.Extensions = x
	}
	if err == nil || told {
		e.Quote = quote
	}
}

// extensionLength is the unit in bytes, and the place in the message, of RFC 4884's length field;
// zeros for a type without one.
func extensionLength(version int, typ uint8) (unit, field int) {
	if version == 4 {
		switch typ {
		case ICMPv4Unreachable, ICMPv4TimeExceeded, ICMPv4ParameterProblem:
			return 4, 5
		}
	} else {
		switch typ {
		case ICMPv6Unreachable, ICMPv6TimeExceeded:
			return 8, 4
		}
	}
	return 0, 0
}

// AppendICMPError4 appends the ICMP error message e with its checksum. Quote may be the whole original datagram: as
// much of it is taken as fits 576 bytes with an IP header around it. Before
// extensions it is exactly 128 bytes, cut or padded, and the length field says so: there both new and old receivers find them.
//
// Errors: [ErrMalformed] for a type that is not an error, a field that does not fit, or extensions on a
// type that has none; [ErrTooLong] for extensions that leave no room for the quote.
func AppendICMPError4(b []byte, e *ICMPError) ([]byte, error) {
	if !IsICMPError(4, e.Type) {
		return b, errICMPNotError
	}
	var rest uint32
	switch {
	case e.Type == ICMPv4Unreachable && e.Code == ICMPv4CodeFragNeeded:
		if e.MTU > 0xffff {
			return b, errICMPField
		}
		rest = e.MTU
	case e.Type == ICMPv4ParameterProblem:
		if e.Pointer > 0xff {
			return b, errICMPField
		}
		rest = e.Pointer << 24
	case e.Type == ICMPv4Redirect:
		gw, ok := as4(e.Gateway)
		if !ok {
			return b, errICMPField
		}
		rest = binary.BigEndian.Uint32(gw[:])
	}
	start := len(b)
	b, err := e.append(b, 4, rest, maxICMPv4Error)
	if err != nil {
		return b, err
	}
	SetICMPChecksum(b[start:])
	return b, nil
}

// AppendICMPError6 is [AppendICMPError4] for ICMPv6, with a limit of 1280 bytes. The
// checksum covers the addresses of the IP header that goes before: src is the reporting router, dst the source of the
// original datagram.
func AppendICMPError6(b []byte, src, dst netip.Addr, e *ICMPError) ([]byte, error) {
	switch {
	case !IsICMPError(6, e.Type):
		return b, errICMPNotError
	case !sameVersion(src, dst):
		return b, errICMPAddress
	}
	var rest uint32
	switch e.Type {
	case ICMPv6PacketTooBig:
		rest = e.MTU
	case ICMPv6ParameterProblem:
		rest = e.Pointer
	}
	start := len(b)
	b, err := e.append(b, 6, rest, maxICMPv6Error)
	if err != nil {
		return b, err
	}
	SetICMPv6Checksum(b[start:], src, dst)
	return b, nil
}

func (e *ICMPError) append(b []byte, version int, rest uint32, limit int) ([]byte, error) {
	quote := e.Quote
	pad := 0
	if len(e.Extensions) == 0 {
		quote = quote[:min(len(quote), limit-ICMPHeaderLen)]
	} else {
		unit, field := extensionLength(version, e.Type)
		if unit == 0 {
			return b, errICMPNoExt
		}
		if ICMPHeaderLen+extensionOffset+len(e.Extensions) > limit {
			return b, errExtTooLong
		}
		rest |= uint32(extensionOffset/unit) << (8 * (7 - field))
		quote = quote[:min(len(quote), extensionOffset)]
		pad = extensionOffset - len(quote)
	}
	b = append(b, e.Type, e.Code, 0, 0, byte(rest>>24), byte(rest>>16), byte(rest>>8), byte(rest))
	b = append(b, quote...)
	for range pad {
		b = append(b, 0)
	}
	return append(b, e.Extensions...), nil
}
