// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/internal/rawio/rawiotest"
	"github.com/seed5728abee/fathom/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// pair is two hosts on a wire. The third one is there so that a has no default route.
//
//	c --- a --- b
func pair(t testing.TB) *lab.Lab {
	return lab.New(t, &lab.Topology{
		Hosts: map[string]lab.HostConfig{"a": {}, "b": {}, "c": {}},
		Wires: []lab.WireConfig{{Ends: [2]string{"a", "b"}}, {Ends: [2]string{"c", "a"}}},
	})
}

// TestKernel holds the kernel to the same contract as the in-memory twin; see TestTwin in package rawiotest.
func TestKernel(t *testing.T) {
	rawiotest.TestHost(t, func(t *testing.T) *rawiotest.Env {
		l := pair(t)
		a, b := l.Host("a"), l.Host("b")
		var h *rawio.KernelHost
		if err := a.Do(func() (err error) {
			h, err = rawio.NewHost()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		return &rawiotest.Env{
			Host: h, Do: a.Do,
			Local:      [2]netip.Addr{a.Addr(), a.Addr6()},
			Target:     [2]netip.Addr{b.Addr(), b.Addr6()},
			ClosedPort: 9,
			Unrouted:   [2]netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:ffff::9")},
			Interface:  "b",
		}
	})
}
