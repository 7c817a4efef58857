// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/lab"
)

func newLabCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Build whole networks on this machine, without root",
		Long: `Build a network of hosts, routers, bridges and NATs from a topology file, and
run commands on its hosts. The network of this machine is not touched, root is
not needed, and nothing is left behind when a lab ends, however it ends.`,
		Example: `  fathom lab up diamond.toml
  fathom lab exec a ping b
  fathom lab down`,
	}
	cmd.AddCommand(newLabUpCommand(a), newLabExecCommand(a), newLabListCommand(a),
		newLabGraphCommand(a), newLabSetCommand(a), newLabAnnounceCommand(), newLabWithdrawCommand(), newLabDownCommand(a))
	return cmd
}

// labError adds what to do about the errors of the lab.
func labError(err error) error {
	switch {
	case errors.Is(err, lab.ErrLabExists):
		return withHint(err, "Take it down with 'fathom lab down', or give this one another --name.")
	case errors.Is(err, lab.ErrNoLab):
		return withHint(err, "'fathom lab list' shows what runs: name the lab that is meant, or start one with 'fathom lab up FILE'.")
	}
	return err
}

func labNameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVarP(name, "name", "n", "", "the lab's `name`; not needed if one runs alone")
	_ = cmd.RegisterFlagCompletionFunc("name", completeLabs) // fails only without the flag
}

func completeLabs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	running, err := lab.Running(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, st := range running {
		names = append(names, st.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeNodes completes up to n arguments that are nodes of a running lab, and leaves the rest to the shell.
func completeNodes(name *string, n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		c, err := lab.Dial(*name)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		st, err := c.Status(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, node := range st.Nodes {
			names = append(names, node.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func newLabUpCommand(a *app) *cobra.Command {
	var (
		name             string
		foreground, json bool
	)
	cmd := &cobra.Command{
		Use:   "up FILE",
		Short: "Start a lab from a topology file",
		Long: `Start a lab from a topology file (- is standard input), wait until it is ready
and print its nodes; an asterisk marks those that this program plays rather
than the kernel. It runs in the background until 'fathom lab down', or with
--foreground until interrupted.`,
		Args: exactArgs(1, "name one topology file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if foreground {
				// Nothing may be read before: the program starts again inside.
				if err := lab.EnterToServe(); err != nil {
					return err
				}
			}
			t, text, err := a.readTopology(args[0], name)
			if err != nil {
				return err
			}
			show := func(st lab.Status) error {
				if json {
					return a.printJSON(st)
				}
				return a.printLab(st)
			}
			if foreground {
				var shown error
				err := lab.Serve(cmd.Context(), t, func(st lab.Status) { shown = show(st) })
				return labError(errors.Join(shown, err))
			}
			holder := []string{"lab", "up", "--foreground", "--name", t.Name, "-"}
			c, err := lab.Launch(cmd.Context(), t.Name, holder, text)
			if err != nil {
				// The holder is this same command and begins its words as we do.
				if said, ok := strings.CutPrefix(err.Error(), cmd.CommandPath()+": "); ok {
					return errors.New(said)
				}
				return labError(err)
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return labError(err)
			}
			return show(st)
		},
	}
	cmd.Flags().StringVarP(&name, "name", "n", "", "`name` of the lab (default: the topology's own, or the file's)")
	cmd.Flags().BoolVar(&foreground, "foreground", false, "hold the lab in this process until it is interrupted")
	cmd.Flags().BoolVar(&json, "json", false, "print the lab as JSON")
	return cmd
}

// readTopology reads a topology file, or standard input for -, and names it.
func (a *app) readTopology(path, name string) (*lab.Topology, []byte, error) {
	r, source := a.stdin, "standard input"
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, nil, err
		}
		defer f.Close()
		r, source = f, path
	}
	text, err := io.ReadAll(io.LimitReader(r, lab.MaxFileSize+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read topology: %w", err)
	}
	t, err := lab.ParseNamed(source, text)
	if err != nil {
		return nil, nil, err
	}
	t.Name = cmp.Or(name, t.Name, "lab")
	return t, text, t.Validate() // the name is new
}

// printLab prints a table of nodes.
func (a *app) printLab(st lab.Status) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "lab %s (process %d)\n", st.Name, st.PID)
	for _, n := range st.Nodes {
		var addrs []string
		for _, addr := range n.Addresses {
			addrs = append(addrs, addr.String())
		}
		kind := n.Kind
		if n.UserSpace {
			kind += "*"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", n.Name, kind, strings.Join(addrs, " "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range st.Nodes {
		for _, c := range n.Announce {
			what := "withdrawn"
			if !c.Withdrawn {
				what = fmt.Sprintf("announced at cost %d", c.Cost)
			}
			fmt.Fprintf(a.stdout, "  %s: %s %s\n", n.Name, prefixText(c.Prefix), what)
		}
	}
	return nil
}

// prefixText is a prefix as people write it: an address if it is a single one.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func newLabExecCommand(a *app) *cobra.Command {
	var (
		name         string
		unprivileged bool
	)
	cmd := &cobra.Command{
		Use:         "exec [OPTION...] HOST COMMAND [ARGUMENT...]",
		Annotations: map[string]string{optionsFirst: "yes"},
		Short:       "Run a command on a host of a lab",
		Long: `Run a command on a host of a lab, with this terminal, directory and
environment. Names of nodes resolve. Options go before HOST. The exit code is the command's.`,
		Example: `  fathom lab exec a ping -c 3 b
  fathom lab exec --name home laptop bash`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("name a host and a command")
			}
			return nil
		},
		ValidArgsFunction: completeNodes(&name, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := lab.Dial(name)
			if err != nil {
				return labError(err)
			}
			path, err := exec.LookPath(args[1])
			if err != nil && !errors.Is(err, exec.ErrDot) {
				return err
			}
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			// The command gets the signals itself; it is for it to end.
			code, err := c.Exec(context.WithoutCancel(cmd.Context()), lab.ExecRequest{
				Host: args[0], Path: path, Args: args[1:], Env: os.Environ(), Dir: dir, Unprivileged: unprivileged,
				Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
			})
			if err != nil {
				return labError(err)
			}
			if code != exitDone {
				return &exitError{code}
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	labNameFlag(cmd, &name)
	cmd.Flags().BoolVar(&unprivileged, "unprivileged", false, "run the command without capabilities, as an ordinary user would")
	return cmd
}

func newLabListCommand(a *app) *cobra.Command {
	var json bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the running labs with their nodes and wires",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			running, err := lab.Running(cmd.Context())
			if err != nil {
				return err
			}
			if json {
				if running == nil {
					running = []lab.Status{}
				}
				return a.printJSON(running)
			}
			for _, st := range running {
				if err := a.printLab(st); err != nil {
					return err
				}
				for _, w := range st.Wires {
					if w.Plain {
						continue
					}
					fmt.Fprintf(a.stdout, "  %s -> %s: %s\n", w.Ends[0], w.Ends[1], cmp.Or(w.Forward, "perfect"))
					fmt.Fprintf(a.stdout, "  %s -> %s: %s\n", w.Ends[1], w.Ends[0], cmp.Or(w.Backward, "perfect"))
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&json, "json", false, "print the labs as JSON")
	return cmd
}

func newLabGraphCommand(a *app) *cobra.Command {
	var name, format, output string
	cmd := &cobra.Command{
		Use:   "graph [FILE]",
		Short: "Draw a topology file or a running lab",
		Long: `Draw a topology file, or a running lab as it is now, as an SVG picture or as a
flowchart in the language of Mermaid.`,
		Example: `  fathom lab graph diamond.toml --output diamond.svg
  fathom lab graph --name diamond`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return usagef("name one topology file, or none to draw a running lab")
			case len(args) == 1 && name != "":
				return usagef("draw either a file or the running lab %s", name)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if format == "" {
				format = "mermaid"
				if strings.HasSuffix(output, ".svg") {
					format = "svg"
				}
			}
			if format != "svg" && format != "mermaid" {
				return usagef("--format %q: want mermaid or svg", format)
			}
			var text string
			if len(args) == 1 {
				t, _, err := a.readTopology(args[0], "")
				if err != nil {
					return err
				}
				if text, err = t.Graph(format); err != nil {
					return err
				}
			} else {
				c, err := lab.Dial(name)
				if err != nil {
					return labError(err)
				}
				if text, err = c.Graph(cmd.Context(), format); err != nil {
					return labError(err)
				}
			}
			if output == "" {
				_, err := io.WriteString(a.stdout, text)
				return err
			}
			return os.WriteFile(output, []byte(text), 0o644)
		},
	}
	labNameFlag(cmd, &name)
	cmd.Flags().StringVar(&format, "format", "", "`language`: mermaid or svg (default: svg if --output ends so, else mermaid)")
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to this `file`")
	return cmd
}

func newLabSetCommand(a *app) *cobra.Command {
	var (
		name   string
		oneWay bool
	)
	cmd := &cobra.Command{
		Use:   "set NODE NODE",
		Short: "Change what a wire does, while the lab runs",
		Long: `Change the impairments of the wire between two nodes: in both directions, or
only from the first to the second. What is not named stays. The wire must have an impairment
or "adjustable = true" in the topology.`,
		Example: `  fathom lab set a r1 --delay 20ms --loss 0.1
  fathom lab set r1 a --one-way --rate 10Mbit`,
		Args:              exactArgs(2, "name the two nodes that the wire joins"),
		ValidArgsFunction: completeNodes(&name, 2),
	}
	labNameFlag(cmd, &name)
	f := cmd.Flags()
	f.BoolVar(&oneWay, "one-way", false, "only from the first node to the second")
	for _, o := range []struct{ key, usage string }{
		{"delay", "one-way `time`, such as 20ms"},
		{"jitter", "standard deviation of the delay, a `time`"},
		{"loss", "`probability` that a frame vanishes, 0 to 1"},
		{"duplicate", "`probability` that a frame arrives twice"},
		{"reorder", "`probability` that a frame overtakes others"},
		{"corrupt", "`probability` that a bit of a frame flips"},
		{"rate", "`speed`, such as 10Mbit; 0 for no limit"},
	} {
		f.String(o.key, "", o.usage)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		fields := map[string]string{}
		for _, key := range lab.ImpairmentKeys {
			flag := f.Lookup(key)
			if flag == nil || !flag.Changed {
				continue
			}
			if err := checkImpairment(key, flag.Value.String()); err != nil {
				return usagef("--%s %q: %w", key, flag.Value, err)
			}
			fields[key] = flag.Value.String()
		}
		if len(fields) == 0 {
			return usagef("say what to change: --delay, --loss, ...")
		}
		c, err := lab.Dial(name)
		if err != nil {
			return labError(err)
		}
		return labError(c.Set(cmd.Context(), args[0], args[1], oneWay, fields))
	}
	return cmd
}

// checkImpairment refuses a value that no wire can have.
func checkImpairment(key, value string) error {
	err := lab.SetImpairment(new(lab.Impairment), key, value)
	switch key {
	case "delay", "jitter":
		if err != nil {
			return errors.New("want a time with its unit, such as 20ms")
		}
	case "rate":
		if err != nil {
			return errors.New("want a number with bit, kbit, Mbit or Gbit, such as 10Mbit, or 0")
		}
	default:
		if p, err := strconv.ParseFloat(value, 64); err != nil || !(p >= 0 && p <= 1) { // also refuses NaN
			return errors.New("want a probability, 0 to 1")
		}
	}
	return err
}

func newLabAnnounceCommand() *cobra.Command {
	var (
		cost    int
		options lab.AnnounceOptions
	)
	cmd := newAnnouncementCommand(&options, (*lab.Client).Announce)
	cmd.Use = "announce HOST [PREFIX...]"
	cmd.Short = "Let a host announce its addresses again, or at another cost"
	cmd.Long = `Let a host announce addresses or prefixes of its own that were withdrawn, so that packets
from all over the lab reach it again where it is the nearest that holds them. With
--cost it claims to be further away than it is. Without PREFIX it announces all that it holds.`
	cmd.Example = `  fathom lab announce ams 192.0.2.1
  fathom lab announce ams --cost 3`
	cmd.Flags().IntVar(&cost, "cost", 0, "`number` added to the cost of every path to the host (default: as it is)")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("cost") {
			if cost < 0 || cost > lab.MaxCost {
				return usagef("--cost %d: want 0 to %d", cost, lab.MaxCost)
			}
			options.Cost = &cost
		}
		return nil
	}
	return cmd
}

func newLabWithdrawCommand() *cobra.Command {
	var options lab.AnnounceOptions
	cmd := newAnnouncementCommand(&options, (*lab.Client).Withdraw)
	cmd.Use = "withdraw HOST [PREFIX...]"
	cmd.Short = "Let a host withdraw its addresses"
	cmd.Long = `Let a host withdraw addresses or prefixes of its own: packets go to the nearest of the
other hosts that hold them, or nowhere. The host keeps the addresses, and what runs
there notices nothing. Without PREFIX it withdraws all that it holds. 'fathom lab announce' undoes it.`
	cmd.Example = `  fathom lab withdraw ams 192.0.2.1
  fathom lab withdraw ams --stagger 200ms`
	return cmd
}

// newAnnouncementCommand is what announce and withdraw have in common.
func newAnnouncementCommand(options *lab.AnnounceOptions, do func(*lab.Client, context.Context, string, lab.AnnounceOptions) error) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name a host, and what it announces unless that is all")
			}
			for _, arg := range args[1:] {
				p, err := parsePrefix(arg)
				if err != nil {
					return usagef("%q is no address or prefix; want one like 192.0.2.1 or 192.0.2.0/24", arg)
				}
				options.Prefixes = append(options.Prefixes, p)
			}
			return nil
		},
		ValidArgsFunction: completeNodes(&name, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if options.Stagger < 0 || options.Stagger > lab.MaxDelay {
				return usagef("--stagger %s: want 0 to %s", options.Stagger, lab.MaxDelay)
			}
			c, err := lab.Dial(name)
			if err != nil {
				return labError(err)
			}
			return labError(do(c, cmd.Context(), args[0], *options))
		},
	}
	labNameFlag(cmd, &name)
	cmd.Flags().DurationVar(&options.Stagger, "stagger", 0, "`time` for the news to travel one hop, such as 200ms (default: everywhere at once)")
	return cmd
}

// parsePrefix reads a prefix, or a bare address: all its bits.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func newLabDownCommand(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down [NAME]",
		Short: "Take a lab down",
		Long:  `Take a lab down and kill what runs in it. The name is not needed if one lab runs alone.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || all && len(args) > 0 {
				return usagef("name one lab, or none, or --all")
			}
			return nil
		},
		ValidArgsFunction: completeLabs,
		RunE: func(cmd *cobra.Command, args []string) error {
			names := append(args, "")[:1]
			if all {
				running, err := lab.Running(cmd.Context())
				if err != nil {
					return err
				}
				names = nil
				for _, st := range running {
					names = append(names, st.Name)
				}
			}
			for _, name := range names {
				c, err := lab.Dial(name)
				if err != nil {
					return labError(err)
				}
				if err := c.Down(cmd.Context()); err != nil {
					return fmt.Errorf("take down lab %s: %w", c.Name(), err)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "take down every lab of this user")
	return cmd
}

// exactArgs wants n arguments, and says so in words.
func exactArgs(n int, want string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("%s", want)
		}
		return nil
	}
}
