// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"iter"
)

// Classes of extension objects, from IANA's registry, that are common in the wild.
const (
	ExtensionMPLS          uint8 = 1 // RFC 4950; type 1 is the incoming label stack
	ExtensionInterface     uint8 = 2 // RFC 5837
	ExtensionInterfaceID   uint8 = 3 // RFC 8335, in extended echo requests
	extensionMPLSIncoming  uint8 = 1
	extensionVersion             = 2
	extensionHeaderLen           = 4
	extensionObjectLen           = 4
	maxExtensionObjectData       = 0xffff - extensionObjectLen
)

// Extensions is an ICMP extension structure (RFC 4884, section 7): a header, then objects.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+-----------------------+-------------------------------+
//	|Version|       Reserved        |   Checksum, 0 means none      |
//	+-------+-----------------------+---------------+---------------+
//	|   Length with these 4 bytes   |     Class     |     Type      |
//	+-------------------------------+---------------+---------------+
//	|                     Payload; more objects                     |
//	+---------------------------------------------------------------+
type Extensions []byte

// ExtensionObject is one object of an extension structure. Payload is a view.
type ExtensionObject struct {
	Class, Type uint8
	Payload     []byte
}

// ParseExtensions checks an extension structure that ends where b does.
// Errors: [ErrTruncated], [ErrVersion] other than 2, [ErrChecksum] neither 0 nor right, [ErrMalformed]
// for objects whose lengths do not add up.
func ParseExtensions(b []byte) (Extensions, error) {
	switch {
	case len(b) < extensionHeaderLen:
		return nil, errExtShort
	case b[0]>>4 != extensionVersion:
		return nil, errExtVersion
	case (b[2] != 0 || b[3] != 0) && Checksum(b) != 0:
		return nil, errExtChecksum
	}
	for o := b[extensionHeaderLen:]; len(o) > 0; {
		if len(o) < extensionObjectLen {
			return nil, errExtShort
		}
		n := int(binary.BigEndian.Uint16(o))
		if n < extensionObjectLen || n > len(o) {
			return nil, errExtObject
		}
		o = o[n:]
	}
	return Extensions(b), nil
}

// All iterates over the objects, in order. It ends early at one that is malformed, which those of
// [ParseExtensions] and [ParseICMPError] do not have.
func (e Extensions) All() iter.Seq[ExtensionObject] {
	return func(yield func(ExtensionObject) bool) {
		if len(e) < extensionHeaderLen {
			return
		}
		for o := e[extensionHeaderLen:]; len(o) >= extensionObjectLen; {
			n := int(binary.BigEndian.Uint16(o))
			if n < extensionObjectLen || n > len(o) {
				return
			}
			if !yield(ExtensionObject{Class: o[2], Type: o[3], Payload: o[extensionObjectLen:n]}) {
				return
			}
			o = o[n:]
		}
	}
}

// Label is an MPLS label stack entry (RFC 3032).
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------------------------------+-----+-+---------------+
//	|                 Label                 |  TC |S|      TTL      |
//	+---------------------------------------+-----+-+---------------+
type Label struct {
	Label  uint32 `json:"label"`  // 20 bits
	TC     uint8  `json:"tc"`     // traffic class, 3 bits (RFC 5462)
	Bottom bool   `json:"bottom"` // last entry of the stack
	TTL    uint8  `json:"ttl"`
}

// AppendLabels appends to dst the entries of the first MPLS label stack object (RFC 4950), the
// top of the stack first, and returns it unchanged if there is none.
func (e Extensions) AppendLabels(dst []Label) []Label {
	for o := range e.All() {
		if o.Class != ExtensionMPLS || o.Type != extensionMPLSIncoming {
			continue
		}
		for p := o.Payload; len(p) >= 4; p = p[4:] {
			w := binary.BigEndian.Uint32(p)
			dst = append(dst, Label{Label: w >> 12, TC: uint8(w>>9) & 7, Bottom: w&0x100 != 0, TTL: uint8(w)})
		}
		break
	}
	return dst
}

// AppendExtensions appends an extension structure of these objects, with its checksum.
// An object that does not fit its length field is [ErrTooLong].
func AppendExtensions(b []byte, objects ...ExtensionObject) ([]byte, error) {
	start := len(b)
	b = append(b, extensionVersion<<4, 0, 0, 0)
	for _, o := range objects {
		if len(o.Payload) > maxExtensionObjectData {
			return b[:start], errExtTooLong
		}
		n := extensionObjectLen + len(o.Payload)
		b = append(b, byte(n>>8), byte(n), o.Class, o.Type)
		b = append(b, o.Payload...)
	}
	setExtensionChecksum(b[start:])
	return b, nil
}

// AppendMPLS appends an extension structure of one object, the MPLS label stack with which the
// packet arrived. A label above 20 bits or traffic class above 3 is [ErrMalformed]; more than 16382 labels are [ErrTooLong].
func AppendMPLS(b []byte, labels []Label) ([]byte, error) {
	if len(labels) > maxExtensionObjectData/4 {
		return b, errExtTooLong
	}
	start := len(b)
	n := extensionObjectLen + 4*len(labels)
	b = append(b, extensionVersion<<4, 0, 0, 0, byte(n>>8), byte(n), ExtensionMPLS, extensionMPLSIncoming)
	b, err := AppendLabelStack(b, labels)
	if err != nil {
		return b[:start], err
	}
	setExtensionChecksum(b[start:])
	return b, nil
}

// AppendLabelStack appends the 4 bytes of each label, as they are in an MPLS header and in the payload
// of an extension object of class [ExtensionMPLS] and type 1. A label above 20 bits or traffic class above 3 bits is [ErrMalformed].
func AppendLabelStack(b []byte, labels []Label) ([]byte, error) {
	start := len(b)
	for _, l := range labels {
		if l.Label > 0xfffff || l.TC > 7 {
			return b[:start], errLabel
		}
		w := l.Label<<12 | uint32(l.TC)<<9 | uint32(l.TTL)
		if l.Bottom {
			w |= 0x100
		}
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return b, nil
}

// setExtensionChecksum stores the checksum of the structure in a header where it is zero.
// A sum of zero goes out as 0xffff, as zero would mean that there is none.
func setExtensionChecksum(e []byte) {
	sum := Checksum(e)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(e[2:], sum)
}
