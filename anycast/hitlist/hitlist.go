// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package hitlist

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/seed5728abee/fathom/anycast"
)

// ErrLine is what every [LineError] is.
var ErrLine = errors.New("malformed line")

// LineError says what is wrong with a line.
type LineError struct {
	Line   int // from 1
	Reason string
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

// Is makes errors.Is(err, ErrLine) true.
func (e *LineError) Is(target error) bool { return target == ErrLine }

// MaxLine bounds the length of a line in bytes. Names have at most 253.
const MaxLine = 1024

// List is a hit list. Addresses, of which there may be millions, are apart from the few names and prefixes.
type List struct {
	Addrs []netip.Addr
	Text  []string
}

// Read reads a hit list: an address, a name or a prefix a line. Errors: *LineError, those of the reader.
func Read(r io.Reader) (List, error) {
	var l List
	err := lines(r, func(fields []string) error {
		if len(fields) != 1 {
			return fmt.Errorf("%q: want one address, name or prefix", strings.Join(fields, " "))
		}
		word := fields[0]
		if a, err := netip.ParseAddr(word); err == nil {
			if a.Zone() != "" {
				return fmt.Errorf("%s: an address with a zone means something on one host only", word)
			}
			l.Addrs = append(l.Addrs, a.Unmap())
			return nil
		}
		if strings.Contains(word, "/") {
			if _, err := netip.ParsePrefix(word); err != nil {
				return fmt.Errorf("%q is no prefix such as 198.51.100.0/24", word)
			}
		} else if err := checkName(word); err != nil {
			return err
		}
		l.Text = append(l.Text, word)
		return nil
	})
	return l, err
}

// checkName refuses what can be no host name, so that a wrong file does not become a flood of look-ups.
func checkName(s string) error {
	name := strings.TrimSuffix(s, ".")
	ok := name != "" && len(name) <= 253
	digits := true
	for label := range strings.SplitSeq(name, ".") {
		ok = ok && label != "" && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-'
		for _, c := range []byte(label) {
			digit := '0' <= c && c <= '9'
			digits = digits && digit
			ok = ok && (digit || 'a' <= c|0x20 && c|0x20 <= 'z' || c == '-' || c == '_')
		}
	}
	if !ok || digits {
		return fmt.Errorf("%q is no address, name or prefix", s)
	}
	return nil
}

// ReadNetworks reads networks, a prefix or an address a line: those not to be probed. Errors: *LineError, those of the reader.
func ReadNetworks(r io.Reader) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	err := lines(r, func(fields []string) error {
		if len(fields) != 1 {
			return fmt.Errorf("%q: want one network", strings.Join(fields, " "))
		}
		p, err := network(fields[0])
		networks = append(networks, p)
		return err
	})
	return networks, err
}

// ReadWeights reads query counts: a prefix or an address, and a number, a line. Errors: *LineError, those of the reader.
func ReadWeights(r io.Reader) ([]anycast.Weight, error) {
	var weights []anycast.Weight
	err := lines(r, func(fields []string) error {
		if len(fields) != 2 {
			return fmt.Errorf("%q: want a network and a number", strings.Join(fields, " "))
		}
		p, err := network(fields[0])
		if err != nil {
			return err
		}
		n, err := strconv.ParseFloat(fields[1], 64)
		if err != nil || !(n >= 0) || math.IsInf(n, 0) {
			return fmt.Errorf("%q is no number of queries", fields[1])
		}
		weights = append(weights, anycast.Weight{Network: p, Queries: n})
		return nil
	})
	return weights, err
}

// network reads a prefix, or an address as the longest one.
func network(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is no network such as 198.51.100.0/24", s)
	}
	return p.Masked(), nil
}

// lines gives each line's fields, without comments. They are parted by white space, or by commas.
func lines(r io.Reader, f func(fields []string) error) error {
	s := bufio.NewScanner(bufio.NewReaderSize(r, 64<<10))
	s.Buffer(make([]byte, 0, MaxLine), MaxLine) // its first size is a bound, too
	n := 0
	for s.Scan() {
		n++
		text, _, _ := strings.Cut(s.Text(), "#")
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff") // some editors' mark
		}
		fields := strings.FieldsFunc(text, func(c rune) bool { return c == ' ' || c == '\t' || c == '\r' || c == ',' })
		if len(fields) == 0 {
			continue
		}
		if err := f(fields); err != nil {
			return &LineError{n, err.Error()}
		}
	}
	if errors.Is(s.Err(), bufio.ErrTooLong) {
		return &LineError{n + 1, fmt.Sprintf("longer than %d bytes", MaxLine)}
	}
	return s.Err()
}
