// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"

	"github.com/seed5728abee/fathom/relay/drop"
)

// hello is what relays tell each other once a second. The answer has the same form, another record type and
// the token of what it answers.
//
//	0       8           14         22        30         34
//	+-------+-----------+----------+---------+----------+---+---------+---+--------------+
//	| token |  relay ID | instance | mesh ID | features | n | version | n | segments [8] |
//	+-------+-----------+----------+---------+----------+---+---------+---+--------------+
//
// What follows the segments is for later versions, and ignored.
type hello struct {
	token    uint64 // random; an answer with it proves that the hello was received
	id       [6]byte
	instance [8]byte // another at each start: two addresses with one instance are one relay
	mesh     [8]byte
	features uint32 // no bit has a meaning yet
	version  []byte
	segments []byte // tokens of 8 bytes each
}

const (
	helloFixed  = 8 + 6 + 8 + 8 + 4
	maxVersion  = 32
	maxSegments = 32
	tokenLen    = 8
)

func (h *hello) size() int { return helloFixed + 1 + len(h.version) + 1 + len(h.segments) }

func (h *hello) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, h.token)
	b = append(b, h.id[:]...)
	b = append(b, h.instance[:]...)
	b = append(b, h.mesh[:]...)
	b = binary.BigEndian.AppendUint32(b, h.features)
	b = append(b, byte(len(h.version)))
	b = append(b, h.version...)
	b = append(b, byte(len(h.segments)/tokenLen))
	return append(b, h.segments...)
}

// parseHello gives views into b.
func parseHello(b []byte) (h hello, reason drop.Reason) {
	if len(b) < helloFixed+2 {
		return h, drop.Truncated
	}
	h.token = binary.BigEndian.Uint64(b)
	h.id = [6]byte(b[8:])
	h.instance = [8]byte(b[14:])
	h.mesh = [8]byte(b[22:])
	h.features = binary.BigEndian.Uint32(b[30:])
	b = b[helloFixed:]
	var ok bool
	if h.version, b, ok = counted(b, 1, maxVersion); !ok || !printable(h.version) {
		return hello{}, drop.Malformed
	}
	if h.segments, _, ok = counted(b, tokenLen, maxSegments); !ok {
		return hello{}, drop.Malformed
	}
	return h, drop.None
}

// counted cuts off a byte n and n things of one size.
func counted(b []byte, size, most int) (things, rest []byte, ok bool) {
	if len(b) < 1 || int(b[0]) > most || len(b) < 1+int(b[0])*size {
		return nil, nil, false
	}
	n := 1 + int(b[0])*size
	return b[1:n], b[n:], true
}

// printable keeps what others send from doing more to a terminal than to be read.
func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// A TestReport tells the relay that asked what became of its test broadcast on one segment of another relay.
type TestReport struct {
	Nonce   [16]byte // what the test broadcast carried
	Segment string   // the interface; at most 64 printable bytes
	Outcome string   // "emitted", or the name of the [drop.Reason] why it was not; at most 64 printable bytes
}

const maxReportText = 64

func (r *TestReport) append(b []byte) []byte {
	b = append(b, r.Nonce[:]...)
	for _, s := range [2]string{r.Segment, r.Outcome} {
		s = s[:min(len(s), maxReportText)]
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return b
}

func (r *TestReport) size() int {
	return len(r.Nonce) + 2 + min(len(r.Segment), maxReportText) + min(len(r.Outcome), maxReportText)
}

func parseTestReport(b []byte) (r TestReport, reason drop.Reason) {
	if len(b) < len(r.Nonce) {
		return r, drop.Truncated
	}
	nonce := [16]byte(b)
	segment, b, ok := counted(b[16:], 1, maxReportText)
	if !ok {
		return r, drop.Malformed
	}
	outcome, _, ok := counted(b, 1, maxReportText)
	if !ok || !printable(segment) || !printable(outcome) {
		return r, drop.Malformed
	}
	return TestReport{Nonce: nonce, Segment: string(segment), Outcome: string(outcome)}, drop.None
}
