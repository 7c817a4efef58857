// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/trust"
)

// swarmPeer is what the commands need of a peer. The real one is [swarm.Peer].
type swarmPeer interface {
	Connect(ctx context.Context, entries ...string) error
	Disconnect(ctx context.Context) error
	Close() error
	Self() swarm.Member
	State() swarm.State
	Send(ctx context.Context, to swarm.Target, data []byte) error
	SendDisjoint(ctx context.Context, to swarm.Target, data []byte, duplicates int) error
	SendAsync(ctx context.Context, to swarm.Target, data []byte, done func(error)) error
	Broadcast(ctx context.Context, data []byte, except ...swarm.Hash) error
	Recv(ctx context.Context) (swarm.Message, error)
	Lookup(ctx context.Context, key swarm.Hash, o swarm.LookupOptions) (swarm.Result, error)
	Walk(ctx context.Context, visit func(swarm.Neighbourhood) bool) error
}

var _ swarmPeer = (*swarm.Peer)(nil)

func newSwarmCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "swarm",
		Short: "Join a swarm: peers that find each other, through NATs",
		Long: `Join a swarm: peers that find each other, send to each other and broadcast to
all, wherever they are: on one network, behind home routers, on IPv6.

A swarm begins with one peer (fathom swarm node); others join through the
address of any that is in it. An open swarm takes whoever comes, Cicada's peers
among them. With --secure each member proves a key that its place on the ring is
made of; with --swarm-key only those who have that key get in.`,
		Example: `  fathom swarm node --listen 192.0.2.1:49610
  fathom swarm node --listen :49610 --join 192.0.2.1:49610 --port-mapping auto
  fathom swarm chat --join 192.0.2.1:49610 -u alice
  fathom swarm ring --join 192.0.2.1:49610`,
	}
	cmd.AddCommand(newSwarmNodeCommand(a), newSwarmRunCommand(a), newSwarmLookupCommand(a), newSwarmSendCommand(a),
		newSwarmBroadcastCommand(a), newSwarmChatCommand(a), newSwarmRingCommand(a), newSwarmViewCommand(a), newSwarmKeygenCommand(a))
	return cmd
}

// swarmOptions are the options of peers. Each command has those that it registers.
type swarmOptions struct {
	listen          swarmAddress
	identity        swarmAddress
	join, bootstrap swarmAddresses
	mapping         swarmMapping
	mappingLifetime time.Duration
	keys            string
	identityKey     string
	swarmKey        string
	secure          bool
	originals       bool
	name            string
	noForwarding    bool
}

// registerTrust adds the options that say what swarm it is, and who is trusted in it.
func (o *swarmOptions) registerTrust(f *pflag.FlagSet) {
	f.BoolVar(&o.secure, "secure", false, "the swarm is a secure one: places on the ring are made of keys, which members prove, and not of addresses")
	f.StringVar(&o.swarmKey, "swarm-key", "", "`file` with the key of a closed swarm, as keygen makes it; several keys, one a line, for changing it")
	f.StringVar(&o.identityKey, "identity-key", "", "`file` with this peer's own key, as keygen --identity makes it (default: a new one each time)")
	f.StringVar(&o.keys, "keys", "", "`file` with the keys shared with single hosts, in Cicada's form: messages to and from them are sealed from end to end")
	f.BoolVar(&o.originals, "originals", false, "let Cicada's peers in, or with =false keep them out (default: in, where the swarm is open and has no key)")
}

// registerMapping adds the options of a port mapping.
func (o *swarmOptions) registerMapping(f *pflag.FlagSet, mapping nat.Method) {
	o.mapping = swarmMapping(mapping)
	f.Var(&o.mapping, "port-mapping", "have the router forward the port: off, auto, upnp, natpmp or pcp")
	durationVarP(f, &o.mappingLifetime, "mapping-lifetime", "", nat.DefaultLifetime, "`time` to have the mapping for; it is renewed at half of it")
}

// finish makes the options of a peer.
func (o *swarmOptions) finish(ctx context.Context, cmd *cobra.Command, log *slog.Logger) (swarm.Options, error) {
	var failed error
	cmd.Flags().Visit(func(f *pflag.Flag) { // what a script left empty must not make a swarm open
		if f.Value.String() == "" && failed == nil {
			failed = usagef("option --%s is empty", f.Name)
		}
	})
	if failed != nil {
		return swarm.Options{}, failed
	}
	s := swarm.Options{
		Name: o.name, Bootstrap: o.bootstrap, NoForwarding: o.noForwarding, Logger: log,
		PortMapping: nat.Method(o.mapping) != nat.Off, MappingMethod: nat.Method(o.mapping), MappingLifetime: o.mappingLifetime,
	}
	if o.mappingLifetime != 0 && o.mappingLifetime < time.Second {
		return s, usagef("--mapping-lifetime %v: want 1 s or more", o.mappingLifetime)
	}
	if o.secure {
		s.Binding = member.ByKey
	}
	if f := cmd.Flags().Lookup("originals"); f != nil && f.Changed {
		s.Originals = swarm.OriginalsRefused
		if o.originals {
			s.Originals = swarm.OriginalsAllowed
		}
	}
	var err error
	if o.identity != "" {
		if s.External, err = resolveSwarmAddress(ctx, string(o.identity)); err != nil {
			return s, fmt.Errorf("--identity %s: %w", o.identity, err)
		}
	}
	if o.identityKey != "" {
		if s.Identity, err = member.LoadIdentity(o.identityKey); err != nil {
			return s, swarmKeyHint(err, "fathom swarm keygen --identity "+o.identityKey)
		}
	}
	if o.swarmKey != "" {
		if s.SwarmKeys, err = member.LoadSwarmKeys(o.swarmKey); err != nil {
			return s, swarmKeyHint(err, "fathom swarm keygen "+o.swarmKey)
		}
	}
	if o.keys != "" {
		if s.Trust, err = trust.Load(o.keys); err != nil {
			return s, err
		}
	}
	return s, nil
}

// swarmKeyHint says how to make a file that is not there.
func swarmKeyHint(err error, command string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return withHint(err, "Make one with `"+command+"`.")
	}
	return err
}

// bindSwarmPeer makes a peer and binds it.
func bindSwarmPeer(ctx context.Context, o swarm.Options, listen string) (*swarm.Peer, error) {
	p := swarm.New(o)
	if err := p.Bind(ctx, listen); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// resolveSwarmAddress turns host:port into an address: a name into its first one, of IPv4 if there is any, as a peer
// does with names.
func resolveSwarmAddress(ctx context.Context, hostport string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddrPort(hostport); err == nil {
		return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), nil
	}
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return netip.AddrPort{}, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: want a number from 0 to 65535", port)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	best := addrs[0].Unmap()
	for _, addr := range addrs {
		if addr = addr.Unmap(); addr.Is4() {
			best = addr
			break
		}
	}
	return netip.AddrPortFrom(best, uint16(number)), nil
}

var errSwarmAddress = errors.New("want host:port")

// checkSwarmAddress refuses what is not host:port. An empty host stands for all addresses of this machine where anyHost is set.
func checkSwarmAddress(s string, anyHost bool) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" && !anyHost || len(host) > 255 || strings.ContainsAny(host, " \t\r\n") {
		return errSwarmAddress
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && !anyHost {
		return errors.New("want a port from 1 to 65535 behind the colon")
	}
	return nil
}

// swarmAddress is an option that takes host:port, where the host may be empty and the port 0.
type swarmAddress string

func (s *swarmAddress) String() string { return string(*s) }
func (s *swarmAddress) Type() string   { return "host:port" }

func (s *swarmAddress) Set(text string) error {
	if err := checkSwarmAddress(text, true); err != nil {
		return err
	}
	*s = swarmAddress(text)
	return nil
}

// swarmAddresses is an option that takes host:port, several with commas between them or each with the option before it.
type swarmAddresses []string

func (s *swarmAddresses) String() string { return strings.Join(*s, ",") }
func (s *swarmAddresses) Type() string   { return "host:port" }

func (s *swarmAddresses) Set(text string) error {
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if err := checkSwarmAddress(item, false); err != nil {
			return err
		}
		*s = append(*s, item)
	}
	return nil
}

// swarmMapping is an option that takes a way to have a port mapped.
type swarmMapping nat.Method

func (m *swarmMapping) String() string { return nat.Method(*m).String() }
func (m *swarmMapping) Type() string   { return "method" }

func (m *swarmMapping) Set(text string) error {
	method, err := nat.ParseMethod(strings.ToLower(text))
	if err != nil {
		return errors.New("want off, auto, upnp, natpmp or pcp")
	}
	*m = swarmMapping(method)
	return nil
}

// memberAddress gives the address of a member for people to read.
func memberAddress(m swarm.Member) string {
	if m.Addr.IsValid() {
		return m.Addr.String()
	}
	return "-"
}

// printable gives text that others have sent in a form that a terminal does not obey: control characters are escaped.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}
