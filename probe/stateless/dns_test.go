// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/seed5728abee/fathom/packet"
)

// respondWith gives the server's response to a probe after edit has changed it.
func respondWith(t *testing.T, probe []byte, edit func(*dns.Msg)) []byte {
	t.Helper()
	var r dns.Msg
	u := packet.UDP(transport(probe))
	if err := r.Unpack(respond(t, u.Payload())); err != nil {
		t.Fatal(err)
	}
	edit(&r)
	b, err := r.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = packet.AppendUDP(nil, netip.AddrPortFrom(target[0], 53), netip.AddrPortFrom(source[0], u.SrcPort()), b); err != nil {
		t.Fatal(err)
	}
	return wrap(t, 4, packet.ProtocolUDP, target[0], source[0], b)
}

func TestDNSResponses(t *testing.T) {
	c, table := setup(t, testConfig(DNS))
	p := testProbe(4)
	pkt := build(t, c, p)
	good := map[string]func(*dns.Msg){
		"as it is":   func(*dns.Msg) {},
		"refused":    func(r *dns.Msg) { r.Rcode = dns.RcodeRefused },
		"upper case": func(r *dns.Msg) { r.Question[0].Name = strings.ToUpper(r.Question[0].Name) },
		"answered": func(r *dns.Msg) {
			r.Rcode = dns.RcodeSuccess
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: target[0].AsSlice()}}
		},
	}
	for what, edit := range good {
		var a Answer
		if _, err := table.Parse4(respondWith(t, pkt, edit), &a); err != nil || a.Number != p.Number || a.Sent != p.Time || !a.Strong {
			t.Errorf("%s: %+v, %v", what, a, err)
		}
	}
	bad := map[string]func(*dns.Msg){
		"query":         func(r *dns.Msg) { r.Response = false },
		"no question":   func(r *dns.Msg) { r.Question = nil },
		"another type":  func(r *dns.Msg) { r.Question[0].Qtype = dns.TypeAAAA },
		"another class": func(r *dns.Msg) { r.Question[0].Qclass = dns.ClassCHAOS },
		"another name":  func(r *dns.Msg) { r.Question[0].Name = "www.example.com." },
		"another zone":  func(r *dns.Msg) { r.Question[0].Name = strings.Replace(r.Question[0].Name, "com", "net", 1) },
		"number":        func(r *dns.Msg) { r.Question[0].Name = "002b" + r.Question[0].Name[4:] },
		"time":          func(r *dns.Msg) { r.Question[0].Name = r.Question[0].Name[:19] + "f" + r.Question[0].Name[20:] },
		"check":         func(r *dns.Msg) { r.Question[0].Name = r.Question[0].Name[:20] + "0000" + r.Question[0].Name[24:] },
		"no digits":     func(r *dns.Msg) { r.Question[0].Name = "002x" + r.Question[0].Name[4:] },
	}
	for what, edit := range bad {
		refuse(t, what, table, respondWith(t, pkt, edit), ErrForged)
	}
}

func TestCHAOSResponses(t *testing.T) {
	c, table := setup(t, testConfig(CHAOS))
	pkt := build(t, c, testProbe(4))
	options := func(r *dns.Msg, keep uint16) {
		opt := r.IsEdns0()
		var kept []dns.EDNS0
		for _, o := range opt.Option {
			if o.Option() == keep {
				kept = append(kept, o)
			}
		}
		opt.Option = kept
	}
	tests := []struct {
		name   string
		edit   func(*dns.Msg)
		text   string
		strong bool
	}{
		{"as it is", func(*dns.Msg) {}, "ams1.ns.example.net", true},
		{"upper case", func(r *dns.Msg) { r.Question[0].Name = "HOSTNAME.BIND." }, "ams1.ns.example.net", true},
		{"no cookie", func(r *dns.Msg) { options(r, dns.EDNS0NSID) }, "ams1.ns.example.net", false},
		{"no EDNS", func(r *dns.Msg) { r.Extra = nil }, "ams1.ns.example.net", false},
		{"NSID only", func(r *dns.Msg) { r.Answer = nil; options(r, dns.EDNS0NSID) }, "nsid-1", false},
		{"refused", func(r *dns.Msg) { r.Rcode, r.Answer, r.Extra = dns.RcodeRefused, nil, nil }, "", false},
		{"escape sequence", func(r *dns.Msg) { r.Answer[0].(*dns.TXT).Txt = []string{"\x1b[2J"} }, "1b5b324a", true},
		{"others before", func(r *dns.Msg) {
			a := &dns.A{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: target[0].AsSlice()}
			r.Answer = append([]dns.RR{a}, r.Answer...)
			r.Extra = append([]dns.RR{a}, r.Extra...)
		}, "ams1.ns.example.net", true},
		{"very many", func(r *dns.Msg) {
			for range 100 {
				r.Answer = append(r.Answer, r.Answer[0])
			}
		}, "ams1.ns.example.net", false}, // the cookie is behind what is looked at
	}
	for _, tt := range tests {
		var a Answer
		_, err := table.Parse4(respondWith(t, pkt, tt.edit), &a)
		if err != nil || a.Text != tt.text || a.Strong != tt.strong || a.Number != 42 || a.Sent != 0 {
			t.Errorf("%s: %+v, %v", tt.name, a, err)
		}
	}
	bad := map[string]func(*dns.Msg){
		"query":         func(r *dns.Msg) { r.Response = false },
		"identifier":    func(r *dns.Msg) { r.Id++ },
		"no question":   func(r *dns.Msg) { r.Question = nil },
		"another name":  func(r *dns.Msg) { r.Question[0].Name = "version.bind." },
		"another type":  func(r *dns.Msg) { r.Question[0].Qtype = dns.TypeA },
		"another class": func(r *dns.Msg) { r.Question[0].Qclass = dns.ClassINET },
		"cookie": func(r *dns.Msg) {
			options(r, dns.EDNS0COOKIE)
			r.IsEdns0().Option[0].(*dns.EDNS0_COOKIE).Cookie = "00112233445566770123456789abcdef"
		},
		"short cookie": func(r *dns.Msg) {
			options(r, dns.EDNS0COOKIE)
			r.IsEdns0().Option[0].(*dns.EDNS0_COOKIE).Cookie = "00"
		},
	}
	for what, edit := range bad {
		refuse(t, what, table, respondWith(t, pkt, edit), ErrForged)
	}
}
