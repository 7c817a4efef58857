// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import "os"

func run([]string, func(string) string) int {
	os.Stderr.WriteString("mtr-packet: works on Linux only\n")
	return exitFailed
}
