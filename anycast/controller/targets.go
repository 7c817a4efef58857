// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

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
	if err := checkColumns(m); err != nil {
		return err
	}
	if err := l.fits(len(m.GetTargets4())/4 + len(m.GetTargets6())/16); err != nil {
		return err
	}
	for b := range slices.Chunk(m.GetTargets4(), 4) {
		l.targets = append(l.targets, anycast.Target{Addr: netip.AddrFrom4([4]byte(b))})
	}
	for b := range slices.Chunk(m.GetTargets6(), 16) {
		l.targets = append(l.targets, anycast.Target{Addr: netip.AddrFrom16([16]byte(b)).Unmap()})
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
	target, prefix, err := parseTarget(text)
	if err != nil {
		return err
	}
	if prefix.IsValid() {
		return l.addPrefix(prefix)
	}
	if err := l.fits(1); err != nil {
		return err
	}
	if target.Name != "" {
		if l.names++; l.names > maxNames {
			return fmt.Errorf("%w: more than %d targets are names", errInvalid, maxNames)
		}
	}
	l.targets = append(l.targets, target)
	return nil
}

// addPrefix takes a target of each network inside a prefix.
func (l *targetList) addPrefix(p netip.Prefix) error {
	n, err := networksOf(p)
	if err != nil {
		return err
	}
	if err := l.fits(n.left); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	l.targets = slices.Grow(l.targets, n.left)
	for n.left > 0 {
		l.targets = append(l.targets, anycast.Target{Addr: n.next()})
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
