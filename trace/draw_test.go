// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
	"github.com/seed5728abee/fathom/trace/tracetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", file, diff)
	}
}

// gallery is a graph with one of everything.
func gallery(t *testing.T) (g *trace.Graph) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		net, at := layers(3, false, 1, 2, 4, 1, 1, 2)
		at[1][1].MPLS = []packet.Label{{Label: 16001, TC: 5, TTL: 1}, {Label: 24000, Bottom: true, TTL: 1}}
		at[2][3].Silent = true
		at[4][0].Silent = true
		at[3][0].Delay = 3 * ms
		at[3][0].Jitter = ms
		g = multipath(t, net, trace.MultipathOptions{})
	})
	return g
}

func about(a netip.Addr) trace.Annotation {
	switch a.String() {
	case "10.0.1.1":
		return trace.Annotation{Name: "gateway.example.net"}
	case "10.0.2.2":
		return trace.Annotation{Name: `<"evil">&name` + "\x1b[31m", ASN: 64496, ASName: "Example -->", Country: "NZ"}
	case "192.0.2.1":
		return trace.Annotation{Name: "www.example.org", ASN: 64511, Country: "FI"}
	}
	return trace.Annotation{}
}

func TestDraw(t *testing.T) {
	g := gallery(t)
	for _, format := range []trace.Format{trace.SVG, trace.DOT, trace.Mermaid} {
		var b strings.Builder
		if err := g.Draw(&b, format, about); err != nil {
			t.Fatal(err)
		}
		golden(t, "gallery."+format.String(), b.String())
		if strings.ContainsRune(b.String(), '\x1b') {
			t.Errorf("%v: a control character got through", format)
		}
	}
}

// The picture is well-formed XML and refers to nothing outside.
func TestSVGIsWellFormed(t *testing.T) {
	var b strings.Builder
	if err := gallery(t).Draw(&b, trace.SVG, about); err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader(b.String()))
	texts := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok {
			if e.Name.Local == "text" {
				texts++
			}
			for _, a := range e.Attr {
				if strings.Contains(a.Name.Local, "href") {
					t.Errorf("%s refers to %s", e.Name.Local, a.Value)
				}
			}
		}
	}
	if texts < 30 {
		t.Errorf("%d texts", texts)
	}
}

func TestDrawPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes := tracetest.Chain(1, 4, ms)
		nodes[1].Silent = true
		nodes[2].Unreachable, nodes[2].Code = true, 13
		path, err := trace.Run(t.Context(), net, probe.Request{Target: nodes[3].Addr}, trace.Options{})
		if err != nil {
			t.Fatal(err)
		}
		g := path.Graph()
		checkGraph(t, g)
		if got, want := strings.Join(links(g), " "), "0/src>10.0.0.1 1/10.0.0.1>* 2/*>10.0.0.3 3/10.0.0.3>10.0.0.3"; got != want {
			t.Errorf("links %s, want %s", got, want)
		}
		var b strings.Builder
		if err := g.Draw(&b, trace.DOT, nil); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), "unreachable !X") {
			t.Errorf("no mark:\n%s", &b)
		}
	})
	// Nothing known at all can be drawn too.
	empty := &trace.Path{Target: addr("192.0.2.1"), Stop: trace.StopGapLimit, Silent: 8}
	for _, format := range []trace.Format{trace.SVG, trace.DOT, trace.Mermaid} {
		if err := empty.Graph().Draw(io.Discard, format, nil); err != nil {
			t.Error(err)
		}
	}
	if err := empty.Graph().Draw(io.Discard, 9, nil); !errors.Is(err, probe.ErrInvalid) {
		t.Errorf("format 9: %v", err)
	}
}

func TestFormatOf(t *testing.T) {
	for file, want := range map[string]trace.Format{"a.svg": trace.SVG, "b/c.DOT": trace.DOT, "d.gv": trace.DOT, "e.mmd": trace.Mermaid} {
		if got, err := trace.FormatOf(file); got != want || err != nil {
			t.Errorf("%s: %v, %v", file, got, err)
		}
	}
	if _, err := trace.FormatOf("picture.png"); !errors.Is(err, probe.ErrInvalid) {
		t.Errorf("picture.png: %v", err)
	}
}

func TestMark(t *testing.T) {
	for _, tt := range []struct {
		r    probe.Result
		want string
	}{
		{probe.Result{}, ""},
		{probe.Result{Status: probe.Replied}, ""},
		{probe.Result{Status: probe.TimeExceeded, HasICMP: true, ICMPType: 11}, ""},
		{probe.Result{Status: probe.NetUnreachable}, "!N"},
		{probe.Result{Status: probe.HostDown}, "!H"},
		{probe.Result{Status: probe.HostUnreachable}, "!H"},
		{probe.Result{Status: probe.HostUnreachable, HasICMP: true, ICMPType: 3, ICMPCode: 13}, "!X"},
		{probe.Result{Status: probe.HostUnreachable, HasICMP: true, ICMPType: 3, ICMPCode: 99}, "!99"},
		{probe.Result{Status: probe.HostUnreachable, HasICMP: true, ICMPType: 1, ICMPCode: 1, Target: addr("2001:db8::1")}, "!X"},
	} {
		if got := trace.Mark(&tt.r); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.r, got, tt.want)
		}
	}
}

func TestEnumNames(t *testing.T) {
	for got, want := range map[string]string{
		trace.StopGapLimit.String():   "gap limit",
		trace.StopReason(37).String(): "StopReason(37)",
		trace.Method(37).String():     "Method(37)",
		trace.Algorithm(37).String():  "Algorithm(37)",
		trace.NodeKind(37).String():   "NodeKind(37)",
		trace.Format(37).String():     "Format(37)",
		trace.MDALite.String():        "MDA-Lite",
		trace.SilentNode.String():     "silent",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
