// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package trace_test

// raceFactor is how much longer things may take under the race detector.
const raceFactor = 1
