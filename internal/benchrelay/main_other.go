// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "benchrelay: the lab needs Linux")
	os.Exit(1)
}
