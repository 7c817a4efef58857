// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/member"
)

// swarmAsk is what the commands have in common that join a swarm for one question: as a leaf, which takes no place on the ring
// and disturbs nobody.
type swarmAsk struct {
	swarmOptions
	timeout time.Duration
	json    bool
}

func (s *swarmAsk) register(f *pflag.FlagSet) {
	f.Var(&s.join, "join", "a member of the swarm; several are tried in turn (default the one on this host, 127.0.0.1:49610)")
	durationVarP(f, &s.timeout, "timeout", "w", swarmTimeout, "longest `time` for all of it")
	s.mapping = swarmMapping(nat.Off) // nobody has to reach a leaf
	s.registerTrust(f)
	f.BoolVar(&s.json, "json", false, "print JSON")
}

// ask joins the swarm, lets do have the peer, and leaves.
func (a *app) ask(cmd *cobra.Command, s *swarmAsk, do func(ctx context.Context, p *swarm.Peer) error) error {
	if s.timeout <= 0 {
		return usagef("--timeout 0s: want more than 0")
	}
	options, err := s.finish(cmd.Context(), cmd, a.log)
	if err != nil {
		return err
	}
	options.Unreachable = true
	ctx, cancel := context.WithTimeout(cmd.Context(), s.timeout)
	defer cancel()
	peer, err := bindSwarmPeer(ctx, options, ":0")
	if err != nil {
		return err
	}
	defer peer.Close()
	if err := peer.Connect(ctx, s.entries()...); err != nil {
		return err
	}
	if err := do(ctx, peer); err != nil {
		return err
	}
	return peer.Close()
}

// entries gives the members to join through.
func (s *swarmAsk) entries() []string {
	if len(s.join) == 0 {
		return []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(swarm.DefaultPort))}
	}
	return s.join
}

func newSwarmLookupCommand(a *app) *cobra.Command {
	var s swarmAsk
	var disjoint int
	cmd := &cobra.Command{
		Use:   "lookup KEY",
		Short: "Find the member that owns a key",
		Long: `Find the member that owns a key: the first one at or after the key's place on the
ring. The place of a text is its hash; 64 hexadecimal digits are a place themselves,
such as the ID of a member.

The path is that of the question, from the first member asked to the one that
knew.`,
		Example: `  fathom swarm lookup --join 192.0.2.1:49610 "some key"`,
		Args:    oneArg("give one key"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if disjoint < 0 || disjoint > 16 {
				return usagef("--disjoint %d: want 0 to 16", disjoint)
			}
			key := swarmKey(args[0])
			return a.ask(cmd, &s, func(ctx context.Context, p *swarm.Peer) error {
				r, err := p.Lookup(ctx, key, swarm.LookupOptions{Disjoint: disjoint})
				if err != nil {
					return err
				}
				path := resolvePath(ctx, p, r)
				if s.json {
					return a.printJSON(newLookupDocument(key, r, path))
				}
				return printLookup(a.stdout, key, r, path)
			})
		},
	}
	s.register(cmd.Flags())
	cmd.Flags().IntVar(&disjoint, "disjoint", 0, "ask by so many `ways` that have no member in common, and believe what is proved: for swarms with members that lie")
	return cmd
}

// oneArg refuses all but one argument.
func oneArg(want string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef("%s", want)
		}
		return nil
	}
}

// swarmKey gives the place of what a user types.
func swarmKey(s string) swarm.Hash {
	if len(s) == 2*len(swarm.Hash{}) {
		if id, err := member.ParseID(s); err == nil {
			return id
		}
	}
	return swarm.HashOf(s)
}

// resolvePath finds the addresses of the members on a lookup's way, as far as they are still there.
func resolvePath(ctx context.Context, p swarmPeer, r swarm.Result) []swarm.Member {
	path := make([]swarm.Member, len(r.Path))
	for i, id := range r.Path {
		path[i].ID = id
		if found, err := p.Lookup(ctx, id, swarm.LookupOptions{}); err == nil && found.Owner.ID == id {
			path[i] = found.Owner
		}
	}
	return path
}

type lookupDocument struct {
	Key     swarm.Hash    `json:"key"`
	Owner   swarmMember   `json:"owner"`
	Leaf    *swarmMember  `json:"leaf,omitempty"`
	Hops    int           `json:"hops"`
	Path    []swarmMember `json:"path"`
	Seconds float64       `json:"seconds"`
}

func newLookupDocument(key swarm.Hash, r swarm.Result, path []swarm.Member) lookupDocument {
	d := lookupDocument{Key: key, Owner: swarmMemberOf(r.Owner), Hops: r.Hops, Path: []swarmMember{}, Seconds: r.Took.Seconds()}
	if r.Leaf != nil {
		leaf := swarmMemberOf(*r.Leaf)
		d.Leaf = &leaf
	}
	for _, m := range path {
		d.Path = append(d.Path, swarmMemberOf(m))
	}
	return d
}

func printLookup(out io.Writer, key swarm.Hash, r swarm.Result, path []swarm.Member) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "key\t\t%s\n", key)
	fmt.Fprintf(w, "owner\t%s\t%s\n", memberAddress(r.Owner), r.Owner.ID)
	if r.Leaf != nil {
		fmt.Fprintf(w, "leaf\t%s\t%s\n", memberAddress(*r.Leaf), r.Leaf.ID)
	}
	for i, m := range path {
		fmt.Fprintf(w, "hop %d\t%s\t%s\n", i+1, memberAddress(m), m.ID)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%s in %v\n", count(r.Hops, "hop"), r.Took.Round(time.Microsecond))
	return err
}

func newSwarmSendCommand(a *app) *cobra.Command {
	var s swarmAsk
	var duplicates int
	cmd := &cobra.Command{
		Use:   "send TARGET [DATA...]",
		Short: "Send a message to a member",
		Long: `Send a message to one member, and wait until it has it. TARGET is its ID, its
address as host:port, or the name that it has published. Without DATA the message
is read from standard input.`,
		Example: `  fathom swarm send --join 192.0.2.1:49610 203.0.113.9:49610 hello
  fathom swarm send alice < letter.txt`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("give a member: its ID, host:port, or name")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := swarm.ParseTarget(args[0])
			if err != nil {
				return usagef("%w", err)
			}
			if duplicates < 0 || duplicates > swarmMaxDuplicates {
				return usagef("--duplicates %d: want 0 to %d", duplicates, swarmMaxDuplicates)
			}
			return a.askToSend(cmd, &s, args[1:], func(ctx context.Context, p *swarm.Peer, data []byte) error {
				if duplicates > 0 {
					return p.SendDisjoint(ctx, to, data, duplicates)
				}
				return p.Send(ctx, to, data)
			})
		},
	}
	s.register(cmd.Flags())
	cmd.Flags().IntVar(&duplicates, "duplicates", 0, "send by so many more `ways` that have no member in common")
	return cmd
}

func newSwarmBroadcastCommand(a *app) *cobra.Command {
	var s swarmAsk
	cmd := &cobra.Command{
		Use:   "broadcast [DATA...]",
		Short: "Send a message to all members",
		Long: `Send a message to all members of a swarm. Without DATA it is read from standard
input.`,
		Example: `  fathom swarm broadcast --join 192.0.2.1:49610 hello everybody`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.askToSend(cmd, &s, args, func(ctx context.Context, p *swarm.Peer, data []byte) error { return p.Broadcast(ctx, data) })
		},
	}
	s.register(cmd.Flags())
	return cmd
}

// askToSend sends what the arguments say, or standard input.
func (a *app) askToSend(cmd *cobra.Command, s *swarmAsk, words []string, send func(context.Context, *swarm.Peer, []byte) error) error {
	data := []byte(strings.Join(words, " "))
	if len(words) == 0 {
		var err error
		if data, err = io.ReadAll(io.LimitReader(a.stdin, swarm.MaxMessage+1)); err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
	}
	return a.ask(cmd, s, func(ctx context.Context, p *swarm.Peer) error {
		began := time.Now()
		if err := send(ctx, p, data); err != nil {
			return err
		}
		took := time.Since(began)
		if s.json {
			return a.printJSON(struct {
				Bytes   int     `json:"bytes"`
				Seconds float64 `json:"seconds"`
			}{len(data), took.Seconds()})
		}
		_, err := fmt.Fprintf(a.stdout, "sent %s in %v\n", count(len(data), "byte"), took.Round(time.Microsecond))
		return err
	})
}

func newSwarmRingCommand(a *app) *cobra.Command {
	var s swarmAsk
	cmd := &cobra.Command{
		Use:   "ring",
		Short: "Walk around the ring, and check that it is whole",
		Long: `Walk around the ring from member to member, and check that it is whole: that each
member names the next one as its successor, and is that one's predecessor. The
exit code is 1 when something is wrong, which it may be for a moment after a
member came or went.`,
		Example: `  fathom swarm ring --join 192.0.2.1:49610
  fathom swarm ring --join 192.0.2.1:49610 --json | jq .members[].addr`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd, &s, func(ctx context.Context, p *swarm.Peer) error {
				members, err := walkRing(ctx, p)
				if err != nil {
					return err
				}
				problems := checkRing(members)
				if s.json {
					err = a.printJSON(newRingDocument(members, problems))
				} else {
					err = printRing(a.stdout, members, problems)
				}
				if err == nil && len(problems) > 0 {
					err = errQuiet
				}
				return err
			})
		},
	}
	s.register(cmd.Flags())
	return cmd
}

// swarmMaxRing bounds what a walk around a ring of liars can make us remember.
const swarmMaxRing = 1 << 17

// walkRing visits all members.
func walkRing(ctx context.Context, p swarmPeer) ([]swarm.Neighbourhood, error) {
	var members []swarm.Neighbourhood
	err := p.Walk(ctx, func(n swarm.Neighbourhood) bool {
		members = append(members, n)
		return len(members) < swarmMaxRing
	})
	if err == nil && len(members) == 0 {
		err = errors.New("nobody is on the ring")
	}
	return members, err
}

// A ringProblem is what is wrong with one member's place.
type ringProblem struct {
	Member int    `json:"member"` // counted from 0
	Text   string `json:"text"`
}

// checkRing finds what is wrong with a ring, given in the order of a walk.
func checkRing(members []swarm.Neighbourhood) []ringProblem {
	var problems []ringProblem
	add := func(i int, format string, args ...any) {
		problems = append(problems, ringProblem{i, fmt.Sprintf(format, args...)})
	}
	for i, n := range members {
		next, before := members[(i+1)%len(members)].Self, members[(i+len(members)-1)%len(members)].Self
		if i > 0 && i < len(members)-1 && !n.Self.ID.Between(before.ID, next.ID) {
			add(i, "is not between its neighbours")
		}
		if len(n.Successors) == 0 && len(n.Predecessors) == 0 && len(members) > 1 {
			add(i, "does not answer")
			continue
		}
		if s := firstOther(n, n.Successors); s.ID != next.ID {
			add(i, "names %s as its successor, not %s", memberName(s), memberName(next))
		}
		if p := firstOther(n, n.Predecessors); p.ID != before.ID {
			add(i, "names %s as its predecessor, not %s", memberName(p), memberName(before))
		}
	}
	return problems
}

// firstOther gives the nearest neighbour, which of a member that is alone is itself.
func firstOther(n swarm.Neighbourhood, neighbours []swarm.Member) swarm.Member {
	if len(neighbours) == 0 {
		return n.Self
	}
	return neighbours[0]
}

// memberName names a member in a sentence.
func memberName(m swarm.Member) string {
	if m.Addr.IsValid() {
		return m.Addr.String()
	}
	return m.ID.Short()
}

type ringMember struct {
	swarmMember
	RTT          float64       `json:"rtt"` // seconds
	Predecessors []swarmMember `json:"predecessors"`
	Successors   []swarmMember `json:"successors"`
}

type ringDocument struct {
	Whole    bool          `json:"whole"`
	Members  []ringMember  `json:"members"`
	Problems []ringProblem `json:"problems"`
}

func newRingDocument(members []swarm.Neighbourhood, problems []ringProblem) ringDocument {
	d := ringDocument{Whole: len(problems) == 0, Members: []ringMember{}, Problems: append([]ringProblem{}, problems...)}
	for _, n := range members {
		m := ringMember{swarmMember: swarmMemberOf(n.Self), RTT: n.RTT.Seconds(), Predecessors: []swarmMember{}, Successors: []swarmMember{}}
		for _, p := range n.Predecessors {
			m.Predecessors = append(m.Predecessors, swarmMemberOf(p))
		}
		for _, s := range n.Successors {
			m.Successors = append(m.Successors, swarmMemberOf(s))
		}
		d.Members = append(d.Members, m)
	}
	return d
}

func printRing(out io.Writer, members []swarm.Neighbourhood, problems []ringProblem) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PLACE\tADDRESS\tRTT\tKIND\tID")
	for i, n := range members {
		kind, rtt := "fathom", n.RTT.Round(time.Microsecond).String()
		if n.Self.Original {
			kind = "cicada"
		}
		if len(n.Successors) == 0 && len(members) > 1 {
			rtt = "-"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", i+1, memberAddress(n.Self), rtt, kind, n.Self.ID)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range problems {
		fmt.Fprintf(out, "%d (%s) %s\n", p.Member+1, memberName(members[p.Member].Self), p.Text)
	}
	verdict := "the ring is whole"
	if len(problems) > 0 {
		verdict = "the ring is not whole"
	}
	_, err := fmt.Fprintf(out, "%s, %s\n", count(len(members), "member"), verdict)
	return err
}
