// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// relayOption is an option of SnowSignal's, which reads its command line in ways of its own: a long option may be cut
// to any prefix that no other one has, one option takes several values, and one short option has two letters.
type relayOption struct {
	long    string
	several bool // takes all words up to the next option
}

var originRelayOptions = []relayOption{
	{long: "--target-interface"},
	{long: "--broadcast-port"},
	{long: "--mesh-port"},
	{long: "--other-relays", several: true},
	{long: "--log-level"},
}

// relayArgs puts the arguments of `fathom relay` into our words: SnowSignal's options in full and each value with its
// own. What is not SnowSignal's stays as it is, and options of ours by their full name come first.
func relayArgs(cmd *cobra.Command, args []string) []string {
	if len(args) > 0 && slices.ContainsFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Name() == args[0] }) {
		return args
	}
	known := func(option string) bool {
		name := strings.TrimPrefix(option, "--")
		return cmd.Flags().Lookup(name) != nil || cmd.InheritedFlags().Lookup(name) != nil
	}
	var out []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(out, args[i:]...)
		}
		name, value, joined := strings.Cut(arg, "=")
		option, ok := originRelayOption(name, known)
		if !ok {
			out = append(out, arg)
			continue
		}
		if joined {
			out = append(out, option.long+"="+value)
		} else if !option.several {
			out = append(out, option.long)
			if i+1 < len(args) {
				i++
				out = append(out, args[i])
			}
			continue
		} else if i+1 == len(args) || strings.HasPrefix(args[i+1], "-") {
			return append(out, option.long) // which complains; what follows is not its value
		}
		for option.several && !joined && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			i++
			out = append(out, option.long+"="+args[i])
		}
	}
	return out
}

func originRelayOption(name string, known func(string) bool) (relayOption, bool) {
	if name == "-ll" || name == "-l" {
		name = "--log-level"
	}
	if !strings.HasPrefix(name, "--") || len(name) < 3 {
		return relayOption{}, false
	}
	var found []relayOption
	for _, o := range originRelayOptions {
		if o.long == name {
			return o, true
		}
		if strings.HasPrefix(o.long, name) {
			found = append(found, o)
		}
	}
	if len(found) != 1 || known(name) {
		return relayOption{}, false
	}
	return found[0], true
}
