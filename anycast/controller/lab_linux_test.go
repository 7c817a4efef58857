// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/agent"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/lab"
)

// anycastLab is examples/anycast.toml, which has a drawing: three sites with one address, and a controller with a real
// agent at each of them, all over the lab's own wires.
type anycastLab struct {
	*lab.Lab
	t        *testing.T
	store    anycast.Store
	endpoint string
	stop     func()
	agents   map[string]func() // that end them
}

const labPort = "50051"

func newAnycastLab(t *testing.T) *anycastLab {
	t.Helper()
	topology, err := lab.ReadFile("../../examples/anycast.toml")
	if err != nil {
		t.Fatal(err)
	}
	for i := range topology.Wires {
		if slices.Contains(topology.Wires[i].Ends[:], "control") {
			topology.Wires[i].Adjustable = true
		}
	}
	l := &anycastLab{Lab: lab.New(t, topology), t: t, store: newMemory(100), agents: map[string]func(){}}
	l.endpoint = net.JoinHostPort(l.Host("control").Addr().String(), labPort)
	l.control()
	for _, site := range []string{"ams", "nyc", "sin"} {
		l.agent(site)
	}
	l.connected()
	return l
}

// control runs a controller at its host.
func (l *anycastLab) control() {
	l.t.Helper()
	c, err := New(Options{Start: 10000, End: 20000, Block: 100, Insecure: true, Store: l.store, NameTimeout: -1, Log: quiet()})
	if err != nil {
		l.t.Fatal(err)
	}
	var listener net.Listener
	if err := l.Host("control").Do(func() (err error) {
		listener, err = net.Listen("tcp", l.endpoint)
		return err
	}); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Serve(ctx, listener) }()
	stopped := false
	l.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			l.t.Error(err)
		}
	}
	l.t.Cleanup(l.stop)
}

// dialFrom opens connections in a host's namespace.
func (l *anycastLab) dialFrom(host string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = l.Host(host).Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}
}

// agent runs an agent at a site, in place of the one that may be there.
func (l *anycastLab) agent(site string) {
	l.t.Helper()
	if end := l.agents[site]; end != nil {
		end()
	}
	h := l.Host(site)
	var a *agent.Agent
	if err := h.Do(func() (err error) {
		a, err = agent.New(agent.Options{
			ID: site, Links: []agent.Link{{Address: l.endpoint}}, Anycast: []netip.Addr{shared, netip.MustParseAddr("2001:db8::1")}, Dial: l.dialFrom(site),
		})
		return err
	}); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	done := false
	l.agents[site] = func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-ended; err != nil {
			l.t.Errorf("agent %s: %v", site, err)
		}
	}
	l.t.Cleanup(l.agents[site])
}

func (l *anycastLab) client() *client.Client {
	l.t.Helper()
	c, err := client.Dial(l.t.Context(), l.endpoint, client.Options{Insecure: true, Dialer: l.dialFrom("control")})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// connected waits for all sites and their clocks.
func (l *anycastLab) connected() {
	l.t.Helper()
	c := l.client()
	eventually(l.t, "three sites", func() bool {
		sites, err := c.Sites(l.t.Context())
		return err == nil && len(sites) == 3 && !slices.ContainsFunc(sites, func(s anycast.Site) bool { return s.Clock.Error == 0 })
	})
}

// customers are addresses in each of the networks that the three sites catch.
func (l *anycastLab) customers(each int) client.Targets {
	var t client.Targets
	for host := range each {
		for network := range 12 {
			t.Addrs = append(t.Addrs, netip.AddrFrom4([4]byte{198, 18, byte(1 + network), byte(1 + host)}))
		}
	}
	return t
}

var customerNames = strings.Fields("eu1 eu2 eu3 us1 us2 us3 ap1 ap2 la1 la2 mix1 mix2")

// verify holds that every target has one result, and that what is said to have come home somewhere did so there.
func (l *anycastLab) verify(got *told, targets int) (silent int) {
	l.t.Helper()
	if got.last.State != anycast.Done {
		l.t.Errorf("%v: %s", got.last.State, got.last.Error)
	}
	seen := got.catches()
	if len(seen) != targets {
		l.t.Errorf("%d of %d targets", len(seen), targets)
	}
	for _, r := range got.results {
		c, ok := r.(*anycast.Catch)
		if !ok {
			continue
		}
		if seen[c.Target] != 1 {
			l.t.Errorf("%s has %d results", c.Target, seen[c.Target])
		}
		if c.Receiver == "" {
			silent++
			continue
		}
		name := customerNames[c.Target.As4()[2]-1]
		if sites, err := l.Catchment(name, shared); err != nil || !slices.Contains(sites, c.Receiver) {
			l.t.Errorf("%s (%s) came home at %s, want %v", c.Target, name, c.Receiver, sites)
		}
		if c.RTT < 0 || c.RTT > time.Second {
			l.t.Errorf("%s: %v", c.Target, c.RTT)
		}
	}
	return silent
}

// TestLabTraceroute: what nyc sends to la1 comes home hop by hop at several sites, and at ams in the end.
func TestLabTraceroute(t *testing.T) {
	l := newAnycastLab(t)
	c := l.client()
	la1 := l.Host("la1").Addr().String()
	code, output, err := c.Request(t.Context(), "volta nyc "+la1)
	lines := strings.Split(output, "\n")
	if err != nil || code != 200 || len(lines) < 3 {
		t.Fatalf("%v, %d\n%s", err, code, output)
	}
	if !strings.HasPrefix(lines[len(lines)-1][1:], "  "+la1+" ("+la1+") ams  ") || strings.Contains(output, "*") || strings.Contains(output, "  -") {
		t.Errorf("want the target heard at ams:\n%s", output)
	}
	if words := strings.Fields(lines[1]); words[3] != "nyc" {
		t.Errorf("want the first router heard at nyc:\n%s", output)
	}
	got := listen(t, must(c.Start(t.Context(), catchment(500, "nyc"), l.customers(2), false)), nil)
	if silent := l.verify(got, 24); silent > 0 {
		t.Errorf("%d targets did not answer", silent)
	}
}

// TestLabFaults: in the middle of a measurement an agent is killed and comes back, the controller's wire is
// cut for a while, and the controller is restarted. Each time every target ends with one result.
func TestLabFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("agents take some seconds to come back")
	}
	l := newAnycastLab(t)
	const each = 60 // hosts in each of 12 networks
	definition := catchment(300, "nyc")
	definition.Timeout = 2 * time.Second
	begin := func() (*client.Client, string, *client.Stream) {
		c := l.client()
		s := must(c.Start(t.Context(), definition, l.customers(each), false))
		id := s.Measurement().ID
		eventually(t, "half way", func() bool {
			list := must(c.List(t.Context(), anycast.Query{Measurement: id}))
			return list[0].Progress.Sent > 12*each/3
		})
		return c, id, s
	}

	_, _, s := begin()
	l.agent("sin") // the old process ends, a new one begins
	if silent := l.verify(listen(t, s, nil), 12*each); silent > 12*each/3 {
		t.Errorf("agent killed: %d targets are silent", silent)
	}
	l.connected()

	_, _, s = begin()
	wire, err := l.Wire("control", "core-us")
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Set(lab.Impairment{Loss: 1}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // shorter than anything that gives a connection up
	if err := wire.Set(lab.Impairment{Delay: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	l.verify(listen(t, s, nil), 12*each)
	if err := wire.Set(lab.Impairment{}); err != nil {
		t.Fatal(err)
	}

	_, id, _ := begin()
	l.stop()
	l.control()
	if silent := l.verify(listen(t, must(l.client().Follow(t.Context(), id)), nil), 12*each); silent > 12*each/3 {
		t.Errorf("controller restarted: %d targets are silent", silent)
	}
}
