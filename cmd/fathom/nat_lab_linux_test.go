// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/nat/nattest"
)

// TestNATMapAtMiniupnpd: the program as a user runs it, at the daemon of most home routers. SIGTERM removes the mapping.
//
//	a -- r -- wan        r = 11.22.33.1: what miniupnpd takes for public
func TestNATMapAtMiniupnpd(t *testing.T) {
	if !insideLab(t) {
		return
	}
	l := lab.New(t, lab.MustParse(`
		[host.a]
		[host.wan]
		[router.r]
		[[wire]]
		ends = ["r", "a"]
		subnets = ["192.168.77.0/24"]
		[[wire]]
		ends = ["r", "wan"]
		addresses = [["11.22.33.1/24"], ["11.22.33.2/24"]]
	`))
	daemon := nattest.NewMiniupnpd(t, l.Host("r"), "a", "wan")
	for _, method := range []string{"auto", "upnp", "natpmp", "pcp"} {
		c := l.Host("a").Command(t.Context(), "fathom", "nat", "map", "4100", "--protocol", "both", "--method", method)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		c.Stderr = &said
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "11.22.33.1:4100/tcp+udp leads to 192.168.77.2:4100 (") {
			t.Errorf("%s: printed %q (%v), said %s", method, line, err, &said)
		}
		if got := daemon.Forwarded(); strings.Count(got, "192.168.77.2:4100") != 2 {
			t.Errorf("%s: the router has %s", method, got)
		}
		if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(r)
		if err := c.Wait(); err != nil || string(rest) != "11.22.33.1:4100/tcp+udp is closed\n" {
			t.Errorf("%s: %v, printed %q, said %s", method, err, rest, &said)
		}
		if got := daemon.Forwarded(); strings.Contains(got, "4100") {
			t.Errorf("%s: after SIGTERM the router has %s", method, got)
		}
	}
}
