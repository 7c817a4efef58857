// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/fleettest"
)

// drip gives targets in portions, each after a pause.
func drip(pause time.Duration, portions ...[]anycast.Target) anycast.Feed {
	return func(ctx context.Context) ([]anycast.Target, error) {
		if len(portions) == 0 {
			return nil, io.EOF
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		next := portions[0]
		portions = portions[1:]
		return next, nil
	}
}

func TestFeed(t *testing.T) {
	for _, program := range []anycast.ProgramKind{anycast.KindCatchment, anycast.KindLatency, anycast.KindFlipping} {
		t.Run(string(program), func(t *testing.T) {
			all := targets(90)
			private := anycast.Target{Addr: netip.MustParseAddr("10.1.2.3")}
			job := anycast.Job{
				Definition: anycast.Definition{Program: program, OptOut: []netip.Prefix{netip.MustParsePrefix("20.0.5.0/24")}},
				// Half a minute apart: each is done long before the next. The last one has nothing new.
				Feed: drip(30*time.Second, all[:1], all[1:40], append(all[40:90:90], all[0], private, anycast.Target{Name: "nowhere.example"}), all[:2]),
			}
			prepare := func(f *fleettest.Fleet) {
				f.Internet.Catcher = func(_ fleettest.Probe, r netip.Addr, _ []string) string { return []string{"fra", "nyc"}[r.As4()[2]%2] }
			}
			simulate(t, prepare, job, func(t *testing.T, f *fleettest.Fleet, m *memory, err error) {
				if err != nil {
					t.Fatal(err)
				}
				sum := m.summary(t)
				skipped := sum.Skipped
				if sum.Targets != 95 || len(skipped) != 4 || skipped[anycast.SkipDuplicate] != 3 || skipped[anycast.SkipPrivate] != 1 ||
					skipped[anycast.SkipUnresolved] != 1 || skipped[anycast.SkipOptOut] != 1 {
					t.Errorf("%d targets, left out %v", sum.Targets, skipped)
				}
				if n := sum.Sites["fra"] + sum.Sites["nyc"]; n != 89 || sum.Sites["fra"] != 45 {
					t.Errorf("caught %v, want 89, 45 of them at fra", sum.Sites)
				}
				if uint64(f.Sent()) != sum.Sent || sum.Answered != sum.Sent || sum.Unknown != 0 || sum.Duplicates != 0 {
					t.Errorf("%d sent, summary %+v", f.Sent(), sum)
				}
				for _, p := range m.progress[:len(m.progress)-1] {
					if p.Total != 0 && p.Done < 40 {
						t.Fatalf("%+v: a total before the end is known", p)
					}
				}
			})
		})
	}
}

// TestFeedStreams holds that results are there while the feed is still open.
func TestFeedStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fleettest.New(1, "fra", "nyc", "syd")
		defer f.Close()
		m := &memory{}
		all, given := targets(3), 0
		job := anycast.Job{Fleet: f, Sink: m, Definition: anycast.Definition{Program: anycast.KindCatchment}}
		job.Feed = func(context.Context) ([]anycast.Target, error) {
			time.Sleep(10 * time.Second)
			if n := len(of[*anycast.Catch](m)); n != 3*given {
				t.Errorf("%d results of %d targets from 3 sites", n, given)
			}
			if given == len(all) {
				return nil, io.EOF
			}
			given++
			return all[given-1 : given], nil
		}
		if err := job.Run(t.Context()); err != nil || given != 3 {
			t.Errorf("%v after %d targets", err, given)
		}
	})
}

// TestFeedWaits holds that a feed is not asked for more than can be probed soon.
func TestFeedWaits(t *testing.T) {
	const chunk, chunks, rate = 1000, 40, 1000
	all, given := targets(chunk*chunks), 0
	var begin time.Time
	job := anycast.Job{
		Definition: anycast.Definition{Program: anycast.KindCatchment, Sites: []string{"fra"}, Pace: anycast.Pace{Rate: rate}},
		Feed: func(context.Context) ([]anycast.Target, error) {
			switch given {
			case 0:
				begin = time.Now()
			case chunks:
				return nil, io.EOF
			}
			if ahead := given*chunk - int(time.Since(begin).Seconds()*rate); ahead > 25*chunk {
				t.Errorf("asked for more with %d targets ahead of the probes", ahead)
				return nil, io.EOF
			}
			given++
			return all[(given-1)*chunk:][:chunk], nil
		},
	}
	simulate(t, nil, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if sum := m.summary(t); err != nil || sum.Answered != chunk*chunks {
			t.Errorf("%v, %+v", err, sum)
		}
	})
}

// TestFeedBreaks: what was found before the feed broke is kept.
func TestFeedBreaks(t *testing.T) {
	broken := errors.New("broken")
	first := drip(0, targets(20))
	job := anycast.Job{Definition: anycast.Definition{Program: anycast.KindCatchment}, Feed: func(ctx context.Context) ([]anycast.Target, error) {
		got, err := first(ctx)
		if err == nil {
			return got, nil
		}
		time.Sleep(20 * time.Second)
		return nil, broken
	}}
	simulate(t, nil, job, func(t *testing.T, _ *fleettest.Fleet, m *memory, err error) {
		if !errors.Is(err, broken) {
			t.Errorf("ended with %v", err)
		}
		if sum := m.summary(t); sum.Targets != 20 || sum.Answered != 60 || len(of[*anycast.Catch](m)) != 60 {
			t.Errorf("%+v", sum)
		}
	})
}

// TestFeedCancelled: the end of the measurement ends a feed that waits.
func TestFeedCancelled(t *testing.T) {
	enough := errors.New("enough")
	m := &memory{}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := false
	job := anycast.Job{Definition: anycast.Definition{Program: anycast.KindCatchment}, Sink: m, Fleet: fleettest.New(1, "fra")}
	defer job.Fleet.(*fleettest.Fleet).Close()
	job.Feed = func(ctx context.Context) ([]anycast.Target, error) {
		cancel(enough)
		<-ctx.Done()
		ended = true
		return nil, context.Cause(ctx)
	}
	if err := job.Run(ctx); !errors.Is(err, enough) || !ended {
		t.Errorf("%v; the feed has ended: %v", err, ended)
	}
}

func TestFeedRefused(t *testing.T) {
	for _, d := range []anycast.Definition{
		{Program: anycast.KindWatch}, {Program: anycast.KindTrace}, {Program: anycast.KindCatchment, Schedule: &anycast.Schedule{Every: time.Hour}},
	} {
		job := anycast.Job{Definition: d, Feed: drip(0), Fleet: nil, Sink: &memory{}}
		if err := job.Run(t.Context()); !errors.Is(err, anycast.ErrDefinition) {
			t.Errorf("%s: %v", d.Program, err)
		}
	}
}
