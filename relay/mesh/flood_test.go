// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// Somebody without a key invents more sources of first messages than there are limits for them: peers still get a session.
func TestFloodOfSources(t *testing.T) {
	w := newNetwork(t, 1)
	a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
	noise := appendHeader(make([]byte, 0, handshake1Header+dhLen), kindHandshake1)
	noise = noise[:cap(noise)]
	flood := func() {
		for i := range 16 << 10 {
			binary.BigEndian.PutUint32(noise[headerLen+4:], uint32(i))
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 7124)
			b.drops[b.Receive(from, noise, new(Inbox), new(Outbox), w.now)]++
		}
	}
	flood()
	if b.drops[drop.Rate] == 0 {
		t.Fatal("the flood did not use up the limits")
	}
	a.peers(2)
	b.peers(1)
	w.run(50 * time.Millisecond)
	a.wantState(2, Ours, Up)
	b.wantState(1, Ours, Up)
}

// A handshake under way cannot be made to cost more than some attempts to go on with it.
func TestFloodOfAnswers(t *testing.T) {
	w := newNetwork(t, 1)
	a, b := w.add(1, keyed(1)), w.add(2, keyed(1))
	var two, three []byte
	w.blocked = func(_, to netip.AddrPort, data []byte) bool {
		switch framed(data) {
		case kindHandshake2:
			two = data
			return three == nil && to == a.addr
		case kindHandshake3:
			three = data
			return true
		}
		return false
	}
	a.peers(2)
	w.run(20 * time.Millisecond)
	rated := func(x *node, from netip.AddrPort, data []byte) (n int) {
		damaged := append([]byte(nil), data...)
		damaged[len(damaged)-1] ^= 1
		for range 100 {
			if x.Receive(from, damaged, new(Inbox), new(Outbox), w.now) == drop.Rate {
				n++
			}
		}
		return n
	}
	if n := rated(a, b.addr, two); n != 100-maxTries {
		t.Errorf("%d of 100 answers were refused unread", n)
	}
	three = []byte{}
	w.run(2 * time.Second) // another attempt
	if n := rated(b, a.addr, three); n != 100-maxTries {
		t.Errorf("%d of 100 last messages were refused unread", n)
	}
	w.blocked = nil
	w.run(20 * time.Second)
	a.wantState(2, Ours, Up)
}

// A datagram full of hellos, or many of them, in the name of a peer is not answered with many times as much.
func TestFloodOfHellos(t *testing.T) {
	w, _, b := pair(t, 1, Options{})
	h := hello{}
	datagram := appendHeader(nil, kindOpen)
	for len(datagram) < 60_000 {
		datagram = h.append(appendRecordHeader(datagram, recordHello, h.size()))
	}
	b.SetSegments(make([][8]byte, maxSegments))
	var out Outbox
	for range 50 {
		b.Receive(address(1), datagram, new(Inbox), &out, w.now)
	}
	if len(out.Items) > peerAnswerRate {
		t.Errorf("%d answers", len(out.Items))
	}
	w.run(10 * time.Second)
	b.wantState(1, Ours, Up)
}

// Datagrams full of the smallest frames leave no memory behind.
func TestFloodOfFrames(t *testing.T) {
	_, _, b := pair(t, 1, Options{})
	datagram := appendHeader(nil, kindOpen)
	for len(datagram) < 65_000 {
		datagram = append(appendRecordHeader(datagram, recordFrame, minFrame), make([]byte, minFrame)...)
	}
	var in Inbox
	for range 10 {
		b.Receive(address(1), datagram, &in, new(Outbox), time.Unix(1, 0))
	}
	if len(in.Items) < 20_000 {
		t.Fatalf("%d frames", len(in.Items))
	}
	if in.Reset(); cap(in.Items) > itemsKept {
		t.Errorf("room for %d frames is kept", cap(in.Items))
	}
}
