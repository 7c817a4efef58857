// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gaissmai/bart"
	"github.com/oschwald/maxminddb-golang/v2"
)

// FileSource is a [Source] that reads from a file. It must be closed.
type FileSource interface {
	Source
	io.Closer
}

// OpenFile opens a file of autonomous systems or countries: one in MaxMind's format if its name
// ends in .mmdb, else a text file as [ReadPrefixes] reads it. A data base in MaxMind's format may
// be one of autonomous systems, of countries or of cities.
func OpenFile(name string) (FileSource, error) {
	if strings.EqualFold(filepath.Ext(name), ".mmdb") {
		db, err := maxminddb.Open(name)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
		return (*maxMind)(db), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := ReadPrefixes(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return p, nil
}

// maxMind is a data base in MaxMind's format.
type maxMind maxminddb.Reader

func (m *maxMind) Close() error { return (*maxminddb.Reader)(m).Close() }

func (m *maxMind) Annotate(_ context.Context, addr netip.Addr, a *Annotation) error {
	var rec struct {
		ASN     uint32 `maxminddb:"autonomous_system_number"`
		ASName  string `maxminddb:"autonomous_system_organization"`
		Country struct {
			Code string `maxminddb:"iso_code"`
		} `maxminddb:"country"`
	}
	res := (*maxminddb.Reader)(m).Lookup(addr)
	if err := res.Decode(&rec); err != nil {
		return fmt.Errorf("look up %s: %w", addr, err)
	}
	if !res.Found() {
		return nil
	}
	got := Annotation{ASN: rec.ASN, ASName: cleanText(rec.ASName), Country: country(rec.Country.Code)}
	if rec.ASN != 0 { // else the network is the data base's, not that of the announcement
		got.Prefix = res.Prefix()
	}
	a.merge(got)
	return nil
}

// Prefixes is a [Source] that has networks in memory.
type Prefixes struct {
	table bart.Table[origin]
}

type origin struct {
	asn           uint32
	name, country string
}

// Limits of [ReadPrefixes]: ten times the routes of the Internet, and no line is longer than names are.
const (
	maxPrefixes   = 16_000_000
	maxPrefixLine = 4096
)

// ErrPrefixFile says that a prefix file has a line that cannot be read. The message has its number.
var ErrPrefixFile = errors.New("want lines such as 192.0.2.0/24,64496,name,country")

// ReadPrefixes reads a text file of networks and their autonomous systems, one in a line:
//
//	192.0.2.0/24,64496,Example Networks,NZ     CSV: network, number, name, country
//	192.0.2.0/24 AS64496                       the same with spaces or tabs: network, number
//	192.0.2.0	24	64496                      as in RouteViews' pfx2as files: address, length, number
//
// Name and country may be missing, and in CSV the number may be empty, for a file of countries. The number may begin with AS; of several numbers ("64496_64511",
// "64496,64511" in pfx2as files) the first counts. Empty lines, lines that begin with # and a line of column titles
// at the beginning are skipped. The last line for a network counts.
func ReadPrefixes(r io.Reader) (*Prefixes, error) {
	var p Prefixes
	names := make(map[string]string) // the same text once
	keep := func(s string) string {
		if kept, ok := names[s]; ok {
			return kept
		}
		s = strings.Clone(s)
		names[s] = s
		return s
	}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, maxPrefixLine), maxPrefixLine)
	for line := 1; in.Scan(); line++ {
		text := strings.TrimSpace(in.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		prefix, o, err := parsePrefixLine(text)
		if err != nil {
			if line == 1 && !strings.ContainsAny(text[:1], "0123456789:") {
				continue // column titles
			}
			return nil, fmt.Errorf("line %d: %w: %w", line, err, ErrPrefixFile)
		}
		o.name, o.country = keep(o.name), keep(o.country)
		p.table.Insert(prefix, o)
		if p.table.Size() > maxPrefixes {
			return nil, fmt.Errorf("line %d: more than %d networks", line, maxPrefixes)
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	return &p, nil
}

// parsePrefixLine reads a line that is neither empty nor a comment.
func parsePrefixLine(text string) (netip.Prefix, origin, error) {
	var none netip.Prefix
	first := strings.IndexAny(text, ", \t")
	if first < 0 {
		return none, origin{}, errors.New("one field only")
	}
	var fields []string
	if text[first] == ',' {
		var err error
		c := csv.NewReader(strings.NewReader(text))
		c.TrimLeadingSpace = true
		if fields, err = c.Read(); err != nil {
			return none, origin{}, err
		}
	} else {
		fields = strings.Fields(text)
		if !strings.Contains(fields[0], "/") && len(fields) > 2 {
			fields = append([]string{fields[0] + "/" + fields[1]}, fields[2:]...)
		}
		// Spaces may as well be in a name: only CSV has one.
		fields = fields[:min(len(fields), 2)]
	}
	if len(fields) < 2 {
		return none, origin{}, errors.New("one field only")
	}
	prefix, err := netip.ParsePrefix(strings.TrimSpace(fields[0]))
	if err != nil {
		return none, origin{}, err
	}
	if a := prefix.Addr(); a.Is4In6() {
		return none, origin{}, fmt.Errorf("network %s: write it as IPv4", prefix)
	}
	number := strings.ToUpper(strings.TrimSpace(fields[1]))
	number = strings.TrimPrefix(number, "AS")
	if i := strings.IndexAny(number, "_,"); i > 0 {
		number = number[:i]
	}
	asn, err := strconv.ParseUint(number, 10, 32)
	if err != nil && number != "" {
		return none, origin{}, fmt.Errorf("autonomous system %q: %w", fields[1], errors.Unwrap(err))
	}
	o := origin{asn: uint32(asn)}
	if len(fields) > 2 {
		o.name = cleanText(strings.TrimSpace(fields[2]))
	}
	if len(fields) > 3 {
		o.country = country(strings.TrimSpace(fields[3]))
	}
	return prefix.Masked(), o, nil
}

// Len gives the number of networks.
func (p *Prefixes) Len() int { return p.table.Size() }

// Close is there for [FileSource]; it does nothing.
func (p *Prefixes) Close() error { return nil }

// Annotate is [Source]'s method. It sets ASN, ASName, Prefix and Country.
func (p *Prefixes) Annotate(_ context.Context, addr netip.Addr, a *Annotation) error {
	prefix, o, ok := p.table.LookupPrefixLPM(netip.PrefixFrom(addr, addr.BitLen()))
	if !ok {
		return nil
	}
	got := Annotation{ASN: o.asn, ASName: o.name, Country: o.country}
	if o.asn != 0 {
		got.Prefix = prefix
	}
	a.merge(got)
	return nil
}
