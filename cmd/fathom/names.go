// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// addrLookups is how many lookups run at the same time.
	addrLookups = 8
	// addrLookupTimeout bounds one lookup. Many private and unused networks have no server that answers.
	addrLookupTimeout = 5 * time.Second
)

// addrCache finds something about addresses in the background, and keeps it.
type addrCache[T any] struct {
	lookup func(context.Context, netip.Addr) T // the zero T if there is nothing

	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu    sync.Mutex
	found map[netip.Addr]*T // nil while being looked up
}

func newAddrCache[T any](lookup func(context.Context, netip.Addr) T) *addrCache[T] {
	ctx, cancel := context.WithCancel(context.Background())
	return &addrCache[T]{
		lookup: lookup, ctx: ctx, cancel: cancel,
		slots: make(chan struct{}, addrLookups), found: make(map[netip.Addr]*T),
	}
}

// get gives what is known of an address: the zero T if there is nothing, or nothing yet. Then it
// is being looked up.
func (c *addrCache[T]) get(addr netip.Addr) (value T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, asked := c.found[addr]
	if known != nil {
		return *known
	}
	if !asked && c.ctx.Err() == nil {
		c.found[addr] = nil
		c.wg.Go(func() { c.find(addr) })
	}
	return value
}

func (c *addrCache[T]) find(addr netip.Addr) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-c.ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, addrLookupTimeout)
	defer cancel()
	value := c.lookup(ctx, addr)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found[addr] = &value
}

// wait waits for the lookups under way. The end of ctx ends them.
func (c *addrCache[T]) wait(ctx context.Context) {
	stop := context.AfterFunc(ctx, c.cancel)
	defer stop()
	c.wg.Wait()
}

// close ends the lookups under way.
func (c *addrCache[T]) close() {
	c.cancel()
	c.wg.Wait()
}

// lookupName asks the system's resolver.
func lookupName(ctx context.Context, addr netip.Addr) string {
	names, err := net.DefaultResolver.LookupAddr(ctx, addr.WithZone("").String())
	if err != nil || len(names) == 0 {
		return ""
	}
	return cleanName(names[0])
}

// cleanName makes a name safe to print: whoever owns an address chooses what its name says, and a
// terminal obeys control sequences.
func cleanName(name string) string {
	name = strings.TrimSuffix(name, ".")
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return strconv.QuoteToASCII(name)
	}
	return name
}

// addrFacts are what a registry knows about an address, by the constants below; empty texts are
// unknown. The order is that of mtr's option --ipinfo.
type addrFacts [5]string

// The facts about an address.
const (
	factASN       = iota // "AS64500"
	factPrefix           // "192.0.2.0/24"
	factCountry          // "NL"
	factRegistry         // "ripencc"
	factAllocated        // "1992-03-12"
)

// addrFactWidths are the widths that the facts usually need.
var addrFactWidths = [len(addrFacts{})]int{factASN: 8, factPrefix: 18, factCountry: 3, factRegistry: 8, factAllocated: 10}

// lookupFacts asks Team Cymru's DNS service for the origin of an address
// (https://www.team-cymru.com/ip-asn-mapping). Only global addresses have one; nobody is told of
// the others.
func lookupFacts(ctx context.Context, addr netip.Addr) (facts addrFacts) {
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return facts
	}
	texts, err := net.DefaultResolver.LookupTXT(ctx, originName(addr))
	if err != nil {
		return facts
	}
	for _, text := range texts {
		if facts, ok := parseOrigin(text); ok {
			return facts
		}
	}
	return facts
}

// originName is the name that holds the origin of an address: its bytes or nibbles, last first.
func originName(addr netip.Addr) string {
	var name strings.Builder
	raw := addr.AsSlice()
	for i := len(raw) - 1; i >= 0; i-- {
		if addr.Is4() {
			fmt.Fprintf(&name, "%d.", raw[i])
		} else {
			fmt.Fprintf(&name, "%x.%x.", raw[i]&15, raw[i]>>4)
		}
	}
	if addr.Is4() {
		return name.String() + "origin.asn.cymru.com."
	}
	return name.String() + "origin6.asn.cymru.com."
}

// parseOrigin reads an answer: "64500 | 192.0.2.0/24 | NL | ripencc | 1992-03-12". A prefix with
// several origins has several numbers; the first counts.
func parseOrigin(text string) (facts addrFacts, ok bool) {
	fields := strings.Split(text, "|")
	if len(fields) != len(facts) {
		return facts, false
	}
	fields[factASN], _, _ = strings.Cut(strings.TrimSpace(fields[factASN]), " ")
	if _, err := strconv.ParseUint(fields[factASN], 10, 32); err != nil {
		return facts, false
	}
	for i, field := range fields {
		facts[i] = cleanName(strings.TrimSpace(field))
	}
	facts[factASN] = "AS" + facts[factASN]
	return facts, true
}
