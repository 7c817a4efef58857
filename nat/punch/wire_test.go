// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var ap = netip.MustParseAddrPort

var compareAddrs = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes of an offer are an agreement with peers that run another version: they do not change.
const vectorOffer = `01 04
	000102030405060708090a0b0c0d0e0f
	202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f
	01 0fa1 c0a80102
	82 0fa1 cb007105
	43 0fa1 20010db8000000000000000000000001
	84 0fa2 cb007105`

func exampleOffer() Offer {
	o := Offer{Candidates: []Candidate{
		{ap("192.168.1.2:4001"), TCP, LAN},
		{ap("203.0.113.5:4001"), UDP, Observed},
		{ap("[2001:db8::1]:4001"), TCP, Mapped},
		{ap("203.0.113.5:4002"), UDP, Predicted},
	}}
	for i := range o.Share {
		o.Share[i] = byte(i)
	}
	for i := range o.Certificate {
		o.Certificate[i] = 0x20 + byte(i)
	}
	return o
}

func TestOffer(t *testing.T) {
	want := unhex(t, vectorOffer)
	got, err := exampleOffer().Append([]byte("before"))
	if err != nil || !bytes.Equal(got, append([]byte("before"), want...)) {
		t.Errorf("encoded: %x, %v\nwant %x", got, err, want)
	}
	o, err := ParseOffer(want)
	if diff := cmp.Diff(exampleOffer(), o, compareAddrs); err != nil || diff != "" {
		t.Errorf("decoded: %v (-want +got)\n%s", err, diff)
	}
	for i := range want {
		if o, err := ParseOffer(want[:i]); !errors.Is(err, ErrOffer) {
			t.Errorf("the first %d bytes are taken for %v (%v)", i, o, err)
		}
	}
	for name, b := range map[string][]byte{
		"trailing byte":               append(slices.Clone(want), 0),
		"version":                     append([]byte{2}, want[1:]...),
		"count":                       append([]byte{1, MaxCandidates + 1}, want[2:]...),
		"kind 0":                      append(slices.Clone(want[:50]), append([]byte{0}, want[51:]...)...),
		"kind 5":                      append(slices.Clone(want[:50]), append([]byte{5}, want[51:]...)...),
		"IPv4 address in an IPv6 one": unhex(t, "0101"+strings.Repeat("00", 48)+"41 0fa1 00000000000000000000ffffc0a80102"),
	} {
		if o, err := ParseOffer(b); !errors.Is(err, ErrOffer) {
			t.Errorf("%s: taken for %v (%v)", name, o, err)
		}
	}
	for name, c := range map[string]Candidate{
		"no address": {Proto: TCP, Kind: LAN},
		"no proto":   {Addr: ap("192.0.2.1:1"), Kind: LAN},
		"no kind":    {Addr: ap("192.0.2.1:1"), Proto: TCP},
	} {
		if b, err := (Offer{Candidates: []Candidate{c}}).Append([]byte("x")); !errors.Is(err, ErrOffer) || string(b) != "x" {
			t.Errorf("%s: encoded as %x, %v", name, b, err)
		}
	}
	most := Offer{Candidates: slices.Repeat([]Candidate{{ap("[2001:db8::1]:1"), UDP, LAN}}, MaxCandidates)}
	if b, err := most.Append(nil); err != nil || len(b) != MaxOffer {
		t.Errorf("the longest offer has %d bytes, want %d (%v)", len(b), MaxOffer, err)
	}
	most.Candidates = append(most.Candidates, most.Candidates[0])
	if _, err := most.Append(nil); !errors.Is(err, ErrOffer) {
		t.Errorf("one candidate too many: %v", err)
	}
}

func FuzzParseOffer(f *testing.F) {
	f.Add(unhex(f, vectorOffer))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOffer(b)
		if err != nil {
			return
		}
		again, err := o.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is read as %v, and that is encoded as %x, %v", b, o, again, err)
		}
	})
}

func exampleKeys() keys {
	first, second := exampleOffer(), Offer{}
	return deriveKeys(&first, &second)
}

func TestKeys(t *testing.T) {
	base := exampleKeys()
	if base.initiator == base.responder {
		t.Error("both sides have one key: what one sends can be reflected to it")
	}
	for name, change := range map[string]func(first, second *Offer){
		"share of the initiator":       func(first, _ *Offer) { first.Share[15]++ },
		"share of the responder":       func(_, second *Offer) { second.Share[0]++ },
		"certificate of the initiator": func(first, _ *Offer) { first.Certificate[0]++ },
		"certificate of the responder": func(_, second *Offer) { second.Certificate[31]++ },
		"roles":                        func(first, second *Offer) { *first, *second = *second, *first },
	} {
		first, second := exampleOffer(), Offer{}
		change(&first, &second)
		k := deriveKeys(&first, &second)
		if k.id == base.id || k.initiator == base.initiator || k.responder == base.responder {
			t.Errorf("the keys do not depend on the %s", name)
		}
	}
}

// The bytes of a probe and of a greeting are an agreement as well. They were computed by another implementation.
func TestVectors(t *testing.T) {
	k := exampleKeys()
	if got, want := hex.EncodeToString(k.id[:]), "f40590f51ac2ff49"; got != want {
		t.Errorf("session %s, want %s", got, want)
	}
	p := probe{session: k.id, number: 258}
	for want, got := range map[string][]byte{
		"0ef40590f51ac2ff49000001020bdd0ee2c9f67bf944141a36103937c8": p.append(nil, &k.initiator),
		"0ff40590f51ac2ff4900000102765d9d0464daf5607d00302db11a4a93": probe{echo: true, session: k.id, number: 258}.append(nil, &k.responder),
		"f7687001f40590f51ac2ff4901020300000000000000000000000000":   appendHello(nil, k.id, nonce{1, 2, 3}),
	} {
		if !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("got %x\nwant %s", got, want)
		}
	}
	proof, selection := k.proof(nonce{1}, nonce{2}), k.selection(nonce{1}, nonce{2})
	if got, want := hex.EncodeToString(proof[:])+hex.EncodeToString(selection[:]), "8a7e7278d1938ea5306ac5a98888764720cd85de4048d8c9a5b69cdf360ae4b5"; got != want {
		t.Errorf("proof and selection %s, want %s", got, want)
	}

	b := p.append(nil, &k.initiator)
	if !verifyProbe(b, &k.initiator) || verifyProbe(b, &k.responder) {
		t.Error("a MAC is right under another key, or wrong under its own")
	}
	for i := range b {
		broken := slices.Clone(b)
		broken[i] ^= 1
		if i > 0 && verifyProbe(broken, &k.initiator) {
			t.Errorf("byte %d is not authenticated", i)
		}
		if _, err := parseProbe(b[:i]); !errors.Is(err, errProbe) {
			t.Errorf("the first %d bytes are a probe", i)
		}
	}
	b[0] = echoByte
	if verifyProbe(b, &k.initiator) {
		t.Error("a probe can be made an echo")
	}
}

func FuzzProbe(f *testing.F) {
	k := exampleKeys()
	f.Add(probe{session: k.id, number: 1}.append(nil, &k.initiator))
	f.Add(appendHello(nil, k.id, nonce{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parseProbe(b); err == nil {
			again := p.append(nil, &k.initiator)
			if !bytes.Equal(again[:probeSize-macSize], b[:probeSize-macSize]) {
				t.Errorf("%x is read as %v", b, p)
			}
			if verifyProbe(b, &k.initiator) != bytes.Equal(again, b) {
				t.Errorf("%x: the MAC is judged wrongly", b)
			}
		}
		if id, n, err := parseHello(b); err == nil && !bytes.Equal(appendHello(nil, id, n), b) {
			t.Errorf("%x is read as %x, %x", b, id, n)
		}
	})
}

func TestReplayWindow(t *testing.T) {
	var w replayWindow
	for _, n := range []uint32{0, 1, 63, 64, 4095} {
		if !w.first(n) || w.first(n) {
			t.Errorf("number %d is new twice, or never", n)
		}
	}
	if w.first(maxProbes) || w.first(1<<32-1) {
		t.Error("a number out of bounds is new")
	}
}

// Who does not know the keys proves nothing, whatever it sends.
func TestGreetStrangers(t *testing.T) {
	k := exampleKeys()
	other := exampleOffer()
	strange := deriveKeys(&other, &other)
	strange.id = k.id // it has seen that much
	for name, stranger := range map[string]func(net.Conn){
		"another protocol": func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")) },
		"a mirror": func(c net.Conn) {
			var b [helloSize]byte
			_, _ = io.ReadFull(c, b[:])
			_, _ = c.Write(b[:])
		},
		"another attempt": func(c net.Conn) { _, _ = c.Write(appendHello(nil, sessionID{}, newNonce())) },
		"another key": func(c net.Conn) {
			mine, theirs, _ := strange.greet(readWriter{c}, nil)
			proof := strange.proof(theirs, mine)
			_, _ = c.Write(proof[:])
		},
		"nobody": func(net.Conn) {},
	} {
		us, them := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			stranger(them)
			them.Close()
		}()
		mine, theirs, err := k.greet(readWriter{us}, nil)
		if err == nil {
			err = expect(us, k.proof(mine, theirs))
		}
		if err == nil {
			t.Errorf("%s has proved to be the peer", name)
		}
		us.Close()
		<-done
	}
}

// readWriter writes beside reading: both sides of a pipe greet at once.
type readWriter struct{ net.Conn }

func (rw readWriter) Write(b []byte) (int, error) {
	go func() { _, _ = rw.Conn.Write(slices.Clone(b)) }()
	return len(b), nil
}

func TestUsable(t *testing.T) {
	any4, any6, loopback := netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("::"), netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		to    string
		local netip.Addr
		want  bool
	}{
		{"203.0.113.1:4001", any4, true},
		{"203.0.113.1:4001", any6, true},
		{"[2001:db8::1]:4001", any6, true},
		{"[2001:db8::1]:4001", any4, false},
		{"203.0.113.1:4001", netip.MustParseAddr("2001:db8::2"), false},
		{"192.168.1.1:4001", any4, true},
		{"203.0.113.1:0", any4, false},
		{"0.0.0.0:4001", any4, false},
		{"255.255.255.255:4001", any4, false},
		{"224.0.0.1:4001", any4, false},
		{"[ff02::1]:4001", any6, false},
		{"169.254.1.1:4001", any4, false},
		{"[fe80::1]:4001", any6, false},
		{"127.0.0.1:22", any4, false},
		{"[::1]:22", any6, false},
		{"127.0.0.2:4001", loopback, true},
		{"203.0.113.1:4001", loopback, false},
	} {
		if got := usable(ap(c.to), c.local); got != c.want {
			t.Errorf("%s from %v: %v, want %v", c.to, c.local, got, c.want)
		}
	}
}

func TestStrings(t *testing.T) {
	for got, want := range map[string]string{
		Candidate{ap("192.0.2.1:1"), UDP, Mapped}.String(): "udp 192.0.2.1:1 mapped",
		Candidate{ap("192.0.2.1:1"), TCP, LAN}.String():    "tcp 192.0.2.1:1 lan",
		Kind(37).String():  "Kind(37)",
		Proto(37).String(): "Proto(37)",
		Observed.String():  "observed",
		Predicted.String(): "predicted",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
