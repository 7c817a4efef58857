// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
)

// Errors to branch on with [errors.Is]. Decoders return them wrapped in values that
// were made once, so refusing a hostile packet allocates nothing.
var (
	// ErrTruncated: the bytes end before the packet does.
	ErrTruncated = errors.New("packet truncated")
	// ErrMalformed: a field contradicts the protocol, or a value given to an encoder cannot be encoded.
	ErrMalformed = errors.New("packet malformed")
	// ErrVersion: the version field is not the one expected.
	ErrVersion = errors.New("unexpected version")
	// ErrChecksum: a checksum that had to be right is wrong.
	ErrChecksum = errors.New("wrong checksum")
	// ErrTooLong: the result would not fit the length field or size limit of its protocol.
	ErrTooLong = errors.New("packet too long")
	// ErrFragment: the transport header is not here, because the packet is not the first fragment.
	ErrFragment = errors.New("not the first fragment")
	// ErrAddress: an address is of the wrong IP version.
	ErrAddress = errors.New("address of the wrong IP version")
)

// The errors that are returned: where, then one of the above.
var (
	errIPv4Short      = fmt.Errorf("IPv4 header: %w", ErrTruncated)
	errIPv4Version    = fmt.Errorf("IPv4 header: %w", ErrVersion)
	errIPv4HeaderLen  = fmt.Errorf("IPv4 header length: %w", ErrMalformed)
	errIPv4TotalLen   = fmt.Errorf("IPv4 total length: %w", ErrMalformed)
	errIPv4Payload    = fmt.Errorf("IPv4 payload: %w", ErrTruncated)
	errIPv4Options    = fmt.Errorf("IPv4 options: %w", ErrTooLong)
	errIPv4TooLong    = fmt.Errorf("IPv4 total length: %w", ErrTooLong)
	errIPv4Offset     = fmt.Errorf("IPv4 fragment offset: %w", ErrMalformed)
	errIPv4Address    = fmt.Errorf("IPv4 header: %w", ErrAddress)
	errIPv4Fragment   = fmt.Errorf("IPv4 packet: %w", ErrFragment)
	errIPv6Short      = fmt.Errorf("IPv6 header: %w", ErrTruncated)
	errIPv6Version    = fmt.Errorf("IPv6 header: %w", ErrVersion)
	errIPv6Payload    = fmt.Errorf("IPv6 payload: %w", ErrTruncated)
	errIPv6TooLong    = fmt.Errorf("IPv6 payload length: %w", ErrTooLong)
	errIPv6FlowLabel  = fmt.Errorf("IPv6 flow label: %w", ErrMalformed)
	errIPv6Address    = fmt.Errorf("IPv6 header: %w", ErrAddress)
	errIPv6Extension  = fmt.Errorf("IPv6 extension header: %w", ErrTruncated)
	errIPv6ExtTooLong = fmt.Errorf("IPv6 extension header: %w", ErrTooLong)
	errIPv6ExtLen     = fmt.Errorf("IPv6 extension header length: %w", ErrMalformed)
	errIPv6Offset     = fmt.Errorf("IPv6 fragment offset: %w", ErrMalformed)
	errIPv6Fragment   = fmt.Errorf("IPv6 packet: %w", ErrFragment)
	errUDPShort       = fmt.Errorf("UDP header: %w", ErrTruncated)
	errUDPLength      = fmt.Errorf("UDP length: %w", ErrMalformed)
	errUDPPayload     = fmt.Errorf("UDP payload: %w", ErrTruncated)
	errUDPTooLong     = fmt.Errorf("UDP length: %w", ErrTooLong)
	errUDPAddress     = fmt.Errorf("UDP pseudo header: %w", ErrAddress)
	errUDPBalance     = fmt.Errorf("UDP payload to balance the checksum with: %w", ErrTruncated)
	errUDPBalanceZero = fmt.Errorf("UDP checksum 0 means none: %w", ErrMalformed)
	errTCPShort       = fmt.Errorf("TCP header: %w", ErrTruncated)
	errTCPOffset      = fmt.Errorf("TCP data offset: %w", ErrMalformed)
	errTCPOptions     = fmt.Errorf("TCP options: %w", ErrTooLong)
	errTCPTooLong     = fmt.Errorf("TCP segment: %w", ErrTooLong)
	errTCPAddress     = fmt.Errorf("TCP pseudo header: %w", ErrAddress)
	errSCTPShort      = fmt.Errorf("SCTP header: %w", ErrTruncated)
	errSCTPChunk      = fmt.Errorf("SCTP chunk: %w", ErrTruncated)
	errSCTPChunkLen   = fmt.Errorf("SCTP chunk length: %w", ErrMalformed)
	errSCTPInit       = fmt.Errorf("SCTP initiate tag and streams must not be 0: %w", ErrMalformed)
	errSCTPTooLong    = fmt.Errorf("SCTP chunk length: %w", ErrTooLong)
	errICMPShort      = fmt.Errorf("ICMP message: %w", ErrTruncated)
	errICMPNotError   = fmt.Errorf("ICMP message is not an error: %w", ErrMalformed)
	errICMPVersion    = fmt.Errorf("ICMP of neither IPv4 nor IPv6: %w", ErrVersion)
	errICMPField      = fmt.Errorf("ICMP MTU, pointer or gateway: %w", ErrMalformed)
	errICMPNoExt      = fmt.Errorf("ICMP type without extensions: %w", ErrMalformed)
	errICMPBalanceAt  = fmt.Errorf("ICMP offset to balance the checksum at: %w", ErrMalformed)
	errICMPBalance    = fmt.Errorf("ICMP bytes to balance the checksum with: %w", ErrTruncated)
	errICMPAddress    = fmt.Errorf("ICMPv6 pseudo header: %w", ErrAddress)
	errExtShort       = fmt.Errorf("ICMP extension structure: %w", ErrTruncated)
	errExtVersion     = fmt.Errorf("ICMP extension structure: %w", ErrVersion)
	errExtChecksum    = fmt.Errorf("ICMP extension structure: %w", ErrChecksum)
	errExtObject      = fmt.Errorf("ICMP extension object length: %w", ErrMalformed)
	errExtTooLong     = fmt.Errorf("ICMP extension structure: %w", ErrTooLong)
	errLabel          = fmt.Errorf("MPLS label stack entry: %w", ErrMalformed)
	errQuoteShort     = fmt.Errorf("quoted transport header: %w", ErrTruncated)
	errQuoteVersion   = fmt.Errorf("quoted packet: %w", ErrVersion)
)
