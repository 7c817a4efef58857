// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// feedChunk is how many targets of a feed go to the measurement at a time: few enough that a prefix with millions of networks
// is never in memory as a whole.
const feedChunk = 8192

// Feed is Start for targets that come while the measurement runs. It ends with the client, unless the client has sent everything.
func (s *measureService) Feed(stream measurepb.Measure_FeedServer) error {
	ctx := stream.Context()
	who := callerOf(ctx)
	f := &feed{c: s.Controller, who: who, messages: make(chan *measurepb.StartRequest), ended: make(chan struct{})}
	id, err := s.startFeed(ctx, who, f, stream.Recv)
	s.audit(who, "feed", id, err)
	if err != nil {
		return statusOf(err)
	}
	// Nobody can wait for it: gRPC ends a call to Recv when this method has returned.
	go f.receive(ctx, stream.Recv)
	err = s.follow(ctx, id, stream.Send)
	if !f.complete() {
		s.cancelRun(id, errLeft)
	}
	return statusOf(err)
}

// startFeed begins a measurement that f is the feed of.
func (s *measureService) startFeed(ctx context.Context, who caller, f *feed, recv func() (*measurepb.StartRequest, error)) (string, error) {
	first, definition, err := readDefinition(recv)
	if err != nil {
		return "", err
	}
	if err := s.admitRequest(who); err != nil {
		return "", err
	}
	if err := f.take(first); err != nil {
		return "", err
	}
	definition.Feed = true
	return s.begin(ctx, who, definition, nil, f.next)
}

// feed gives the targets of a call to the measurement that it started, as fast as that takes them: what it does not take stays with gRPC, whose
// windows make the client wait.
type feed struct {
	c        *Controller
	who      caller
	messages chan *measurepb.StartRequest // without room
	ended    chan struct{}                // closed when no more messages come
	err      error                        // why, when ended is closed

	// What follows belongs to next, or whoever comes before it.
	texts     []string // of the message at hand
	four, six []byte
	networks  networks // of the prefix at hand
	total     int      // targets given
	names     int      // of these
}

// receive reads the call to its end.
func (f *feed) receive(ctx context.Context, recv func() (*measurepb.StartRequest, error)) {
	defer close(f.ended)
	for {
		m, err := recv()
		if err != nil {
			f.err = err
			return
		}
		select {
		case f.messages <- m:
		case <-ctx.Done():
			f.err = ctx.Err()
			return
		}
	}
}

// complete tells whether the client has sent all that it wanted to.
func (f *feed) complete() bool {
	select {
	case <-f.ended:
		return errors.Is(f.err, io.EOF)
	default:
		return false
	}
}

// take makes a message the one at hand.
func (f *feed) take(m *measurepb.StartRequest) error {
	f.texts, f.four, f.six = m.GetTargets(), m.GetTargets4(), m.GetTargets6()
	return checkColumns(m)
}

// next is an anycast.Feed.
func (f *feed) next(ctx context.Context) ([]anycast.Target, error) {
	var out []anycast.Target
	for len(out) < feedChunk {
		switch {
		case f.networks.left > 0:
			out = append(out, anycast.Target{Addr: f.networks.next()})
		case len(f.four) > 0:
			out = append(out, anycast.Target{Addr: netip.AddrFrom4([4]byte(f.four))})
			f.four = f.four[4:]
		case len(f.six) > 0:
			out = append(out, anycast.Target{Addr: netip.AddrFrom16([16]byte(f.six)).Unmap()})
			f.six = f.six[16:]
		case len(f.texts) > 0:
			target, prefix, err := parseTarget(f.texts[0])
			if err != nil {
				return nil, err
			}
			f.texts = f.texts[1:]
			if prefix.IsValid() {
				if f.networks, err = networksOf(prefix); err != nil {
					return nil, err
				}
				continue
			}
			out = append(out, target)
		case len(out) > 0:
			return out, f.settle(ctx, out)
		default:
			if err := f.await(ctx); err != nil {
				return nil, err
			}
		}
	}
	return out, f.settle(ctx, out)
}

// await waits for the next message.
func (f *feed) await(ctx context.Context) error {
	select {
	case m := <-f.messages:
		return f.take(m)
	case <-f.ended:
		if errors.Is(f.err, io.EOF) {
			return io.EOF
		}
		return errLeft
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// settle looks up the names among targets and counts all of them. A name without an address is left as it is, so that the measurement leaves it
// out: of a feed, nobody can take it back.
func (f *feed) settle(ctx context.Context, targets []anycast.Target) error {
	f.total += len(targets)
	if f.total > maxTargets {
		return fmt.Errorf("%w: more than %d targets", errInvalid, maxTargets)
	}
	if q := f.c.opts.Quotas; q != nil {
		if err := q.Targets(f.who.account(), f.total); err != nil {
			return err
		}
	}
	places := make(chan struct{}, resolving)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range targets {
		t := &targets[i]
		if t.Name == "" {
			continue
		}
		if f.names++; f.names > maxNames {
			return fmt.Errorf("%w: more than %d targets are names", errInvalid, maxNames)
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if a, err := f.c.lookup(ctx, t.Name); err == nil {
				t.Addr = a
			}
		})
	}
	return nil
}

// networks are those of a prefix that have a target each: the first host of each /24 or /48 inside it; of a longer prefix its own first host, and of
// a whole address the address.
type networks struct {
	host  netip.Addr // the next target
	shift int        // bytes of an address behind a network's number
	left  int
}

func networksOf(p netip.Prefix) (networks, error) {
	p = p.Masked()
	bits, a := networkBits4, p.Addr()
	if a.Is6() {
		bits = networkBits6
	}
	n := networks{host: a, left: 1, shift: (a.BitLen() - bits) / 8}
	if p.Bits() < bits {
		if bits-p.Bits() > 30 {
			return networks{}, fmt.Errorf("%w: %s has too many networks", errInvalid, p)
		}
		n.left = 1 << (bits - p.Bits())
	}
	if p.Bits() < a.BitLen()-1 { // of the last two all addresses are hosts
		n.host = a.Next()
	}
	return n, nil
}

// next gives one of those that are left.
func (n *networks) next() netip.Addr {
	a := n.host
	n.left--
	b := a.AsSlice()
	for i := len(b) - n.shift - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			break
		}
	}
	n.host, _ = netip.AddrFromSlice(b)
	return a.Unmap()
}

// parseTarget reads an address or a name, or a prefix.
func parseTarget(text string) (anycast.Target, netip.Prefix, error) {
	if len(text) > 255 {
		return anycast.Target{}, netip.Prefix{}, fmt.Errorf("%w: target of %d bytes", errInvalid, len(text))
	}
	if strings.Contains(text, "/") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return anycast.Target{}, p, fmt.Errorf("%w: target %q: %w", errInvalid, text, err)
		}
		return anycast.Target{}, p, nil
	}
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return anycast.Target{Name: text}, netip.Prefix{}, nil
	case a.Zone() != "":
		return anycast.Target{}, netip.Prefix{}, fmt.Errorf("%w: target %s means something on its own host only", errInvalid, text)
	}
	return anycast.Target{Addr: a.Unmap()}, netip.Prefix{}, nil
}

// checkColumns refuses columns of addresses that are cut in the middle of one.
func checkColumns(m *measurepb.StartRequest) error {
	for _, column := range []struct{ bytes, size int }{{len(m.GetTargets4()), 4}, {len(m.GetTargets6()), 16}} {
		if column.bytes%column.size != 0 {
			return fmt.Errorf("%w: %d bytes of addresses of %d bytes", errInvalid, column.bytes, column.size)
		}
	}
	return nil
}
