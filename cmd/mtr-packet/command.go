// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/probe"
)

const (
	// maxWords is the token, the command, and 16 pairs of name and value.
	maxWords = 2 + 2*16
	// maxSize is the longest packet that a command may ask for.
	maxSize = 9000
	// minLocalPort is the lowest source port that a command may ask for.
	minLocalPort = 1024
)

// verb is what a command wants.
type verb uint8

const (
	_ verb = iota
	checkSupport
	sendProbe
)

// command is a parsed line. Slices are views into the line.
type command struct {
	token   int64
	verb    verb
	feature []byte        // of check-support
	request probe.Request // of send-probe; Interface and Tag are not set
	device  []byte        // of send-probe: the interface, nil if none

	words [maxWords][]byte
}

// parse reads a line without its newline. If it is not a command that can be tried, refusal is the
// answer to token c.token; otherwise it is empty.
func (c *command) parse(line []byte) (refusal string) {
	c.token = 0
	n, ok := split(line, &c.words)
	if !ok || n < 2 || n%2 != 0 {
		return wordParseError
	}
	token, ok := parseToken(c.words[0])
	if !ok {
		return wordParseError
	}
	c.token = token
	switch arguments := c.words[2:n]; string(c.words[1]) {
	case "check-support":
		return c.parseCheckSupport(arguments)
	case "send-probe":
		return c.parseSendProbe(arguments)
	}
	return wordUnknownCommand
}

func (c *command) parseCheckSupport(arguments [][]byte) (refusal string) {
	c.verb, c.feature = checkSupport, nil
	for ; len(arguments) > 0; arguments = arguments[2:] {
		if string(arguments[0]) == "feature" {
			c.feature = arguments[1]
		}
	}
	if c.feature == nil {
		return wordInvalidArgument
	}
	return ""
}

func (c *command) parseSendProbe(arguments [][]byte) (refusal string) {
	c.verb, c.device = sendProbe, nil
	c.request = probe.Request{}
	r := &c.request
	tos, size := int32(0), int32(probe.DefaultSize)
	for ; len(arguments) > 0; arguments = arguments[2:] {
		value := arguments[1]
		var n int64
		ok := true
		switch string(arguments[0]) {
		case "ip-4":
			r.Target, ok = parseIPv4(value)
		case "ip-6":
			r.Target, ok = parseIPv6(value)
		case "local-ip-4":
			r.LocalAddr, ok = parseIPv4(value)
		case "local-ip-6":
			r.LocalAddr, ok = parseIPv6(value)
		case "local-device":
			c.device = value
		case "protocol":
			r.Protocol, ok = parseProtocol(value)
		case "port":
			n, ok = parseNumber(value)
			ok = ok && n >= 0 && n <= math.MaxUint16
			r.Port = uint16(n)
		case "local-port":
			n, ok = parseNumber(value)
			ok = ok && n >= minLocalPort && n <= math.MaxUint16
			r.LocalPort = uint16(n)
		case "ttl":
			n, ok = parseNumber(value)
			ok = ok && n >= 1 && n <= math.MaxUint8
			r.TTL = uint8(n)
		// The following are truncated to 32 bits first, as in the original.
		case "size":
			n, ok = parseNumber(value)
			size = int32(n)
		case "bit-pattern":
			n, ok = parseNumber(value)
			r.Pattern = byte(n)
		case "tos":
			n, ok = parseNumber(value)
			tos = int32(n)
		case "mark":
			n, ok = parseNumber(value)
			r.Mark = uint32(n)
		case "timeout":
			r.Timeout, ok = parseTimeout(value)
		}
		if !ok {
			return wordInvalidArgument
		}
	}
	switch {
	case !r.Target.IsValid():
		return wordNoIPVersion
	case r.LocalAddr.IsValid() && r.LocalAddr.Is4() != r.Target.Is4(),
		r.Target.Is6() && (tos < 0 || tos > math.MaxUint8):
		return wordInvalidArgument
	}
	r.TOS = uint8(tos)
	if r.Protocol == probe.ICMP || r.Protocol == probe.UDP {
		if size > maxSize {
			return wordInvalidArgument
		}
		r.Size = int(max(size, 1)) // 0 would be the default
	}
	return ""
}

// split cuts a line at white space, as isspace does in the C locale. ok is false if there are
// more words than fit.
func split(line []byte, words *[maxWords][]byte) (n int, ok bool) {
	for i := 0; ; n++ {
		for i < len(line) && isSpace(line[i]) {
			i++
		}
		if i == len(line) {
			return n, true
		}
		if n == len(words) {
			return n, false
		}
		start := i
		for i < len(line) && !isSpace(line[i]) {
			i++
		}
		words[n] = line[start:i:i]
	}
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// parseInteger is strtol in base 10: an optional sign, digits, and a rest that it
// does not look at. A value out of range is the nearest one within, and exact is false.
func parseInteger(b []byte) (value int64, rest []byte, exact bool) {
	negative := false
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		negative = b[0] == '-'
		b = b[1:]
	}
	limit := uint64(math.MaxInt64)
	if negative {
		limit++
	}
	exact = true
	var v uint64
	for len(b) > 0 && b[0] >= '0' && b[0] <= '9' {
		d := uint64(b[0] - '0')
		if v > (limit-d)/10 {
			v, exact = limit, false
		} else {
			v = 10*v + d
		}
		b = b[1:]
	}
	if negative {
		return -int64(v), b, exact
	}
	return int64(v), b, exact
}

// parseToken reads as much of a word as is a number; a word that begins with none is 0.
func parseToken(b []byte) (token int64, ok bool) {
	token, _, ok = parseInteger(b)
	return token, ok
}

// parseNumber reads a word that is a number to its end. One out of the range of int64 is the nearest within.
func parseNumber(b []byte) (n int64, ok bool) {
	n, rest, _ := parseInteger(b)
	last := b[len(b)-1] // words are not empty
	return n, len(rest) == 0 && last >= '0' && last <= '9'
}

// parseTimeout reads seconds: whole ones as parseNumber does, cut to 32 bits as in the original, or, which
// the original refuses, with decimals. The result is never 0, which would be a Request's default:
// a time too short to wait is negative.
func parseTimeout(b []byte) (d time.Duration, ok bool) {
	dot := -1
	for i, c := range b {
		if c == '.' {
			dot = i
			break
		}
	}
	if dot < 0 {
		n, ok := parseNumber(b)
		return bounded(int64(int32(n)), 0), ok
	}
	seconds, rest, _ := parseInteger(b[:dot])
	decimals := b[dot+1:]
	if len(rest) != 0 || len(decimals) == 0 {
		return 0, false
	}
	nanoseconds, unit := int64(0), int64(time.Second)
	for _, c := range decimals {
		if c < '0' || c > '9' {
			return 0, false
		}
		unit /= 10
		nanoseconds += int64(c-'0') * unit
	}
	if b[0] == '-' {
		return -1, true
	}
	return bounded(seconds, nanoseconds), true
}

func bounded(seconds, nanoseconds int64) time.Duration {
	if seconds >= int64(probe.MaxTimeout/time.Second) {
		return probe.MaxTimeout
	}
	if seconds < 0 || seconds == 0 && nanoseconds == 0 {
		return -1
	}
	return time.Duration(seconds)*time.Second + time.Duration(nanoseconds)
}

func parseProtocol(b []byte) (p probe.Protocol, ok bool) {
	switch string(b) {
	case "icmp":
		return probe.ICMP, true
	case "udp":
		return probe.UDP, true
	case "tcp":
		return probe.TCP, true
	case "sctp":
		return probe.SCTP, true
	}
	return 0, false
}

// linkLocal tells whether an address means something only together with an interface.
func linkLocal(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }
