// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"
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
