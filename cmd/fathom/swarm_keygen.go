// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/swarm/member"
)

func newSwarmKeygenCommand(a *app) *cobra.Command {
	var identity bool
	cmd := &cobra.Command{
		Use:   "keygen [FILE]",
		Short: "Make the key of a swarm, or of a member",
		Long: `Make a key that all members of a closed swarm share (--swarm-key), and print it,
or put it into a new file that only its owner can read.

To change the key while the swarm works: add the new one as the last line of
every member's file and start the member anew; then move it to the first line
everywhere; then remove the old one.

With --identity, make the key of one member (--identity-key) instead, whose place
in a secure swarm it is; the place is shown. openssl genpkey -algorithm ed25519
makes such keys too.`,
		Example: `  fathom swarm keygen swarm.key
  fathom swarm keygen --identity alice.pem`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("takes one file: %q", args[1])
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			var err error
			switch {
			case identity && len(args) == 0:
				err = a.printIdentity(member.NewIdentity())
			case identity:
				i := member.NewIdentity()
				if err = i.Save(args[0]); err == nil {
					_, err = fmt.Fprintln(a.stdout, member.OfKey(i.Public()))
				}
			case len(args) == 0:
				_, err = fmt.Fprintln(a.stdout, member.NewSwarmKey().Reveal())
			default:
				err = member.SwarmKeys{member.NewSwarmKey()}.Save(args[0])
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&identity, "identity", false, "make the key of a member")
	return cmd
}

// printIdentity writes the key pair as the file of it has it.
func (a *app) printIdentity(i *member.Identity) error {
	der, err := x509.MarshalPKCS8PrivateKey(i.Private())
	if err != nil {
		return err
	}
	return pem.Encode(a.stdout, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
