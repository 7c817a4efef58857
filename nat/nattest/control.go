// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nattest

import (
	"errors"
	"net"
	"net/netip"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/nat/natpmp"
	"github.com/seed5728abee/fathom/nat/pcp"
)

// answerControl answers PCP and NAT-PMP until the socket is closed.
func (g *Gateway) answerControl(conn *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil || n == 0 {
			continue
		}
		if answer := g.controlAnswer(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())); answer != nil {
			_, _ = conn.WriteToUDPAddrPort(answer, from) // a client that is gone needs none
		}
	}
}

func (g *Gateway) controlAnswer(packet []byte, from netip.AddrPort) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.behaviour.Lose > 0 {
		g.behaviour.Lose--
		return nil
	}
	pmp, speaksPCP := g.behaviour.speaks(nat.NATPMP), g.behaviour.speaks(nat.PCP)
	switch version := packet[0]; {
	case version == pcp.Version && speaksPCP:
		g.requests[nat.PCP]++
		g.clients[from] = true
		return g.pcpLocked(packet, from)
	case version == natpmp.Version && pmp:
		g.requests[nat.NATPMP]++
		return g.pmpLocked(packet, from)
	case pmp && len(packet) > 1:
		r := natpmp.Response{Op: natpmp.Op(packet[1] & 0x7f), Result: natpmp.UnsupportedVersion, Epoch: g.epochLocked()}
		return r.Append(nil)[:8]
	case speaksPCP && len(packet) > 1:
		return pcp.Response{Opcode: pcp.Opcode(packet[1] & 0x7f), Result: pcp.UnsupportedVersion, Epoch: g.epochLocked()}.Append(nil)
	}
	return nil
}

func (g *Gateway) pmpLocked(packet []byte, from netip.AddrPort) []byte {
	r, err := natpmp.ParseRequest(packet)
	if err != nil {
		return nil
	}
	answer := natpmp.Response{Op: r.Op, Epoch: g.epochLocked(), InternalPort: r.InternalPort}
	protocol := nat.UDP
	if r.Op == natpmp.MapTCP {
		protocol = nat.TCP
	}
	internal := netip.AddrPortFrom(from.Addr(), r.InternalPort)
	switch {
	case r.Op == natpmp.ExternalAddress:
		if answer.External = g.externalLocked(); answer.External.IsUnspecified() {
			answer.Result = natpmp.NetworkFailure
		}
	case r.Lifetime == 0:
		g.releaseLocked(protocol, internal)
	case g.behaviour.Refuse:
		answer.Result = natpmp.NotAuthorized
	default:
		answer.Lifetime = g.grantLocked(r.Lifetime)
		m := g.assignLocked(Mapping{Protocol: protocol, External: r.ExternalPort, Internal: internal, Description: "NAT-PMP"}, answer.Lifetime)
		answer.ExternalPort = m.External
	}
	return answer.Append(nil)
}

func (g *Gateway) pcpLocked(packet []byte, from netip.AddrPort) []byte {
	r, err := pcp.ParseRequest(packet)
	if err != nil {
		return nil
	}
	answer := pcp.Response{Opcode: r.Opcode, Epoch: g.epochLocked(), Mapping: r.Mapping}
	protocol := nat.TCP
	if r.Mapping.Protocol == pcp.UDP {
		protocol = nat.UDP
	}
	internal := netip.AddrPortFrom(from.Addr(), r.Mapping.InternalPort)
	var stranger bool
	for _, m := range g.mappings {
		stranger = stranger || m.Protocol == protocol && m.Internal == internal && m.nonce != r.Mapping.Nonce
	}
	switch {
	case r.Client != from.Addr():
		answer.Result = pcp.AddressMismatch
	case r.Opcode == pcp.Announce:
	case r.Opcode != pcp.Map:
		answer.Result = pcp.UnsupportedOpcode
	case stranger || g.behaviour.Refuse && r.Lifetime > 0:
		answer.Result = pcp.NotAuthorized
	case r.Lifetime == 0:
		g.releaseLocked(protocol, internal)
	default:
		answer.Lifetime = g.grantLocked(r.Lifetime)
		m := g.assignLocked(Mapping{
			Protocol: protocol, External: r.Mapping.External.Port(), Internal: internal, Description: "PCP", nonce: r.Mapping.Nonce,
		}, answer.Lifetime)
		answer.Mapping.External = netip.AddrPortFrom(g.externalLocked(), m.External)
	}
	return answer.Append(nil)
}

// Announce tells all who have asked by PCP what the gateway's clock says: what they hear after Forget is that it has restarted.
func (g *Gateway) Announce() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.control == nil {
		return
	}
	packet := pcp.Response{Opcode: pcp.Announce, Epoch: g.epochLocked()}.Append(nil)
	for client := range g.clients {
		_, _ = g.control.WriteToUDPAddrPort(packet, client) // those who are gone need none
	}
}
