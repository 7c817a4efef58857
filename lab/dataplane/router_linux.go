// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// AddRouter runs a router whose port i is ports[i]. The engine owns the
// FrameConns from here on, also when AddRouter fails. Errors: [ErrRouter],
// [net.ErrClosed].
func (e *Engine) AddRouter(ports []*rawio.FrameConn, cfg RouterConfig) (*Router, error) {
	r, err := e.addRouter(ports, cfg)
	if err != nil {
		for _, c := range ports {
			c.Close()
		}
		return nil, fmt.Errorf("router %s: %w", cfg.Name, err)
	}
	e.poller.Wake()
	return r, nil
}

func (e *Engine) addRouter(conns []*rawio.FrameConn, cfg RouterConfig) (*Router, error) {
	if len(conns) != len(cfg.Ports) {
		return nil, fmt.Errorf("%w: %d ports, %d interfaces", ErrRouter, len(cfg.Ports), len(conns))
	}
	cfg.Ports = slices.Clone(cfg.Ports)
	for i, c := range conns {
		ifi := c.Interface()
		if cfg.Ports[i].MAC == nil {
			cfg.Ports[i].MAC = ifi.HardwareAddr
		}
		if cfg.Ports[i].MTU == 0 {
			cfg.Ports[i].MTU = ifi.MTU
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, net.ErrClosed
	}
	var ports []*port
	r, err := newRouter(cfg, &e.pool, func(i int, frame []byte, pooled bool) { ports[i].send(frame, pooled) })
	if err != nil {
		return nil, err
	}
	r.mu = &e.mu
	r.clock = e.now
	for i, c := range conns {
		p := e.addPort(c)
		p.sendErrors = &r.counters.SendErrors
		p.handle = func(now, _ time.Duration, f *rawio.Frame) {
			if f.Truncated {
				r.counters.Malformed++
				return
			}
			r.input(now, i, f.Data)
		}
		ports = append(ports, p)
	}
	e.routers = append(e.routers, r)
	return r, nil
}
