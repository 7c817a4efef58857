// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

func TestOpenLink(t *testing.T) {
	w := newNetwork(t, 1)
	a, b := w.add(1, Options{}), w.add(2, Options{})
	a.peers(2)
	b.peers(1)
	// Before anything is known, SS crosses and nothing else does.
	a.send(frame(1), multicast(2, 100))
	w.run(time.Millisecond * 50)
	wantNumbers(t, b, 1)
	a.wantState(2, Ours, Up)
	b.wantState(1, Ours, Up)
	if s := a.status(2); s.RTT != 10*time.Millisecond || s.ID != "02:00:00:00:00:02" || s.Version != "test" || s.Sealed {
		t.Errorf("status %+v", s)
	}
	a.send(frame(3), multicast(4, 100), multicast(5, 1000), frame(6), multicast(7, 9000), multicast(8, 60000))
	w.run(time.Millisecond * 50)
	got := b.take()
	for i, ss := range []bool{true, false, false, true, false, false} {
		if got[i].ss != ss {
			t.Errorf("frame %d as SS: %v", i, got[i].ss)
		}
	}
	b.got = got
	wantNumbers(t, b, 3, 4, 5, 6, 7, 8)
	// Nobody answers any more.
	delete(w.nodes, b.addr)
	w.run(4100 * time.Millisecond)
	a.wantState(2, Ours, Down)
	// And again.
	b = w.add(2, Options{})
	b.peers(1)
	w.run(500 * time.Millisecond)
	a.wantState(2, Ours, Up)
	a.send(multicast(9, 100))
	w.run(50 * time.Millisecond)
	wantNumbers(t, b, 9)
}

// What peers that are not ours get: SS datagrams, and at most three probes a second.
func TestOriginalPeer(t *testing.T) {
	w := newNetwork(t, 1)
	a := w.add(1, Options{})
	a.peers(2)
	var ss, probes, second int
	start := w.now
	w.seen = func(_, to netip.AddrPort, b []byte) {
		if to != address(2) {
			t.Fatalf("to %v", to)
		}
		if isSS(b) {
			ss++
		} else {
			probes++
			if w.now.Sub(start) < time.Second {
				second++
			}
		}
	}
	w.run(time.Minute)
	if ss != 0 || second > 3 || probes < 8 || probes > 12 {
		t.Errorf("%d SS datagrams, %d probes, %d in the first second", ss, probes, second)
	}
	a.wantState(2, Unknown, Connecting)
	w.inject(netip.AddrPortFrom(address(2).Addr(), 49152), address(1), ssFrame(1, 100))
	w.run(time.Second)
	a.wantState(2, Original, Connecting)
	if got := a.got[0].peer; got != a.status(2).Number {
		t.Errorf("an SS datagram from another port counts for %d", got)
	}
	wantNumbers(t, a, 1)
	ss = 0
	directed, limited := ssFrame(2, 100), ssFrame(3, 100)
	var sent []byte
	w.seen = func(_, _ netip.AddrPort, b []byte) {
		ss++
		sent = b
	}
	f := Frame{SS: directed, SSOK: true, Alternate: limited, Near: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}
	if a.send(f); ss != 1 || &sent[0] != &limited[0] {
		t.Errorf("far away: not the datagram with the limited broadcast address")
	}
	f.Near = append(f.Near, netip.MustParsePrefix("192.0.2.0/24"))
	if a.send(f); ss != 2 || &sent[0] != &directed[0] {
		t.Errorf("near by: not the datagram as captured")
	}
	a.send(Frame{SS: ssFrame(4, 3000), Fragments: [][]byte{ssFrame(4, 1500), ssFrame(4, 1500), ssFrame(4, 40)}})
	if ss != 5 {
		t.Errorf("%d datagrams, want one for each fragment", ss)
	}
	if a.send(multicast(5, 100)); ss != 5 {
		t.Errorf("something of a multicast was sent")
	}
	w.seen = nil
	if s := a.status(2); s.Sent.Broadcasts != 3 || s.Received.Broadcasts != 1 {
		t.Errorf("counted %+v %+v", s.Sent, s.Received)
	}
}

// A relay under two addresses gets everything once, and an own address gets nothing.
func TestTwoAddressesAndOwn(t *testing.T) {
	w := newNetwork(t, 1)
	a, b := w.add(1, Options{}), w.add(2, Options{})
	w.nodes[address(3)] = b
	a.peers(1, 2, 3)
	w.run(time.Second)
	a.wantState(1, Self, Connecting)
	a.wantState(2, Ours, Up)
	a.wantState(3, Ours, Up)
	if s, q := a.status(2), a.status(3); s.Number != q.Number || q.Through != address(2) || s.Through.IsValid() {
		t.Errorf("%+v\n%+v", s, q)
	}
	a.send(frame(1), multicast(2, 100))
	w.run(time.Second)
	wantNumbers(t, b, 1, 2)
	wantNumbers(t, a)
	// The first address fails: the other takes over.
	delete(w.nodes, address(2))
	w.run(5 * time.Second)
	a.send(multicast(3, 100))
	w.run(time.Second)
	wantNumbers(t, b, 3)
	// The own address is another relay's now.
	c := w.add(9, Options{})
	w.nodes[address(1)] = c
	w.nodes[address(8)] = a
	a.addr = address(8)
	w.run(time.Minute)
	a.wantState(1, Ours, Up)
}

func TestOnlyPeers(t *testing.T) {
	w := newNetwork(t, 1)
	a := w.add(1, Options{OnlyPeers: true, Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	a.peers(2)
	for _, c := range []struct {
		from string
		want drop.Reason
	}{
		{"192.0.2.2:7124", drop.None},
		{"192.0.2.2:50000", drop.None},
		{"[::ffff:192.0.2.2]:50000", drop.None},
		{"192.0.2.3:7124", drop.UnknownPeer},
		{"198.51.100.7:1", drop.None},
		{"[2001:db8::1]:7124", drop.UnknownPeer},
	} {
		var in Inbox
		var out Outbox
		open := append(appendHeader(nil, kindOpen), appendRecordHeader(nil, recordFrame, 106)...)
		open = append(append(open, sender[:]...), ssFrame(1, 100)[ssHeader:]...)
		for _, b := range [][]byte{ssFrame(1, 100), open} {
			if got := a.Receive(netip.MustParseAddrPort(c.from), b, &in, &out, w.now); got != c.want {
				t.Errorf("from %s: %v, want %v", c.from, got, c.want)
			}
		}
	}
}

// A relay that nobody told about us is answered, and its broadcasts are taken.
func TestStranger(t *testing.T) {
	w := newNetwork(t, 1)
	a, b := w.add(1, Options{}), w.add(2, Options{})
	a.peers(2)
	w.run(time.Second)
	a.wantState(2, Ours, Up)
	a.send(frame(1), multicast(2, 100), multicast(3, 20000))
	w.run(time.Second)
	number := b.got[0].peer
	for _, r := range b.got {
		if r.peer != number || number < firstStranger {
			t.Errorf("number %d, then %d", number, r.peer)
		}
	}
	wantNumbers(t, b, 1, 2, 3)
	if s := b.status(1); s.Origin != "heard" || s.Received.Broadcasts != 3 {
		t.Errorf("status %+v", s)
	}
	var out Outbox
	b.SendReport(number, TestReport{Nonce: [16]byte{1}, Segment: "eth1", Outcome: "emitted"}, &out, w.now)
	w.post(b.addr, &out)
	w.run(time.Second)
	if len(a.reports) != 1 || a.reports[0].Segment != "eth1" || a.reports[0].Outcome != "emitted" || a.reports[0].Nonce != [16]byte{1} {
		t.Errorf("reports %+v", a.reports)
	}
}
