// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import "golang.org/x/sys/unix"

// Descriptor is a descriptor that this process has inherited, such as standard input. Other
// processes may share it, and with it its flags, so O_NONBLOCK is not set. Instead it is read and written only when it
// is ready, and so little at a time that this does not block.
type Descriptor struct {
	fds [1]unix.PollFd // in here so that the call does not allocate
}

// PipeBuf is how much can be written to a pipe that is ready for writing without blocking, and
// appears in it in one piece (PIPE_BUF in pipe(7)).
const PipeBuf = 4096

// NewDescriptor names descriptor fd, which stays the caller's.
func NewDescriptor(fd int) *Descriptor {
	return &Descriptor{fds: [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}}
}

// FD is the descriptor's number.
func (d *Descriptor) FD() int { return int(d.fds[0].Fd) }

// Read reads what is there. Call it when a wait has found the descriptor readable, at its end or in error, or it
// blocks. It returns 0 if there is nothing after all; ended is true when there will never be anything.
func (d *Descriptor) Read(b []byte) (n int, ended bool) {
	n, err := unix.Read(d.FD(), b)
	switch {
	case n > 0:
		return n, false
	case err == unix.EAGAIN || err == unix.EINTR:
		return 0, false
	}
	return 0, true
}

// Write writes at most PipeBuf bytes of b, or none if the descriptor is not ready. broken is true when nobody will
// ever read them.
func (d *Descriptor) Write(b []byte) (n int, broken bool) {
	// An error is a reason to write, too: the write tells which.
	if n, _ := unix.Poll(d.fds[:], 0); n <= 0 {
		return 0, false
	}
	n, err := unix.Write(d.FD(), b[:min(len(b), PipeBuf)])
	switch {
	case n > 0:
		return n, false
	case err == nil || err == unix.EAGAIN || err == unix.EINTR:
		return 0, false
	}
	return 0, true
}
