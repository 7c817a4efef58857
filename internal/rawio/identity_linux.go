// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"fmt"
	"os"
	"syscall"
)

// ChangedIDs tells whether the effective user or group is not the real one: the program is set-user-ID or set-group-ID.
func ChangedIDs() bool { return os.Geteuid() != os.Getuid() || os.Getegid() != os.Getgid() }

// RestoreIDs makes the real user and group the effective and saved ones, for every thread and for good.
func RestoreIDs() error {
	uid, gid := os.Getuid(), os.Getgid()
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("become group %d: %w", gid, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	if ChangedIDs() {
		return fmt.Errorf("become user %d and group %d: still %d and %d", uid, gid, os.Geteuid(), os.Getegid())
	}
	return nil
}
