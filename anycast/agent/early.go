// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// early is packets that no session recognised, from the IP header on. A controller opens a session at all sites at once, but
// its connections to them are not equally long: the answer to another site's probe may come home here
// before the session does. So what has one of the ports that controllers announced is kept for a moment, and looked
// at again when a session has been opened.
type early struct {
	packets []earlyPacket // in the order of their coming
	size    int           // bytes
	again   bool          // a session has been opened since they were looked at
	looked  int64         // mono, when that was
}

type earlyPacket struct {
	data []byte
	time int64 // wall, of its arrival
	came int64 // mono
	sent bool  // Voltadomar's controllers have got it, and so it is counted
}

const (
	// earlyTime is how long a packet is kept: longer than controllers' connections differ, even busy ones.
	earlyTime = int64(2e9)
	// earlyEvery is the least time from one look at all of them to the next, which bounds what a flood of strays costs.
	earlyEvery = int64(2e6)
	// maxEarly and maxEarlySize bound them in number and bytes. What finds them full is a stray.
	maxEarly     = 1 << 13
	maxEarlySize = 1 << 20
)

// expect notes the ports that a controller's sessions will have, and lets answers to them pass the filters.
func (p *plane) expect(l *link, r rawio.PortRange) {
	if l.expected == r {
		return
	}
	l.expected = r
	for i := range p.receivers {
		if rx := &p.receivers[i]; rx.conn != nil && r != (rawio.PortRange{}) {
			p.pass(rx, r)
		}
	}
	p.narrower = true
}

// expects tells whether any controller has announced a port; 0 is any port at all.
func (p *plane) expects(port uint16) bool {
	for _, l := range p.links {
		if r := l.expected; r != (rawio.PortRange{}) && (port == 0 || r.Lo <= port && port <= r.Hi) {
			return true
		}
	}
	return false
}

// keepEarly keeps a packet that is nobody's yet, unless Voltadomar's controllers have been sent it. It is false if it does not.
func (p *plane) keepEarly(time int64, pkt []byte, err error, sent bool) bool {
	e := &p.early
	pkt = pkt[:min(len(pkt), keepError)]
	if !errors.Is(err, stateless.ErrNotOurs) || len(e.packets) == maxEarly || e.size+len(pkt) > maxEarlySize || !p.expects(0) {
		return false
	}
	e.packets = append(e.packets, earlyPacket{append([]byte(nil), pkt...), time, p.now, sent})
	e.size += len(pkt)
	return true
}

// lookEarly delivers what has become an answer, and drops what has been kept for long enough.
func (p *plane) lookEarly() {
	e := &p.early
	if len(e.packets) == 0 || p.now < e.due() {
		return
	}
	e.again, e.looked = false, p.now
	kept := e.packets[:0]
	for _, k := range e.packets {
		c, err := p.parseWhole(k.data)
		switch {
		case err == nil:
			p.deliver(c, k.time, k.data)
		case errors.Is(err, stateless.ErrNotOurs) && p.now-k.came < earlyTime:
			kept = append(kept, k)
			continue
		case !k.sent:
			p.discard(err)
		}
		e.size -= len(k.data)
	}
	clear(e.packets[len(kept):])
	e.packets = kept
	if len(kept) == 0 {
		e.packets = nil // a burst is no reason to keep its memory
	}
}

// due is when to look, if there are any.
func (e *early) due() int64 {
	if e.again {
		return e.looked + earlyEvery
	}
	return e.packets[0].came + earlyTime
}

// parseWhole recognises a packet of either version, from the IP header on.
func (p *plane) parseWhole(pkt []byte) (*stateless.Codec, error) {
	if pkt[0]>>4 == 4 {
		return p.table.Parse4(pkt, &p.answer)
	}
	// arrive6 made the header.
	src, dst := netip.AddrFrom16([16]byte(pkt[8:])), netip.AddrFrom16([16]byte(pkt[24:]))
	tos := uint8(binary.BigEndian.Uint32(pkt) >> 20)
	return p.table.Parse6(src, dst, pkt[7], tos, packet.Protocol(pkt[6]), pkt[ip6Header:], &p.answer)
}
