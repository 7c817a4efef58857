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
	if errno := getsockopt(fd, unix.SOL_SOCKET, unix.SO_MEMINFO, unsafe.Pointer(&info), unsafe.Sizeof(info)); errno != 0 {
		return QueueState{}, fmt.Errorf("look at the receive queue: %w", errno)
	}
	return QueueState{Size: int(info[unix.SK_MEMINFO_RCVBUF]), Dropped: info[unix.SK_MEMINFO_DROPS]}, nil
}

// getsockopt is getsockopt(2) for a value of a known size. It does not wait, so that the runtime need not know of it: see [Poller.SetLinger].
func getsockopt(fd, level, name int, value unsafe.Pointer, size uintptr) unix.Errno {
	length := uint32(size)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	return errno
}
