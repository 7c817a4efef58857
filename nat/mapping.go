// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Mapping is a port of this host that its gateway forwards to. It is renewed, and made anew when the gateway has lost
// it, until it is closed.
type Mapping struct {
	mapper  *Mapper
	request Request
	release func() // of the reservation

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
	closed  error
	wake    chan struct{} // takes one

	// What the gateway has granted. Only run's goroutine changes it, with mu; others read it with mu.
	mu      sync.Mutex
	site    *site
	door    door
	leases  []lease   // one for each protocol
	granted time.Time // when
	lost    bool
}

// The pace of a mapping that was lost: soon after the first failure, and often enough to be back well within a minute after the
// gateway is.
const (
	firstPause = time.Second
	lastPause  = 15 * time.Second
)

// minRenewal is the shortest time between two renewals, whatever a gateway grants or announces.
const minRenewal = 500 * time.Millisecond

// External is the address and port that the gateway forwards from. While the mapping is lost it is the last one.
func (mp *Mapping) External() netip.AddrPort { return mp.State().External }

// State tells what the mapping is at present.
func (mp *Mapping) State() State {
	mp.mu.Lock()
	defer mp.mu.Unlock()
	first := mp.leases[0]
	s := State{
		Method: mp.door.method(), Protocol: mp.request.Protocol, Gateway: mp.door.address(),
		Internal: first.internal, External: first.external, Lifetime: mp.lifetimeLocked(),
	}
	if s.Lifetime > 0 {
		s.Expires = mp.granted.Add(s.Lifetime)
	}
	return s
}

// lifetimeLocked is the shortest of the leases'; 0 if they have none.
func (mp *Mapping) lifetimeLocked() time.Duration {
	var shortest time.Duration
	for _, l := range mp.leases {
		if l.lifetime > 0 && (shortest == 0 || l.lifetime < shortest) {
			shortest = l.lifetime
		}
	}
	return shortest
}

// Close removes the mapping from the gateway, and waits for that. The error, of the first call, is about the removal: the
// gateway may then forward until the lease ends.
func (mp *Mapping) Close() error {
	mp.closing.Do(func() {
		mp.cancel()
		mp.running.Wait()
		mp.mapper.mu.Lock()
		delete(mp.mapper.mappings, mp)
		mp.mapper.mu.Unlock()
		// Also what is lost: the gateway may be back since the latest try.
		if err := removeAll(context.Background(), mp.doorNow(), mp.leases); err != nil && !mp.lost {
			mp.closed = fmt.Errorf("unmap %v port %d: %w", mp.request.Protocol, mp.request.InternalPort, err)
		}
		mp.release()
	})
	return mp.closed
}

// doorNow is the door to remove the leases by. If the gateway was found anew for another mapping, the one by which they were granted
// is closed.
func (mp *Mapping) doorNow() door {
	if s := mp.mapper.current(); s != mp.site && s.gateway == mp.site.gateway {
		for _, d := range s.doors {
			if d.method() == mp.door.method() {
				return d
			}
		}
	}
	return mp.door
}

// set takes what a gateway has granted.
func (mp *Mapping) set(s *site, d door, leases []lease) {
	mp.mu.Lock()
	defer mp.mu.Unlock()
	mp.site, mp.door, mp.leases, mp.granted, mp.lost = s, d, leases, time.Now(), false
}

// renewNow has the mapping renewed as soon as its goroutine can.
func (mp *Mapping) renewNow() {
	select {
	case mp.wake <- struct{}{}:
	default: // it is going to be
	}
}

// renewIn is how long the lease is good for without being renewed.
func (mp *Mapping) renewIn() time.Duration {
	mp.mu.Lock()
	defer mp.mu.Unlock()
	lifetime := mp.lifetimeLocked()
	if lifetime == 0 {
		lifetime = mp.request.Lifetime // what a gateway keeps forever, it may forget all the same
	}
	// A gateway that grants days for an hour is asked as often as was meant.
	return max(min(lifetime, mp.request.Lifetime)/2, minRenewal)
}

// run keeps the mapping until it is closed.
func (mp *Mapping) run() {
	pause := firstPause
	renewAt := time.Now().Add(mp.renewIn())
	for {
		wait := min(time.Until(renewAt), mp.mapper.o.CheckInterval)
		if mp.lost {
			wait = pause
			pause = min(2*pause, lastPause)
		}
		timer := time.NewTimer(max(wait, 0))
		woken := false
		select {
		case <-mp.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-mp.wake:
			timer.Stop()
			woken = true
		}
		if woken && !mp.settle() {
			return
		}
		switch {
		case mp.lost || mp.moved():
			mp.regain(nil)
		case woken || due(renewAt):
			mp.renew()
		default:
			if !mp.check() {
				continue
			}
		}
		renewAt = time.Now().Add(mp.renewIn())
		if !mp.lost {
			pause = firstPause
		}
	}
}

// due tells whether a time has come, by either clock: while a computer sleeps, the monotonic one does on some systems, and leases do
// not; and the other one may be set.
func due(at time.Time) bool {
	now := time.Now()
	return !now.Before(at) || !now.Round(0).Before(at.Round(0))
}

// settle keeps a pause before a renewal that somebody else asks for. It returns false if the mapping is closed meanwhile.
func (mp *Mapping) settle() bool {
	mp.mu.Lock()
	since := time.Since(mp.granted)
	mp.mu.Unlock()
	if since >= minRenewal {
		return true
	}
	timer := time.NewTimer(minRenewal - since)
	defer timer.Stop()
	select {
	case <-mp.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// moved tells whether this host's way out is another one than that the mapping is for, or whether the mapper has found the
// gateway anew, for another mapping.
func (mp *Mapping) moved() bool {
	if mp.mapper.current() != mp.site {
		return true
	}
	gateway, local, err := mp.mapper.route()
	if err != nil || !gateway.IsValid() {
		return false // the gateway will tell, by its silence
	}
	return gateway != mp.site.gateway || local != mp.site.local
}

// check looks after the leases, and renews what is not there any more. It returns whether anything was changed.
func (mp *Mapping) check() bool {
	for _, l := range mp.leases {
		ctx, cancel := context.WithTimeout(mp.ctx, askTimeout)
		err := mp.door.check(ctx, l)
		cancel()
		switch {
		case mp.ctx.Err() != nil:
			return false
		case errors.Is(err, errStale):
			mp.mapper.o.Log.Debug("check of a mapping", "external", l.external, "error", err)
			mp.renew()
			return true
		case err != nil:
			mp.regain(err)
			return true
		}
	}
	return false
}

// renew asks for the same again, and takes what it gets.
func (mp *Mapping) renew() {
	want := append([]lease(nil), mp.leases...)
	for i := range want {
		want[i].lifetime = mp.request.Lifetime
	}
	got, err := addAll(mp.ctx, mp.door, want, want[0].external.Port())
	if errors.Is(err, ErrPortTaken) { // by somebody who was faster after a restart
		got, err = acquire(mp.ctx, mp.door, want, want[0].external.Port())
	}
	if err != nil {
		mp.regain(err)
		return
	}
	mp.accept(mp.site, mp.door, got)
}

// regain asks for the mapping where the gateway is now. err is why, if it is known.
func (mp *Mapping) regain(err error) {
	if mp.ctx.Err() != nil {
		return
	}
	if err != nil {
		mp.mapper.o.Log.Debug("a mapping fails", "external", mp.External(), "error", err)
	}
	s, err := mp.mapper.search(mp.ctx, mp.site, false)
	if err == nil {
		var d door
		var got []lease
		if d, got, err = mp.mapper.acquire(mp.ctx, s, mp.request, mp.leases); err == nil {
			mp.accept(s, d, got)
			return
		}
	}
	if mp.ctx.Err() != nil {
		return
	}
	first := !mp.lost
	mp.mu.Lock()
	mp.lost = true
	if s != nil {
		mp.site = s // which has failed as well
	}
	mp.mu.Unlock()
	if first {
		mp.mapper.o.Log.Warn("port mapping is lost", "protocol", mp.request.Protocol, "external", mp.External(), "error", err)
		mp.notify(Lost, err)
	}
}

// accept takes new leases and tells what they change.
func (mp *Mapping) accept(s *site, d door, leases []lease) {
	before, lost := mp.External(), mp.lost
	mp.set(s, d, leases)
	kind := Renewed
	switch after := leases[0].external; {
	case lost:
		kind = Mapped
	case after != before:
		kind = Changed
	}
	mp.mapper.o.Log.Debug("port mapping", "event", kind, "protocol", mp.request.Protocol, "external", mp.External(), "method", d.method())
	mp.notify(kind, nil)
}

func (mp *Mapping) notify(kind EventKind, err error) {
	if mp.request.Notify != nil {
		mp.request.Notify(Event{Kind: kind, State: mp.State(), Err: err})
	}
}
