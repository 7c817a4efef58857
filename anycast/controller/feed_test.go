// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/access"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/enroll"
)

// feeding is a feed whose stream is read.
type feeding struct {
	*client.Feed
	told  chan anycast.Result
	ended chan *told
}

func (s *started) feed(ctx context.Context, d anycast.Definition) *feeding {
	s.t.Helper()
	f := &feeding{Feed: must(s.client().Feed(ctx, d)), told: make(chan anycast.Result, 10000), ended: make(chan *told, 1)}
	go func() { // ends with the stream
		w := &told{}
		for e, err := range f.All() {
			if err != nil {
				break
			}
			if e.Measurement != nil {
				w.states, w.last = append(w.states, e.Measurement.State), *e.Measurement
			}
			w.results = append(w.results, e.Results...)
			for _, r := range e.Results {
				f.told <- r
			}
		}
		f.ended <- w
	}()
	return f
}

// catch waits for the next catch.
func (f *feeding) catch(t *testing.T) *anycast.Catch {
	t.Helper()
	for {
		select {
		case r := <-f.told:
			if c, ok := r.(*anycast.Catch); ok {
				return c
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no catch came")
		}
	}
}

// TestFeed: what is sent is probed and told at once, and the end of the targets is that of the measurement.
func TestFeed(t *testing.T) {
	store := newMemory(10)
	s := measuring(t, Options{Store: store}, &world{hops: 3, receiver: byTarget})
	f := s.feed(t.Context(), catchment(5000, "a"))
	for _, target := range hitList(5) {
		if err := f.Send(client.Targets{Addrs: []netip.Addr{target}}); err != nil {
			t.Fatal(err)
		}
		if c := f.catch(t); c.Target != target || c.Receiver != byTarget(0, target) {
			t.Fatalf("%+v, want %s", c, target)
		}
	}
	id := f.Measurement().ID
	if m := must(s.client().List(t.Context(), anycast.Query{Measurement: id}))[0]; m.State != anycast.Running || m.Progress.Total != 0 || !m.Definition.Feed {
		t.Errorf("while it is fed: %+v", m)
	}
	// What files may have: prefixes, what is there already, IPv6, names that there are not.
	err := f.Send(client.Targets{
		Text: []string{"198.18.0.0/21", "100.64.0.0/14", "nowhere.invalid", "198.18.1.1"}, Addrs: []netip.Addr{netip.MustParseAddr("2001:db8::9")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.CloseSend(); err != nil {
		t.Fatal(err)
	}
	got := <-f.ended
	const want = 8 + 1024
	if got.last.State != anycast.Done || len(got.catches()) != want || got.last.Targets != 5+8+1024+3 || got.last.Progress.Done != got.last.Progress.Total {
		t.Errorf("%d targets, %+v", len(got.catches()), got.last)
	}
	sum := got.summaries()[0]
	if sum.Skipped[anycast.SkipDuplicate] != 6 || sum.Skipped[anycast.SkipUnresolved] != 1 || sum.Skipped[anycast.SkipNoSource] != 1 || sum.Answered != want {
		t.Errorf("summary %+v", sum)
	}
}

// TestFeedLeft: a client that goes away ends the measurement, whose results stay.
func TestFeedLeft(t *testing.T) {
	s := measuring(t, Options{}, &world{hops: 3, receiver: byTarget})
	ctx, leave := context.WithCancel(t.Context())
	f := s.feed(ctx, catchment(5000, "a"))
	id := f.Measurement().ID
	if err := f.Send(client.Targets{Addrs: hitList(7)}); err != nil {
		t.Fatal(err)
	}
	for range 7 {
		f.catch(t)
	}
	leave()
	<-f.ended
	got := listen(t, must(s.client().Follow(t.Context(), id)), nil)
	if got.last.State != anycast.Cancelled || !strings.Contains(got.last.Error, "left") || len(got.catches()) != 7 || len(got.summaries()) != 1 {
		t.Errorf("%+v, %d targets", got.last, len(got.catches()))
	}
	if err := f.Send(client.Targets{Addrs: hitList(1)}); err == nil {
		t.Error("more can be sent after the end")
	}
}

// TestFeedCancelled: somebody else ends it, while nobody feeds it; the one who does is told.
func TestFeedCancelled(t *testing.T) {
	s := measuring(t, Options{}, &world{hops: 3, receiver: byTarget})
	f := s.feed(t.Context(), catchment(5000, "a"))
	if err := s.client().Cancel(t.Context(), f.Measurement().ID); err != nil {
		t.Fatal(err)
	}
	if got := <-f.ended; got.last.State != anycast.Cancelled {
		t.Errorf("%+v", got.last)
	}
	eventually(t, "the feed is told", func() bool { return errors.Is(f.Send(client.Targets{Addrs: hitList(1)}), io.EOF) })
}

// TestFeedRestart: a controller that ends marks a feed as cut, and so does the one after a crash.
func TestFeedRestart(t *testing.T) {
	store := newMemory(10)
	s := measuring(t, Options{Store: store}, &world{hops: 3, receiver: byTarget})
	f := s.feed(t.Context(), catchment(5000, "a"))
	id := f.Measurement().ID
	if err := f.Send(client.Targets{Addrs: hitList(1)}); err != nil {
		t.Fatal(err)
	}
	f.catch(t)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	<-f.ended
	kept := must(store.Measurements(t.Context(), anycast.Query{Measurement: id}))[0]
	if kept.State != anycast.Interrupted || kept.End.IsZero() {
		t.Errorf("at the end of the controller: %+v", kept)
	}
	kept.State, kept.End = anycast.Running, time.Time{} // as if it had not come to that
	if err := store.Update(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	start(t, Options{Store: store})
	eventually(t, "the feed is marked as cut", func() bool {
		m := must(store.Measurements(t.Context(), anycast.Query{Measurement: id}))[0]
		return m.State == anycast.Interrupted && strings.Contains(m.Error, "gone")
	})
}

func TestFeedRefused(t *testing.T) {
	quotas := access.NewQuotas(func(enroll.Identity) access.Limits { return access.Limits{Targets: 100} })
	s := measuring(t, Options{Quotas: quotas}, &world{hops: 3, receiver: byTarget})
	c := s.client()
	watch := catchment(100, "a")
	watch.Program = anycast.KindWatch
	port := catchment(100, "a")
	port.Origins = []anycast.Origin{{Name: "x", SourcePort: 80}}
	for _, d := range []anycast.Definition{watch, port, {}} {
		if _, err := c.Feed(t.Context(), d); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%s: %v", d.Program, err)
		}
	}
	for what, bad := range map[string]client.Targets{
		"quota exceeded": {Text: []string{"100.64.0.0/16"}}, "target \"198.18.0.0/33\"": {Text: []string{"198.18.0.0/33"}},
		"::/0 has too many networks": {Text: []string{"::/0"}},
	} {
		f := s.feed(t.Context(), catchment(5000, "a"))
		if err := f.Send(bad); err != nil {
			t.Fatal(err)
		}
		if got := <-f.ended; got.last.State != anycast.Failed || !strings.Contains(got.last.Error, what) {
			t.Errorf("want %s: %+v", what, got.last)
		}
	}
}

// TestFeedNeverWhole: a prefix of millions of networks is given in pieces.
func TestFeedNeverWhole(t *testing.T) {
	f := &feed{c: &Controller{}, texts: []string{"0.0.0.0/0", "2001:db8::1"}, ended: make(chan struct{}), err: io.EOF}
	close(f.ended)
	n := 0
	var last anycast.Target
	for {
		got, err := f.next(t.Context())
		if err == io.EOF {
			break
		}
		if err != nil || len(got) > feedChunk {
			t.Fatalf("%d targets, %v", len(got), err)
		}
		n += len(got)
		last = got[len(got)-1]
		if n > 1<<16 {
			f.networks.left = min(f.networks.left, 1)
		}
	}
	if n < 1<<16 || last.Addr != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("%d targets, the last is %+v", n, last)
	}
}
