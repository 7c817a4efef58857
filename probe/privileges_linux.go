// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// DropPrivileges takes every capability from the process for good, on all its threads, whether it
// has them as root or from its file, and from the programs that it may start. What user 0 may do as the owner of
// files is left. A prober that is open keeps working, since its sockets are. Only
// a routing mark needs a capability at the moment of sending: keepMark leaves CAP_NET_RAW, which
// suffices from Linux 5.17 on, if the process has it.
func DropPrivileges(keepMark bool) error {
	set := cap.NewSet()
	if keepMark {
		has, err := cap.GetProc().GetFlag(cap.Permitted, cap.NET_RAW)
		if err != nil {
			return fmt.Errorf("look for %v: %w", cap.NET_RAW, err)
		}
		if has {
			for _, flag := range [...]cap.Flag{cap.Permitted, cap.Effective} {
				if err := set.SetFlag(flag, true, cap.NET_RAW); err != nil {
					return fmt.Errorf("keep %v: %w", cap.NET_RAW, err)
				}
			}
		}
	}
	if err := set.SetProc(); err != nil {
		return fmt.Errorf("drop capabilities to %q: %w", set, err)
	}
	// Otherwise root would get them back with the next program.
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	return nil
}
