// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Queue implements [Conn], by what the kernel keeps for ss(8).
func (c *socket) Queue() (QueueState, error) { return socketQueue(c.fd) }

func socketQueue(fd int) (QueueState, error) {
	var info [unix.SK_MEMINFO_DROPS + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return QueueState{}, fmt.Errorf("look at the receive queue: %w", errno)
	}
	return QueueState{Size: int(info[unix.SK_MEMINFO_RCVBUF]), Dropped: info[unix.SK_MEMINFO_DROPS]}, nil
}
