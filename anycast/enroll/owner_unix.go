// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package enroll

import (
	"io/fs"
	"syscall"
)

func owner(info fs.FileInfo) (uid, gid int, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}
