// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Command fathom measures networks and joins them: probes, traces, a live path view and a lab.
//
// This package only parses options and prints; everything it can do is in the packages that it
// imports. One file holds one group of subcommands and registers itself in the table of root.go.
package main
