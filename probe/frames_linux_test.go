// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/packet"
)

// framed sends a probe that must be answered, and tells whether it went in a frame.
func framed(t *testing.T, p *Prober, req Request) bool {
	t.Helper()
	before := p.Counters()
	if r := ask(t, p, req); r.Status != Replied {
		t.Errorf("%v to %v: %+v", req.Protocol, req.Target, r)
		return false
	}
	return published(t, p, before).Framed > before.Framed
}

// published waits for counters with one more answer than before: they are published after the result.
func published(t *testing.T, p *Prober, before Counters) Counters {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		if c := p.Counters(); c.Answered > before.Answered {
			return c
		} else if time.Now().After(deadline) {
			t.Fatalf("no counters after %+v", c)
		}
	}
}

// TestLabFramesTaken tells which probes of a real host go in frames, and which do not.
func TestLabFramesTaken(t *testing.T) {
	l := path(t)
	a, b := l.Host("a"), l.Host("b")
	p := openAt(t, a, Options{SendFrames: true})
	for v := range 2 {
		gateway := l.Host("r").AddrTowards("a", 4+2*v)
		service := [2]netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77")}[v]
		for _, tt := range []struct {
			name string
			req  Request
			want bool
		}{
			{"on the link", Request{Target: gateway}, true},
			{"through a gateway", Request{Target: addr(b, v)}, true},
			{"UDP", Request{Target: addr(b, v), Protocol: UDP, Port: 9}, true},
			{"TCP", Request{Target: addr(b, v), Protocol: TCP, Port: 9}, true},
			{"a flow", Request{Target: addr(b, v), Protocol: UDP, Flow: 3, Port: openPort}, true},
			{"of the MTU", Request{Target: addr(b, v), Size: 1500}, true},
			{"longer", Request{Target: addr(b, v), Size: 1501}, false},
			{"from a service address", Request{Target: addr(b, v), LocalAddr: service}, true},
			{"through the interface", Request{Target: addr(b, v), Interface: "r"}, true},
			{"with a mark", Request{Target: addr(b, v), Mark: 7}, false},
			{"to itself", Request{Target: addr(a, v)}, false},
			{"to the service address", Request{Target: service}, false},
			{"loopback", Request{Target: loopback(addr(a, v))}, false},
		} {
			if got := framed(t, p, tt.req); got != tt.want {
				t.Errorf("IPv%d, %s: framed %v, want %v", 4+2*v, tt.name, got, tt.want)
			}
		}
	}
}

// onLink is two hosts on a wire, and a prober on a that sends frames.
//
//	a --- b
func onLink(t *testing.T) (*lab.Lab, *Prober) {
	t.Helper()
	l := lab.New(t, lab.MustParse(`
		[host.a]
		[host.b]
		[[wire]]
		ends = ["a", "b"]
	`))
	return l, openAt(t, l.Host("a"), Options{SendFrames: true})
}

// setNeighbour changes what host a knows about host b: nothing if mac is nil.
func setNeighbour(t *testing.T, l *lab.Lab, v int, mac net.HardwareAddr, state int) {
	t.Helper()
	if err := l.Host("a").Do(func() error {
		link, err := netlink.LinkByName("b")
		if err != nil {
			return err
		}
		n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr(l.Host("b"), v).AsSlice(), State: state, HardwareAddr: mac}
		if mac == nil {
			return netlink.NeighDel(n)
		}
		return netlink.NeighSet(n)
	}); err != nil {
		t.Fatal(err)
	}
}

func macOfB(t *testing.T, l *lab.Lab) (mac net.HardwareAddr) {
	t.Helper()
	if err := l.Host("b").Do(func() error {
		link, err := netlink.LinkByName("a")
		if err == nil {
			mac = link.Attrs().HardwareAddr
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return mac
}

// TestLabFramesNeighbour takes the neighbour's address away, changes it, and makes it old.
func TestLabFramesNeighbour(t *testing.T) {
	for v, name := range []string{"IPv4", "IPv6"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, p := onLink(t)
			req := Request{Target: addr(l.Host("b"), v)}
			mac := macOfB(t, l)
			const life = time.Duration(routeLife) + 150*time.Millisecond // and what the look-up itself remembers

			// Unknown: the raw socket makes the kernel ask, and then it is known.
			setNeighbour(t, l, v, nil, 0)
			if framed(t, p, req) {
				t.Error("a frame to a neighbour whose address is not known")
			}
			time.Sleep(time.Duration(askLife) + 110*time.Millisecond)
			if !framed(t, p, req) {
				t.Error("no frame after the neighbour has been found")
			}

			// Another address: frames follow, here to nobody, after a moment.
			other := net.HardwareAddr{2, 0, 0, 9, 9, 9}
			setNeighbour(t, l, v, other, netlink.NUD_PERMANENT)
			time.Sleep(life)
			lost := req
			lost.Timeout = 200 * time.Millisecond
			if r, err := p.Probe(t.Context(), lost); err != nil || r.Status != NoReply {
				t.Errorf("to an Ethernet address that nobody has: %+v, %v", r, err)
			}
			setNeighbour(t, l, v, mac, netlink.NUD_PERMANENT)
			time.Sleep(life)
			if !framed(t, p, req) {
				t.Error("no frame after the address is right again")
			}

			// An old address: one probe makes the kernel confirm it, and the others need not wait.
			setNeighbour(t, l, v, mac, netlink.NUD_STALE)
			time.Sleep(life)
			if framed(t, p, req) {
				t.Error("the first probe to an old address went in a frame")
			}
			if !framed(t, p, req) {
				t.Error("the second probe to an old address went without a frame")
			}
			state := 0
			if err := l.Host("a").Do(func() error {
				all, err := netlink.NeighList(0, 0)
				for _, n := range all {
					if n.IP.Equal(addr(l.Host("b"), v).AsSlice()) {
						state = n.State
					}
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if state != netlink.NUD_DELAY && state != netlink.NUD_PROBE && state != netlink.NUD_REACHABLE {
				t.Errorf("the neighbour's state is %#x: the kernel is not about to confirm it", state)
			}
		})
	}
}

// TestLabFramesInterface: the interface goes down and comes back, and gets a smaller MTU.
func TestLabFramesInterface(t *testing.T) {
	l, p := onLink(t)
	req := Request{Target: l.Host("b").Addr()}
	change := func(f func(link netlink.Link) error) {
		t.Helper()
		if err := l.Host("a").Do(func() error {
			link, err := netlink.LinkByName("b")
			if err != nil {
				return err
			}
			return f(link)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if !framed(t, p, req) {
		t.Fatal("no frame")
	}
	// What was a frame's way a moment ago is none any more; the answer is the raw socket's.
	change(netlink.LinkSetDown)
	if r, err := p.Probe(t.Context(), Request{Target: req.Target, Timeout: time.Second}); err != nil || r.Status != NetUnreachable {
		t.Errorf("while the interface is down: %+v, %v", r, err)
	}
	change(netlink.LinkSetUp)
	// The link may take a second to carry something.
	for deadline := time.Now().Add(10 * time.Second); ; {
		if r, err := p.Probe(t.Context(), Request{Target: req.Target, Timeout: 200 * time.Millisecond}); err == nil && r.Status == Replied {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("after the interface came back: %+v, %v", r, err)
		}
	}
	// The neighbour's address has been lost with the link: one more probe finds it again.
	time.Sleep(time.Duration(routeLife))
	ask(t, p, req)
	time.Sleep(time.Duration(askLife))
	if !framed(t, p, req) {
		t.Error("no frame after the interface came back")
	}
	change(func(link netlink.Link) error { return netlink.LinkSetMTU(link, 1400) })
	long := Request{Target: req.Target, Protocol: UDP, Port: 9, Size: 1450} // to which the answer is short
	if framed(t, p, long) {
		t.Error("a frame longer than the MTU")
	}
	if !framed(t, p, req) {
		t.Error("no frame of 64 bytes")
	}
}

// TestLabFramesCapture compares, on the wire, what the kernel's IP output sends and what frames are.
func TestLabFramesCapture(t *testing.T) {
	l := path(t)
	a := l.Host("a")
	var conn *rawio.FrameConn
	if err := a.Do(func() (err error) {
		conn, err = rawio.OpenFrameConn("r", rawio.FrameOptions{Outgoing: true})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// next is the next frame of the protocol to the target.
	next := func(dst netip.Addr, proto Protocol) []byte {
		t.Helper()
		frames := make([]rawio.Frame, 1)
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
			if n, err := conn.Receive(frames); err != nil {
				t.Fatal(err)
			} else if n == 0 {
				time.Sleep(time.Millisecond)
				continue
			}
			f := bytes.Clone(frames[0].Data)
			v := ipVersion(dst)
			if len(f) < 14+40 || f[14]>>4 != byte(4+2*v) {
				continue
			}
			d := dissect(f[14:])
			reset := d.proto == packet.ProtocolTCP && packet.TCP(d.upper).Flags() != packet.TCPSyn // the kernel's
			if d.dst == dst && d.proto == protocolNumbers[v][proto] && !reset {
				return f
			}
		}
		t.Fatalf("no frame to %v", dst)
		return nil
	}
	for v := range 2 {
		to := addr(l.Host("b"), v)
		for _, proto := range protocols {
			for _, req := range []Request{{}, {TTL: 9, TOS: 0x20, Size: 1200, Pattern: 0x5a}, {Flow: 7}} {
				req.Target, req.Protocol, req.Timeout = to, proto, 5*time.Second
				var sent [2][]byte
				for k, frames := range []bool{false, true} {
					p := openAt(t, a, Options{Mode: Privileged, ICMPID: 5000, SendFrames: frames})
					ask(t, p, req)
					sent[k] = next(to, proto)
					if c := published(t, p, Counters{}); (c.Framed == 1) != frames {
						t.Errorf("frames %v: %+v", frames, c)
					}
					p.Close()
				}
				if !bytes.Equal(sent[0][:14], sent[1][:14]) {
					t.Errorf("%v over IPv%d: Ethernet headers %x by the kernel, %x in frames", proto, 4+2*v, sent[0][:14], sent[1][:14])
				}
				if k, f := unlike(sent[0][14:]), unlike(sent[1][14:]); !bytes.Equal(k, f) {
					t.Errorf("%v over IPv%d:\nkernel %x\nframes %x", proto, 4+2*v, k, f)
				}
			}
		}
	}
}
