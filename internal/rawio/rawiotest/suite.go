// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawiotest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// Env is a host under test and what is around it.
type Env struct {
	Host rawio.Host
	// Do runs f where the host's sockets belong, such as in a network namespace; nil just calls it.
	Do func(f func() error) error
	// Local are the host's addresses of IPv4 and IPv6, as Source gives them for Target.
	Local [2]netip.Addr
	// Target are addresses, of IPv4 and IPv6 and none of the host's, that answer echo requests and
	// refuse datagrams to ClosedPort.
	Target     [2]netip.Addr
	ClosedPort uint16
	// Unrouted are addresses without a route.
	Unrouted [2]netip.Addr
	// Interface is the one towards Target, with an MTU of 1500 bytes.
	Interface string
}

// TestHost checks that a host keeps the contract of [rawio.Host] and [rawio.Conn]. Open is called for
// each part, and closes the host by t.Cleanup.
func TestHost(t *testing.T, open func(t *testing.T) *Env) {
	for _, part := range []struct {
		name string
		run  func(e *suite) error
	}{
		{"Open", (*suite).open},
		{"Routes", (*suite).routes},
		{"Echo", (*suite).echo},
		{"Truncation", (*suite).truncation},
		{"Filter", (*suite).filter},
		{"Hints", (*suite).hints},
		{"Stamps", (*suite).stamps},
		{"Refused", (*suite).refused},
		{"Long", (*suite).long},
		{"NextHop", (*suite).nextHop},
		{"Frames", (*suite).frames},
		{"Wait", (*suite).wait},
		{"Level", (*suite).level},
		{"Queue", (*suite).queue},
		{"Ping", (*suite).ping},
		{"Errors", (*suite).errors},
		{"Close", (*suite).close},
	} {
		t.Run(part.name, func(t *testing.T) {
			e := open(t)
			do := e.Do
			if do == nil {
				do = func(f func() error) error { return f() }
			}
			if err := do(func() error { return part.run(&suite{e}) }); err != nil {
				t.Error(err)
			}
		})
	}
}

type suite struct{ *Env }

// patience is how long what must come may take, and glance how long what must not come is waited for.
const (
	patience = 5 * time.Second
	glance   = 50 * time.Millisecond

	suiteID = 0x1234 // identifier of echo requests
)

// each runs a check for both IP versions.
func (e *suite) each(f func(v, version, icmp int) error) error {
	for v, icmp := range [...]int{protoICMP, protoICMPv6} {
		if err := f(v, 4+2*v, icmp); err != nil {
			return fmt.Errorf("IPv%d: %w", 4+2*v, err)
		}
	}
	return nil
}

// request is an echo request.
func (e *suite) request(v int, seq uint16, n int) []byte {
	b := make([]byte, 8+n)
	b[0] = 8
	if v == 1 {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], suiteID)
	binary.BigEndian.PutUint16(b[6:], seq)
	for i := range n {
		b[8+i] = byte(i)
	}
	proto := [...]int{protoICMP, protoICMPv6}[v]
	setChecksum(proto, e.Local[v], e.Target[v], b, 2)
	return b
}

// whole puts an IP header before it.
func (e *suite) whole(v int, upper []byte) []byte {
	proto := [...]int{protoICMP, protoICMPv6}[v]
	b := appendPacket(nil, proto, e.Local[v], e.Target[v], 64, 0, upper)
	if v == 0 {
		copy(b[12:16], []byte{0, 0, 0, 0}) // the kernel fills in the source and the checksum
	}
	return b
}

func echoFilter(v int) []byte { return [][]byte{{0}, {129}}[v] }

func (e *suite) rawPair(v int) (tx, rx rawio.Conn, err error) {
	if tx, err = e.Host.Open(rawio.Spec{Version: 4 + 2*v, Kind: rawio.RawHeader}); err != nil {
		return nil, nil, err
	}
	filter, proto := rawio.FilterICMP4(suiteID, suiteID), protoICMP
	if v == 1 {
		filter, proto = rawio.FilterICMP6(suiteID, suiteID), protoICMPv6
	}
	rx, err = e.Host.Open(rawio.Spec{Version: 4 + 2*v, Kind: rawio.Raw, Protocol: proto, Filter: filter, ReceiveLocal: true})
	return tx, rx, err
}

func buffers(n, size int) []rawio.Message {
	msgs := make([]rawio.Message, n)
	for i := range msgs {
		msgs[i].Data = make([]byte, size)
	}
	return msgs
}

// await reads until want messages have come.
func (e *suite) await(read func([]rawio.Message) (int, error), msgs []rawio.Message, want int) error {
	got := 0
	for deadline := time.Now().Add(patience); got < want; {
		n, err := read(msgs[got:])
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if got += n; n > 0 {
			continue
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("received %d messages in %v, want %d", got, patience, want)
		}
		// Not every queue is watched.
		if err := e.Host.Wait(time.Millisecond); err != nil {
			return fmt.Errorf("wait: %w", err)
		}
	}
	return nil
}

// nothing checks that no message comes.
func (e *suite) nothing(read func([]rawio.Message) (int, error)) error {
	msgs := buffers(1, 2048)
	for deadline := time.Now().Add(glance); time.Now().Before(deadline); {
		if n, err := read(msgs); n != 0 || err != nil {
			return fmt.Errorf("received %d messages (%x), error %v; want none", n, msgs[0].Data[:msgs[0].N], err)
		}
		if err := e.Host.Wait(glance / 5); err != nil {
			return err
		}
	}
	return nil
}

func (e *suite) open() error {
	for _, s := range []rawio.Spec{{}, {Version: 5, Kind: rawio.Raw, Protocol: 1}, {Version: 4}, {Version: 4, Kind: 99}} {
		if c, err := e.Host.Open(s); err == nil {
			c.Close()
			return fmt.Errorf("opened %+v", s)
		}
	}
	return e.each(func(v, version, _ int) error {
		s := rawio.Spec{Version: version, Kind: rawio.Datagram, Protocol: protoUDP, Local: netip.AddrPortFrom(e.Local[v], 4000)}
		c, err := e.Host.Open(s)
		if err != nil {
			return err
		}
		if got := c.LocalAddr(); got != s.Local {
			return fmt.Errorf("bound to %v, want %v", got, s.Local)
		}
		if _, err := e.Host.Open(s); !errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("second socket: %v, want EADDRINUSE", err)
		}
		s.Local = netip.AddrPortFrom(e.Target[v], 4001)
		if _, err := e.Host.Open(s); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("another's address: %v, want EADDRNOTAVAIL", err)
		}
		return nil
	})
}

func (e *suite) routes() error {
	if _, err := e.Host.IfIndex("no-such-name"); !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("unknown interface: %v, want ENODEV", err)
	}
	if n, err := e.Host.IfIndex(e.Interface); err != nil || n <= 0 {
		return fmt.Errorf("interface %s: index %d, error %v", e.Interface, n, err)
	}
	return e.each(func(v, _, _ int) error {
		for _, via := range []rawio.Route{{}, {Interface: e.Interface}} {
			if got, err := e.Host.Source(e.Target[v], via); err != nil || got != e.Local[v] {
				return fmt.Errorf("source for %v via %+v: %v, %v; want %v", e.Target[v], via, got, err, e.Local[v])
			}
		}
		if _, err := e.Host.Source(e.Target[v], rawio.Route{Interface: "no-such-name"}); !errors.Is(err, syscall.ENODEV) {
			return fmt.Errorf("source through an unknown interface: %v, want ENODEV", err)
		}
		if got, err := e.Host.Source(e.Local[v], rawio.Route{}); err != nil || got != e.Local[v] {
			return fmt.Errorf("source for the host itself: %v, %v; want %v", got, err, e.Local[v])
		}
		if a, err := e.Host.Source(e.Unrouted[v], rawio.Route{}); !errors.Is(err, syscall.ENETUNREACH) {
			return fmt.Errorf("source for %v: %v, %v; want ENETUNREACH", e.Unrouted[v], a, err)
		}
		if err := e.Host.CheckLocal(e.Local[v]); err != nil {
			return err
		}
		if err := e.Host.CheckLocal(e.Target[v]); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("check %v: %v, want EADDRNOTAVAIL", e.Target[v], err)
		}
		return nil
	})
}

// echo sends a batch with headers and looks at every field of what arrives.
func (e *suite) echo() error {
	return e.each(func(v, _, _ int) error {
		tx, rx, err := e.rawPair(v)
		if err != nil {
			return err
		}
		const count = 3
		var msgs []rawio.Message
		for seq := range uint16(count) {
			msgs = append(msgs, rawio.Message{Data: e.whole(v, e.request(v, seq, 10)), Addr: netip.AddrPortFrom(e.Target[v], 0)})
		}
		before := time.Now().UnixNano()
		if n, err := tx.Send(msgs); n != count || err != nil {
			return fmt.Errorf("sent %d, error %v; want %d", n, err, count)
		}
		in := buffers(count, 2048)
		if err := e.await(rx.Receive, in, count); err != nil {
			return err
		}
		after := time.Now().UnixNano()
		for k := range in {
			m := &in[k]
			b := m.Data[:m.N]
			if v == 0 {
				if m.Addr.IsValid() {
					return fmt.Errorf("address %v of a packet that has a header", m.Addr)
				}
				d, ok := parse(b, false)
				if !ok || d.src != e.Target[0] || d.dst != e.Local[0] {
					return fmt.Errorf("received %x, want a packet from %v to %v", b, e.Target[0], e.Local[0])
				}
				b = d.upper
			} else {
				if m.Addr.Addr() != e.Target[1] {
					return fmt.Errorf("received from %v, want %v", m.Addr, e.Target[1])
				}
				if m.TTL != 64 {
					return fmt.Errorf("hop limit %d, want 64", m.TTL)
				}
			}
			want := e.request(v, uint16(k), 10)
			if !bytes.Equal(b[4:], want[4:]) || b[0] != echoFilter(v)[0] {
				return fmt.Errorf("received %x as reply to %x", b, want)
			}
			if m.Local != e.Local[v] {
				return fmt.Errorf("received at %v, want %v", m.Local, e.Local[v])
			}
			if m.Truncated || m.Failure != (rawio.Failure{}) {
				return fmt.Errorf("truncated %v, failure %+v; want neither", m.Truncated, m.Failure)
			}
			if m.Time < before || m.Time > after {
				return fmt.Errorf("time stamp %d is not between %d and %d", m.Time, before, after)
			}
		}
		return e.nothing(rx.Receive)
	})
}

func (e *suite) truncation() error {
	return e.each(func(v, _, _ int) error {
		tx, rx, err := e.rawPair(v)
		if err != nil {
			return err
		}
		if _, err := tx.Send([]rawio.Message{{Data: e.whole(v, e.request(v, 1, 100)), Addr: netip.AddrPortFrom(e.Target[v], 0)}}); err != nil {
			return err
		}
		in := buffers(1, 40)
		if err := e.await(rx.Receive, in, 1); err != nil {
			return err
		}
		if !in[0].Truncated || in[0].N != 40 {
			return fmt.Errorf("%d bytes, truncated %v; want 40, true", in[0].N, in[0].Truncated)
		}
		return e.nothing(rx.Receive)
	})
}

func (e *suite) filter() error {
	return e.each(func(v, _, _ int) error {
		tx, rx, err := e.rawPair(v)
		if err != nil {
			return err
		}
		send := func() error {
			_, err := tx.Send([]rawio.Message{{Data: e.whole(v, e.request(v, 1, 0)), Addr: netip.AddrPortFrom(e.Target[v], 0)}})
			return err
		}
		if err := rx.SetFilter(rawio.FilterNone()); err != nil {
			return err
		}
		if err := errors.Join(send(), e.nothing(rx.Receive)); err != nil {
			return err
		}
		other := rawio.FilterICMP4(suiteID+1, 0xffff)
		if v == 1 {
			other = rawio.FilterICMP6(suiteID+1, 0xffff)
		}
		if err := rx.SetFilter(other); err != nil {
			return err
		}
		if err := errors.Join(send(), e.nothing(rx.Receive)); err != nil {
			return err
		}
		ours := rawio.FilterICMP4(suiteID, suiteID)
		if v == 1 {
			ours = rawio.FilterICMP6(suiteID, suiteID)
		}
		if err := rx.SetFilter(ours); err != nil {
			return err
		}
		if err := send(); err != nil {
			return err
		}
		if err := rx.SetFilter(nil); err == nil {
			return errors.New("took a filter without instructions")
		}
		return e.await(rx.Receive, buffers(1, 2048), 1)
	})
}

// stamps checks that departures are counted from 0, only those that asked, and again after a reset.
// hints: whatever source a message with its header names, also none of the host's, the header's is what counts.
func (e *suite) hints() error {
	return e.each(func(v, _, _ int) error {
		tx, rx, err := e.rawPair(v)
		if err != nil {
			return err
		}
		seq := uint16(0)
		for _, sources := range [][]netip.Addr{
			{e.Local[v], e.Local[v]}, {{}}, {e.Local[v], {}}, {e.Unrouted[v]}, {e.Local[v], e.Unrouted[v]}, {loopback[v]}, {e.Local[v]},
		} {
			var msgs []rawio.Message
			for _, src := range sources {
				msgs = append(msgs, rawio.Message{
					Data: e.whole(v, e.request(v, seq, 4)), Addr: netip.AddrPortFrom(e.Target[v], 0), Source: src,
				})
				seq++
			}
			if n, err := tx.Send(msgs); n != len(msgs) || err != nil {
				return fmt.Errorf("from %v: sent %d, error %v; want %d", sources, n, err, len(msgs))
			}
			if err := e.await(rx.Receive, buffers(len(msgs), 2048), len(msgs)); err != nil {
				return fmt.Errorf("from %v: %w", sources, err)
			}
		}
		return nil
	})
}

func (e *suite) stamps() error {
	return e.each(func(v, _, _ int) error {
		tx, _, err := e.rawPair(v)
		if err != nil {
			return err
		}
		expect := func(ids ...uint32) error {
			in := buffers(8, 64)
			if err := e.await(tx.ReceiveErrors, in, len(ids)); err != nil {
				return err
			}
			for k, id := range ids {
				f := in[k].Failure
				if f.Origin != rawio.OriginTimestamp || f.ID != id {
					return fmt.Errorf("stamp %d: %+v, want ID %d", k, f, id)
				}
				if now := time.Now().UnixNano(); in[k].Time > now || in[k].Time < now-int64(patience) {
					return fmt.Errorf("stamp %d: time %d, now is %d", k, in[k].Time, now)
				}
			}
			return nil
		}
		msg := func(stamp bool) rawio.Message {
			return rawio.Message{Data: e.whole(v, e.request(v, 1, 0)), Addr: netip.AddrPortFrom(e.Target[v], 0), StampTX: stamp}
		}
		if _, err := tx.Send([]rawio.Message{msg(true), msg(false), msg(true), msg(true)}); err != nil {
			return err
		}
		if err := expect(0, 1, 2); err != nil {
			return err
		}
		if err := tx.ResetStamps(); err != nil {
			return err
		}
		if _, err := tx.Send([]rawio.Message{msg(true)}); err != nil {
			return err
		}
		if err := expect(0); err != nil {
			return err
		}
		return e.nothing(tx.ReceiveErrors)
	})
}

// refused checks that a batch stops at the message that can't be sent.
func (e *suite) refused() error {
	return e.each(func(v, _, _ int) error {
		tx, rx, err := e.rawPair(v)
		if err != nil {
			return err
		}
		msg := func(seq uint16, n int, to netip.Addr) rawio.Message {
			return rawio.Message{Data: e.whole(v, e.request(v, seq, n)), Addr: netip.AddrPortFrom(to, 0)}
		}
		for _, bad := range []struct {
			msg  rawio.Message
			want syscall.Errno
		}{
			{msg(8, 1480, e.Target[v]), syscall.EMSGSIZE},
			{msg(9, 0, e.Unrouted[v]), syscall.ENETUNREACH},
		} {
			n, err := tx.Send([]rawio.Message{msg(0, 0, e.Target[v]), bad.msg, msg(1, 0, e.Target[v])})
			if n == 1 && err == nil { // Send may stop short, but then the next call tells why
				n, err = tx.Send([]rawio.Message{bad.msg})
				n++
			}
			if n != 1 || !errors.Is(err, bad.want) {
				return fmt.Errorf("sent %d, error %v; want 1 and %v", n, err, bad.want)
			}
			if err := e.await(rx.Receive, buffers(1, 2048), 1); err != nil {
				return err
			}
			if err := e.nothing(rx.Receive); err != nil {
				return err
			}
		}
		return nil
	})
}

// long checks that a socket of one protocol sends what is longer than the MTU, with TTL and source as told.
// neighbour looks up the next hop to the target, which the host may have to ask for its Ethernet address.
func (e *suite) neighbour(v int) (rawio.NextHop, error) {
	tx, _, err := e.rawPair(v)
	if err != nil {
		return rawio.NextHop{}, err
	}
	defer tx.Close()
	for deadline := time.Now().Add(patience); ; {
		hop, err := e.Host.NextHop(e.Target[v], rawio.Route{})
		if !errors.Is(err, rawio.ErrNoNeighbour) || time.Now().After(deadline) {
			return hop, err
		}
		if _, err := tx.Send([]rawio.Message{{Data: e.whole(v, e.request(v, 0, 0)), Addr: netip.AddrPortFrom(e.Target[v], 0)}}); err != nil {
			return hop, err
		}
		if err := e.Host.Wait(time.Millisecond); err != nil {
			return hop, err
		}
	}
}

func (e *suite) nextHop() error {
	index, err := e.Host.IfIndex(e.Interface)
	if err != nil {
		return err
	}
	return e.each(func(v, _, _ int) error {
		hop, err := e.neighbour(v)
		if err != nil {
			return err
		}
		if hop.Source != e.Local[v] || hop.IfIndex != index || hop.Link == (rawio.LinkAddr{}) || hop.MTU != 1500 || !hop.Fresh {
			return fmt.Errorf("next hop to %v: %+v; want source %v, interface %d, an address, MTU 1500, fresh", e.Target[v], hop, e.Local[v], index)
		}
		if again, err := e.Host.NextHop(e.Target[v], rawio.Route{Interface: e.Interface}); err != nil || again != hop {
			return fmt.Errorf("next hop to %v through %s: %+v, %v; want %+v", e.Target[v], e.Interface, again, err, hop)
		}
		group := [2]netip.Addr{netip.AddrFrom4([4]byte{224, 0, 0, 1}), netip.IPv6LinkLocalAllNodes()}[v]
		for _, tt := range []struct {
			dst  netip.Addr
			via  rawio.Route
			want error
		}{
			{e.Local[v], rawio.Route{}, errors.ErrUnsupported},
			{loopback[v], rawio.Route{}, errors.ErrUnsupported},
			{group, rawio.Route{Interface: e.Interface}, errors.ErrUnsupported},
			{e.Target[v], rawio.Route{Mark: 1}, errors.ErrUnsupported},
			{e.Target[v], rawio.Route{Interface: "no-such-name"}, syscall.ENODEV},
			{e.Unrouted[v], rawio.Route{}, syscall.ENETUNREACH},
		} {
			if hop, err := e.Host.NextHop(tt.dst, tt.via); !errors.Is(err, tt.want) {
				return fmt.Errorf("next hop to %v via %+v: %+v, %v; want %v", tt.dst, tt.via, hop, err, tt.want)
			}
		}
		return nil
	})
}

var loopback = [2]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

func (e *suite) frames() error {
	return e.each(func(v, version, icmp int) error {
		hop, err := e.neighbour(v)
		if err != nil {
			return err
		}
		tx, err := e.Host.Open(rawio.Spec{Version: version, Kind: rawio.Link})
		if err != nil {
			return err
		}
		_, rx, err := e.rawPair(v)
		if err != nil {
			return err
		}
		msg := func(seq uint16, n int) rawio.Message {
			b := appendPacket(nil, icmp, e.Local[v], e.Target[v], 64, 0, e.request(v, seq, n))
			return rawio.Message{Data: b, IfIndex: hop.IfIndex, Link: hop.Link}
		}
		const count = 3
		var msgs []rawio.Message
		for seq := range uint16(count) {
			msgs = append(msgs, msg(seq, 10))
		}
		msgs[0].StampTX, msgs[2].StampTX = true, true
		if n, err := tx.Send(msgs); n != count || err != nil {
			return fmt.Errorf("sent %d, error %v; want %d", n, err, count)
		}
		in := buffers(count, 2048)
		if err := e.await(rx.Receive, in, count); err != nil {
			return err
		}
		for k := range in {
			b := in[k].Data[:in[k].N]
			if v == 0 {
				b = b[ip4Header:]
			}
			if want := e.request(v, uint16(k), 10); !bytes.Equal(b[4:], want[4:]) || b[0] != echoFilter(v)[0] {
				return fmt.Errorf("received %x as reply to %x", b, want)
			}
		}
		stamps := buffers(2, 64)
		if err := e.await(tx.ReceiveErrors, stamps, len(stamps)); err != nil {
			return err
		}
		for k := range stamps {
			if f := stamps[k].Failure; f.Origin != rawio.OriginTimestamp || f.ID != uint32(k) || stamps[k].Time > in[2*k].Time {
				return fmt.Errorf("stamp %d: %+v at %d, want ID %d before the answer at %d", k, f, stamps[k].Time, k, in[2*k].Time)
			}
		}
		// What nobody takes is lost; what cannot be sent is refused.
		lost := msg(9, 10)
		lost.Link[5] ^= 0xff
		if n, err := tx.Send([]rawio.Message{lost}); n != 1 || err != nil {
			return fmt.Errorf("to another Ethernet address: sent %d, error %v; want 1", n, err)
		}
		gone := msg(9, 10)
		gone.IfIndex = 1 << 20
		if n, err := tx.Send([]rawio.Message{msg(9, 1500), msg(4, 10)}); n != 0 || !errors.Is(err, syscall.EMSGSIZE) {
			return fmt.Errorf("longer than the MTU: sent %d, error %v; want EMSGSIZE", n, err)
		}
		if n, err := tx.Send([]rawio.Message{gone}); n != 0 || !errors.Is(err, syscall.ENXIO) {
			return fmt.Errorf("through no interface: sent %d, error %v; want ENXIO", n, err)
		}
		return e.nothing(rx.Receive)
	})
}

func (e *suite) long() error {
	return e.each(func(v, _, icmp int) error {
		_, rx, err := e.rawPair(v)
		if err != nil {
			return err
		}
		msgs := []rawio.Message{{
			Data: e.request(v, 7, 3000), Addr: netip.AddrPortFrom(e.Target[v], 0), Source: e.Local[v], TTL: 9, TOS: 0x10,
		}}
		if _, err := rx.Send(msgs); err != nil {
			return err
		}
		in := buffers(1, 4096)
		if err := e.await(rx.Receive, in, 1); err != nil {
			return err
		}
		want := 3008
		if icmp == protoICMP {
			want += ip4Header
		}
		if in[0].N != want {
			return fmt.Errorf("received %d bytes, want %d", in[0].N, want)
		}
		return nil
	})
}

func (e *suite) wait() error {
	start := time.Now()
	if err := e.Host.Wait(20 * time.Millisecond); err != nil {
		return err
	}
	if d := time.Since(start); d < 20*time.Millisecond {
		return fmt.Errorf("slept for %v, want 20ms", d)
	}
	// Two calls count as one, and are for the next Wait.
	e.Host.Wake()
	e.Host.Wake()
	start = time.Now()
	if err := e.Host.Wait(patience); err != nil {
		return err
	}
	if d := time.Since(start); d > patience/2 {
		return fmt.Errorf("slept for %v after Wake", d)
	}
	if err := e.Host.Wait(20 * time.Millisecond); err != nil {
		return err
	}
	if d := time.Since(start); d < 20*time.Millisecond {
		return fmt.Errorf("one Wake ended two waits")
	}
	// From another goroutine, and without a limit.
	for _, sleep := range []func(time.Duration) error{e.Host.Wait, e.Host.Nap} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			time.Sleep(glance / 5)
			e.Host.Wake()
		}()
		err := sleep(-1)
		<-done
		if err != nil {
			return err
		}
	}
	return nil
}

// level checks that a wait ends at once as long as there is something to read, but not for stamps.
func (e *suite) level() error {
	return e.each(func(v, _, _ int) error {
		tx, rx, err := e.rawPair(v)
		if err != nil {
			return err
		}
		msg := []rawio.Message{{Data: e.whole(v, e.request(v, 1, 0)), Addr: netip.AddrPortFrom(e.Target[v], 0), StampTX: true}}
		if _, err := tx.Send(msg); err != nil {
			return err
		}
		for range 3 {
			start := time.Now()
			if err := e.Host.Wait(patience); err != nil {
				return err
			}
			if time.Since(start) > patience/2 {
				return errors.New("a wait did not end although an answer is there")
			}
		}
		start := time.Now()
		if err := e.Host.Nap(glance); err != nil {
			return err
		}
		if time.Since(start) < glance {
			return errors.New("an answer ended a nap")
		}
		if err := e.await(rx.Receive, buffers(1, 2048), 1); err != nil {
			return err
		}
		start = time.Now()
		if err := e.Host.Wait(glance); err != nil {
			return err
		}
		if time.Since(start) < glance {
			return errors.New("a departure stamp ended a wait")
		}
		return e.await(tx.ReceiveErrors, buffers(1, 64), 1)
	})
}

// queue checks that what finds a full queue is counted.
func (e *suite) queue() error {
	return e.each(func(v, _, _ int) error {
		tx, err := e.Host.Open(rawio.Spec{Version: 4 + 2*v, Kind: rawio.RawHeader})
		if err != nil {
			return err
		}
		const room = 16384
		rx, err := e.Host.Open(rawio.Spec{Version: 4 + 2*v, Kind: rawio.Raw, Protocol: []int{protoICMP, protoICMPv6}[v], ReceiveBuffer: room})
		if err != nil {
			return err
		}
		before, err := rx.Queue()
		if err != nil || before.Size != 2*room || before.Dropped != 0 {
			return fmt.Errorf("new queue %+v, error %v; want room for %d", before, err, 2*room)
		}
		const count = 100 // more than fit, each of them charged with 768 bytes at least
		for seq := range uint16(count) {
			msg := []rawio.Message{{Data: e.whole(v, e.request(v, seq, 10)), Addr: netip.AddrPortFrom(e.Target[v], 0)}}
			if _, err := tx.Send(msg); err != nil {
				return err
			}
		}
		for start := time.Now(); ; time.Sleep(time.Millisecond) {
			q, err := rx.Queue()
			switch {
			case err != nil:
				return err
			case q.Dropped >= count/2 && q.Dropped < count:
				return nil
			case time.Since(start) > patience:
				return fmt.Errorf("queue %+v after %d replies", q, count)
			}
		}
	})
}

// ping checks an ICMP datagram socket: the identifier is the port.
func (e *suite) ping() error {
	return e.each(func(v, version, icmp int) error {
		any := [...]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[v]
		c, err := e.Host.Open(rawio.Spec{
			Version: version, Kind: rawio.Datagram, Protocol: icmp, Local: netip.AddrPortFrom(any, 0x4321), ReceiveErrors: true,
		})
		if err != nil {
			return err
		}
		if _, err := c.Send([]rawio.Message{{Data: e.request(v, 77, 6), Addr: netip.AddrPortFrom(e.Target[v], 0), StampTX: true}}); err != nil {
			return err
		}
		in := buffers(1, 2048)
		if err := e.await(c.Receive, in, 1); err != nil {
			return err
		}
		m := &in[0]
		want := e.request(v, 77, 6)
		binary.BigEndian.PutUint16(want[4:], 0x4321)
		if b := m.Data[:m.N]; len(b) != len(want) || b[0] != echoFilter(v)[0] || !bytes.Equal(b[4:], want[4:]) {
			return fmt.Errorf("received %x as reply to %x", b, want)
		}
		if m.Addr.Addr() != e.Target[v] || m.TTL != 64 || m.Time == 0 {
			return fmt.Errorf("from %v with TTL %d at %d; want %v, 64 and a time", m.Addr, m.TTL, m.Time, e.Target[v])
		}
		stamps := buffers(1, 64)
		if err := e.await(c.ReceiveErrors, stamps, 1); err != nil {
			return err
		}
		if f := stamps[0].Failure; f.Origin != rawio.OriginTimestamp || f.ID != 0 {
			return fmt.Errorf("stamp %+v, want ID 0", f)
		}
		return nil
	})
}

// errors checks the error queue of a UDP socket, and the error on the socket itself.
func (e *suite) errors() error {
	return e.each(func(v, version, _ int) error {
		c, err := e.Host.Open(rawio.Spec{Version: version, Kind: rawio.Datagram, Protocol: protoUDP, ReceiveErrors: true})
		if err != nil {
			return err
		}
		to := netip.AddrPortFrom(e.Target[v], e.ClosedPort)
		msg := []rawio.Message{{Data: []byte("fathom"), Addr: to, TTL: 20}}
		if _, err := c.Send(msg); err != nil {
			return err
		}
		in := buffers(4, 2048)
		if err := e.await(c.ReceiveErrors, in, 1); err != nil {
			return err
		}
		m := &in[0]
		want := rawio.Failure{Errno: uint32(syscall.ECONNREFUSED), Origin: rawio.OriginICMP, Type: 3, Code: 3, Offender: e.Target[v]}
		if v == 1 {
			want.Origin, want.Type, want.Code = rawio.OriginICMPv6, 1, 4
		}
		if m.Failure != want || m.Addr != to || string(m.Data[:m.N]) != "fathom" {
			return fmt.Errorf("error %+v about %q to %v, want %+v", m.Failure, m.Data[:m.N], m.Addr, want)
		}
		// Reading the queue has taken the error off the socket.
		if _, err := c.Send(msg); err != nil {
			return fmt.Errorf("send after reading the error: %w", err)
		}
		// The next one stays on it, and the next call gets it, once.
		if err := e.Host.Wait(patience); err != nil {
			return err
		}
		if _, err := c.Send(msg); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("send with an error on the socket: %v, want ECONNREFUSED", err)
		}
		if n, err := c.Receive(in); n != 0 || err != nil {
			return fmt.Errorf("received %d, error %v; want nothing", n, err)
		}
		return e.await(c.ReceiveErrors, in, 1)
	})
}

func (e *suite) close() error {
	c, err := e.Host.Open(rawio.Spec{Version: 4, Kind: rawio.Raw, Protocol: protoICMP, Filter: rawio.FilterNone()})
	if err != nil {
		return err
	}
	if err := errors.Join(c.Close(), c.Close(), e.Host.Close()); err != nil {
		return err
	}
	e.Host.Wake()
	if err := e.Host.Wait(patience); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("wait after Close: %v, want net.ErrClosed", err)
	}
	return nil
}
