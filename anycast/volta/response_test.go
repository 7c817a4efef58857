// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/seed5728abee/fathom/anycast/volta"
)

func TestResponseFor(t *testing.T) {
	_, malformed := volta.ParseCommand("volta a")
	for _, tt := range []struct {
		err  error
		code int32
		want string
	}{
		{
			malformed, 400,
			"Invalid command: the following arguments are required: destination; " + volta.Usage,
		},
		{
			&volta.SizeError{MaxTTL: 51, Queries: 2, Block: 100}, 400,
			"Max hops * probe num (51 * 2) exceeds block size (100)",
		},
		{volta.ErrNoBlock, 500, "Internal server error: No free session ID blocks available"},
		{fmt.Errorf("session: %w", volta.ErrNoBlock), 500, "Internal server error: No free session ID blocks available"},
		{
			fmt.Errorf("request: %w", &volta.NotConnectedError{AgentID: "X"}), 500,
			"Program execution failed: failed to send job to agent X: agent X not connected",
		},
		{
			&volta.ResolveError{Name: "X", Err: errors.New("no such host")}, 500,
			"Failed to create traceroute: failed to resolve destination hostname 'X': no such host",
		},
		{
			fmt.Errorf("job 7: %w", volta.Error{Code: 500, Message: "boom"}), 500,
			`Program execution failed: agent: "boom" (code 500)`,
		},
		{errors.New("out of order"), 500, "Internal server error: out of order"},
	} {
		if code, output := volta.ResponseFor(tt.err); code != tt.code || output != tt.want {
			t.Errorf("%v: %d %s, want %d %s", tt.err, code, output, tt.code, tt.want)
		}
	}
	cause := errors.New("cause")
	if !errors.Is(&volta.ResolveError{Err: cause}, cause) {
		t.Error("ResolveError hides its reason")
	}
}
