// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/controller"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/web"
)

// pageSource lets the page look at a controller in this process.
type pageSource struct{ *controller.Controller }

var _ web.Source = pageSource{}

// Follow implements web.Source.
func (s pageSource) Follow(ctx context.Context, id string, yield func(web.Event) error) error {
	return s.Controller.Follow(ctx, id, func(p *measurepb.Event) error {
		var e web.Event
		switch p := p.GetEvent().(type) {
		case *measurepb.Event_Measurement:
			m, err := measurepb.ToMeasurement(p.Measurement)
			if err != nil {
				return err
			}
			e.Measurement = &m
		case *measurepb.Event_Progress:
			e.Progress = new(measurepb.ToProgress(p.Progress))
		case *measurepb.Event_Found:
			e.Results = make([]anycast.Result, len(p.Found.GetResults()))
			for i, r := range p.Found.GetResults() {
				var err error
				if e.Results[i], err = measurepb.ToResult(r); err != nil {
					return err
				}
			}
		}
		return yield(e)
	})
}

// pageFile is where a controller leaves the address of its page, with the token that opens it: a log is no
// place for that.
func pageFile(state string) string { return filepath.Join(state, "page-url") }

// servePage serves the controller's page at an address, unless that is empty, until ctx ends.
func servePage(ctx context.Context, group *errgroup.Group, o *controllerOptions, c *controller.Controller, log *slog.Logger) error {
	if o.page == "" {
		return nil
	}
	token := rand.Text()
	handler, err := web.New(web.Options{Source: pageSource{c}, Token: token, Hosts: o.hosts, Log: log})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.page)
	if err != nil {
		return errors.Join(fmt.Errorf("serve the page: %w", err), handler.Close())
	}
	host, port, err := net.SplitHostPort(listener.Addr().String())
	if ip := net.ParseIP(host); err == nil && ip.IsUnspecified() {
		host = "localhost"
		if len(o.hosts) > 0 {
			host = o.hosts[0]
		}
	}
	page := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: "/", RawQuery: url.Values{"token": {token}}.Encode()}
	if err := os.WriteFile(pageFile(o.state), []byte(page.String()+"\n"), 0o600); err != nil {
		return errors.Join(fmt.Errorf("serve the page: %w", err), listener.Close(), handler.Close())
	}
	log.Info("page served", "address", listener.Addr().String(), "url_in", pageFile(o.state))
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	group.Go(func() error {
		<-ctx.Done()
		return errors.Join(handler.Close(), server.Close())
	})
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the page: %w", err)
		}
		return nil
	})
	return nil
}
