// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// testMagic begins the payload of a test broadcast; a nonce follows. Neither Channel Access nor PVAccess takes it for
// a message of its own.
var testMagic = []byte("fathom-relay-test:")

const (
	nonceLen = 16
	testLen  = 18 + nonceLen
)

// isTest tells whether a payload is a test broadcast's.
func isTest(payload []byte) bool {
	return len(payload) == testLen && bytes.HasPrefix(payload, testMagic)
}

func appendTest(b []byte, nonce [nonceLen]byte) []byte {
	return append(append(b, testMagic...), nonce[:]...)
}

// TestReport is what became of a test broadcast at one place.
type TestReport struct {
	// Peer is the relay that reports; [ThisRelay] for one's own.
	Peer string `json:"peer"`
	// Segment is its interface.
	Segment string `json:"segment,omitempty"`
	// Outcome is "captured", "emitted", or why not.
	Outcome string `json:"outcome"`
	// Took is the time from sending the broadcast until the report, both ways over the mesh included.
	Took time.Duration `json:"took_ns,omitempty"`
	// OK tells that the outcome is as it should be.
	OK bool `json:"ok"`

	number uint32 // the peer's; 0 is this relay
}

// testSeen is a test of another relay's that was met, to be reported once the batch is done.
type testSeen struct {
	peer   uint32
	report mesh.TestReport
}

// tests are those that wait for reports.
type tests struct {
	mu      sync.Mutex
	waiting map[[nonceLen]byte]*testRun
}

type testRun struct {
	started time.Time
	reports chan TestReport
}

// testQueue is how many reports a test keeps until they are read.
const testQueue = 256

func (t *tests) start(nonce [nonceLen]byte) *testRun {
	run := &testRun{started: time.Now(), reports: make(chan TestReport, testQueue)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting == nil {
		t.waiting = make(map[[nonceLen]byte]*testRun)
	}
	t.waiting[nonce] = run
	return run
}

func (t *tests) end(nonce [nonceLen]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, nonce)
}

func (t *tests) tell(nonce [nonceLen]byte, r TestReport, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	run := t.waiting[nonce]
	if run == nil {
		return // not ours, or no longer waited for
	}
	r.Took = now.Sub(run.started)
	select {
	case run.reports <- r:
	default:
	}
}

const (
	outcomeCaptured = "captured and relayed"
	outcomeEmitted  = "emitted"
)

// fine tells whether an outcome is as it should be: where a relay does not emit, another one does.
func fine(outcome string) bool {
	switch outcome {
	case outcomeEmitted, drop.Standby.String(), drop.Copy.String():
		return true
	}
	return false
}

// reported takes a report from the mesh.
func (t *tests) reported(r mesh.Report, now time.Time) {
	t.tell(r.Nonce, TestReport{Peer: r.From.String(), number: r.Peer, Segment: r.Segment, Outcome: r.Outcome, OK: fine(r.Outcome)}, now)
}

// sawTest notes what becomes of a test broadcast on a segment.
func (w *worker) sawTest(s *segment, i int, d *datagram.Datagram, reason drop.Reason) {
	nonce := [nonceLen]byte(d.Payload()[len(testMagic):])
	outcome := outcomeEmitted
	if reason != drop.None {
		outcome = reason.String()
	}
	if w.sources[i] >= guard.LocalSource(0) { // from another segment of this relay
		w.engine.tests.tell(nonce, TestReport{Peer: ThisRelay, Segment: s.name, Outcome: outcome, OK: fine(outcome)}, w.now)
		return
	}
	w.pendingTests = append(w.pendingTests, testSeen{w.sources[i], mesh.TestReport{Nonce: nonce, Segment: s.name, Outcome: outcome}})
}

// ThisRelay is in place of a peer in what a relay reports of itself.
const ThisRelay = "this relay"

// capturedTest notes that a test broadcast came up on a segment.
func (e *engine) capturedTest(s *segment, d *datagram.Datagram, reason drop.Reason, now time.Time) {
	r := TestReport{Peer: ThisRelay, Segment: s.name, Outcome: outcomeCaptured, OK: true}
	if reason != drop.None {
		r.Outcome, r.OK = reason.String(), reason == drop.Standby
	}
	e.tests.tell([nonceLen]byte(d.Payload()[len(testMagic):]), r, now)
}

// test is [Relay.Test], with what sends a broadcast as an application of this host would.
func (e *engine) test(ctx context.Context, port uint16, broadcast func(ifname string, port uint16, payload []byte) error) (iter.Seq[TestReport], error) {
	if port == 0 {
		if len(e.opts.Ports) == 0 {
			return nil, fmt.Errorf("%w: no port for broadcasts is relayed, only groups", ErrOptions)
		}
		port = e.opts.Ports[0].First
	}
	if !relays(e.opts.Ports, port) {
		return nil, fmt.Errorf("%w: port %d is not relayed", ErrOptions, port)
	}
	var nonce [nonceLen]byte
	_, _ = rand.Read(nonce[:]) // it never fails
	run := e.tests.start(nonce)
	payload := appendTest(nil, nonce)
	for _, s := range e.segments {
		if err := broadcast(s.name, port, payload); err != nil {
			e.tests.tell(nonce, TestReport{Peer: ThisRelay, Segment: s.name, Outcome: err.Error()}, time.Now())
		}
	}
	return func(yield func(TestReport) bool) {
		defer e.tests.end(nonce)
		heard := make(map[uint32]bool)    // peers, by number
		captured := make(map[string]bool) // own segments
		relayed := false
		for {
			var report TestReport
			select {
			case report = <-run.reports:
			case <-ctx.Done():
				select { // what came before the end counts
				case report = <-run.reports:
				default:
					e.missing(captured, heard, relayed)(yield)
					return
				}
			}
			if report.number != 0 {
				heard[report.number] = true
			} else {
				captured[report.Segment] = true
				relayed = relayed || report.Outcome == outcomeCaptured
			}
			if !yield(report) {
				return
			}
		}
	}, nil
}

// missing gives a report for each segment and each peer that none has come for. When nothing was relayed, because another
// relay serves, nothing can be expected of the peers: their reports go to that one.
func (e *engine) missing(captured map[string]bool, heard map[uint32]bool, relayed bool) iter.Seq[TestReport] {
	return func(yield func(TestReport) bool) {
		for _, s := range e.segments {
			if !captured[s.name] && !yield(TestReport{Peer: ThisRelay, Segment: s.name, Outcome: "not captured"}) {
				return
			}
		}
		if !relayed {
			return
		}
		for _, p := range e.mesh.Peers(time.Now()) {
			report := TestReport{Peer: p.Address.String(), Outcome: "no report"}
			if heard[p.Number] || p.Kind == mesh.Self || p.Through.IsValid() || p.Origin == "heard" {
				continue
			}
			if p.Kind == mesh.Original {
				report.Outcome, report.OK = "SnowSignal's: cannot report", true
			}
			if !yield(report) {
				return
			}
		}
	}
}

func relays(ranges []datagram.PortRange, port uint16) bool {
	for _, r := range ranges {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}
