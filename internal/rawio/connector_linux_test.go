// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
)

// TestConnector tries connections through a router: accepted, refused, expired on the way, stopped, and to nobody.
//
//	a --- r --- b
func TestConnector(t *testing.T) {
	l := lab.New(t, lab.MustParse(`
		[host.a]
		[router.r]
		[host.b]
		[[wire]]
		ends = ["a", "r"]
		[[wire]]
		ends = ["r", "b"]
	`))
	a, r, b := l.Host("a"), l.Host("r"), l.Host("b")
	var listener net.Listener
	if err := b.Do(func() (err error) {
		listener, err = net.Listen("tcp", ":80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := a.DoUnprivileged(func() error {
		h, err := rawio.NewHost()
		if err != nil {
			return err
		}
		defer h.Close()
		c, err := rawio.NewConnector(h)
		if err != nil {
			return err
		}
		defer c.Close()
		for v, to := range []netip.Addr{b.Addr(), b.Addr6()} {
			for key, tt := range []struct {
				name  string
				port  uint16
				ttl   uint8
				errno syscall.Errno
				typ   uint8 // of the ICMP message; 0: there is none
			}{
				{"open", 80, 64, 0, 0},
				{"closed", 9, 64, syscall.ECONNREFUSED, 0},
				{"expired", 80, 1, syscall.EHOSTUNREACH, [...]uint8{11, 3}[v]},
			} {
				fd, err := c.Start(rawio.Connect{Remote: netip.AddrPortFrom(to, tt.port), TTL: tt.ttl, Interface: "r"}, uint64(key)<<40|7)
				if err != nil {
					t.Errorf("IPv%d %s: %v", 4+2*v, tt.name, err)
					continue
				}
				var got []rawio.Connected
				for deadline := time.Now().Add(5 * time.Second); len(got) == 0 && time.Now().Before(deadline); {
					if err := h.Wait(100 * time.Millisecond); err != nil {
						return err
					}
					c.Poll(func(k uint64) int {
						if k != uint64(key)<<40|7 {
							t.Errorf("key %#x", k)
						}
						return fd
					}, func(r *rawio.Connected) { got = append(got, *r) })
				}
				c.Stop(fd)
				if len(got) != 1 {
					t.Errorf("IPv%d %s: no end", 4+2*v, tt.name)
					continue
				}
				g := got[0]
				if g.Key != uint64(key)<<40|7 || g.Retransmits != 0 || tt.typ == 0 && (g.Err != tt.errno || g.Failure != (rawio.Failure{})) {
					t.Errorf("IPv%d %s: %+v", 4+2*v, tt.name, g)
				}
				if tt.typ != 0 && (g.Failure.Type != tt.typ || g.Failure.Offender != r.AddrTowards("a", 4+2*v)) {
					t.Errorf("IPv%d %s: %+v, want ICMP type %d from %v", 4+2*v, tt.name, g, tt.typ, r.AddrTowards("a", 4+2*v))
				}
			}
		}
		// One that was stopped is not reported.
		fd, err := c.Start(rawio.Connect{Remote: netip.AddrPortFrom(b.Addr(), 80), TTL: 64}, 1)
		if err != nil {
			return err
		}
		c.Stop(fd)
		if err := h.Wait(50 * time.Millisecond); err != nil {
			return err
		}
		c.Poll(func(uint64) int { return -1 }, func(r *rawio.Connected) { t.Errorf("a stopped try ended: %+v", r) })
		for _, bad := range []struct {
			try  rawio.Connect
			want error
		}{
			{rawio.Connect{Remote: netip.AddrPortFrom(b.Addr(), 80), TTL: 64, Interface: "gone"}, syscall.ENODEV},
			{rawio.Connect{Local: netip.AddrPortFrom(b.Addr(), 1), Remote: netip.AddrPortFrom(b.Addr(), 80), TTL: 64}, syscall.EADDRNOTAVAIL},
		} {
			if fd, err := c.Start(bad.try, 2); !errors.Is(err, bad.want) {
				t.Errorf("%+v: descriptor %d, error %v; want %v", bad.try, fd, err, bad.want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
