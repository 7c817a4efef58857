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

func newDemoCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "See it all at work, in a lab (Linux only)",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("the demo runs in a lab of network namespaces, which %s does not have: %w", runtime.GOOS, errors.ErrUnsupported)
		},
	}
}
