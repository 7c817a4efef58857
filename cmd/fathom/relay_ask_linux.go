// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/relay"
	"github.com/seed5728abee/fathom/relay/control"
	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// registerControl adds the option that names the relay to ask.
func registerControl(cmd *cobra.Command, name *controlName) {
	cmd.Flags().Var(name, "control", "ask the relay with this `name` (default: the only one that runs here)")
}

func dialRelay(name controlName) (*control.Client, error) {
	c, err := control.Dial(string(name))
	switch {
	case errors.Is(err, control.ErrNoRelay) && name != "":
		err = fmt.Errorf("no relay called %s is running here", name)
		if names, e := control.Running(); e == nil && len(names) > 0 {
			err = withHint(err, "There are: "+strings.Join(names, ", ")+".")
		}
		return nil, err
	case errors.Is(err, control.ErrNoRelay):
		return nil, withHint(err, "A relay is found only from the host, or container, that it runs on.")
	case errors.Is(err, control.ErrSeveral):
		return nil, withHint(err, "Name one with --control.")
	}
	return c, err
}

func newRelayStatusCommand(a *app) *cobra.Command {
	var name controlName
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the relay on this host is doing",
		Long: `Show what the relay on this host is doing: its segments, its peers with the time
that a datagram takes there and back, what it dropped and why, and who
broadcasts most.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialRelay(name)
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(s)
			}
			return a.printRelayStatus(&s)
		},
	}
	registerControl(cmd, &name)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (a *app) printRelayStatus(s *relay.Status) error {
	state := "ready"
	if !s.Ready {
		state = "NOT READY"
	}
	fmt.Fprintf(a.stdout, "relay %s, %s, up since %s\n", s.ID, state, s.Started.Local().Format("2006-01-02 15:04:05"))
	fmt.Fprintf(a.stdout, "ports %s", cmp.Or(s.Ports, "none"))
	if len(s.Groups) > 0 {
		fmt.Fprintf(a.stdout, ", groups %s", strings.Join(s.Groups, ", "))
	}
	if s.Direction != relay.Both.String() {
		fmt.Fprintf(a.stdout, ", %s", s.Direction)
	}
	fmt.Fprintf(a.stdout, "\nmesh %s on %v, %d datagrams received, %d sent", s.Mesh.Mode, s.Mesh.Listen, s.Mesh.Received, s.Mesh.Sent)
	if s.Mesh.SendErrors > 0 {
		fmt.Fprintf(a.stdout, ", %d not sent", s.Mesh.SendErrors)
	}
	if s.Mesh.KernelDropped > 0 {
		fmt.Fprintf(a.stdout, ", %d lost for want of room", s.Mesh.KernelDropped)
	}
	fmt.Fprint(a.stdout, "\n\n")

	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SEGMENT\tSTATE\tADDRESS\tCAPTURED\tRELAYED\tEMITTED\tKERNEL DROPS\tOTHER RELAYS")
	for _, g := range s.Segments {
		state := "serving"
		switch {
		case !g.Up:
			state = "down: " + g.Problem
		case !g.Serving:
			state = "standby"
		}
		address := "-"
		if len(g.Prefixes) > 0 {
			address = g.Prefixes[0].String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", g.Interface, state, address, g.Captured, g.Relayed, g.Emitted, g.KernelDropped,
			cmp.Or(strings.Join(g.Relays, " "), "-"))
	}
	fmt.Fprintln(w)
	if len(s.Peers) == 0 {
		fmt.Fprintln(w, "no peers")
	} else {
		fmt.Fprintln(w, "PEER\tKIND\tSTATE\tRTT\tLAST HEARD\tSENT\tRECEIVED\tVERSION")
	}
	for i := range s.Peers {
		p := &s.Peers[i]
		if p.Origin == "heard" && slices.ContainsFunc(s.Peers, func(o mesh.PeerStatus) bool { return o.Origin != "heard" && o.Address == p.Address }) {
			continue // from before it became a peer
		}
		fmt.Fprintln(w, peerLine(p))
	}
	for _, source := range s.Sources {
		if source.Problem != "" {
			fmt.Fprintf(w, "\n%s: %s (peers known before are kept)\n", source.Name, source.Problem)
		}
	}
	var drops bool
	show := func(where string, counts map[string]uint64) {
		for _, reason := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
			return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
		}) {
			if !drops {
				fmt.Fprintln(w, "\nDROPPED\tCOUNT\tREASON\tMEANING")
				drops = true
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", where, counts[reason], reason, cmp.Or(meaning(reason), "-"))
		}
	}
	for _, g := range s.Segments {
		show("from "+g.Interface, g.Dropped)
		show("to "+g.Interface, g.NotEmitted)
	}
	show("mesh", s.Mesh.Dropped)
	for _, g := range s.Segments {
		if len(g.Talkers) == 0 {
			continue
		}
		fmt.Fprintf(w, "\nTOP TALKERS\t%s\tBROADCASTS/MIN\tBYTES/MIN\tOVER THE LIMIT\n", g.Interface)
		for _, t := range g.Talkers {
			fmt.Fprintf(w, "\t%v\t%d\t%d\t%d\n", t.Source, t.Packets, t.Bytes, t.Dropped)
		}
	}
	return w.Flush()
}

// meaning says what is behind a reason for which something was dropped. Relays of another version may have others.
func meaning(reason string) string {
	r, ok := drop.Find(reason)
	if !ok {
		return ""
	}
	return r.Meaning()
}

func peerLine(p *mesh.PeerStatus) string {
	rtt, heard := "-", "never"
	if p.RTT > 0 {
		rtt = p.RTT.Round(time.Microsecond).String()
	}
	if !p.LastHeard.IsZero() {
		heard = time.Since(p.LastHeard).Round(100*time.Millisecond).String() + " ago"
	}
	who := p.Address.String()
	if p.Name != "" {
		who += " " + p.Name
	}
	state := p.State.String()
	switch {
	case p.Origin == "heard":
		state = "not a peer"
	case p.Kind == mesh.Self, p.Kind == mesh.Original: // these never answer
		state = "-"
	case p.Through.IsValid():
		state = "as " + p.Through.String()
	case p.Sealed:
		state += ", sealed"
	}
	return fmt.Sprintf("%s\t%v\t%s\t%s\t%s\t%d\t%d\t%s", who, p.Kind, state, rtt, heard, p.Sent.Broadcasts, p.Received.Broadcasts, cmp.Or(p.Version, "-"))
}

func newRelayWatchCommand(a *app) *cobra.Command {
	var name controlName
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show broadcasts as the relay handles them",
		Long: `Show each broadcast that the relay on this host relays from a segment or puts on
one, and what it says where the protocol is known: Channel Access, PVAccess,
multicast DNS, SSDP, Wake-on-LAN. With --all also what it drops, and why.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialRelay(name)
			if err != nil {
				return err
			}
			events, err := c.Watch(cmd.Context())
			if err != nil {
				return err
			}
			enc := json.NewEncoder(a.stdout)
			enc.SetEscapeHTML(false)
			for e, err := range events {
				if err != nil {
					return fmt.Errorf("relay %s: %w", c.Name(), err)
				}
				if e.Action == relay.Dropped && !all {
					continue
				}
				if asJSON {
					err = enc.Encode(e)
				} else {
					err = a.printRelayEvent(&e)
				}
				if err != nil {
					return err
				}
			}
			if cmd.Context().Err() == nil {
				return fmt.Errorf("relay %s has ended", c.Name())
			}
			return nil // asked to end
		},
	}
	registerControl(cmd, &name)
	cmd.Flags().BoolVar(&all, "all", false, "also show what is dropped")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func (a *app) printRelayEvent(e *relay.Event) error {
	if e.Missed > 0 {
		fmt.Fprintf(a.stderr, "%s left out: this terminal is too slow\n", count(e.Missed, "broadcast"))
	}
	what := string(e.Action)
	if e.Reason != "" {
		what += " (" + e.Reason + ")"
	}
	who := "-"
	if e.Source.IsValid() {
		who = fmt.Sprintf("%v > %v", e.Source, e.Destination)
	}
	if e.Peer != "" {
		who += " by " + e.Peer
	}
	_, err := fmt.Fprintf(a.stdout, "%s  %-8s %-8s %s  %s\n", e.Time.Local().Format("15:04:05.000000"), cmp.Or(e.Interface, "mesh"), what, who,
		cmp.Or(e.Text, count(e.Length, "byte")))
	return err
}

func newRelaySearchesCommand(a *app) *cobra.Command {
	var name controlName
	var contains string
	var top int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "searches",
		Short: "Show who searches for which process variables, and how often",
		Long: `Show for which process variables (EPICS) the clients on all segments search, who
they are and how often they ask: a name that nobody serves is asked for again
and again. The relay counts with --count-searches.

Answers are unicast, so that a relay does not see who was found.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if top < 0 {
				return usagef("--top %d: want a whole number, 0 or more", top)
			}
			c, err := dialRelay(name)
			if err != nil {
				return err
			}
			report, err := c.Searches(cmd.Context(), top, contains)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(report)
			}
			return a.printSearches(&report)
		},
	}
	registerControl(cmd, &name)
	cmd.Flags().IntVar(&top, "top", 20, "show so many `names`, those most searched for first; 0 for all")
	cmd.Flags().StringVar(&contains, "contains", "", "show names that contain this `text`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (a *app) printSearches(report *relay.SearchReport) error {
	sum := &report.Summary
	fmt.Fprintf(a.stdout, "since %s: %s in %s\n", sum.Since.Local().Format("2006-01-02 15:04:05"), searches(sum.Searches), count(sum.Datagrams, "datagram"))
	if sum.Forgotten > 0 {
		fmt.Fprintf(a.stdout, "%s forgotten for want of room\n", count(sum.Forgotten, "name"))
	}
	if len(report.Names) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nSEARCHES\tPER MINUTE\tLAST\tPROTOCOL\tCLIENTS\tWHO\tNAME")
	for i := range report.Names {
		n := &report.Names[i]
		const shown = 2
		var who []string
		for _, c := range n.Clients[:min(len(n.Clients), shown)] {
			who = append(who, c.Addr.String())
		}
		clients := strconv.Itoa(len(n.Clients))
		if n.MoreClients {
			clients += "+"
		}
		if n.MoreClients || len(n.Clients) > shown {
			who = append(who, "...")
		}
		fmt.Fprintf(w, "%d\t%.1f\t%s ago\t%v\t%s\t%s\t%s\n", n.Count, n.PerMinute, time.Since(n.Last).Round(time.Second), n.Protocol,
			clients, strings.Join(who, " "), n.Name)
	}
	return w.Flush()
}

func searches(n uint64) string {
	if n == 1 {
		return "1 search"
	}
	return fmt.Sprintf("%d searches", n)
}

func newRelayTestCommand(a *app) *cobra.Command {
	var name controlName
	var port uint16
	wait := defaultTestWait
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Prove that a broadcast crosses to each peer",
		Long: `Send a real broadcast on each segment of the relay on this host, and show which
relays put it on their segments. It goes the whole way: through capture, mesh
and emission. SnowSignal's relays carry it, but cannot report.

The exit code is 0 if every peer that is one of ours reports that it emitted, or
that another relay serves its segment.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait <= 0 || wait > control.MaxWait {
				return usagef("--timeout %v: want more than 0 and at most %v", wait, control.MaxWait)
			}
			c, err := dialRelay(name)
			if err != nil {
				return err
			}
			return a.testRelay(cmd.Context(), c, port, wait, asJSON)
		},
	}
	registerControl(cmd, &name)
	cmd.Flags().Uint16Var(&port, "port", 0, "broadcast to this UDP `port`; it must be one that is relayed (default: the relay's first)")
	durationVarP(cmd.Flags(), &wait, "timeout", "w", defaultTestWait, "wait so long for reports")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func (a *app) testRelay(ctx context.Context, c *control.Client, port uint16, wait time.Duration, asJSON bool) error {
	reports, err := c.Test(ctx, port, wait)
	if err != nil {
		return plainly(err)
	}
	const line = "%-7s %-24s %-16s %10s  %s\n"
	if !asJSON {
		fmt.Fprintf(a.stdout, line, "", "RELAY", "SEGMENT", "TOOK", "OUTCOME")
	}
	enc := json.NewEncoder(a.stdout)
	failed, standby := 0, false
	for r, err := range reports {
		if err != nil {
			return fmt.Errorf("relay %s: %w", c.Name(), err)
		}
		verdict := "ok"
		if !r.OK {
			verdict = "FAILED"
			failed++
		}
		standby = standby || r.Outcome == drop.Standby.String() && r.Peer == relay.ThisRelay
		if asJSON {
			err = enc.Encode(r)
		} else {
			took, outcome := "-", r.Outcome
			if r.Took > 0 {
				took = r.Took.Round(time.Microsecond).String()
			}
			if why := meaning(outcome); why != "" {
				outcome += ": " + why
			}
			_, err = fmt.Fprintf(a.stdout, line, verdict, r.Peer, cmp.Or(r.Segment, "-"), took, outcome)
		}
		if err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if standby {
		fmt.Fprintln(a.stderr, "This relay stands by, and peers report to the one that serves the segment: test there, too.")
	}
	if failed > 0 {
		return fmt.Errorf("the broadcast did not cross everywhere: %s failed", count(failed, "check"))
	}
	return nil
}

func newRelayKeygenCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "keygen [FILE]",
		Short: "Make a key for a mesh",
		Long: `Make a key that all relays of a mesh share, and print it, or put it into a new
file that only its owner can read.

To change the key while all relays keep working: add the new one as the last
line of every relay's file and send each relay SIGHUP; then move it to the first
line everywhere, and SIGHUP; then remove the old one, and SIGHUP.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("takes one file: %q", args[1])
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			line, err := mesh.GenerateKey().AppendText(nil)
			if err != nil {
				return err
			}
			text := string(line) + "\n"
			if len(args) == 0 {
				_, err := fmt.Fprint(a.stdout, text)
				return err
			}
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = f.WriteString(text)
			return errors.Join(err, f.Close())
		},
	}
}
