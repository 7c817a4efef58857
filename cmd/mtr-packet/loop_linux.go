// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/probe"
)

// maxBacklog is how many bytes of answers may wait for a slow reader before commands are no longer read. A driver
// that writes many commands before it reads is stuck when neither side reads, so this is more than the answers
// to maxProbes. What is in flight, and what has been read, may add to it.
const maxBacklog = 4 << 20

// loop joins a session to two descriptors. Its methods but begin are hooks of the prober's loop.
type loop struct {
	in, out *rawio.Descriptor
	ready   chan struct{} // closed when session is set
	session *session
	ended   bool     // no more commands will come
	blocked bool     // out was not ready for writing when last looked at
	exit    chan int // the exit code, once

	// orphaned tells whether the driver has gone without closing its end of out.
	orphaned func() bool
}

func newLoop(in, out int) *loop {
	return &loop{
		in: rawio.NewDescriptor(in), out: rawio.NewDescriptor(out),
		ready: make(chan struct{}), exit: make(chan int, 1), orphaned: func() bool { return false },
	}
}

func (l *loop) hooks() *probe.Loop {
	return &probe.Loop{
		In: l.in.FD(), WantRead: l.wantRead, OnReadable: l.onReadable,
		Out: l.out.FD(), WantWrite: l.wantWrite, OnWritable: l.flush, OnBroken: l.onBroken,
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

// onReadable takes in commands.
func (l *loop) onReadable() {
	if l.ended {
		return
	}
	n, ended := l.in.Read(l.session.lines.space())
	l.session.lines.add(n)
	l.session.run()
	l.ended = ended // an unfinished line is dropped
}

// afterTurn writes what the turn has brought.
func (l *loop) afterTurn() {
	<-l.ready
	if !l.blocked {
		l.flush()
	}
	switch {
	case !l.ended:
	case l.session.inFlight == 0 && l.session.replies.pending() == 0:
		l.quit(exitDone)
	case l.orphaned(): // the prober turns at least once a second while probes are in flight
		l.quit(exitFailed)
	}
}

// flush writes as many answers as go out without blocking.
func (l *loop) flush() {
	l.blocked = false
	for r := &l.session.replies; r.pending() > 0; {
		n, broken := l.out.Write(r.chunk())
		switch {
		case broken:
			l.onBroken()
			return
		case n == 0:
			l.blocked = true
			return
		}
		r.written(n)
	}
}

// onBroken ends the program: nobody will ever read an answer.
func (l *loop) onBroken() {
	l.quit(exitFailed)
	l.ended = true
	l.session.replies = replies{}
}

// quit ends the program. The first code counts.
func (l *loop) quit(code int) {
	select {
	case l.exit <- code:
	default:
	}
}
