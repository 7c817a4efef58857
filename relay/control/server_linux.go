// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/relay"
)

// MaxWait is the longest that a test waits for reports.
const MaxWait = time.Minute

// Listen opens the socket called name. The error is [ErrInUse] when another relay of this
// network namespace has it.
func Listen(name string) (net.Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address(name), Net: "unix"})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("control socket %s: %w", name, ErrInUse)
	} else if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", name, err)
	}
	return &trusted{l}, nil
}

// trusted lets in who may control the relay.
type trusted struct{ *net.UnixListener }

func (l *trusted) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := rawio.PeerUser(c); err == nil && (uid == 0 || uid == os.Getuid()) {
			return c, nil
		}
		c.Close()
	}
}

// Relay is what a server asks: a [relay.Relay].
type Relay interface {
	Status() relay.Status
	Watch(ctx context.Context) <-chan relay.Event
	Searches(top int, contains string) (relay.SearchReport, error)
	Test(ctx context.Context, port uint16) (iter.Seq[relay.TestReport], error)
}

var _ Relay = (*relay.Relay)(nil)

// patience is how long the answers that are under way may take when the server ends.
const patience = time.Second

// Serve answers on l until ctx ends; it closes l.
func Serve(ctx context.Context, l net.Listener, r Relay, log *slog.Logger) error {
	s := &http.Server{
		Handler:           Handler(r),
		ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes:    1 << 14,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// A watcher ends with the relay, not a while after it.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			s.Close()
		}
	})
	err := s.Serve(l)
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return errors.Join(err, s.Close())
}

// Handler answers questions about a relay.
func Handler(r Relay) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, r.Status()) })
	mux.HandleFunc("GET /watch", func(w http.ResponseWriter, req *http.Request) {
		events := r.Watch(req.Context())
		stream(w, func(yield func(relay.Event) bool) {
			for e := range events {
				if !yield(e) {
					return
				}
			}
		})
	})
	mux.HandleFunc("GET /searches", func(w http.ResponseWriter, req *http.Request) {
		top, err := number(req, "top", 20)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		report, err := r.Searches(top, req.URL.Query().Get("contains"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		reply(w, report)
	})
	mux.HandleFunc("POST /test", func(w http.ResponseWriter, req *http.Request) {
		port, err := number(req, "port", 0)
		wait, err2 := time.ParseDuration(req.URL.Query().Get("wait"))
		if err = errors.Join(err, err2); err != nil || port < 0 || port > 65535 || wait <= 0 || wait > MaxWait {
			http.Error(w, fmt.Sprintf("want port from 0 to 65535 and wait up to %v", MaxWait), http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(req.Context(), wait)
		defer cancel()
		reports, err := r.Test(ctx, uint16(port))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		stream(w, reports)
	})
	return mux
}

func number(req *http.Request, key string, otherwise int) (int, error) {
	text := req.URL.Query().Get(key)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s=%q: want a whole number, 0 or more", key, text)
	}
	return n, nil
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who has gone needs no answer
}

// stream writes values as they come, one a line.
func stream[T any](w http.ResponseWriter, values iter.Seq[T]) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w)
	if flush.Flush() != nil { // the header at once: the client then knows that it is heard
		return
	}
	enc := json.NewEncoder(w)
	for v := range values {
		if enc.Encode(v) != nil || flush.Flush() != nil {
			return
		}
	}
}
