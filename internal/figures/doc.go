// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package figures is the table that a benchmark prints: what was measured, and whether it meets its goal.
package figures
