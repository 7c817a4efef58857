// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// exampleFile is the lab of the demo, of the scripts and of the guide.
const exampleFile = "../../examples/anycast.toml"

const (
	// insideVariable makes the test program enter namespaces before its tests, so that they can build labs in it.
	insideVariable = "FATHOM_TEST_INSIDE"
	// exitNoNamespaces is how it ends where that is forbidden.
	exitNoNamespaces = 77
)

var inside bool

func init() {
	enterLab = func() {
		if os.Getenv(insideVariable) == "" {
			return
		}
		if err := lab.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitNoNamespaces)
		}
		os.Unsetenv(insideVariable) // what runs in the lab is this program, too
		inside = true
	}
}

// insideLab tells whether the test runs where it can build a lab. If not it is run again in such a place, and has
// nothing more to do here. Such tests are long, but mostly wait, each in a lab of its own: they go together, and not in short runs.
func insideLab(t *testing.T) bool {
	t.Helper()
	if testing.Short() {
		t.Skip("a fleet of processes takes some seconds")
	}
	t.Parallel() // each in a lab of its own, and mostly waiting
	if inside {
		return true
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		t.Logf("%s", out)
	case cmd.ProcessState.ExitCode() == exitNoNamespaces:
		t.Skipf("%s", out)
	default:
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// patience is how long anything may take on a busy machine.
const patience = 20 * time.Second

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// controllerAddress is that of the host control in the example.
const controllerAddress = "10.0.4.1:50051"

// testFleet is the programs of a fleet, each a process on its host of the example's lab.
type testFleet struct {
	t   *testing.T
	lab *lab.Lab
	dir string
	n   int // processes so far

	// controllerVia, if it is set, is the program that starts the controller, and its arguments.
	controllerVia []string

	controller *process
	agents     map[string]*process
	client     *client.Client // of the host control; it connects again by itself
}

// newTestFleet builds the lab. The wires of the sites and of the controller can be changed.
func newTestFleet(t *testing.T) *testFleet {
	t.Helper()
	topology, err := lab.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	for i := range topology.Wires[:4] {
		topology.Wires[i].Adjustable = true
	}
	f := &testFleet{t: t, lab: lab.New(t, topology), dir: t.TempDir(), agents: map[string]*process{}}
	return f
}

// start starts the controller and all agents, and waits until they are connected.
func (f *testFleet) start(controllerOptions ...string) {
	f.t.Helper()
	f.startController(controllerOptions...)
	for _, site := range demoSites {
		f.startAgent(site)
	}
	f.waitForSites(demoSites...)
}

func (f *testFleet) startController(options ...string) {
	f.t.Helper()
	args := append(slices.Clone(f.controllerVia), "fathom", "anycast", "controller", "--insecure", "--state", filepath.Join(f.dir, "state"))
	args = append(args, options...)
	f.controller = f.runProgram("control", args[0], args[1:]...)
	if f.client != nil {
		return
	}
	eventually(f.t, "the controller serves", func() bool {
		f.controller.mustRun()
		ctx, cancel := context.WithTimeout(f.t.Context(), time.Second)
		defer cancel()
		c, err := f.dial(ctx, "control")
		if err != nil {
			return false
		}
		f.client = c
		f.t.Cleanup(func() { c.Close() })
		return true
	})
}

func (f *testFleet) startAgent(site string) *process {
	f.t.Helper()
	p := f.run(site, "agent", "-i", site, "-c", controllerAddress, "--insecure", "--source", "192.0.2.1,2001:db8::1")
	f.agents[site] = p
	return p
}

// dial connects to the controller from a host.
func (f *testFleet) dial(ctx context.Context, host string) (*client.Client, error) {
	return client.Dial(ctx, controllerAddress, client.Options{
		Insecure: true,
		Dialer: func(ctx context.Context, address string) (net.Conn, error) {
			return dialFrom(f.lab.Host(host))(ctx, "tcp", address)
		},
	})
}

func (f *testFleet) siteNames() (names []string) {
	sites, err := f.client.Sites(f.t.Context())
	if err != nil {
		return nil
	}
	for _, s := range sites {
		names = append(names, s.Name)
	}
	return names
}

func (f *testFleet) waitForSites(want ...string) {
	f.t.Helper()
	eventually(f.t, "sites "+strings.Join(want, " "), func() bool {
		f.controller.mustRun()
		return strings.Join(f.siteNames(), " ") == strings.Join(want, " ")
	})
}

// process is one of the program's on a host.
type process struct {
	t    *testing.T
	name string
	*lab.Cmd
	out, log buffer
	ended    chan struct{}
	err      error // when ended is closed
}

// run starts an anycast command on a host.
func (f *testFleet) run(host string, args ...string) *process {
	f.t.Helper()
	return f.runProgram(host, "fathom", append([]string{"anycast"}, args...)...)
}

// runProgram starts a program on a host. It is killed at the latest with the test.
func (f *testFleet) runProgram(host, name string, args ...string) *process {
	f.t.Helper()
	f.n++
	c := f.lab.Host(host).Command(context.Background(), name, args...)
	c.Env = append(os.Environ(), "HOME="+f.dir)
	return startProcess(f.t, fmt.Sprintf("%d, %s on %s", f.n, strings.Join(args, " "), host), c)
}

// startProcess starts a command, and kills it at the latest with the test. Its output is kept, unless it goes elsewhere.
func startProcess(t *testing.T, name string, c *lab.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, Cmd: c, ended: make(chan struct{})}
	p.Stderr = &p.log
	if p.Stdout == nil {
		p.Stdout = &p.out
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("process %s:\n%s%s", p.name, tail(p.out.String()), tail(p.log.String()))
		}
	})
	return p
}

// tail is the end of a text, as much as one wants to read.
func tail(s string) string { return s[max(0, len(s)-4000):] }

// kill ends a process as kill -9 does, and waits for that.
func (p *process) kill() {
	_ = p.Process.Kill() // it may have ended
	<-p.ended
}

// running tells whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *process) mustRun() {
	p.t.Helper()
	if !p.running() {
		p.t.Fatalf("process %s ended: %v", p.name, p.err)
	}
}

// code waits for the end of a process and gives its exit code.
func (p *process) code() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(2 * patience):
		p.t.Fatalf("process %s does not end", p.name)
	}
	if exit, ok := errors.AsType[*exec.ExitError](p.err); ok {
		return exit.ExitCode()
	} else if p.err != nil {
		p.t.Fatal(p.err)
	}
	return 0
}

// buffer is a bytes.Buffer that can be read while it is written to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// targets gives n addresses of each of some customers, in turn.
func (f *testFleet) targets(n int, customers ...string) (addrs []netip.Addr) {
	hosts := make([]netip.Addr, len(customers))
	for i, c := range customers {
		hosts[i] = f.lab.Host(c).Addr()
	}
	for range n {
		for i := range hosts {
			addrs = append(addrs, hosts[i])
			hosts[i] = hosts[i].Next()
		}
	}
	return addrs
}

// catchment defines one from one site, at a rate.
func catchment(rate float64, sites ...string) anycast.Definition {
	return anycast.Definition{
		Program: anycast.KindCatchment, Protocol: stateless.ICMP, Sites: sites, AllowPrivate: true,
		Pace: anycast.Pace{Rate: rate, PerNetwork: -1, SiteGap: -1},
	}
}

// watched is a measurement that is under way, and what it told.
type watched struct {
	t     *testing.T
	id    string
	ended chan struct{}
	err   error // when ended is closed

	mu       sync.Mutex // guards all following fields
	last     anycast.Measurement
	catches  map[netip.Addr][]*anycast.Catch
	n        int
	summary  *anycast.Summary
	progress anycast.Progress
}

// measure starts a measurement, and follows it in the background.
func (f *testFleet) measure(d anycast.Definition, targets []netip.Addr) *watched {
	f.t.Helper()
	s, err := f.client.Start(f.t.Context(), d, client.Targets{Addrs: targets}, false)
	if err != nil {
		f.t.Fatal(err)
	}
	return listenTo(f.t, s)
}

func listenTo(t *testing.T, s *client.Stream) *watched {
	w := &watched{t: t, id: s.Measurement().ID, ended: make(chan struct{}), catches: map[netip.Addr][]*anycast.Catch{}}
	go func() {
		defer close(w.ended)
		for e, err := range s.All() {
			if err != nil {
				w.err = err
				return
			}
			w.mu.Lock()
			if e.Measurement != nil {
				w.last = *e.Measurement
			}
			if e.Progress != nil {
				w.progress = *e.Progress
			}
			for _, r := range e.Results {
				switch r := r.(type) {
				case *anycast.Catch:
					w.catches[r.Target] = append(w.catches[r.Target], r)
					w.n++
				case *anycast.Summary:
					w.summary = r
				}
			}
			w.mu.Unlock()
		}
	}()
	return w
}

// found tells how many results came so far.
func (w *watched) found() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// end waits for the end, which must be a good one.
func (w *watched) end() {
	w.t.Helper()
	select {
	case <-w.ended:
	case <-time.After(2 * patience):
		w.t.Fatalf("measurement %s does not end; %d results", w.id, w.found())
	}
	if w.err != nil || w.last.State != anycast.Done {
		w.t.Fatalf("measurement %s: %v, %v %s", w.id, w.err, w.last.State, w.last.Error)
	}
}

// once holds that each target has one result, and gives how many of them are answers.
func (w *watched) once(targets []netip.Addr) (answered int) {
	w.t.Helper()
	for _, target := range targets {
		all := w.catches[target]
		if len(all) != 1 {
			w.t.Errorf("%v has %d results, want one: %+v", target, len(all), all)
			continue
		}
		if all[0].Receiver != "" {
			answered++
		}
	}
	if len(w.catches) != len(targets) {
		w.t.Errorf("results about %d targets, want %d", len(w.catches), len(targets))
	}
	return answered
}

// customers are the hosts behind the providers, by address.
func (f *testFleet) customers() []string {
	return []string{"eu1", "eu2", "eu3", "us1", "us2", "us3", "ap1", "ap2", "la1", "la2", "mix1", "mix2"}
}
