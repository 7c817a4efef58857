// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package figures is what benchmarks share: the table that they print, of what was measured and whether it meets its
// goal, the sections that they run, and the program that they measure.
package figures
