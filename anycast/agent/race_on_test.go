// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build race

package agent

// raceFactor is how much more time and memory things may take under the race detector.
const raceFactor = 10
