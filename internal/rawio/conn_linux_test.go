// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// TestConnAllocates checks that batches of datagrams are sent and received without allocating, stamps included.
func TestConnAllocates(t *testing.T) {
	l := pair(t)
	a := l.Host("a")
	if err := a.Do(func() error {
		h, err := rawio.NewHost()
		if err != nil {
			return err
		}
		defer h.Close()
		for v, local := range []netip.Addr{a.Addr(), a.Addr6()} {
			// To itself, so that no other goroutine is part of the count.
			to := netip.AddrPortFrom(local, 7000)
			c, err := h.Open(rawio.Spec{Version: 4 + 2*v, Kind: rawio.Datagram, Protocol: 17, Local: to, ReceiveErrors: true})
			if err != nil {
				return err
			}
			out, in, stamps := make([]rawio.Message, 8), make([]rawio.Message, 8), make([]rawio.Message, 8)
			for k := range out {
				out[k] = rawio.Message{Data: make([]byte, 100), Addr: to, TTL: 9, TOS: 4, Source: local, StampTX: true}
				in[k].Data, stamps[k].Data = make([]byte, 200), make([]byte, 64)
			}
			queues := []struct {
				read func([]rawio.Message) (int, error)
				msgs []rawio.Message
			}{{c.Receive, in}, {c.ReceiveErrors, stamps}}
			var failure error
			round := func() {
				if n, err := c.Send(out); n != len(out) || err != nil {
					failure = fmt.Errorf("sent %d: %w", n, err)
					return
				}
				for _, queue := range queues {
					for got := 0; got < len(out) && failure == nil; {
						n, err := queue.read(queue.msgs[got:])
						if got += n; err != nil {
							failure = err
						}
					}
				}
			}
			allocs := testing.AllocsPerRun(100, round)
			if failure != nil {
				return failure
			}
			if allocs != 0 {
				t.Errorf("IPv%d: %v allocations per batch", 4+2*v, allocs)
			}
			for k := range in {
				if m := &in[k]; m.N != 100 || m.TTL != 9 || m.TOS != 4 || m.Addr != to || m.Time == 0 {
					t.Errorf("IPv%d: %+v", 4+2*v, m)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
