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

func newRelayCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use:   "relay",
		Short: "Carry UDP broadcasts between segments (Linux only)",
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("broadcasts are captured with packet sockets, which %s does not have: %w", runtime.GOOS, errors.ErrUnsupported)
		},
	}
}
