// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/seed5728abee/fathom/probe"
)

// durationValue is a duration option that also takes a bare number of seconds, as ping and mtr do.
type durationValue time.Duration

func durationVarP(flags *pflag.FlagSet, d *time.Duration, name, short string, value time.Duration, usage string) {
	*d = value
	flags.VarP((*durationValue)(d), name, short, usage)
}

func (d *durationValue) String() string { return time.Duration(*d).String() }
func (d *durationValue) Type() string   { return "duration" }

func (d *durationValue) Set(s string) error {
	parsed, err := parseDuration(s)
	if err != nil {
		return err
	}
	*d = durationValue(parsed)
	return nil
}

var errDuration = errors.New("want a duration such as 0.5, 500ms or 2s")

// parseDuration reads a non-negative duration: Go's notation, or a number of seconds.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		seconds, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(seconds) || seconds > math.MaxInt64/float64(time.Second) {
			return 0, errDuration
		}
		d = time.Duration(seconds * float64(time.Second))
	}
	if d < 0 {
		return 0, errDuration
	}
	return d, nil
}

// protocolValue is an option that names a probe protocol.
type protocolValue probe.Protocol

func (p *protocolValue) String() string { return probe.Protocol(*p).String() }
func (p *protocolValue) Type() string   { return "icmp|udp|tcp|sctp" }

func (p *protocolValue) Set(s string) error {
	parsed, err := probe.ParseProtocol(strings.ToLower(s))
	if err != nil {
		return errors.New("want icmp, udp, tcp or sctp")
	}
	*p = protocolValue(parsed)
	return nil
}

// addrValue is an option that takes an IP address.
type addrValue netip.Addr

func (a *addrValue) String() string {
	if addr := netip.Addr(*a); addr.IsValid() {
		return addr.String()
	}
	return ""
}

func (a *addrValue) Type() string { return "address" }

func (a *addrValue) Set(s string) error {
	parsed, err := netip.ParseAddr(s)
	if err != nil {
		return errors.New("want an IP address")
	}
	*a = addrValue(parsed.Unmap())
	return nil
}

// ipVersion is the pair of options -4 and -6.
type ipVersion struct{ only4, only6 bool }

func (v *ipVersion) register(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&v.only4, "ipv4", "4", false, "use IPv4 only")
	cmd.Flags().BoolVarP(&v.only6, "ipv6", "6", false, "use IPv6 only")
	cmd.MarkFlagsMutuallyExclusive("ipv4", "ipv6")
}

// number gives 4, 6, or 0 for either.
func (v *ipVersion) number() int {
	switch {
	case v.only4:
		return 4
	case v.only6:
		return 6
	}
	return 0
}

// given tells whether the command line itself has an option. What the environment says is meant for the
// commands that it fits, and is ignored by the others.
func given(cmd *cobra.Command, option string) (found bool) {
	cmd.Flags().Visit(func(f *pflag.Flag) { found = found || f.Name == option })
	return found
}

// checkPorts refuses ports for a protocol that would ignore them.
func checkPorts(cmd *cobra.Command, p probe.Protocol) error {
	switch {
	case p == probe.ICMP && given(cmd, "port"):
		return usagef("--port: icmp has no ports")
	case p != probe.UDP && given(cmd, "local-port"):
		return usagef("--local-port: only with --protocol udp")
	}
	return nil
}

// proberHint is probeHint for an error of an open prober, which knows what it lacks, about a request.
func proberHint(p prober, r probe.Request, err error) error {
	if errors.Is(err, probe.ErrUnsupported) {
		missing := missingFor(r, p.Features().Missing)
		if len(missing) == 0 {
			return err
		}
		hint := strings.Join(missing, "\n") + "\nUDP and TCP without a mark need none of this."
		return withHint(err, strings.ReplaceAll(hint, "PROGRAM", programPath()))
	}
	return probeHint(err)
}

// missingFor picks the sentences that are about what a request asks for, or all if none seems to be. A
// sentence begins with what is missing: "ICMP over IPv6: …", "SCTP, routing marks: …", "IPv6: …".
func missingFor(r probe.Request, missing []string) []string {
	version, other := "IPv4", "IPv6"
	if r.Target.Is6() {
		version, other = other, version
	}
	var picked []string
	for _, sentence := range missing {
		subject, _, _ := strings.Cut(sentence, ":")
		asked := subject == version || strings.Contains(subject, strings.ToUpper(r.Protocol.String())) ||
			r.Mark != 0 && strings.Contains(subject, "mark")
		if asked && !strings.Contains(subject, other) {
			picked = append(picked, sentence)
		}
	}
	if len(picked) == 0 {
		return missing
	}
	return picked
}

// programPath gives what a shell takes for the path of this program.
func programPath() string {
	path, err := os.Executable()
	if err != nil {
		return "$(command -v fathom)"
	}
	if strings.ContainsFunc(path, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+,:@", r)
	}) {
		path = "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
	}
	return path
}

// probeHint adds to an error of package probe what the user can do about it.
func probeHint(err error) error {
	switch {
	case errors.Is(err, probe.ErrPermission):
		return withHint(err, "Raw sockets need CAP_NET_RAW: run `sudo setcap cap_net_raw+ep "+programPath()+"`, or use --unprivileged.\n"+
			"Without it, ICMP needs your group in the sysctl net.ipv4.ping_group_range; UDP and TCP need nothing.")
	case errors.Is(err, probe.ErrNoInterface):
		return withHint(err, "`ip link` lists the interfaces of this host.")
	case errors.Is(err, probe.ErrAddrNotAvailable):
		return withHint(err, "`ip address` lists the addresses of this host.")
	}
	return err
}

// fit makes the version that of the address to send from, if there is one, and refuses a contradiction.
func (v *ipVersion) fit(local netip.Addr) error {
	switch {
	case !local.IsValid():
	case v.only4 && !local.Is4():
		return usagef("--local-address %s is not an IPv4 address", local)
	case v.only6 && !local.Is6():
		return usagef("--local-address %s is not an IPv6 address", local)
	case local.Is4():
		v.only4 = true
	default:
		v.only6 = true
	}
	return nil
}
