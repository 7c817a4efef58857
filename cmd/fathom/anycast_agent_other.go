// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func newAnycastAgentCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of a site (Linux only)",
		Args:  noArgs,
		RunE:  func(*cobra.Command, []string) error { return errors.New("agents run on Linux only") },
	}
}
