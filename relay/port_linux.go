// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// ringBytes is the memory of a capture ring. What waits longer waits in the backlog, so that the ring
// covers the time in which the relay is busy with one batch, or does not get a processor.
const ringBytes = 3 << 20

// A port is a segment's interface: the sockets on it, and the goroutine that works off what they capture.
type port struct {
	engine  *engine
	segment *segment
	poller  *rawio.Poller
	// writable is for emitting.
	writable *rawio.Poller
	worker   *worker
	changed  atomic.Bool // something about the host's interfaces is new

	info    rawio.InterfaceState
	ring    *rawio.FrameConn // nil while the interface is not there
	watched int              // the poller's index of it
	emitter *rawio.Emitter
	groups  io.Closer
	backlog backlog
	retry   time.Time
	counted time.Time
	lost    uint64 // that rings which are closed now had no room for

	frames []rawio.Frame
	taken  [batchSize]frame
}

func newPort(e *engine, name string, number uint32) (*port, error) {
	poller, err := rawio.NewPoller()
	if err != nil {
		return nil, err
	}
	writable, err := rawio.NewPoller()
	if err != nil {
		return nil, errors.Join(err, poller.Close())
	}
	s, err := newSegment(e, name, number)
	if err != nil {
		return nil, errors.Join(err, poller.Close(), writable.Close())
	}
	return &port{engine: e, segment: s, poller: poller, writable: writable, worker: newWorker(e), frames: make([]rawio.Frame, batchSize)}, nil
}

func (p *port) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.poller.Wake)
	defer stop()
	if err := p.poller.SetLinger(linger); err != nil {
		return err
	}
	for ctx.Err() == nil {
		now := time.Now()
		if p.changed.Swap(false) || p.ring == nil && now.After(p.retry) {
			p.refresh(now)
		}
		next := p.periodic(now)
		if err := p.work(next); err != nil {
			p.down(err)
		}
		if wait := time.Until(next); wait > 0 && p.backlog.empty() {
			if err := p.poller.Wait(wait); err != nil {
				return fmt.Errorf("wait on %s: %w", p.segment.name, err)
			}
		}
	}
	if p.ring != nil {
		p.segment.leave(time.Now(), p.announce)
	}
	return nil
}

// periodic does what is due, and tells when something will be.
func (p *port) periodic(now time.Time) (next time.Time) {
	if now.Sub(p.counted) >= countInterval {
		p.counted = now
		p.count()
		p.originals()
	}
	if p.ring == nil {
		return earlier(p.segment.periodic(p.worker, now, nil), p.retry.Add(time.Millisecond))
	}
	return p.segment.periodic(p.worker, now, p.announce)
}

// announce sends an announcement. One that does not go out is like one that is lost; the next is due soon.
func (p *port) announce(frame []byte) { _, _ = p.ring.Send([][]byte{frame}) }

// work takes frames out of the ring and decides on them, until there are none or something else is due.
func (p *port) work(due time.Time) error {
	for {
		if err := p.drain(); err != nil {
			return err
		}
		n := p.backlog.take(p.taken[:])
		if n == 0 {
			return nil
		}
		now := time.Now()
		p.worker.capturedFrames(p.segment, p.taken[:n], now)
		if !now.Before(due) {
			return nil
		}
	}
}

// originals finds the Ethernet addresses of SnowSignal's relays among the peers, where they are on this segment. They
// do not announce themselves, but as peers they are hosts that this one sends to, so that the kernel knows them.
func (p *port) originals() {
	s := p.segment
	var macs []guard.MAC
	var known map[netip.Addr][6]byte
	for _, peer := range p.engine.mesh.Peers(time.Now()) {
		addr := peer.Address.Addr()
		if peer.Kind != mesh.Original || !slices.ContainsFunc(p.info.Prefixes, func(q netip.Prefix) bool { return q.Contains(addr) }) {
			continue
		}
		if known == nil {
			var err error
			if known, err = rawio.Neighbours(p.info.Index); err != nil {
				p.engine.log.Debug("neighbours", "interface", s.name, "error", err)
				return
			}
		}
		if mac, ok := known[addr]; ok {
			macs = append(macs, mac)
		}
	}
	s.mu.Lock()
	s.originals = macs
	s.mu.Unlock()
}

// drain moves what waits in the ring, if there is one, to the backlog, as far as it has room.
func (p *port) drain() error {
	for p.ring != nil && !p.backlog.full() {
		n, err := p.ring.Receive(p.frames)
		if err != nil {
			return err
		}
		for i := range n {
			f := &p.frames[i]
			if f.Truncated {
				p.segment.drops.Add(drop.Truncated, 1)
				continue
			}
			p.backlog.put(f.Data, datagram.Capture{Partial: f.PartialChecksum, Tagged: f.Tagged}, f.Outgoing)
		}
		p.ring.Release()
		if n < len(p.frames) {
			break
		}
	}
	// A poll that ends because of an error would end again at once: this clears it.
	return nil
}

// refresh looks at the interface, and opens or closes it, or takes over its new addresses.
func (p *port) refresh(now time.Time) {
	s := p.segment
	p.retry = now.Add(retryInterval)
	info, err := rawio.LookupInterface(s.name)
	if err == nil && info.MAC == ([6]byte{}) {
		err = fmt.Errorf("interface %s is not an Ethernet interface", s.name)
	}
	if err != nil {
		p.down(err)
		return
	}
	if p.ring != nil && (info.Index != p.info.Index || info.MTU > p.info.MTU) {
		p.shut()
	}
	p.info = info
	if p.ring == nil {
		if err := p.openSockets(); err != nil {
			p.down(err)
			return
		}
	}
	if !info.Up {
		p.setState(fmt.Sprintf("interface %s is down", s.name))
		return
	}
	p.setState("")
}

// setState notes what the interface is, and why it is not up if there is a problem.
func (p *port) setState(problem string) {
	p.segment.set(link{
		mac: p.info.MAC, mtu: p.info.MTU, prefixes: p.info.Prefixes, broadcasts: p.info.Broadcasts,
		unmarked: p.emitter != nil && !p.emitter.HasMark(),
	}, problem)
}

func (p *port) openSockets() (err error) {
	o := p.engine.opts
	s := p.segment
	var ranges []rawio.PortRange
	var groups []netip.Addr
	filter := rawio.BroadcastFilter{Mark: emitMark, Announcements: true}
	for _, r := range o.Ports {
		ranges = append(ranges, rawio.PortRange{Lo: r.First, Hi: r.Last})
	}
	for _, g := range o.Groups {
		groups = append(groups, g.Addr)
		filter.IPv4Groups = filter.IPv4Groups || g.Addr.Is4()
		filter.IPv6Groups = filter.IPv6Groups || g.Addr.Is6()
		for _, r := range g.Ports {
			ranges = append(ranges, rawio.PortRange{Lo: r.First, Hi: r.Last})
		}
	}
	snap := p.info.MTU + datagram.EthernetHeaderLen + 8
	ring, err := rawio.OpenFrameConn(s.name, rawio.FrameOptions{
		RingFrames: max(ringBytes/slotFor(snap), 64), SnapLen: snap, Outgoing: true, Filter: rawio.FilterBroadcast(ranges, filter),
	})
	if err != nil {
		return err
	}
	emitter, err := rawio.OpenEmitter(s.name, rawio.EmitterOptions{Mark: emitMark, SendBuffer: socketBuffer})
	if err != nil {
		return errors.Join(err, ring.Close())
	}
	var joined io.Closer
	if len(groups) > 0 && o.Direction != EmitOnly {
		if joined, err = rawio.JoinGroups(s.name, groups); err != nil {
			return errors.Join(err, ring.Close(), emitter.Close())
		}
	}
	p.ring, p.emitter, p.groups = ring, emitter, joined
	p.watched = p.poller.Add(ring.FD(), rawio.Readable)
	s.emitMu.Lock()
	s.emitter = &kernelEmitter{emitter, p.writable}
	s.emitMu.Unlock()
	return nil
}

// slotFor is what a frame takes in the ring, with the kernel's header, at least.
func slotFor(snap int) int {
	slot := 256
	for slot < snap+80 {
		slot *= 2
	}
	return slot
}

// down closes the interface because of err.
func (p *port) down(err error) {
	p.shut()
	p.setState(err.Error())
}

func (p *port) shut() {
	s := p.segment
	s.emitMu.Lock()
	s.emitter = nil
	s.emitMu.Unlock()
	if p.ring == nil {
		return
	}
	if stats, err := p.ring.Stats(); err == nil {
		p.lost += stats.Dropped
	}
	p.poller.Remove(p.watched)
	// What cannot be closed is gone.
	_ = p.ring.Close()
	_ = p.emitter.Close()
	if p.groups != nil {
		_ = p.groups.Close()
	}
	p.ring, p.emitter, p.groups = nil, nil, nil
}

func (p *port) close() error {
	p.shut()
	return errors.Join(p.poller.Close(), p.writable.Close())
}

// count asks the kernel what it dropped.
func (p *port) count() {
	s := p.segment
	if p.ring != nil {
		if err := p.ring.Err(); err != nil { // the interface went down or away; word of it comes
			p.changed.Store(true)
		}
		if stats, err := p.ring.Stats(); err == nil {
			s.kernelDropped.Store(p.lost + stats.Dropped)
		}
	}
}

// kernelEmitter puts packets on the segment of an interface.
type kernelEmitter struct {
	*rawio.Emitter
	writable *rawio.Poller
}

// emitPatience is how long a segment waits for room in the interface's queue.
const emitPatience = 5 * time.Millisecond

func (k *kernelEmitter) emit(packets [][]byte) (failed int, last error) {
	for patient := true; len(packets) > 0; {
		n, refused, err := k.Emit(packets)
		if err != nil {
			return failed + len(packets), err
		}
		if len(refused) > 0 {
			failed, last = failed+len(refused), refused[0].Errno
		}
		if packets = packets[n:]; len(packets) == 0 {
			break
		}
		if n == 0 && !patient {
			return failed + len(packets), drop.QueueFull
		}
		patient = n > 0
		watched := k.writable.Add(k.FD(), rawio.Writable)
		err = k.writable.Wait(emitPatience)
		k.writable.Remove(watched)
		if err != nil {
			return failed + len(packets), err
		}
	}
	return failed, last
}
