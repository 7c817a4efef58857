// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// Errors to branch on with [errors.Is].
var (
	// ErrClosed: the prober was closed, before the call or while the probe was in flight.
	ErrClosed = net.ErrClosed
	// ErrExhausted: as many probes are in flight as Options.MaxInFlight allows. Wait for one to end.
	ErrExhausted = errors.New("too many probes in flight")
	// ErrUnsupported: this system, or the prober's mode, cannot send such a probe. Features tells what it can.
	ErrUnsupported = errors.ErrUnsupported
	// ErrPermission: the kernel refused for lack of a privilege. The message names it.
	ErrPermission = os.ErrPermission
	// ErrInvalid: the request itself is wrong. It is a *RequestError.
	ErrInvalid = errors.New("invalid request")
	// ErrAddrNotAvailable: LocalAddr is not an address of this host.
	ErrAddrNotAvailable = errors.New("local address is not available on this host")
	// ErrAddrInUse: LocalPort is taken by another program.
	ErrAddrInUse = errors.New("local port is in use")
	// ErrNoInterface: Request.Interface does not exist (any more).
	ErrNoInterface = errors.New("no such network interface")
	// ErrTooBig: the packet is larger than the way out allows and may not be fragmented.
	ErrTooBig = errors.New("packet too big")
)

// RequestError says which field of a [Request] is wrong, and why. It is [ErrInvalid].
type RequestError struct {
	Field  string // the field's name in lower case
	Value  any
	Reason string
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("invalid %s %v: %s", e.Field, e.Value, e.Reason)
}

// Is makes errors.Is(err, ErrInvalid) true.
func (e *RequestError) Is(target error) bool { return target == ErrInvalid }

// ResolveError tells that a host name has no address of the wanted version.
type ResolveError struct {
	Host    string
	Version int // 4, 6, or 0 for either
	Err     error
}

func (e *ResolveError) Error() string {
	switch e.Version {
	case 4, 6:
		return fmt.Sprintf("resolve %s (IPv%d): %v", e.Host, e.Version, e.Err)
	default:
		return fmt.Sprintf("resolve %s: %v", e.Host, e.Err)
	}
}

func (e *ResolveError) Unwrap() error { return e.Err }
