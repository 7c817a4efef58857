// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/anycast/access"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/enroll"
)

// authorityDir and auditFile are where a controller's state directory has them.
func authorityDir(state string) string { return filepath.Join(state, "authority") }
func auditFile(state string) string    { return filepath.Join(state, "audit.log") }

// registerState adds the option that names a controller's state directory.
func (a *app) registerState(cmd *cobra.Command, state *string) {
	cmd.Flags().StringVar(state, "state", a.anycastStateDir("controller"), "the controller's own `directory`")
}

// openAuthority opens the authority of a controller that has been there before.
func openAuthority(state string) (*enroll.Authority, error) {
	if _, err := os.Stat(authorityDir(state)); errors.Is(err, os.ErrNotExist) {
		return nil, withHint(fmt.Errorf("no controller has its state in %s", state),
			"Run this on the controller's host, as its user, and with its --state; start the controller once before.")
	}
	return enroll.Open(authorityDir(state), enroll.AuthorityOptions{})
}

func newAnycastEnrollCommand(a *app) *cobra.Command {
	var state, address string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "enroll ROLE NAME",
		Short: "Let a host or a person join the fleet",
		Long: `Print the command that makes another host join this controller's fleet. Run this
on the controller's host, as the controller's user; the controller may be
running.

ROLE is agent (a site), operator (may measure) or viewer (may look). NAME is
what it is called in results and logs; an agent can only be the site that its
certificate names.

The token in the command is a secret: whoever has it first joins. It works
once, and for an hour unless --ttl says otherwise. A name that joins again
revokes the certificate that it had.`,
		Example: `  fathom anycast enroll agent fra1 --address anycast.example.net:50051
  fathom anycast enroll operator alice`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("give a role (agent, operator or viewer) and a name")
			}
			return nil
		},
		ValidArgs: []string{"agent", "operator", "viewer"},
		RunE: func(_ *cobra.Command, args []string) error {
			role, err := enroll.ParseRole(args[0])
			if err != nil {
				return usagef("%q is no role: want agent, operator or viewer", args[0])
			}
			authority, err := openAuthority(state)
			if err != nil {
				return err
			}
			if address == "" {
				if address, err = readAddress(state); err != nil {
					return err
				}
			}
			who := enroll.Identity{Role: role, Name: args[1]}
			token, err := authority.Token(who, ttl, withPort(address))
			a.recordAudit(state, access.Event{Action: "invite", Object: who.String(), Err: err})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Run this on the other host, until %s; it works once:\n", token.Expires.Local().Format(time.DateTime))
			_, err = fmt.Fprintf(a.stdout, "fathom anycast join '%s'\n", token.Reveal())
			return err
		},
	}
	a.registerState(cmd, &state)
	cmd.Flags().StringVar(&address, "address", "", "the controller's `host:port` as the other host reaches it (default: as the controller was told)")
	durationVarP(cmd.Flags(), &ttl, "ttl", "", enroll.DefaultTokenLifetime, "how long the token can be used")
	return cmd
}

// recordAudit notes what a command on the controller's host did. It is done whether or not that works, since
// whoever can run it can also edit the log.
func (a *app) recordAudit(state string, e access.Event) {
	audit, err := access.OpenAudit(auditFile(state), access.AuditOptions{})
	if err == nil {
		err = errors.Join(audit.Record(e), audit.Close())
	}
	if err != nil {
		a.log.Warn("the audit log was not written", "err", err)
	}
}

func newAnycastJoinCommand(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Join a fleet with the token that enroll printed",
		Long: `Make a key on this host, have the controller certify it, and save both for the
other anycast commands. The controller proves who it is before anything is
sent; the key never leaves this host.

A running agent renews its certificate by itself.`,
		Example: `  fathom anycast join 'fathom-join:agent/fra1/...'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give the token that enroll printed, in quotes")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := enroll.ParseToken(args[0])
			if err != nil {
				return usagef("%w", err)
			}
			if dir == "" {
				dir = a.anycastStateDir("credentials")
			}
			creds, err := enroll.Join(cmd.Context(), token, dir, enroll.JoinOptions{Exchange: client.Exchange})
			switch {
			case errors.Is(err, enroll.ErrEnrolled):
				return withHint(err, "To join again, or to join another fleet, name another --credentials directory, or remove this one.")
			case errors.Is(err, enroll.ErrTokenUsed), errors.Is(err, enroll.ErrTokenExpired):
				return withHint(err, "Make a new one on the controller's host: fathom anycast enroll.")
			case err != nil:
				return err
			}
			fmt.Fprintf(a.stderr, "Joined as %s; the certificate is in %s and good until %s.\n",
				creds.Identity(), dir, creds.Expires().Local().Format(time.DateOnly))
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "credentials", "", "`directory` for the certificate and its key (default "+a.anycastStateDir("credentials")+")")
	return cmd
}

// renewOver gives the function that renews credentials over their own link.
func renewOver(address string, creds *enroll.Credentials) func(context.Context, []byte) ([]byte, error) {
	return func(ctx context.Context, request []byte) ([]byte, error) {
		c, err := client.Dial(ctx, address, client.Options{TLS: creds.ClientTLS()})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.Enroll(ctx, request)
	}
}

func newAnycastMembersCommand(a *app) *cobra.Command {
	var state string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "members",
		Short:   "List who has joined, or was invited",
		Example: `  fathom anycast members`,
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			authority, err := openAuthority(state)
			if err != nil {
				return err
			}
			members, err := authority.Members()
			if err != nil {
				return err
			}
			if asJSON {
				return a.printMembersJSON(members)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "MEMBER\tSTATE\tJOINED\tCERTIFICATE UNTIL")
			for _, m := range members {
				state := m.State.String()
				if m.State == enroll.Invited {
					state += " until " + m.Deadline.Local().Format(time.DateTime)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.Identity, state, dayOr(m.Joined, "-"), dayOr(m.Expires, "-"))
			}
			return w.Flush()
		},
	}
	a.registerState(cmd, &state)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return cmd
}

func dayOr(t time.Time, otherwise string) string {
	if t.IsZero() {
		return otherwise
	}
	return t.Local().Format(time.DateOnly)
}

type memberRecord struct {
	ID       string    `json:"id"`
	Role     string    `json:"role"`
	Name     string    `json:"name"`
	State    string    `json:"state"`
	Invited  time.Time `json:"invited"`
	Deadline time.Time `json:"deadline,omitzero"`
	Joined   time.Time `json:"joined,omitzero"`
	Expires  time.Time `json:"expires,omitzero"`
	Revoked  time.Time `json:"revoked,omitzero"`
}

func (a *app) printMembersJSON(members []enroll.Member) error {
	list := make([]memberRecord, 0, len(members))
	for _, m := range members {
		list = append(list, memberRecord{
			ID: m.ID, Role: m.Identity.Role.String(), Name: m.Identity.Name, State: m.State.String(), Invited: m.Invited,
			Deadline: m.Deadline, Joined: m.Joined, Expires: m.Expires, Revoked: m.Revoked,
		})
	}
	return a.printJSON(list)
}

func newAnycastRevokeCommand(a *app) *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Put a member out of the fleet",
		Long: `Refuse a member's certificate, or its unused token, from now on. Its connections
end within seconds. The name may be enrolled again.`,
		Example: `  fathom anycast revoke fra1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one member; `fathom anycast members` lists them")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			authority, err := openAuthority(state)
			if err != nil {
				return err
			}
			ended, err := authority.Revoke(args[0])
			a.recordAudit(state, access.Event{Action: "revoke", Object: args[0], Err: err})
			if err != nil {
				return err
			}
			for _, m := range ended {
				fmt.Fprintf(a.stderr, "Revoked %s.\n", m.Identity)
			}
			return nil
		},
	}
	a.registerState(cmd, &state)
	return cmd
}
