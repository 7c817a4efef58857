// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const envPrefix = "FATHOM_"

// envName gives the environment variable that stands for a long option.
func envName(option string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(option, "-", "_"))
}

// exclusiveGroups is the annotation in which cobra keeps the groups of MarkFlagsMutuallyExclusive.
const exclusiveGroups = "cobra_annotation_mutually_exclusive"

// applyEnv sets the options that the command line left out from the environment. A variable
// gives way not only to its own option but to any that excludes it: -6 wins over FATHOM_IPV4.
// An empty variable counts as unset.
func (a *app) applyEnv(cmd *cobra.Command) error {
	flags := cmd.Flags()
	excluded := make(map[string]bool)
	flags.Visit(func(f *pflag.Flag) {
		for _, group := range f.Annotations[exclusiveGroups] {
			for name := range strings.FieldsSeq(group) {
				excluded[name] = true
			}
		}
	})
	var failed error
	flags.VisitAll(func(f *pflag.Flag) {
		if failed != nil || f.Changed || excluded[f.Name] || f.Name == "help" || f.Name == "version" {
			return
		}
		value, ok := a.lookupEnv(envName(f.Name))
		if !ok || value == "" {
			return
		}
		if err := f.Value.Set(value); err != nil {
			failed = usagef("environment variable %s=%q: %w", envName(f.Name), value, valueError(f, err))
			return
		}
		f.Changed = true
	})
	return failed
}
