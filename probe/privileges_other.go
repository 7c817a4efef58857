// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package probe

// DropPrivileges does nothing on systems without capabilities.
func DropPrivileges(bool) error { return nil }
