// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/seed5728abee/fathom/anycast"
)

const (
	// maxStreams bounds the event streams open at once.
	maxStreams = 256
	// overviewEvery is how often the source is asked what is new, on behalf of all who watch.
	overviewEvery = time.Second
	// updateEvery is how often those who watch a measurement are told, at most.
	updateEvery = 250 * time.Millisecond
	// beatEvery is how often a stream says that it is alive, for proxies and to notice that the client is gone.
	beatEvery = 15 * time.Second
)

// overview is what the source said last about everything.
type overview struct {
	at           time.Time
	sites        []byte
	measurements []anycast.Measurement
}

// latest gives the sites, as JSON, and the newest measurements. The source is asked once for all who ask within overviewEvery.
func (h *Handler) latest(ctx context.Context) (overview, error) {
	h.mu.Lock()
	v := h.overview
	h.mu.Unlock()
	if time.Since(v.at) < overviewEvery {
		return v, nil
	}
	list, err := h.opts.Source.Measurements(ctx, anycast.Query{Limit: defaultRows})
	if err != nil {
		return overview{}, err
	}
	sites, err := json.Marshal(map[string]any{"sites": h.sites()})
	if err != nil {
		return overview{}, err
	}
	for i := range list {
		list[i] = brief(list[i])
	}
	v = overview{at: time.Now(), sites: sites, measurements: list}
	h.mu.Lock()
	h.overview = v
	h.mu.Unlock()
	return v, nil
}

// stream is an answer of Server-Sent Events.
type stream struct {
	w   http.ResponseWriter
	out *http.ResponseController
	// ctx ends with the client, and with the handler.
	ctx context.Context
}

// stream begins an answer that lasts; done must be called.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request) (s *stream, done func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, nil, errClosed
	}
	if h.streams >= maxStreams {
		return nil, nil, errBusy
	}
	h.streams++
	h.wg.Add(1)
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(h.ctx, cancel)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // proxies must not hold events back
	s = &stream{w: w, out: http.NewResponseController(w), ctx: ctx}
	return s, func() {
		stop()
		cancel()
		h.mu.Lock()
		h.streams--
		h.mu.Unlock()
		h.wg.Done()
	}, nil
}

// send writes one event.
func (s *stream) send(event string, v any) error {
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			return err
		}
	}
	return s.write(fmt.Appendf(nil, "event: %s\ndata: %s\n\n", event, data))
}

// beat writes a line that means nothing.
func (s *stream) beat() error { return s.write([]byte(":\n\n")) }

func (s *stream) write(data []byte) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	// A client that does not read must not hold the stream for ever.
	if err := s.out.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := s.w.Write(data); err != nil {
		return err
	}
	return s.out.Flush()
}

// serveEvents tells of sites and measurements: all at first, then what changed.
func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	s, done, err := h.stream(w, r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer done()
	tick := time.NewTicker(overviewEvery)
	defer tick.Stop()
	var sites []byte
	told := make(map[string][]byte) // measurements
	last := time.Now()
	for {
		v, err := h.latest(s.ctx)
		if s.ctx.Err() != nil {
			return
		}
		if err != nil {
			h.log.Warn("cannot list measurements", "err", err)
			_ = s.send("failure", map[string]string{"error": "the controller could not list its measurements; its log says why"})
			return
		}
		if !bytes.Equal(sites, v.sites) {
			if err := s.send("sites", v.sites); err != nil {
				return
			}
			sites, last = v.sites, time.Now()
		}
		now := make(map[string][]byte, len(v.measurements))
		for i := len(v.measurements) - 1; i >= 0; i-- { // oldest first, as they came
			m := &v.measurements[i]
			data, err := json.Marshal(m)
			if err != nil {
				return
			}
			now[m.ID] = data
			if bytes.Equal(told[m.ID], data) {
				continue
			}
			if err := s.send("measurement", data); err != nil {
				return
			}
			last = time.Now()
		}
		for id := range told {
			// What is older than all in the list may only have made room for newer ones.
			if now[id] == nil && (len(v.measurements) == 0 || id > v.measurements[len(v.measurements)-1].ID) {
				if err := s.send("gone", map[string]string{"id": id}); err != nil {
					return
				}
			}
		}
		told = now
		if time.Since(last) >= beatEvery {
			if err := s.beat(); err != nil {
				return
			}
			last = time.Now()
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
	}
}

// updateJSON is how far a measurement is.
type updateJSON struct {
	Measurement anycast.Measurement `json:"measurement"`
	// Results is how many were found so far, Moved how many targets of a watch changed site.
	Results int `json:"results"`
	Moved   int `json:"moved,omitempty"`
}

// serveMeasurementEvents tells how far a measurement is, until it is over.
func (h *Handler) serveMeasurementEvents(w http.ResponseWriter, r *http.Request) {
	m, err := h.measurement(r.Context(), r.PathValue("id"))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	f, err := h.follow(m)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer h.release(f)
	s, done, err := h.stream(w, r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer done()
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		var u updateJSON
		var changed chan struct{}
		f.mu.Lock()
		u.Measurement, u.Results, u.Moved = brief(f.m), f.sum.results, f.sum.moved
		changed = f.changed
		f.mu.Unlock()
		ended := false
		select {
		case <-f.over:
			ended = true
			f.mu.Lock()
			u.Measurement, u.Results, u.Moved = brief(f.m), f.sum.results, f.sum.moved
			f.mu.Unlock()
		default:
		}
		if err := s.send("update", u); err != nil {
			return
		}
		if ended {
			_ = s.send("end", u)
			return
		}
		select {
		case <-changed:
		case <-beat.C:
			if err := s.beat(); err != nil {
				return
			}
		case <-s.ctx.Done():
			return
		}
		select { // what changes meanwhile is told together
		case <-time.After(updateEvery):
		case <-f.over:
		case <-s.ctx.Done():
			return
		}
	}
}
