// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/export"
	"github.com/seed5728abee/fathom/trace"
)

const (
	// Rows of an answer, unless the request says how many, and at most.
	defaultRows, maxRows = 100, 1000
	maxResults           = 10_000
	// writeTime is how long a client may take for a piece of a stream.
	writeTime = 30 * time.Second
	// Smaller answers fit into one packet as they are.
	gzipAbove = 1200
)

// errRequest means that a request's parameters make no sense.
var errRequest = errors.New("invalid request")

// siteJSON is a site.
type siteJSON struct {
	Name        string        `json:"name"`
	Anycast     []netip.Addr  `json:"anycast"`
	Unicast     []netip.Addr  `json:"unicast"`
	Native      bool          `json:"native"`
	Rate        float64       `json:"rate,omitempty"`
	ClockOffset time.Duration `json:"clock_offset_ns"`
	// ClockError is 0 if nothing is known about the clock.
	ClockError time.Duration `json:"clock_error_ns"`
	Since      time.Time     `json:"since,omitzero"`
	Version    string        `json:"version,omitempty"`
}

func (h *Handler) sites() []siteJSON {
	sites := h.opts.Source.Sites()
	list := make([]siteJSON, len(sites))
	for i, s := range sites {
		list[i] = siteJSON{
			Name: s.Name, Anycast: append([]netip.Addr{}, s.Anycast...), Unicast: append([]netip.Addr{}, s.Unicast...), Native: s.Native,
			Rate: s.Rate, ClockOffset: s.Clock.Offset, ClockError: s.Clock.Error, Since: s.Since, Version: s.Version,
		}
	}
	return list
}

func (h *Handler) serveSites(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, r, map[string]any{"sites": h.sites()})
}

// brief leaves out of a definition what may be long.
func brief(m anycast.Measurement) anycast.Measurement {
	m.Definition.Weights, m.Definition.OptOut = nil, nil
	return m
}

func (h *Handler) serveMeasurements(w http.ResponseWriter, r *http.Request) {
	p := params{Values: r.URL.Query()}
	q := anycast.Query{
		Program: anycast.ProgramKind(p.Get("program")), Name: p.Get("name"), Site: p.Get("site"), Target: p.prefix("target"),
		From: p.time("from"), Until: p.time("until"), Limit: p.number("limit", defaultRows, 1, maxRows),
	}
	if p.err != nil {
		h.fail(w, r, p.err)
		return
	}
	list, err := h.opts.Source.Measurements(r.Context(), q)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	for i := range list {
		list[i] = brief(list[i])
	}
	writeJSON(w, r, map[string]any{"measurements": append([]anycast.Measurement{}, list...)})
}

// measurement finds one.
func (h *Handler) measurement(ctx context.Context, id string) (anycast.Measurement, error) {
	if id == "" { // which would ask for all of them
		return anycast.Measurement{}, anycast.ErrNoMeasurement
	}
	list, err := h.opts.Source.Measurements(ctx, anycast.Query{Measurement: id, Limit: 1})
	if err == nil && (len(list) == 0 || list[0].ID != id) {
		err = anycast.ErrNoMeasurement
	}
	if err != nil {
		return anycast.Measurement{}, fmt.Errorf("measurement %q: %w", id, err)
	}
	return list[0], nil
}

func (h *Handler) serveMeasurement(w http.ResponseWriter, r *http.Request) {
	m, err := h.measurement(r.Context(), r.PathValue("id"))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	writeJSON(w, r, brief(m))
}

// resultJSON is a result with its kind.
type resultJSON struct {
	Kind   export.Kind    `json:"kind"`
	Result anycast.Result `json:"result"`
}

// serveResults gives a page of results, or all of them as a file.
func (h *Handler) serveResults(w http.ResponseWriter, r *http.Request) {
	p := params{Values: r.URL.Query()}
	m, err := h.measurement(r.Context(), r.PathValue("id"))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	q := anycast.Query{Measurement: m.ID, Target: p.prefix("target"), Site: p.Get("site"), From: p.time("from"), Until: p.time("until")}
	kind := export.Kind(p.Get("kind"))
	if kind != "" && !slices.Contains(export.Kinds(), kind) {
		p.fail("kind", "a kind of result")
	}
	offset, limit := p.number("offset", 0, 0, 1<<40), p.number("limit", defaultRows, 1, maxResults)
	format := p.Get("format")
	if format == "" && strings.Contains(r.Header.Get("Accept"), "application/x-ndjson") {
		format = export.JSONLines.String()
	}
	if p.err != nil {
		h.fail(w, r, p.err)
		return
	}
	if format != "" {
		h.writeFile(w, r, &m, q, format, kind)
		return
	}
	page, more, at := []resultJSON{}, false, 0
	err = h.opts.Source.Results(r.Context(), q, func(_ string, res anycast.Result) bool {
		k := export.KindOf(res)
		if kind != "" && k != kind {
			return true
		}
		if at++; at <= offset {
			return true
		}
		if more = len(page) == limit; more {
			return false
		}
		page = append(page, resultJSON{k, res})
		return true
	})
	if err != nil {
		h.fail(w, r, err)
		return
	}
	answer := map[string]any{"results": page}
	if more {
		answer["next"] = offset + limit
	}
	writeJSON(w, r, answer)
}

// files says how each format travels.
var files = map[export.Format]struct{ kind, ending string }{
	export.JSONLines: {"application/x-ndjson", "jsonl"}, export.CSV: {"text/csv; charset=utf-8; header=present", "csv"},
	export.Parquet: {"application/vnd.apache.parquet", "parquet"}, export.Atlas: {"application/x-ndjson", "atlas.jsonl"},
	export.ScamperJSON: {"application/x-ndjson", "scamper.jsonl"}, export.Warts: {"application/octet-stream", "warts"},
}

// writeFile streams results in a format of package export. A failure on the way breaks the connection, so that nobody takes
// half for the whole.
func (h *Handler) writeFile(w http.ResponseWriter, r *http.Request, m *anycast.Measurement, q anycast.Query, format string, kind export.Kind) {
	var f export.Format
	if err := f.UnmarshalText([]byte(format)); err != nil {
		h.fail(w, r, fmt.Errorf("%w: %w", errRequest, err))
		return
	}
	out := &patientWriter{w: w, out: http.NewResponseController(w)}
	e, err := export.NewWriter(out, f, kind)
	if err != nil {
		h.fail(w, r, fmt.Errorf("%w: %w", errRequest, err))
		return
	}
	w.Header().Set("Content-Type", files[f].kind)
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": m.ID + "." + files[f].ending}))
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	var failed error
	err = h.opts.Source.Results(ctx, q, func(_ string, res anycast.Result) bool {
		failed = e.Write(m, res)
		return failed == nil
	})
	if err = errors.Join(err, failed); err == nil {
		err = e.Close()
	}
	switch {
	case err == nil:
	case !out.begun:
		if errors.Is(err, export.ErrKind) {
			err = fmt.Errorf("%w: %w", errRequest, err)
		}
		w.Header().Del("Content-Disposition")
		h.fail(w, r, err)
	default:
		if r.Context().Err() == nil {
			h.log.Warn("cannot send all results", "measurement", m.ID, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
}

// patientWriter gives the client time for every piece, however long all of them take.
type patientWriter struct {
	w     http.ResponseWriter
	out   *http.ResponseController
	begun bool
}

func (p *patientWriter) Write(data []byte) (int, error) {
	p.begun = true
	if err := p.out.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return p.w.Write(data)
}

// with runs answer with the sums of the measurement that the request is about.
func (h *Handler) with(w http.ResponseWriter, r *http.Request, answer func(m *anycast.Measurement, a *aggregate) (any, error)) {
	f, err := h.open(r.Context(), r.PathValue("id"))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer h.release(f)
	var v any
	f.look(func(m *anycast.Measurement, a *aggregate) { v, err = answer(m, a) })
	if err != nil {
		h.fail(w, r, err)
		return
	}
	writeJSON(w, r, v)
}

// open gives the follower of a measurement when it knows what it can; it must be released.
func (h *Handler) open(ctx context.Context, id string) (*follower, error) {
	m, err := h.measurement(ctx, id)
	if err != nil {
		return nil, err
	}
	f, err := h.follow(m)
	if err != nil {
		return nil, err
	}
	if err := f.ready(ctx); err != nil {
		h.release(f)
		return nil, err
	}
	return f, nil
}

func (h *Handler) serveSummary(w http.ResponseWriter, r *http.Request) {
	origin := r.URL.Query().Get("origin")
	h.with(w, r, func(m *anycast.Measurement, a *aggregate) (any, error) { return a.summarizeOrigin(m, origin) })
}

func (h *Handler) serveNetworks(w http.ResponseWriter, r *http.Request) {
	p := params{Values: r.URL.Query()}
	f := networkFilter{
		search: p.Get("q"), split: p.flag("split"), silent: p.flag("silent"), site: p.Get("site"),
		offset: p.number("offset", 0, 0, maxNetworks), limit: p.number("limit", defaultRows, 1, maxRows),
	}
	if p.err != nil {
		h.fail(w, r, p.err)
		return
	}
	h.with(w, r, func(m *anycast.Measurement, a *aggregate) (any, error) {
		o, _, err := a.choose(&m.Definition, p.Get("origin"))
		if err != nil {
			return nil, err
		}
		return o.page(f), nil
	})
}

func (h *Handler) serveMap(w http.ResponseWriter, r *http.Request) {
	p := params{Values: r.URL.Query()}
	prefix := p.prefix("prefix")
	if p.err != nil {
		h.fail(w, r, p.err)
		return
	}
	if !prefix.IsValid() {
		prefix = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	h.with(w, r, func(m *anycast.Measurement, a *aggregate) (any, error) {
		o, _, err := a.choose(&m.Definition, p.Get("origin"))
		if err != nil {
			return nil, err
		}
		return o.hilbert(prefix)
	})
}

func (h *Handler) serveCompare(w http.ResponseWriter, r *http.Request) {
	p := params{Values: r.URL.Query()}
	f := moverFilter{offset: p.number("offset", 0, 0, maxNetworks), limit: p.number("limit", defaultRows, 1, maxRows)}
	if p.Has("from") {
		f.from = new(p.Get("from"))
	}
	if p.Has("to") {
		f.to = new(p.Get("to"))
	}
	f.search = p.Get("q")
	if p.err == nil && p.Get("a") == p.Get("b") {
		p.err = fmt.Errorf("%w: a and b must be two measurements", errRequest)
	}
	if p.err != nil {
		h.fail(w, r, p.err)
		return
	}
	before, err := h.open(r.Context(), p.Get("a"))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer h.release(before)
	after, err := h.open(r.Context(), p.Get("b"))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer h.release(after)
	// Two requests may name two measurements the other way round: lock in one order.
	one, two := before, after
	if one.id > two.id {
		one, two = two, one
	}
	one.mu.Lock()
	two.mu.Lock()
	x, _, errA := before.sum.choose(&before.m.Definition, p.Get("origin"))
	y, _, errB := after.sum.choose(&after.m.Definition, p.Get("origin"))
	var answer *comparison
	if err = errors.Join(errA, errB); err == nil {
		answer = compare(x, y, f)
		answer.A, answer.B = brief(before.m), brief(after.m)
	}
	two.mu.Unlock()
	one.mu.Unlock()
	if err != nil {
		h.fail(w, r, err)
		return
	}
	writeJSON(w, r, answer)
}

// findTrace gives a trace by its number in the list of the summary.
func (h *Handler) findTrace(r *http.Request) (*anycast.TraceResult, error) {
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil {
		return nil, fmt.Errorf("%w: %q is no number of a trace", errRequest, r.PathValue("n"))
	}
	f, err := h.open(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	defer h.release(f)
	var line traceLine
	f.look(func(_ *anycast.Measurement, a *aggregate) {
		if n > 0 && n <= len(a.traces) {
			line = a.traces[n-1]
		}
	})
	missing := fmt.Errorf("trace %d of measurement %q: %w", n, f.id, anycast.ErrNoMeasurement)
	if line.N == 0 {
		return nil, missing
	}
	q := anycast.Query{Measurement: f.id}
	if line.Target.IsValid() {
		q.Target = netip.PrefixFrom(line.Target, line.Target.BitLen())
	}
	var found *anycast.TraceResult
	nth := 0
	err = h.opts.Source.Results(r.Context(), q, func(_ string, res anycast.Result) bool {
		t, ok := res.(*anycast.TraceResult)
		if !ok || t.Target != line.Target {
			return true
		}
		if nth == line.nth {
			found = t
		}
		nth++
		return found == nil
	})
	if err == nil && found == nil {
		err = missing
	}
	return found, err
}

func (h *Handler) serveTrace(w http.ResponseWriter, r *http.Request) {
	t, err := h.findTrace(r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	writeJSON(w, r, map[string]any{"trace": t, "graph": graphOf(t.Graph())})
}

func (h *Handler) serveTraceGraph(w http.ResponseWriter, r *http.Request) {
	t, err := h.findTrace(r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	var picture bytes.Buffer
	if err := t.Graph().Draw(&picture, trace.SVG, nil); err != nil {
		h.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "image/svg+xml")
	w.Header().Set("Content-Security-Policy", picturePolicy)
	_, _ = w.Write(picture.Bytes())
}

// params reads a request's parameters and keeps the first error.
type params struct {
	url.Values
	err error
}

func (p *params) fail(name, want string) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s is %q, want %s", errRequest, name, p.Get(name), want)
	}
}

func (p *params) number(name string, otherwise, least, most int) int {
	if !p.Has(name) {
		return otherwise
	}
	n, err := strconv.Atoi(p.Get(name))
	if err != nil || n < least || n > most {
		p.fail(name, fmt.Sprintf("a number from %d to %d", least, most))
		return otherwise
	}
	return n
}

func (p *params) flag(name string) bool {
	switch p.Get(name) {
	case "":
		return false
	case "1", "true":
		return true
	case "0", "false":
		return false
	}
	p.fail(name, "true or false")
	return false
}

// prefix reads a prefix, or an address as one that has only itself.
func (p *params) prefix(name string) netip.Prefix {
	s := p.Get(name)
	if s == "" {
		return netip.Prefix{}
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen())
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		p.fail(name, "an address or a prefix such as 192.0.2.0/24")
	}
	return prefix.Masked()
}

func (p *params) time(name string) time.Time {
	s := p.Get(name)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		p.fail(name, "a time such as 2026-01-02T03:04:05Z")
	}
	return t
}

// fail says what went wrong: what the client can mend in words, what it cannot in the log.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case r.Context().Err() != nil:
		// Nobody is left to tell.
	case errors.Is(err, errRequest):
		writeError(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, anycast.ErrNoMeasurement):
		writeError(w, http.StatusNotFound, err.Error())
	case errors.Is(err, errBusy), errors.Is(err, errClosed), errors.Is(err, context.Canceled):
		w.Header().Set("Retry-After", "5")
		writeError(w, http.StatusServiceUnavailable, err.Error())
	default:
		h.log.Error("cannot answer a request", "path", r.URL.Path, "err", err)
		writeError(w, http.StatusInternalServerError, "the controller could not answer this; its log says why")
	}
}

func writeError(w http.ResponseWriter, code int, why string) {
	data, _ := json.Marshal(map[string]string{"error": why}) // a string has always a form
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(data, '\n'))
}

// writeJSON answers. What is long is compressed: maps and tables shrink to a tenth.
func writeJSON(w http.ResponseWriter, r *http.Request, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		writeError(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Vary", "Accept-Encoding")
	if len(data) < gzipAbove || !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		_, _ = w.Write(data)
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // a level that exists
	_, _ = z.Write(data)
	_ = z.Close()
}
