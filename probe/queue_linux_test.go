// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/lab"
)

// A queue on the way out that holds 4 kB and drains 2 Mbit/s, and far more probes at once than it takes.
// The kernel drops what does not fit; the prober must notice, wait, and lose nothing.
//
//	a ===(tbf)=== b
func TestFullQueue(t *testing.T) {
	if _, err := exec.LookPath("tc"); err != nil {
		t.Skipf("tc (package iproute2) is not installed: %v", err)
	}
	l := lab.New(t, lab.MustParse("[host.a]\n[host.b]\n[[wire]]\nends = [\"a\", \"b\"]\n"))
	a, b := l.Host("a"), l.Host("b")
	if out, err := a.Command(t.Context(), "tc", "qdisc", "add", "dev", "b", "root", "tbf", "rate", "2mbit", "burst", "2kb", "limit", "4kb").CombinedOutput(); err != nil {
		t.Skipf("no queue of limited rate: %v: %s", err, out)
	}
	for _, mode := range []Mode{Privileged, Unprivileged} {
		t.Run(mode.String(), func(t *testing.T) {
			var p *Prober
			if err := a.Do(func() (err error) {
				p, err = New(Options{Mode: mode})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			const count = 600
			req := Request{Target: b.Addr(), Timeout: 5 * time.Second}
			for r := range p.Stream(t.Context(), count, slices.Values(slices.Repeat([]Request{req}, count))) {
				if r.Status != Replied {
					t.Fatalf("%v: %v", r.Status, r.Err)
				}
			}
			if c := p.Counters(); c.Retried == 0 {
				t.Errorf("the queue was never full: %+v", c)
			}
		})
	}
}
