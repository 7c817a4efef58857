// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newPoller(t testing.TB) *Poller {
	t.Helper()
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func newPipe(t testing.TB) (r, w int) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func TestPollerReady(t *testing.T) {
	p := newPoller(t)
	r, w := newPipe(t)
	ri, wi := p.Add(r, Readable), p.Add(w, Writable)
	check := func(step string, wantR, wantW bool) {
		t.Helper()
		if err := p.Wait(0); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if got := p.Ready(ri); got != wantR {
			t.Errorf("%s: Ready(read end) = %v", step, got)
		}
		if got := p.Ready(wi); got != wantW {
			t.Errorf("%s: Ready(write end) = %v", step, got)
		}
		want := 0
		for _, b := range []bool{wantR, wantW} {
			if b {
				want++
			}
		}
		if got := p.Count(); got != want {
			t.Errorf("%s: Count = %d, want %d", step, got, want)
		}
	}
	check("empty pipe", false, true)
	unix.Write(w, []byte{1})
	check("one byte", true, true)
	p.SetEvents(wi, 0)
	check("no interest in writing", true, false)
	p.SetEvents(wi, Writable)
	check("interest again", true, true)
	p.Remove(ri)
	check("reader removed", false, true)
	if again := p.Add(r, Readable); again != ri {
		t.Errorf("Add after Remove gave index %d, want %d again", again, ri)
	}
	check("reader added", true, true)
	if got := p.Events(ri); got != Readable {
		t.Errorf("Events = %#x, want Readable", got)
	}
}

func TestPollerErrored(t *testing.T) {
	p := newPoller(t)
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	i := p.Add(fds[1], 0)
	unix.Close(fds[0])
	if err := p.Wait(0); err != nil {
		t.Fatal(err)
	}
	if p.Events(i)&Errored == 0 {
		t.Errorf("a pipe without reader gives events %#x, want Errored", p.Events(i))
	}
}

// TestPollerResolution holds the reason of being of the Poller: a sleep of
// 200 µs takes about that, not a millisecond.
func TestPollerResolution(t *testing.T) {
	runtime.LockOSThread() // not unlocked: the thread ends with the test and its timer slack with it
	if err := SetTimerSlack(time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	p := newPoller(t)
	const ask = 200 * time.Microsecond
	var took []time.Duration
	for range 101 {
		start := time.Now()
		if err := p.Wait(ask); err != nil {
			t.Fatal(err)
		}
		d := time.Since(start)
		if d < ask {
			t.Fatalf("Wait(%v) returned after %v", ask, d)
		}
		took = append(took, d)
	}
	slices.Sort(took)
	t.Logf("Wait(%v): min %v, median %v, p90 %v", ask, took[0], took[50], took[90])
	if took[50] > 700*time.Microsecond {
		t.Errorf("median Wait(%v) took %v", ask, took[50])
	}
}

func TestPollerWake(t *testing.T) {
	p := newPoller(t)
	r, _ := newPipe(t)
	p.Add(r, Readable)

	p.Wake() // before Wait: it must not sleep
	p.Wake()
	start := time.Now()
	if err := p.Wait(time.Minute); err != nil {
		t.Fatal(err)
	}
	// Both wakes count as one: the next Wait sleeps.
	if err := p.Wait(20 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 20*time.Millisecond || d > 30*time.Second {
		t.Errorf("two Waits took %v, want the first at once and 20ms for the second", d)
	}

	// Ping-pong: every Wake from another goroutine is seen.
	const rounds = 2000
	turn := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range turn {
			p.Wake()
		}
	})
	start = time.Now()
	for range rounds {
		turn <- struct{}{}
		if err := p.Wait(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	close(turn)
	wg.Wait()
	if d := time.Since(start); d > 9*time.Second {
		t.Errorf("%d wakes took %v: one was lost", rounds, d)
	}
}

// TestPollerWakeAdd wakes a Poller while its owner adds descriptors: the race detector sees whether they share anything.
func TestPollerWakeAdd(t *testing.T) {
	r, w := newPipe(t)
	unix.Write(w, []byte{1}) // ends every wait at once, so that none ends because of the Wake
	for range 20 {
		p := newPoller(t)
		stop := make(chan struct{})
		var other sync.WaitGroup
		other.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					p.Wake()
					time.Sleep(time.Microsecond) // the owner must get as far as to sleep
				}
			}
		})
		for range 200 {
			p.Add(r, Readable)
			if err := p.Wait(time.Second); err != nil {
				t.Fatal(err)
			}
		}
		close(stop)
		other.Wait()
		if got := p.Count(); got != 200 {
			t.Errorf("%d descriptors are ready, want 200", got)
		}
	}
}

func TestPollerClose(t *testing.T) {
	p := newPoller(t)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p.Wake()
	if err := p.Wait(0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Wait after Close: %v, want net.ErrClosed", err)
	}
}

func TestPollerAllocs(t *testing.T) {
	p := newPoller(t)
	r, w := newPipe(t)
	i := p.Add(r, Readable)
	unix.Write(w, []byte{1})
	if n := testing.AllocsPerRun(100, func() {
		p.SetEvents(i, Readable|Writable)
		p.Wait(time.Second)
		p.Wake()
		p.Wait(time.Second)
		p.Wait(0)
	}); n != 0 {
		t.Errorf("%v allocations per turn, want 0", n)
	}
}

func BenchmarkPollerWaitReady(b *testing.B) {
	p := newPoller(b)
	r, w := newPipe(b)
	p.Add(r, Readable)
	unix.Write(w, []byte{1})
	b.ReportAllocs()
	for b.Loop() {
		p.Wait(0)
	}
}
