// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package access

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/seed5728abee/fathom/anycast/enroll"
)

// Limits is how much one identity may ask for. A zero is no limit.
type Limits struct {
	Requests     int     // per minute; as many may come in one burst
	Measurements int     // at once
	Targets      int     // of one measurement
	ProbeRate    float64 // probes per second, of all its measurements together
}

// Limit names one of [Limits].
type Limit uint8

// The limits.
const (
	_                 Limit = iota
	LimitRequests           // requests per minute
	LimitMeasurements       // measurements at once
	LimitTargets            // targets of one measurement
	LimitProbeRate          // probes per second
)

var limitNames = [...]string{
	LimitRequests: "requests per minute", LimitMeasurements: "measurements at once",
	LimitTargets: "targets per measurement", LimitProbeRate: "probes per second",
}

func (l Limit) String() string {
	if l == 0 || int(l) >= len(limitNames) {
		return fmt.Sprintf("Limit(%d)", uint8(l))
	}
	return limitNames[l]
}

// ErrQuota is what every [QuotaError] is.
var ErrQuota = errors.New("quota exceeded")

// QuotaError says which limit a request met.
type QuotaError struct {
	Who   enroll.Identity
	Limit Limit
	Max   float64 // what is allowed
	InUse float64 // what the identity's other measurements take
	Asked float64 // what was asked for on top
	// Retry is when the same request would be let through: for LimitRequests. Zero means that it depends: on the
	// identity's own measurements that have to end, or, if Asked alone is above Max, never.
	Retry time.Duration
}

func (e *QuotaError) Error() string {
	s := fmt.Sprintf("%v: %v: %v: %s allowed, ", ErrQuota, e.Who, e.Limit, number(e.Max))
	switch {
	case e.Asked > e.Max:
		return s + number(e.Asked) + " asked for"
	case e.Retry > 0:
		return s + "try again in " + e.Retry.Round(time.Millisecond).String()
	default:
		return s + number(e.InUse) + " in use, " + number(e.Asked) + " more asked for; try again when a measurement has ended"
	}
}

// Is makes errors.Is(err, ErrQuota) true.
func (e *QuotaError) Is(target error) bool { return target == ErrQuota }

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// Quotas holds every identity to its [Limits]. Its methods may be called from several goroutines; none blocks.
type Quotas struct {
	limits func(enroll.Identity) Limits

	mu    sync.Mutex // guards all of the following, and every account
	used  map[enroll.Identity]*account
	swept time.Time
}

type account struct {
	requests     *rate.Limiter
	perMinute    int // what requests was made for
	measurements int
	probeRate    float64
}

// NewQuotas makes quotas with the limits that the function gives for each identity. It is called for every request,
// so limits may change while measurements run; it must be quick and must not call the Quotas.
func NewQuotas(limits func(enroll.Identity) Limits) *Quotas {
	return &Quotas{limits: limits, used: map[enroll.Identity]*account{}}
}

// sweepAt is how many identities are remembered before idle ones are forgotten. Members are fewer; but without
// certificates identities are made of addresses, and there is no end of those.
const sweepAt = 1024

func (q *Quotas) accountLocked(who enroll.Identity) *account {
	if acc := q.used[who]; acc != nil {
		return acc
	}
	if now := time.Now(); len(q.used) >= sweepAt && now.Sub(q.swept) > time.Second {
		q.swept = now
		for id, acc := range q.used {
			full := acc.requests == nil || acc.requests.TokensAt(now) >= float64(acc.requests.Burst())
			if acc.measurements == 0 && full {
				delete(q.used, id)
			}
		}
	}
	acc := &account{}
	q.used[who] = acc
	return acc
}

// Request counts one request. Errors: a [*QuotaError] with Retry; then it is not counted, so who waits as long
// as told is let through.
func (q *Quotas) Request(who enroll.Identity) error {
	limit := q.limits(who).Requests
	if limit <= 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	acc := q.accountLocked(who)
	if acc.requests == nil || acc.perMinute != limit {
		acc.requests, acc.perMinute = rate.NewLimiter(rate.Limit(float64(limit)/60), limit), limit
	}
	now := time.Now()
	r := acc.requests.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	r.CancelAt(now)
	return &QuotaError{Who: who, Limit: LimitRequests, Max: float64(limit), InUse: float64(limit), Asked: 1, Retry: wait}
}

// Demand is what a measurement will take.
type Demand struct {
	Targets   int     // 0 if it has none
	ProbeRate float64 // probes per second at most; must not be negative
}

// Lease is the part of a quota that a measurement has until it ends.
type Lease struct {
	release func()
}

// Release gives it back. It may be called again, and on nil.
func (l *Lease) Release() {
	if l != nil {
		l.release()
	}
}

// Targets tells whether a measurement may have so many targets, for one whose number is not known at its start. Errors: a [*QuotaError].
func (q *Quotas) Targets(who enroll.Identity, n int) error {
	if limit := q.limits(who).Targets; limit > 0 && n > limit {
		return &QuotaError{Who: who, Limit: LimitTargets, Max: float64(limit), Asked: float64(n)}
	}
	return nil
}

// Start takes a measurement's part of the quota. Errors: a [*QuotaError]; then nothing is taken.
func (q *Quotas) Start(who enroll.Identity, d Demand) (*Lease, error) {
	if d.Targets < 0 || d.ProbeRate < 0 || math.IsNaN(d.ProbeRate) || math.IsInf(d.ProbeRate, 0) {
		return nil, fmt.Errorf("measurement of %d targets at %v probes per second: not a number of them", d.Targets, d.ProbeRate)
	}
	limits := q.limits(who)
	q.mu.Lock()
	defer q.mu.Unlock()
	acc := q.accountLocked(who)
	for _, c := range []struct {
		limit             Limit
		max, inuse, asked float64
	}{
		{LimitTargets, float64(limits.Targets), 0, float64(d.Targets)},
		{LimitMeasurements, float64(limits.Measurements), float64(acc.measurements), 1},
		{LimitProbeRate, limits.ProbeRate, acc.probeRate, d.ProbeRate},
	} {
		if c.max > 0 && c.inuse+c.asked > c.max {
			return nil, &QuotaError{Who: who, Limit: c.limit, Max: c.max, InUse: c.inuse, Asked: c.asked}
		}
	}
	acc.measurements++
	acc.probeRate += d.ProbeRate
	return &Lease{release: sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		acc.measurements--
		acc.probeRate -= d.ProbeRate
		if acc.measurements == 0 {
			acc.probeRate = 0 // forget what rounding left
		}
	})}, nil
}
