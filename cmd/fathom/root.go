// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The groups that help lists commands under.
const (
	groupMeasure = "Measure"
	groupJoin    = "Join networks"
	groupLab     = "Build networks"
	groupProgram = "The program"
)

// commands is the table of contents: help shows them in this order. A group's commands stand together.
var commands = []struct {
	group string
	new   func(*app) *cobra.Command
}{
	{groupMeasure, newProbeCommand},
	{groupMeasure, newTraceCommand},
	{groupMeasure, newMtrCommand},
	{groupMeasure, newAnycastCommand},
	{groupJoin, newRelayCommand},
	{groupJoin, newNATCommand},
	{groupJoin, newSwarmCommand},
	{groupLab, newLabCommand},
	{groupLab, newDemoCommand},
	{groupProgram, newVersionCommand},
	{groupProgram, newCompletionCommand},
	{groupProgram, newManCommand},
}

// calledAs gives the subcommand for each name of a link to the program that is a command of its own.
var calledAs = map[string]string{"snowsignal": "relay"}

func programName(path string) string { return strings.TrimSuffix(filepath.Base(path), ".exe") }

// commandLine gives the arguments for the root command: argv without the program's name, or with
// the subcommand in place of a name in calledAs, and those of relay in our words.
func commandLine(root *cobra.Command, argv []string) []string {
	if len(argv) == 0 {
		return []string{}
	}
	args := argv[1:]
	if sub, ok := calledAs[programName(argv[0])]; ok {
		args = append([]string{sub}, args...)
	}
	if len(args) > 0 && args[0] == "relay" {
		if cmd, _, err := root.Find(args[:1]); err == nil {
			return append([]string{"relay"}, relayArgs(cmd, args[1:])...)
		}
	}
	return args
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "fathom",
		Short: "Join networks, and measure them to their depth",
		Long: `Fathom joins hosts whose networks keep them apart, and shows every path between
them: probes by the hundred thousand, traces that see load balancers, anycast
measured from its sites, broadcasts carried between segments, and a lab that
builds whole networks on one machine without root.`,
		Version:       buildVersion().Version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetUsageTemplate(usageTemplate)
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.CompletionOptions.DisableDefaultCmd = true // ours documents itself better
	root.SuggestionsMinimumDistance = 2
	root.SetHelpCommandGroupID(groupProgram)
	root.SetFlagErrorFunc(flagError)

	verbose := root.PersistentFlags().Bool("verbose", false, "show diagnostics on standard error")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.applyEnv(cmd); err != nil {
			return err
		}
		if err := checkExclusive(cmd); err != nil {
			return err
		}
		if *verbose {
			a.level.Set(slog.LevelDebug)
		}
		return nil
	}

	cobra.EnableCommandSorting = false // keep the order of the table
	for _, c := range commands {
		if !root.ContainsGroup(c.group) {
			root.AddGroup(&cobra.Group{ID: c.group, Title: c.group + ":"})
		}
		cmd := c.new(a)
		cmd.GroupID = c.group
		root.AddCommand(cmd)
	}
	a.prepare(root)
	prepareHelp(root)
	return root
}

// prepareHelp makes cobra's help command refuse commands that do not exist. What follows a whole command
// may be its arguments, as where a user puts help before what she was about to run.
func prepareHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "help" {
			continue
		}
		cmd.Args = func(_ *cobra.Command, args []string) error {
			found, rest, err := root.Find(args)
			if err == nil && len(rest) > 0 && found.HasSubCommands() {
				err = usagef("unknown command %q%s", rest[0], didYouMean(found.SuggestionsFor(rest[0])))
			}
			return err
		}
	}
}

// prepare finishes a command and all below it: usage errors are told from failures by whether
// the command's own code was reached, and a command that only groups others refuses to do nothing.
func (a *app) prepare(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		a.prepare(sub)
	}
	cmd.Flags().SortFlags = false
	completeValues(cmd)
	cmd.DisableFlagsInUseLine = true // the usage template says it in our words
	cmd.SuggestionsMinimumDistance = 2
	switch run := cmd.RunE; {
	case run != nil:
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return run(cmd, args)
		}
	case cmd.HasSubCommands():
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q%s", args[0], didYouMean(cmd.SuggestionsFor(args[0])))
			}
			cmd.SetOut(a.stderr)
			if err := cmd.Help(); err != nil {
				return err
			}
			return &usageError{errQuiet}
		}
	}
}

// noArgs refuses arguments.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("takes no arguments: %q", args[0])
	}
	return nil
}

func flagError(cmd *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok && e.GetSpecifiedShortnames() == "" {
		// Cobra measures the distance between command names only: lend it the options' names.
		names := &cobra.Command{SuggestionsMinimumDistance: 2}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
			}
		})
		suggestions := names.SuggestionsFor(e.GetSpecifiedName())
		for i, s := range suggestions {
			suggestions[i] = "--" + s
		}
		return usagef("unknown option --%s%s", e.GetSpecifiedName(), didYouMean(suggestions))
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		return usagef("unknown option -%s", e.GetSpecifiedName())
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return usagef("option --%s needs a value", e.GetFlag().Name)
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return usagef("option --%s %q: %w", e.GetFlag().Name, e.GetValue(), valueError(e.GetFlag(), e.Unwrap()))
	}
	return &usageError{err}
}

// valueError says in plain words what an option of a basic type takes. Options with types of their
// own explain themselves.
func valueError(f *pflag.Flag, err error) error {
	switch f.Value.Type() {
	case "bool":
		return errors.New("want true or false")
	case "uint8":
		return fmt.Errorf("want a whole number from 0 to %d", math.MaxUint8)
	case "uint16":
		return fmt.Errorf("want a whole number from 0 to %d", math.MaxUint16)
	case "uint32":
		return fmt.Errorf("want a whole number from 0 to %d", uint32(math.MaxUint32))
	case "uint64":
		return errors.New("want a whole number, 0 or more")
	case "int":
		if errors.Is(err, strconv.ErrRange) {
			return errors.New("number out of range")
		}
		return errors.New("want a whole number")
	case "float64":
		return errors.New("want a number")
	}
	return err
}

// checkExclusive refuses options that exclude each other, in plainer words than cobra's.
func checkExclusive(cmd *cobra.Command) error {
	var failed error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		for _, group := range f.Annotations[exclusiveGroups] {
			var given []string
			for name := range strings.FieldsSeq(group) {
				if cmd.Flags().Changed(name) {
					given = append(given, "--"+name)
				}
			}
			if len(given) > 1 && failed == nil {
				failed = usagef("%s exclude each other", strings.Join(given, " and "))
			}
		}
	})
	return failed
}

func didYouMean(suggestions []string) string {
	if len(suggestions) == 0 {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", strings.Join(suggestions, " or "))
}

// environmentNote ends every help.
const environmentNote = `Each long option --some-name also reads the environment variable FATHOM_SOME_NAME;
the option wins.`

// optionsFirst is the annotation of a command that takes its options before its arguments only, and
// says so in its Use.
const optionsFirst = "optionsFirst"

// runsItself is the annotation of a command that does something itself and has commands below it.
const runsItself = "runsItself"

// usageTemplate is cobra's with our words, wrapped, and a note on the environment.
const usageTemplate = `Usage:{{if and .Runnable (not .HasAvailableSubCommands)}}
  {{.UseLine}}{{if not .Annotations.optionsFirst}} [OPTION...]{{end}}{{end}}{{if .HasAvailableSubCommands}}{{if .Annotations.runsItself}}
  {{.UseLine}} [OPTION...]{{end}}
  {{.CommandPath}} COMMAND [OPTION...]{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{if .Groups}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if and (eq .GroupID $group.ID) (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{else}}

Commands:{{range $cmds}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Options:
{{.LocalFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Options of every command:
{{.InheritedFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

'{{.CommandPath}} COMMAND --help' explains a command.{{end}}{{if .HasAvailableFlags}}

` + environmentNote + `{{end}}
`
