// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nattest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/nat/natpmp"
)

// Miniupnpd is the daemon that most home routers run, of Debian's package miniupnpd-nftables, on a router of a lab: it opens ports of
// the kernel's NAT. It takes public external addresses only, and to it the networks for documentation are not public.
type Miniupnpd struct {
	t       testing.TB
	router  *lab.Host
	config  string
	inside  netip.Addr
	process *lab.Cmd
	output  bytes.Buffer
}

// rules make a router a NAT, with the chains that miniupnpd fills.
const rules = `table inet filter
delete table inet filter
table inet filter {
	chain forward { type filter hook forward priority 0; policy drop; jump miniupnpd; iifname %q accept; ct state established,related accept; }
	chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
	chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; oifname %q masquerade; }
	chain miniupnpd {}
	chain prerouting_miniupnpd {}
	chain postrouting_miniupnpd {}
}
`

// maxLog is how much of the daemon's log, in bytes, a failed test shows: the end of it.
const maxLog = 8 << 10

const miniupnpdConfig = `ext_ifname=%s
listening_ip=%s
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
ipv6_disable=yes
http_port=0
uuid=7c2f4d8e-3f43-4c55-9d0a-2f0b6a7d1e11
allow 1-65535 0.0.0.0/0 1-65535
`

// NewMiniupnpd makes a kernel router a NAT between two of its neighbours and starts the daemon there. It skips the test where
// the programs are not installed.
func NewMiniupnpd(t testing.TB, router *lab.Host, inside, outside string) *Miniupnpd {
	t.Helper()
	for program, debian := range map[string]string{"miniupnpd": "miniupnpd-nftables", "nft": "nftables"} {
		if _, err := find(program); err != nil {
			t.Skipf("%s is not installed (Debian: %s)", program, debian)
		}
	}
	d := &Miniupnpd{t: t, router: router, config: filepath.Join(t.TempDir(), "miniupnpd.conf"), inside: router.AddrTowards(inside, 4)}
	if err := os.WriteFile(d.config, fmt.Appendf(nil, miniupnpdConfig, outside, inside), 0o600); err != nil {
		t.Fatal(err)
	}
	d.filter(inside, outside)
	d.Start()
	t.Cleanup(func() {
		d.Kill()
		if t.Failed() {
			out := d.output.Bytes()
			t.Logf("miniupnpd: %s", out[max(0, len(out)-maxLog):])
		}
	})
	return d
}

// find looks for a program also where ordinary users have no path to.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + program)
}

func (d *Miniupnpd) command(program string, args ...string) *lab.Cmd {
	path, err := find(program)
	if err != nil {
		d.t.Fatal(err)
	}
	return d.router.Command(context.Background(), path, args...)
}

// filter loads the rules, without any port that was mapped.
func (d *Miniupnpd) filter(inside, outside string) {
	d.t.Helper()
	nft := d.command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(rules, inside, outside))
	if out, err := nft.CombinedOutput(); err != nil {
		d.t.Fatalf("nft: %v\n%s", err, out)
	}
}

// Start starts the daemon and waits until it answers.
func (d *Miniupnpd) Start() {
	d.t.Helper()
	d.process = d.command("miniupnpd", "-d", "-f", d.config, "-P", d.config+".pid")
	d.process.Stdout, d.process.Stderr = &d.output, &d.output
	if err := d.process.Start(); err != nil {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !d.answers(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("miniupnpd does not answer: %s", &d.output)
		}
	}
}

// answers tells whether NAT-PMP does. miniupnpd answers hosts of its inside only.
func (d *Miniupnpd) answers() bool {
	var ok bool
	err := d.router.Do(func() error {
		conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(d.inside, natpmp.Port)))
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := conn.Write(natpmp.Request{}.Append(nil)); err != nil {
			return err
		}
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		if err == nil {
			_, err = natpmp.ParseResponse(buf[:n])
		}
		ok = err == nil
		return err
	})
	return ok && err == nil
}

// Kill ends the daemon, without giving it time for anything, and forgets the ports that it has mapped: the router is off.
func (d *Miniupnpd) Kill() {
	d.t.Helper()
	if d.process == nil {
		return
	}
	if err := d.process.Process.Kill(); err != nil {
		d.t.Error(err)
	}
	_ = d.process.Wait() // its exit status says that it was killed
	d.process = nil
	for _, chain := range []string{"miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"} {
		if out, err := d.command("nft", "flush", "chain", "inet", "filter", chain).CombinedOutput(); err != nil {
			d.t.Errorf("nft: %v\n%s", err, out)
		}
	}
}

// Forwarded is what the NAT forwards, in the words of nft.
func (d *Miniupnpd) Forwarded() string {
	d.t.Helper()
	out, err := d.command("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd").CombinedOutput()
	if err != nil {
		d.t.Fatalf("nft: %v\n%s", err, out)
	}
	return string(out)
}
