// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics

import (
	"errors"
	"fmt"

	"github.com/seed5728abee/fathom/relay/drop"
)

// The UDP ports that EPICS uses unless told otherwise.
const (
	CAPort       = 5064 // Channel Access: searches; servers listen here
	CABeaconPort = 5065 // Channel Access: beacons; the repeater of each client's host listens here
	PVAPort      = 5076 // PVAccess: searches and beacons
)

// A Protocol is one of the two of EPICS. The zero value is none.
type Protocol uint8

// The protocols.
const (
	None Protocol = iota
	ChannelAccess
	PVAccess
)

// ProtocolOf tells which protocol a well-known UDP port belongs to, or [None].
func ProtocolOf(port uint16) Protocol {
	switch port {
	case CAPort, CABeaconPort:
		return ChannelAccess
	case PVAPort:
		return PVAccess
	}
	return None
}

// String is the name that EPICS users know: "ca" or "pva".
func (p Protocol) String() string {
	switch p {
	case None:
		return "none"
	case ChannelAccess:
		return "ca"
	case PVAccess:
		return "pva"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

// ErrProtocol: a text names neither protocol.
var ErrProtocol = errors.New(`the protocol is not "ca" or "pva"`)

// MarshalText is [Protocol.String].
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads "ca", "pva" or "none". It returns [ErrProtocol] for anything else.
func (p *Protocol) UnmarshalText(text []byte) error {
	for q := None; q <= PVAccess; q++ {
		if string(text) == q.String() {
			*p = q
			return nil
		}
	}
	return fmt.Errorf("%q: %w", text, ErrProtocol)
}

// Valid tells whether the payload of a UDP datagram consists of well-formed
// messages of a protocol, at least one: [drop.None] if so, [drop.Invalid] if not.
// Everything is valid for the protocol [None]. It does not allocate.
func Valid(p Protocol, payload []byte) drop.Reason {
	var err error
	switch p {
	case ChannelAccess:
		err = validCA(payload)
	case PVAccess:
		err = validPVA(payload)
	case None:
	}
	if err != nil {
		return drop.Invalid
	}
	return drop.None
}

// What is wrong with a datagram. All are [drop.Invalid] to errors.Is.
var (
	errCAShort     = invalid("Channel Access header cut short")
	errCAPayload   = invalid("Channel Access payload cut short")
	errCAAlignment = invalid("Channel Access payload is not a multiple of 8 bytes")
	errCASize      = invalid("Channel Access command with a payload of the wrong size")
	errCAName      = invalid("Channel Access name is empty or not terminated")

	errPVAShort   = invalid("PVAccess header cut short")
	errPVAMagic   = invalid("not a PVAccess message")
	errPVAFlags   = invalid("PVAccess control message or segment in a datagram")
	errPVAPayload = invalid("PVAccess payload cut short")
	errPVAFields  = invalid("PVAccess payload shorter than its fields")
	errPVAName    = invalid("PVAccess name is empty")
	errPVACommand = invalid("PVAccess message has another command")
)

func invalid(what string) error { return fmt.Errorf("%s: %w", what, drop.Invalid) }
