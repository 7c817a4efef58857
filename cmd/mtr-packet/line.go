// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "bytes"

const (
	// maxLine is the longest line, with its newline. The original reads into a buffer of 4096
	// bytes, the last of which ends a C string.
	maxLine = 4095
	// readSize is how much is read at once: what a pipe holds by default.
	readSize = 64 << 10
)

// lines cuts a stream into lines. Its memory is fixed. The bytes that next
// returned are good until the next call of space.
type lines struct {
	buf        [readSize + maxLine]byte
	start, end int // what is not yet cut
}

// space is where to put the next bytes, at least readSize of them once next has returned false.
func (l *lines) space() []byte {
	l.end = copy(l.buf[:], l.buf[l.start:l.end])
	l.start = 0
	return l.buf[l.end:]
}

// add tells that n bytes were put into space.
func (l *lines) add(n int) { l.end += n }

// next cuts off the next line, without its newline. If the first maxLine bytes have no newline, they are
// dropped and overflow is true. ok is false when there is neither.
func (l *lines) next() (line []byte, overflow, ok bool) {
	b := l.buf[l.start:l.end]
	if i := bytes.IndexByte(b[:min(len(b), maxLine)], '\n'); i >= 0 {
		l.start += i + 1
		return b[:i], false, true
	}
	if len(b) >= maxLine {
		l.start += maxLine
		return nil, true, true
	}
	return nil, false, false
}
