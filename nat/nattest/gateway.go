// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nattest

import (
	"cmp"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/nat"
)

// Behaviour is how a gateway behaves. The zero value is a good one that maps everything.
type Behaviour struct {
	// Methods that it speaks. Default: all. One that speaks NAT-PMP and not PCP answers PCP as RFC 6887, appendix A, expects.
	Methods []nat.Method
	// External is its external address. Default 203.0.113.1.
	External netip.Addr
	// MinLease and MaxLease bound what is granted, in whole seconds. Default: no bounds.
	MinLease, MaxLease time.Duration
	// Lose is how many of the next datagrams to the control port are lost.
	Lose int

	// Refuse refuses all mappings.
	Refuse bool
	// Overwrite gives a port to whoever asks last, by UPnP, as poor gateways do.
	Overwrite bool
	// PermanentOnly knows no leases, in UPnP.
	PermanentOnly bool
	// SamePorts maps ports to the same ports only, in UPnP.
	SamePorts bool
	// Mute tells nobody who has a port, in UPnP.
	Mute bool
	// Elsewhere makes the search lead to a description at another host.
	Elsewhere bool
}

func (b Behaviour) speaks(m nat.Method) bool {
	return len(b.Methods) == 0 || slices.Contains(b.Methods, m)
}

// Mapping is a port that the gateway maps.
type Mapping struct {
	Protocol    nat.Protocol // TCP or UDP
	External    uint16
	Internal    netip.AddrPort
	Description string
	// Expires is zero for one without end.
	Expires time.Time

	nonce [12]byte // of PCP
}

type key struct {
	protocol nat.Protocol
	port     uint16
}

// Gateway is a running gateway.
type Gateway struct {
	addr        netip.Addr
	controlPort uint16
	searching   *net.UDPConn
	serving     sync.WaitGroup

	mu        sync.Mutex
	behaviour Behaviour
	control   *net.UDPConn     // nil while it is down
	web       *httptest.Server // nil while it is down
	began     time.Time
	mappings  map[key]Mapping
	requests  map[nat.Method]int
	clients   map[netip.AddrPort]bool // of PCP: they hear of restarts
}

// New starts a gateway that stops with the test.
func New(t testing.TB, b Behaviour) *Gateway {
	t.Helper()
	g, err := Start(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// Start starts a gateway on ports of 127.0.0.1 that happen to be free.
func Start(b Behaviour) (*Gateway, error) {
	g := &Gateway{
		addr: netip.MustParseAddr("127.0.0.1"), behaviour: b,
		mappings: map[key]Mapping{}, requests: map[nat.Method]int{}, clients: map[netip.AddrPort]bool{},
	}
	var err error
	if g.searching, err = net.ListenUDP("udp4", &net.UDPAddr{IP: g.addr.AsSlice()}); err != nil {
		return nil, fmt.Errorf("start a gateway: %w", err)
	}
	g.serving.Go(g.answerSearches)
	if err := g.Up(); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Close stops the gateway and waits for its goroutines.
func (g *Gateway) Close() {
	g.Down()
	g.searching.Close()
	g.serving.Wait()
}

// Down turns the gateway off: nobody listens any more, and its mappings are forgotten.
func (g *Gateway) Down() {
	g.mu.Lock()
	control, web := g.control, g.web
	g.control, g.web = nil, nil
	clear(g.mappings)
	g.mu.Unlock()
	if control != nil {
		control.Close()
	}
	if web != nil {
		web.Close()
	}
}

// Up turns the gateway on again. Its clock starts at 0, and its UPnP service is at another port than before.
func (g *Gateway) Up() error {
	control, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(g.addr, g.controlPort)))
	if err != nil {
		return fmt.Errorf("start a gateway: %w", err)
	}
	web := httptest.NewServer(g.handler())
	g.mu.Lock()
	g.controlPort = uint16(control.LocalAddr().(*net.UDPAddr).Port)
	g.control, g.web, g.began = control, web, time.Now()
	g.mu.Unlock()
	g.serving.Go(func() { g.answerControl(control) })
	return nil
}

// Forget loses all mappings and starts the clock again, as a gateway whose daemon is restarted in no time, and says nothing.
func (g *Gateway) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.mappings)
	g.began = time.Now()
}

// Options are what package nat reaches the gateway with.
func (g *Gateway) Options() nat.Options {
	return nat.Options{
		Gateway: g.addr, ControlPort: g.controlPort,
		SearchAddr: g.searching.LocalAddr().(*net.UDPAddr).AddrPort(),
	}
}

// Set changes the behaviour.
func (g *Gateway) Set(change func(*Behaviour)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.behaviour)
}

// Age makes the gateway's clock, and so the time for which it has kept its mappings, older.
func (g *Gateway) Age(by time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.began = g.began.Add(-by)
}

// Put adds a mapping, of another host say.
func (g *Gateway) Put(m Mapping) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mappings[key{m.Protocol, m.External}] = m
}

// Drop removes a mapping.
func (g *Gateway) Drop(p nat.Protocol, external uint16) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.mappings, key{p, external})
}

// Mappings are those of now, by external port.
func (g *Gateway) Mappings() []Mapping {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sortedLocked()
}

func (g *Gateway) sortedLocked() []Mapping {
	g.expireLocked()
	var all []Mapping
	for _, m := range g.mappings {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Mapping) int {
		return cmp.Or(cmp.Compare(a.External, b.External), cmp.Compare(a.Protocol, b.Protocol))
	})
	return all
}

// Requests counts what was asked by a method, requests that were lost or refused included.
func (g *Gateway) Requests(m nat.Method) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.requests[m]
}

func (g *Gateway) expireLocked() {
	for k, m := range g.mappings {
		if !m.Expires.IsZero() && !time.Now().Before(m.Expires) {
			delete(g.mappings, k)
		}
	}
}

func (g *Gateway) externalLocked() netip.Addr {
	if g.behaviour.External.IsValid() {
		return g.behaviour.External
	}
	return netip.MustParseAddr("203.0.113.1")
}

func (g *Gateway) epochLocked() uint32 { return uint32(time.Since(g.began) / time.Second) }

// grantLocked bounds a lifetime.
func (g *Gateway) grantLocked(asked time.Duration) time.Duration {
	granted := max(asked, g.behaviour.MinLease)
	if g.behaviour.MaxLease > 0 {
		granted = min(granted, g.behaviour.MaxLease)
	}
	return granted
}

// assignLocked maps a port as PCP and NAT-PMP have it: what is mapped already stays where it is, and a port that another has is
// replaced by the next one.
func (g *Gateway) assignLocked(m Mapping, lifetime time.Duration) Mapping {
	g.expireLocked()
	m.Expires = time.Now().Add(lifetime)
	for _, old := range g.mappings {
		if old.Protocol == m.Protocol && old.Internal == m.Internal {
			m.External = old.External
			g.mappings[key{m.Protocol, m.External}] = m
			return m
		}
	}
	if m.External == 0 {
		m.External = m.Internal.Port()
	}
	for {
		if _, taken := g.mappings[key{m.Protocol, m.External}]; !taken && m.External != 0 {
			g.mappings[key{m.Protocol, m.External}] = m
			return m
		}
		m.External++
	}
}

// releaseLocked ends the mapping of an internal port.
func (g *Gateway) releaseLocked(p nat.Protocol, internal netip.AddrPort) {
	for k, m := range g.mappings {
		if m.Protocol == p && m.Internal == internal {
			delete(g.mappings, k)
		}
	}
}
