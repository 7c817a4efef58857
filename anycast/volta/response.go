// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"errors"
	"fmt"
	"net/http"
)

// ErrNoBlock reports that every block of source ports is in use. Its text is the original's.
var ErrNoBlock = errors.New("No free session ID blocks available") //nolint:staticcheck // the text is part of the protocol: clients look for it

// A NotConnectedError reports a request for an agent that is not there.
type NotConnectedError struct {
	AgentID string
}

// Error is the text of the original.
func (e *NotConnectedError) Error() string {
	return fmt.Sprintf("failed to send job to agent %s: agent %s not connected", e.AgentID, e.AgentID)
}

// A ResolveError reports a destination without an address.
type ResolveError struct {
	Name string
	Err  error // why
}

// Error is the text of the original, with the reason.
func (e *ResolveError) Error() string {
	return fmt.Sprintf("failed to resolve destination hostname '%s': %v", e.Name, e.Err)
}

// Unwrap gives the reason.
func (e *ResolveError) Unwrap() error { return e.Err }

// ResponseFor gives the code and the text that answer a request which failed with err:
//
//	*CommandError       400  Invalid command: ...
//	*SizeError          400  Max hops * probe num (51 * 2) exceeds block size (100)
//	*NotConnectedError  500  Program execution failed: ...
//	Error (an agent's)  500  Program execution failed: ...
//	*ResolveError       500  Failed to create traceroute: ...
//	ErrNoBlock, others  500  Internal server error: ...
//
// A request that succeeded, also without an answer to any probe, has the code 200.
func ResponseFor(err error) (code int32, output string) {
	if e, ok := errors.AsType[*CommandError](err); ok {
		return http.StatusBadRequest, e.Error()
	}
	if e, ok := errors.AsType[*SizeError](err); ok {
		return http.StatusBadRequest, e.Error()
	}
	if e, ok := errors.AsType[*NotConnectedError](err); ok {
		return http.StatusInternalServerError, "Program execution failed: " + e.Error()
	}
	if e, ok := errors.AsType[Error](err); ok {
		return http.StatusInternalServerError, "Program execution failed: " + e.Error()
	}
	if e, ok := errors.AsType[*ResolveError](err); ok {
		return http.StatusInternalServerError, "Failed to create traceroute: " + e.Error()
	}
	if errors.Is(err, ErrNoBlock) {
		err = ErrNoBlock // without what was wrapped around it
	}
	return http.StatusInternalServerError, fmt.Sprintf("Internal server error: %v", err)
}
