// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"github.com/seed5728abee/fathom/trace"
)

// nameServer answers from a table and counts the questions.
type nameServer struct {
	records   map[string]string // "name TYPE" -> record data
	questions atomic.Int32
}

func (s *nameServer) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	s.questions.Add(1)
	m := new(dns.Msg).SetReply(req)
	q := req.Question[0]
	found := false
	for data := range strings.SplitSeq(s.records[q.Name+" "+dns.TypeToString[q.Qtype]], "\n") {
		if data != "" {
			rr, err := dns.NewRR(q.Name + " 60 IN " + dns.TypeToString[q.Qtype] + " " + data)
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
			found = true
		}
	}
	if !found {
		m.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(m)
}

// resolver starts a name server on loopback and gives a resolver that asks it.
func resolver(t *testing.T, records map[string]string) (*net.Resolver, *nameServer) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{records: records}
	server := &dns.Server{PacketConn: conn, Handler: s}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "udp", conn.LocalAddr().String())
		},
	}, s
}

var sameAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestOriginDNS(t *testing.T) {
	r, server := resolver(t, map[string]string{
		"8.8.8.8.origin.asn.cymru.com. TXT": `"64496 64511 | 8.8.0.0/16 | us | arin | 1992-12-01"` + "\n" +
			`"64497 | 8.8.8.0/24 | NZ | apnic | 2011-08-10"`,
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.1.0.0.1.0.0.2.origin6.asn.cymru.com. TXT": `"64498 | 2001:13::/32 | FI | ripencc | "`,
		"9.9.9.9.origin.asn.cymru.com. TXT":      `"not | what | was | asked"`,
		"7.7.7.7.origin.asn.cymru.com. TXT":      `"64499 | 192.0.2.0/24 | XX | other network | "`,
		"6.6.6.6.origin.asn.cymru.com. TXT":      `"64500 | 6.0.0.0/8 | \027[31m | evil\027[0m | "`,
		"1.2.0.10.origin.example.net. TXT":       `"64501 | 10.0.0.0/8 | | mine | "`,
		"1.2.168.192.origin.asn.cymru.com. TXT":  `"64502 | 192.168.0.0/16 | | nobody must ask | "`,
		"1.1.64.100.origin.asn.cymru.com. TXT":   `"64502 | 100.64.0.0/10 | | nobody must ask | "`,
		"1.2.254.169.origin.asn.cymru.com. TXT":  `"64502 | 169.254.0.0/16 | | nobody must ask | "`,
		"1.113.0.203.origin.asn.cymru.com. TXT":  `"64502 | 203.0.113.0/24 | | nobody must ask | "`,
		"1.0.0.127.origin.asn.cymru.com. TXT":    `"64502 | 127.0.0.0/8 | | nobody must ask | "`,
		"255.255.255.255.origin.asn.cymru.com. ": "",
	})
	s := &trace.OriginDNS{Resolver: r}
	for _, tt := range []struct {
		addr string
		want trace.Annotation
	}{
		{"8.8.8.8", trace.Annotation{ASN: 64497, Prefix: netip.MustParsePrefix("8.8.8.0/24"), Country: "NZ", Registry: "apnic", Allocated: "2011-08-10"}},
		{"2001:13::1", trace.Annotation{ASN: 64498, Prefix: netip.MustParsePrefix("2001:13::/32"), Country: "FI", Registry: "ripencc"}},
		{"9.9.9.9", trace.Annotation{}},
		{"7.7.7.7", trace.Annotation{}},
		{"6.6.6.6", trace.Annotation{ASN: 64500, Prefix: netip.MustParsePrefix("6.0.0.0/8"), Registry: "evil?[0m"}},
		{"5.5.5.5", trace.Annotation{}},
	} {
		var got trace.Annotation
		if err := s.Annotate(t.Context(), addr(tt.addr), &got); err != nil {
			t.Errorf("%s: %v", tt.addr, err)
		}
		if diff := cmp.Diff(tt.want, got, sameAddrs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.addr, diff)
		}
	}
	before := server.questions.Load()
	for _, private := range []string{"192.168.2.1", "100.64.1.1", "169.254.2.1", "203.0.113.1", "127.0.0.1", "fe80::1", "fd00::1", "2001:db8::1", "224.0.0.1", "240.0.0.1"} {
		var got trace.Annotation
		if err := s.Annotate(t.Context(), addr(private), &got); err != nil || got != (trace.Annotation{}) {
			t.Errorf("%s: %+v, %v", private, got, err)
		}
	}
	if after := server.questions.Load(); after != before {
		t.Errorf("%d questions about private addresses", after-before)
	}
	var got trace.Annotation
	own := &trace.OriginDNS{Resolver: r, Zone4: "origin.example.net", AskPrivate: true}
	if err := own.Annotate(t.Context(), addr("10.0.2.1"), &got); err != nil || got.ASN != 64501 || got.Registry != "mine" {
		t.Errorf("own zone: %+v, %v", got, err)
	}
}

func TestNames(t *testing.T) {
	r, server := resolver(t, map[string]string{
		"8.8.8.8.in-addr.arpa. PTR":   "router.example.net.",
		"1.0.77.10.in-addr.arpa. PTR": "inside.example.net.",
	})
	name := func(s *trace.Names, a string) string {
		var got trace.Annotation
		_ = s.Annotate(t.Context(), addr(a), &got)
		return got.Name
	}
	if got := name(&trace.Names{Resolver: r}, "8.8.8.8"); got != "router.example.net" {
		t.Errorf("8.8.8.8 is %q", got)
	}
	before := server.questions.Load()
	if got := name(&trace.Names{Resolver: r}, "10.77.0.1"); got != "" || server.questions.Load() != before {
		t.Errorf("10.77.0.1 is %q; a name server was asked: %v", got, server.questions.Load() != before)
	}
	if got := name(&trace.Names{Resolver: r, AskPrivate: true}, "10.77.0.1"); got != "inside.example.net" {
		t.Errorf("when asked for, 10.77.0.1 is %q", got)
	}
}

// The files in testdata were made with mmdbwriter: 192.0.2.0/24 is AS64496 "Example One" in NZ, but
// 192.0.2.128/25 is AS64497 "Example Two"; 2001:db8::/32 is AS64498 "Example Six" in FI.
func TestOpenFile(t *testing.T) {
	text := t.TempDir() + "/prefixes.csv"
	err := os.WriteFile(text, []byte("192.0.2.0/24,64496,Example One,NZ\n192.0.2.128/25,64497,Example Two,NZ\n2001:db8::/32,64498,Example Six,FI\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, files := range [][]string{{"testdata/country.mmdb", "testdata/asn.mmdb"}, {text}} {
		var sources []trace.Source
		for _, name := range files {
			f, err := trace.OpenFile(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			sources = append(sources, f)
		}
		n := trace.NewAnnotator(sources...)
		defer n.Close()
		for a, want := range map[string]trace.Annotation{
			"192.0.2.1":          {ASN: 64496, ASName: "Example One", Prefix: netip.MustParsePrefix("192.0.2.0/25"), Country: "NZ"},
			"192.0.2.200":        {ASN: 64497, ASName: "Example Two", Prefix: netip.MustParsePrefix("192.0.2.128/25"), Country: "NZ"},
			"2001:db8::1":        {ASN: 64498, ASName: "Example Six", Prefix: netip.MustParsePrefix("2001:db8::/32"), Country: "FI"},
			"::ffff:192.0.2.200": {ASN: 64497, ASName: "Example Two", Prefix: netip.MustParsePrefix("192.0.2.128/25"), Country: "NZ"},
			"198.51.100.1":       {},
		} {
			if len(files) == 1 && a == "192.0.2.1" {
				want.Prefix = netip.MustParsePrefix("192.0.2.0/24") // MaxMind's format splits networks
			}
			if diff := cmp.Diff(want, n.Wait(t.Context(), addr(a)), sameAddrs); diff != "" {
				t.Errorf("%v: %s (-want +got):\n%s", files, a, diff)
			}
		}
	}
	for _, name := range []string{"testdata/none.mmdb", "testdata/none.txt", "annotate_test.go"} {
		if f, err := trace.OpenFile(name); err == nil {
			f.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

func TestReadPrefixes(t *testing.T) {
	p, err := trace.ReadPrefixes(strings.NewReader(`network,asn,name,country
# RouteViews
192.0.2.0	24	64496_64511
198.51.100.0/24 AS64497

2001:db8::/32,AS64498,"Example, Inc.",fi
203.0.113.0/24,,,NZ
192.0.2.77/32, 64499
`))
	if err != nil {
		t.Fatal(err)
	}
	if p.Len() != 5 {
		t.Errorf("%d networks, want 5", p.Len())
	}
	for a, want := range map[string]trace.Annotation{
		"192.0.2.1":    {ASN: 64496, Prefix: netip.MustParsePrefix("192.0.2.0/24")},
		"192.0.2.77":   {ASN: 64499, Prefix: netip.MustParsePrefix("192.0.2.77/32")},
		"198.51.100.9": {ASN: 64497, Prefix: netip.MustParsePrefix("198.51.100.0/24")},
		"2001:db8::9":  {ASN: 64498, ASName: "Example, Inc.", Prefix: netip.MustParsePrefix("2001:db8::/32"), Country: "FI"},
		"203.0.113.5":  {Country: "NZ"},
		"10.0.0.1":     {},
	} {
		var got trace.Annotation
		if err := p.Annotate(t.Context(), addr(a), &got); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got, sameAddrs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", a, diff)
		}
	}
	for text, want := range map[string]string{
		"192.0.2.0/24":                              "line 1: one field only",
		"192.0.2.0/24,64496\n192.0.2.0/99,1":        "line 2: ",
		"192.0.2.0/24,4294967296":                   "line 1: autonomous system \"4294967296\": value out of range",
		"192.0.2.0/24,x":                            "line 1: autonomous system \"x\": invalid syntax",
		"::ffff:192.0.2.0/120,1":                    "line 1: network ::ffff:192.0.2.0/120: write it as IPv4",
		"192.0.2.0/24,\"x":                          "line 1: ",
		"192.0.2.0/24," + strings.Repeat("1", 5000): "token too long",
	} {
		_, err := trace.ReadPrefixes(strings.NewReader(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
		if want != "token too long" && !errors.Is(err, trace.ErrPrefixFile) {
			t.Errorf("%.40q: %v is not ErrPrefixFile", text, err)
		}
	}
}

func FuzzReadPrefixes(f *testing.F) {
	f.Add("192.0.2.0\t24\t64496_64511\n198.51.100.0/24 AS64497\n")
	f.Add("network,asn\n2001:db8::/32,AS64498,\"Example, Inc.\",fi\n")
	f.Add("# none\n\n::/0,,,NZ\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := trace.ReadPrefixes(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
			var got trace.Annotation
			if err := p.Annotate(t.Context(), addr(a), &got); err != nil {
				t.Fatal(err)
			}
			if got.Prefix.IsValid() && !got.Prefix.Contains(addr(a)) {
				t.Fatalf("%s is in %s", a, got.Prefix)
			}
			if strings.ContainsAny(got.ASName, "\x00\x1b\n\r\x7f") {
				t.Fatalf("name %q has control characters", got.ASName)
			}
		}
	})
}

// slow is a source that takes a second for each address.
type slow struct{ asked, working, most atomic.Int32 }

func (s *slow) Annotate(ctx context.Context, _ netip.Addr, a *trace.Annotation) error {
	s.asked.Add(1)
	s.most.Store(max(s.most.Load(), s.working.Add(1)))
	defer s.working.Add(-1)
	select {
	case <-time.After(time.Second):
		a.Name = "slow.example.net"
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestAnnotator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{}
		n := trace.NewAnnotator(s)
		defer n.Close()
		a := addr("8.8.8.8")
		start := time.Now()
		if _, complete := n.Get(a); complete || time.Since(start) != 0 {
			t.Error("Get waited, or knew at once")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*ms)
		defer cancel()
		if got := n.Wait(ctx, a); got != (trace.Annotation{}) || time.Since(start) != 100*ms {
			t.Errorf("Wait gave %+v after %v", got, time.Since(start))
		}
		if got := n.Wait(t.Context(), a); got.Name != "slow.example.net" || time.Since(start) != time.Second {
			t.Errorf("Wait gave %+v after %v", got, time.Since(start))
		}
		if got, complete := n.Get(a); !complete || got.Name != "slow.example.net" || s.asked.Load() != 1 {
			t.Errorf("Get gave %+v, %v after %d look-ups", got, complete, s.asked.Load())
		}

		// Many addresses: no more than 16 at once. Closing ends those under way.
		for i := range byte(64) {
			n.Get(netip.AddrFrom4([4]byte{8, 8, 4, i}))
		}
		time.Sleep(1500 * ms)
		if most := s.most.Load(); most != 16 {
			t.Errorf("%d look-ups at once, want 16", most)
		}
		before := time.Now()
		n.Close()
		if time.Since(before) != 0 {
			t.Errorf("Close took %v", time.Since(before))
		}
		if got, complete := n.Get(addr("9.9.9.9")); !complete || got != (trace.Annotation{}) {
			t.Errorf("after Close: %+v, %v", got, complete)
		}
		n.Close()

		// What is known is asked again after an hour.
		n = trace.NewAnnotator(s)
		defer n.Close()
		n.Wait(t.Context(), a)
		asked := s.asked.Load()
		time.Sleep(59 * time.Minute)
		n.Wait(t.Context(), a)
		if s.asked.Load() != asked {
			t.Error("asked again within an hour")
		}
		time.Sleep(time.Minute)
		n.Wait(t.Context(), a)
		if s.asked.Load() != asked+1 {
			t.Error("not asked again after an hour")
		}
	})
}
