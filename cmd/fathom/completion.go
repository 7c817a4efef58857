// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newCompletionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print a completion script for a shell",
		Long: `Print a script that lets a shell complete fathom's commands and options.

    bash        fathom completion bash > /etc/bash_completion.d/fathom
    zsh         fathom completion zsh > "${fpath[1]}/_fathom"
    fish        fathom completion fish > ~/.config/fish/completions/fathom.fish
    powershell  fathom completion powershell | Out-String | Invoke-Expression`,
		Example: `  source <(fathom completion bash)`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one shell: bash, zsh, fish or powershell")
			}
			return nil
		},
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.stdout)
			}
			return usagef("no completion for shell %q: want bash, zsh, fish or powershell", args[0])
		},
	}
}

// valueCompletions completes the values of options, which mean the same in every command that has them.
var valueCompletions = map[string]cobra.CompletionFunc{
	"protocol":  cobra.FixedCompletions([]cobra.Completion{"icmp", "udp", "tcp", "sctp"}, cobra.ShellCompDirectiveNoFileComp),
	"format":    cobra.FixedCompletions([]cobra.Completion{"mermaid", "svg"}, cobra.ShellCompDirectiveNoFileComp),
	"interface": completeInterfaces,

	"target-interface": completeInterfaces,
	"log-level":        cobra.FixedCompletions([]cobra.Completion{"debug", "info", "warning", "error", "critical"}, cobra.ShellCompDirectiveNoFileComp),
	"port-mapping":     cobra.FixedCompletions([]cobra.Completion{"off", "auto", "upnp", "natpmp", "pcp"}, cobra.ShellCompDirectiveNoFileComp),
	"preset":           cobra.FixedCompletions([]cobra.Completion{"epics-ca", "epics-pva", "mdns", "ssdp", "wol"}, cobra.ShellCompDirectiveNoFileComp),
}

func completeInterfaces(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []cobra.Completion
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeValues lets a command's options complete their values.
func completeValues(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if complete, ok := valueCompletions[f.Name]; ok {
			// It fails only for an option that does not exist, or has a completion of its own.
			_ = cmd.RegisterFlagCompletionFunc(f.Name, complete)
		}
	})
}
