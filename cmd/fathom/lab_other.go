// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func newLabCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use:   "lab",
		Short: "Build whole networks on this machine, without root (Linux only)",
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("a lab is made of network namespaces, which %s does not have: %w", runtime.GOOS, errors.ErrUnsupported)
		},
	}
}
