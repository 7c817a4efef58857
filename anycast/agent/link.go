// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/internal/rawio"
)

// link keeps the connection to one controller. What comes by it becomes work of the plane; what the plane has for
// the controller waits in the spool.
type link struct {
	agent *Agent
	plane *plane
	conf  Link
	log   *slog.Logger
	spool *spool
	// opened is what this controller waits for.
	opened opened

	// These belong to the plane.
	sessions int
	queued   int      // memory of orders, in bytes
	express  []*order // without a rate; the next one is the last
	forwards bool
	opening  []uint32 // sessions to confirm when the filters let their answers pass
	dirty    bool     // the spool has answers that the writer was not told of
	notified int64    // mono

	// These belong to the goroutine of run.
	spoken Dialect // on the last connection that got so far; Auto before the first

	jobs jobs

	mu    sync.Mutex // guards state
	state LinkStats
	local netip.Addr // of the last connection
}

// Connecting again: after firstPause, twice as long each time, up to maxPause; anew when a connection was good for stable.
const (
	firstPause = 500 * time.Millisecond
	maxPause   = 15 * time.Second
	stable     = 10 * time.Second
	// dialTimeout bounds the wait for a connection, and for the first answer on it.
	dialTimeout = 10 * time.Second
	// pingEvery is how often a silent connection to one of our controllers is tried, pingTimeout how long for.
	pingEvery   = 20 * time.Second
	pingTimeout = 10 * time.Second
	// userTimeout is when TCP gives up what is not acknowledged. Voltadomar's controllers throw out who pings
	// more than every 5 minutes, so towards them this, and TCP's own keep-alive, must do.
	userTimeout = 20 * time.Second
	// window is how much a controller may send ahead, in bytes.
	window = 1 << 20
)

var (
	errWelcome = errors.New("controller did not say welcome")
	errDeaf    = errors.New("controller sends orders but does not take in the reports")
)

func newLink(a *Agent, i int) *link {
	c := a.opts.Links[i]
	return &link{
		agent: a, plane: a.plane, conf: c, log: a.log.With("controller", c.Address), spool: newSpool(a.opts.Spool),
		opened: opened{ready: make(chan struct{}, 1)},
		state:  LinkStats{Address: c.Address, Dialect: c.Dialect, Since: time.Now()},
	}
}

// add keeps an answer for the controller. The plane calls it.
func (l *link) add(time int64, pkt []byte) {
	l.spool.add(time, pkt)
	l.dirty = true
}

// report tells what became of an order. The plane calls it.
func (l *link) report(r *report) {
	if l.forwards {
		l.spool.seal() // Voltadomar's controllers get everything in the order in which it happened
	}
	l.spool.report(r)
	l.dirty = true
}

// refuse is report for others than the plane.
func (l *link) refuse(r *report) {
	l.plane.do(func() { l.report(r) })
}

// run connects again and again until ctx ends.
func (l *link) run(ctx context.Context) {
	pause := firstPause
	for {
		began := time.Now()
		err := l.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if l.up(false) && time.Since(began) >= stable {
			pause = firstPause
		}
		l.log.Warn("no connection to the controller", "error", err)
		// Not all sites of a fleet at once, when their controller comes back.
		t := time.NewTimer(time.Duration(float64(pause) * (0.75 + rand.Float64()/2)))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		pause = min(2*pause, maxPause)
	}
}

// connect makes one connection and serves it until it ends, in the dialect that the controller understands.
func (l *link) connect(ctx context.Context) error {
	if d := l.conf.Dialect; d == Native || d == Auto {
		err := l.serve(ctx, Native, l.native)
		if d == Native || status.Code(err) != codes.Unimplemented {
			return err
		}
	}
	d := l.conf.Dialect
	if d == Auto {
		d = Seed
	}
	err := l.serve(ctx, d, l.origin)
	if l.conf.Dialect == Auto && status.Code(err) == codes.Internal && l.jobs.none() {
		// That is how a controller of the other dialect says that it has not understood.
		l.log.Info("controller does not understand dialect seed, trying go")
		err = l.serve(ctx, Go, l.origin)
	}
	return err
}

// serve dials and has f do the rest.
func (l *link) serve(ctx context.Context, d Dialect, f func(context.Context, Dialect, *grpc.ClientConn) error) error {
	l.mu.Lock()
	l.state.Dialect = d
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cc, err := l.dial(d)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", l.conf.Address, err)
	}
	defer cc.Close()
	return f(ctx, d, cc)
}

func (l *link) dial(d Dialect) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if l.conf.TLS != nil {
		c := l.conf.TLS.Clone()
		c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
		creds = credentials.NewTLS(c)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(l.open),
		grpc.WithUserAgent("fathom-agent/" + l.agent.opts.Version),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: dialTimeout}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
	}
	if d == Native {
		opts = append(opts, grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true}))
	}
	return grpc.NewClient("passthrough:///"+l.conf.Address, opts...)
}

// open makes a connection, and remembers from which address.
func (l *link) open(ctx context.Context, address string) (net.Conn, error) {
	dial := l.agent.opts.Dial
	if dial == nil {
		d := net.Dialer{
			Timeout: dialTimeout, Control: rawio.UserTimeout(userTimeout),
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		}
		dial = func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
	}
	c, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil {
		l.mu.Lock()
		l.local = a.Addr().Unmap().WithZone("")
		l.mu.Unlock()
	}
	return c, nil
}

// begin prepares for a controller that speaks a dialect. If the last one spoke another, it was another
// one, and nothing of what it left is of use.
func (l *link) begin(d Dialect) {
	if (l.spoken == Native) != (d == Native) && l.spoken != Auto {
		l.spool.reset()
		l.jobs.forget()
		l.plane.ask(func() { l.plane.keepSessions(l, nil) })
	}
	l.spoken = d
}

// up notes that the controller is there, or is not, and tells how it was before.
func (l *link) up(connected bool) (before bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before = l.state.Connected
	if before != connected {
		l.state.Connected, l.state.Since = connected, time.Now()
		if connected {
			l.state.Connects++
		}
	}
	return before
}

// invalid counts a message that makes no sense. The first few are logged.
func (l *link) invalid(what string, err error) {
	l.mu.Lock()
	l.state.Invalid++
	n := l.state.Invalid
	l.mu.Unlock()
	if n <= 10 {
		l.log.Warn("controller sent something that makes no sense", "what", what, "error", err)
	}
}

func (l *link) stats() LinkStats {
	l.mu.Lock()
	s := l.state
	l.mu.Unlock()
	s.Spooled, s.Dropped = l.spool.stats()
	return s
}

// voltaDialect is how package volta calls it.
func voltaDialect(d Dialect) volta.Dialect {
	if d == Go {
		return volta.Go
	}
	return volta.Seed
}
