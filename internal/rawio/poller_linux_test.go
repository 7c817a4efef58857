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

// newLingering is a Poller that waits through the runtime's.
func newLingering(t testing.TB) *Poller {
	t.Helper()
	p := newPoller(t)
	if err := p.SetLinger(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPollerParked: what a descriptor, a timeout and a Wake do to a Poller that waits through the runtime's.
func TestPollerParked(t *testing.T) {
	p := newLingering(t)
	r, w := newPipe(t)
	r2, w2 := newPipe(t)
	i := p.Add(r, Readable)
	wait := func(step string, timeout time.Duration, want ...int) {
		t.Helper()
		start := time.Now()
		if err := p.Wait(timeout); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		took := time.Since(start)
		if len(want) == 0 && timeout < time.Minute && took < timeout || took > 20*time.Second {
			t.Errorf("%s: Wait(%v) took %v", step, timeout, took)
		}
		var got []int
		for index := range p.fds {
			if index > 0 && p.Ready(index) {
				got = append(got, index)
			}
		}
		if !slices.Equal(got, want) || p.Count() != len(want) {
			t.Errorf("%s: %v are ready, Count %d, want %v", step, got, p.Count(), want)
		}
	}
	later := func(f func()) { time.AfterFunc(5*time.Millisecond, f) }
	put := func(fd int) func() { return func() { unix.Write(fd, []byte{1}) } }
	wait("nothing comes", 3*time.Millisecond)
	later(put(w))
	wait("something comes", time.Minute, i)
	wait("it is still there", time.Minute, i)
	put(w)()
	wait("and more", time.Minute, i)
	drainPipe(r)
	wait("nothing any more", 3*time.Millisecond)
	put(w)()
	drainPipe(r)
	wait("it was read before the wait", 3*time.Millisecond)
	later(p.Wake)
	wait("Wake", time.Minute)
	p.Wake()
	wait("Wake before", time.Minute)
	wait("and no more", 3*time.Millisecond)

	j := p.Add(r2, 0)
	put(w2)()
	wait("not wanted", 3*time.Millisecond)
	p.SetEvents(j, Readable)
	wait("wanted now", time.Minute, j)
	put(w)()
	wait("both", time.Minute, i, j)
	p.Remove(i)
	wait("one removed", time.Minute, j)
	p.Remove(j)
	wait("both removed", 3*time.Millisecond)
	drainPipe(r2)
	if again := p.Add(r2, Readable); again != i && again != j {
		t.Errorf("Add gave index %d, want one of those that are free", again)
	} else {
		later(put(w2))
		wait("added again, perhaps at the other's index", time.Minute, again)
	}
}

func drainPipe(r int) {
	var b [64]byte
	for n := 1; n > 0; {
		n, _ = unix.Read(r, b[:])
	}
}

// TestPollerParkedMany: more are ready than the kernel tells at once.
func TestPollerParkedMany(t *testing.T) {
	p := newLingering(t)
	r, w := newPipe(t)
	for range 20 {
		fd, err := unix.Dup(r) // in an epoll set, each descriptor once
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		p.Add(fd, Readable)
	}
	unix.Write(w, []byte{1})
	for range 3 {
		if err := p.Wait(time.Minute); err != nil {
			t.Fatal(err)
		}
		if p.Count() != 20 {
			t.Errorf("%d are ready, want 20", p.Count())
		}
	}
}

// TestPollerParkedStream passes a token to and fro, now with pauses and now without: no arrival may be missed between the ways to wait.
func TestPollerParkedStream(t *testing.T) {
	p := newLingering(t)
	r, w := newPipe(t)
	back, answer := newPipe(t)
	p.Add(r, Readable)
	const rounds = 3000
	var other sync.WaitGroup
	other.Go(func() {
		sender, err := NewPoller()
		if err != nil {
			t.Error(err)
			return
		}
		defer sender.Close()
		sender.Add(back, Readable)
		for i := range rounds {
			if i%100 < 6 {
				time.Sleep(time.Duration(i%4) * 700 * time.Microsecond)
			}
			unix.Write(w, []byte{1})
			if sender.Wait(20*time.Second) != nil || sender.Count() == 0 {
				t.Errorf("no answer to %d", i)
				return
			}
			drainPipe(back)
		}
	})
	for i := range rounds {
		if err := p.Wait(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		if p.Count() != 1 {
			t.Errorf("token %d did not arrive", i)
			break
		}
		drainPipe(r)
		unix.Write(answer, []byte{1})
	}
	other.Wait()
}

func TestPollerParkedAllocs(t *testing.T) {
	p := newLingering(t)
	r, w := newPipe(t)
	i := p.Add(r, Readable)
	unix.Write(w, []byte{1})
	p.Wait(time.Second) // the first one has to make room
	if n := testing.AllocsPerRun(100, func() {
		p.SetEvents(i, Readable)
		p.quick = 0 // it does not linger
		p.Wait(time.Second)
		p.SetEvents(i, 0)
		p.Wait(time.Millisecond)
	}); n != 0 {
		t.Errorf("%v allocations per turn, want 0", n)
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
