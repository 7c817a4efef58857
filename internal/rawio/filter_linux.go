// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// AttachFilter makes the kernel show the socket fd only the packets that prog
// accepts; it replaces the filter that was there, without a gap. Packets that
// are queued already stay: attach before binding, or attach [FilterNone], drain
// the socket and attach the filter.
func AttachFilter(fd int, prog []bpf.RawInstruction) error {
	if len(prog) == 0 || len(prog) > unix.BPF_MAXINSNS {
		return fmt.Errorf("attach filter: program of %d instructions, want 1 to %d", len(prog), unix.BPF_MAXINSNS)
	}
	// bpf.RawInstruction has the layout of struct sock_filter.
	fprog := unix.SockFprog{
		Len:    uint16(len(prog)),
		Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(prog))),
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

// DetachFilter removes the filter of the socket fd. To remove none is no error.
func DetachFilter(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach filter: %w", err)
	}
	return nil
}
