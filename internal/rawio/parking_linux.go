// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// parking waits for a Poller's descriptors as goroutines wait for connections: they are in an epoll(7) set that the
// runtime has in its own.
//
// Each is in the set for one event (EPOLLONESHOT), so that while the Poller finds out by itself what is ready, as it does
// when packets follow each other closely, their arrival does not wake a thread of the runtime as well. The deadline
// is a timerfd, since for each timer of the runtime's own its monitor wakes up, too.
type parking struct {
	set   int      // the descriptor of file
	file  *os.File // which owns it
	raw   syscall.RawConn
	timer int
	check func(fd uintptr) bool // look, made once so that no wait allocates

	fds    []unix.PollFd // what is waited for, during wait
	states []parkingState
	n      int
	over   bool
	err    error
	events [8]unix.EpollEvent
}

// parkingState is what the kernel knows of the descriptor at an index.
type parkingState struct {
	fd    int32 // 0: nothing
	armed bool  // it is watched for the events that the Poller wants
}

// parkingTimer stands for an index in the events of the timer.
const parkingTimer = -1

func newParking() (s *parking, err error) {
	s = &parking{timer: -1}
	if s.set, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	// By this the runtime can tell that it may wait for it.
	if err := unix.SetNonblock(s.set, true); err != nil {
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), unix.Close(s.set))
	}
	s.file = os.NewFile(uintptr(s.set), "epoll")
	s.check = s.look
	if s.raw, err = s.file.SyscallConn(); err == nil {
		err = s.file.SetReadDeadline(time.Time{}) // it fails where the runtime cannot wait
	}
	if err == nil {
		s.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	}
	if err == nil {
		// Edge-triggered, it need not be read: to set it again is enough.
		err = s.control(unix.EPOLL_CTL_ADD, int32(s.timer), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: parkingTimer})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), s.close())
	}
	return s, nil
}

// wait waits as ppoll(2) does, with a timeout that is not 0; a negative one is for ever.
func (s *parking) wait(fds []unix.PollFd, timeout time.Duration) (int, error) {
	s.fds, s.n, s.over, s.err = fds, 0, false, nil
	for i := range fds {
		fds[i].Revents = 0
	}
	if err := s.arm(); err != nil {
		return 0, err
	}
	if err := s.setTimer(max(timeout, 0)); err != nil { // 0 is never
		return 0, err
	}
	if err := s.raw.Read(s.check); err != nil {
		return 0, err
	}
	return s.n, s.err
}

// setTimer ends the wait after d. What the timer had to tell is forgotten.
func (s *parking) setTimer(d time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	if _, _, errno := unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(s.timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("set timer to %v: %w", d, errno)
	}
	return nil
}

// arm makes the kernel watch what it does not watch yet.
func (s *parking) arm() error {
	for len(s.states) < len(s.fds) {
		s.states = append(s.states, parkingState{})
	}
	for i := range s.fds {
		f, known := &s.fds[i], &s.states[i]
		if f.Fd < 0 || known.armed {
			continue
		}
		op := uintptr(unix.EPOLL_CTL_MOD)
		if known.fd == 0 {
			op = unix.EPOLL_CTL_ADD
		}
		e := unix.EpollEvent{Events: uint32(f.Events) | unix.EPOLLONESHOT, Fd: int32(i)}
		if err := s.control(op, f.Fd, &e); err != nil {
			return err
		}
		*known = parkingState{f.Fd, true}
	}
	return nil
}

// control is epoll_ctl(2). It does not wait, so that the runtime need not know.
func (s *parking) control(op uintptr, fd int32, e *unix.EpollEvent) error {
	if _, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(s.set), op, uintptr(fd), uintptr(unsafe.Pointer(e)), 0, 0); errno != 0 {
		return fmt.Errorf("epoll_ctl %d on descriptor %d: %w", op, fd, errno)
	}
	return nil
}

// look takes over what is ready, and tells whether the wait is over.
func (s *parking) look(uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.set), uintptr(unsafe.Pointer(&s.events)), uintptr(len(s.events)), 0, 0, 0)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		default:
			s.err = errno
			return true
		}
		for _, e := range s.events[:n] {
			if e.Fd == parkingTimer {
				s.over = true
				continue
			}
			s.fds[e.Fd].Revents = int16(e.Events) // the values are those of poll(2)
			s.states[e.Fd].armed = false
			s.n++
		}
		if int(n) < len(s.events) { // what is ready and did not fit is not in the set any more when it is asked again
			return s.over || s.n > 0
		}
	}
}

// disarm says that what is known of an index is outdated.
func (s *parking) disarm(index int) {
	if index < len(s.states) {
		s.states[index].armed = false
	}
}

// remove forgets the descriptor at an index, before it is closed.
func (s *parking) remove(index int) {
	if index >= len(s.states) || s.states[index].fd == 0 {
		return
	}
	// The kernel forgets by itself what is closed.
	_ = s.control(unix.EPOLL_CTL_DEL, s.states[index].fd, nil)
	s.states[index] = parkingState{}
}

func (s *parking) close() error {
	err := s.file.Close()
	if s.timer >= 0 {
		err = errors.Join(err, unix.Close(s.timer))
	}
	return err
}
