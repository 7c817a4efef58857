// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/packet"
	"github.com/seed5728abee/fathom/probe"
)

// The answers that consist of a word, or of a word and arguments that are always the same.
const (
	wordParseError       = "command-parse-error"
	wordOverflow         = "command-buffer-overflow"
	wordUnknownCommand   = "unknown-command"
	wordInvalidArgument  = "invalid-argument"
	wordNoIPVersion      = "invalid-argument reason ip-version-not-supported"
	wordNoProtocol       = "invalid-argument reason protocol-not-supported"
	wordExhausted        = "probes-exhausted"
	wordNoReply          = "no-reply"
	wordPermissionDenied = "permission-denied"
	wordAddressInUse     = "address-in-use"
	wordAddressNotAvail  = "address-not-available"
)

// dialect is what differs between releases of the original.
type dialect struct {
	version       string // the answer to check-support feature version
	firstSequence uint16

	noRouteHost    string
	noRouteNetwork string
	networkDown    string
	hostDown       string
	connectTimeout string
}

var (
	dialect096 = dialect{
		version: "0.96-fathom", firstSequence: 33434,
		noRouteHost: "no-route-host", noRouteNetwork: "no-route-network",
		networkDown: "network-down", hostDown: "host-down",
		connectTimeout: "wait-tcp-respone-timeout", // spelled so
	}
	// Release 0.95 has no words for these conditions of the local network but unexpected-error, at
	// which mtr exits; no-route says the same and it goes on.
	dialect095 = dialect{
		version: "0.95-fathom", firstSequence: 33000,
		noRouteHost: "no-route", noRouteNetwork: "no-route",
		networkDown: "no-route", hostDown: "no-route",
		connectTimeout: wordNoReply,
	}
)

// maxLabels is how many MPLS labels an answer holds at most; mtr has room for 8.
const maxLabels = 8

// appendWord appends an answer of one word, or of a word with constant arguments.
func appendWord(b []byte, token int64, word string) []byte {
	b = strconv.AppendInt(b, token, 10)
	b = append(b, ' ')
	b = append(b, word...)
	return append(b, '\n')
}

// appendSupport appends the answer to check-support.
func appendSupport(b []byte, token int64, value string) []byte {
	b = strconv.AppendInt(b, token, 10)
	b = append(b, " feature-support support "...)
	b = append(b, value...)
	return append(b, '\n')
}

// appendResult appends the answer that says how a probe ended.
func (d *dialect) appendResult(b []byte, r *probe.Result) []byte {
	token := int64(r.Tag)
	switch r.Status {
	case probe.Replied:
		return appendAnswer(b, token, "reply", r)
	case probe.TimeExceeded:
		return appendAnswer(b, token, "ttl-expired", r)
	case probe.HostUnreachable:
		if r.Answered() {
			return appendAnswer(b, token, d.noRouteHost, r)
		}
		return appendWord(b, token, d.noRouteHost)
	case probe.NetUnreachable:
		return appendWord(b, token, d.noRouteNetwork)
	case probe.NetworkDown:
		return appendWord(b, token, d.networkDown)
	case probe.HostDown:
		return appendWord(b, token, d.hostDown)
	case probe.Failed:
		return d.appendError(b, token, r.Err)
	case probe.NoReply:
	}
	return appendWord(b, token, wordNoReply)
}

// appendAnswer appends an answer that names an address and a time.
func appendAnswer(b []byte, token int64, word string, r *probe.Result) []byte {
	responder := r.Responder
	if !responder.IsValid() {
		responder = r.Target // the local system answered in its place
	}
	b = strconv.AppendInt(b, token, 10)
	b = append(b, ' ')
	b = append(b, word...)
	b = appendAddr(b, responder)
	b = append(b, " round-trip-time "...)
	b = strconv.AppendInt(b, max(0, int64(r.RTT/time.Microsecond)), 10)
	b = appendLabels(b, r.MPLS)
	return append(b, '\n')
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		b = append(b, " ip-4 "...)
	} else {
		b = append(b, " ip-6 "...)
		a = a.WithZone("")
	}
	return a.AppendTo(b)
}

func appendLabels(b []byte, labels []packet.Label) []byte {
	for i, l := range labels[:min(len(labels), maxLabels)] {
		if i == 0 {
			b = append(b, " mpls "...)
		} else {
			b = append(b, ',')
		}
		bottom := uint64(0)
		if l.Bottom {
			bottom = 1
		}
		b = strconv.AppendUint(b, uint64(l.Label), 10)
		b = append(b, ',')
		b = strconv.AppendUint(b, uint64(l.TC), 10)
		b = append(b, ',')
		b = strconv.AppendUint(b, bottom, 10)
		b = append(b, ',')
		b = strconv.AppendUint(b, uint64(l.TTL), 10)
	}
	return b
}

// appendError appends the answer to a probe that could not be sent, or was given up.
func (d *dialect) appendError(b []byte, token int64, err error) []byte {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return d.appendErrno(b, token, errno)
	}
	word := ""
	switch {
	case errors.Is(err, probe.ErrExhausted):
		word = wordExhausted
	case errors.Is(err, probe.ErrInvalid):
		word = wordInvalidArgument
	case errors.Is(err, probe.ErrPermission):
		word = wordPermissionDenied
	case errors.Is(err, probe.ErrAddrInUse):
		word = wordAddressInUse
	case errors.Is(err, probe.ErrAddrNotAvailable):
		word = wordAddressNotAvail
	case errors.Is(err, probe.ErrNoInterface):
		return appendUnexpected(b, token, syscall.ENODEV)
	case errors.Is(err, probe.ErrTooBig):
		return appendUnexpected(b, token, syscall.EMSGSIZE)
	case errors.Is(err, probe.ErrUnsupported):
		word = wordNoProtocol
	default:
		return appendUnexpected(b, token, syscall.EIO)
	}
	return appendWord(b, token, word)
}

// appendErrno names an error of the system. EACCES is deliberately not permission-denied: it
// comes from sending to a broadcast address.
func (d *dialect) appendErrno(b []byte, token int64, errno syscall.Errno) []byte {
	word := ""
	switch errno {
	case syscall.EINVAL:
		word = wordInvalidArgument
	case syscall.EPERM:
		word = wordPermissionDenied
	case syscall.EADDRINUSE:
		word = wordAddressInUse
	case syscall.EADDRNOTAVAIL:
		word = wordAddressNotAvail
	case syscall.ENETUNREACH:
		word = d.noRouteNetwork
	case syscall.EHOSTUNREACH:
		word = d.noRouteHost
	case syscall.ENETDOWN:
		word = d.networkDown
	case syscall.EHOSTDOWN:
		word = d.hostDown
	case syscall.ETIMEDOUT:
		word = d.connectTimeout
	case syscall.ENOBUFS, syscall.EAGAIN, syscall.EMFILE, syscall.ENFILE, syscall.EINTR, syscall.ENOMEM:
		word = wordNoReply // passing trouble; mtr would exit at unexpected-error
	default:
		return appendUnexpected(b, token, errno)
	}
	return appendWord(b, token, word)
}

func appendUnexpected(b []byte, token int64, errno syscall.Errno) []byte {
	b = strconv.AppendInt(b, token, 10)
	b = append(b, " unexpected-error errno "...)
	b = strconv.AppendUint(b, uint64(errno), 10)
	return append(b, '\n')
}

// chunkSize is how much is written at once: what fits into a pipe that is ready, in one piece (PIPE_BUF).
const chunkSize = 4096

// replies are the answers not yet written. Each is shorter than chunkSize.
type replies struct {
	buf  []byte
	head int // written up to here
}

// pending is the number of bytes not yet written.
func (r *replies) pending() int { return len(r.buf) - r.head }

// chunk is what to write next: whole lines, at most chunkSize bytes; empty if nothing is pending.
func (r *replies) chunk() []byte {
	b := r.buf[r.head:]
	if len(b) <= chunkSize {
		return b
	}
	return b[:bytes.LastIndexByte(b[:chunkSize], '\n')+1]
}

// written tells that n bytes of the chunk were written.
func (r *replies) written(n int) {
	r.head += n
	switch {
	case r.head == len(r.buf):
		r.buf, r.head = r.buf[:0], 0
	case r.head > len(r.buf)/2: // so that a byte is moved once at most, on average
		r.buf = r.buf[:copy(r.buf, r.buf[r.head:])]
		r.head = 0
	}
}
