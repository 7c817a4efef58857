// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/hitlist"
)

// feedLines is how many lines of standard input are read ahead of the controller.
const feedLines = 4096

// measureFeed measures what comes on standard input, as it comes, to its end.
func (a *app) measureFeed(ctx context.Context, o *measureOptions, view measureView) error {
	c, err := o.link.connect(ctx, a)
	if err != nil {
		return err
	}
	defer c.Close()
	// The stream outlives an interrupt: what was found until then still comes.
	streamCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	feed, err := c.Feed(streamCtx, o.def)
	if err != nil {
		return o.link.explain(err)
	}
	f := &follower{app: a, link: &o.link, client: c, view: view, id: feed.Measurement().ID}
	defer func() { f.client.Close() }() // it may have been made anew

	var input error
	var wg sync.WaitGroup
	inputCtx, stopInput := context.WithCancel(streamCtx)
	wg.Go(func() {
		if input = sendLines(inputCtx, feed, readLines(inputCtx, a.stdin)); input == nil {
			return
		}
		ctx, cancel := context.WithTimeout(inputCtx, cancelTime)
		defer cancel()
		if c.Cancel(ctx, f.id) != nil {
			stop()
		}
	})
	err = f.runTo(ctx, streamCtx, stop, feed.Stream)
	stopInput()
	wg.Wait()
	if input != nil {
		return fmt.Errorf("standard input: %w", input)
	}
	return err
}

// line is an entry of a hit list, or why there are no more.
type line struct {
	entry hitlist.Entry
	err   error
}

// readLines reads a hit list as it comes. Its goroutine ends with the input, or at the first line after ctx: nobody can wait for a
// read of a terminal or a pipe.
func readLines(ctx context.Context, r io.Reader) <-chan line {
	lines := make(chan line, feedLines)
	go func() {
		defer close(lines)
		for e, err := range hitlist.Entries(r) {
			select {
			case lines <- line{e, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return lines
}

// sendLines sends lines to the controller. Its error is that of the input: what the measurement dies of, its stream tells.
func sendLines(ctx context.Context, feed *client.Feed, lines <-chan line) error {
	for sent := 0; ; {
		t, more, err := nextLines(ctx, lines)
		if n := len(t.Addrs) + len(t.Text); n > 0 {
			sent += n
			if feed.Send(t) != nil {
				return nil
			}
		}
		switch {
		case err != nil:
			return err
		case more:
		case sent == 0 && ctx.Err() == nil:
			return errNoTargets
		default:
			_ = feed.CloseSend()
			return nil
		}
	}
}

// nextLines waits for a line, and gives it with all others that are there. The last ones come with the reason that there are no more, nil for the
// end.
func nextLines(ctx context.Context, lines <-chan line) (t client.Targets, more bool, err error) {
	var l line
	select {
	case l, more = <-lines:
	case <-ctx.Done():
		return t, false, nil
	}
	for n := 1; more; n++ {
		if l.err != nil {
			return t, false, l.err
		}
		if l.entry.Addr.IsValid() {
			t.Addrs = append(t.Addrs, l.entry.Addr)
		} else {
			t.Text = append(t.Text, l.entry.String())
		}
		if n == feedLines {
			break
		}
		select {
		case l, more = <-lines:
		default:
			return t, true, nil
		}
	}
	return t, more, nil
}
