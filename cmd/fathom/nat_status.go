// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/nat"
)

func newNATStatusCommand(a *app) *cobra.Command {
	var o natOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the router maps ports",
		Long: `Ask this host's router by PCP, NAT-PMP and UPnP, and show which of them it speaks,
how long each answer took, its external address, whether that is a public one,
and which ports it has mapped, as far as it tells. Nothing is mapped.

The exit code is 0 if the router can map ports that the Internet reaches.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := o.options(a)
			if err != nil {
				return err
			}
			r, err := nat.Survey(cmd.Context(), opts)
			if cmd.Context().Err() != nil {
				return cmd.Context().Err()
			}
			if err != nil && !r.Gateway.IsValid() && len(r.Answers) == 0 {
				return natHint(err)
			}
			if asJSON {
				if printErr := a.printJSON(natReport(&r)); printErr != nil {
					return printErr
				}
			} else if printErr := a.printNATStatus(&r); printErr != nil {
				return printErr
			}
			switch {
			case err != nil:
				return natHint(fmt.Errorf("%v: %w", r.Gateway, nat.ErrNoGateway)) // the table says why, method by method
			case r.DoubleNAT:
				return withHint(errors.New("the router has no public address"), doubleNATHint)
			}
			return nil
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (a *app) printNATStatus(r *nat.Report) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "router\t%s\n", addrOrDash(r.Gateway))
	fmt.Fprintf(w, "this host\t%s\n", addrOrDash(r.Local))
	external := addrOrDash(r.External)
	if r.DoubleNAT && r.External.IsValid() {
		external += ", which is not public: the router is behind another NAT"
	}
	fmt.Fprintf(w, "external address\t%s\n\n", external)

	fmt.Fprintln(w, "METHOD\tMAPS PORTS\tTOOK\tEXTERNAL\tUP FOR\tDEVICE")
	for _, answer := range r.Answers {
		maps := "yes"
		switch {
		case errors.Is(answer.Err, nat.ErrNoAnswer):
			maps = "does not answer"
		case answer.Err != nil:
			maps = "no"
		}
		fmt.Fprintf(w, "%v\t%s\t%v\t%s\t%s\t%s\n", answer.Method, maps, answer.Took.Round(10*time.Microsecond), addrOrDash(answer.External),
			durationOrDash(answer.Uptime), cmp.Or(answer.Device, "-"))
	}
	if len(r.Leases) > 0 {
		fmt.Fprintln(w, "\nPROTOCOL\tPORT\tFORWARDED TO\tFOR\tDESCRIPTION")
		for _, l := range r.Leases {
			left := "ever"
			if l.Remaining > 0 {
				left = l.Remaining.String()
			}
			fmt.Fprintf(w, "%v\t%d\t%v\t%s\t%s\n", l.Protocol, l.ExternalPort, l.Internal, left, cmp.Or(l.Description, "-"))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, answer := range r.Answers {
		if answer.Err != nil {
			a.log.Debug("no mappings", "method", answer.Method, "error", answer.Err)
		}
	}
	return nil
}

func addrOrDash(addr netip.Addr) string {
	if !addr.IsValid() {
		return "-"
	}
	return addr.String()
}

func durationOrDash(d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return d.Round(time.Second).String()
}

// The JSON of fathom nat status; docs/reference/nat.md explains it.
type natReportJSON struct {
	Gateway   *netip.Addr     `json:"gateway,omitempty"`
	Local     *netip.Addr     `json:"local,omitempty"`
	External  *netip.Addr     `json:"external,omitempty"`
	DoubleNAT bool            `json:"double_nat"`
	Methods   []natAnswerJSON `json:"methods"`
	Leases    []natLeaseJSON  `json:"leases"`
}

type natAnswerJSON struct {
	Method   nat.Method    `json:"method"`
	Maps     bool          `json:"maps"`
	Took     time.Duration `json:"took_ns"`
	External *netip.Addr   `json:"external,omitempty"`
	Uptime   time.Duration `json:"uptime_ns,omitempty"`
	Device   string        `json:"device,omitempty"`
	Error    string        `json:"error,omitempty"`
}

type natLeaseJSON struct {
	Protocol     nat.Protocol   `json:"protocol"`
	ExternalPort uint16         `json:"external_port"`
	Internal     netip.AddrPort `json:"internal"`
	Remaining    time.Duration  `json:"remaining_ns,omitempty"`
	Description  string         `json:"description,omitempty"`
}

func natReport(r *nat.Report) natReportJSON {
	j := natReportJSON{
		Gateway: known(r.Gateway), Local: known(r.Local), External: known(r.External), DoubleNAT: r.DoubleNAT,
		Methods: []natAnswerJSON{}, Leases: []natLeaseJSON{},
	}
	for _, a := range r.Answers {
		answer := natAnswerJSON{
			Method: a.Method, Maps: a.Err == nil, Took: a.Took, External: known(a.External), Uptime: a.Uptime, Device: a.Device,
		}
		if a.Err != nil {
			answer.Error = a.Err.Error()
		}
		j.Methods = append(j.Methods, answer)
	}
	for _, l := range r.Leases {
		j.Leases = append(j.Leases, natLeaseJSON{l.Protocol, l.ExternalPort, l.Internal, l.Remaining, l.Description})
	}
	return j
}

// known gives nil for an address that is not.
func known(a netip.Addr) *netip.Addr {
	if !a.IsValid() {
		return nil
	}
	return &a
}
