// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/packet"
)

// What the classic scheme fixes.
const (
	classicUDPPort = 33434
	classicPayload = "ubiquitousubiquitousubiquitousubiquitous"
)

func newClassic(cfg Config) (*Codec, error) {
	switch {
	case cfg.Kind != ICMP && cfg.Kind != UDP:
		return nil, fmt.Errorf("%w: classic probes are UDP or ICMP, not %s", ErrConfig, cfg.Kind)
	case cfg.Kind == UDP && cfg.DstPort != 0 && cfg.DstPort != classicUDPPort:
		return nil, fmt.Errorf("%w: classic probes go to port %d", ErrConfig, classicUDPPort)
	case cfg.Size != 0 || cfg.Note != "":
		return nil, fmt.Errorf("%w: classic probes have a fixed payload", ErrConfig)
	case cfg.Target.IsValid() && !cfg.Target.Is4():
		return nil, fmt.Errorf("%w: classic probes are for IPv4, not %s", ErrConfig, cfg.Target)
	}
	c := &Codec{cfg: cfg, maxNumber: MaxNumber}
	c.cfg.DstPort = 0
	if cfg.Kind == UDP {
		c.cfg.DstPort = classicUDPPort
		c.maxNumber = min(cfg.Ports-1, MaxNumber)
	}
	return c, nil
}

// appendClassic leaves the IP identification 0, so that the kernel chooses it, as the origin does.
func (c *Codec) appendClassic(b []byte, src, dst netip.Addr, p *Probe) ([]byte, error) {
	if !dst.Is4() {
		return b, errClassic6
	}
	h := packet.IPv4Header{TOS: c.cfg.TOS, TTL: p.TTL, Protocol: c.Protocol(4), Src: src, Dst: dst}
	n := packet.UDPHeaderLen
	if c.cfg.Kind == ICMP {
		n = packet.ICMPHeaderLen + len(classicPayload)
	}
	start := len(b)
	b, err := h.Append(b, n)
	if err != nil {
		return b, err
	}
	if c.cfg.Kind == UDP {
		if b, err = packet.AppendUDPHeader(b, c.cfg.FirstPort+p.Number, classicUDPPort, 0); err != nil {
			return b[:start], err
		}
		return b, nil
	}
	at := len(b)
	b = append(b, packet.ICMPv4Echo, 0, 0, 0, byte(c.cfg.FirstPort>>8), byte(c.cfg.FirstPort), byte(p.Number>>8), byte(p.Number))
	b = append(b, classicPayload...)
	packet.SetICMPChecksum(b[at:])
	return b, nil
}

// quotedClassic recognises a quoted probe as the origin does, and by protocol and addresses besides.
func (c *Codec) quotedClassic(q *packet.Quote, port uint16, a *Answer) error {
	switch {
	case a.ICMPType != packet.ICMPv4Unreachable && a.ICMPType != packet.ICMPv4TimeExceeded:
		return ErrNotOurs
	case c.cfg.Target.IsValid() && q.Dst != c.cfg.Target:
		return errForgedQuote
	}
	a.Target = q.Dst
	if c.cfg.Kind == ICMP {
		a.Number = q.Seq()
		if port != c.cfg.FirstPort || !isClassicPayload(q.Transport[packet.ICMPHeaderLen:]) {
			return errForgedQuote
		}
	} else {
		if q.DstPort != classicUDPPort {
			return errForgedQuote
		}
		a.Number = port - c.cfg.FirstPort
		a.Flow = a.Number
	}
	if a.Number > c.maxNumber {
		return errForgedQuote
	}
	return nil
}

func (c *Codec) replyClassic(m packet.ICMP, a *Answer) error {
	a.Number, a.Target = m.Seq(), a.Responder
	if c.cfg.Target.IsValid() {
		a.Target = c.cfg.Target
	}
	if m.ID() != c.cfg.FirstPort || m.Code() != 0 || a.Number > c.maxNumber || !isClassicPayload(m.Body()) {
		return errForgedReply
	}
	return nil
}

// isClassicPayload looks at as much as there is: quotes and deliveries may be cut off.
func isClassicPayload(b []byte) bool {
	n := min(len(b), len(classicPayload))
	return bytes.Equal(b[:n], []byte(classicPayload[:n]))
}
