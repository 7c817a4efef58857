// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/access"
	"github.com/seed5728abee/fathom/anycast/enroll"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// Options of a Controller. Start, End and Block must be set, and Authority or Insecure.
type Options struct {
	// Start and End bound the UDP source ports, ICMP identifiers and so on of the fleet's probes: [Start, End) within 1 to
	// 65536. Controllers that share agents' hosts need ranges of their own. Block is how many of them a text
	// request may have at most: hops times probes.
	Start, End, Block int
	// Name is what agents know the controller by. Default: the host's name.
	Name string
	// Authority knows the members of the fleet. Nil means no TLS.
	Authority *enroll.Authority
	// Hosts are the names and addresses in the controller's certificate, for other software than ours.
	Hosts []string
	// Insecure lets cleartext connections in. With an Authority they may do what Voltadomar's agents and clients do;
	// without one, everything.
	Insecure bool
	// Store keeps measurements. Default: the last 100, in memory.
	Store anycast.Store
	// Audit gets a line for every call of a person's or a program's, and for every one that is refused. Quotas bound
	// what each may ask for; without certificates their hosts do. Nil is neither.
	Audit  *access.Audit
	Quotas *access.Quotas
	// Programs are further text requests, by their first word. Those of other words are Voltadomar's.
	Programs map[string]anycast.NewProgram
	// Resolver looks up destinations and the names of routers. Default: the system's, each lookup bounded.
	Resolver *volta.Resolver
	// NameTimeout is how long a text request waits for the names of its routers, all together. Default 300 ms;
	// below 0 prints addresses only.
	NameTimeout time.Duration
	// MaxRequests is how many text requests run at once, three quarters of them of one client at most, and MaxWaiting how many of
	// one client wait for that. Defaults 1536 and 16384.
	MaxRequests, MaxWaiting int
	// Registry gets the metrics fathom_anycast_*. Default: none.
	Registry prometheus.Registerer
	// Log is for the operator. Default: slog.Default.
	Log *slog.Logger
}

// How connections are kept.
const (
	handshakeTimeout = 10 * time.Second
	// Agents behind NATs ping every 20 s; one that pings more often than every 5 s has a fault.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 15 * time.Second
	keepaliveMin     = 5 * time.Second
	// maxCalls is how many calls one connection may have open: a client's requests, run or waiting.
	maxCalls = 1 << 15
	// maxMessage is gRPC's own default, which the originals' messages fit in.
	maxMessage = 4 << 20
	// stopTimeout is how long calls may take to end when the controller stops.
	stopTimeout = 3 * time.Second
	// lookupTimeout bounds the lookup of a target's name.
	lookupTimeout = 5 * time.Second
)

// ErrOptions means that Options cannot be.
var ErrOptions = errors.New("impossible options")

// Controller is a controller. Make it with New, run it with Serve.
type Controller struct {
	opts     Options
	name     string
	log      *slog.Logger
	store    anycast.Store
	fleet    *fleet
	names    *volta.Resolver
	resolver *net.Resolver
	requests *admission
	lengths  lengths
	metrics  *metrics
	server   *grpc.Server

	base     context.Context // of measurements; ends with errStopping
	stopBase context.CancelCauseFunc
	storing  context.Context // of what is written; ends last
	stopping chan struct{}   // closed when streams are to end
	work     sync.WaitGroup  // measurements
	streams  sync.WaitGroup  // goroutines of agents' connections

	auditFailed sync.Once

	mu     sync.Mutex
	runs   map[string]*run // under way, or in unkept
	unkept map[string]*run // over, but the store did not take how
	served bool
}

// New makes a Controller. Errors: ErrOptions, volta.ErrRange, those of the authority.
func New(o Options) (*Controller, error) {
	blocks, err := volta.NewBlocks(o.Start, o.End, o.Block)
	if err != nil {
		return nil, fmt.Errorf("range %d-%d: %w", o.Start, o.End, err)
	}
	if o.Authority == nil && !o.Insecure {
		return nil, fmt.Errorf("%w: without certificates every link is in cleartext, which must be allowed: Insecure", ErrOptions)
	}
	for name, program := range o.Programs {
		if name == "" || program == nil || name == "volta" {
			return nil, fmt.Errorf("%w: program %q", ErrOptions, name)
		}
	}
	c := &Controller{
		opts: o, name: o.Name, log: cmp.Or(o.Log, slog.Default()), store: o.Store,
		names: cmp.Or(o.Resolver, new(volta.Resolver)), resolver: net.DefaultResolver,
		requests: newAdmission(cmp.Or(o.MaxRequests, 1536), cmp.Or(o.MaxWaiting, 16384)),
		stopping: make(chan struct{}), runs: map[string]*run{}, unkept: map[string]*run{},
	}
	if c.name == "" {
		c.name, _ = os.Hostname() // it is only for people
	}
	if c.names.DNS != nil {
		c.resolver = c.names.DNS
	}
	if c.store == nil {
		c.store = newMemory(keepInMemory)
	}
	c.opts.NameTimeout = cmp.Or(o.NameTimeout, 300*time.Millisecond)
	c.fleet = newFleet(blocks, c.log)
	c.metrics = newMetrics(c)
	if o.Registry != nil {
		if err := o.Registry.Register(c.metrics); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	c.base, c.stopBase = context.WithCancelCause(context.Background())
	t := &transport{cleartext: o.Insecure}
	if o.Authority != nil {
		config, err := o.Authority.ServerTLS(o.Hosts...)
		if err != nil {
			return nil, err
		}
		t = newTransport(config, o.Insecure)
	}
	c.server = grpc.NewServer(
		grpc.Creds(t), grpc.ForceServerCodecV2(volta.Codec()), grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxCalls),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.ChainUnaryInterceptor(c.unary), grpc.ChainStreamInterceptor(c.stream),
	)
	measurepb.RegisterMeasureServer(c.server, &measureService{Controller: c})
	measurepb.RegisterFleetServer(c.server, &fleetService{Controller: c})
	measurepb.RegisterEnrolmentServer(c.server, &enrolmentService{Controller: c})
	anycastpb.RegisterAnycastServiceServer(c.server, &anycastService{Controller: c})
	return c, nil
}

// Fleet is the connected sites, for programs in the same process.
func (c *Controller) Fleet() anycast.Fleet { return c.fleet }

// Serve serves on the listeners until ctx ends or one of them fails, and closes them. It goes on with what the controller
// before it was doing. At the end measurements are stopped and what they found is kept, and the connections are
// closed: it does not wait for clients or agents. A Controller serves once.
func (c *Controller) Serve(ctx context.Context, listeners ...net.Listener) error {
	c.mu.Lock()
	again := c.served
	c.served = true
	c.mu.Unlock()
	if again || len(listeners) == 0 {
		for _, l := range listeners {
			l.Close()
		}
		return fmt.Errorf("%w: a controller serves once, on at least one listener", ErrOptions)
	}
	if c.opts.Insecure {
		c.log.Warn("cleartext connections are allowed: whoever reaches the port can take part")
	}
	var stopStoring context.CancelFunc
	c.storing, stopStoring = context.WithCancel(context.WithoutCancel(ctx))
	defer stopStoring()

	// Before agents and clients come, so that what goes on is there when they ask for it.
	if err := c.resume(c.storing); err != nil {
		c.log.Error("nothing goes on from before", "error", err)
	}
	failed := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, l := range listeners {
		c.log.Info("controller serves", "address", l.Addr().String(), "name", c.name)
		serving.Go(func() {
			if err := c.server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				failed <- fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
		})
	}
	upkeep, stopUpkeep := context.WithCancel(ctx)
	defer stopUpkeep()
	serving.Go(func() { every(upkeep, time.Second, c.fleet.tick) })
	serving.Go(func() { every(upkeep, time.Second, func(time.Time) { c.keepAgain() }) }) // a store may be slow

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopUpkeep()
	c.stop(stopStoring)
	serving.Wait()
	return err
}

// every calls f again and again until ctx ends.
func every(ctx context.Context, interval time.Duration, f func(now time.Time)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			f(now)
		}
	}
}

// endsWithin waits for a channel to be closed, for a while.
func endsWithin(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// stop ends everything, in the order in which one thing needs the other, and none of it can take for ever: a program of
// the user's that ignores the end of its context is left behind.
func (c *Controller) stop(stopStoring context.CancelFunc) {
	c.mu.Lock() // so that no measurement is created any more
	c.stopBase(errStopping)
	c.mu.Unlock()
	measured := make(chan struct{})
	go func() { // ends when the measurements do
		c.work.Wait()
		close(measured)
	}()
	if !endsWithin(stopTimeout, measured) {
		c.log.Warn("measurements do not end; what the store has not taken is lost")
		stopStoring()
	}
	close(c.stopping) // streams and requests end
	served := make(chan struct{})
	go func() { // ends when the handlers have, whose connections Stop closes
		c.server.GracefulStop()
		c.streams.Wait()
		close(served)
	}()
	if !endsWithin(stopTimeout, served) {
		c.server.Stop()
	}
	if !endsWithin(stopTimeout, served) || !endsWithin(stopTimeout, measured) {
		c.log.Error("a request or a measurement ignores that it is to end")
	}
}

// keepAgain tries to keep what the store did not take.
func (c *Controller) keepAgain() {
	c.mu.Lock()
	var again []*run
	for _, r := range c.unkept {
		again = append(again, r)
	}
	c.mu.Unlock()
	for _, r := range again {
		c.keep(r, r.snapshot())
	}
}

type fleetService struct {
	measurepb.UnimplementedFleetServer
	*Controller
}

// Attach serves an agent.
func (s *fleetService) Attach(stream measurepb.Fleet_AttachServer) error { return s.attach(stream) }

type anycastService struct {
	anycastpb.UnimplementedAnycastServiceServer
	*Controller
}

// ControlStream serves one of the originals' agents.
func (s *anycastService) ControlStream(stream anycastpb.AnycastService_ControlStreamServer) error {
	return s.controlStream(stream)
}

// UserRequest runs a command.
func (s *anycastService) UserRequest(ctx context.Context, req *anycastpb.Request) (*anycastpb.Response, error) {
	return s.userRequest(ctx, req)
}

type enrolmentService struct {
	measurepb.UnimplementedEnrolmentServer
	*Controller
}

// Enroll gives a certificate to who proves a join token, or has one already.
func (s *enrolmentService) Enroll(ctx context.Context, req *measurepb.EnrollRequest) (*measurepb.EnrollResponse, error) {
	who := callerOf(ctx)
	if s.opts.Authority == nil || who.tls == nil {
		return nil, statusOf(errNoAuthority)
	}
	reply, id, err := s.opts.Authority.Respond(*who.tls, req.GetRequest())
	who.id = id
	s.audit(who, "enroll", "", err)
	if err != nil {
		s.log.Warn("enrolment refused", "peer", who.addr, "error", err)
	}
	return &measurepb.EnrollResponse{Response: reply}, nil // a refusal is in it
}

var errNoAuthority = errors.New("there is nothing to enrol in: want TLS, and a controller with an authority")
