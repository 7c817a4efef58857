// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/controller"
	"github.com/seed5728abee/fathom/probe/stateless"
)

func main() {
	slog.Error("controller ended", "error", serve())
}

func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:50051")
	if err != nil {
		return err
	}
	programs := map[string]anycast.NewProgram{"hears": newHears}
	c, err := controller.New(controller.Options{Start: 10000, End: 20000, Block: 100, Insecure: true, Programs: programs})
	if err != nil {
		return err
	}
	return c.Serve(context.Background(), listener)
}

// hears is one request. It is the handler of its session: answers from all sites come to it.
type hears struct {
	fleet   anycast.Fleet
	targets []netip.Addr

	mu    sync.Mutex // guards sites
	sites map[netip.Addr]string
}

func newHears(conf anycast.ProgramConf) (anycast.Program, error) {
	h := &hears{fleet: conf.Fleet, sites: make(map[netip.Addr]string)}
	for _, word := range conf.Words {
		addr, err := netip.ParseAddr(word)
		if err != nil {
			return nil, err
		}
		h.targets = append(h.targets, addr)
	}
	if len(h.targets) == 0 {
		return nil, errors.New("want addresses, as in: hears 9.9.9.9")
	}
	return h, nil
}

// Run probes the targets from the first site, and waits a second for answers.
func (h *hears) Run(ctx context.Context) (string, error) {
	sites := h.fleet.Sites()
	if len(sites) == 0 {
		return "", anycast.ErrNoSite
	}
	session, err := h.fleet.Open(ctx, anycast.SessionConfig{Probes: stateless.Config{Kind: stateless.ICMP}, Handler: h})
	if err != nil {
		return "", err
	}
	defer session.Close()
	for i, target := range h.targets { // one at a time, since they may be of both IP versions
		b := anycast.Batch{ID: uint64(i), Targets: []netip.Addr{target}, TTLs: []uint8{64}, Flows: []uint16{0}, Numbers: []uint16{0}}
		if err := session.Send(sites[0].Name, b); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	<-ctx.Done()
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := make([]string, len(h.targets))
	for i, target := range h.targets {
		lines[i] = target.String() + " " + cmp.Or(h.sites[target], "*")
	}
	return strings.Join(lines, "\n"), nil
}

func (h *hears) HandleSent(anycast.Sent) {}

func (h *hears) HandleAnswers(all []anycast.Answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range all {
		h.sites[all[i].Target] = all[i].Site
	}
}
