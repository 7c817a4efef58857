// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// Announce lets a node announce prefixes among its addresses again, or at another cost, and returns when all
// nodes route accordingly. What is announced as asked already stays so. Traffic to
// other addresses is not disturbed, no node is without a route while it gets a new one, and without Stagger nodes
// change in an order that keeps packets from running in circles meanwhile: not one is lost.
//
// A change in progress finishes before the next one begins. If ctx ends meanwhile, what Stagger has
// held back is changed at once, so that the lab is whole, and the error is that of ctx. Other errors: [ErrNoNode],
// [ErrNotHeld], [ErrTopology] for options that make no sense, [net.ErrClosed].
func (l *Lab) Announce(ctx context.Context, node string, o AnnounceOptions) error {
	return l.announce(ctx, node, &o, false)
}

// Withdraw makes all nodes route as if the node did not hold the prefixes: to the next nearest of those
// that do, or nowhere. The addresses stay on the node, and its sockets live. Otherwise it is like Announce.
func (l *Lab) Withdraw(ctx context.Context, node string, o AnnounceOptions) error {
	return l.announce(ctx, node, &o, true)
}

// Announcements are the prefixes of a node that are not announced plainly: withdrawn ones, and those at a cost.
// The error is [ErrNoNode].
func (l *Lab) Announcements(node string) ([]AnnounceConfig, error) {
	h, err := l.Lookup(node)
	if err != nil {
		return nil, err
	}
	return l.announcementsOf(h.plan), nil
}

func (l *Lab) announcementsOf(n *planNode) []AnnounceConfig {
	l.routesMu.Lock()
	defer l.routesMu.Unlock()
	var out []AnnounceConfig
	for k, a := range l.announced {
		if k.node == n {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b AnnounceConfig) int { return comparePrefix(a.Prefix, b.Prefix) })
	return out
}

// Catchment is where packets from a node to an address end at present, by the routes of the nodes between: the
// names of the nodes that hold it, several if equal paths part, none if it is out of reach. The
// error is [ErrNoNode].
func (l *Lab) Catchment(from string, to netip.Addr) ([]string, error) {
	h, err := l.Lookup(from)
	if err != nil {
		return nil, err
	}
	l.routesMu.Lock()
	defer l.routesMu.Unlock()
	return l.plan.catchment(l.routes, h.plan, to), nil
}

func (l *Lab) announce(ctx context.Context, node string, o *AnnounceOptions, withdraw bool) error {
	h, err := l.Lookup(node)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	if !l.spawn(func() { // Close must not take the namespaces away meanwhile
		defer close(done)
		err = l.change(ctx, h.plan, o, withdraw)
	}) {
		return fmt.Errorf("lab %s: %w", l.plan.topology.label(), net.ErrClosed)
	}
	<-done
	return err
}

// change changes announcements of a node, and then the routes of all nodes.
func (l *Lab) change(ctx context.Context, n *planNode, o *AnnounceOptions, withdraw bool) error {
	select {
	case l.changing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.closing:
		return net.ErrClosed
	}
	defer func() { <-l.changing }()
	// Only the one that holds the token writes what is announced, and what the routes are.
	announced, err := o.changed(l.announced, n, withdraw)
	if err != nil {
		return err
	}
	if o.Stagger > 0 {
		return l.converge(ctx, announced, l.plan.hops(n), o.Stagger)
	}
	var errs []error
	for _, prefix := range n.prefixes() {
		k := holding{n, prefix}
		step := maps.Clone(l.announced)
		delete(step, k)
		if to, ok := announced[k]; ok {
			step[k] = to
		}
		errs = append(errs, l.converge(ctx, step, l.plan.order(k.prefix, l.announced, step, n), 0))
	}
	return errors.Join(errs...)
}

// converge gives all nodes their routes under other announcements, those of the lowest rank first, and each rank a
// stagger after the one before.
func (l *Lab) converge(ctx context.Context, announced announcements, rank []int, stagger time.Duration) error {
	routes, err := l.plan.findRoutes(announced)
	if err != nil {
		return err
	}
	l.routesMu.Lock()
	l.announced = announced
	l.routesMu.Unlock()

	waves := map[int][]*Host{} // by rank
	for i, r := range rank {
		if !slices.EqualFunc(routes[i], l.routes[i], planRoute.equal) {
			waves[r] = append(waves[r], l.nodes[i])
		}
	}
	var errs []error
	start := time.Now()
	hurry := false // nobody waits any more
	for _, r := range slices.Sorted(maps.Keys(waves)) {
		if wait := time.Until(start.Add(time.Duration(r) * stagger)); stagger > 0 && wait > 0 && !hurry {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				hurry = true
				errs = append(errs, ctx.Err())
			case <-l.closing:
				timer.Stop()
				return net.ErrClosed
			}
		}
		for _, h := range waves[r] {
			i := h.plan.index
			if err := l.setRoutes(h, l.routes[i], routes[i]); err != nil {
				errs = append(errs, fmt.Errorf("%s %s: %w", h.plan.kind, h.plan.name, err))
				continue
			}
			l.routesMu.Lock()
			l.routes[i] = routes[i]
			l.routesMu.Unlock()
		}
	}
	return errors.Join(errs...)
}

func (r planRoute) equal(s planRoute) bool {
	return r.to == s.to && r.reject == s.reject && r.hops == s.hops && slices.Equal(r.via, s.via)
}

// setRoutes makes a node's routes those of another list: each that stays or changes is there all the time.
func (l *Lab) setRoutes(h *Host, old, routes []planRoute) error {
	if r := l.routers[h.plan.index]; r != nil {
		return r.dataplane.SetRoutes(routerRoutes(h.plan, routes, 0))
	}
	had := map[netip.Prefix]planRoute{}
	for _, r := range old {
		had[r.to] = r
	}
	for _, r := range routes {
		before, ok := had[r.to]
		delete(had, r.to)
		if ok && before.equal(r) {
			continue
		}
		route, err := h.kernelRoute(r)
		if err == nil {
			err = h.ns.netlink.RouteReplace(route)
		}
		if err != nil {
			return fmt.Errorf("set route to %s: %w", r.to, err)
		}
	}
	for to := range had {
		if err := h.ns.netlink.RouteDel(&netlink.Route{Dst: ipNet(to)}); err != nil {
			return fmt.Errorf("remove route to %s: %w", to, err)
		}
	}
	return nil
}
