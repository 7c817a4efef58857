// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// test does what Relay.Test does, for three seconds, and gives the reports as text.
func (x *node) test(t *testing.T, port uint16) (reports []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	seq, err := x.e.test(ctx, port, func(ifname string, port uint16, payload []byte) error {
		for _, p := range x.ports {
			if p.s.name == ifname {
				p.sendTo(netip.AddrPortFrom(datagram.Limited(), port), string(payload))
				return nil
			}
		}
		return errors.New("no such interface")
	})
	if err != nil {
		t.Fatal(err)
	}
	for r := range seq {
		if r.Took < 0 || r.Took > 100*time.Millisecond {
			t.Errorf("%+v took too long", r)
		}
		reports = append(reports, fmt.Sprintf("%s %s: %s %v", r.Peer, r.Segment, r.Outcome, r.OK))
	}
	slices.Sort(reports)
	x.e.tests.mu.Lock()
	defer x.e.tests.mu.Unlock()
	if len(x.e.tests.waiting) != 0 {
		t.Error("a test that is over is still waited for")
	}
	return reports
}

func TestTest(t *testing.T) {
	for name, change := range map[string]func(*Options){"open": nil, "sealed": func(o *Options) { o.Keys = []mesh.Key{{1}} }} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				hosts, relays := three(w, change)
				standby := w.relay(4, w.wires[1:2], []int{1, 2, 3}, change)
				for i, x := range relays {
					x.peers(slices.DeleteFunc([]int{1, 2, 3, 4}, func(n int) bool { return n == i+1 })...)
				}
				wait(settle)
				got := relays[0].test(t, 0)
				want := []string{
					"192.0.2.2:7124 eth0: emitted true", "192.0.2.3:7124 eth0: emitted true", "192.0.2.4:7124 eth0: standby true",
					"this relay eth0: captured and relayed true",
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				for _, h := range hosts[1:] {
					if n := len(h.take()); n != 1 {
						t.Errorf("%v heard %d", h.addr(), n)
					}
				}
				if got, want := standby.test(t, testPort), []string{"this relay eth0: standby true"}; !slices.Equal(got, want) {
					t.Errorf("from one that stands by: got %q, want %q", got, want)
				}
				relays[2].kill()
				got = relays[0].test(t, 0)
				want[1] = "192.0.2.3:7124 : no report false"
				if !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		})
	}
}

// With two interfaces, each is a segment of its own to report on. Originals cannot report.
func TestTestSeveralInterfaces(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		x := w.relay(1, w.wires[:2], []int{2}, nil)
		o := w.original(2, w.wires[2], 1)
		wait(settle)
		o.wire.host(1).send("so that it shows what it is")
		wait(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		seq, err := x.e.test(ctx, 0, func(ifname string, port uint16, payload []byte) error {
			if ifname == "eth1" {
				return errors.New("network is down")
			}
			x.ports[0].sendTo(netip.AddrPortFrom(datagram.Limited(), port), string(payload))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for r := range seq {
			got = append(got, fmt.Sprintf("%s %s: %s %v", r.Peer, r.Segment, r.Outcome, r.OK))
		}
		slices.Sort(got)
		want := []string{
			"192.0.2.2:7124 : SnowSignal's: cannot report true", "this relay eth0: captured and relayed true",
			"this relay eth1: emitted true", "this relay eth1: network is down false",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestTestPort(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		x := w.relay(1, w.wires, nil, nil)
		if _, err := x.e.test(t.Context(), 99, nil); !errors.Is(err, ErrOptions) {
			t.Errorf("%v, want %v", err, ErrOptions)
		}
		y := w.relay(2, w.wires, nil, func(o *Options) {
			o.Ports, o.Groups = nil, []datagram.Group{{Addr: netip.MustParseAddr("224.0.0.251"), Ports: onePort(5353)}}
		})
		if _, err := y.e.test(t.Context(), 0, nil); !errors.Is(err, ErrOptions) {
			t.Errorf("%v, want %v", err, ErrOptions)
		}
	})
}
