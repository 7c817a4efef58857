// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/internal/rawio"
)

const (
	errHostDown = unix.EHOSTDOWN
	errNoDevice = unix.ENODEV
)

// open opens the sockets of the mode that the options ask for.
func (e *engine) open() error {
	if e.host = e.p.opts.host; e.host == nil {
		h, err := rawio.NewHost()
		if err != nil {
			return fmt.Errorf("open prober: %w", err)
		}
		e.host = h
		if e.p.opts.Loop != nil {
			e.host = newLoopHost(h, e.p.opts.Loop)
		}
	}
	if err := e.openBackend(); err != nil {
		e.host.Close()
		return err
	}
	return nil
}

func (e *engine) openBackend() error {
	mode := e.p.opts.Mode
	if mode != Unprivileged {
		b, err := newRaw(e)
		if err == nil {
			e.back = b
			return nil
		}
		if mode == Privileged || !errors.Is(err, ErrPermission) {
			if errors.Is(err, ErrPermission) {
				err = fmt.Errorf("raw sockets need CAP_NET_RAW: run as root, or give it with `setcap cap_net_raw+ep PROGRAM`: %w", err)
			}
			return fmt.Errorf("open prober: %w", err)
		}
	}
	b, err := newUnprivileged(e)
	if err != nil {
		return fmt.Errorf("open prober: %w", err)
	}
	e.back = b
	return nil
}

// loopHost is the kernel's Host with two more descriptors in its wait.
type loopHost struct {
	*rawio.KernelHost
	loop    *Loop
	in, out int // indexes in the poller; in is negative while not watched
	broken  bool
}

func newLoopHost(h *rawio.KernelHost, l *Loop) *loopHost {
	return &loopHost{KernelHost: h, loop: l, in: -1, out: h.Poller().Add(l.Out, 0)}
}

func (h *loopHost) Wait(timeout time.Duration) error {
	p := h.Poller()
	// Hang-up is reported whether asked for or not, and would end every wait at once. There may
	// still be something to read after it, so In is not watched while nobody wants to.
	switch read := h.loop.WantRead(); {
	case read && h.in < 0:
		h.in = p.Add(h.loop.In, rawio.Readable)
	case !read && h.in >= 0:
		p.Remove(h.in)
		h.in = -1
	}
	write := h.loop.WantWrite()
	if !h.broken {
		events := rawio.Events(0)
		if write {
			events = rawio.Writable
		}
		p.SetEvents(h.out, events)
	}
	if err := p.Wait(timeout); err != nil {
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		return fmt.Errorf("wait: %w", err)
	}
	if h.in >= 0 && p.Ready(h.in) {
		h.loop.OnReadable()
	}
	if h.broken {
		return nil
	}
	switch ev := p.Events(h.out); {
	case ev&rawio.Errored != 0:
		h.broken = true
		p.Remove(h.out)
		h.loop.OnBroken()
	case ev != 0 && write:
		h.loop.OnWritable()
	}
	return nil
}
