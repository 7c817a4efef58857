// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/nat/punch"
)

// TestMain also fails when some goroutine outlives the tests.
func TestMain(m *testing.M) {
	code := lab.Main(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// labHost is the network of a host in a lab.
type labHost struct{ h *lab.Host }

var _ punch.Network = labHost{}

func (l labHost) ListenUDP(at netip.AddrPort) (c net.PacketConn, err error) {
	err = l.h.Do(func() (err error) { c, err = punch.System.ListenUDP(at); return err })
	return c, err
}

func (l labHost) DialTCP(ctx context.Context, local, remote netip.AddrPort) (c net.Conn, err error) {
	err = l.h.Do(func() (err error) { c, err = punch.System.DialTCP(ctx, local, remote); return err })
	return c, err
}

func (l labHost) Addrs() (addrs []netip.Addr, err error) {
	err = l.h.Do(func() (err error) { addrs, err = punch.System.Addrs(); return err })
	return addrs, err
}

// labPeer starts a peer on a host, with one transport or both.
func labPeer(t *testing.T, h *lab.Host, at netip.AddrPort, only punch.Proto) *peer {
	t.Helper()
	var network punch.Network = labHost{h}
	if only == punch.UDP {
		network = withoutTCP{network}
	}
	var l net.Listener
	if err := h.Do(func() (err error) { l, err = punch.ListenTCP(t.Context(), at); return err }); err != nil {
		t.Fatal(err)
	}
	p, err := punch.New(punch.Options{Listen: at, Network: network})
	if err != nil {
		t.Fatal(err)
	}
	x := start(t, p, l)
	t.Cleanup(x.close)
	return x
}

// labObserve asks two public peers, over UDP and over TCP, which address they see.
func labObserve(t *testing.T, l *lab.Lab, x *peer, host string, servers [2]*peer, only punch.Proto) (seen []punch.Candidate) {
	t.Helper()
	if only != punch.UDP {
		for _, s := range servers {
			c, err := labHost{l.Host(host)}.DialTCP(t.Context(), ap("0.0.0.0:4001"), s.p.UDPAddr())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte("?"))
			there := <-s.others
			seen = append(seen, punch.Candidate{Proto: punch.TCP, Kind: punch.Observed, Addr: there.RemoteAddr().(*net.TCPAddr).AddrPort()})
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
			there.Close()
		}
	}
	if only != punch.TCP {
		b, err := x.p.Observe(t.Context(), servers[0].p.UDPAddr(), servers[1].p.UDPAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: mapping %v, seen as %v, step %d", host, b.Mapping, b.Mapped, b.Step)
	}
	return seen
}

// labPunch punches between the hosts a and b of a lab, over one transport or both, and prints how long it took.
func labPunch(t *testing.T, l *lab.Lab, only punch.Proto, ipv6, want bool) {
	t.Helper()
	var servers [2]*peer
	for i, s := range []string{"203.0.113.80:4001", "203.0.113.81:4001"} {
		servers[i] = labPeer(t, l.Host("server"), ap(s), 0)
	}
	at := ap("0.0.0.0:4001")
	if only == 0 {
		at = ap("[::]:4001")
	}
	a := labPeer(t, l.Host("a"), at, only)
	b := labPeer(t, l.Host("b"), at, only)
	begin := time.Now()
	knownA := labObserve(t, l, a, "a", servers, only)
	knownB := labObserve(t, l, b, "b", servers, only)
	observed := time.Since(begin)
	mine, toB := a.offer(knownA...)
	theirs, toA := b.offer(knownB...)
	for _, o := range []*punch.Offer{&mine, &toB, &theirs, &toA} {
		o.Candidates = slices.DeleteFunc(o.Candidates, func(c punch.Candidate) bool {
			if c.Addr.Addr().Is6() { // the NATs of the lab leave IPv6 alone: it would always do
				return !ipv6
			}
			return only == punch.TCP && c.Proto == punch.UDP
		})
	}
	timeout := 3 * time.Second // for a busy machine
	if !want {
		timeout = time.Second
	}
	r, errs := attempt(t, a, b, 2*time.Millisecond, mine, toB, theirs, toA, timeout)
	if !want {
		for _, err := range errs {
			if !errors.Is(err, punch.ErrFailed) {
				t.Errorf("punched between NATs that cannot be passed, or failed otherwise: %v", err)
			}
		}
		return
	}
	if errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
	t.Logf("own addresses after %v, connected over %v after %v and %v: %v, %v", observed.Round(time.Millisecond), r[0].How,
		r[0].Took.Round(100*time.Microsecond), r[1].Took.Round(100*time.Microsecond), r[0].Remote, r[1].Remote)
	if took := observed + r[0].Took; took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	talk(t, r)
}

// Two homes, and a host with two addresses that tells what it sees.
//
//	a --- n1 -----+        +----- n2 --- b
//	              +-- isp -+
//	                   |
//	                server
const labWires = `
[host.a]
[host.b]
[host.server]
addresses = ["203.0.113.80/32", "203.0.113.81/32"]
[router.isp]
[[wire]]
ends = ["n1", "a"]
[[wire]]
ends = ["n2", "b"]
[[wire]]
ends = ["isp", "n1"]
delay = "5ms"
[[wire]]
ends = ["isp", "n2"]
delay = "5ms"
[[wire]]
ends = ["isp", "server"]
`

// NATs in user space, real sockets and the kernel's TCP.
func TestLab(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	nat := func(name, kind string) string {
		return fmt.Sprintf("[nat.%s]\noutside = \"isp\"\n%s\n", name, kind)
	}
	const (
		portRestricted = `type = "port-restricted"`
		cone           = "type = \"full-cone\"\nports = \"random\""
		sequential     = "type = \"symmetric\"\nports = \"sequential\""
		random         = "type = \"symmetric\"\nports = \"random\""
	)
	for _, c := range []struct {
		name, a, b string
		only       punch.Proto
		want       bool
	}{
		{"tcp/port-restricted/port-restricted", portRestricted, portRestricted, punch.TCP, true},
		{"udp/port-restricted/port-restricted", portRestricted, portRestricted, punch.UDP, true},
		{"tcp/symmetric-random/full-cone", random, cone, punch.TCP, true},
		{"both/port-restricted/symmetric-sequential", portRestricted, sequential, 0, true},
		{"udp/symmetric-sequential/symmetric-sequential", sequential, sequential, punch.UDP, true},
		{"both/symmetric-random/symmetric-random", random, random, 0, false},
		{"both/ipv6", random, random, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t, lab.MustParse(nat("n1", c.a)+nat("n2", c.b)+labWires))
			labPunch(t, l, c.only, c.name == "both/ipv6", c.want)
		})
	}
}

// The kernel's own NAT, as most home routers have it: what comes uninvited is dropped, or refused.
func TestLabNetfilter(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed")
	}
	const rules = `
table ip home {
	chain translate {
		type nat hook postrouting priority srcnat;
		oifname "isp" masquerade %s
	}
	chain incoming {
		type filter hook input priority filter;
		iifname "isp" ct state { new, invalid } %s
	}
	chain through {
		type filter hook forward priority filter;
		iifname "isp" ct state { new, invalid } drop
	}
}`
	for _, c := range []struct {
		name, masquerade, uninvited string // of n2; n1 keeps ports and drops
		only                        punch.Proto
		want                        bool
	}{
		{"tcp/drop", "", "drop", punch.TCP, true},
		{"udp/drop", "", "drop", punch.UDP, true},
		{"tcp/reject", "", "reject with tcp reset", punch.TCP, true},
		{"udp/reject", "", "reject", punch.UDP, true},
		{"both/fully-random", "fully-random", "drop", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t, lab.MustParse("[router.n1]\n[router.n2]\n"+labWires))
			uninvited := c.uninvited
			if c.only == punch.TCP && uninvited != "drop" {
				uninvited = "meta l4proto tcp " + uninvited
			}
			nft(t, l.Host("n1"), fmt.Sprintf(rules, "", "drop"))
			nft(t, l.Host("n2"), fmt.Sprintf(rules, c.masquerade, uninvited))
			labPunch(t, l, c.only, false, c.want)
		})
	}
}

func nft(t *testing.T, h *lab.Host, rules string) {
	t.Helper()
	if out, err := h.Command(t.Context(), "nft", rules).CombinedOutput(); err != nil {
		t.Fatalf("nft on %s: %v\n%s", h.Name(), err, out)
	}
}
