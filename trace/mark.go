// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"

	"github.com/seed5728abee/fathom/probe"
)

// Mark gives the short sign that traceroute prints for a result that says that the target can't be
// reached: !N for the network, !H for the host, !P for the protocol, !X for an administrator's
// decision and so on, or ! and the number of the code. It is empty for other results.
func Mark(r *probe.Result) string {
	switch r.Status {
	case probe.NetUnreachable, probe.NetworkDown:
		return "!N"
	case probe.HostDown:
		return "!H"
	case probe.HostUnreachable:
	case probe.Replied, probe.TimeExceeded, probe.NoReply, probe.Failed:
		return ""
	default:
		return ""
	}
	if !r.HasICMP {
		return "!H"
	}
	marks := marks4
	if r.Target.Is6() && !r.Target.Is4In6() {
		marks = marks6
	}
	if m, ok := marks[r.ICMPCode]; ok {
		return m
	}
	return fmt.Sprintf("!%d", r.ICMPCode)
}

// The codes of destination unreachable: RFC 792, RFC 1122 and RFC 1812; RFC 4443.
var (
	marks4 = map[uint8]string{
		0: "!N", 1: "!H", 2: "!P", 4: "!F", 5: "!S", 6: "!U", 7: "!W", 8: "!I", 9: "!A", 10: "!Z",
		11: "!Q", 12: "!T", 13: "!X", 14: "!V", 15: "!C",
	}
	marks6 = map[uint8]string{0: "!N", 1: "!X", 2: "!S", 3: "!H", 5: "!I", 6: "!R"}
)
