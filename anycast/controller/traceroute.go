// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/probe/stateless"
)

const (
	// answerMargin is how long before the caller's deadline the answer leaves.
	answerMargin = 200 * time.Millisecond
	// longestPath is a difference of times beyond which clocks of different zones are to blame.
	longestPath = time.Minute
)

// traceroute does what a command asks for, from an agent of any dialect. Its error is one for volta.ResponseFor.
func (c *Controller) traceroute(ctx context.Context, cmd volta.Command) (*volta.Result, error) {
	if err := cmd.CheckSize(c.fleet.ports.blocks.Size()); err != nil {
		return nil, err
	}
	site := c.fleet.site(cmd.Source)
	if site == nil || site.goneFor(time.Now()) > 0 {
		return nil, &volta.NotConnectedError{AgentID: cmd.Source}
	}
	target, err := c.names.ResolveIP(ctx, cmd.Destination)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(cmd.Wait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Add(-answerMargin).Before(end) {
		end = deadline.Add(-answerMargin)
	}
	var result *volta.Result
	if site.native {
		result, err = c.keyedTraceroute(ctx, cmd, target, end)
	} else {
		result, err = c.classicTraceroute(ctx, cmd, target, site)
	}
	if err != nil {
		return nil, err
	}
	c.addNames(ctx, result)
	return result, nil
}

// addNames looks up the names of routers, as far as that is possible in a moment.
func (c *Controller) addNames(ctx context.Context, r *volta.Result) {
	if c.opts.NameTimeout < 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.NameTimeout)
	defer cancel()
	c.names.NameResult(ctx, r)
}

// classicTraceroute has one of the originals' agents probe, in the originals' way.
func (c *Controller) classicTraceroute(ctx context.Context, cmd volta.Command, target netip.Addr, s *site) (*volta.Result, error) {
	if cmd.ICMP {
		return nil, fmt.Errorf("%s: echo requests: %w", s.name, anycast.ErrCannotSend)
	}
	f := c.fleet
	first, err := f.ports.allocateBlock()
	if err != nil {
		return nil, err
	}
	defer f.ports.release(first)
	trace, err := volta.NewTraceroute(volta.TracerouteConf{Command: cmd, Target: target, SessionID: first})
	if err != nil {
		return nil, err
	}
	if cmd.Probes() > 0 {
		session, err := f.openClassic(ctx, first, uint16(cmd.Probes()), target, func(site string, packet []byte, at volta.Time) {
			trace.HandleReply(volta.Reply{Packet: packet, Time: at}, site)
		})
		if err != nil {
			return nil, err
		}
		defer session.end()
	}
	f.mu.Lock()
	f.jobs[first] = &job{site: s, trace: trace}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.jobs, first)
	}()
	return trace.Run(ctx, func(j volta.Job) error {
		sent, err := s.job(j)
		if err == nil && !sent {
			err = &volta.NotConnectedError{AgentID: s.name}
		}
		return err
	})
}

// keyedTraceroute has a native agent probe, a few hops at a time, in one flow and with a key.
func (c *Controller) keyedTraceroute(ctx context.Context, cmd volta.Command, target netip.Addr, end time.Time) (*volta.Result, error) {
	found := &anycast.TracerouteResult{}
	if cmd.Probes() > 0 && time.Now().Before(end) {
		probes := stateless.Config{Kind: stateless.UDP, TOS: cmd.TrafficClass()}
		if cmd.ICMP {
			probes.Kind = stateless.ICMP
		}
		path := pathKey{cmd.Source, target}
		t, err := anycast.NewTraceroute(anycast.TracerouteConf{
			Fleet: c.fleet, Site: cmd.Source, Target: target, Probes: probes, MaxTTL: cmd.MaxTTL, Queries: cmd.Queries,
			Expected: c.lengths.get(path),
		})
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithDeadline(ctx, end)
		defer cancel()
		found, err = t.Run(ctx)
		switch {
		case errors.Is(err, anycast.ErrNoSite):
			return nil, &volta.NotConnectedError{AgentID: cmd.Source}
		case errors.Is(err, anycast.ErrNoPorts):
			return nil, volta.ErrNoBlock
		case err != nil:
			return nil, err
		}
		if found.Reached {
			c.lengths.set(path, len(found.Hops))
		}
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return nil, cause
	}
	return c.resultOf(cmd, target, found), nil
}

// resultOf puts what was found into the form of the original.
func (c *Controller) resultOf(cmd volta.Command, target netip.Addr, found *anycast.TracerouteResult) *volta.Result {
	hops, q := cmd.MaxTTL, cmd.Queries
	if found.Reached {
		hops = len(found.Hops)
	}
	r := &volta.Result{
		Source: cmd.Source, Destination: cmd.Destination, Target: target, Queries: q, MaxTTL: cmd.MaxTTL,
		Hops: make([]volta.Hop, hops),
	}
	all := make([]volta.TracerouteResult, hops*q)
	for hop := range hops {
		probes := all[hop*q : (hop+1)*q : (hop+1)*q]
		for i := range probes {
			probes[i] = volta.TracerouteResult{Seq: hop*q + i, Timeout: true}
			if hop < len(found.Hops) {
				c.fill(&probes[i], cmd.Source, &found.Hops[hop][i])
			}
		}
		r.Hops[hop] = volta.Hop{TTL: hop + 1, Probes: probes}
	}
	return r
}

func (c *Controller) fill(out *volta.TracerouteResult, source string, in *anycast.TracerouteReply) {
	if in.Sent != 0 {
		out.Sent = volta.At(time.Unix(0, in.Sent))
	}
	if !in.Responder.IsValid() {
		return
	}
	out.Timeout, out.Gateway, out.Receiver, out.Final = false, in.Responder, in.Receiver, in.Final()
	if in.Received != 0 {
		out.Received = volta.At(time.Unix(0, in.Received))
	}
	out.RTT, out.HasRTT = in.RTT, in.RTT > 0
	// Nothing is known of the clocks of the originals' agents; their users expect the plain difference.
	if s := c.fleet.site(in.Receiver); s != nil && !s.native && source != in.Receiver {
		out.RTT, out.HasRTT = out.Received.Sub(out.Sent, longestPath)
	}
}
