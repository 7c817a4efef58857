// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package hitlist

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/seed5728abee/fathom/anycast"
)

var (
	// ErrSyntax means that a line is not as it must be. The text names the line, from 1.
	ErrSyntax = errors.New("malformed hit list")
	// ErrTooLarge means that there are more lines than were asked for at most.
	ErrTooLarge = errors.New("hit list too large")
)

// MaxLine is the length of a line, in bytes. A name has 253 at most.
const MaxLine = 1024

// Entry is a line with something on it. Exactly one of Addr, Prefix and Name is set.
type Entry struct {
	Line   int // from 1
	Addr   netip.Addr
	Prefix netip.Prefix // masked
	Name   string
	// Rest is what else the line has, without a comment and the space around it.
	Rest string
}

// String gives the address, prefix or name.
func (e Entry) String() string {
	switch {
	case e.Addr.IsValid():
		return e.Addr.String()
	case e.Prefix.IsValid():
		return e.Prefix.String()
	}
	return e.Name
}

// Network gives the prefix, or that of one address. It is the zero Prefix for a name.
func (e Entry) Network() netip.Prefix {
	if e.Addr.IsValid() {
		return netip.PrefixFrom(e.Addr, e.Addr.BitLen())
	}
	return e.Prefix
}

// Entries gives one line after the other. After an error, ErrSyntax or one of r, there are no more.
func Entries(r io.Reader) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(make([]byte, 0, MaxLine+5), MaxLine+5) // with a byte order mark and the line's end
		n := 0
		for lines.Scan() && lines.Err() == nil { // a line that an error of r cut short is none
			n++
			line := lines.Bytes()
			if n == 1 {
				line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
			}
			if len(line) > MaxLine {
				yield(Entry{}, tooLong(n))
				return
			}
			e, err := ParseLine(line)
			if err != nil {
				yield(Entry{}, fmt.Errorf("line %d: %w", n, err))
				return
			}
			if e == (Entry{}) {
				continue
			}
			e.Line = n
			if !yield(e, nil) {
				return
			}
		}
		if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield(Entry{}, tooLong(n+1))
		} else if err != nil {
			yield(Entry{}, fmt.Errorf("read hit list after line %d: %w", n, err))
		}
	}
}

func tooLong(line int) error {
	return fmt.Errorf("line %d: %w: longer than %d bytes", line, ErrSyntax, MaxLine)
}

const separators = " \t,;\r"

// ParseLine reads a line. It is the zero Entry if there is nothing on it; Line is not set. The error is ErrSyntax.
func ParseLine(line []byte) (Entry, error) {
	text := string(line)
	for i := range len(text) {
		if text[i] == '#' && (i == 0 || strings.IndexByte(separators, text[i-1]) >= 0) {
			text = text[:i]
			break
		}
	}
	text = strings.Trim(text, separators)
	if text == "" {
		return Entry{}, nil
	}
	var e Entry
	first := text
	if i := strings.IndexAny(text, separators); i >= 0 {
		first, e.Rest = text[:i], strings.TrimLeft(text[i:], separators)
	}
	if strings.IndexByte(first, '/') >= 0 {
		p, err := netip.ParsePrefix(first)
		if err != nil {
			return Entry{}, fmt.Errorf("%w: %.64q is not a prefix", ErrSyntax, first)
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		e.Prefix = p.Masked()
		return e, nil
	}
	if a, err := netip.ParseAddr(first); err == nil {
		if a.Zone() != "" {
			return Entry{}, fmt.Errorf("%w: %.64q means something on its own host only", ErrSyntax, first)
		}
		e.Addr = a.Unmap()
		return e, nil
	}
	if !isName(first) {
		return Entry{}, fmt.Errorf("%w: %.64q is no address, prefix or name", ErrSyntax, first)
	}
	e.Name = first
	return e, nil
}

// isName tells whether s is a host name: letters, digits, hyphens and underscores in labels of at most 63 (RFC 1035). The last
// label is no number, which is a mistyped address instead (RFC 3696).
func isName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			letter := 'a' <= c|0x20 && c|0x20 <= 'z'
			if !letter && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
		last = label
	}
	return strings.Trim(last, "0123456789") != ""
}

// List is targets, as a client starts a measurement with them.
type List struct {
	// Addrs are the addresses, in their order.
	Addrs []netip.Addr
	// Text are the names and prefixes, in theirs. Each /24 or /48 inside a prefix is a target.
	Text []string
}

// Read reads targets: at most so many lines with something on them, 0 for no limit. Errors: ErrSyntax, ErrTooLarge,
// and those of r.
func Read(r io.Reader, limit int) (List, error) {
	var l List
	for e, err := range Entries(r) {
		if err != nil {
			return List{}, err
		}
		if limit > 0 && len(l.Addrs)+len(l.Text) == limit {
			return List{}, fmt.Errorf("line %d: %w: more than %d targets", e.Line, ErrTooLarge, limit)
		}
		if e.Addr.IsValid() {
			l.Addrs = append(l.Addrs, e.Addr)
		} else {
			l.Text = append(l.Text, e.String())
		}
	}
	return l, nil
}

// ReadPrefixes reads networks, such as those that must not be probed. An address is a network of one. Errors: ErrSyntax,
// also for a name, and those of r.
func ReadPrefixes(r io.Reader) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for e, err := range Entries(r) {
		if err != nil {
			return nil, err
		}
		p := e.Network()
		if !p.IsValid() {
			return nil, fmt.Errorf("line %d: %w: %.64q is a name, and has no network", e.Line, ErrSyntax, e.Name)
		}
		list = append(list, p)
	}
	return list, nil
}

// ReadWeights reads how much networks count, their queries per day for example: a number, not negative, behind each
// prefix or address; 1 if there is none. An address counts for its network (see [anycast.Network]), and what is there several
// times is added up. Errors: ErrSyntax, also for a name, and those of r.
func ReadWeights(r io.Reader) ([]anycast.Weight, error) {
	var list []anycast.Weight
	index := make(map[netip.Prefix]int)
	for e, err := range Entries(r) {
		if err != nil {
			return nil, err
		}
		p := e.Prefix
		if e.Addr.IsValid() {
			p = anycast.Network(e.Addr)
		}
		if !p.IsValid() {
			return nil, fmt.Errorf("line %d: %w: %.64q is a name, and has no network", e.Line, ErrSyntax, e.Name)
		}
		weight, err := weightOf(e.Rest)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", e.Line, err)
		}
		i, ok := index[p]
		if !ok {
			i = len(list)
			index[p] = i
			list = append(list, anycast.Weight{Network: p})
		}
		if list[i].Queries += weight; math.IsInf(list[i].Queries, 0) {
			return nil, fmt.Errorf("line %d: %w: the weights of %s add up to more than a number can be", e.Line, ErrSyntax, p)
		}
	}
	return list, nil
}

// weightOf reads the first word of what follows a target.
func weightOf(rest string) (float64, error) {
	if rest == "" {
		return 1, nil
	}
	if i := strings.IndexAny(rest, separators); i >= 0 {
		rest = rest[:i]
	}
	w, err := strconv.ParseFloat(rest, 64)
	if err != nil || math.IsNaN(w) || math.IsInf(w, 0) || w < 0 {
		return 0, fmt.Errorf("%w: %.64q is not a weight", ErrSyntax, rest)
	}
	return w, nil
}
