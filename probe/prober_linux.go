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
	in, out int // indexes in the poller
	inLost  bool
	outLost bool
}

func newLoopHost(h *rawio.KernelHost, l *Loop) *loopHost {
	return &loopHost{KernelHost: h, loop: l, in: h.Poller().Add(l.In, 0), out: h.Poller().Add(l.Out, 0)}
}

func (h *loopHost) Wait(timeout time.Duration) error {
	p := h.Poller()
	read := !h.inLost && h.loop.WantRead()
	write := !h.outLost && h.loop.WantWrite()
	set := func(index int, want bool, ev rawio.Events, fd int) {
		if want {
			p.SetEvents(index, ev)
		} else {
			p.SetEvents(index, 0)
		}
	}
	set(h.in, read, rawio.Readable, h.loop.In)
	set(h.out, write, rawio.Writable, h.loop.Out)
	if err := p.Wait(timeout); err != nil {
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		return fmt.Errorf("wait: %w", err)
	}
	// Hang-up is reported without being asked for. Nobody wants to be told twice, and a
	// descriptor in that state would end every wait at once.
	if ev := p.Events(h.in); !h.inLost && ev != 0 {
		if read {
			h.loop.OnReadable()
		}
		if ev&rawio.Readable == 0 && ev&rawio.Errored != 0 && !read {
			h.inLost = true
			p.Remove(h.in)
		}
	}
	if ev := p.Events(h.out); !h.outLost && ev != 0 {
		if ev&rawio.Errored != 0 {
			h.outLost = true
			p.Remove(h.out)
			h.loop.OnBroken()
		} else if write {
			h.loop.OnWritable()
		}
	}
	return nil
}
