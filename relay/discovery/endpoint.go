// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ErrName is wrapped by the errors about what can be neither an address nor a name.
var ErrName = errors.New("neither an address nor a name")

// An endpoint is where a relay is, or several of one name are.
type endpoint struct {
	addr netip.Addr // of a literal
	host string     // otherwise
	port uint16
}

func (e endpoint) String() string {
	if e.addr.IsValid() {
		return netip.AddrPortFrom(e.addr, e.port).String()
	}
	return e.host + ":" + strconv.Itoa(int(e.port))
}

// Check tells whether [Static] and [File] understand text: an address or a name, with a port or without, as in
// 192.0.2.7, 192.0.2.7:7125, relay.example.net, relay.example.net:7125, 2001:db8::1 and [2001:db8::1]:7125.
// The error wraps [ErrName].
func Check(text string) error {
	_, err := parseEndpoint(text, 1)
	return err
}

func parseEndpoint(text string, port uint16) (endpoint, error) {
	fail := func(why string) (endpoint, error) {
		return endpoint{}, fmt.Errorf("%q is %w: %s", text, ErrName, why)
	}
	host := text
	// A colon is before a port, unless there are several outside of brackets: they are an IPv6 address.
	if at := strings.LastIndexByte(text, ':'); at >= 0 && (strings.Count(text, ":") == 1 || strings.Contains(text, "]:")) {
		n, err := strconv.ParseUint(text[at+1:], 10, 16)
		if err != nil || n == 0 {
			return fail("a port is a number from 1 to 65535")
		}
		host, port = text[:at], uint16(n)
	}
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		var closed bool
		if inner, closed = strings.CutSuffix(inner, "]"); !closed {
			return fail("a bracket is not closed")
		}
	}
	addr, err := netip.ParseAddr(inner)
	switch {
	case err == nil && (!bracketed || addr.Is6()):
		if !usable(addr) {
			return fail("no relay can have that address")
		}
		return endpoint{addr: addr.Unmap(), port: port}, nil
	case bracketed || strings.Contains(host, ":"):
		return fail("no IPv6 address")
	case !validHost(host):
		return fail("a name is made of letters, digits, hyphens and dots")
	}
	return endpoint{host: host, port: port}, nil
}

// validHost tells whether a name can be asked for. Container engines have names with underscores.
func validHost(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if len(name) > 253 {
		return false
	}
	digits := false
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		digits = true
		for _, c := range []byte(label) {
			switch {
			case '0' <= c && c <= '9':
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
				digits = false
			default:
				return false
			}
		}
	}
	return !digits // such as 10.0.0.256: an address with a slip
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// usable tells whether a relay can have the address.
func usable(a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsUnspecified() && !a.IsMulticast() && a != broadcast
}
