// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/swarm/broadcast"
	"github.com/seed5728abee/fathom/swarm/cicada"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/record"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// broadcastOptions connects the broadcast with the ring, the links, the gateway and the application.
func (p *Peer) broadcastOptions() broadcast.Options {
	o := broadcast.Options{
		Self:       p.contact,
		Table:      func() []member.Contact { return p.node().Table() },
		Neighbours: func() ([]member.Contact, []member.Contact) { return p.node().Neighbours() },
		Leaves:     func() []member.Contact { return p.node().Leaves() },
		Find: func(ctx context.Context, place member.ID) (member.Contact, error) {
			f, err := p.lookup(ctx, place, lookupPlain)
			return f.Owner, err
		},
		Transport: p.links,
		Deliver: func(m broadcast.Message) {
			from := p.links.known(m.Origin)
			if len(m.Key) > 0 {
				from.Key = m.Key
			}
			// A broadcast for which there is no room is lost: nobody waits to be told.
			_ = p.deliver(from, m.Payload, true)
		},
		Report: func(i broadcast.Incident) {
			if errors.Is(i.Err, broadcast.ErrConflict) || errors.Is(i.Err, broadcast.ErrForged) {
				p.conflict(Conflict{Kind: "broadcast", Subject: i.Origin, Between: []Hash{i.From}})
				return
			}
			p.counters.malformed.Add(1)
			p.log.Warn("a member breaks the rules of broadcasts", "member", i.From.Short(), "error", i.Err, "refused", i.Refused)
		},
		Binding:   p.o.Binding,
		Sign:      func(message []byte) []byte { return ed25519.Sign(p.identity.Private(), message) },
		Originals: p.o.originals(),
	}
	if p.o.originals() {
		o.Spread = func(m broadcast.Message) { p.gateway.Spread(m.Tag, m.Origin, m.Payload) }
	}
	return o
}

// gatewayOptions connects the gateway to originals with the ring, the broadcast and the application.
func (p *Peer) gatewayOptions() cicada.Options {
	return cicada.Options{
		Self:      p.contact,
		Ring:      currentNode{p},
		Table:     func() []member.Contact { return p.node().Table() },
		Transport: p.links,
		Live:      func(id member.ID) bool { return p.links.live(id) != nil },
		Dial:      p.reacher.dial,
		Deliver: func(from member.Contact, payload []byte) {
			// The original has its acknowledgement: a message for which there is no room is lost, and counted.
			_ = p.deliver(from, payload, false)
		},
		Forward: func(ctx context.Context, key member.ID, _ member.Contact, payload []byte) error {
			c, err := p.findID(ctx, key, lookupPlain)
			if err != nil {
				return err
			}
			return p.sendTo(ctx, c, append([]byte{envelopePlain}, payload...))
		},
		Inject: func(tag wire.Tag, origin member.ID, payload []byte) {
			if err := p.broadcast.Inject(tag, origin, payload); err != nil {
				p.log.Debug("broadcast of an original", "origin", origin.Short(), "error", err)
			}
		},
		Learn: func(c member.Contact) { p.node().Learn(c) },
		Lost:  func(id member.ID) { p.node().Suspect(id) },
		Log:   p.log,
	}
}

// currentNode hands messages to the node that the peer has at the moment.
type currentNode struct{ peer *Peer }

func (c currentNode) Handle(ctx context.Context, from member.Contact, request wire.Message) wire.Message {
	return c.peer.node().Handle(ctx, from, request)
}

// publishName keeps the peer's name in the swarm, and, where IDs do not tell it, the address it is known by.
func (p *Peer) publishName(ctx context.Context) {
	for _, name := range p.names() {
		if err := p.publish(ctx, name, recordLife); err != nil {
			p.log.Warn("publish", "name", name, "error", err)
		}
	}
}

// names are what the peer is to be found under.
func (p *Peer) names() []string {
	names := make([]string, 0, 2)
	if p.o.Name != "" {
		names = append(names, p.o.Name)
	}
	if addr := p.Addr(); p.o.Binding == member.ByKey && addr.IsValid() {
		names = append(names, addr.String())
	}
	return names
}

// withdrawName replaces the records of a peer that leaves by ones that are about to expire.
func (p *Peer) withdrawName(ctx context.Context) {
	for _, name := range p.names() {
		if err := p.publish(ctx, name, withdrawnLife); err != nil {
			p.log.Debug("withdraw", "name", name, "error", err)
		}
	}
}

// recordLife is how long a name stays without being renewed; it is renewed every publishInterval.
const recordLife = time.Hour

// withdrawnLife is how long one stays that was withdrawn: long enough to arrive.
const withdrawnLife = time.Second

func (p *Peer) publish(ctx context.Context, name string, life time.Duration) error {
	name, err := record.Normal(name)
	if err != nil {
		return err
	}
	b, err := record.Sign(record.Record{Name: name, Contact: p.contact(), Expires: time.Now().Add(life)}, p.identity)
	if err != nil {
		return err
	}
	return p.node().Put(ctx, record.Key(name), b)
}

// originalAt reports whether a link to an original at an address is up, or its address is known to be one's.
func (p *Peer) originalAt(addr netip.AddrPort) bool {
	if p.gateway == nil {
		return false
	}
	_, linked := p.gateway.At(addr)
	return linked || p.isOriginal(member.Contact{ID: member.OfAddr(addr)})
}

// isOriginal reports whether a contact is known to be of an original.
func (l *links) isOriginal(c member.Contact) bool {
	return c.Dialect == member.Original || c.Dialect == member.Unknown && l.peer.gateway.IsOriginal(c.ID)
}
