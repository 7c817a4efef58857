// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// MaxCandidates bounds the candidates of an offer: what a peer can make another send packets to.
const MaxCandidates = 32

// MaxOffer is the length of the longest offer, in bytes.
const MaxOffer = offerHeader + MaxCandidates*19

// ErrOffer is returned for bytes that are no offer, and for offers that cannot be encoded.
var ErrOffer = errors.New("bad offer")

// An Offer is what each side tells the other, over whatever way they have already. It is good for one attempt. It is
// secret: who knows both offers can pass for either side.
//
//	 0       1       2          18              50
//	+-------+-------+----------+---------------+---------------
//	| 1     | count | share    | certificate   | candidates ...
//	+-------+-------+----------+---------------+---------------
//
//	candidate:  0                          1      3
//	           +--------------------------+------+-----------+
//	           | UDP 80h, IPv6 40h, kind  | port | address   |   4 or 16 bytes
//	           +--------------------------+------+-----------+
type Offer struct {
	// Share is this side's half of the secret of the attempt, random.
	Share [16]byte
	// Certificate is the SHA-256 of the certificate by which this side is known in QUIC.
	Certificate [32]byte
	Candidates  []Candidate
}

const (
	offerVersion = 1
	offerHeader  = 50

	candidateUDP  = 0x80
	candidateIPv6 = 0x40
)

// Append appends the encoded offer.
func (o Offer) Append(b []byte) ([]byte, error) {
	if len(o.Candidates) > MaxCandidates {
		return b, fmt.Errorf("%w: %d candidates, at most %d", ErrOffer, len(o.Candidates), MaxCandidates)
	}
	start := len(b)
	b = append(b, offerVersion, byte(len(o.Candidates)))
	b = append(b, o.Share[:]...)
	b = append(b, o.Certificate[:]...)
	for _, c := range o.Candidates {
		if !c.Addr.IsValid() || c.Proto != TCP && c.Proto != UDP || c.Kind < LAN || c.Kind > Predicted {
			return b[:start], fmt.Errorf("%w: candidate %v", ErrOffer, c)
		}
		head := byte(c.Kind)
		if c.Proto == UDP {
			head |= candidateUDP
		}
		addr := c.Addr.Addr().Unmap()
		if addr.Is6() {
			head |= candidateIPv6
		}
		b = append(b, head)
		b = binary.BigEndian.AppendUint16(b, c.Addr.Port())
		b = append(b, addr.AsSlice()...)
	}
	return b, nil
}

// ParseOffer decodes an offer. Whether its candidates are of use is not its matter.
func ParseOffer(b []byte) (Offer, error) {
	if len(b) < offerHeader || len(b) > MaxOffer || b[0] != offerVersion || b[1] > MaxCandidates {
		return Offer{}, fmt.Errorf("%w: %d bytes", ErrOffer, len(b))
	}
	o := Offer{Share: [16]byte(b[2:]), Certificate: [32]byte(b[18:])}
	count := int(b[1])
	b = b[offerHeader:]
	for i := range count {
		if len(b) < 7 {
			return Offer{}, fmt.Errorf("%w: candidate %d is cut short", ErrOffer, i)
		}
		head := b[0]
		c := Candidate{Proto: TCP, Kind: Kind(head &^ (candidateUDP | candidateIPv6))}
		if c.Kind < LAN || c.Kind > Predicted {
			return Offer{}, fmt.Errorf("%w: candidate %d of %v", ErrOffer, i, c.Kind)
		}
		if head&candidateUDP != 0 {
			c.Proto = UDP
		}
		size := 4
		if head&candidateIPv6 != 0 {
			size = 16
		}
		if len(b) < 3+size {
			return Offer{}, fmt.Errorf("%w: candidate %d is cut short", ErrOffer, i)
		}
		addr, _ := netip.AddrFromSlice(b[3 : 3+size])
		if addr.Is4In6() {
			return Offer{}, fmt.Errorf("%w: candidate %d has an IPv4 address in an IPv6 one", ErrOffer, i)
		}
		c.Addr = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[1:]))
		o.Candidates = append(o.Candidates, c)
		b = b[3+size:]
	}
	if len(b) > 0 {
		return Offer{}, fmt.Errorf("%w: %d bytes after the last candidate", ErrOffer, len(b))
	}
	return o, nil
}
