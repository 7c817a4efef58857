// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package probe

// threadsFromProc tells that libcap finds the threads of the process in /proc, since with cgo the runtime does not know them all.
const threadsFromProc = true
