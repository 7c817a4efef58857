// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package probe sends network probes and tells what became of them.
package probe
