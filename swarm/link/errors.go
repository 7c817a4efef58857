// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
)

// Errors to branch on with errors.Is. All errors of a link that is over wrap what ended it.
var (
	// ErrHandshake says that what came was no handshake of this protocol, or did not prove what it had to.
	ErrHandshake = errors.New("handshake failed")
	// ErrVersion says that the other side speaks another version of the protocol. It wraps ErrHandshake.
	ErrVersion = fmt.Errorf("%w: other version of the link protocol", ErrHandshake)
	// ErrSwarmKey says that the sides have no swarm key in common, or only one has any. It wraps ErrHandshake.
	ErrSwarmKey = fmt.Errorf("%w: no swarm key in common", ErrHandshake)
	// ErrWrongMember says that another member answered than the one that was dialled.
	ErrWrongMember = errors.New("another member answered")
	// ErrSelf says that the connection led back to the member itself.
	ErrSelf = errors.New("connection to itself")
	// ErrProtocol says that the other side broke the rules of the protocol, or that somebody tampered with the link.
	ErrProtocol = errors.New("protocol violation")
	// ErrTimeout says that the other side was silent for too long, or took nothing.
	ErrTimeout = errors.New("the link is dead")
	// ErrBroken says that the connection ended without a goodbye.
	ErrBroken = errors.New("the connection broke")
	// ErrRefused says that the other side did not accept the link, a stream or a message, or could not take a request.
	ErrRefused = errors.New("refused")
	// ErrTooLarge says that a body, message or header is longer than the other side takes.
	ErrTooLarge = errors.New("too large")
	// ErrTooManyStreams says that as many streams are open as the other side allows.
	ErrTooManyStreams = errors.New("too many streams")
)

// A Goodbye is why the other side ended the link in good order, or did not accept it. It wraps [ErrRefused] when the
// code says that the other side does not want the link.
type Goodbye struct {
	Code   Code
	Reason string // for people, at most 200 bytes
}

// A Code says why a link ends, for programs. Applications may use those from 64 on.
type Code uint8

// Values are part of the format and never change.
const (
	// CodeClosed: no longer needed, or the member leaves.
	CodeClosed Code = iota
	// CodeRefused: Config.Check did not accept the member.
	CodeRefused
	// CodeDuplicate: there is another link between the two members.
	CodeDuplicate
	// CodeOverloaded: too many links.
	CodeOverloaded
	// CodeViolation: the other side broke a rule.
	CodeViolation
)

func (c Code) String() string {
	switch c {
	case CodeClosed:
		return "closed"
	case CodeRefused:
		return "refused"
	case CodeDuplicate:
		return "duplicate"
	case CodeOverloaded:
		return "overloaded"
	case CodeViolation:
		return "violation"
	default:
		return fmt.Sprintf("Code(%d)", uint8(c))
	}
}

func (g *Goodbye) Error() string {
	if g.Reason == "" {
		return "the other side said goodbye: " + g.Code.String()
	}
	return fmt.Sprintf("the other side said goodbye: %s: %q", g.Code, g.Reason)
}

// Unwrap returns ErrRefused for CodeRefused, CodeDuplicate and CodeOverloaded.
func (g *Goodbye) Unwrap() error {
	switch g.Code {
	case CodeRefused, CodeDuplicate, CodeOverloaded:
		return ErrRefused
	default:
		return nil
	}
}
