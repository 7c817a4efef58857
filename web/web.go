// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"

	"github.com/seed5728abee/fathom/anycast"
)

// Errors to branch on.
var (
	// ErrOptions means that Options lack something.
	ErrOptions = errors.New("web: invalid options")
	// errBusy means that as many measurements are being looked at as there is room for.
	errBusy = errors.New("too many measurements are being looked at; try again later")
	// errClosed means that the handler is closed.
	errClosed = errors.New("the server is stopping")
)

// Source is what the page shows. Its methods are called from several goroutines. A controller is one, and so is a client of a
// controller elsewhere.
type Source interface {
	// Sites gives the connected sites, by name.
	Sites() []anycast.Site
	// Measurements gives those that match, newest first, also those that are still running.
	Measurements(ctx context.Context, q anycast.Query) ([]anycast.Measurement, error)
	// Results gives those that match, in the order found, until yield returns false.
	Results(ctx context.Context, q anycast.Query, yield func(id string, r anycast.Result) bool) error
	// Follow tells all about a measurement: its state, everything it found, in order, each once, and, last, its state at the end.
	// It returns when the measurement is over, with yield's error, or when ctx ends. The error is
	// anycast.ErrNoMeasurement if there is none of that id.
	Follow(ctx context.Context, id string, yield func(Event) error) error
}

// Event is something that a Source tells about a measurement: one of its fields is set.
type Event struct {
	// Measurement is its state: first of all, when it changes, and last of all.
	Measurement *anycast.Measurement
	// Progress is told every now and then once all earlier results have been.
	Progress *anycast.Progress
	Results  []anycast.Result
}

// Options of New.
type Options struct {
	// Source is what to show. It must be set.
	Source Source
	// Token is the secret that opens the page; without one, only clients of the same host may see it.
	Token string
	// Hosts are the names, without port, by which browsers reach the server, beside localhost and the
	// address that a connection came in on.
	Hosts []string
	// Log tells of failures of the source; nil is silence.
	Log *slog.Logger
}

// Handler serves the page and its API. Close it after use.
type Handler struct {
	opts    Options
	log     *slog.Logger
	handler http.Handler
	gate    gate

	// ctx ends with Close, and with it every stream and follower.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // followers, and streams being answered

	mu       sync.Mutex // guards all following fields
	closed   bool
	streams  int
	followed map[string]*follower
	clock    uint64 // counts uses of followers
	overview overview
}

var _ http.Handler = (*Handler)(nil)

// New makes a handler. Its URLs are relative, so it may be mounted below a path with http.StripPrefix. The error is ErrOptions.
func New(o Options) (*Handler, error) {
	if o.Source == nil {
		return nil, errors.Join(ErrOptions, errors.New("there is no source"))
	}
	h := &Handler{opts: o, log: o.Log, gate: newGate(o.Token, o.Hosts), followed: make(map[string]*follower)}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	for _, r := range h.routes() {
		mux.HandleFunc("GET "+r.pattern, r.serve)
	}
	mux.HandleFunc("GET /{$}", h.servePage)
	mux.HandleFunc("GET /page/", h.serveAsset)
	h.handler = h.gate.guard(mux)
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.handler.ServeHTTP(w, r) }

// Close ends all streams and waits for them. It may be called again; it returns nil.
func (h *Handler) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.wg.Wait()
	return nil
}

// route is one call of the API.
type route struct {
	pattern string
	serve   http.HandlerFunc
}

func (h *Handler) routes() []route {
	return []route{
		{"/api", h.serveOpenAPI},
		{"/api/sites", h.serveSites},
		{"/api/events", h.serveEvents},
		{"/api/measurements", h.serveMeasurements},
		{"/api/measurements/{id}", h.serveMeasurement},
		{"/api/measurements/{id}/results", h.serveResults},
		{"/api/measurements/{id}/summary", h.serveSummary},
		{"/api/measurements/{id}/networks", h.serveNetworks},
		{"/api/measurements/{id}/map", h.serveMap},
		{"/api/measurements/{id}/events", h.serveMeasurementEvents},
		{"/api/measurements/{id}/traces/{n}", h.serveTrace},
		{"/api/measurements/{id}/traces/{n}/graph.svg", h.serveTraceGraph},
		{"/api/compare", h.serveCompare},
	}
}
