// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/view"
)

type swarmViewOptions struct {
	swarmOptions
	local       int
	svg         string
	once, watch bool
	interval    time.Duration
	timeout     time.Duration
}

// maxLocalMembers is how many members a view runs at most.
const maxLocalMembers = 200

func newSwarmViewCommand(a *app) *cobra.Command {
	var o swarmViewOptions
	cmd := &cobra.Command{
		Use:   "view",
		Short: "Watch a ring live in the terminal, or draw it",
		Long: `Watch the ring of a swarm: who is in it, who is next to whom, who knows whom. The
members may run anywhere: each is asked for its neighbours, again and again. With
--local members run here, to play with: they can be made to join, look up,
broadcast and leave, and what they send is seen on its way.

In the terminal, arrows or the mouse select a member; press h for the keys.`,
		Example: `  fathom swarm view --join 192.0.2.1:49610
  fathom swarm view --local 10
  fathom swarm view --join 192.0.2.1:49610 --svg ring.svg --watch`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runSwarmView(cmd, &o) },
	}
	f := cmd.Flags()
	f.Var(&o.join, "join", "a member of the swarm to look at; several are tried in turn")
	f.IntVar(&o.local, "local", 0, "run so many `members` here; with --join they join that swarm, otherwise each begins alone")
	f.StringVar(&o.svg, "svg", "", "draw the ring into this `file`, - for standard output, and end")
	f.BoolVar(&o.watch, "watch", false, "with --svg: draw it again and again, until told to end")
	f.BoolVar(&o.once, "once", false, "print the picture as text, and end")
	cmd.MarkFlagsMutuallyExclusive("once", "svg")
	durationVarP(f, &o.interval, "interval", "i", time.Second, "`time` between looks around the ring")
	durationVarP(f, &o.timeout, "timeout", "w", swarmTimeout, "longest `time` for joining, and for one look around the ring")
	o.mapping = swarmMapping(nat.Off)
	o.registerTrust(f)
	return cmd
}

func (a *app) runSwarmView(cmd *cobra.Command, o *swarmViewOptions) error {
	switch {
	case len(o.join) == 0 && o.local == 0:
		return usagef("give a member to --join, or --local members to run")
	case o.local < 0 || o.local > maxLocalMembers:
		return usagef("--local %d: want 0 to %d", o.local, maxLocalMembers)
	case o.watch && (o.svg == "" || o.svg == "-"):
		return usagef("--watch is for --svg with a file")
	case o.interval < 50*time.Millisecond:
		return usagef("--interval %v: want 50 ms or more", o.interval)
	case o.timeout <= 0:
		return usagef("--timeout 0s: want more than 0")
	case o.svg == "" && !o.once && (!a.stdinTerminal || !a.stdoutTerminal):
		return usagef("watching needs a terminal: use --once or --svg")
	}
	ctx := cmd.Context()
	options, err := o.finish(ctx, cmd, a.log)
	if err != nil {
		return err
	}
	s := newSwarmScene(options, o.join, o.timeout)
	defer s.close()
	if err := s.begin(ctx, o.local); err != nil {
		return err
	}
	switch {
	case o.once:
		return a.printRingPicture(ctx, s)
	case o.svg != "":
		return a.drawRing(ctx, s, o)
	}
	return a.watchRing(ctx, s, o)
}

// printRingPicture prints the ring as text, in colour on a terminal.
func (a *app) printRingPicture(ctx context.Context, s *swarmScene) error {
	r, err := s.look(ctx)
	if err != nil {
		return err
	}
	width, height := 100, 36
	if f, ok := checkedFile(a.stdout); ok && a.stdoutTerminal {
		if w, h, err := term.GetSize(f.Fd()); err == nil && w > 0 && h > 4 {
			width, height = w, h-2
		}
	}
	picture := r.Draw(width, height)
	text := picture.String()
	if a.stdoutTerminal {
		text = picture.ANSI() + "\n"
	}
	_, err = io.WriteString(a.stdout, text)
	return err
}

// checkedFile gives the file behind a stream, if there is one.
func checkedFile(w io.Writer) (*os.File, bool) {
	if c, ok := w.(*checkedWriter); ok {
		w = c.Writer
	}
	f, ok := w.(*os.File)
	return f, ok
}

// drawRing writes the picture as SVG, once or again and again.
func (a *app) drawRing(ctx context.Context, s *swarmScene, o *swarmViewOptions) error {
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for {
		r, err := s.look(ctx)
		switch {
		case ctx.Err() != nil && o.watch:
			return nil
		case err != nil && !o.watch:
			return err
		case err != nil:
			a.log.Warn("look around the ring", "error", err)
		case o.svg == "-":
			return r.SVG(a.stdout)
		default:
			if err := replaceFile(o.svg, r.SVG); err != nil {
				return err
			}
		}
		if !o.watch {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// replaceFile writes a file anew. Who reads it meanwhile sees the old one or the new one, whole.
func replaceFile(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// watchRing shows the ring until the user leaves it.
func (a *app) watchRing(ctx context.Context, s *swarmScene, o *swarmViewOptions) error {
	screen := a.stdout
	if w, ok := screen.(*checkedWriter); ok {
		screen = w.Writer // bubbletea asks whether it is a terminal
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newRingModel(ctx, s, o.interval)
	program := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(a.stdin), tea.WithOutput(screen), tea.WithoutSignalHandler())
	if _, err := program.Run(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// memberNote tells about a member in a line.
func memberNote(m swarm.Member, links int) string {
	kind := "a member"
	switch {
	case m.Original:
		kind = "one of Cicada's peers"
	case m.Leaf:
		kind = "a leaf"
	}
	note := fmt.Sprintf("%s, at %s", kind, m.ID.Short())
	if links >= 0 {
		note += ", " + count(links, "peer")
	}
	return note
}

// viewMember gives a member as pictures have it.
func viewMember(m swarm.Member) view.Member {
	return view.Member{ID: m.ID, Label: memberName(m), Original: m.Original}
}

func memberIDs(lists ...[]swarm.Member) []swarm.Hash {
	var ids []swarm.Hash
	for _, list := range lists {
		for _, m := range list {
			ids = append(ids, m.ID)
		}
	}
	return ids
}
