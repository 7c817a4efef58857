// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/nat"
)

type natMapOptions struct {
	natOptions
	request      nat.Request
	method       natMethodValue
	protocol     natProtocolValue
	allowPrivate bool
	json         bool
}

// externalVariable tells the command that runs while a port is mapped where others reach it.
const externalVariable = "FATHOM_NAT_EXTERNAL"

func newNATMapCommand(a *app) *cobra.Command {
	o := &natMapOptions{protocol: natProtocolValue(nat.TCP)}
	cmd := &cobra.Command{
		Use:   "map PORT [OPTION...] [-- COMMAND [ARGUMENT...]]",
		Short: "Open a port of this host at the router, and keep it open",
		Long: `Have this host's router forward a port from the outside to this host, and print
the address that others reach it at. If the external port is taken, the next
ones are tried; another host's is never taken away. The mapping is renewed, and
made again when the router has restarted, until this program is interrupted or
terminated, or the command behind -- ends: then it is removed.

The command finds the external address in the environment variable
` + externalVariable + `.`,
		Example: `  fathom nat map 49610 --protocol both
  fathom nat map 8080 --external-port 80 -- python3 -m http.server 8080`,
		Annotations: map[string]string{optionsFirst: "yes"}, // they stand in its Use
		Args:        o.args,
		RunE:        func(cmd *cobra.Command, args []string) error { return a.runNATMap(cmd.Context(), o, args[1:]) },
	}
	f := cmd.Flags()
	f.VarP(&o.protocol, "protocol", "p", "what to forward; both on one external port")
	f.Uint16VarP(&o.request.ExternalPort, "external-port", "e", 0, "ask for this `port` outside (default: the same as inside)")
	durationVarP(f, &o.request.Lifetime, "lifetime", "l", nat.DefaultLifetime, "ask for a lease of this length; the router may grant another one")
	f.StringVarP(&o.request.Description, "description", "d", "fathom", "`text` that the router is to show, if it does (UPnP)")
	f.VarP(&o.method, "method", "m", "how to ask")
	f.BoolVar(&o.allowPrivate, "allow-private", false, "take a router without a public address, for those who reach it all the same")
	o.register(cmd)
	f.BoolVar(&o.json, "json", false, "print JSON Lines: one when the port is mapped, and one for all that happens to it")
	return cmd
}

// args takes a port, and a command behind two dashes.
func (o *natMapOptions) args(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	switch {
	case len(args) == 0 || dash == 0:
		return usagef("which port?")
	case dash < 0 && len(args) > 1, dash > 1:
		return usagef("takes one port: %q; a command stands behind --", args[1])
	case dash == 1 && len(args) == 1:
		return usagef("no command stands behind --")
	}
	port, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil || port == 0 {
		return usagef("port %q: want a number from 1 to 65535", args[0])
	}
	o.request.InternalPort = uint16(port)
	return nil
}

func (a *app) runNATMap(ctx context.Context, o *natMapOptions, command []string) error {
	opts, err := o.options(a)
	switch {
	case err != nil:
		return err
	case o.request.Lifetime < time.Second:
		return usagef("--lifetime %s: want a second or more", o.request.Lifetime)
	case nat.Method(o.method) == nat.Off:
		return usagef("--method off: then there is nothing to do")
	}
	opts.Method = nat.Method(o.method)
	opts.AllowPrivate = o.allowPrivate
	o.request.Protocol = nat.Protocol(o.protocol)
	m, err := nat.Discover(ctx, opts)
	if err != nil {
		return natHint(err)
	}
	defer m.Close()
	out := &natEvents{to: a.stdout, json: o.json}
	if len(command) > 0 && !o.json {
		out.to = a.stderr // standard output is the command's
	}
	began := make(chan struct{})
	o.request.Notify = func(e nat.Event) {
		<-began // what is printed first is the mapping
		out.print(e.Kind.String(), e.State, e.Err)
	}
	mapping, err := m.Map(ctx, o.request)
	if err != nil {
		close(began)
		return natHint(err)
	}
	out.print(nat.Mapped.String(), mapping.State(), nil)
	if s := mapping.State(); s.External.Port() != o.wanted() {
		fmt.Fprintf(a.stderr, "fathom nat map: port %d is taken outside: it is %d\n", o.wanted(), s.External.Port())
	}
	close(began)

	var ended error
	if len(command) > 0 {
		ended = a.runWhileMapped(ctx, command, mapping.External())
	} else {
		<-ctx.Done()
	}
	state := mapping.State()
	err = m.Close()
	if err != nil {
		err = withHint(err, "The router may forward until the lease ends.")
	} else {
		out.print("unmapped", state, nil)
	}
	if ended != nil {
		if err != nil {
			a.log.Warn("unmap", "error", err)
		}
		return ended
	}
	return errors.Join(err, out.failed())
}

// wanted is the external port that was asked for.
func (o *natMapOptions) wanted() uint16 {
	if o.request.ExternalPort != 0 {
		return o.request.ExternalPort
	}
	return o.request.InternalPort
}

// stopTimeout is what the command has for ending when it is asked to.
const stopTimeout = 5 * time.Second

// runWhileMapped runs a command with our streams. When we are asked to end, so is it.
func (a *app) runWhileMapped(ctx context.Context, command []string, external netip.AddrPort) error {
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stdin, c.Stdout, c.Stderr = a.stdin, a.stdout, a.stderr
	if out, ok := a.stdout.(*checkedWriter); ok {
		c.Stdout = out.Writer // a file goes to the command as it is
	}
	c.Env = append(os.Environ(), externalVariable+"="+external.String())
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = stopTimeout
	err := c.Run()
	if ctx.Err() != nil {
		return nil // it was our end
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code := exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
		return &exitError{code}
	}
	return err
}

// natEvents prints what happens to a mapping.
type natEvents struct {
	to   io.Writer
	json bool

	mu  sync.Mutex
	err error // of the first write that failed
}

// natEventJSON is a line of fathom nat map --json; docs/reference/nat.md explains it.
type natEventJSON struct {
	Event    string         `json:"event"`
	Time     time.Time      `json:"time"`
	Protocol nat.Protocol   `json:"protocol"`
	External netip.AddrPort `json:"external"`
	Internal netip.AddrPort `json:"internal"`
	Gateway  netip.Addr     `json:"gateway"`
	Method   nat.Method     `json:"method"`
	Lifetime time.Duration  `json:"lifetime_ns,omitempty"`
	Expires  *time.Time     `json:"expires,omitempty"`
	Error    string         `json:"error,omitempty"`
}

func (p *natEvents) print(event string, s nat.State, failed error) {
	var line []byte
	switch {
	case p.json:
		j := natEventJSON{
			Event: event, Time: time.Now(), Protocol: s.Protocol, External: s.External, Internal: s.Internal, Gateway: s.Gateway,
			Method: s.Method, Lifetime: s.Lifetime,
		}
		if !s.Expires.IsZero() {
			j.Expires = &s.Expires
		}
		if failed != nil {
			j.Error = failed.Error()
		}
		var err error
		if line, err = json.Marshal(j); err != nil {
			p.fail(err)
			return
		}
		line = append(line, '\n')
	case event == nat.Renewed.String():
		return // as it should be
	case event == nat.Lost.String():
		line = fmt.Appendf(nil, "%v/%v is lost, and tried again\n", s.External, s.Protocol)
	case event == "unmapped":
		line = fmt.Appendf(nil, "%v/%v is closed\n", s.External, s.Protocol)
	default:
		lease := "without end"
		if s.Lifetime > 0 {
			lease = "for " + s.Lifetime.String() + ", renewed in time"
		}
		line = fmt.Appendf(nil, "%v/%v leads to %v (%v, %s)\n", s.External, s.Protocol, s.Internal, s.Method, lease)
	}
	p.mu.Lock()
	_, err := p.to.Write(line)
	p.mu.Unlock()
	p.fail(err)
}

func (p *natEvents) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *natEvents) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// natMethodValue is an option that names a way to ask a router.
type natMethodValue nat.Method

func (m *natMethodValue) String() string { return nat.Method(*m).String() }
func (m *natMethodValue) Type() string   { return "auto|upnp|natpmp|pcp" }

func (m *natMethodValue) Set(s string) error {
	parsed, err := nat.ParseMethod(s)
	if err != nil {
		return errors.New("want auto, upnp, natpmp or pcp")
	}
	*m = natMethodValue(parsed)
	return nil
}

// natProtocolValue is an option that names what to forward.
type natProtocolValue nat.Protocol

func (p *natProtocolValue) String() string {
	if nat.Protocol(*p) == nat.TCP|nat.UDP {
		return "both"
	}
	return nat.Protocol(*p).String()
}
func (p *natProtocolValue) Type() string { return "tcp|udp|both" }

func (p *natProtocolValue) Set(s string) error {
	parsed, err := nat.ParseProtocol(s)
	if err != nil {
		return errors.New("want tcp, udp or both")
	}
	*p = natProtocolValue(parsed)
	return nil
}
