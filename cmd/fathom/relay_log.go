// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// originLog writes a log in SnowSignal's form, for what reads its logs today:
//
//	2026-01-31 12:00:00,123 - INFO: text
type originLog struct {
	mu    *sync.Mutex
	w     io.Writer
	level slog.Leveler
	attrs string
}

func newOriginLog(w io.Writer, level slog.Leveler) *originLog {
	return &originLog{mu: new(sync.Mutex), w: w, level: level}
}

func (h *originLog) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *originLog) Handle(_ context.Context, r slog.Record) error {
	name := "DEBUG"
	switch {
	case r.Level > slog.LevelError:
		name = "CRITICAL"
	case r.Level == slog.LevelError:
		name = "ERROR"
	case r.Level >= slog.LevelWarn:
		name = "WARNING"
	case r.Level >= slog.LevelInfo:
		name = "INFO"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s,%03d - %s: %s%s", r.Time.Format("2006-01-02 15:04:05"), r.Time.Nanosecond()/1e6, name, r.Message, h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		text.WriteString(attrText(a))
		return true
	})
	text.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.w, text.String())
	return err
}

func attrText(a slog.Attr) string {
	value := a.Value.Resolve().String()
	if strings.ContainsAny(value, " =\"\n\r\t\x1b") {
		value = fmt.Sprintf("%q", value)
	}
	return " " + a.Key + "=" + value
}

func (h *originLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := *h
	for _, a := range attrs {
		more.attrs += attrText(a)
	}
	return &more
}

func (h *originLog) WithGroup(string) slog.Handler { return h } // nothing here has groups
