// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/packet"
)

// ProbePort is the UDP destination port of every probe that an original sends.
const ProbePort = 33434

// Answer is what a Reply's packet says about the probe that it answers.
type Answer struct {
	// Gateway is who answered.
	Gateway netip.Addr
	// Type and Code are the ICMP message's: 3 (destination unreachable) or 11 (time exceeded).
	Type, Code uint8
	// Source, Destination, SourcePort and DestinationPort are of the probe, as the answer quotes them.
	Source, Destination         netip.Addr
	SourcePort, DestinationPort uint16
}

// Final tells that the probe reached the end of the path. As in the originals, any code of "destination
// unreachable" is that.
func (a Answer) Final() bool { return a.Type == packet.ICMPv4Unreachable }

// ParseAnswer reads the packet of a Reply: IPv4 from the IP header on. Agents of the originals forward
// every ICMP packet that their host receives, so most errors only mean that this one is about something
// else: ErrForeign for all but time exceeded and destination unreachable about a UDP packet over IPv4,
// ErrMalformed for what is no ICMP packet over IPv4, or one cut short. It does not allocate.
func ParseAnswer(b []byte) (Answer, error) {
	// The total length counts only where it can be right: some ways to receive a packet change it.
	ip, err := packet.ParseQuotedIPv4(b)
	if err != nil || ip.FragmentOffset() != 0 || ip.Protocol() != packet.ProtocolICMP {
		return Answer{}, errNoICMP
	}
	message := ip.Payload()
	if len(message) < packet.ICMPHeaderLen {
		return Answer{}, errNoICMP
	}
	if typ := message[0]; typ != packet.ICMPv4Unreachable && typ != packet.ICMPv4TimeExceeded {
		return Answer{}, errNoError
	}
	var e packet.ICMPError
	if err := e.Decode(4, message); err != nil {
		return Answer{}, errNoICMP
	}
	var q packet.Quote
	if err := q.Decode(e.Quote); err != nil {
		return Answer{}, errBadQuote
	}
	if q.Version != 4 || q.Protocol != packet.ProtocolUDP {
		return Answer{}, errNoUDP
	}
	return Answer{
		Gateway: ip.Src(), Type: e.Type, Code: e.Code,
		Source: q.Src, Destination: q.Dst, SourcePort: q.SrcPort, DestinationPort: q.DstPort,
	}, nil
}

// What ParseAnswer returns, made once: a flood of foreign packets costs no memory.
var (
	errNoICMP   = fmt.Errorf("%w: not a whole ICMP packet over IPv4", ErrMalformed)
	errBadQuote = fmt.Errorf("%w: the ICMP error quotes no whole header", ErrMalformed)
	errNoError  = fmt.Errorf("%w: neither time exceeded nor destination unreachable", ErrForeign)
	errNoUDP    = fmt.Errorf("%w: not about UDP over IPv4", ErrForeign)
)
