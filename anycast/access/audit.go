// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/seed5728abee/fathom/anycast/enroll"
)

// Event is one thing that somebody asked for.
type Event struct {
	Time   time.Time       // zero means now
	Who    enroll.Identity // zero if not known
	From   netip.AddrPort  // zero if not over the network
	Action string          // a word: start, cancel, enroll, revoke
	Object string          // on what: a measurement's number and target, a member; cut after 1 kB
	Err    error           // nil if it was done
}

// maxText bounds what a peer can write into the log with one request.
const maxText = 1 << 10

// AuditOptions are the choices of an [Audit]. The zero value is good.
type AuditOptions struct {
	// MaxSize of the file in bytes, before it is put aside and a new one begun; 0 means 16 MiB.
	MaxSize int64
	// Keep that many files that were put aside, and remove older ones; 0 means 8.
	Keep int
}

// Audit is an append-only log: JSON Lines, mode 0600, one write per event. Several processes may write to one
// file. When it is full it is renamed to NAME.TIME, with the time in UTC.
//
//	{"time":"2026-01-02T03:04:05.678Z","who":"operator/alice","from":"192.0.2.7:40112","action":"start","object":"m-17 203.0.113.1","result":"ok"}
//	{"time":"...","who":"viewer/bob","from":"192.0.2.8:5120","action":"start","result":"refused","error":"viewer/bob may not measure: ..."}
type Audit struct {
	path    string
	options AuditOptions

	mu   sync.Mutex // guards all of the following
	file *os.File   // nil after Close
	torn bool       // the last line is not whole
	json slog.Handler
}

// ErrMode: the audit log can be read or written by others.
var ErrMode = errors.New("the audit log is open to other users")

// OpenAudit opens or makes the log. Errors: [ErrMode]; those of the file system.
func OpenAudit(path string, o AuditOptions) (*Audit, error) {
	if o.MaxSize < 0 || o.Keep < 0 {
		return nil, fmt.Errorf("audit log %s: negative limits", path)
	}
	if o.MaxSize == 0 {
		o.MaxSize = 16 << 20
	}
	if o.Keep == 0 {
		o.Keep = 8
	}
	a := &Audit{path: path, options: o}
	a.json = slog.NewJSONHandler((*auditWriter)(a), &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
			if len(groups) == 0 && (attr.Key == slog.LevelKey || attr.Key == slog.MessageKey) {
				return slog.Attr{} // who, what, when and the result are all there is
			}
			return attr
		},
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.openLocked(); err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	return a, nil
}

// Record writes one event. If it fails, the event is not on record, and it is up to the caller whether what it is
// about may be done all the same. After [Audit.Close] it fails with [fs.ErrClosed].
func (a *Audit) Record(e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	r := slog.NewRecord(e.Time.UTC(), slog.LevelInfo, "", 0)
	if e.Who != (enroll.Identity{}) {
		r.AddAttrs(slog.String("who", cut(e.Who.String())))
	}
	if e.From.IsValid() {
		r.AddAttrs(slog.String("from", e.From.String()))
	}
	r.AddAttrs(slog.String("action", cut(e.Action)))
	if e.Object != "" {
		r.AddAttrs(slog.String("object", cut(e.Object)))
	}
	if e.Err == nil {
		r.AddAttrs(slog.String("result", "ok"))
	} else {
		r.AddAttrs(slog.String("result", "refused"), slog.String("error", cut(e.Err.Error())))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.json.Handle(context.Background(), r); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// cut shortens a text that is too long, between characters.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}

// Close closes the log. It may be called again.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	err := a.file.Close()
	a.file = nil
	return err
}

// auditWriter is what the JSON handler writes to: whole lines, with Audit.mu held.
type auditWriter Audit

func (w *auditWriter) Write(line []byte) (int, error) { return (*Audit)(w).writeLocked(line) }

func (a *Audit) writeLocked(line []byte) (int, error) {
	if a.file == nil {
		return 0, fs.ErrClosed
	}
	if err := a.followLocked(int64(len(line))); err != nil {
		return 0, err
	}
	// A line that a full disk cut short ends before the next begins.
	prefix := 0
	if a.torn {
		line, prefix = append([]byte{'\n'}, line...), 1
	}
	n, err := a.file.Write(line)
	if n > 0 {
		a.torn = n < len(line)
	}
	return max(n-prefix, 0), err
}

// followLocked makes sure that the open file is the one of that name, for another process may have put
// it aside, and that it has room.
func (a *Audit) followLocked(room int64) error {
	mine, err := a.file.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(a.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	same := err == nil && os.SameFile(mine, named)
	if same && (mine.Size() == 0 || mine.Size()+room <= a.options.MaxSize) {
		return nil
	}
	if same {
		// If another process does the same at the same time, its new file is put aside a little early; nothing is lost.
		aside := a.path + time.Now().UTC().Format(".20060102T150405.000000000Z")
		if err := os.Rename(a.path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := a.tidy(); err != nil {
			return err
		}
	}
	old := a.file
	if err := a.openLocked(); err != nil {
		return err
	}
	return old.Close()
}

// tidy removes the oldest files that were put aside, beyond those to keep.
func (a *Audit) tidy() error {
	entries, err := os.ReadDir(filepath.Dir(a.path))
	if err != nil {
		return err
	}
	var aside []string
	prefix := filepath.Base(a.path) + "."
	for _, e := range entries {
		stamp, ok := strings.CutPrefix(e.Name(), prefix)
		if _, err := time.Parse("20060102T150405.000000000Z", stamp); ok && err == nil {
			aside = append(aside, e.Name())
		}
	}
	slices.Sort(aside) // by time, as it is written
	for len(aside) > a.options.Keep {
		if err := os.Remove(filepath.Join(filepath.Dir(a.path), aside[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		aside = aside[1:]
	}
	return nil
}

func (a *Audit) openLocked() error {
	f, err := os.OpenFile(a.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", a.path)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		err = fmt.Errorf("%s has mode %#o: run `chmod 0600 %s`: %w", a.path, info.Mode().Perm(), a.path, ErrMode)
	case info.Size() > 0:
		var last [1]byte
		_, err = f.ReadAt(last[:], info.Size()-1)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		a.torn = last[0] != '\n'
	default:
		a.torn = false
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	a.file = f
	return nil
}
