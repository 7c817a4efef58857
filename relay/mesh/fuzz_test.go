// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// FuzzReceive gives datagrams to open, sealed and compatible relays, as they come and as records of a
// datagram that is in order, in clear and sealed.
func FuzzReceive(f *testing.F) {
	for _, data := range vectors(f) {
		f.Add(data)
		if len(data) > headerLen {
			f.Add(data[headerLen:])
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		compat := keyed(1)
		compat.Compat = true
		for _, o := range []Options{{}, {OnlyPeers: true, Allow: []netip.Prefix{netip.PrefixFrom(address(200).Addr(), 32)}}, keyed(1), compat} {
			now := time.Unix(1, 0)
			m, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			m.SetPeers([]netip.AddrPort{address(200), address(7)})
			if m.sealed { // without the cost of a handshake
				p := m.peers[0]
				s := &session{peer: p, remote: 1, send: aead(testKey(1)), recv: aead(testKey(2)), key: testKey(1), since: now, until: now.Add(sessionTime)}
				s.local = m.newIndex(entry{session: s})
				m.install(p, s, new(Outbox), now)
			}
			wrapped := append(appendHeader(nil, kindOpen), data...)
			for _, d := range [][]byte{data, wrapped, data, wrapped} {
				for _, from := range []netip.AddrPort{address(200), address(7), address(8)} {
					receive(t, m, from, bytes.Clone(d), now)
				}
			}
			if m.sealed {
				s := m.peers[0].link.current
				b := append(s.appendHeader(make([]byte, 0, sealedHeader+len(data)+tagLen)), data...)
				binary.BigEndian.PutUint32(b[headerLen:], s.local)
				binary.BigEndian.PutUint64(b[headerLen+4:], 1000)
				mirror := &session{send: s.recv} // seals as the other side does
				receive(t, m, address(200), mirror.seal(b), now)
			}
			var out Outbox
			m.Tick(now.Add(time.Hour), &out)
			checkOut(t, &out)
		}
	})
}

// receive holds what is true of every datagram.
func receive(t *testing.T, m *Mesh, from netip.AddrPort, data []byte, now time.Time) {
	t.Helper()
	var in Inbox
	var out Outbox
	reason := m.Receive(from, data, &in, &out, now)
	if int(reason) >= drop.Count {
		t.Errorf("no such reason: %v", reason)
	}
	for _, i := range in.Items {
		if len(i.IP) < minIP || len(i.IP) > maxFrame-macLen && i.Frame == nil {
			t.Errorf("an IP packet of %d bytes from %x", len(i.IP), data)
		}
	}
	checkOut(t, &out)
	if len(m.peers) > 3 || len(m.indexes) > 20 || m.strangerParts.bytes > maxAssembling {
		t.Errorf("%d peers, %d indexes, %d bytes of parts", len(m.peers), len(m.indexes), m.strangerParts.bytes)
	}
}

func checkOut(t *testing.T, out *Outbox) {
	t.Helper()
	for _, o := range out.Items {
		if framed(o.Data) == 0 || !o.To.IsValid() {
			t.Errorf("to %v: %x", o.To, o.Data)
		}
	}
}

// FuzzRecords holds that what parses is what was appended.
func FuzzRecords(f *testing.F) {
	for _, data := range vectors(f) {
		if framed(data) == kindOpen {
			f.Add(data[headerLen+recordHeader:])
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, reason := parseHello(data); reason == drop.None {
			if b := h.append(nil); !bytes.HasPrefix(data, b) || len(b) != h.size() {
				t.Errorf("hello %x became %x", data, b)
			}
		}
		if r, reason := parseTestReport(data); reason == drop.None {
			if b := r.append(nil); !bytes.HasPrefix(data, b) || len(b) != r.size() {
				t.Errorf("report %x became %x", data, b)
			}
		}
		if h, part, reason := parsePart(data); reason == drop.None {
			if b := append(h.append(nil), part...); !bytes.Equal(b, data) {
				t.Errorf("part %x became %x", data, b)
			}
			if h.count() > maxParts || int(h.index)*int(h.size)+len(part) > int(h.total) {
				t.Errorf("part %+v of %d bytes", h, len(part))
			}
		}
		parseMember(data)
		for b := data; len(b) > 0; {
			_, _, rest, reason := nextRecord(b)
			if reason != drop.None {
				break
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			b = rest
		}
	})
}

// FuzzParts gives parts in any order, with any contents, to one place.
func FuzzParts(f *testing.F) {
	f.Add([]byte{1, 0, 0, 2, 1, 1, 1, 1, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		var a assemblies
		now := time.Unix(0, 0)
		for ; len(script) >= 4; script = script[4:] {
			h := partHeader{
				frame: uint32(script[0] % 8), index: uint16(script[1]),
				size: uint16(minPart + int(script[2]%4)*300), total: uint32(minFrame + int(script[3])*255),
			}
			if int(h.index) >= h.count() {
				h.index %= uint16(h.count())
			}
			n := min(int(h.size), int(h.total)-int(h.index)*int(h.size))
			frame, _, _ := a.add(uint32(script[0]>>7), h, make([]byte, n), now)
			if frame != nil && len(frame) != int(h.total) {
				t.Errorf("%d bytes of %d", len(frame), h.total)
			}
			sum := 0
			for _, o := range a.open {
				sum += len(o.data)
				if o.missing <= 0 {
					t.Errorf("%+v is complete and still open", o.partHeader)
				}
			}
			if sum != a.bytes || sum > maxAssembling || len(a.open) > maxAssemblies {
				t.Errorf("%d bytes in %d, counted as %d", sum, len(a.open), a.bytes)
			}
			now = now.Add(time.Duration(script[3]) * time.Millisecond)
		}
	})
}

// FuzzParseKeys holds that the keys of a text, written again, are the same keys.
func FuzzParseKeys(f *testing.F) {
	f.Add([]byte("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA= # first\n\n# none\n"))
	f.Add([]byte("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := ParseKeys(text)
		if err != nil {
			return
		}
		var b []byte
		for _, k := range keys {
			b, _ = k.AppendText(b)
			b = append(b, '\n')
		}
		again, err := ParseKeys(b)
		if err != nil || len(again) != len(keys) || len(keys) > MaxKeys {
			t.Fatalf("%d keys, then %d and %v", len(keys), len(again), err)
		}
		for i := range keys {
			if keys[i] != again[i] {
				t.Errorf("key %d differs", i)
			}
		}
	})
}

// FuzzProof reads what a certificate's handshake carries, and the files it comes from.
func FuzzProof(f *testing.F) {
	a := newAuthority(f)
	id := a.identity(f, "a.example", nil)
	proof, err := id.prove(nil, make([]byte, dhLen))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(proof)
	f.Add(a.pem)
	f.Fuzz(func(t *testing.T, data []byte) {
		if cert, err := id.check(data, make([]byte, dhLen), a.now); err == nil && cert.DNSNames[0] != "a.example" {
			t.Errorf("a forged proof for %v", cert.DNSNames)
		}
		if _, err := ParseIdentity(data, data, data); err == nil {
			t.Error("one text is a certificate, its key and its authority")
		}
	})
}
