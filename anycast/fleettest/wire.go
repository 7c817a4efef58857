// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package fleettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// shortQuote is what the least talkative routers quote of an IPv4 packet.
const shortQuote = packet.IPv4HeaderLen + 8

// wire takes an answer through packets: the probe is made, and the packet that answers it, and that is recognised. What
// comes out takes the answer's place.
func (s *session) wire(p *Probe, sent int64, a *stateless.Answer) error {
	pkt, err := s.codec.Append(nil, &stateless.Probe{
		Src: p.Source, Dst: p.Target, TTL: p.TTL, Flow: p.Flow, Number: p.Number, Time: sent,
	})
	if err != nil {
		return fmt.Errorf("make a probe: %w", err)
	}
	six := p.Target.Is6()
	at, icmp := packet.IPv4HeaderLen, packet.ProtocolICMP
	if six {
		at, icmp = packet.IPv6HeaderLen, packet.ProtocolICMPv6
	}
	proto := s.codec.Protocol(map[bool]int{false: 4, true: 6}[six])
	var data []byte
	switch {
	case a.Status != probe.Replied || p.Kind == stateless.UDP:
		e := &packet.ICMPError{Type: a.ICMPType, Code: a.ICMPCode, Quote: pkt}
		if six {
			pkt[7] = 1
		} else {
			pkt[8] = 1
		}
		switch {
		case len(a.Labels) > 0:
			if e.Extensions, err = packet.AppendMPLS(nil, a.Labels); err != nil {
				return fmt.Errorf("label an answer: %w", err)
			}
		case !six && a.Responder.As4()[3]%2 == 0:
			e.Quote = pkt[:shortQuote]
		}
		if six {
			data, err = packet.AppendICMPError6(nil, a.Responder, p.Source, e)
		} else {
			data, err = packet.AppendICMPError4(nil, e)
		}
		proto = icmp
	case p.Kind == stateless.ICMP:
		data = slices.Clone(pkt[at:])
		data[0] = a.ICMPType
		if six {
			packet.SetICMPv6Checksum(data, a.Responder, p.Source)
		} else {
			packet.SetICMPChecksum(data)
		}
	case p.Kind == stateless.TCP:
		syn := pkt[at:]
		h := packet.TCPHeader{
			SrcPort: binary.BigEndian.Uint16(syn[2:]), DstPort: binary.BigEndian.Uint16(syn),
			Ack: binary.BigEndian.Uint32(syn[4:]) + 1, Flags: packet.TCPRst | packet.TCPAck,
		}
		data, err = h.Append(nil, a.Responder, p.Source, nil)
	default: // a name server repeats the question
		data = slices.Clone(pkt[at:])
		copy(data, pkt[at+2:at+4])
		copy(data[2:], pkt[at:at+2])
		data[packet.UDPHeaderLen+2] |= 0x80
	}
	if err != nil {
		return fmt.Errorf("make an answer: %w", err)
	}
	var got stateless.Answer
	var codec *stateless.Codec
	if six {
		codec, err = s.f.table.Parse6(a.Responder, p.Source, a.ReplyTTL, 0, proto, data, &got)
	} else {
		h := packet.IPv4Header{TTL: a.ReplyTTL, Protocol: proto, Src: a.Responder, Dst: p.Source}
		var whole []byte
		if whole, err = h.Append(nil, len(data)); err != nil {
			return fmt.Errorf("make an answer: %w", err)
		}
		codec, err = s.f.table.Parse4(append(whole, data...), &got)
	}
	if err != nil {
		return fmt.Errorf("recognise an answer: %w", err)
	}
	if codec != s.codec {
		return errors.New("recognise an answer: it is another session's")
	}
	got.Text = a.Text
	*a = got
	return nil
}
