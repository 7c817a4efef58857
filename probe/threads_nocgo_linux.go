// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package probe

// threadsFromProc tells that libcap asks the runtime for the threads of the process.
const threadsFromProc = false
