// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epicstest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/relay/epics"
)

// maxDatagram is what UDP can carry.
const maxDatagram = 65_507

// ErrProtocol: the protocol of a client or server is neither of EPICS.
var ErrProtocol = errors.New("neither Channel Access nor PVAccess")

// A Server has some names, and answers those who search for them.
type Server struct {
	Protocol epics.Protocol
	Names    []string
	Port     uint16     // on which it claims to listen over TCP
	GUID     epics.GUID // of PVAccess
	// Heard, if not nil, is called by Run for each datagram that searches for something or for servers, with its
	// sender and the names, before it is answered.
	Heard func(from netip.AddrPort, names []string)
}

// Run answers the searches that arrive on a socket, until ctx ends, which is no error, or
// the socket fails. It does not close the socket.
func (s *Server) Run(ctx context.Context, conn net.PacketConn) error {
	if s.Protocol != epics.ChannelAccess && s.Protocol != epics.PVAccess {
		return fmt.Errorf("run server of %v: %w", s.Protocol, ErrProtocol)
	}
	defer interrupt(ctx, conn)()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("run server: %w", err)
		}
		answer, to, heard := s.answer(buf[:n], addrPort(from))
		if heard != nil && s.Heard != nil {
			s.Heard(addrPort(from), heard)
		}
		if answer != nil {
			// Whoever asks for an answer to where none can be sent gets none.
			_, _ = conn.WriteTo(answer, net.UDPAddrFromAddrPort(to))
		}
	}
}

// answer returns what to answer to a datagram and whom, and what names it searches for; nil is nothing.
func (s *Server) answer(datagram []byte, from netip.AddrPort) (answer []byte, to netip.AddrPort, heard []string) {
	var ids []uint32
	for search := range epics.Searches(s.Protocol, datagram) {
		heard = append(heard, string(search.Name))
		if slices.Contains(s.Names, string(search.Name)) {
			ids = append(ids, search.ID)
		}
	}
	if s.Protocol == epics.ChannelAccess {
		for _, id := range ids {
			answer = epics.CASearchResponse(id, s.Port).Append(answer)
		}
		return answer, from, heard
	}
	m, _, err := epics.ParsePVA(datagram)
	if err != nil {
		return nil, from, heard
	}
	search, err := m.Search()
	if err != nil {
		return nil, from, heard
	}
	if heard == nil {
		heard = []string{}
	}
	if len(ids) == 0 && search.Flags&epics.PVAMustReply == 0 {
		return nil, from, heard
	}
	to = netip.AddrPortFrom(from.Addr(), search.ReplyTo.Port())
	if !search.ReplyTo.Addr().IsUnspecified() {
		to = search.ReplyTo
	}
	return epics.AppendPVASearchResponse(nil, binary.BigEndian, epics.PVASearchResponse{
		GUID: s.GUID, Sequence: search.Sequence, Server: netip.AddrPortFrom(netip.IPv6Unspecified(), s.Port),
		Protocol: []byte("tcp"), Found: len(ids) > 0,
	}, ids...), to, heard
}

// Beacon sends one beacon, in general to the broadcast address and [epics.PVAPort] or [epics.CABeaconPort].
func (s *Server) Beacon(conn net.PacketConn, to netip.AddrPort, sequence uint32) error {
	var b []byte
	switch s.Protocol {
	case epics.ChannelAccess:
		b = epics.CABeacon(sequence, netip.AddrPortFrom(netip.IPv4Unspecified(), s.Port)).Append(nil)
	case epics.PVAccess:
		b = epics.AppendPVABeacon(nil, binary.BigEndian, epics.PVABeacon{
			GUID: s.GUID, Sequence: uint8(sequence), Server: netip.AddrPortFrom(netip.IPv6Unspecified(), s.Port), Protocol: []byte("tcp"),
		})
	default:
		return fmt.Errorf("send beacon of %v: %w", s.Protocol, ErrProtocol)
	}
	if _, err := conn.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
		return fmt.Errorf("send beacon to %v: %w", to, err)
	}
	return nil
}

// A Client searches for names.
type Client struct {
	Protocol epics.Protocol
	// Interval is the time after which it searches once more for what was not found. 0: it searches once.
	Interval time.Duration
}

// An Answer is what a server says that has a name.
type Answer struct {
	Name   string
	From   netip.AddrPort // which the answer came from
	Server netip.AddrPort // where the server claims to listen over TCP
}

// Search sends a search for names to an address, in general the broadcast address and [epics.PVAPort] or
// [epics.CAPort], and returns the answers once there is one for each name. When ctx ends before,
// it returns those that came, and the error of ctx.
func (c *Client) Search(ctx context.Context, conn net.PacketConn, to netip.AddrPort, names ...string) ([]Answer, error) {
	missing := map[uint32]string{}
	for i, name := range names {
		missing[uint32(i+1)] = name
	}
	defer interrupt(ctx, conn)()
	buf := make([]byte, maxDatagram)
	var answers []Answer
	for sequence := uint32(1); len(missing) > 0; sequence++ {
		if err := c.send(conn, to, sequence, missing); err != nil {
			return answers, err
		}
		var again time.Time
		if c.Interval > 0 {
			again = time.Now().Add(c.Interval)
		}
		if err := conn.SetReadDeadline(again); err != nil {
			return answers, fmt.Errorf("search: %w", err)
		}
		for len(missing) > 0 {
			if ctx.Err() != nil { // it may have ended before the deadline was set
				return answers, fmt.Errorf("search for %d names, of which %d were not found: %w", len(names), len(missing), ctx.Err())
			}
			n, from, err := conn.ReadFrom(buf)
			switch {
			case ctx.Err() != nil:
				continue
			case errors.Is(err, os.ErrDeadlineExceeded):
			case err != nil:
				return answers, fmt.Errorf("search: %w", err)
			default:
				for id, server := range c.found(buf[:n]) {
					if name, ok := missing[id]; ok {
						if server.Addr().IsUnspecified() {
							server = netip.AddrPortFrom(addrPort(from).Addr(), server.Port())
						}
						answers = append(answers, Answer{Name: name, From: addrPort(from), Server: server})
						delete(missing, id)
					}
				}
				continue
			}
			break
		}
	}
	return answers, nil
}

func (c *Client) send(conn net.PacketConn, to netip.AddrPort, sequence uint32, missing map[uint32]string) error {
	var b []byte
	switch c.Protocol {
	case epics.ChannelAccess:
		b = epics.CAVersionMessage(sequence).Append(nil)
		for _, id := range slices.Sorted(maps.Keys(missing)) {
			b = epics.CASearch(id, missing[id]).Append(b)
		}
	case epics.PVAccess:
		var names []epics.PVAName
		for _, id := range slices.Sorted(maps.Keys(missing)) {
			names = append(names, epics.PVAName{ID: id, Name: missing[id]})
		}
		b = epics.AppendPVASearch(nil, binary.BigEndian, epics.PVASearch{
			Sequence: sequence, ReplyTo: netip.AddrPortFrom(netip.IPv6Unspecified(), addrPort(conn.LocalAddr()).Port()),
		}, []string{"tcp"}, names...)
	default:
		return fmt.Errorf("search with %v: %w", c.Protocol, ErrProtocol)
	}
	if _, err := conn.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
		return fmt.Errorf("search at %v: %w", to, err)
	}
	return nil
}

// found returns the servers that a datagram names, by the identifiers of what they have.
func (c *Client) found(b []byte) map[uint32]netip.AddrPort {
	found := map[uint32]netip.AddrPort{}
	for len(b) > 0 {
		if c.Protocol == epics.ChannelAccess {
			m, rest, err := epics.ParseCA(b)
			if err != nil {
				break
			}
			if server, ok := m.Server(); ok && m.Command == epics.CACommandSearch {
				found[m.ID()] = server
			}
			b = rest
			continue
		}
		m, rest, err := epics.ParsePVA(b)
		if err != nil {
			break
		}
		if r, err := m.SearchResponse(); err == nil && r.Found {
			for id := range r.IDs() {
				found[id] = r.Server
			}
		}
		b = rest
	}
	return found
}

// interrupt ends reads when ctx ends, until the function that it returns is called.
func interrupt(ctx context.Context, conn net.PacketConn) (restore func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // a closed socket ends reads as well
	})
	return func() {
		if !stop() {
			<-done
		}
		_ = conn.SetReadDeadline(time.Time{})
	}
}

// addrPort is the address of a UDP socket; it is not valid if it is another one's.
func addrPort(a net.Addr) netip.AddrPort {
	udp, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := udp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
