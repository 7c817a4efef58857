// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// serveNames answers queries like a name server, on port 53 of both versions.
func serveNames(t *testing.T, h *lab.Host) {
	t.Helper()
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: DefaultDNSPort})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(respond(t, b[:n]), from) // the asker may be gone
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
}

// listening is the sockets that get answers, of one version.
type listening struct {
	proto packet.Protocol
	conn  rawio.Conn
}

// TestLab sends probes of all kinds to each hop of a path, and probes of another measurement between them. The
// answers to the first are recognised as they come from raw sockets, those to the second the kernel filters out.
//
//	a --- r --- s --- b      b is a name server
func TestLab(t *testing.T) {
	l := lab.New(t, lab.MustParse(`
		[host.a]
		[router.r]
		[router.s]
		[host.b]
		[[wire]]
		ends = ["a", "r"]
		[[wire]]
		ends = ["r", "s"]
		[[wire]]
		ends = ["s", "b"]
	`))
	serveNames(t, l.Host("b"))
	for _, version := range []int{4, 6} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			if err := l.Host("a").Do(func() error { return traceAll(t, l, version) }); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// traceAll runs on host a.
func traceAll(t *testing.T, l *lab.Lab, version int) error {
	a, b := l.Host("a"), l.Host("b")
	local, remote := a.Addr(), b.Addr()
	hops := []netip.Addr{l.Host("r").AddrTowards("a", 4), l.Host("s").AddrTowards("r", 4), remote}
	icmp, filterICMP, filterUDP, filterTCP := 1, rawio.FilterAnswersICMP4, rawio.FilterAnswersUDP4, rawio.FilterAnswersTCP4
	if version == 6 {
		local, remote = a.Addr6(), b.Addr6()
		hops = []netip.Addr{l.Host("r").AddrTowards("a", 6), l.Host("s").AddrTowards("r", 6), remote}
		icmp, filterICMP, filterUDP, filterTCP = 58, rawio.FilterAnswersICMP6, rawio.FilterAnswersUDP6, rawio.FilterAnswersTCP6
	}

	// Blocks of ten ports, every other of the measurement that is not listened for.
	table, others := new(Table), new(Table)
	var ours, theirs []*Codec
	var ranges []rawio.PortRange
	for i, kind := range kinds {
		cfg := testConfig(kind)
		cfg.FirstPort, cfg.Ports = 20000+20*uint16(i), 10
		c, err := New(cfg)
		if err != nil {
			return err
		}
		cfg.FirstPort += 10
		other, err := New(cfg)
		if err != nil {
			return err
		}
		if err := errors.Join(table.Add(c), others.Add(other)); err != nil {
			return err
		}
		ours, theirs = append(ours, c), append(theirs, other)
		ranges = append(ranges, rawio.PortRange{Lo: cfg.FirstPort - 10, Hi: cfg.FirstPort - 1})
	}

	h, err := rawio.NewHost()
	if err != nil {
		return err
	}
	defer h.Close()
	open := func(proto int, filter []bpf.RawInstruction) rawio.Conn {
		c, openErr := h.Open(rawio.Spec{Version: version, Kind: rawio.Raw, Protocol: proto, Filter: filter})
		err = errors.Join(err, openErr)
		return c
	}
	filtered := []listening{
		{packet.Protocol(icmp), open(icmp, filterICMP(ranges))},
		{packet.ProtocolUDP, open(17, filterUDP(ranges))},
		{packet.ProtocolTCP, open(6, filterTCP(ranges))},
	}
	all := []listening{
		{packet.Protocol(icmp), open(icmp, nil)}, {packet.ProtocolUDP, open(17, nil)}, {packet.ProtocolTCP, open(6, nil)},
	}
	tx, txErr := h.Open(rawio.Spec{Version: version, Kind: rawio.RawHeader})
	if err := errors.Join(err, txErr); err != nil {
		return err
	}

	// Number = TTL; kinds one after the other, so that no router limits its errors.
	type key struct {
		kind   Kind
		number uint16
	}
	got, known := map[key]Answer{}, map[key]bool{}
	receive := func(from []listening, table *Table, each func(*Codec, *Answer, error)) error {
		msgs := make([]rawio.Message, 16)
		for i := range msgs {
			msgs[i].Data = make([]byte, 2048)
		}
		for _, s := range from {
			for {
				n, err := s.conn.Receive(msgs)
				if err != nil {
					return err
				}
				if n == 0 {
					break
				}
				for _, m := range msgs[:n] {
					var a Answer
					var c *Codec
					if data := m.Data[:m.N]; version == 4 {
						c, err = table.Parse4(data, &a)
					} else {
						c, err = table.Parse6(m.Addr.Addr(), local, m.TTL, m.TOS, s.proto, data, &a)
					}
					each(c, &a, err)
				}
			}
		}
		return nil
	}
	deadline := time.Now().Add(20 * time.Second)
	for ttl := range uint16(3) {
		for i, kind := range kinds {
			for missing := true; missing; {
				if time.Now().After(deadline) {
					return fmt.Errorf("no answer to %s %d", kind, ttl)
				}
				for _, c := range []*Codec{theirs[i], ours[i]} {
					pkt, err := c.Append(nil, &Probe{
						Src: local, Dst: remote, TTL: uint8(ttl) + 1, Flow: 4, Number: ttl, Time: time.Now().UnixNano(),
					})
					if err != nil {
						return err
					}
					if _, err := tx.Send([]rawio.Message{{Data: pkt, Addr: netip.AddrPortFrom(remote, 0)}}); err != nil {
						return err
					}
				}
				// Errors may be limited or lost on a busy machine: after a second both are sent again.
				for again := time.Now().Add(time.Second); missing && time.Now().Before(again); {
					if err := h.Wait(50 * time.Millisecond); err != nil {
						return err
					}
					if err := receive(filtered, table, func(c *Codec, a *Answer, err error) {
						if err != nil {
							t.Errorf("%s %d: the filter lets through what is not ours: %v, %+v", kind, ttl, err, a)
							return
						}
						got[key{c.cfg.Kind, a.Number}] = *a
					}); err != nil {
						return err
					}
					if err := receive(all, others, func(c *Codec, a *Answer, err error) {
						if err == nil {
							known[key{c.cfg.Kind, a.Number}] = true
						}
					}); err != nil {
						return err
					}
					missing = got[key{kind, ttl}].Status == 0 || !known[key{kind, ttl}]
				}
			}
			a := got[key{kind, ttl}]
			status := probe.TimeExceeded
			if ttl == 2 {
				status = probe.Replied
			}
			if a.Status != status || a.Responder.WithZone("") != hops[ttl] || a.Target != remote || a.Local != local || a.Flow != 4 && kind != CHAOS {
				t.Errorf("%s, TTL %d: %+v", kind, ttl+1, a)
			}
			if age := time.Since(time.Unix(0, a.Sent)); a.Sent != 0 && (age < 0 || age > time.Minute) {
				t.Errorf("%s, TTL %d: sent %v ago", kind, ttl+1, age)
			}
			if kind == CHAOS && ttl == 2 && !strings.HasPrefix(a.Text, "ams1") {
				t.Errorf("name server %q", a.Text)
			}
		}
	}
	return nil
}
