// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package access

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast/enroll"
)

var (
	alice = enroll.Identity{Role: enroll.Operator, Name: "alice"}
	carol = enroll.Identity{Role: enroll.Operator, Name: "carol"}
)

func fixed(l Limits) func(enroll.Identity) Limits {
	return func(enroll.Identity) Limits { return l }
}

func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQuotas(fixed(Limits{Requests: 30}))
		for i := range 30 {
			if err := q.Request(alice); err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
		}
		var quota *QuotaError
		for range 100 { // refused requests must not push the time away
			if err := q.Request(alice); !errors.As(err, &quota) || !errors.Is(err, ErrQuota) {
				t.Fatalf("got %v, want a QuotaError", err)
			}
		}
		if quota.Limit != LimitRequests || quota.Retry <= 0 || quota.Retry > 2*time.Second {
			t.Errorf("%+v: want to be told to retry within 2 s", quota)
		}
		if want := "quota exceeded: operator/alice: requests per minute: 30 allowed, try again in 2s"; quota.Error() != want {
			t.Errorf("says %q, want %q", quota, want)
		}
		if err := q.Request(carol); err != nil {
			t.Errorf("somebody else: %v", err)
		}
		time.Sleep(quota.Retry)
		if err := q.Request(alice); err != nil {
			t.Errorf("after the time that was told: %v", err)
		}
	})
}

func TestStart(t *testing.T) {
	q := NewQuotas(fixed(Limits{Measurements: 2, Targets: 1000, ProbeRate: 100}))
	refused := func(d Demand, limit Limit, text string) {
		t.Helper()
		var quota *QuotaError
		_, err := q.Start(alice, d)
		if !errors.As(err, &quota) || quota.Limit != limit || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: got %v, want %v: %s", d, err, limit, text)
		}
	}
	refused(Demand{Targets: 1001}, LimitTargets, "targets per measurement: 1000 allowed, 1001 asked for")
	refused(Demand{ProbeRate: 100.5}, LimitProbeRate, "probes per second: 100 allowed, 100.5 asked for")
	first, err := q.Start(alice, Demand{Targets: 1000, ProbeRate: 60})
	if err != nil {
		t.Fatal(err)
	}
	refused(Demand{ProbeRate: 41}, LimitProbeRate, "60 in use, 41 more asked for")
	second, err := q.Start(alice, Demand{ProbeRate: 40})
	if err != nil {
		t.Fatal(err)
	}
	refused(Demand{}, LimitMeasurements, "2 in use, 1 more asked for")
	if _, err := q.Start(carol, Demand{ProbeRate: 100}); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	first.Release()
	first.Release()
	third, err := q.Start(alice, Demand{ProbeRate: 60})
	if err != nil {
		t.Fatal(err)
	}
	refused(Demand{}, LimitMeasurements, "")
	second.Release()
	third.Release()
	(*Lease)(nil).Release()
	if _, err := q.Start(alice, Demand{ProbeRate: -1}); err == nil || errors.Is(err, ErrQuota) {
		t.Errorf("negative rate: %v", err)
	}
}

func TestNoLimits(t *testing.T) {
	q := NewQuotas(fixed(Limits{}))
	for range 1000 {
		if err := q.Request(alice); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := q.Start(alice, Demand{Targets: 1 << 30, ProbeRate: 1e9}); err != nil {
		t.Error(err)
	}
}

func TestStartAtOnce(t *testing.T) {
	q := NewQuotas(fixed(Limits{Measurements: 3}))
	var wg sync.WaitGroup
	leases := make(chan *Lease, 50)
	for range 50 {
		wg.Go(func() {
			if l, err := q.Start(alice, Demand{}); err == nil {
				leases <- l
			}
		})
	}
	wg.Wait()
	if len(leases) != 3 {
		t.Errorf("%d measurements at once, want 3", len(leases))
	}
}

// TestForgets holds that identities that are made up cost no memory for long, and that nobody with a running
// measurement is forgotten.
func TestForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQuotas(fixed(Limits{Requests: 60, Measurements: 1}))
		if _, err := q.Start(alice, Demand{}); err != nil {
			t.Fatal(err)
		}
		for i := range 20 * sweepAt {
			if err := q.Request(enroll.Identity{Role: enroll.Viewer, Name: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if n := len(q.used); n > 4*sweepAt {
			t.Errorf("%d identities are remembered", n)
		}
		if _, err := q.Start(alice, Demand{}); !errors.Is(err, ErrQuota) {
			t.Errorf("a running measurement was forgotten: %v", err)
		}
	})
}
