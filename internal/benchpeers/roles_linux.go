// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

// outcome is what a role prints, as JSON.
type outcome struct {
	Answered int           // probes
	Failed   int           // probes that were refused
	Silent   int           // probes that timed out
	Elapsed  time.Duration // from the first probe to the last result
	CPU      time.Duration // user and system, of that time
	WaitCPU  time.Duration // of the part in which nothing but waiting was to be done
	WaitTime time.Duration
	MaxRSS   int64           // bytes
	Allocs   float64         // per probe
	RTTs     []time.Duration // by number
	Numbers  []uint32        // identifier and sequence number, for RTTs
	Late     []time.Duration // of results, after their deadline
	Path     time.Duration   // the longest round-trip time in a trace
}

func (o *outcome) rate() float64 { return float64(o.Answered) / o.Elapsed.Seconds() }

// cpuPer100k is in seconds.
func (o *outcome) cpuPer100k() float64 { return o.CPU.Seconds() * 1e5 / float64(max(o.Answered, 1)) }

// role runs in a process of its own on a lab host, so that the system accounts for it alone.
func role(args []string) error {
	fs := flag.NewFlagSet("role", flag.ContinueOnError)
	target := fs.String("target", "", "")
	protocol := fs.String("protocol", "icmp", "")
	window := fs.Int("window", 256, "")
	seconds := fs.Duration("seconds", time.Second, "")
	count := fs.Int("count", 0, "")
	interval := fs.Duration("interval", 0, "")
	timeout := fs.Duration("timeout", 5*time.Second, "")
	port := fs.Uint("port", 0, "")
	frames := fs.Bool("frames", false, "")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	addr, err := netip.ParseAddr(*target)
	if err != nil {
		return err
	}
	p, err := probe.ParseProtocol(*protocol)
	if err != nil {
		return err
	}
	req := probe.Request{Target: addr, Protocol: p, Timeout: *timeout, Port: uint16(*port)}
	var o outcome
	switch args[0] {
	case "closed":
		o, err = closedLoop(req, *window, *seconds, *frames)
	case "paced":
		o, err = paced(req, *count, *interval, *window)
	case "silent":
		o, err = silent(req, *count)
	case "trace":
		o, err = traceRole(addr)
	case "bare":
		o, err = bareRole(addr, *protocol, *seconds, *frames)
	default:
		err = fmt.Errorf("unknown role %q", args[0])
	}
	if err != nil {
		return err
	}
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err == nil {
		o.MaxRSS = ru.Maxrss << 10
	}
	return json.NewEncoder(os.Stdout).Encode(&o)
}

// cpu is what the process has used so far.
func cpu() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// closedLoop keeps window probes in flight for a time.
func closedLoop(req probe.Request, window int, d time.Duration, frames bool) (outcome, error) {
	p, err := probe.New(probe.Options{SendFrames: frames})
	if err != nil {
		return outcome{}, err
	}
	defer p.Close()
	var o outcome
	done := make(chan struct{})
	flying := window
	var stop time.Time
	var before, after mallocs
	var next func(probe.Result)
	next = func(r probe.Result) { // on the prober's goroutine: no locks needed
		switch {
		case r.Status == probe.Failed:
			o.Failed++
		case r.Answered():
			o.Answered++
		default:
			o.Silent++
		}
		// A look at the clock per probe would be measured, too.
		if o.Answered%64 != 0 || time.Now().Before(stop) {
			if _, err := p.Start(req, next); err == nil {
				return
			}
		}
		if flying--; flying == 0 {
			after.read()
			close(done)
		}
	}
	before.read()
	start, used := time.Now(), cpu()
	stop = start.Add(d)
	for range window {
		if _, err := p.Start(req, next); err != nil {
			return o, err
		}
	}
	<-done
	o.Elapsed, o.CPU = time.Since(start), cpu()-used
	o.Allocs = float64(after.n-before.n) / float64(o.Answered)
	return o, nil
}

// pacedID is the identifier by which a capture knows the probes.
const pacedID = 4242

// paced sends count probes, one per interval, or (interval 0) all at once, window at a time, and keeps each RTT
// with the number by which a capture finds the probe.
func paced(req probe.Request, count int, interval time.Duration, window int) (outcome, error) {
	p, err := probe.New(probe.Options{ICMPID: pacedID, FirstSequence: 1})
	if err != nil {
		return outcome{}, err
	}
	defer p.Close()
	o := outcome{RTTs: make([]time.Duration, count), Numbers: make([]uint32, count)}
	done := make(chan struct{})
	left := count
	sent := 0
	var start func() error
	result := func(r probe.Result) {
		if r.Status == probe.Replied {
			o.Answered++
			o.RTTs[r.Tag] = r.RTT
		}
		o.Numbers[r.Tag] = uint32(r.Tag)%65535 + 1 // sequence numbers are handed out in order
		if interval == 0 {
			if err := start(); err != nil {
				o.Failed++
			}
		}
		if left--; left == 0 {
			close(done)
		}
	}
	start = func() error {
		if sent == count {
			return nil
		}
		r := req
		r.Tag = uint64(sent)
		sent++
		_, err := p.Start(r, result)
		return err
	}
	begin, used := time.Now(), cpu()
	if interval > 0 {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for range count {
			if err := start(); err != nil {
				return o, err
			}
			<-tick.C
		}
	} else {
		// All in one go, before the prober's goroutine starts the next ones.
		first := make([]probe.Request, min(window, count))
		sent = len(first)
		for i := range first {
			first[i] = req
			first[i].Tag = uint64(i)
		}
		for _, r := range first {
			if _, err := p.Start(r, result); err != nil {
				return o, err
			}
		}
	}
	<-done
	o.Elapsed, o.CPU = time.Since(begin), cpu()-used
	return o, nil
}

// silent has count probes in flight, to addresses from the target on that nobody answers for.
func silent(req probe.Request, count int) (outcome, error) {
	p, err := probe.New(probe.Options{})
	if err != nil {
		return outcome{}, err
	}
	defer p.Close()
	o := outcome{Late: make([]time.Duration, 0, count)}
	done := make(chan struct{})
	var firstEnd time.Time
	var cpuAtFirst time.Duration
	left := count
	result := func(r probe.Result) {
		if left == count {
			firstEnd, cpuAtFirst = time.Now(), cpu()
		}
		switch r.Status {
		case probe.NoReply:
			o.Silent++
			o.Late = append(o.Late, time.Since(r.Sent)-req.Timeout)
		case probe.Failed:
			o.Failed++
		default:
			o.Answered++
		}
		if left--; left == 0 {
			close(done)
		}
	}
	start, used := time.Now(), cpu()
	for i := range count {
		r := req
		if req.Protocol != probe.TCP {
			r.Target = nth(req.Target, i)
		}
		if _, err := p.Start(r, result); err != nil {
			return o, err
		}
	}
	for p.Counters().Sent < uint64(count) && time.Since(start) < req.Timeout {
		time.Sleep(time.Millisecond)
	}
	allSent, cpuAtSent := time.Now(), cpu()
	<-done
	o.WaitTime, o.WaitCPU = firstEnd.Sub(allSent), cpuAtFirst-cpuAtSent
	o.Elapsed, o.CPU = time.Since(start), cpu()-used
	return o, nil
}

// nth is the address i after a.
func nth(a netip.Addr, i int) netip.Addr {
	b := a.As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += uint32(i)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// traceRole traces 20 hops with 3 probes each, and tells how long that took beyond the path's own round-trip time.
func traceRole(target netip.Addr) (outcome, error) {
	p, err := probe.New(probe.Options{})
	if err != nil {
		return outcome{}, err
	}
	defer p.Close()
	req, opts := probe.Request{Target: target, Protocol: probe.UDP}, trace.Options{Queries: 3}
	// Once to fill the neighbour tables on the way.
	if _, err := trace.Run(context.Background(), p, req, opts); err != nil {
		return outcome{}, err
	}
	used, start := cpu(), time.Now()
	path, err := trace.Run(context.Background(), p, req, opts)
	o := outcome{Elapsed: time.Since(start), CPU: cpu() - used}
	if err != nil {
		return o, err
	}
	for _, h := range path.Hops {
		for _, r := range h.Replies {
			if r.Responder.IsValid() {
				o.Answered++
				o.Path = max(o.Path, r.RTT)
			} else {
				o.Silent++
			}
		}
	}
	return o, nil
}

func bareRole(target netip.Addr, protocol string, d time.Duration, frames bool) (outcome, error) {
	loop := rawio.BareEcho
	switch {
	case frames:
		loop = rawio.BareFrames
	case protocol == "udp":
		loop = rawio.BareUDP
	}
	used := cpu()
	n, elapsed, err := loop(target, d)
	return outcome{Answered: n, Elapsed: elapsed, CPU: cpu() - used}, err
}

// on runs a role on a lab host.
func (b *bench) on(ctx context.Context, host, role string, args ...string) (outcome, error) {
	c := b.lab.Host(host).Command(ctx, b.self, append([]string{"role", role}, args...)...)
	var o outcome
	out, err := c.Output()
	if err != nil {
		return o, fmt.Errorf("role %s %s: %w: %s", role, strings.Join(args, " "), err, stderrOf(err))
	}
	if err := json.Unmarshal(out, &o); err != nil {
		return o, fmt.Errorf("role %s: %w", role, err)
	}
	return o, nil
}

func stderrOf(err error) string {
	if e, ok := err.(*exec.ExitError); ok {
		return strings.TrimSpace(string(e.Stderr))
	}
	return ""
}
