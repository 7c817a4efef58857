// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// DropPrivileges takes every capability from the process for good, on all its threads, whether it
// has them as root or from its file, and from the programs that it may start. What user 0 may do as the owner of
// files is left. A prober that is open keeps working, since its sockets are. Only
// a routing mark needs a capability at the moment of sending: keepMark leaves CAP_NET_RAW, which
// suffices from Linux 5.17 on, if the process has it.
//
// In a program built with cgo it is an error, and nothing is dropped, if /proc is not mounted or shows another PID namespace.
func DropPrivileges(keepMark bool) error {
	if threadsFromProc {
		if err := checkProc(); err != nil {
			return fmt.Errorf("find the threads of the process: %w", err)
		}
	}
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

var errForeignProc = errors.New("/proc is not that of this PID namespace, and a program built with cgo finds its threads there: mount it, or build with CGO_ENABLED=0")

// nsPID is the line of /proc/PID/status with the numbers of a process, from that in the namespace of /proc to that in its own.
var nsPID = regexp.MustCompile(`(?m)^NSpid:\t(.+)$`)

// checkProc makes sure that /proc/PID, with the number that the process has for itself, is the process. Where /proc shows another PID
// namespace, as to a process that was started with CLONE_NEWPID and mounted nothing, it is a stranger. libcap (psx.c) would
// wait for the stranger's threads for ever, or leave those of this process what they should lose.
func checkProc() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("%w: %w", errForeignProc, err)
	}
	if m := nsPID.FindSubmatch(status); m != nil && string(m[1]) != strconv.Itoa(os.Getpid()) {
		return errForeignProc
	}
	return nil // a kernel without PID namespaces has no such line
}
