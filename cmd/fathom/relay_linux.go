// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/relay"
	"github.com/seed5728abee/fathom/relay/control"
	"github.com/seed5728abee/fathom/relay/discovery"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// defaultBroadcastPort is SnowSignal's: PVAccess searches.
const defaultBroadcastPort = 5076

type relayOptions struct {
	opts relay.Options

	presets      []string
	ports        []string
	groups       []string
	logLevel     string
	otherRelays  []string
	service      string
	dns, srv     []string
	peersFile    string
	key          string
	certificate  string
	certKey, ca  string
	metrics      string
	control      string
	allow, deny  []string
	allowMesh    []string
	meshAddress  string
	readOnly     bool
	emitOnly     bool
	asSnowSignal bool
}

func newRelayCommand(a *app) *cobra.Command {
	o := relayOptions{}
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Carry UDP broadcasts between segments",
		Long: `Carry UDP broadcasts between network segments that only unicast joins: a search
cried on one segment is heard on all others as if it had been sent there, with
its real source, so that the answer comes back directly.

Run one relay on each segment, or several for one of them to stand by, and tell
each about the others: by address (--other-relays), or by the name of a service
of Docker Swarm (the environment variable SERVICENAME), Compose or Kubernetes
(--dns). SnowSignal's relays can be among them; its options and environment
variables work here too, and so does its name: called as snowsignal, this
program takes its place.

Relays with a key (fathom relay keygen) or certificates trust each other and
nobody else, and what they carry is sealed. Without, whoever reaches the mesh
port can send broadcasts to the segments.

Capturing needs CAP_NET_RAW, which is kept to come back after an interface was
made anew. CAP_NET_ADMIN at the start gives larger receive buffers.`,
		Example: `  fathom relay -t eth0 --other-relays 198.51.100.7 198.51.100.9
  fathom relay --preset epics-ca --preset epics-pva --dns relays.example.net --key mesh.key
  SERVICENAME=relay fathom relay -t eth1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runRelay(cmd, &o) },
	}
	f := cmd.Flags()
	f.StringSliceVarP(&o.opts.Interfaces, "target-interface", "t", []string{"eth0"}, "relay the broadcasts of this `interface`; several: of each, and between them")
	f.StringSliceVarP(&o.ports, "broadcast-port", "b", []string{strconv.Itoa(defaultBroadcastPort)}, "relay broadcasts to this UDP `port` or range FIRST-LAST; may be given several times")
	f.StringSliceVar(&o.presets, "preset", nil, "relay the ports and groups of a `protocol`: "+strings.Join(relay.PresetNames(), ", "))
	f.StringSliceVar(&o.groups, "group", nil, "relay multicast to this `address`, or address:port, too; on all broadcast ports if there is none; between ours only")
	f.Uint16VarP(&o.opts.MeshPort, "mesh-port", "m", relay.DefaultMeshPort, "UDP `port` of the mesh, here and at the peers")
	f.StringVar(&o.meshAddress, "mesh-address", "", "hear the mesh on this `address` only (default: all)")
	f.StringSliceVar(&o.otherRelays, "other-relays", nil, "the other relays: `address` or name, with :PORT where it is not the mesh port")
	f.StringVar(&o.service, "service", "", "find the other relays as the tasks of this Docker Swarm `service`")
	f.StringSliceVar(&o.dns, "dns", nil, "find the other relays as the addresses of this DNS `name`")
	f.StringSliceVar(&o.srv, "srv", nil, "find the other relays by the SRV records of this DNS `name`")
	f.StringVar(&o.peersFile, "peers-file", "", "find the other relays in this `file`, one a line; it is read again when it changes")
	f.StringVar(&o.key, "key", "", "`file` with the key of the mesh, as keygen makes it; several keys, one a line, for changing it; read again on SIGHUP")
	f.StringVar(&o.certificate, "cert", "", "in place of a key: `file` with this relay's certificate (PEM)")
	f.StringVar(&o.certKey, "cert-key", "", "with --cert: `file` with the certificate's private key")
	f.StringVar(&o.ca, "ca", "", "with --cert: `file` with the certificates of those who sign relays'")
	cmd.MarkFlagsMutuallyExclusive("key", "cert")
	f.BoolVar(&o.opts.Compat, "compat", false, "with a key: talk with SnowSignal's relays all the same, in the open")
	f.BoolVar(&o.opts.OnlyPeers, "only-peers", false, "in an open mesh: hear peers only")
	f.StringSliceVar(&o.allowMesh, "allow-mesh", nil, "with --only-peers: hear this `network` as well")
	f.StringSliceVar(&o.allow, "allow-source", nil, "relay broadcasts from this `network` only; the longest prefix of --allow-source and --deny-source wins")
	f.StringSliceVar(&o.deny, "deny-source", nil, "relay no broadcasts from this `network`")
	f.BoolVar(&o.readOnly, "read-only", false, "put nothing on the segments: only send what is heard there")
	f.BoolVar(&o.emitOnly, "emit-only", false, "send nothing of the segments: only put there what the mesh brings")
	cmd.MarkFlagsMutuallyExclusive("read-only", "emit-only")
	f.BoolVar(&o.opts.Rewrite, "rewrite", false, "emit what was sent to 255.255.255.255 to the segment's own broadcast address")
	f.BoolVar(&o.opts.Validate, "validate", false, "on the ports of Channel Access and PVAccess: relay well-formed messages only")
	f.BoolVar(&o.opts.CountSearches, "count-searches", false, "count who searches for which process variable, for fathom relay searches")
	f.BoolVar(&o.opts.Echo, "echo", false, "without peers: repeat each broadcast once on its own segment, as a test")
	f.IntVar(&o.opts.SourceRate, "source-rate", relay.DefaultSourceRate, "relay at most so many `broadcasts` per second of one source; 0 for no limit")
	f.IntVar(&o.opts.SegmentRate, "segment-rate", relay.DefaultSegmentRate, "relay at most so many `broadcasts` per second of a segment; 0 for no limit")
	f.IntVar(&o.opts.RepeatRate, "repeat-rate", relay.DefaultRepeatRate, "relay at most so many identical `broadcasts` per second; 0 for no limit")
	f.IntVar(&o.opts.MeshMTU, "mesh-mtu", relay.DefaultMeshMTU, "longest UDP payload, in `bytes`, that crosses the mesh in one piece")
	f.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics, /healthz and /readyz on this `host:port`")
	f.StringVar(&o.control, "control", "", "`name` by which status, watch, searches and test find this relay (default: the mesh port)")
	f.StringVarP(&o.logLevel, "log-level", "l", "info", "debug, info, warning, error or critical")

	cmd.AddCommand(newRelayStatusCommand(a), newRelayWatchCommand(a), newRelaySearchesCommand(a), newRelayTestCommand(a), newRelayKeygenCommand(a))
	return cmd
}

// originEnvironment gives the options that SnowSignal reads from the environment, under its own names.
var originEnvironment = []struct{ option, variable string }{
	{"target-interface", "TARGET_INTERFACE"},
	{"broadcast-port", "BDCAST_PORT"},
	{"mesh-port", "MESH_PORT"},
	{"log-level", "LOGLEVEL"},
	{"service", "SERVICENAME"},
}

// applyOriginEnvironment sets what neither the command line nor our own variables did.
func (a *app) applyOriginEnvironment(cmd *cobra.Command) error {
	for _, e := range originEnvironment {
		f := cmd.Flags().Lookup(e.option)
		value, ok := a.lookupEnv(e.variable)
		if f.Changed || !ok || value == "" {
			continue
		}
		if err := cmd.Flags().Set(e.option, value); err != nil {
			return usagef("environment variable %s=%q: %w", e.variable, value, valueError(f, err))
		}
	}
	return nil
}

// originLevels are the names of SnowSignal's log levels.
var originLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn, "error": slog.LevelError, "critical": slog.LevelError + 4,
}

func parsePrefixes(option string, texts []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, usagef("--%s %q: want a network such as 192.0.2.0/24", option, text)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, nil
}

// finish makes the relay's options from those of the command line.
func (o *relayOptions) finish(cmd *cobra.Command) (err error) {
	r := &o.opts
	if len(o.presets) > 0 && !cmd.Flags().Changed("broadcast-port") {
		o.ports = nil
	}
	if r.Ports, err = relay.ParsePorts(o.ports); err != nil {
		return usagef("--broadcast-port: %w", err)
	}
	if r.Groups, err = relay.ParseGroups(o.groups); err != nil {
		return usagef("--group: %w", err)
	}
	for _, name := range o.presets {
		p, err := relay.FindPreset(name)
		if err != nil {
			return usagef("--preset: %w", err)
		}
		r.Ports = append(r.Ports, p.Ports...)
		r.Groups = append(r.Groups, p.Groups...)
	}
	if o.meshAddress != "" {
		if r.MeshAddress, err = netip.ParseAddr(o.meshAddress); err != nil {
			return usagef("--mesh-address %q: want an IP address", o.meshAddress)
		}
	}
	if r.AllowSources, err = parsePrefixes("allow-source", o.allow); err != nil {
		return err
	}
	if r.DenySources, err = parsePrefixes("deny-source", o.deny); err != nil {
		return err
	}
	if r.AllowMesh, err = parsePrefixes("allow-mesh", o.allowMesh); err != nil {
		return err
	}
	switch {
	case o.readOnly:
		r.Direction = relay.ReadOnly
	case o.emitOnly:
		r.Direction = relay.EmitOnly
	}
	for _, name := range slices.Concat(o.otherRelays, o.dns) {
		if strings.TrimSpace(name) == "" {
			return usagef("an empty name for another relay")
		}
	}
	return nil
}

// security reads the key, or the certificate.
func (o *relayOptions) security() (keys []mesh.Key, identity *mesh.Identity, err error) {
	switch {
	case o.key != "":
		keys, err = mesh.ReadKeyFile(o.key)
		return keys, nil, err
	case o.certificate != "":
		if o.certKey == "" || o.ca == "" {
			return nil, nil, usagef("--cert needs --cert-key and --ca")
		}
		identity, err = mesh.ReadIdentity(o.certificate, o.certKey, o.ca)
		return nil, identity, err
	}
	if o.opts.Compat {
		return nil, nil, usagef("--compat is for a mesh with a key: without one, SnowSignal's relays are welcome anyway")
	}
	return nil, nil, nil
}

// relayGC is how much a relay's heap may grow between two collections, in percent of what is in use. It
// allocates next to nothing while it works. The environment variable GOGC wins.
const relayGC = 50

func (a *app) runRelay(cmd *cobra.Command, o *relayOptions) error {
	ctx := cmd.Context()
	if err := a.applyOriginEnvironment(cmd); err != nil {
		return err
	}
	level, ok := originLevels[strings.ToLower(o.logLevel)]
	if !ok {
		return usagef("--log-level %q: want debug, info, warning, error or critical", o.logLevel)
	}
	if a.level.Level() > level || cmd.Flags().Changed("log-level") || a.level.Level() == slog.LevelWarn {
		a.level.Set(level)
	}
	log := a.log
	if a.calledAs == "snowsignal" {
		o.asSnowSignal = true
		log = slog.New(newOriginLog(a.stderr, &a.level))
	}
	if err := o.finish(cmd); err != nil {
		return err
	}
	keys, identity, err := o.security()
	if err != nil {
		return err
	}
	if _, given := a.lookupEnv("GOGC"); !given {
		debug.SetGCPercent(relayGC)
	}
	r := &o.opts
	r.Keys, r.Identity = keys, identity
	r.Sources = o.sources()
	r.RequireInterfaces = o.asSnowSignal
	r.BindToInterface = o.asSnowSignal
	r.Echo = r.Echo || o.asSnowSignal
	r.Version = buildVersion().Version
	r.Log = log
	registry := prometheus.NewRegistry()
	r.Metrics = registry

	name := o.control
	if name == "" {
		name = strconv.Itoa(int(r.MeshPort))
		if o.asSnowSignal { // there may be one for each interface
			name = r.Interfaces[0] + "-" + name
		}
	}
	rl, err := relay.New(*r)
	switch {
	case errors.Is(err, relay.ErrOptions):
		return usagef("%w", err)
	case errors.Is(err, os.ErrPermission):
		return withHint(err, "Run as root, or give the program the capability: setcap cap_net_raw+ep "+programPath())
	case err != nil:
		return err
	}
	defer rl.Close()
	listener, err := control.Listen(name)
	if err != nil {
		return withHint(err, "Name this one with --control.")
	}
	// An interface that is made anew needs new sockets.
	if err := probe.DropPrivileges(true); err != nil {
		listener.Close()
		return fmt.Errorf("drop privileges: %w", err)
	}
	debug.FreeOSMemory()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return staySmall(ctx, log) })
	if err := serveHealth(ctx, group, o.metrics, registry, func() bool { return rl.Status().Ready }); err != nil {
		listener.Close()
		return err
	}
	group.Go(func() error { return control.Serve(ctx, listener, rl, log) })
	group.Go(func() error { return rl.Run(ctx) })
	if o.key != "" {
		group.Go(func() error { return rereadKeys(ctx, rl, o.key, log) })
	}
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// smallInterval is how often the memory of the program's own file is given back.
const smallInterval = 30 * time.Second

// staySmall keeps the pages of the program's file that are in memory to those that a relay uses. Most of a program that can do
// so much else is only looked at when it starts, or once in a while.
func staySmall(ctx context.Context, log *slog.Logger) error {
	ticker := time.NewTicker(smallInterval)
	defer ticker.Stop()
	for {
		if err := rawio.ReleaseProgram(); err != nil {
			log.Debug("memory", "error", err)
			return nil // it is a matter of a few megabytes
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// sources gives where peers come from.
func (o *relayOptions) sources() []discovery.Source {
	port := o.opts.MeshPort
	var sources []discovery.Source
	if len(o.otherRelays) > 0 {
		sources = append(sources, discovery.Static(port, o.otherRelays...))
	}
	if o.service != "" {
		sources = append(sources, discovery.Tasks(port, o.service))
	}
	for _, name := range o.dns {
		sources = append(sources, discovery.Name(port, name))
	}
	for _, name := range o.srv {
		sources = append(sources, discovery.SRV(name))
	}
	if o.peersFile != "" {
		sources = append(sources, discovery.File(port, o.peersFile))
	}
	return sources
}

// rereadKeys takes the keys of a file that has changed, when told to by SIGHUP. Without usable keys, the old ones stay.
func rereadKeys(ctx context.Context, r *relay.Relay, path string, log *slog.Logger) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		keys, err := mesh.ReadKeyFile(path)
		if err == nil {
			err = r.SetKeys(keys)
		}
		if err != nil {
			log.Error("keeping the old keys", "error", err)
			continue
		}
		log.Info("read the keys again", "file", path, "keys", len(keys))
	}
}

// defaultTestWait is how long a test waits for reports. A broadcast crosses in less than a millisecond, but a
// path may be slow.
const defaultTestWait = 2 * time.Second
