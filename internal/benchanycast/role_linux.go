// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// outcome is what a role prints, as JSON.
type outcome struct {
	Requests  int             // that were answered with a result
	Failed    int             // that were not
	Stars     int             // probes without an answer
	Wrong     int             // lines that are not what the lab is, stars apart
	Untimed   int             // answers without a time
	Sample    string          // of what is wrong
	Latencies []time.Duration // of requests
	Elapsed   time.Duration
	CPU       time.Duration
	Summary   *anycast.Summary // of a measurement
	Results   int              // that it told, one for each target
	Silent    int              // of them, without an answer
}

func (o *outcome) rate() float64 { return float64(o.Requests) / o.Elapsed.Seconds() }

// role runs in a process of its own on the controller's host, so that the system accounts for it alone.
func role(args []string) error {
	fs := flag.NewFlagSet("role", flag.ContinueOnError)
	address := fs.String("address", "", "")
	want := fs.Int("sites", 0, "")
	atOnce := fs.Int("at-once", 1, "")
	requests := fs.Int("requests", 0, "")
	seconds := fs.Duration("seconds", 0, "")
	command := fs.String("command", "", "")
	path := fs.String("truth", "", "")
	sender := fs.String("sender", "", "")
	targets := fs.Int("targets", 0, "")
	first := fs.String("first", "", "")
	rate := fs.Float64("rate", 0, "")
	timeout := fs.Duration("timeout", 0, "")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	o := &outcome{}
	if args[0] == "sink" {
		addr, err := netip.ParseAddr(*first)
		if err != nil {
			return err
		}
		if err := drain(ctx, *address, addr, *targets, o); err != nil {
			return err
		}
		o.CPU = cpu()
		return json.NewEncoder(os.Stdout).Encode(o)
	}
	c, err := client.Dial(ctx, *address, client.Options{Insecure: true})
	if err != nil {
		return err
	}
	defer c.Close()
	switch args[0] {
	case "wait":
		err = wait(ctx, c, *want)
	case "ask":
		a := &asking{client: c, command: *command, left: *requests, out: o}
		if err := json.Unmarshal([]byte(*path), &a.truth); err != nil {
			return fmt.Errorf("truth: %w", err)
		}
		if *seconds > 0 {
			a.stop = time.Now().Add(*seconds)
		}
		a.run(ctx, *atOnce)
	case "sweep":
		addr, err := netip.ParseAddr(*first)
		if err != nil {
			return err
		}
		d := anycast.Definition{
			Program: anycast.KindCatchment, Sites: []string{*sender}, Protocol: stateless.ICMP, Timeout: *timeout,
			Pace: anycast.Pace{Rate: *rate, PerNetwork: -1}, AllowPrivate: true,
		}
		if err := sweep(ctx, c, d, addr, *targets, o); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown role %q", args[0])
	}
	if err != nil {
		return err
	}
	o.CPU = cpu()
	return json.NewEncoder(os.Stdout).Encode(o)
}

// wait waits until so many sites are connected and their clocks are known.
func wait(ctx context.Context, c *client.Client, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		sites, err := c.Sites(ctx)
		if err != nil {
			return err
		}
		ready := slices.DeleteFunc(sites, func(s anycast.Site) bool { return s.Clock.Error == 0 })
		if len(ready) == want {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d sites are ready, want %d", len(ready), want)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// asking sends the same request again and again.
type asking struct {
	client  *client.Client
	command string
	truth   truth
	stop    time.Time // no new ones after it; zero for no end

	mu   sync.Mutex // guards what follows
	left int        // requests; 0 and no stop is none
	out  *outcome
}

func (a *asking) run(ctx context.Context, atOnce int) {
	start := time.Now()
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for a.next() {
				a.ask(ctx)
			}
		})
	}
	group.Wait()
	a.out.Elapsed = time.Since(start)
}

// next tells whether there is another request to send.
func (a *asking) next() bool {
	if !a.stop.IsZero() {
		return time.Now().Before(a.stop)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left--
	return a.left >= 0
}

func (a *asking) ask(ctx context.Context) {
	start := time.Now()
	code, output, err := a.client.Request(ctx, a.command)
	took := time.Since(start)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil || code != 200 {
		a.out.Failed++
		a.sample(fmt.Sprint(code, " ", output, " ", err))
		return
	}
	a.out.Requests++
	a.out.Latencies = append(a.out.Latencies, took)
	stars, wrong, untimed := a.truth.compare(output)
	a.out.Stars += stars
	a.out.Wrong += wrong
	a.out.Untimed += untimed
	if stars+wrong > 0 {
		a.sample(output)
	}
}

func (a *asking) sample(text string) {
	if a.out.Sample == "" {
		a.out.Sample = text
	}
}

// queries is how many probes each hop gets.
const queries = 3

// compare counts what is wrong with the text of a traceroute.
func (t truth) compare(text string) (stars, wrong, untimed int) {
	_, text, _ = strings.Cut(text, "\n") // what comes first repeats the request
	lines := strings.Split(text, "\n")
	if len(lines) != len(t) {
		return 0, len(t), 0
	}
	for i, line := range lines {
		parts := strings.Split(line, "  ")
		h := t[i]
		answered := false
		times, silent := 0, 0
		for k, part := range parts {
			switch {
			case k == 0:
				if part != fmt.Sprint(i+1) {
					wrong++
				}
			case part == "*":
				silent++
			case strings.HasSuffix(part, " ms"):
				times++
			case part == fmt.Sprintf("%s (%s) %s", h.Addr, h.Addr, h.Site) && !answered:
				answered = true
			default:
				wrong++
			}
		}
		if !answered && silent < queries {
			wrong++
		}
		stars += silent
		untimed += queries - silent - times
	}
	return stars, wrong, untimed
}

// sweep measures the catchment of so many addresses in a row.
func sweep(ctx context.Context, c *client.Client, d anycast.Definition, first netip.Addr, n int, o *outcome) error {
	targets := client.Targets{Addrs: make([]netip.Addr, 0, n)}
	for a := first; len(targets.Addrs) < n; a = a.Next() {
		targets.Addrs = append(targets.Addrs, a)
	}
	start := time.Now()
	stream, err := c.Start(ctx, d, targets, true)
	if err != nil {
		return err
	}
	for event, err := range stream.All() {
		if err != nil {
			return err
		}
		for _, r := range event.Results {
			switch r := r.(type) {
			case *anycast.Catch:
				o.Results++
				if r.Receiver == "" {
					o.Silent++
				}
			case *anycast.Summary:
				o.Summary = r
			}
		}
	}
	o.Elapsed = time.Since(start)
	if m := stream.Measurement(); m.Error != "" || o.Summary == nil {
		return fmt.Errorf("measurement %s: %w", m.State, errors.New(m.Error))
	}
	return nil
}

// on runs a role beside the controller.
func (b *bench) on(ctx context.Context, f *fleet, role string, args ...string) (outcome, error) {
	c := f.lab.Host("controller").Command(ctx, b.self, append([]string{"role", role, "-address", f.address}, args...)...)
	var o outcome
	out, err := c.Output()
	if err != nil {
		return o, fmt.Errorf("role %s: %w: %s", role, err, stderrOf(err))
	}
	if err := json.Unmarshal(out, &o); err != nil {
		return o, fmt.Errorf("role %s: %w", role, err)
	}
	if b.verbose && o.Sample != "" {
		fmt.Fprintln(os.Stderr, o.Sample)
	}
	return o, nil
}

func stderrOf(err error) string {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return strings.TrimSpace(string(e.Stderr))
	}
	return ""
}
