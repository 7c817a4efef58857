// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package fleettest

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// Probe is a probe on its way.
type Probe struct {
	// Site sends it, from Source, at Time by the controller's clock.
	Site   string
	Source netip.Addr
	Time   time.Time
	Kind   stateless.Kind
	Target netip.Addr
	TTL    uint8
	// Flow and Number are as in the batch; Port is the source port that the flow has in its session.
	Flow, Number, Port uint16
}

// Hop is a router on the way to a target.
type Hop struct {
	Addr netip.Addr
	// Delay is the time from the hop before, one way.
	Delay time.Duration
	// Silent routers forward but do not answer.
	Silent bool
	// RateLimit is how many answers a second the router gives, with bursts of up to as many; 0 is no limit.
	RateLimit float64
	MPLS      []packet.Label
}

// Host is how a target behaves.
type Host struct {
	Silent bool
	// Loss and Duplicates are shares, from 0 to 1, of the probes that get no answer, and of those that get two.
	Loss, Duplicates float64
	// Responder answers instead of the target, if it is valid.
	Responder netip.Addr
	// Wait is added to the time of the answer.
	Wait time.Duration
	// Text is the answer to a CHAOS query.
	Text string
}

// Internet is what lies between the sites and the targets. Any function may be replaced before the fleet is used. They are called with the fleet's
// lock held, so they must not call its methods.
type Internet struct {
	// Path gives the routers on the way of a probe, nearest first, without the target. By default there are none.
	Path func(Probe) []Hop
	// Host describes a target. By default all answer at once.
	Host func(Probe) Host
	// Distance is the time from a site to an address, one way, for what has no Path. By default it is drawn from 2 to 80 ms for
	// each network.
	Distance func(site string, a netip.Addr) time.Duration
	// Catcher chooses one of the sites that announce the anycast address, at least one, for what the responder answers
	// to a probe. By default each network has its site.
	Catcher func(p Probe, responder netip.Addr, announced []string) string
}

func (f *Fleet) internet() Internet {
	return Internet{
		Path: func(Probe) []Hop { return nil },
		Host: func(Probe) Host { return Host{} },
		Distance: func(site string, a netip.Addr) time.Duration {
			return 2*time.Millisecond + time.Duration(f.draw(anycast.Network(a).Addr(), site, 0)%uint64(78*time.Millisecond))
		},
		Catcher: func(_ Probe, responder netip.Addr, announced []string) string {
			return Nearest(f.Seed, anycast.Network(responder).Addr(), announced)
		},
	}
}

// Nearest chooses a site for an address: always the same one, as long as it is among the sites, and evenly.
func Nearest(seed uint64, a netip.Addr, sites []string) string {
	best, most := "", uint64(0)
	for _, s := range sites {
		if h := hash(seed, a, s, 1); best == "" || h > most {
			best, most = s, h
		}
	}
	return best
}

// Chain gives n routers in a row, 10.0.0.1 and so on (or 2001:db8:ffff::1), each delay from the one before.
func Chain(n int, six bool, delay time.Duration) []Hop {
	hops := make([]Hop, n)
	for i := range hops {
		hops[i] = Hop{Addr: netip.AddrFrom4([4]byte{10, 0, byte((i + 1) >> 8), byte(i + 1)}), Delay: delay}
		if six {
			hops[i].Addr = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 14: byte((i + 1) >> 8), 15: byte(i + 1)})
		}
	}
	return hops
}

// hash mixes what a random choice depends on.
func hash(seed uint64, a netip.Addr, s string, salt uint64) uint64 {
	b := a.As16()
	x := seed ^ salt*0x9e3779b97f4a7c15
	for _, v := range [...]uint64{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])} {
		x = mix(x ^ v)
	}
	for i := range len(s) {
		x = x*31 + uint64(s[i])
	}
	return mix(x)
}

// mix is the end of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (f *Fleet) draw(a netip.Addr, s string, salt uint64) uint64 { return hash(f.Seed, a, s, salt) }

// chance is true for a share of the probes.
func (f *Fleet) chance(share float64, p *Probe, salt uint64) bool {
	if share <= 0 {
		return false
	}
	x := f.draw(p.Target, p.Site, salt<<40^uint64(p.Number)<<20^uint64(p.TTL))
	return float64(x>>11)/(1<<53) < share
}

// answer is what comes back of a probe, and how long it takes until it is at the site that catches it; ok is false if
// nothing does.
func (f *Fleet) answerLocked(p *Probe, ports uint16) (a stateless.Answer, receiver string, after time.Duration, twice, ok bool) {
	way := time.Duration(0)
	hops := f.Internet.Path(*p)
	a = stateless.Answer{Number: p.Number, Flow: p.Flow % ports, Target: p.Target, Local: p.Source}
	if p.Kind == stateless.CHAOS {
		a.Flow = p.Number
	}
	for i := range hops {
		h := &hops[i]
		way += h.Delay
		if i+1 < int(p.TTL) {
			continue
		}
		if h.Silent || !f.allowLocked(h, p.Time) {
			return a, "", 0, false, false
		}
		a.Status, a.HasICMP, a.ICMPType, a.QuotedTTL, a.ReplyTTL = probe.TimeExceeded, true, 11, 1, 255-uint8(i)
		a.ReplySize, a.Labels = 56, h.MPLS
		if p.Target.Is6() {
			a.ICMPType, a.ReplySize = 3, 112
			a.Sent = f.clockLocked(p.Site, p.Time) // quoted whole
		}
		a.Responder = h.Addr
		receiver, after = f.homeLocked(p, a.Responder, way)
		return a, receiver, after, false, receiver != ""
	}
	host := f.Internet.Host(*p)
	if host.Silent || f.chance(host.Loss, p, 2) {
		return a, "", 0, false, false
	}
	if len(hops) == 0 {
		way = f.Internet.Distance(p.Site, p.Target)
	}
	a.Status, a.Responder, a.ReplyTTL, a.ReplySize = probe.Replied, p.Target, 64-uint8(len(hops)), 64
	if host.Responder.IsValid() {
		a.Responder = host.Responder
	}
	switch p.Kind {
	case stateless.ICMP:
		a.HasICMP, a.Strong, a.Sent = true, true, f.clockLocked(p.Site, p.Time)
		if p.Target.Is6() {
			a.ICMPType = 129
		}
	case stateless.UDP:
		a.HasICMP, a.ICMPType, a.ICMPCode, a.QuotedTTL = true, 3, 3, 1
		if p.Target.Is6() {
			a.ICMPType, a.ICMPCode = 1, 4
		}
	case stateless.DNS:
		a.Strong, a.Sent = true, f.clockLocked(p.Site, p.Time)
	case stateless.CHAOS:
		a.Strong, a.Text = true, host.Text
	case stateless.TCP:
	}
	receiver, after = f.homeLocked(p, a.Responder, way)
	return a, receiver, after + host.Wait, f.chance(host.Duplicates, p, 3), receiver != ""
}

// homeLocked tells where an answer comes home, and how long after the probe left, if it took way to get there.
func (f *Fleet) homeLocked(p *Probe, responder netip.Addr, way time.Duration) (receiver string, after time.Duration) {
	receiver = f.ownerLocked(p.Source)
	if receiver == "" {
		announced := f.announcedLocked()
		if len(announced) == 0 {
			return "", 0
		}
		receiver = f.Internet.Catcher(*p, responder, announced)
	}
	if receiver == p.Site {
		return receiver, 2 * way
	}
	return receiver, way + f.Internet.Distance(receiver, responder)
}
