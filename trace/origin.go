// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// OriginDNS is a [Source] of autonomous systems that asks Team Cymru's service through the DNS, or
// one like it. Only public addresses are asked for.
//
// The TXT record of 1.2.0.192.origin.asn.cymru.com has the origin of 192.0.2.1, for example
// "64496 | 192.0.2.0/24 | NZ | apnic | 2011-08-10"; IPv6 has nibbles and origin6.
type OriginDNS struct {
	// Resolver is net.DefaultResolver unless set.
	Resolver *net.Resolver
	// Zone4 and Zone6 are origin.asn.cymru.com and origin6.asn.cymru.com unless set.
	Zone4, Zone6 string
	// AskPrivate asks for private addresses too, which makes sense with zones of one's own.
	AskPrivate bool
}

// Annotate is [Source]'s method. It sets ASN, Prefix, Country, Registry and Allocated.
func (s *OriginDNS) Annotate(ctx context.Context, addr netip.Addr, a *Annotation) error {
	if a.ASN != 0 || !s.AskPrivate && !public(addr) {
		return nil
	}
	r := s.Resolver
	if r == nil {
		r = net.DefaultResolver
	}
	texts, err := r.LookupTXT(ctx, s.name(addr))
	if err != nil {
		return ignoreNotFound(err)
	}
	// Networks may contain each other: the smallest one counts.
	var best Annotation
	for _, text := range texts {
		if got, ok := parseOrigin(text); ok && got.Prefix.Contains(addr) && (!best.Prefix.IsValid() || got.Prefix.Bits() > best.Prefix.Bits()) {
			best = got
		}
	}
	a.merge(best)
	return nil
}

// merge takes over what is not known yet.
func (a *Annotation) merge(b Annotation) {
	if a.Name == "" {
		a.Name = b.Name
	}
	if a.ASN == 0 {
		a.ASN, a.ASName = b.ASN, b.ASName
	}
	if !a.Prefix.IsValid() {
		a.Prefix = b.Prefix
	}
	if a.Country == "" {
		a.Country = b.Country
	}
	if a.Registry == "" {
		a.Registry, a.Allocated = b.Registry, b.Allocated
	}
}

// name gives the domain name that has the origin of an address. The final dot keeps the
// resolver's search list out.
func (s *OriginDNS) name(addr netip.Addr) string {
	var b strings.Builder
	raw := addr.AsSlice()
	zone := s.Zone4
	if addr.Is4() {
		for _, octet := range slices.Backward(raw) {
			fmt.Fprintf(&b, "%d.", octet)
		}
		if zone == "" {
			zone = "origin.asn.cymru.com"
		}
	} else {
		for _, octet := range slices.Backward(raw) {
			fmt.Fprintf(&b, "%x.%x.", octet&15, octet>>4)
		}
		if zone = s.Zone6; zone == "" {
			zone = "origin6.asn.cymru.com"
		}
	}
	return b.String() + strings.TrimSuffix(zone, ".") + "."
}

// parseOrigin reads an answer. A network with several origins has several numbers, of which the first counts.
func parseOrigin(text string) (Annotation, bool) {
	fields := strings.Split(text, "|")
	if len(fields) < 3 {
		return Annotation{}, false
	}
	for i := range fields {
		fields[i] = strings.TrimSpace(fields[i])
	}
	number, _, _ := strings.Cut(fields[0], " ")
	asn, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return Annotation{}, false
	}
	prefix, err := netip.ParsePrefix(fields[1])
	if err != nil {
		return Annotation{}, false
	}
	a := Annotation{ASN: uint32(asn), Prefix: prefix.Masked(), Country: country(fields[2])}
	if len(fields) > 3 {
		a.Registry = cleanText(fields[3])
	}
	if len(fields) > 4 {
		a.Allocated = cleanText(fields[4])
	}
	return a, true
}

// country gives a country code in upper case, or nothing if it is none.
func country(s string) string {
	if len(s) != 2 {
		return ""
	}
	s = strings.ToUpper(s)
	for i := range len(s) {
		if s[i] < 'A' || s[i] > 'Z' {
			return ""
		}
	}
	return s
}
