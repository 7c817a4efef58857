// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/describe"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/epics"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// engine decides what becomes of frames and datagrams. It knows no sockets: frames, datagrams and the time come from
// outside, and what it sends goes to a transport and to emitters.
//
// A broadcast crosses it like this:
//
//	captured ──> segment.judge ──> mesh.Send ──> transport ))) mesh.Receive ──> segment.admit ──> emitter
//	                 │                                                               ^
//	                 └──────────────── to the relay's other segments ────────────────┘
type engine struct {
	opts     *Options
	log      *slog.Logger
	started  time.Time
	id       datagram.MAC
	mesh     *mesh.Mesh
	sealed   bool
	segments []*segment
	out      transport
	watch    watchers
	tests    tests
	searches *epics.Stats // nil unless they are counted

	macsMu sync.Mutex
	macs   []guard.MAC

	meshDrops    drop.Counters
	meshReceived atomic.Uint64
	meshBytes    atomic.Uint64
	meshSent     atomic.Uint64
	meshSentSize atomic.Uint64
	meshErrors   atomic.Uint64
}

// newEngine makes an engine without segments and peers, of options that are complete.
func newEngine(o *Options, id datagram.MAC) (*engine, error) {
	e := &engine{opts: o, log: o.Log, started: time.Now(), id: id, sealed: len(o.Keys) > 0 || o.Identity != nil}
	if o.CountSearches {
		e.searches = epics.NewStats(epics.StatsOptions{})
	}
	var err error
	e.mesh, err = mesh.New(mesh.Options{
		ID: id, Keys: o.Keys, Identity: o.Identity, Compat: o.Compat, OnlyPeers: o.OnlyPeers, Allow: o.AllowMesh,
		Payload: o.MeshMTU, Version: o.Version,
	})
	if errors.Is(err, mesh.ErrOptions) {
		err = fmt.Errorf("%w: %w", ErrOptions, err)
	}
	return e, err
}

// transport sends datagrams of the mesh. It can be used by several goroutines.
type transport interface {
	send(items []mesh.Outgoing)
}

// An emitter puts IP packets on a segment, and gives them to the host's own applications. It returns how many
// it could not, and why the last of them.
type emitter interface {
	emit(packets [][]byte) (failed int, err error)
}

// frame is a frame that a segment's interface captured, behind room for the two letters of an SS datagram.
type frame struct {
	ss       []byte
	capture  datagram.Capture
	outgoing bool // sent by this host
}

const ssRoom = 2

// A segment is what the engine knows of an interface.
type segment struct {
	engine *engine
	name   string
	number uint32  // guard.LocalSource of its place
	token  [8]byte // in our announcements; peers hear it over the mesh as well

	mu       sync.Mutex // guards what follows, for a batch at a time
	up       bool
	problem  string
	mac      datagram.MAC
	mtu      int
	prefixes []netip.Prefix
	addrs    []netip.AddrPort // where the mesh finds this relay
	unmarked bool             // see link
	// originals are the addresses of relays of the origin on the segment, as far as they are known.
	originals []guard.MAC
	policy    *datagram.Policy
	copies    guard.Copies
	election  *guard.Election
	limiter   *guard.Limiter // of what comes up on the segment
	inbound   *guard.Limiter // of what comes to it from elsewhere
	excesses  []guard.Excess // backing for look
	storms    uint64         // dropped for being one, when last looked

	// These belong to the segment's own goroutine.
	storming          bool
	listened          bool // an announcement has gone out since the interface came up
	looked, announced time.Time
	announcement      []byte

	emitMu  sync.Mutex // emitters send for one goroutine at a time
	emitter emitter    // nil while the interface is down

	drops, notEmitted       drop.Counters
	captured, capturedBytes atomic.Uint64
	relayed                 atomic.Uint64
	emitted, emittedBytes   atomic.Uint64
	kernelDropped           atomic.Uint64
}

// worker is what one goroutine works on, used again for each batch.
type worker struct {
	engine      *engine
	now         time.Time
	looked      time.Time           // of the mesh's worker
	datagrams   []datagram.Datagram // backing of the batch
	sources     []uint32            // for each: who sent it, for the accounting
	destination []netip.Addr        // for each: what it was sent to
	frames      []mesh.Frame
	outbox      mesh.Outbox
	inbox       mesh.Inbox
	arena       []byte
	packets     [][]byte
	searches    []epics.Datagram

	reassembler  datagram.Reassembler
	toPeers      datagram.Fragmenter
	toSegment    datagram.Fragmenter
	pendingTests []testSeen
}

// batchSize is how many frames are decided on at once, under one lock. Beyond this nothing is gained.
const batchSize = 64

func newWorker(e *engine) *worker {
	return &worker{engine: e, datagrams: make([]datagram.Datagram, 0, batchSize)}
}

// begin starts a batch. The results of the one before are gone.
func (w *worker) begin(now time.Time) {
	w.now = now
	w.datagrams, w.sources = w.datagrams[:0], w.sources[:0]
	w.destination = w.destination[:0]
	w.frames, w.packets, w.searches = w.frames[:0], w.packets[:0], w.searches[:0]
	w.pendingTests = w.pendingTests[:0]
	w.outbox.Reset()
	w.toPeers.Reset()
	w.toSegment.Reset()
	if cap(w.arena) > 1<<20 { // after very long datagrams
		w.arena = nil
	}
	w.arena = w.arena[:0]
}

// next gives the datagram behind the last one of the batch, to be read into; keep makes it part of the batch.
func (w *worker) next() *datagram.Datagram {
	if len(w.datagrams) == cap(w.datagrams) {
		w.datagrams = slices.Grow(w.datagrams, 1)
	}
	return &w.datagrams[:len(w.datagrams)+1][len(w.datagrams)]
}

func (w *worker) keep(source uint32) {
	w.datagrams = w.datagrams[:len(w.datagrams)+1]
	w.sources = append(w.sources, source)
	w.destination = append(w.destination, w.datagrams[len(w.datagrams)-1].Dst.Addr())
}

// own copies what a reassembler lent, so that the next one does not overwrite it.
func (w *worker) own(d *datagram.Datagram) {
	start := len(w.arena)
	w.arena = append(w.arena, d.IP...)
	d.IP = w.arena[start:len(w.arena):len(w.arena)]
}

// put appends pieces to the arena and returns them as one.
func (w *worker) put(pieces ...[]byte) []byte {
	start := len(w.arena)
	for _, p := range pieces {
		w.arena = append(w.arena, p...)
	}
	return w.arena[start:len(w.arena):len(w.arena)]
}

// capturedFrames decides on frames from a segment and sends on what is to be relayed. It writes to them.
func (w *worker) capturedFrames(s *segment, frames []frame, now time.Time) {
	e := w.engine
	w.begin(now)
	stamp := e.stamp(now)
	var count, bytes uint64
	watched := e.watch.watched()
	s.mu.Lock()
	serving := s.election.Serving(stamp)
	for i := range frames {
		f := &frames[i]
		ethernet := f.ss[ssRoom:]
		if etherType(ethernet) == guard.EtherType {
			s.heard(ethernet, now, stamp)
			continue
		}
		count++
		bytes += uint64(len(ethernet))
		d := w.next()
		big := false
		reason := d.Parse(ethernet, f.capture)
		parsed := reason == drop.None
		if parsed {
			reason = s.policy.Check(d)
		}
		if reason == drop.None && d.Fragment {
			var whole bool
			if whole, reason = w.reassembler.Add(d, 0, now); !whole && reason == drop.None {
				continue
			}
			if parsed = reason == drop.None; parsed {
				w.own(d)
				big = true
				reason = s.policy.Check(d)
			}
		}
		if reason == drop.None {
			reason = d.Finish()
		}
		if reason == drop.None {
			reason = s.judge(d, f.outgoing, serving, stamp)
		}
		if watched {
			w.tell(s, s.number, d, Relayed, reason, parsed, len(ethernet))
		}
		if parsed && isTest(d.Payload()) {
			e.capturedTest(s, d, reason, now)
		}
		if reason != drop.None {
			s.drops.Add(reason, 1)
			continue
		}
		w.keep(s.number)
		w.frames = append(w.frames, w.meshFrame(s, f, d, big))
		if e.searches != nil {
			w.search(d)
		}
	}
	s.mu.Unlock()
	s.captured.Add(count)
	s.capturedBytes.Add(bytes)
	if len(w.frames) == 0 {
		return
	}
	s.relayed.Add(uint64(len(w.frames)))
	e.mesh.Send(w.frames, &w.outbox, now)
	e.out.send(w.outbox.Items)
	if len(w.searches) > 0 {
		e.searches.Add(now, w.searches)
	}
	for _, other := range e.segments {
		if other != s || e.opts.Echo && len(e.opts.Sources) == 0 {
			w.emitOn(other, other == s)
		}
	}
}

// judge decides on a whole and sound datagram that came up on the segment.
func (s *segment) judge(d *datagram.Datagram, outgoing, serving bool, stamp int64) drop.Reason {
	o := s.engine.opts
	src := d.Src.Addr()
	if outgoing && !s.mine(src) {
		return drop.Echo // what this host emitted, for others
	}
	if !serving {
		return drop.Standby
	}
	if reason := s.copies.Captured(guard.KeyOf(d.Src, d.Dst.Port(), d.Payload()), d.Link, outgoing, stamp); reason != drop.None {
		return reason
	}
	if o.Direction == EmitOnly {
		return drop.ReadOnly
	}
	if reason := s.limiter.Allow(src, len(d.IP), stamp); reason != drop.None {
		return reason
	}
	return s.engine.validate(d)
}

// validate holds a message against the protocol of its port, if that is asked for.
func (e *engine) validate(d *datagram.Datagram) drop.Reason {
	if !e.opts.Validate || isTest(d.Payload()) {
		return drop.None
	}
	return epics.Valid(epics.ProtocolOf(d.Dst.Port()), d.Payload())
}

// mine tells whether an application of this host can have sent from an address.
func (s *segment) mine(src netip.Addr) bool {
	if src.IsUnspecified() {
		return !s.unmarked
	}
	for _, p := range s.prefixes {
		if p.Addr() == src {
			return true
		}
	}
	return false
}

// heard takes a frame with another relay's announcement.
func (s *segment) heard(ethernet []byte, now time.Time, stamp int64) {
	a, from, err := guard.Parse(ethernet)
	if err != nil {
		s.drops.Add(drop.Malformed, 1)
		return
	}
	if s.election.Heard(a, from, stamp) {
		s.copies.SetNeighbours(s.election.Neighbours(stamp), s.originals)
	}
	if m := s.engine.mesh; a.Mesh == m.MeshID() {
		m.AddNeighbour(slices.DeleteFunc(slices.Clone(a.MeshAddrs), func(at netip.AddrPort) bool { return !s.engine.reaches(at.Addr()) }), now)
	}
}

// reaches tells whether the mesh can be sent to an address as another relay gives it: a link-local one would need the
// name of an interface, and a socket that is bound to one address sends to its kind only.
func (e *engine) reaches(to netip.Addr) bool {
	from := e.opts.MeshAddress
	return !to.IsLinkLocalUnicast() && (!from.IsValid() || from.IsUnspecified() && from.Is6() || from.Is4() == to.Is4())
}

// maxSSPacket is the longest IP packet in one SS datagram; longer ones go in fragments.
const maxSSPacket = 1500

// meshFrame makes of a datagram what peers are sent: all of them get it from the same bytes, but for those who can use
// only part of it.
func (w *worker) meshFrame(s *segment, f *frame, d *datagram.Datagram, big bool) mesh.Frame {
	const header = ssRoom + datagram.EthernetHeaderLen
	if big {
		m := mesh.Frame{SS: w.put(f.ss[:header], d.IP)}
		copy(m.SS, "SS")
		d.IP = m.SS[header:]
		return w.forOrigins(s, m, d)
	}
	m := mesh.Frame{SS: f.ss[:header+len(d.IP)]}
	copy(m.SS, "SS")
	return w.forOrigins(s, m, d)
}

// forOrigins adds what relays that are not ours need: broadcasts only, in packets of an ordinary length, and to no
// address that means something on this segment only.
func (w *worker) forOrigins(s *segment, m mesh.Frame, d *datagram.Datagram) mesh.Frame {
	if d.Group() {
		return m
	}
	m.SSOK = len(d.IP) <= maxSSPacket
	general := *d
	if d.Directed() {
		m.Near = s.prefixes
		m.Alternate = w.put(m.SS)
		general.IP = m.Alternate[ssRoom+datagram.EthernetHeaderLen:]
		general.SetDestination(datagram.Limited())
	}
	if !m.SSOK {
		// A datagram that cannot be cut is one that only ours can get.
		m.Fragments, _ = w.toPeers.Cut(&general, maxSSPacket, m.SS[:ssRoom+datagram.EthernetHeaderLen])
	}
	return m
}

func (w *worker) search(d *datagram.Datagram) {
	if p := epics.ProtocolOf(d.Dst.Port()); p != epics.None {
		w.searches = append(w.searches, epics.Datagram{Protocol: p, Client: d.Src.Addr(), Payload: d.Payload()})
	}
}

// receive decides on datagrams of the mesh that came from one address each, and puts on the segments what belongs there.
func (w *worker) receive(items []arrival, now time.Time) {
	e := w.engine
	w.begin(now)
	w.inbox.Reset()
	var bytes uint64
	for _, a := range items {
		bytes += uint64(len(a.data))
		if reason := e.mesh.Receive(a.from, a.data, &w.inbox, &w.outbox, now); reason != drop.None {
			e.meshDrops.Add(reason, 1)
		}
	}
	e.meshReceived.Add(uint64(len(items)))
	e.meshBytes.Add(bytes)
	for i := range w.inbox.Items {
		w.arrived(&w.inbox.Items[i])
	}
	if len(w.searches) > 0 {
		e.searches.Add(now, w.searches)
	}
	for _, r := range w.inbox.Reports {
		e.tests.reported(r, now)
	}
	if len(w.datagrams) > 0 {
		for _, s := range e.segments {
			w.emitOn(s, false)
		}
		for _, t := range w.pendingTests {
			e.mesh.SendReport(t.peer, t.report, &w.outbox, now)
		}
	}
	e.out.send(w.outbox.Items)
}

// arrival is a datagram that came to the mesh socket.
type arrival struct {
	from netip.AddrPort
	data []byte
}

// arrived takes a broadcast out of the mesh into the batch.
func (w *worker) arrived(m *mesh.Incoming) {
	e := w.engine
	d := w.next()
	var reason drop.Reason
	if m.Frame != nil {
		reason = d.ParseSS(m.Frame)
	} else {
		reason = d.ParsePacket(datagram.MAC(m.Link), m.IP)
	}
	parsed := reason == drop.None
	if parsed && d.Fragment {
		var whole bool
		if whole, reason = w.reassembler.Add(d, m.Peer, w.now); !whole && reason == drop.None {
			return
		}
		if parsed = reason == drop.None; parsed {
			w.own(d)
		}
	}
	if reason == drop.None {
		reason = d.Finish()
	}
	if reason == drop.None {
		reason = e.validate(d)
	}
	if reason != drop.None {
		e.meshDrops.Add(reason, 1)
		if e.watch.watched() {
			w.tell(nil, m.Peer, d, Dropped, reason, parsed, len(m.IP))
		}
		return
	}
	w.keep(m.Peer)
	if e.searches != nil {
		w.search(d)
	}
}

// emitOn puts the batch on a segment, as far as it has not had it. What is echoed there has been.
func (w *worker) emitOn(s *segment, echo bool) {
	e := w.engine
	w.packets = w.packets[:0]
	watched := e.watch.watched()
	stamp := e.stamp(w.now)
	var count, bytes uint64
	s.mu.Lock()
	serving := s.election.Serving(stamp)
	for i := range w.datagrams {
		d := &w.datagrams[i]
		reason := s.policy.CheckMesh(d)
		if reason == drop.None {
			reason = s.admit(d, w.sources[i], serving, echo, stamp)
		}
		var pieces [][]byte
		if reason == drop.None {
			d.SetDestination(s.policy.Target(w.destination[i]))
			pieces, reason = w.toSegment.Cut(d, s.mtu, nil)
		}
		if watched {
			w.tell(s, w.sources[i], d, Emitted, reason, true, len(d.IP))
		}
		if isTest(d.Payload()) {
			w.sawTest(s, i, d, reason)
		}
		if reason != drop.None {
			s.notEmitted.Add(reason, 1)
			continue
		}
		w.packets = append(w.packets, pieces...)
		count++
		bytes += uint64(len(d.IP))
	}
	s.mu.Unlock()
	if count > 0 {
		s.emit(w.packets, count, bytes)
	}
	// The next segment has its own way to say who is meant.
	for i := range w.datagrams {
		w.datagrams[i].SetDestination(w.destination[i])
	}
}

// admit decides on a datagram that comes to the segment from elsewhere.
func (s *segment) admit(d *datagram.Datagram, source uint32, serving, echo bool, stamp int64) drop.Reason {
	switch {
	case s.engine.opts.Direction == ReadOnly:
		return drop.ReadOnly
	case !s.up:
		return drop.NoInterface
	case !serving:
		return drop.Standby
	}
	if echo {
		return drop.None
	}
	if reason := s.copies.Received(guard.KeyOf(d.Src, d.Dst.Port(), d.Payload()), d.Link, source, stamp); reason != drop.None {
		return reason
	}
	// The relay that captured it has limits as well, but whether it is one is not known in an open mesh.
	return s.inbound.Allow(d.Src.Addr(), len(d.IP), stamp)
}

// emit hands packets, which are so many datagrams, to the interface.
func (s *segment) emit(packets [][]byte, count, bytes uint64) {
	s.emitMu.Lock()
	defer s.emitMu.Unlock()
	if s.emitter == nil {
		s.notEmitted.Add(drop.NoInterface, count)
		return
	}
	failed, err := s.emitter.emit(packets)
	if failed > 0 {
		s.notEmitted.Add(drop.SendError, uint64(failed))
		s.engine.log.Debug("not emitted", "interface", s.name, "packets", failed, "error", err)
	}
	s.emitted.Add(count - min(count, uint64(failed)))
	s.emittedBytes.Add(bytes)
}

// tell shows watchers a datagram. Of one that could not be parsed, nothing is known but its length.
func (w *worker) tell(s *segment, source uint32, d *datagram.Datagram, action Action, reason drop.Reason, parsed bool, length int) {
	e := Event{Time: w.now, Action: action, Length: length}
	if s != nil {
		e.Interface = s.name
	}
	if s == nil || source != s.number {
		e.Peer = w.engine.sourceName(source, w.now)
	}
	if reason != drop.None {
		e.Action, e.Reason = Dropped, reason.String()
	}
	if parsed {
		e.Source, e.Destination, e.MAC = d.Src, d.Dst, d.Link.String()
		e.Length = len(d.Payload())
		if e.Text = describe.Datagram(d.Dst.Port(), d.Payload()); isTest(d.Payload()) {
			e.Text = "fathom relay test"
		}
	}
	w.engine.watch.tell(e)
}

// etherType is what a frame carries; 0 if it is too short to say.
func etherType(ethernet []byte) uint16 {
	if len(ethernet) < datagram.EthernetHeaderLen {
		return 0
	}
	return binary.BigEndian.Uint16(ethernet[12:])
}

// sourceName says where a datagram comes from: the address of a peer, or the interface of a segment.
func (e *engine) sourceName(source uint32, now time.Time) string {
	for _, s := range e.segments {
		if s.number == source {
			return s.name
		}
	}
	for _, p := range e.mesh.Peers(now) {
		if p.Number == source {
			return p.Address.String()
		}
	}
	return ""
}

// stamp gives the time as the guards take it: nanoseconds that only ever go forward, and are never 0.
func (e *engine) stamp(now time.Time) int64 { return int64(now.Sub(e.started) + time.Hour) }
