// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/probe"
)

// maxBacklog is how many bytes of answers may wait for a slow reader before commands are no longer
// read. What is in flight, and what has been read, may add to it.
const maxBacklog = 64 << 10

// loop joins a session to two descriptors. Its methods but begin are hooks of the prober's loop.
//
// The descriptors may be shared with other processes, so their flags are left alone. They are
// used only when poll says that they are ready, and so little at a time that they don't block.
type loop struct {
	in, out int
	ready   chan struct{} // closed when session is set
	session *session
	ended   bool     // no more commands will come
	blocked bool     // out was not ready for writing when last looked at
	exit    chan int // the exit code, once
	poll    [1]unix.PollFd
}

func newLoop(in, out int) *loop {
	l := &loop{in: in, out: out, ready: make(chan struct{}), exit: make(chan int, 1)}
	l.poll[0] = unix.PollFd{Fd: int32(out), Events: unix.POLLOUT}
	return l
}

func (l *loop) hooks() *probe.Loop {
	return &probe.Loop{
		In: l.in, WantRead: l.wantRead, OnReadable: l.onReadable,
		Out: l.out, WantWrite: l.wantWrite, OnWritable: l.flush, OnBroken: l.onBroken,
		AfterTurn: l.afterTurn,
	}
}

// begin lets the loop run. The prober calls its hooks from its first turn on, and that is before there can
// be a session; until begin they wait.
func (l *loop) begin(s *session) {
	l.session = s
	close(l.ready)
}

func (l *loop) wantRead() bool {
	<-l.ready
	return !l.ended && l.session.replies.pending() < maxBacklog
}

func (l *loop) wantWrite() bool { return l.blocked }

// onReadable reads once: a second read might block.
func (l *loop) onReadable() {
	if l.ended {
		return
	}
	n, err := unix.Read(l.in, l.session.lines.space())
	switch {
	case n > 0:
		l.session.lines.add(n)
		l.session.run()
	case err == unix.EAGAIN || err == unix.EINTR:
	default:
		// The end, or an error that would come again. An unfinished line is dropped.
		l.ended = true
	}
}

// afterTurn writes what the turn has brought.
func (l *loop) afterTurn() {
	<-l.ready
	if !l.blocked {
		l.flush()
	}
	if l.ended && l.session.inFlight == 0 && l.session.replies.pending() == 0 {
		l.quit(exitDone)
	}
}

// flush writes as much as goes out without blocking.
func (l *loop) flush() {
	l.blocked = false
	r := &l.session.replies
	for r.pending() > 0 {
		if n, _ := unix.Poll(l.poll[:], 0); n <= 0 {
			l.blocked = true
			return
		}
		n, err := unix.Write(l.out, r.chunk())
		switch {
		case n > 0:
			r.written(n)
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			l.blocked = true
			return
		default:
			l.onBroken()
			return
		}
	}
}

// onBroken ends the program: nobody will ever read an answer.
func (l *loop) onBroken() {
	l.ended = true
	l.session.replies = replies{}
	l.quit(exitFailed)
}

func (l *loop) quit(code int) {
	select {
	case l.exit <- code:
	default:
	}
}
