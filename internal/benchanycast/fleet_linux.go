// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/labnet"
	"github.com/seed5728abee/fathom/lab"
)

// fleet is a controller and its agents, running in a lab.
type fleet struct {
	lab     *lab.Lab
	address string // of the controller
	members []*member
}

// member is a process of the fleet.
type member struct {
	name string // "controller", or that of a site
	cmd  *lab.Cmd
}

var sites = []string{"a", "b", "c"}

const controllerPort = 50051

// start builds a lab and runs a fleet in it: a controller on the host of that name, an agent at each site.
func (b *bench) start(ctx context.Context, topology *lab.Topology) (_ *fleet, err error) {
	f := &fleet{}
	if f.lab, err = lab.Start(ctx, topology, lab.Options{Gather: b.gather}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.stop()
		}
	}()
	f.address = net.JoinHostPort(f.lab.Host("controller").Addr().String(), strconv.Itoa(controllerPort))
	state, err := os.MkdirTemp(b.dir, "state")
	if err != nil {
		return nil, err
	}
	if b.controller == "" {
		err = b.run1(ctx, f, "controller", nil, b.program, "anycast", "controller", "--insecure", "--listen", f.address, "--state", state,
			"--quota-requests", "0", "--quota-measurements", "0", "--quota-rate", "0")
	} else {
		err = b.run1(ctx, f, "controller", f.environment("controller"), "/bin/sh", "-c", b.controller)
	}
	if err != nil {
		return nil, err
	}
	if err := f.serves(ctx); err != nil {
		return nil, err
	}
	for _, site := range sites {
		if b.agent == "" {
			err = b.run1(ctx, f, site, nil, b.program, b.agentArgs(f, site)...)
		} else {
			err = b.run1(ctx, f, site, f.environment(site), "/bin/sh", "-c", b.agent)
		}
		if err != nil {
			return nil, err
		}
	}
	if b.agent != "" {
		time.Sleep(5 * time.Second) // there is no way to ask
		return f, nil
	}
	_, err = b.on(ctx, f, "wait", "-sites", strconv.Itoa(len(sites)))
	return f, err
}

func (b *bench) agentArgs(f *fleet, site string) []string {
	args := []string{"anycast", "agent", "--insecure", "--id", site, "--controller", f.address, "--source", labnet.Anycast4.String()}
	if b.sendEth {
		args = append(args, "--send-eth")
	}
	return args
}

// environment tells a foreign command where it is.
func (f *fleet) environment(host string) []string {
	env := append(os.Environ(), "CONTROLLER="+f.address, "PORT="+strconv.Itoa(controllerPort), "SITE="+host)
	for _, w := range f.lab.Topology().Wires {
		if w.Ends[0] == host && w.Ends[1] != "hub" {
			env = append(env, "INTERFACE="+w.Ends[1], "GATEWAY="+f.lab.Host(w.Ends[1]).AddrTowards(host, 4).String())
		}
	}
	return env
}

// run1 starts a member; it is named after the role, and lives on the host of that name.
func (b *bench) run1(ctx context.Context, f *fleet, name string, env []string, program string, args ...string) error {
	c := f.lab.Host(name).Command(ctx, program, args...)
	c.Env = env
	log, err := os.Create(filepath.Join(b.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own copy
	c.Stdout, c.Stderr = log, log
	if b.verbose {
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	f.members = append(f.members, &member{name: name, cmd: c})
	return nil
}

// serves waits until the controller takes connections.
func (f *fleet) serves(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := f.lab.Host("controller").Do(func() error {
			c, err := net.DialTimeout("tcp", f.address, time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the controller does not serve: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the fleet and its lab.
func (f *fleet) stop() {
	f.stopMembers()
	f.lab.Close()
}

func (f *fleet) stopMembers() {
	for _, m := range slices.Backward(f.members) {
		_ = m.cmd.Process.Signal(syscall.SIGTERM) // one that has ended already needs none
		kill := time.AfterFunc(10*time.Second, func() { _ = m.cmd.Process.Kill() })
		_ = m.cmd.Wait() // how it ends does not matter here
		kill.Stop()
	}
	f.members = nil
}

// usage is what the parts of a measurement have used, in the order of names.
type usage struct {
	cpu map[string]time.Duration
	rss map[string]memory
}

// memory is what a process had resident at most since forget, in bytes.
type memory struct {
	all int64
	own int64 // without the pages of the program's file, which all processes that run it share
}

func (m memory) String() string {
	return fmt.Sprintf("%.0f MB, with the program's own pages %.0f MB", float64(m.own)/(1<<20), float64(m.all)/(1<<20))
}

// larger is the one of two with more of its own.
func larger(a, b memory) memory {
	if b.own > a.own {
		return b
	}
	return a
}

// names are the parts whose use is told apart. The lab is this process.
var names = []string{"controller", "a", "b", "c", "client", "lab"}

// used reads what the fleet and the lab have used so far.
func (f *fleet) used() (usage, error) {
	u := usage{map[string]time.Duration{"lab": cpu()}, map[string]memory{}}
	for _, m := range f.members {
		var err error
		if u.cpu[m.name], err = cpuOf(m.cmd.Process.Pid); err != nil {
			return u, err
		}
		if u.rss[m.name], err = peakOf(m.cmd.Process.Pid); err != nil {
			return u, err
		}
	}
	return u, nil
}

// since is what was used from before to u; peaks stay.
func (u usage) since(before usage) usage {
	d := usage{map[string]time.Duration{}, u.rss}
	for name := range u.cpu {
		d.cpu[name] = u.cpu[name] - before.cpu[name]
	}
	return d
}

// shares writes the processor time of each part per unit of something.
func (u usage) shares(units float64, unit string) string {
	var parts []string
	for _, name := range names {
		if t, ok := u.cpu[name]; ok {
			parts = append(parts, fmt.Sprintf("%s %.2f", name, t.Seconds()*1e6/units))
		}
	}
	return strings.Join(parts, ", ") + " µs per " + unit
}

// agents is the largest peak of an agent.
func (u usage) agents() (most memory) {
	for _, s := range sites {
		most = larger(most, u.rss[s])
	}
	return most
}

// forget makes peaks start from what is resident now.
func (f *fleet) forget() error {
	for _, m := range f.members {
		// 5 resets the peak: proc_pid_clear_refs(5).
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", m.cmd.Process.Pid), []byte("5"), 0); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) member(name string) *member {
	for _, m := range f.members {
		if m.name == name {
			return m
		}
	}
	return nil
}

// cpu is what this process has used so far.
func cpu() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

var errProc = errors.New("unexpected content")

// cpuOf is the processor time of another process, in steps of 10 ms.
func cpuOf(pid int) (time.Duration, error) {
	name := fmt.Sprintf("/proc/%d/stat", pid)
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may have anything in it; user and system time are fields 14 and 15.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s: %w", name, errProc)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// peakOf is the most memory that another process had resident. Its peak is known for all of it only; the file's part
// is taken to have been what it is now, since that only grows.
func peakOf(pid int) (m memory, err error) {
	name := fmt.Sprintf("/proc/%d/status", pid)
	data, err := os.ReadFile(name)
	if err != nil {
		return m, err
	}
	file, found := int64(0), 0
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		var to *int64
		switch key {
		case "VmHWM":
			to = &m.all
		case "RssFile":
			to = &file
		default:
			continue
		}
		found++
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		if err != nil {
			return m, fmt.Errorf("%s: %w", name, err)
		}
		*to = n << 10
	}
	if found != 2 {
		return m, fmt.Errorf("%s: %w", name, errProc)
	}
	m.own = m.all - file
	return m, nil
}

// heard is how many ICMP errors the kernels of the sites have got so far, whoever sent for them: what did not get so far was
// lost in the lab, and is no answer that anybody missed.
func (f *fleet) heard() (n int, err error) {
	for _, site := range sites {
		count, err := f.icmp(site, "InTimeExcds", "InDestUnreachs")
		if err != nil {
			return 0, err
		}
		n += count
	}
	return n, nil
}

// icmp is the sum of some of the kernel's counters of ICMP on a host.
func (f *fleet) icmp(host string, counters ...string) (n int, err error) {
	const name = "/proc/thread-self/net/snmp"
	var data []byte
	if err := f.lab.Host(host).Do(func() (err error) {
		data, err = os.ReadFile(name)
		return err
	}); err != nil {
		return 0, err
	}
	var keys []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Icmp:" {
			continue
		}
		if keys == nil { // the names come before the values
			keys = fields
			continue
		}
		for i, value := range fields[:min(len(fields), len(keys))] {
			if !slices.Contains(counters, keys[i]) {
				continue
			}
			count, err := strconv.Atoi(value)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", name, err)
			}
			n += count
		}
	}
	return n, nil
}

// truth is what every traceroute in the lab has to find: the routers and where they are heard, from hop 1.
type truth []hop

type hop struct {
	Addr netip.Addr
	Site string
}

const hops = 20

// path gives the topology that traceroutes are measured on, and what they have to find in a lab of it.
func (b *bench) path() (*lab.Topology, func(*lab.Lab) truth) {
	if b.kernel {
		return kernelPath()
	}
	return labnet.Chain(hops, sites...), func(l *lab.Lab) truth {
		var t truth
		for h := 1; h < hops; h++ {
			t = append(t, hop{labnet.HopAddr(l, h), labnet.Home(hops, h, sites...)})
		}
		return append(t, hop{labnet.Target4, labnet.Home(hops, hops, sites...)})
	}
}

// kernelPath is a path of routers of the kernel, the first of which has all sites. What it answers comes home at a.
//
//	a --+
//	b --+-- r1 -- r2 -- ... -- r19 -- target
//	c --+
func kernelPath() (*lab.Topology, func(*lab.Lab) truth) {
	t := &lab.Topology{Name: "kernel-path", Hosts: map[string]lab.HostConfig{}, Routers: map[string]lab.RouterConfig{"hub": {}}}
	t.Hosts["controller"] = lab.HostConfig{}
	t.Hosts["target"] = lab.HostConfig{Addresses: []netip.Prefix{netip.PrefixFrom(labnet.Target4, 32)}}
	for i, site := range sites {
		t.Hosts[site] = lab.HostConfig{Addresses: []netip.Prefix{netip.PrefixFrom(labnet.Anycast4, 32)}}
		t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{site, "r1"}, Costs: [2]int{1, 1 + i}})
	}
	last := "r1"
	t.Routers[last] = lab.RouterConfig{}
	for h := 2; h < hops; h++ {
		name := fmt.Sprintf("r%d", h)
		t.Routers[name] = lab.RouterConfig{}
		t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{last, name}})
		last = name
	}
	t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{last, "target"}})
	for _, site := range sites {
		t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{site, "hub"}, Cost: 100})
	}
	t.Wires = append(t.Wires, lab.WireConfig{Ends: [2]string{"hub", "controller"}})
	return t, func(l *lab.Lab) truth {
		var found truth
		before := "a"
		for h := 1; h < hops; h++ {
			name := fmt.Sprintf("r%d", h)
			found = append(found, hop{l.Host(name).AddrTowards(before, 4), sites[0]})
			before = name
		}
		return append(found, hop{labnet.Target4, sites[0]})
	}
}
