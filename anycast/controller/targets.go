// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
)

const (
	// maxTargets bounds the targets of one measurement: there are 14.7 million /24 networks in use by routing.
	maxTargets = 16 << 20
	// maxNames bounds how many targets of one measurement are names.
	maxNames = 4096
	// resolving is how many names of one measurement are looked up at once.
	resolving = 16

	// Catchments are known by network: the smallest that routing between networks tells apart.
	networkBits4 = 24
	networkBits6 = 48
)

// targetList gathers the targets of a measurement.
type targetList struct {
	c       *Controller
	targets []anycast.Target
	names   int
}

// add takes the targets of one message.
func (l *targetList) add(m *measurepb.StartRequest) error {
	for _, text := range m.GetTargets() {
		if err := l.addText(text); err != nil {
			return err
		}
	}
	for _, column := range []struct {
		bytes []byte
		size  int
	}{{m.GetTargets4(), 4}, {m.GetTargets6(), 16}} {
		if len(column.bytes)%column.size != 0 {
			return fmt.Errorf("%w: %d bytes of addresses of %d bytes", errInvalid, len(column.bytes), column.size)
		}
		if err := l.fits(len(column.bytes) / column.size); err != nil {
			return err
		}
		for b := range slices.Chunk(column.bytes, column.size) {
			a, _ := netip.AddrFromSlice(b)
			l.targets = append(l.targets, anycast.Target{Addr: a.Unmap()})
		}
	}
	return nil
}

func (l *targetList) fits(more int) error {
	if len(l.targets)+more > maxTargets {
		return fmt.Errorf("%w: more than %d targets", errInvalid, maxTargets)
	}
	return nil
}

// addText takes an address, a prefix or a name.
func (l *targetList) addText(text string) error {
	if len(text) > 255 {
		return fmt.Errorf("%w: target of %d bytes", errInvalid, len(text))
	}
	if strings.Contains(text, "/") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("%w: target %q: %w", errInvalid, text, err)
		}
		return l.addPrefix(p)
	}
	if err := l.fits(1); err != nil {
		return err
	}
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" {
			return fmt.Errorf("%w: target %s means something on its own host only", errInvalid, text)
		}
		l.targets = append(l.targets, anycast.Target{Addr: a.Unmap()})
		return nil
	}
	if l.names++; l.names > maxNames {
		return fmt.Errorf("%w: more than %d targets are names", errInvalid, maxNames)
	}
	l.targets = append(l.targets, anycast.Target{Name: text})
	return nil
}

// addPrefix takes the first host of each /24 or /48 inside a prefix; of a longer one its own first host, and of a whole
// address the address.
func (l *targetList) addPrefix(p netip.Prefix) error {
	p = p.Masked()
	bits := networkBits4
	if p.Addr().Is6() {
		bits = networkBits6
	}
	if p.Bits() >= bits {
		if err := l.fits(1); err != nil {
			return err
		}
		a := p.Addr()
		if p.Bits() < a.BitLen()-1 { // of the last two all addresses are hosts
			a = a.Next()
		}
		l.targets = append(l.targets, anycast.Target{Addr: a})
		return nil
	}
	if bits-p.Bits() > 30 {
		return fmt.Errorf("%w: %s has too many networks", errInvalid, p)
	}
	n := 1 << (bits - p.Bits())
	if err := l.fits(n); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	l.targets = slices.Grow(l.targets, n)
	first := p.Addr().As16()
	at := networkBits6/8 - 1 // the last byte of the network's number
	if p.Addr().Is4() {
		at = 12 + networkBits4/8 - 1
	}
	for range n {
		a := first
		a[15]++
		l.targets = append(l.targets, anycast.Target{Addr: netip.AddrFrom16(a).Unmap()})
		for i := at; i >= 0; i-- {
			if first[i]++; first[i] != 0 {
				break
			}
		}
	}
	return nil
}

// resolve looks names up.
func (l *targetList) resolve(ctx context.Context) ([]anycast.Target, error) {
	type found struct {
		at   int
		addr netip.Addr
		err  error
	}
	work := make(chan int)
	results := make(chan found)
	for range min(l.names, resolving) {
		go func() { // ends when work is closed; every result is waited for
			for at := range work {
				addr, err := l.c.lookup(ctx, l.targets[at].Name)
				results <- found{at, addr, err}
			}
		}()
	}
	go func() {
		defer close(work)
		for at := range l.targets {
			if l.targets[at].Name != "" {
				work <- at
			}
		}
	}()
	var errs []error
	addrs := make(map[int]netip.Addr, l.names)
	for range l.names {
		r := <-results
		addrs[r.at] = r.addr
		if r.err != nil {
			errs = append(errs, fmt.Errorf("%w: target %s: %w", errInvalid, printable(l.targets[r.at].Name, 255), r.err))
		}
	}
	if len(errs) > 0 {
		return nil, errs[0]
	}
	for at, addr := range addrs {
		l.targets[at].Addr = addr
	}
	return l.targets, ctx.Err()
}

// lookup gives an address of a name, of version 4 if it has one.
func (c *Controller) lookup(ctx context.Context, name string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := c.resolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if a.Unmap().Is4() {
			return a.Unmap(), nil
		}
	}
	if len(addrs) == 0 {
		return netip.Addr{}, errors.New("no address")
	}
	return addrs[0], nil
}
