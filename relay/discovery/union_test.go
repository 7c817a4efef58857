// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// deadline is by when a change in DNS must have come through.
const deadline = 11500 * time.Millisecond

// A runningUnion is one whose updates are kept.
type runningUnion struct {
	*Union
	t   *testing.T
	log *bytes.Buffer

	mu      sync.Mutex
	peers   []netip.AddrPort
	updates int
	own     []netip.Addr
	ownErr  error
	gone    map[netip.AddrPort]bool
}

// start runs a union in a bubble until the test ends. Its own address is 192.0.2.1.
func start(t *testing.T, s *nameServer, sources ...Source) *runningUnion {
	t.Helper()
	return startPaced(t, s, pace{lookupEvery, lookupPause, retention}, sources...)
}

func startPaced(t *testing.T, s *nameServer, p pace, sources ...Source) *runningUnion {
	t.Helper()
	r := &runningUnion{t: t, log: &bytes.Buffer{}, own: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, gone: map[netip.AddrPort]bool{}}
	o := UnionOptions{
		Sources: sources,
		Own: func(context.Context) ([]netip.Addr, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.own, r.ownErr
		},
		Gone: func(a netip.AddrPort) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.gone[a]
		},
		Log: slog.New(slog.NewTextHandler(r.log, nil)),
	}
	if s != nil {
		o.Resolver = s.resolver()
	}
	r.Union = NewUnion(o)
	r.pace = p
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- r.Run(ctx, func(peers []netip.AddrPort) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.peers = peers
			r.updates++
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
		time.Sleep(time.Minute) // what the resolver still waits for ends on its own
	})
	synctest.Wait()
	return r
}

func (r *runningUnion) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// want checks the last update; the peers are separated by space.
func (r *runningUnion) want(peers string) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := texts(r.peers); !slices.Equal(got, strings.Fields(peers)) {
		r.t.Fatalf("peers are %v, want [%s]", got, peers)
	}
}

// wantProblem checks the status of the first source; "" is none.
func (r *runningUnion) wantProblem(part string) {
	r.t.Helper()
	synctest.Wait()
	got := r.Status()[0].Problem
	if (got == "") != (part == "") || !strings.Contains(got, part) {
		r.t.Fatalf("the problem is %q, want %q", got, part)
	}
}

func (r *runningUnion) wantLogged(part string, times int) {
	r.t.Helper()
	synctest.Wait()
	if n := strings.Count(r.log.String(), part); n != times {
		r.t.Errorf("%q was logged %d times, want %d:\n%s", part, n, times, r.log)
	}
}

func texts[T interface{ String() string }](list []T) []string {
	var out []string
	for _, e := range list {
		out = append(out, e.String())
	}
	return out
}

// bubble runs a test with a clock of its own and a name server.
func bubble(t *testing.T, f func(t *testing.T, s *nameServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newNameServer(t)) })
}

func TestTasksFollowTheService(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		s.set("tasks.relay. A 192.0.2.3", "tasks.relay. A 192.0.2.1", "tasks.relay. A 192.0.2.2", "tasks.relay. AAAA 2001:db8::2")
		r := start(t, s, Tasks(7124, "relay"))
		r.want("192.0.2.2:7124 192.0.2.3:7124 [2001:db8::2]:7124")
		r.wantProblem("")

		s.set("tasks.relay. A 192.0.2.1", "tasks.relay. A 192.0.2.2", "tasks.relay. A 192.0.2.4")
		time.Sleep(deadline)
		r.want("192.0.2.2:7124 192.0.2.4:7124")

		updates := r.updates
		time.Sleep(time.Hour)
		r.want("192.0.2.2:7124 192.0.2.4:7124")
		if r.updates != updates {
			t.Errorf("%d updates without a change", r.updates-updates)
		}
		if n := s.timesAsked("tasks.relay", dns.TypeA); n < 355 || n > 365 {
			t.Errorf("asked %d times in an hour, want every 10 s", n)
		}
		if r.log.Len() > 0 {
			t.Errorf("logged without need: %s", r.log)
		}
	})
}

func TestFailureKeepsPeers(t *testing.T) {
	const name = "tasks.relay"
	both := []uint16{dns.TypeA, dns.TypeAAAA}
	tests := []struct {
		name, problem string
		fail          func(s *nameServer)
	}{
		{"no such name", "no such host", func(s *nameServer) { s.set() }},
		{"no address", "no such host", func(s *nameServer) { s.set(name + `. TXT "none"`) }},
		{"server failure", "server misbehaving", func(s *nameServer) { s.failWith(dns.RcodeServerFailure, name, both...) }},
		{"refused", "server misbehaving", func(s *nameServer) { s.failWith(dns.RcodeRefused, name, both...) }},
		{"silence", "i/o timeout", func(s *nameServer) { s.silence(name, both...) }},
		{"alone", errAlone.Error(), func(s *nameServer) { s.set(name + ". A 192.0.2.1") }},
		{"nonsense", "no usable address", func(s *nameServer) { s.set(name+". A 0.0.0.0", name+". A 224.0.0.1", name+". AAAA ff02::1") }},
		{"one family missing, the other failing", "server misbehaving", func(s *nameServer) { s.set(); s.failWith(dns.RcodeServerFailure, name, dns.TypeAAAA) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *nameServer) {
				s.set(name+". A 192.0.2.1", name+". A 192.0.2.2", name+". AAAA 2001:db8::2")
				r := start(t, s, Tasks(7124, "relay"))
				r.want("192.0.2.2:7124 [2001:db8::2]:7124")

				test.fail(s)
				time.Sleep(time.Minute)
				asked := s.timesAsked(name, dns.TypeA)
				time.Sleep(10 * time.Minute)
				r.want("192.0.2.2:7124 [2001:db8::2]:7124")
				r.wantProblem(test.problem)
				r.wantLogged("level=WARN", 1)
				// A question to a silent server lasts for 9 s, and is asked twice in that time.
				if asked = s.timesAsked(name, dns.TypeA) - asked; asked < 100 {
					t.Errorf("asked %d times in ten minutes of failure, want every 2 s", asked)
				}

				s.set(name+". A 192.0.2.1", name+". A 192.0.2.5")
				time.Sleep(deadline)
				r.want("192.0.2.5:7124")
				r.wantProblem("")
				r.wantLogged("level=INFO", 1)
				status := r.Status()[0]
				if !strings.Contains(status.LastError, test.problem) || status.LastErrorTime.IsZero() || time.Since(status.LastSuccess) > deadline {
					t.Errorf("status after the failure: %+v", status)
				}
			})
		})
	}
}

func TestFailureAtStart(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		r := start(t, s, Name(7124, "relays.example.net"))
		r.want("")
		r.wantProblem("no such host")
		time.Sleep(time.Minute)
		s.set("relays.example.net. A 192.0.2.2")
		time.Sleep(lookupPause)
		r.want("192.0.2.2:7124")
	})
}

// A service with one task is not broken.
func TestAloneAtStart(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		s.set("tasks.relay. A 192.0.2.1")
		r := start(t, s, Tasks(7124, "relay"))
		s.failWith(dns.RcodeServerFailure, "tasks.relay", dns.TypeAAAA)
		time.Sleep(time.Minute)
		r.want("")
		r.wantProblem("")
		s.set("tasks.relay. A 192.0.2.1", "tasks.relay. A 192.0.2.2")
		time.Sleep(deadline)
		r.want("192.0.2.2:7124")
	})
}

func TestHalfAnAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		const name = "relays.example.net"
		s.set(name+". A 192.0.2.2", name+". A 192.0.2.3", name+". AAAA 2001:db8::2")
		r := start(t, s, Name(7124, name))
		r.want("192.0.2.2:7124 192.0.2.3:7124 [2001:db8::2]:7124")

		s.set(name + ". A 192.0.2.2")
		s.failWith(dns.RcodeServerFailure, name, dns.TypeAAAA)
		time.Sleep(deadline)
		r.want("192.0.2.2:7124 [2001:db8::2]:7124") // of IPv6 nothing is known
		r.wantProblem("server misbehaving")

		s.set(name + ". A 192.0.2.2")
		time.Sleep(deadline)
		r.want("192.0.2.2:7124")
		r.wantProblem("")

		// Nobody misses what never was there.
		s.silence(name, dns.TypeAAAA)
		time.Sleep(time.Minute)
		r.wantProblem("")
		s.set(name+". A 192.0.2.2", name+". A 192.0.2.3")
		s.silence(name, dns.TypeAAAA)
		time.Sleep(deadline)
		r.want("192.0.2.2:7124 192.0.2.3:7124")
	})
}

func TestForget(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		s.set("a.example.net. A 192.0.2.2", "a.example.net. A 192.0.2.3")
		r := startPaced(t, s, pace{time.Minute, time.Minute, retention}, Name(7124, "a.example.net"))
		s.set()
		time.Sleep(23 * time.Hour)
		r.want("192.0.2.2:7124 192.0.2.3:7124")
		r.set(func() { r.gone[netip.MustParseAddrPort("192.0.2.3:7124")] = true })
		time.Sleep(time.Minute)
		r.want("192.0.2.2:7124")
		time.Sleep(time.Hour)
		r.want("")
		r.wantProblem("no such host")
	})
}

// A peer that an answer names stays, whatever the mesh thinks of it.
func TestGoneIsForFailures(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		s.set("a.example.net. A 192.0.2.2")
		r := start(t, s, Name(7124, "a.example.net"), Static(7124, "192.0.2.3"))
		r.set(func() {
			r.gone[netip.MustParseAddrPort("192.0.2.2:7124")] = true
			r.gone[netip.MustParseAddrPort("192.0.2.3:7124")] = true
		})
		time.Sleep(time.Hour)
		r.want("192.0.2.2:7124 192.0.2.3:7124")
	})
}

func TestHangingNameDelaysNoOther(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		s.set("good.example.net. A 192.0.2.2", "also.example.net. A 192.0.2.3")
		for _, name := range []string{"hangs.example.net", "_hangs._udp.example.net"} {
			s.silence(name, dns.TypeA, dns.TypeAAAA, dns.TypeSRV)
		}
		r := start(t, s, Name(7124, "hangs.example.net"), SRV("_hangs._udp.example.net"),
			Static(7124, "hangs.example.net", "good.example.net", "192.0.2.9"), Name(7124, "also.example.net"))
		r.want("192.0.2.2:7124 192.0.2.9:7124 192.0.2.3:7124") // at once: no time has passed
	})
}

// Together with the pause, a lookup must not take longer than the time in which changes are to come through.
func TestLookupEnds(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		s.silence("a.example.net", dns.TypeA, dns.TypeAAAA)
		start := time.Now()
		a := lookup(t.Context(), s.resolver(), "a.example.net")
		if took := time.Since(start); took > lookupTimeout || a.err == nil || !a.failed[0] || !a.failed[1] {
			t.Errorf("got %+v after %v, want an error for both families within %v", a, took, lookupTimeout)
		}
		time.Sleep(time.Minute) // as above
	})
}

func TestUnionOfSources(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		s.set("tasks.relay. A 192.0.2.4", "tasks.relay. A 192.0.2.2", "b.example.net. A 192.0.2.5", "b.example.net. A 192.0.2.1")
		r := start(t, s,
			Static(7124, "192.0.2.9", "b.example.net:7125", "192.0.2.1", "192.0.2.2", "::ffff:192.0.2.9", "127.0.0.1", "[2001:db8::1]:9"),
			Tasks(7124, "relay"))
		r.want("192.0.2.9:7124 192.0.2.5:7125 192.0.2.2:7124 [2001:db8::1]:9 192.0.2.4:7124")
		r.wantProblem("")
		want := []string{"192.0.2.2:7124", "192.0.2.4:7124"}
		if status := r.Status()[1]; status.Name != "tasks.relay" || !slices.Equal(texts(status.Peers), want) {
			t.Errorf("status %+v, want the peers %v", status, want)
		}

		// Names of the list are looked up again, too.
		s.set("tasks.relay. A 192.0.2.4", "b.example.net. A 192.0.2.6")
		time.Sleep(deadline)
		r.want("192.0.2.9:7124 192.0.2.6:7125 192.0.2.2:7124 [2001:db8::1]:9 192.0.2.4:7124")

		// An address that comes to this host is no peer any more, and one that leaves it is again.
		r.set(func() { r.own = []netip.Addr{netip.MustParseAddr("192.0.2.9")} })
		time.Sleep(deadline)
		r.want("192.0.2.6:7125 192.0.2.1:7124 192.0.2.2:7124 [2001:db8::1]:9 192.0.2.4:7124")
		r.set(func() { r.own, r.ownErr = nil, errors.New("no idea") })
		time.Sleep(time.Minute)
		r.want("192.0.2.6:7125 192.0.2.1:7124 192.0.2.2:7124 [2001:db8::1]:9 192.0.2.4:7124")
		r.wantLogged("no idea", 1)
	})
}

func TestStaticNonsense(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		r := start(t, s, Static(7124, "192.0.2.2", "192.0.2.300", "two words"))
		r.want("192.0.2.2:7124")
		r.wantProblem(`"192.0.2.300"`)
		r.wantLogged("level=WARN", 1)
	})
}

func TestSRV(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		const name = "_fathom._udp.example.net"
		s.set(name+". SRV 10 5 7124 b.example.net.", name+". SRV 0 0 7125 a.example.net.", name+". SRV 0 0 0 c.example.net.",
			"a.example.net. A 192.0.2.2", "b.example.net. AAAA 2001:db8::2", "c.example.net. A 192.0.2.3")
		r := startPaced(t, s, pace{lookupEvery, lookupPause, time.Hour}, SRV(name))
		r.want("192.0.2.2:7125 [2001:db8::2]:7124")
		r.wantProblem("")

		// The port moves.
		s.set(name+". SRV 0 0 7126 a.example.net.", "a.example.net. A 192.0.2.2")
		time.Sleep(deadline)
		r.want("192.0.2.2:7126")

		// The records are lost, the target moves.
		s.set("a.example.net. A 192.0.2.4")
		time.Sleep(deadline)
		r.want("192.0.2.4:7126")
		r.wantProblem("no such host")
		r.wantLogged("name="+name, 1) // of a target that left, there may be another

		s.set(name + ". SRV 0 0 7124 .")
		time.Sleep(deadline)
		r.want("192.0.2.4:7126")
		r.wantProblem("no usable SRV record")

		time.Sleep(time.Hour)
		r.want("")
	})
}

func TestDigest(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	addr := netip.MustParseAddr
	own := func(a netip.Addr) bool { return a == addr("192.0.2.1") }
	none := func(netip.Addr) bool { return false }
	before := []sighting{{addr("192.0.2.2"), now.Add(-time.Hour)}, {addr("2001:db8::2"), now.Add(-retention)}}
	got, err := digest(before, answer{err: errors.New("lost")}, now, retention, own, none)
	if want := before[:1]; err == nil || cmp.Diff(want, got, cmp.Comparer(func(a, b sighting) bool { return a == b })) != "" {
		t.Errorf("got %v, %v; want %v and an error", got, err, want)
	}
	// What has come to this host is not missed.
	got, err = digest(before, answer{addrs: []netip.Addr{addr("192.0.2.1")}}, now, retention, func(netip.Addr) bool { return true }, none)
	if len(got) > 0 || err != nil {
		t.Errorf("got %v, %v; want nothing", got, err)
	}
}
