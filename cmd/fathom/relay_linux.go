// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/relay"
	"github.com/seed5728abee/fathom/relay/control"
	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/discovery"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// defaultBroadcastPort is SnowSignal's: PVAccess searches.
const defaultBroadcastPort = 5076

type relayOptions struct {
	opts relay.Options

	presets      []relay.Preset
	logLevel     logLevel
	otherRelays  []string
	service      string
	dns, srv     []string
	peersFile    string
	key          string
	certificate  string
	certKey, ca  string
	metrics      string
	control      controlName
	meshAddress  addrValue
	readOnly     bool
	emitOnly     bool
	asSnowSignal bool
}

func newRelayCommand(a *app) *cobra.Command { return newRelayCommandFor(a, &relayOptions{}) }

// newRelayCommandFor makes the command, whose options go to o.
func newRelayCommandFor(a *app, o *relayOptions) *cobra.Command {
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
		Args:        noArgs,
		Annotations: map[string]string{runsItself: "yes"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.runRelay(cmd, o) },
	}
	f := cmd.Flags()
	listVarP(f, &o.opts.Interfaces, "target-interface", "t", "interface", "relay the broadcasts of this `interface`; several: of each, and between them", parseInterface, "eth0")
	listVarP(f, &o.opts.Ports, "broadcast-port", "b", "port", "relay broadcasts to this UDP `port` or range FIRST-LAST; may be given several times",
		parsePorts, datagram.PortRange{First: defaultBroadcastPort, Last: defaultBroadcastPort})
	listVarP(f, &o.presets, "preset", "", "protocol", "relay the ports and groups of a `protocol`: "+strings.Join(relay.PresetNames(), ", "), parsePreset)
	listVarP(f, &o.opts.Groups, "group", "", "address", "relay multicast to this `address`, or address:port, too; without a port on all that are relayed; not to relays of SnowSignal", parseGroups)
	f.Uint16VarP(&o.opts.MeshPort, "mesh-port", "m", relay.DefaultMeshPort, "UDP `port` of the mesh, here and at the peers")
	f.Var(&o.meshAddress, "mesh-address", "hear the mesh on this `address` only (default: all)")
	listVarP(f, &o.otherRelays, "other-relays", "", "address", "the other relays, one or several: `address` or name, with :PORT where it is not the mesh port", parseEndpoint)
	f.StringVar(&o.service, "service", "", "find the other relays as the tasks of this Docker Swarm `service`")
	listVarP(f, &o.dns, "dns", "", "name", "find the other relays as the addresses of this DNS `name`", parseName)
	listVarP(f, &o.srv, "srv", "", "name", "find the other relays by the SRV records of this DNS `name`", parseName)
	f.StringVar(&o.peersFile, "peers-file", "", "find the other relays in this `file`, one a line; it is read again when it changes")
	f.StringVar(&o.key, "key", "", "`file` with the key of the mesh, as keygen makes it; several keys, one a line, for changing it; read again on SIGHUP")
	f.StringVar(&o.certificate, "cert", "", "in place of a key: `file` with this relay's certificate (PEM); read again on SIGHUP, with the next two")
	f.StringVar(&o.certKey, "cert-key", "", "with --cert: `file` with the certificate's private key")
	f.StringVar(&o.ca, "ca", "", "with --cert: `file` with the certificates of those who sign relays'")
	cmd.MarkFlagsMutuallyExclusive("key", "cert")
	f.BoolVar(&o.opts.Compat, "compat", false, "with a key: talk with SnowSignal's relays all the same, in the open")
	f.BoolVar(&o.opts.OnlyPeers, "only-peers", false, "in an open mesh: hear peers only")
	listVarP(f, &o.opts.AllowMesh, "allow-mesh", "", "network", "with --only-peers: hear this `network` as well", parseNetwork)
	listVarP(f, &o.opts.AllowSources, "allow-source", "", "network", "relay broadcasts from this `network` only; the longest prefix of --allow-source and --deny-source wins", parseNetwork)
	listVarP(f, &o.opts.DenySources, "deny-source", "", "network", "relay no broadcasts from this `network`", parseNetwork)
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
	f.Var(&o.control, "control", "`name` by which status, watch, searches and test find this relay (default: the mesh port)")
	f.VarP(&o.logLevel, "log-level", "l", "log this `level` and what is worse: debug, info, warning, error or critical")

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
		if err := f.Value.Set(value); err != nil {
			return usagef("environment variable %s=%q: %w", e.variable, value, valueError(f, err))
		}
		f.Changed = true
	}
	return nil
}

// finish makes the relay's options from those of the command line.
func (o *relayOptions) finish(cmd *cobra.Command) error {
	r := &o.opts
	// What a script leaves empty by mistake must not mean an open mesh, or no peers.
	var failed error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Value.String() == "" && failed == nil {
			failed = usagef("option --%s is empty", f.Name)
		}
	})
	switch {
	case failed != nil:
		return failed
	case r.MeshPort == 0:
		return usagef("--mesh-port 0: want a port from 1 to 65535")
	case o.certificate == "" && (o.certKey != "" || o.ca != ""):
		return usagef("--cert-key and --ca are for --cert")
	case o.certificate != "" && (o.certKey == "" || o.ca == ""):
		return usagef("--cert needs --cert-key and --ca")
	case r.Compat && o.key == "" && o.certificate == "":
		return usagef("--compat is for a mesh with a key: without one, SnowSignal's relays are welcome anyway")
	case len(r.AllowMesh) > 0 && !r.OnlyPeers:
		return usagef("--allow-mesh is for --only-peers: without it, everybody is heard")
	case o.service != "" && discovery.Check(o.service) != nil:
		return usagef("--service %q: want the name of a service", o.service)
	}
	for option, rate := range map[string]int{"source-rate": r.SourceRate, "segment-rate": r.SegmentRate, "repeat-rate": r.RepeatRate} {
		if rate < 0 {
			return usagef("--%s %d: want a whole number, 0 or more", option, rate)
		}
	}
	if _, _, err := net.SplitHostPort(o.metrics); err != nil && o.metrics != "" {
		return usagef("--metrics %q: want host:port", o.metrics)
	}
	if len(o.presets) > 0 && !cmd.Flags().Changed("broadcast-port") {
		r.Ports = nil
	}
	for _, p := range o.presets {
		r.Ports = append(r.Ports, p.Ports...)
		r.Groups = append(r.Groups, p.Groups...)
	}
	r.MeshAddress = netip.Addr(o.meshAddress)
	switch {
	case o.readOnly:
		r.Direction = relay.ReadOnly
	case o.emitOnly:
		r.Direction = relay.EmitOnly
	}
	return nil
}

// security reads the key, or the certificate.
func (o *relayOptions) security() (keys []mesh.Key, identity *mesh.Identity, err error) {
	switch {
	case o.key != "":
		keys, err = mesh.ReadKeyFile(o.key)
	case o.certificate != "":
		identity, err = mesh.ReadIdentity(o.certificate, o.certKey, o.ca)
	}
	return keys, identity, err
}

// relayGC is how much a relay's heap may grow between two collections, in percent of what is in use. It
// allocates next to nothing while it works. The environment variable GOGC wins.
const relayGC = 50

func (a *app) runRelay(cmd *cobra.Command, o *relayOptions) error {
	ctx := cmd.Context()
	if err := a.applyOriginEnvironment(cmd); err != nil {
		return err
	}
	level := slog.Level(o.logLevel)
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

	name := string(o.control)
	if name == "" {
		name = strconv.Itoa(int(r.MeshPort))
		if o.asSnowSignal { // there may be one for each interface
			name = r.Interfaces[0] + "-" + name
		}
	}
	r.Housekeeping = staySmall(log)
	rl, err := relay.New(*r)
	switch {
	case errors.Is(err, relay.ErrOptions):
		return usagef("%w", plainly(err))
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
	// Each interface, and the mesh, has a loop that keeps a processor to itself while it is busy.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + len(r.Interfaces) + 1)
	group, ctx := errgroup.WithContext(ctx)
	if err := serveHealth(ctx, group, o.metrics, registry, func() bool { return rl.Status().Ready }); err != nil {
		listener.Close()
		return err
	}
	group.Go(func() error { return control.Serve(ctx, listener, rl, log) })
	group.Go(func() error { return rl.Run(ctx) })
	if o.key != "" || o.certificate != "" {
		group.Go(func() error { return o.rereadSecrets(ctx, rl, log) })
	}
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// staySmall gives a function, to be called now and then, that keeps the pages of the program's file that are in memory to those
// that a relay uses. Most of a program that can do so much else is only looked at when it starts, or once in a while.
func staySmall(log *slog.Logger) func() {
	debug.FreeOSMemory()
	memory, err := rawio.FindProgramMemory()
	return func() {
		if err == nil {
			err = memory.Release()
		}
		if err != nil { // it is a matter of a few megabytes
			log.Debug("memory", "error", err)
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

// rereadSecrets reads the files of the key, or of the certificate, again when told to by SIGHUP. If that fails, what
// was read before stays.
func (o *relayOptions) rereadSecrets(ctx context.Context, r *relay.Relay, log *slog.Logger) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		keys, identity, err := o.security()
		switch {
		case err != nil:
		case identity != nil:
			err = r.SetIdentity(identity)
		default:
			err = r.SetKeys(keys)
		}
		switch {
		case err != nil:
			log.Error("cannot read the mesh's secrets again: those from before stay", "error", err)
		case identity != nil:
			log.Info("read the certificate again", "file", o.certificate, "name", identity.Name(), "until", identity.NotAfter())
		default:
			log.Info("read the keys again", "file", o.key, "keys", len(keys))
		}
	}
}

// defaultTestWait is how long a test waits for reports. A broadcast crosses in less than a millisecond, but a
// path may be slow.
const defaultTestWait = 2 * time.Second
