// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/web"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers requests of the API over a real connection.
func serve(t *testing.T, o web.Options) *httptest.Server {
	t.Helper()
	h, err := web.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		s.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

// fetch gives the status and the body of an answer.
func fetch(t *testing.T, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

// ask decodes an answer that has to be 200.
func ask[T any](t *testing.T, url string) (v T) {
	t.Helper()
	resp, body := fetch(t, url)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", url, resp.Status, body)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("%s: %v in %s", url, err, body)
	}
	return v
}

// small is a source with two runs over a few networks.
func small() *memory {
	s := newMemory()
	s.sites = []anycast.Site{{Name: "fra", Native: true}, {Name: "nyc", Clock: anycast.Clock{Offset: -time.Millisecond, Error: time.Microsecond}}}
	s.add(measured("a", anycast.KindCatchment, "few", 7),
		catch("1.2.3.4", "fra"), catch("1.2.3.5", "fra"), catch("1.2.3.6", "nyc"), catch("1.2.4.4", "nyc"), catch("9.0.0.1", ""), catch("200.1.1.1", "syd"),
		catch("2a00:1:2:3::1", "fra"), &anycast.Summary{Targets: 7, Sent: 7, Answered: 6})
	s.add(measured("b", anycast.KindCatchment, "later", 4), catch("1.2.3.4", "nyc"), catch("1.2.4.4", "nyc"), catch("9.0.0.1", "syd"), catch("200.1.1.1", ""))
	return s
}

func TestOptions(t *testing.T) {
	if _, err := web.New(web.Options{}); !errors.Is(err, web.ErrOptions) {
		t.Errorf("without a source: %v, want %v", err, web.ErrOptions)
	}
}

func TestAccess(t *testing.T) {
	const local, remote = "127.0.0.1:5000", "198.51.100.9:5000"
	tests := []struct {
		name, token, from, host, path string
		header                        []string
		want                          int
	}{
		{"local client", "", local, "localhost:80", "/api/sites", nil, 200},
		{"local client over IPv6", "", "[::1]:5000", "LocalHost", "/api/sites", nil, 200},
		{"mapped address", "", "[::ffff:127.0.0.1]:5000", "localhost", "/api/sites", nil, 200},
		{"remote client without a token", "", remote, "localhost", "/api/sites", nil, 403},
		{"a proxy that says so", "", local, "localhost", "/api/sites", []string{"X-Forwarded-For", "198.51.100.9"}, 403},
		{"a proxy that says so in the standard's way", "", local, "localhost", "/", []string{"Forwarded", "for=198.51.100.9"}, 403},
		{"the address that was called", "", local, "203.0.113.1:8080", "/api/sites", nil, 200},
		{"another address", "", local, "203.0.113.2:8080", "/api/sites", nil, 421},
		{"rebound name", "", local, "evil.example", "/api/sites", nil, 421},
		{"rebound name on the page", "", local, "evil.example", "/", nil, 421},
		{"a name of ours", "", local, "Measure.Example.:443", "/", nil, 200},
		{"an address of ours", "", local, "[2001:DB8:0::7]:443", "/", nil, 200},
		{"no name at all", "", local, "", "/", nil, 421},
		{"a browser that looks for a picture", "s3cret", local, "localhost", "/favicon.ico", nil, 204},
		{"no token sent", "s3cret", local, "localhost", "/api/sites", nil, 401},
		{"page without token", "s3cret", local, "localhost", "/", nil, 401},
		{"its scripts without token", "s3cret", local, "localhost", "/page/js/main.js", nil, 401},
		{"header", "s3cret", remote, "localhost", "/api/sites", []string{"Authorization", "Bearer s3cret"}, 200},
		{"wrong header", "s3cret", remote, "localhost", "/api/sites", []string{"Authorization", "Bearer s3cre"}, 401},
		{"another scheme", "s3cret", remote, "localhost", "/api/sites", []string{"Authorization", "Basic s3cret"}, 401},
		{"token in the address of the page", "s3cret", remote, "localhost", "/?token=s3cret", nil, 200},
		{"wrong token there", "s3cret", remote, "localhost", "/?token=no", nil, 401},
		{"empty token there", "s3cret", remote, "localhost", "/?token=", nil, 401},
		{"token in the address of the API", "s3cret", remote, "localhost", "/api/sites?token=s3cret", nil, 401},
		{"token as cookie", "s3cret", remote, "localhost", "/api/sites", []string{"Cookie", "fathom=s3cret"}, 401},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, err := web.New(web.Options{Source: small(), Token: test.token, Hosts: []string{"measure.example", "2001:db8::7"}})
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, test.path, nil)
			r.RemoteAddr, r.Host = test.from, test.host
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 8080})))
			for i := 0; i < len(test.header); i += 2 {
				r.Header.Set(test.header[i], test.header[i+1])
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != test.want {
				t.Errorf("status %d, want %d: %s", w.Code, test.want, w.Body)
			}
			if strings.Contains(w.Body.String(), "s3cret") {
				t.Errorf("the answer has the token: %s", w.Body)
			}
			for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"} {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			policy := w.Header().Get("Content-Security-Policy")
			for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "script-src 'self';"} {
				if !strings.Contains(policy, want) {
					t.Errorf("the policy %q lacks %q", policy, want)
				}
			}
			if strings.Contains(policy, "unsafe") {
				t.Errorf("the policy %q allows what is unsafe", policy)
			}
		})
	}
}

func TestCookie(t *testing.T) {
	h, err := web.New(web.Options{Source: small(), Token: "open sesame"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	s := httptest.NewTLSServer(h)
	defer s.Close()
	resp, err := s.Client().Get(s.URL + "/?token=open+sesame")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cookies := resp.Cookies()
	if len(cookies) != 1 {
		t.Fatalf("got cookies %v, want one", cookies)
	}
	c := cookies[0]
	if !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || c.Path != "/" {
		t.Errorf("the cookie is %v, want HttpOnly, Secure, SameSite=Strict", c)
	}
	if strings.Contains(c.Value, "sesame") {
		t.Errorf("the cookie has the token: %v", c)
	}
	if got := resp.Header.Get("Refresh"); got != "0; url=./" {
		t.Errorf("Refresh is %q", got)
	}
	for value, want := range map[string]int{c.Value: 200, c.Value[1:]: 401, "": 401} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/api/sites", nil)
		req.AddCookie(&http.Cookie{Name: c.Name, Value: value})
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("with cookie %q: %s, want %d", value, resp.Status, want)
		}
	}
	s.Client().CloseIdleConnections()
}

func TestReadsOnly(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		req, _ := http.NewRequestWithContext(t.Context(), method, s.URL+"/api/measurements/a", nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %s, want 405", method, resp.Status)
		}
	}
}

func TestRefusals(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	for path, want := range map[string]int{
		"/api/measurements/none":                               404,
		"/api/measurements/none/summary":                       404,
		"/api/measurements/none/events":                        404,
		"/api/measurements/none/results":                       404,
		"/api/measurements/a/traces/1":                         404,
		"/api/measurements/a/traces/-1":                        404,
		"/api/measurements/a/traces/x":                         400,
		"/api/measurements/a/traces/99999999999999999999":      400,
		"/api/measurements?limit=0":                            400,
		"/api/measurements?limit=1001":                         400,
		"/api/measurements?from=yesterday":                     400,
		"/api/measurements?target=192.0.2.0/33":                400,
		"/api/measurements/a/results?offset=-1":                400,
		"/api/measurements/a/results?kind=secret":              400,
		"/api/measurements/a/results?format=docx":              400,
		"/api/measurements/a/results?format=warts":             400,
		"/api/measurements/a/networks?limit=many":              400,
		"/api/measurements/a/networks?split=maybe":             400,
		"/api/measurements/a/map?prefix=10.0.0.0/9":            400,
		"/api/measurements/a/map?prefix=10.0.0.0/24":           400,
		"/api/measurements/a/map?prefix=2001:db8::/0":          400,
		"/api/compare?a=a":                                     404,
		"/api/compare?a=a&b=none":                              404,
		"/api/compare?a=a&b=a":                                 400,
		"/api/compare":                                         400,
		"/api/nothing":                                         404,
		"/page/nothing.js":                                     404,
		"/page/":                                               404,
		"/page/..%2fweb.go":                                    404,
		"/nothing":                                             404,
		"/api/measurements/%2e%2e/results":                     404,
		"/api/measurements/a/results?target=fe80::1%25eth0":    400,
		"/api/measurements/a/map?prefix=" + hostilePrefixInURL: 400,
	} {
		resp, body := fetch(t, s.URL+path)
		if resp.StatusCode != want {
			t.Errorf("%s: %s, want %d: %s", path, resp.Status, want, body)
		}
		if kind := resp.Header.Get("Content-Type"); strings.Contains(kind, "html") {
			t.Errorf("%s is refused as %s", path, kind)
		}
	}
}

const hostilePrefixInURL = "%3Cscript%3Ealert(1)%3C/script%3E"

func TestFailingSource(t *testing.T) {
	source := small()
	source.fail = errors.New("disk on fire at /var/lib")
	var logged bytes.Buffer
	s := serve(t, web.Options{Source: source, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	resp, body := fetch(t, s.URL+"/api/measurements")
	if resp.StatusCode != http.StatusInternalServerError || strings.Contains(string(body), "disk") {
		t.Errorf("%s: %s, want 500 without particulars", resp.Status, body)
	}
	if !strings.Contains(logged.String(), "disk on fire") {
		t.Errorf("the log does not say why: %s", &logged)
	}
}

func TestSites(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	_, body := fetch(t, s.URL+"/api/sites")
	want := `{"sites":[{"name":"fra","anycast":[],"unicast":[],"native":true,"clock_offset_ns":0,"clock_error_ns":0},` +
		`{"name":"nyc","anycast":[],"unicast":[],"native":false,"clock_offset_ns":-1000000,"clock_error_ns":1000}]}`
	if string(body) != want {
		t.Errorf("got %s\nwant %s", body, want)
	}
}

func TestMeasurements(t *testing.T) {
	source := small()
	source.kept[0].m.Definition.Weights = make([]anycast.Weight, 1000)
	s := serve(t, web.Options{Source: source})
	type list struct {
		Measurements []anycast.Measurement `json:"measurements"`
	}
	all := ask[list](t, s.URL+"/api/measurements").Measurements
	if len(all) != 2 || all[0].ID != "b" || all[1].ID != "a" {
		t.Fatalf("got %v, want b and a", all)
	}
	if n := len(all[1].Definition.Weights); n != 0 {
		t.Errorf("the list has %d weights", n)
	}
	if got := ask[list](t, s.URL+"/api/measurements?program=trace").Measurements; len(got) != 0 {
		t.Errorf("got traces %v, want none", got)
	}
	if got := ask[list](t, s.URL+"/api/measurements?limit=1").Measurements; len(got) != 1 {
		t.Errorf("got %d, want 1", len(got))
	}
	if got := ask[anycast.Measurement](t, s.URL+"/api/measurements/a"); got.Definition.Name != "few" || got.State != anycast.Done {
		t.Errorf("got %+v", got)
	}
}

func TestResults(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	type page struct {
		Results []struct {
			Kind   string          `json:"kind"`
			Result json.RawMessage `json:"result"`
		} `json:"results"`
		Next *int `json:"next"`
	}
	var targets []string
	for offset := 0; ; {
		p := ask[page](t, fmt.Sprintf("%s/api/measurements/a/results?kind=catch&limit=3&offset=%d", s.URL, offset))
		for _, r := range p.Results {
			var c anycast.Catch
			if err := json.Unmarshal(r.Result, &c); err != nil {
				t.Fatal(err)
			}
			targets = append(targets, c.Target.String())
		}
		if p.Next == nil {
			break
		}
		offset = *p.Next
	}
	want := []string{"1.2.3.4", "1.2.3.5", "1.2.3.6", "1.2.4.4", "9.0.0.1", "200.1.1.1", "2a00:1:2:3::1"}
	if diff := cmp.Diff(want, targets); diff != "" {
		t.Error(diff)
	}
	for _, header := range [][]string{{"Accept", "application/x-ndjson"}, {}} {
		url := s.URL + "/api/measurements/a/results"
		if len(header) == 0 {
			url += "?format=jsonl"
		}
		resp, body := fetch(t, url, header...)
		if lines := bytes.Count(body, []byte("\n")); lines != 9 || resp.Header.Get("Content-Type") != "application/x-ndjson" {
			t.Errorf("got %d lines of %s, want 9: %s", lines, resp.Header.Get("Content-Type"), body)
		}
	}
	resp, body := fetch(t, s.URL+"/api/measurements/a/results?format=csv")
	if resp.Header.Get("Content-Disposition") != "attachment; filename=a.csv" || bytes.Count(body, []byte("\n")) != 8 {
		t.Errorf("%v: %s, want a header and 7 rows in a.csv", resp.Header, body)
	}
}

// failingSource fails after a while.
type failingSource struct{ *memory }

func (f failingSource) Results(ctx context.Context, q anycast.Query, yield func(string, anycast.Result) bool) error {
	for range 20_000 {
		if !yield("a", catch("1.2.3.4", "fra")) {
			return nil
		}
	}
	return errors.New("disk on fire")
}

func TestHalfIsNotTheWhole(t *testing.T) {
	s := serve(t, web.Options{Source: failingSource{small()}})
	resp, err := http.Get(s.URL + "/api/measurements/a/results?format=jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("the answer of %d bytes ends as if it were whole", n)
	}
}

type summary struct {
	Results, Networks, Silent, Split, IPv4 int
	Sites                                  []struct {
		Name              string
		Networks, Answers int
		Share             float64
	}
}

func TestSummary(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	got := ask[summary](t, s.URL+"/api/measurements/a/summary")
	want := summary{Results: 8, Networks: 4, Silent: 1, Split: 1, IPv4: 4}
	for _, site := range []struct {
		name              string
		networks, answers int
	}{{"fra", 2, 3}, {"nyc", 1, 2}, {"syd", 1, 1}} {
		want.Sites = append(want.Sites, struct {
			Name              string
			Networks, Answers int
			Share             float64
		}{site.name, site.networks, site.answers, float64(site.networks) / 4})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

type networks struct {
	Networks []struct {
		Network, Site string
		Seen          map[string]int
		Probes        int
	}
	Total, Offset int
}

func TestNetworks(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	for query, want := range map[string][]string{
		"":                         {"1.2.3.0/24 fra", "1.2.4.0/24 nyc", "9.0.0.0/24 ", "200.1.1.0/24 syd", "2a00:1:2::/48 fra"},
		"q=1.2.4.200":              {"1.2.4.0/24 nyc"},
		"q=1.2.0.0/16":             {"1.2.3.0/24 fra", "1.2.4.0/24 nyc"},
		"q=1.2.3.128/25":           {"1.2.3.0/24 fra"},
		"q=1.2.":                   {"1.2.3.0/24 fra", "1.2.4.0/24 nyc"},
		"q=2A00:1:":                {"2a00:1:2::/48 fra"},
		"q=2a00:1:2:ffff::9":       {"2a00:1:2::/48 fra"},
		"q=nonsense":               {},
		"site=nyc":                 {"1.2.3.0/24 fra", "1.2.4.0/24 nyc"},
		"site=nowhere":             {},
		"split=1":                  {"1.2.3.0/24 fra"},
		"silent=true":              {"9.0.0.0/24 "},
		"limit=2&offset=1":         {"1.2.4.0/24 nyc", "9.0.0.0/24 "},
		"offset=100":               {},
		"site=nyc&q=1.2.3.0&x=%00": {"1.2.3.0/24 fra"},
	} {
		page := ask[networks](t, s.URL+"/api/measurements/a/networks?"+query)
		got := []string{}
		for _, n := range page.Networks {
			got = append(got, n.Network+" "+n.Site)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", query, diff)
		}
	}
	page := ask[networks](t, s.URL+"/api/measurements/a/networks?limit=1")
	if page.Total != 5 {
		t.Errorf("of %d, want 5", page.Total)
	}
	if diff := cmp.Diff(map[string]int{"fra": 2, "nyc": 1}, page.Networks[0].Seen); diff != "" {
		t.Error(diff)
	}
}

func TestMap(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	type hilbert struct {
		CellBits    int `json:"cell_bits"`
		Sites       []string
		Index, Site []int
		Blocks      []struct {
			Index, Networks int
			Sites           map[string]int
		}
	}
	for prefix, want := range map[string]struct {
		bits          int
		cells, blocks string
	}{
		"":             {16, "[258:fra 2304: 51201:syd]", "[{1 2 map[fra:1 nyc:1]} {9 1 map[:1]} {200 1 map[syd:1]}]"},
		"0.0.0.0/0":    {16, "[258:fra 2304: 51201:syd]", "[{1 2 map[fra:1 nyc:1]} {9 1 map[:1]} {200 1 map[syd:1]}]"},
		"1.0.0.0/8":    {24, "[515:fra 516:nyc]", "[{2 2 map[fra:1 nyc:1]}]"},
		"1.2.0.0/16":   {24, "[3:fra 4:nyc]", "[{3 1 map[fra:1]} {4 1 map[nyc:1]}]"},
		"200.1.0.0/16": {24, "[1:syd]", "[{1 1 map[syd:1]}]"},
		"224.0.0.0/4":  {20, "[]", "[]"},
		"255.0.0.0/8":  {24, "[]", "[]"},
	} {
		got := ask[hilbert](t, s.URL+"/api/measurements/a/map?prefix="+prefix)
		cells := []string{}
		for i, at := range got.Index {
			cells = append(cells, fmt.Sprintf("%d:%s", at, got.Sites[got.Site[i]]))
		}
		if got.CellBits != want.bits || fmt.Sprint(cells) != want.cells || fmt.Sprint(got.Blocks) != want.blocks {
			t.Errorf("%s: /%d %v %v, want /%d %s %s", prefix, got.CellBits, cells, got.Blocks, want.bits, want.cells, want.blocks)
		}
	}
}

func TestCompare(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	type comparison struct {
		A, B                            struct{ ID string }
		Same, Moved, Appeared, Vanished int
		Matrix                          []struct {
			From, To string
			Count    int
		}
		Movers []struct{ Network, From, To string }
		Total  int
	}
	got := ask[comparison](t, s.URL+"/api/compare?a=a&b=b")
	if got.A.ID != "a" || got.B.ID != "b" || got.Same != 1 || got.Moved != 1 || got.Appeared != 1 || got.Vanished != 2 {
		t.Errorf("got %+v", got)
	}
	if want := "[{ syd 1} {fra  1} {fra nyc 1} {nyc nyc 1} {syd  1}]"; fmt.Sprint(got.Matrix) != want {
		t.Errorf("matrix %v, want %s", got.Matrix, want)
	}
	if want := "[{1.2.3.0/24 fra nyc} {9.0.0.0/24  syd} {200.1.1.0/24 syd } {2a00:1:2::/48 fra }]"; fmt.Sprint(got.Movers) != want || got.Total != 4 {
		t.Errorf("movers %v of %d, want %s", got.Movers, got.Total, want)
	}
	for query, want := range map[string]string{
		"&from=fra&to=nyc": "[{1.2.3.0/24 fra nyc}]", "&from=": "[{9.0.0.0/24  syd}]", "&limit=1&offset=2": "[{200.1.1.0/24 syd }]", "&q=1.2.": "[{1.2.3.0/24 fra nyc}]",
	} {
		if got := ask[comparison](t, s.URL+"/api/compare?a=a&b=b"+query); fmt.Sprint(got.Movers) != want {
			t.Errorf("%s: %v, want %s", query, got.Movers, want)
		}
	}
	back := ask[comparison](t, s.URL+"/api/compare?a=b&b=a")
	if back.Appeared != got.Vanished || back.Moved != got.Moved {
		t.Errorf("the other way round: %+v", back)
	}
}

// twoOrigins has a measurement of which two origins see different things.
func twoOrigins() *memory {
	s := small()
	m := measured("o", anycast.KindCatchment, "side by side", 3)
	m.Definition.Origins = []anycast.Origin{{Name: "east", Source: address("192.0.2.1")}, {Name: "west", Source: address("192.0.2.129"), Sites: []string{"fra"}}}
	from := func(origin string, c *anycast.Catch) *anycast.Catch {
		c.Origin = origin
		return c
	}
	s.add(m, from("east", catch("1.2.3.4", "fra")), from("west", catch("1.2.3.4", "nyc")), from("east", catch("1.2.4.4", "nyc")),
		from("west", catch("1.2.4.4", "nyc")), from("east", catch("9.0.0.1", "")), from("west", catch("9.0.0.1", "syd")),
		&anycast.Summary{Targets: 3, Sent: 6, Answered: 5, Differ: 1})
	return s
}

func TestOrigins(t *testing.T) {
	s := serve(t, web.Options{Source: twoOrigins()})
	type sums struct {
		Results, Networks, Silent, Split int
		Origin                           string
		Origins                          []struct {
			Name, Source        string
			Networks, Silent    int
			Caught              map[string]int
			Elsewhere, Compared int
		}
		Summary struct{ Differ int }
	}
	for query, want := range map[string]sums{
		"": {Results: 7, Networks: 2, Silent: 1, Origin: "east"}, "?origin=east": {Results: 7, Networks: 2, Silent: 1, Origin: "east"},
		"?origin=west": {Results: 7, Networks: 3, Origin: "west"},
	} {
		got := ask[sums](t, s.URL+"/api/measurements/o/summary"+query)
		if all := "[{east 192.0.2.1 2 1 map[fra:1 nyc:1] 0 2} {west 192.0.2.129 3 0 map[nyc:2 syd:1] 1 2}]"; fmt.Sprint(got.Origins) != all || got.Summary.Differ != 1 {
			t.Errorf("%s: %v, want %s", query, got.Origins, all)
		}
		want.Origins, want.Summary = got.Origins, got.Summary
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", query, diff)
		}
	}
	page := ask[networks](t, s.URL+"/api/measurements/o/networks?origin=west&site=nyc")
	if len(page.Networks) != 2 || page.Networks[0].Network != "1.2.3.0/24" || page.Networks[0].Probes != 1 {
		t.Errorf("networks from west that reach nyc: %+v", page)
	}
	if got := ask[struct{ Sites []string }](t, s.URL+"/api/measurements/o/map"); fmt.Sprint(got.Sites) != "[ fra nyc]" {
		t.Errorf("the map from the first origin has the sites %v", got.Sites)
	}
	moved := ask[struct{ Moved, Same int }](t, s.URL+"/api/compare?a=a&b=o&origin=west")
	if moved.Moved != 1 || moved.Same != 1 {
		t.Errorf("from a to west: %+v", moved)
	}
	for _, path := range []string{"summary", "networks", "map"} {
		if resp, body := fetch(t, s.URL+"/api/measurements/o/"+path+"?origin=north"); resp.StatusCode != 400 {
			t.Errorf("%s of an origin that there is not: %s: %s", path, resp.Status, body)
		}
	}
}

func TestTraces(t *testing.T) {
	s := serve(t, web.Options{Source: world(t)})
	got := ask[struct {
		Trace anycast.TraceResult
		Graph struct {
			Nodes []struct {
				Kind, Addr string
				TTL        int
				Receivers  []string
			}
			Edges []struct{ From, To, Flows int }
		}
	}](t, s.URL+"/api/measurements/m6/traces/1")
	if got.Trace.Name != "www.example.net" || len(got.Graph.Nodes) != 10 || len(got.Graph.Edges) != 11 {
		t.Errorf("got %+v", got)
	}
	i := slices.IndexFunc(got.Graph.Nodes, func(n struct {
		Kind, Addr string
		TTL        int
		Receivers  []string
	},
	) bool {
		return n.Addr == "10.3.0.1"
	})
	if i < 0 || !slices.Equal(got.Graph.Nodes[i].Receivers, []string{"ams", "nyc"}) {
		t.Errorf("10.3.0.1 is %+v, want it heard at ams and nyc", got.Graph.Nodes)
	}
	resp, body := fetch(t, s.URL+"/api/measurements/m6/traces/2/graph.svg")
	if resp.Header.Get("Content-Type") != "image/svg+xml" || !bytes.HasPrefix(body, []byte("<svg ")) || !bytes.Contains(body, []byte("203.0.113.9")) {
		t.Errorf("%v: %.200s", resp.Header, body)
	}
	if policy := resp.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "sandbox") || strings.Contains(policy, "script-src") {
		t.Errorf("the picture's policy is %q", policy)
	}
}

func TestCompression(t *testing.T) {
	s := serve(t, web.Options{Source: world(t)})
	plain, want := fetch(t, s.URL+"/api/measurements/m1/map", "Accept-Encoding", "identity")
	if plain.Header.Get("Content-Encoding") != "" {
		t.Errorf("compressed without being asked")
	}
	resp, packed := fetch(t, s.URL+"/api/measurements/m1/map", "Accept-Encoding", "gzip")
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%v: %v", resp.Header, err)
	}
	got, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(got, want) || len(packed) > len(want)/2 {
		t.Errorf("%d bytes of %d packed, %v", len(packed), len(want), err)
	}
}

func TestPageIsCached(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	for _, path := range []string{"/", "/page/style.css", "/page/js/main.js", "/page/logo.svg", "/api"} {
		resp, body := fetch(t, s.URL+path)
		tag := resp.Header.Get("ETag")
		if resp.StatusCode != http.StatusOK || len(body) == 0 || tag == "" {
			t.Fatalf("%s: %s, tag %q", path, resp.Status, tag)
		}
		if resp, _ := fetch(t, s.URL+path, "If-None-Match", tag); resp.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: %s, want 304", path, resp.Status)
		}
	}
}

// TestPageIsItsOwn holds that the page loads nothing from elsewhere and brings no script or style that its policy forbids.
func TestPageIsItsOwn(t *testing.T) {
	files, err := os.ReadDir("page/js")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"page/index.html", "page/style.css"}
	for _, f := range files {
		names = append(names, "page/js/"+f.Name())
	}
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|https?://[^w]|https?://w[^w]|https?://www\.(?:[^w]|w[^3])| on[a-z]+="|style="|@import`)
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if m := forbidden.Find(data); m != nil {
			t.Errorf("%s has %q: text is text, and all comes from this server", name, m)
		}
	}
}

// TestOpenAPI holds that the description names the calls that there are, and no others.
func TestOpenAPI(t *testing.T) {
	s := serve(t, web.Options{Source: small()})
	resp, body := fetch(t, s.URL+"/api")
	if got := resp.Header.Get("Content-Type"); got != "application/yaml; charset=utf-8" {
		t.Errorf("served as %s", got)
	}
	var described []string
	for _, m := range regexp.MustCompile(`(?m)^  (/\S*):$`).FindAllSubmatch(body, -1) {
		described = append(described, string(m[1]))
	}
	source, err := os.ReadFile("web.go")
	if err != nil {
		t.Fatal(err)
	}
	var served []string
	for _, m := range regexp.MustCompile(`\{"(/api[^"]*)", h\.`).FindAllSubmatch(source, -1) {
		served = append(served, string(m[1]))
	}
	slices.Sort(described)
	slices.Sort(served)
	if len(served) < 10 {
		t.Fatalf("found only %v in web.go", served)
	}
	if diff := cmp.Diff(served, described); diff != "" {
		t.Errorf("served (-) and described (+):\n%s", diff)
	}
}

// events reads Server-Sent Events until the stream ends.
func events(t *testing.T, ctx context.Context, url string, got func(event, data string)) error {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		return fmt.Errorf("%s of %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	event := ""
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if e, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = e
		} else if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			got(event, data)
		}
	}
	return lines.Err()
}

func TestMeasurementEvents(t *testing.T) {
	source := small()
	m := measured("c", anycast.KindCatchment, "running", 3)
	m.State, m.Progress = anycast.Running, anycast.Progress{Total: 3}
	k := source.add(m)
	s := serve(t, web.Options{Source: source})
	var last string
	step := 0
	err := events(t, t.Context(), s.URL+"/api/measurements/c/events", func(event, data string) {
		var u struct {
			Measurement anycast.Measurement
			Results     int
		}
		if err := json.Unmarshal([]byte(data), &u); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		last = event
		switch {
		case step == 0:
			source.append(k, anycast.Progress{Done: 1, Total: 3}, catch("1.2.3.4", "fra"))
			step++
		case step == 1 && u.Results == 1 && u.Measurement.Progress.Done == 1:
			source.append(k, anycast.Progress{Done: 3, Total: 3}, catch("1.2.3.5", "fra"), catch("1.2.3.6", ""))
			source.end(k, anycast.Done)
			step++
		case event == "end" && (u.Results != 3 || u.Measurement.State != anycast.Done):
			t.Errorf("ended with %s", data)
		}
	})
	if err != nil || last != "end" || step != 2 {
		t.Errorf("step %d, last event %q, %v", step, last, err)
	}
}

// TestFollowOnce holds that a measurement is followed once, however many look at it, and no longer when nobody can.
func TestFollowOnce(t *testing.T) {
	source := small()
	m := measured("c", anycast.KindCatchment, "running", 3)
	m.State = anycast.Running
	source.add(m, catch("1.2.3.4", "fra"))
	h, err := web.New(web.Options{Source: source})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started, ended := make(chan struct{}, 100), make(chan error, 3)
	for range 3 {
		go func() {
			ended <- events(t, ctx, s.URL+"/api/measurements/c/events", func(string, string) { started <- struct{}{} })
		}()
	}
	for range 3 {
		<-started
	}
	if got := ask[summary](t, s.URL+"/api/measurements/c/summary"); got.Networks != 1 {
		t.Errorf("got %+v", got)
	}
	source.mu.Lock()
	if n := source.followed["c"]; n != 1 {
		t.Errorf("followed %d times", n)
	}
	source.mu.Unlock()
	if err := h.Close(); err != nil { // ends the streams, so that a server can stop
		t.Error(err)
	}
	for range 3 {
		<-ended
	}
	if resp, _ := fetch(t, s.URL+"/api/measurements/c/summary"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("after Close: %s, want 503", resp.Status)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestEvents(t *testing.T) {
	source := small()
	s := serve(t, web.Options{Source: source})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen []string
	err := events(t, ctx, s.URL+"/api/events", func(event, data string) {
		var v struct {
			ID    string
			Sites []struct{ Name string }
		}
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		seen = append(seen, strings.TrimSpace(fmt.Sprint(event, " ", v.ID, v.Sites)))
		switch len(seen) {
		case 3:
			source.change(func() { source.sites = source.sites[:1] })
		case 4:
			source.add(measured("d", anycast.KindTrace, "new", 1))
		case 5:
			source.change(func() { source.kept = slices.Delete(source.kept, 1, 2) })
		case 6:
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	want := []string{"sites [{fra} {nyc}]", "measurement a[]", "measurement b[]", "sites [{fra}]", "measurement d[]", "gone b[]"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Error(diff)
	}
}

// TestManyMeasurements holds that sums that nobody looks at make room for others.
func TestManyMeasurements(t *testing.T) {
	source := newMemory()
	for i := range 40 {
		source.add(measured(fmt.Sprintf("m%02d", i), anycast.KindCatchment, "", 1), catch("1.2.3.4", "fra"))
	}
	s := serve(t, web.Options{Source: source})
	for i := range 40 {
		if got := ask[summary](t, fmt.Sprintf("%s/api/measurements/m%02d/summary", s.URL, i)); got.Networks != 1 {
			t.Errorf("m%02d: %+v", i, got)
		}
	}
	ask[summary](t, s.URL+"/api/measurements/m39/summary")
	source.mu.Lock()
	defer source.mu.Unlock()
	if n := source.followed["m39"]; n != 1 {
		t.Errorf("the newest sums were made %d times", n)
	}
}
