// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/seed5728abee/fathom/anycast/volta"
)

// zone is a DNS server at the other end of a pipe.
type zone struct {
	records string        // in zone file form
	delay   time.Duration // before every answer
	dead    bool          // never answers
	queries atomic.Int32  // connections made; each carries one question
	wg      sync.WaitGroup
}

// resolver asks the zone, whatever the machine's own servers are.
func (z *zone) resolver(t testing.TB) *net.Resolver {
	t.Helper()
	parser := dns.NewZoneParser(strings.NewReader(z.records), ".", "")
	records := map[dns.Question][]dns.RR{}
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		h := rr.Header()
		q := dns.Question{Name: h.Name, Qtype: h.Rrtype, Qclass: h.Class}
		records[q] = append(records[q], rr)
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		z.queries.Add(1)
		here, there := net.Pipe()
		z.wg.Go(func() {
			conn := &dns.Conn{Conn: there}
			defer conn.Close()
			for {
				m, err := conn.ReadMsg()
				if err != nil {
					return
				}
				if z.dead {
					continue
				}
				time.Sleep(z.delay)
				answer := new(dns.Msg).SetReply(m)
				if answer.Answer = records[m.Question[0]]; answer.Answer == nil {
					answer.Rcode = dns.RcodeNameError
				}
				if conn.WriteMsg(answer) != nil {
					return
				}
			}
		})
		return here, nil
	}}
}

// wait waits for the server's goroutines, once lookups that were given up have ended: package net lets
// those of a name go on until each server had its time. In a bubble, that is no time.
func (z *zone) wait() {
	time.Sleep(time.Hour)
	synctest.Wait()
	z.wg.Wait()
}

// bubble is synctest.Test. Package net makes a channel of its own at the first lookup, which must not
// be inside.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	refuse := func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
	if _, err := (&net.Resolver{PreferGo: true, Dial: refuse}).LookupAddr(t.Context(), "192.0.2.1"); err == nil {
		t.Fatal("an answer from nowhere")
	}
	synctest.Test(t, f)
}

const records = `
target.test. 60 IN A 203.0.113.10
target.test. 60 IN A 203.0.113.11
only6.test. 60 IN AAAA 2001:db8::1
1.9.9.10.in-addr.arpa. 60 IN PTR ra.edge.test.
2.9.9.10.in-addr.arpa. 60 IN PTR evil\027[2J.test.
`

func TestResolveIP(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{records: records}
		r := &volta.Resolver{DNS: z.resolver(t)}
		for range 3 {
			got, err := r.ResolveIP(t.Context(), "target.test")
			if err != nil || got != target {
				t.Fatalf("%v, %v; want the first address", got, err)
			}
		}
		if n := z.queries.Load(); n != 1 {
			t.Errorf("asked %d times for one name", n)
		}
		for host, want := range map[string]string{"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1"} {
			if got, err := r.ResolveIP(t.Context(), host); err != nil || got.String() != want {
				t.Errorf("%s: %v, %v", host, got, err)
			}
		}
		for _, host := range []string{"only6.test", "nosuch.test", "2001:db8::1"} {
			_, err := r.ResolveIP(t.Context(), host)
			if e, ok := errors.AsType[*volta.ResolveError](err); !ok || e.Name != host {
				t.Errorf("%s: %v", host, err)
			}
		}
		if _, err := r.ResolveIP(t.Context(), "2001:db8::1"); !errors.Is(err, volta.ErrNoIPv4) {
			t.Error(err)
		}
		z.wait()
	})
}

func TestResolveHostname(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{records: records}
		r := &volta.Resolver{DNS: z.resolver(t)}
		for addr, want := range map[netip.Addr]string{
			r1: "ra.edge.test",
			r2: "10.9.9.2", // the name would clear the reader's screen
			r3: "10.9.9.3", // has none
		} {
			if got := r.ResolveHostname(t.Context(), addr); got != want {
				t.Errorf("%v: %q, want %q", addr, got, want)
			}
		}
		z.wait()
	})
}

// TestResolverRemembers: an answer for a while, that there is none for a shorter while.
func TestResolverRemembers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{records: records}
		r := &volta.Resolver{DNS: z.resolver(t), TTL: time.Minute, NegativeTTL: 10 * time.Second}
		ask := func(addr netip.Addr, wantAsked bool) {
			t.Helper()
			before := z.queries.Load()
			r.ResolveHostname(t.Context(), addr)
			if asked := z.queries.Load() > before; asked != wantAsked {
				t.Errorf("%v: asked the server: %v, want %v", addr, asked, wantAsked)
			}
		}
		ask(r1, true)
		ask(r3, true)
		time.Sleep(9 * time.Second)
		ask(r1, false)
		ask(r3, false)
		time.Sleep(2 * time.Second)
		ask(r1, false)
		ask(r3, true)
		time.Sleep(time.Minute)
		ask(r1, true)
		z.wait()
	})
}

// TestResolverDeadServer: it costs those who ask at once one Timeout, and those who ask next nothing.
func TestResolverDeadServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{dead: true}
		r := &volta.Resolver{DNS: z.resolver(t), Timeout: 300 * time.Millisecond}
		start := time.Now()
		for range 2 {
			names := r.ResolveHostnames(t.Context(), []netip.Addr{r1, r2, r3})
			if diff := cmp.Diff(map[string]string{"10.9.9.1": "10.9.9.1", "10.9.9.2": "10.9.9.2", "10.9.9.3": "10.9.9.3"}, text(names)); diff != "" {
				t.Error(diff)
			}
			if took := time.Since(start); took != 300*time.Millisecond {
				t.Errorf("took %v", took)
			}
		}
		if _, err := r.ResolveIP(t.Context(), "target.test"); err == nil || time.Since(start) != 600*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		z.wait()
	})
}

// TestNameResult: names come with the answer, or the answer comes without.
func TestNameResult(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{records: records}
		r := &volta.Resolver{DNS: z.resolver(t)}
		dead := &volta.Resolver{DNS: (&zone{dead: true}).resolver(t)}
		for resolver, want := range map[*volta.Resolver]string{r: "ra.edge.test", dead: "10.9.9.1"} {
			tr := newTraceroute(t, "volta x h -m 2 -q 1")
			event{1, r1, "x", 1, false}.send(t, tr)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			start := time.Now()
			result := tr.Result()
			resolver.NameResult(ctx, result)
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Errorf("took %v", took)
			}
			if got := result.Text(); !strings.Contains(got, "\n1  *\n2  "+want+" (10.9.9.1) x") {
				t.Errorf("got\n%s\nwant %s", got, want)
			}
			cancel()
		}
		z.wait()
	})
}

func text(names map[netip.Addr]string) map[string]string {
	found := map[string]string{}
	for addr, name := range names {
		found[addr.String()] = name
	}
	return found
}

// TestResolverSharesQuestions: a hundred who want to know one name are one question, and not more
// lookups run at once than are allowed.
func TestResolverSharesQuestions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{records: records, delay: 100 * time.Millisecond}
		r := &volta.Resolver{DNS: z.resolver(t), Parallel: 2}
		start := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got := r.ResolveHostname(t.Context(), r1); got != "ra.edge.test" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		if n, took := z.queries.Load(), time.Since(start); n != 1 || took != 100*time.Millisecond {
			t.Errorf("%d questions, %v", n, took)
		}
		var addrs []netip.Addr
		for i := range 6 {
			addrs = append(addrs, netip.AddrFrom4([4]byte{10, 1, 1, byte(i)}))
		}
		start = time.Now()
		r.ResolveHostnames(t.Context(), addrs)
		if took := time.Since(start); took != 300*time.Millisecond {
			t.Errorf("6 lookups, 2 at once, 100 ms each: %v", took)
		}
		z.wait()
	})
}

// TestResolverGivesUp: who has no time left does not wait, and what it asked for is there for those who have, and for
// itself the next time.
func TestResolverGivesUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{records: records, delay: 100 * time.Millisecond}
		r := &volta.Resolver{DNS: z.resolver(t)}
		hurry, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if got := r.ResolveHostname(hurry, r1); got != "10.9.9.1" || time.Since(start) != 10*time.Millisecond {
				t.Errorf("in a hurry: %s after %v", got, time.Since(start))
			}
		})
		synctest.Wait() // the one in a hurry is the one who asks
		wg.Go(func() {
			if got := r.ResolveHostname(t.Context(), r1); got != "ra.edge.test" || time.Since(start) != 100*time.Millisecond {
				t.Errorf("patient: %s after %v", got, time.Since(start))
			}
		})
		wg.Wait()
		start = time.Now()
		if got := r.ResolveHostnames(t.Context(), []netip.Addr{r1})[r1]; got != "ra.edge.test" || time.Since(start) != 0 {
			t.Errorf("the next time: %s after %v", got, time.Since(start))
		}
		z.wait()
	})
}

// TestResolverSlowServer: a server that is slower than anybody waits for, or dead, holds up who asks first, not everybody.
func TestResolverSlowServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{records: records, dead: true}
		r := &volta.Resolver{DNS: z.resolver(t)}
		ask := func() time.Duration {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			start := time.Now()
			r.ResolveHostnames(ctx, []netip.Addr{r1, r2, r3})
			return time.Since(start)
		}
		if took := ask(); took != 200*time.Millisecond {
			t.Errorf("at first: %v", took)
		}
		time.Sleep(time.Second)
		if took := ask(); took != 0 {
			t.Errorf("once the server is known to be dead: %v", took)
		}
		z.wait()
	})
}

// TestResolverBounded: a flood of names does not fill the memory, and what was asked last is still known.
func TestResolverBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{records: records}
		r := &volta.Resolver{DNS: z.resolver(t), Size: 8}
		for i := range 100 {
			if _, err := r.ResolveIP(t.Context(), fmt.Sprintf("host%d.test", i)); err == nil {
				t.Fatal("a host that does not exist")
			}
		}
		before := z.queries.Load()
		if _, err := r.ResolveIP(t.Context(), "host99.test"); err == nil {
			t.Fatal("a host that does not exist")
		}
		if z.queries.Load() != before {
			t.Error("forgot the latest answer")
		}
		for i := range 100 {
			r.ResolveIP(t.Context(), fmt.Sprintf("host%d.test", i))
		}
		if asked := z.queries.Load() - before; asked < 92 {
			t.Errorf("remembers more than 8 of 100: asked only for %d", asked)
		}
		z.wait()
	})
}
