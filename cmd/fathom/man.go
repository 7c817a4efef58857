// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// newManCommand makes the command that builds the manual: one page for each command. Packagers
// set SOURCE_DATE_EPOCH to get the same bytes every time.
func newManCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages into a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			completeManual(root)
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "Fathom", Manual: "Fathom"}, args[0])
		},
	}
}

// completeManual writes what the help says by its template into the texts that the manual is made of.
func completeManual(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		completeManual(sub)
	}
	if cmd.Annotations[optionsFirst] == "" {
		cmd.Use += " [OPTION...]"
	}
	if cmd.Long == "" {
		cmd.Long = cmd.Short + "."
	}
	cmd.Long += "\n\n" + environmentNote
	cmd.LocalFlags().VisitAll(completeOption)
}

// completeOption writes an option as the help does: "--count=probes", and its default, if it has one, in words.
// The manual's generator knows only the default, and shows that of an option without one as 0.
func completeOption(f *pflag.Flag) {
	if f.Value.Type() == "bool" {
		return
	}
	name, _ := pflag.UnquoteUsage(f)
	if f.DefValue != "" && f.DefValue != "0" && f.DefValue != "0s" {
		f.Usage += " (default " + f.DefValue + ")"
	}
	f.DefValue, f.Value = name, unquotedValue{f.Value}
}

// unquotedValue keeps the generator from quoting the name of a value that is a string.
type unquotedValue struct{ pflag.Value }

func (unquotedValue) Type() string { return "value" }
