// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/seed5728abee/fathom/anycast/access"
	"github.com/seed5728abee/fathom/anycast/controller"
	"github.com/seed5728abee/fathom/anycast/enroll"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/store"
)

// serverLog is the log of commands that stay: it says what happens, not only what goes wrong.
func (a *app) serverLog() *slog.Logger {
	if a.level.Level() > slog.LevelInfo {
		a.level.Set(slog.LevelInfo)
	}
	return a.log
}

// addressFile is where a controller notes how others reach it, for enroll.
func addressFile(state string) string { return filepath.Join(state, "address") }

func readAddress(state string) (string, error) {
	text, err := os.ReadFile(addressFile(state))
	if errors.Is(err, os.ErrNotExist) {
		return "", usagef("how does the other host reach the controller? Say it with --address HOST:PORT")
	}
	return strings.TrimSpace(string(text)), err
}

// portRange is the option --range START-END.
type portRange struct{ start, end int }

func (r *portRange) String() string { return fmt.Sprintf("%d-%d", r.start, r.end) }
func (r *portRange) Type() string   { return "start-end" }

func (r *portRange) Set(s string) error {
	first, last, ok := strings.Cut(s, "-")
	start, err1 := strconv.Atoi(strings.TrimSpace(first))
	end, err2 := strconv.Atoi(strings.TrimSpace(last))
	if !ok || err1 != nil || err2 != nil {
		return errors.New("want START-END, such as 10000-20000")
	}
	r.start, r.end = start, end
	return nil
}

type controllerOptions struct {
	listen, address   string
	port              int
	ports             portRange
	block             int
	state, storeDir   string
	retention         time.Duration
	maxStore          int64
	name, metrics     string
	page              string
	hosts             []string
	insecure, origin  bool
	requests, running int
	targets           int
	probeRate         float64
}

func newAnycastControllerCommand(a *app) *cobra.Command {
	o := controllerOptions{ports: portRange{10000, 20000}}
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the controller of a fleet",
		Long: `Run the controller that agents attach to and that people ask.

On its first start it makes an authority of its own in --state: agents and
people then join with a token (fathom anycast enroll). Results are kept in a
SQLite file.

Voltadomar's agents and clients speak cleartext only. --insecure-origin lets
them in on the same port, while everything else needs a certificate. With
--insecure nothing does: whoever reaches the port can do everything, so keep it
inside a network that you trust.`,
		Example: `  fathom anycast controller --listen :50051 --address anycast.example.net:50051
  fathom anycast controller --port 50051 --range 10000-20000 --block 100 --insecure`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if given(cmd, "port") {
				o.listen = net.JoinHostPort("", strconv.Itoa(o.port))
			}
			return a.runController(cmd.Context(), &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", ":50051", "serve on this `host:port`")
	f.IntVar(&o.port, "port", 50051, "serve on this `port` of all addresses, as the original's option says it")
	cmd.MarkFlagsMutuallyExclusive("listen", "port")
	f.StringVar(&o.address, "address", "", "the `host:port` by which others reach this controller, for the tokens that enroll prints")
	f.Var(&o.ports, "range", "source ports of the probes, without the end; controllers that share agents' hosts need ranges of their own")
	f.IntVar(&o.block, "block", 100, "`ports` for one text request: at most so many hops times probes")
	a.registerState(cmd, &o.state)
	f.StringVar(&o.storeDir, "store", "", "`directory` of the results (default: results in --state)")
	durationVarP(f, &o.retention, "retention", "", 0, "forget measurements so long after their end; 0 keeps them")
	f.Int64Var(&o.maxStore, "store-limit", 0, "delete old measurements to keep the results below so many `bytes`; 0 for no limit")
	f.StringVar(&o.name, "name", "", "what agents and logs call this controller (default: the host's name)")
	f.StringArrayVar(&o.hosts, "host", nil, "another host `name` or address for the certificate")
	f.BoolVar(&o.insecure, "insecure", false, "do without certificates: everything is in cleartext, and allowed to all")
	f.BoolVar(&o.origin, "insecure-origin", false, "let Voltadomar's agents and clients in, in cleartext, beside members with certificates")
	cmd.MarkFlagsMutuallyExclusive("insecure", "insecure-origin")
	f.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics on this `host:port`")
	f.StringVar(&o.page, "web", "", "serve a page with the sites and measurements on this `host:port`; its address, with the token that opens it, is in the file page-url in --state")
	f.IntVar(&o.requests, "quota-requests", 0, "`requests` per minute for each member; 0 for no limit")
	f.IntVar(&o.running, "quota-measurements", 100, "`measurements` at once for each member; 0 for no limit")
	f.IntVar(&o.targets, "quota-targets", 20_000_000, "`targets` of one measurement; 0 for no limit")
	f.Float64Var(&o.probeRate, "quota-rate", 200_000, "`probes` per second for each member; 0 for no limit")
	return cmd
}

// controllerGC is how much a controller's heap may grow between two collections, in percent of what is in use: a
// thousand requests at once then stay below 64 MB, for hardly more work. The environment variable GOGC wins.
const controllerGC = 60

func (a *app) runController(ctx context.Context, o *controllerOptions) error {
	log := a.serverLog()
	if _, given := a.lookupEnv("GOGC"); !given {
		debug.SetGCPercent(controllerGC)
	}
	if err := os.MkdirAll(o.state, 0o700); err != nil {
		return err
	}
	var authority *enroll.Authority
	if !o.insecure {
		var err error
		if authority, err = enroll.Open(authorityDir(o.state), enroll.AuthorityOptions{}); err != nil {
			return err
		}
	}
	if o.address != "" {
		if err := os.WriteFile(addressFile(o.state), []byte(withPort(o.address)+"\n"), 0o600); err != nil {
			return err
		}
		if host, _, err := net.SplitHostPort(withPort(o.address)); err == nil {
			o.hosts = append(o.hosts, host)
		}
	}
	audit, err := access.OpenAudit(auditFile(o.state), access.AuditOptions{})
	if err != nil {
		return err
	}
	defer audit.Close()
	if o.storeDir == "" {
		o.storeDir = filepath.Join(o.state, "results")
	}
	results, err := store.Open(o.storeDir, store.Options{Retention: o.retention, MaxBytes: o.maxStore, Log: log})
	if err != nil {
		return err
	}
	defer results.Close()

	limits := access.Limits{Requests: o.requests, Measurements: o.running, Targets: o.targets, ProbeRate: o.probeRate}
	registry := prometheus.NewRegistry()
	c, err := controller.New(controller.Options{
		Start: o.ports.start, End: o.ports.end, Block: o.block, Name: o.name, Authority: authority, Hosts: o.hosts,
		Insecure: o.insecure || o.origin, Store: results, Registry: registry, Log: log, Audit: audit,
		Quotas: access.NewQuotas(func(enroll.Identity) access.Limits { return limits }),
	})
	if errors.Is(err, volta.ErrRange) {
		return usagef("%w", err)
	}
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if err := serveMetrics(ctx, group, o.metrics, registry); err != nil {
		listener.Close()
		return err
	}
	if err := servePage(ctx, group, o, c, log); err != nil {
		listener.Close()
		return err
	}
	group.Go(func() error { return c.Serve(ctx, listener) })
	return group.Wait()
}

// serveMetrics serves metrics at an address, unless that is empty, until ctx ends.
func serveMetrics(ctx context.Context, group *errgroup.Group, address string, registry *prometheus.Registry) error {
	return serveHealth(ctx, group, address, registry, nil)
}

// serveHealth serves metrics and, if ready tells about it, the answers that orchestrators of containers want: /healthz
// while the program runs, /readyz while it can do its work.
func serveHealth(ctx context.Context, group *errgroup.Group, address string, registry *prometheus.Registry, ready func() bool) error {
	if address == "" {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	if ready != nil {
		mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
		mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
			if !ready() {
				http.Error(w, "not ready", http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ready")
		})
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	group.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics: %w", err)
		}
		return nil
	})
	return nil
}

// addrList is an option that takes IP addresses, and may be given several times.
type addrList []netip.Addr

func (l *addrList) String() string {
	texts := make([]string, len(*l))
	for i, a := range *l {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

func (l *addrList) Type() string { return "address" }

func (l *addrList) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil {
			return errors.New("want an IP address, or several with commas between")
		}
		*l = append(*l, a.Unmap())
	}
	return nil
}
