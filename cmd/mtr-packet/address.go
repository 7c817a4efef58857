// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "net/netip"

// The parsers below accept what inet_pton does: no names, no short forms (127.1), no
// zones. They are here because netip's take a string, which would have to be
// allocated for each probe.

// parseIPv4 reads four decimal numbers without leading zeros.
func parseIPv4(b []byte) (netip.Addr, bool) {
	var ip [4]byte
	field, value, digits := 0, 0, 0
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			if digits > 0 && value == 0 {
				return netip.Addr{}, false
			}
			if value = 10*value + int(c-'0'); value > 255 {
				return netip.Addr{}, false
			}
			digits++
		case c == '.' && digits > 0 && field < 3:
			ip[field] = byte(value)
			field, value, digits = field+1, 0, 0
		default:
			return netip.Addr{}, false
		}
	}
	if field != 3 || digits == 0 {
		return netip.Addr{}, false
	}
	ip[3] = byte(value)
	return netip.AddrFrom4(ip), true
}

// parseIPv6 reads the forms of RFC 4291, section 2.2.
func parseIPv6(b []byte) (netip.Addr, bool) {
	var ip [16]byte
	filled, gap := 0, -1 // bytes of ip; where :: stood
	if len(b) >= 2 && b[0] == ':' && b[1] == ':' {
		gap, b = 0, b[2:]
	}
	for len(b) > 0 {
		value, digits := 0, 0
		for digits < len(b) && hexDigit(b[digits]) >= 0 {
			if digits == 4 {
				return netip.Addr{}, false
			}
			value = value<<4 | hexDigit(b[digits])
			digits++
		}
		if digits == 0 || filled == len(ip) {
			return netip.Addr{}, false
		}
		if digits < len(b) && b[digits] == '.' {
			v4, ok := parseIPv4(b)
			if !ok || filled > len(ip)-4 {
				return netip.Addr{}, false
			}
			a := v4.As4()
			filled += copy(ip[filled:], a[:])
			break
		}
		ip[filled], ip[filled+1] = byte(value>>8), byte(value)
		filled += 2
		if b = b[digits:]; len(b) == 0 {
			break
		}
		if b[0] != ':' || len(b) == 1 {
			return netip.Addr{}, false
		}
		if b = b[1:]; b[0] == ':' {
			if gap >= 0 {
				return netip.Addr{}, false
			}
			gap, b = filled, b[1:]
		}
	}
	// :: stands for at least one group.
	if (gap >= 0) == (filled == len(ip)) {
		return netip.Addr{}, false
	}
	if gap >= 0 {
		zeros := len(ip) - filled
		copy(ip[gap+zeros:], ip[gap:filled])
		clear(ip[gap : gap+zeros])
	}
	return netip.AddrFrom16(ip), true
}

// hexDigit is the value of a hexadecimal digit, -1 for any other byte.
func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
