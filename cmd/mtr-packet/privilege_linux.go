// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/probe"
)

// markCapability is what setting SO_MARK needs, at the moment when it is set, from Linux 5.17 on.
// Before that it was CAP_NET_ADMIN, which is too much to keep.
const markCapability = cap.NET_RAW

// narrowPrivileges makes the effective user and group the real ones, for an installation that is set-user-ID, and
// drops every capability but markCapability. All sockets are open by then.
func narrowPrivileges() error {
	if rawio.ChangedIDs() {
		// Otherwise the kernel takes all capabilities away with user 0.
		if _, err := cap.Prctlw(unix.PR_SET_KEEPCAPS, 1); err != nil {
			return fmt.Errorf("keep capabilities: %w", err)
		}
		if err := rawio.RestoreIDs(); err != nil {
			return err
		}
		if _, err := cap.Prctlw(unix.PR_SET_KEEPCAPS, 0); err != nil {
			return fmt.Errorf("keep no more capabilities: %w", err)
		}
	}
	return probe.DropPrivileges(true)
}

// settlePrivileges drops markCapability too, unless it is to be kept. It tells whether the process has
// it now.
func settlePrivileges(keepMark bool) (kept bool, err error) {
	if kept, err = hasMarkCapability(); err != nil || keepMark || !kept {
		return kept, err
	}
	return false, probe.DropPrivileges(false)
}

func hasMarkCapability() (bool, error) {
	has, err := cap.GetProc().GetFlag(cap.Permitted, markCapability)
	if err != nil {
		return false, fmt.Errorf("look for %v: %w", markCapability, err)
	}
	return has, nil
}
