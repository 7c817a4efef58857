// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Events is a set of conditions of a descriptor, with the values of poll(2).
type Events int16

// Conditions. Errored is reported whether it was asked for or not: the error
// queue has an entry, the peer hung up, or the descriptor is not open.
const (
	Readable Events = unix.POLLIN
	Writable Events = unix.POLLOUT
	Errored  Events = unix.POLLERR | unix.POLLHUP | unix.POLLNVAL
)

// Poller waits for a handful of descriptors, for a deadline of nanosecond
// resolution, and for other goroutines that call [Poller.Wake].
//
// The runtime's network poller serves thousands of connections but rounds its
// timers to a millisecond and costs a goroutine switch per event. An engine
// that paces packets has few descriptors and wants neither, so it locks its
// goroutine to a thread ([runtime.LockOSThread], [SetTimerSlack]) and sleeps
// here, in one ppoll(2). An engine that may have nothing to do for long wants
// [Poller.SetLinger].
//
// All methods but Wake belong to one goroutine. No method allocates, except Add.
type Poller struct {
	fds  []unix.PollFd // fds[0] is the eventfd; a removed descriptor is -1, which ppoll skips
	free []int
	n    int // descriptors ready after the last Wait, the eventfd not counted
	ts   unix.Timespec

	linger  time.Duration // see SetLinger
	quick   int           // so many Waits before this one found a descriptor ready within linger
	parking *parking      // nil without linger

	// state lets Wake skip the system call unless the owner sleeps.
	state atomic.Int32

	wakeup int        // the eventfd again: Wake must not look at fds, which belong to the owner
	mu     sync.Mutex // guards the eventfd against a Wake that races with Close
	closed bool
}

const (
	pollerRunning  int32 = iota // the owner is not in Wait
	pollerSleeping              // the owner is, or is about to be, in ppoll
	pollerNotified              // the next, or present, Wait returns at once
)

// NewPoller returns a Poller without descriptors.
func NewPoller() (*Poller, error) {
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &Poller{fds: []unix.PollFd{{Fd: int32(efd), Events: unix.POLLIN}}, wakeup: efd}, nil
}

// Add watches fd for events and returns the index that names it from now on.
// Indexes are small; that of a removed descriptor is given out again. The
// Poller does not own fd: remove it before closing it.
func (p *Poller) Add(fd int, events Events) (index int) {
	e := unix.PollFd{Fd: int32(fd), Events: int16(events)}
	if n := len(p.free); n > 0 {
		index = p.free[n-1]
		p.free = p.free[:n-1]
		p.fds[index] = e
		return index
	}
	p.fds = append(p.fds, e)
	return len(p.fds) - 1
}

// SetEvents changes what index is watched for; 0 leaves Errored only.
func (p *Poller) SetEvents(index int, events Events) {
	p.fds[index].Events = int16(events)
	if p.parking != nil {
		p.parking.disarm(index)
	}
}

// Remove forgets the descriptor at index.
func (p *Poller) Remove(index int) {
	if p.fds[index].Fd < 0 {
		return
	}
	p.fds[index] = unix.PollFd{Fd: -1}
	p.free = append(p.free, index)
	if p.parking != nil {
		p.parking.remove(index)
	}
}

// Wait sleeps until a descriptor is ready, Wake is called or timeout has
// passed; a negative timeout is for ever, zero only looks. It returns nil in
// each of these cases: ask Ready. After Close it returns [net.ErrClosed].
//
// The kernel may add 0.1 % of the timeout to it (and at least the thread's
// timer slack, see [SetTimerSlack]); no other rounding takes place.
func (p *Poller) Wait(timeout time.Duration) error { return p.wait(p.fds, timeout) }

// Nap is Wait without the descriptors: none is Ready after it.
func (p *Poller) Nap(timeout time.Duration) error {
	for i := range p.fds {
		p.fds[i].Revents = 0
	}
	return p.wait(p.fds[:1], timeout)
}

// wait waits for some of the descriptors, the eventfd among them.
func (p *Poller) wait(fds []unix.PollFd, timeout time.Duration) error {
	if p.closed {
		return net.ErrClosed
	}
	if timeout != 0 && !p.state.CompareAndSwap(pollerRunning, pollerSleeping) {
		timeout = 0
	}
	var n int
	var err error
	var start time.Time
	if p.linger > 0 {
		start = time.Now()
	}
	lingered := false
	if p.quick >= quickEnough && timeout != 0 {
		first := p.linger
		if timeout > 0 {
			first = min(first, timeout)
		}
		n, err = p.hold(fds, first)
		lingered = n != 0 || err != nil || first == timeout
		if timeout > 0 {
			timeout -= first
		}
	}
	switch {
	case lingered:
	case p.parking != nil && timeout != 0 && len(fds) == len(p.fds):
		n, err = p.parking.wait(fds, timeout)
	default:
		n, err = p.sleep(fds, timeout)
	}
	p.state.Store(pollerRunning)
	p.n = n
	if err != nil {
		p.n = 0
		for i := range p.fds {
			p.fds[i].Revents = 0
		}
		return fmt.Errorf("ppoll on %d descriptors: %w", len(fds), err)
	}
	if p.fds[0].Revents != 0 {
		p.n--
		p.drain()
	}
	if p.n > 0 && p.linger > 0 && time.Since(start) < p.linger {
		p.quick++
	} else {
		p.quick = 0
	}
	return nil
}

// sleep waits, and lends the runtime's processor to other goroutines.
func (p *Poller) sleep(fds []unix.PollFd, timeout time.Duration) (n int, err error) {
	var ts *unix.Timespec
	if timeout >= 0 {
		p.ts = unix.NsecToTimespec(int64(timeout))
		ts = &p.ts
	}
	for {
		// Linux writes the time that is left into ts, so a call that a signal
		// interrupted (the runtime sends them to preempt) can just be repeated.
		if n, err = unix.Ppoll(fds, ts, nil); err != unix.EINTR {
			return n, err
		}
	}
}

// hold waits and keeps the runtime's processor.
func (p *Poller) hold(fds []unix.PollFd, timeout time.Duration) (int, error) {
	p.ts = unix.NsecToTimespec(int64(timeout))
	for {
		// As sleep does it, but unknown to the runtime.
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)),
			uintptr(unsafe.Pointer(&p.ts)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			runtime.Gosched() // the signal is the runtime's, which wants this thread to stop for a moment
		default:
			return 0, errno
		}
	}
}

// quickEnough is how many packets make a stream. Fewer that come together are a question and its answer.
const quickEnough = 4

// SetLinger makes Wait, after some that found a descriptor ready within d, keep the processor that the runtime has lent
// to the goroutine for up to d. When nothing comes for longer, it waits through the runtime's own poller.
//
// So the runtime's monitor, a thread, sleeps while the Poller does. A wait of which the runtime knows but that is not its own
// wakes the monitor each time, to take the processor away if it lasts: a third of a millisecond of work in all, ten times
// what a packet costs that comes alone. The price of lingering is that other goroutines have a processor less
// for d after each packet, so that d should be a few times the interval of the packets that are worth it, and GOMAXPROCS more than the
// number of pollers that linger. The price of the runtime's poller are some microseconds until the goroutine goes on,
// more if it is locked to a thread.
//
// It is called once, before the first Wait. A descriptor can then be added once, and has to be open in a Wait. Default: neither.
func (p *Poller) SetLinger(d time.Duration) error {
	parking, err := newParking()
	if err != nil {
		return err
	}
	p.linger, p.parking = d, parking
	return nil
}

// drain resets the eventfd. A Wake that decided to write before the state was
// reset may write after this; the next Wait then returns early, which is harmless.
func (p *Poller) drain() {
	var b [8]byte
	_, _ = unix.Read(p.wakeup, b[:]) // it is non-blocking, and empty at worst
}

// Ready reports whether any condition holds for index since the last Wait.
func (p *Poller) Ready(index int) bool { return p.fds[index].Revents != 0 }

// Events returns the conditions that the last Wait found for index.
func (p *Poller) Events(index int) Events { return Events(p.fds[index].Revents) }

// Count returns how many descriptors the last Wait found ready.
func (p *Poller) Count() int { return p.n }

// Wake ends the present Wait or, when there is none, makes the next one return
// at once; several calls may count as one. So the caller queues first and then
// wakes, and the owner looks at its queues after every Wait. Wake may be called
// from any goroutine, also after Close. It costs an atomic operation while the
// owner is awake and one write(2) while it sleeps.
func (p *Poller) Wake() {
	if p.state.Swap(pollerNotified) != pollerSleeping {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		one := [8]byte{0: 1}                // 1 in little-endian, 2^56 in big-endian: both are below the limit of 2^64-2
		_, _ = unix.Write(p.wakeup, one[:]) // full only if it wakes already
	}
}

// Close releases the Poller, not the descriptors added to it. It is idempotent.
func (p *Poller) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	err := unix.Close(p.wakeup)
	if p.parking != nil {
		err = errors.Join(err, p.parking.close())
	}
	return err
}

// SetTimerSlack sets how late the kernel may end the sleeps of the calling
// thread, so as to end several with one interrupt. The default is 50 µs; an
// engine that paces packets wants 1 ns. Zero restores the default. The caller
// has locked its goroutine to the thread and should not unlock it afterwards.
func SetTimerSlack(d time.Duration) error {
	if d < 0 {
		return errors.New("timer slack is negative")
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d.Nanoseconds()), 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack to %v: %w", d, err)
	}
	return nil
}
