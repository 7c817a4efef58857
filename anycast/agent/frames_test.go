// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
)

// trace is an order for probes to one target, as traces send them.
func trace(v, n int, first uint32) *measurepb.Send {
	s := send(1, 1, v, n, first)
	s.Ttls = nil
	for i := range n {
		s.Ttls = append(s.Ttls, uint32(i%20)+1)
	}
	return s
}

// framing starts an agent that sends frames, with a session.
func framing(t *testing.T, proto measurepb.Protocol, size uint32, frames bool) (*site, *attachment) {
	t.Helper()
	c := newController(t)
	s := start(t, Options{Links: oneLink, Dial: c.dial, SendFrames: frames})
	a := c.accept(0)
	o := open(1, proto)
	o.Size = size
	a.order(o)
	a.confirmed(1)
	return s, a
}

// TestFramesSameBytes: what leaves in frames is, byte by byte, what leaves otherwise, and its answers are as good.
func TestFramesSameBytes(t *testing.T) {
	for _, proto := range []measurepb.Protocol{measurepb.Protocol_PROTOCOL_ICMP, measurepb.Protocol_PROTOCOL_UDP, measurepb.Protocol_PROTOCOL_TCP} {
		for v := range 2 {
			t.Run(fmt.Sprintf("%v over IPv%d", proto, 4+2*v), func(t *testing.T) {
				var packets [2][][]byte
				for k, frames := range []bool{false, true} {
					synctest.Test(t, func(t *testing.T) {
						s, a := framing(t, proto, 0, frames)
						a.order(trace(v, 200, 0))
						a.collect(1, answered(proto, 200))
						time.Sleep(2 * time.Second)
						if st := s.Stats(); st.Sent != 200 || st.Framed != []uint64{0, 200}[k] || st.Refused != 0 {
							t.Errorf("%+v", st)
						}
						packets[k] = s.net.packets()
					})
				}
				if len(packets[0]) != len(packets[1]) {
					t.Fatalf("%d and %d packets", len(packets[0]), len(packets[1]))
				}
				for i := range packets[0] {
					if !bytes.Equal(packets[0][i], packets[1][i]) {
						t.Fatalf("packet %d:\n%x without, and\n%x with frames", i, packets[0][i], packets[1][i])
					}
				}
			})
		}
	}
}

// answered is how many of n probes of a trace the internet answers: no host does a SYN.
func answered(proto measurepb.Protocol, n int) int {
	if proto == measurepb.Protocol_PROTOCOL_TCP {
		return n / 20
	}
	return n
}

// TestFramesElse: what cannot leave in a frame, or costs more that way, takes the raw socket, and is not lost.
func TestFramesElse(t *testing.T) {
	many := trace(0, 40, 0)
	many.Targets = bytes.Repeat(target[0].AsSlice(), 40)
	for _, c := range []struct {
		name   string
		order  *measurepb.Send
		size   uint32
		faults rawiotest.Faults
		framed int // of 40
		asked  int // the next hop
	}{
		{name: "all in frames", order: trace(0, 40, 0), framed: 40, asked: 1},
		{name: "a target for each", order: many},
		{name: "too long", order: trace(0, 40, 0), size: 1001, asked: 1, faults: rawiotest.Faults{
			NextHop: func(_ netip.Addr, hop *rawio.NextHop) error {
				hop.MTU = 1000
				return nil
			},
		}},
		{name: "no neighbour yet", order: trace(0, 40, 0), asked: 1, faults: rawiotest.Faults{
			NextHop: func(netip.Addr, *rawio.NextHop) error { return rawio.ErrNoNeighbour },
		}},
		{name: "a neighbour that may have gone", order: trace(0, 40, 0), asked: 1, framed: 40 - turn, faults: rawiotest.Faults{
			NextHop: func(_ netip.Addr, hop *rawio.NextHop) error {
				hop.Fresh = false
				return nil
			},
		}},
		{name: "refused", order: trace(0, 40, 0), asked: 1, faults: rawiotest.Faults{
			Send: func(s rawio.Spec, _ *rawio.Message) error {
				if s.Kind == rawio.Link {
					return syscall.ENETDOWN
				}
				return nil
			},
		}},
		{name: "a full queue at times", order: trace(0, 40, 0), asked: 1, framed: 40, faults: rawiotest.Faults{
			Send: sometimes(syscall.ENOBUFS),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, a := framing(t, measurepb.Protocol_PROTOCOL_ICMP, c.size, true)
				var mu sync.Mutex
				asked := 0
				answer := c.faults.NextHop
				c.faults.NextHop = func(dst netip.Addr, hop *rawio.NextHop) error {
					mu.Lock()
					defer mu.Unlock()
					asked++
					if answer != nil {
						return answer(dst, hop)
					}
					return nil
				}
				s.host.SetFaults(c.faults)
				a.order(c.order)
				rs, _ := a.collect(1, 40)
				if rs[0].GetError() != "" || rs[0].GetCount() != 40 {
					t.Errorf("report %v", rs[0])
				}
				time.Sleep(time.Second)
				if st := s.Stats(); st.Sent != 40 || st.Framed != uint64(c.framed) || st.Refused != 0 {
					t.Errorf("%+v, want %d in frames", st, c.framed)
				}
				mu.Lock()
				defer mu.Unlock()
				if asked != c.asked {
					t.Errorf("the next hop was asked for %d times, want %d", asked, c.asked)
				}
			})
		})
	}
}

// sometimes refuses every fourth message.
func sometimes(err error) func(rawio.Spec, *rawio.Message) error {
	n := 0
	return func(rawio.Spec, *rawio.Message) error {
		if n++; n%4 == 3 {
			return err
		}
		return nil
	}
}

// TestFramesUnavailable: an agent that may not have packet sockets sends all the same.
func TestFramesUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		s := start(t, Options{Links: oneLink, Dial: c.dial, SendFrames: true, Host: func() (rawio.Host, error) {
			h := rawiotest.NewHost(rawiotest.Config{Addrs: shared[:], Network: (&internet{}).carry})
			h.SetFaults(rawiotest.Faults{Open: func(s rawio.Spec) error {
				if s.Kind == rawio.Link {
					return syscall.EPERM
				}
				return nil
			}})
			return h, nil
		}})
		a := c.accept(0)
		a.order(open(1, measurepb.Protocol_PROTOCOL_UDP))
		a.order(trace(0, 40, 0))
		a.collect(1, 40)
		time.Sleep(time.Second)
		if st := s.Stats(); st.Sent != 40 || st.Framed != 0 {
			t.Errorf("%+v", st)
		}
	})
}
