// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// Errors to branch on with [errors.Is]. What the controller said is in the text.
var (
	// ErrUnavailable: there is no connection, or it broke.
	ErrUnavailable = errors.New("no connection to the controller")
	// ErrDenied: the controller does not know the client, or its role does not allow the call.
	ErrDenied = errors.New("not allowed")
	// ErrInvalid: the request makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrQuota: the client, or the controller, has too much to do already.
	ErrQuota = errors.New("over quota")
	// ErrUnsupported: the controller has no such call. Voltadomar's have only Request.
	ErrUnsupported = errors.New("the controller does not support this")
	// ErrProtocol: the controller's answer makes no sense.
	ErrProtocol = errors.New("malformed answer of the controller")
)

// Options of a connection. One of TLS and Insecure must be set.
type Options struct {
	// TLS has the client's certificate and what it knows the controller by.
	TLS *tls.Config
	// Insecure connects in cleartext.
	Insecure bool
	// Dialer opens connections. Default: TCP.
	Dialer func(ctx context.Context, address string) (net.Conn, error)
}

// Client is a connection to a controller. Its methods may be called by several goroutines.
type Client struct {
	conn      *grpc.ClientConn
	measure   measurepb.MeasureClient
	enrolment measurepb.EnrolmentClient
	anycast   anycastpb.AnycastServiceClient
}

// keepaliveTime is how long a silent connection is trusted: NATs forget one after a few minutes. Voltadomar's controllers
// refuse pings more often than every five.
const keepaliveTime = 5*time.Minute + 10*time.Second

// Dial connects to a controller at HOST:PORT, and waits until that is done. Errors: ErrUnavailable, ErrInvalid.
func Dial(ctx context.Context, address string, o Options) (*Client, error) {
	if (o.TLS == nil) == !o.Insecure {
		return nil, fmt.Errorf("%w: want a TLS configuration, or cleartext, and not both", ErrInvalid)
	}
	creds := insecure.NewCredentials()
	if o.TLS != nil {
		creds = alertCredentials{credentials.NewTLS(o.TLS)}
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: 20 * time.Second}),
		grpc.WithDisableServiceConfig(),
	}
	if o.Dialer != nil {
		options = append(options, grpc.WithContextDialer(o.Dialer))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	c := &Client{
		conn: conn, measure: measurepb.NewMeasureClient(conn),
		enrolment: measurepb.NewEnrolmentClient(conn), anycast: anycastpb.NewAnycastServiceClient(conn),
	}
	if err := c.connect(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return c, nil
}

// connect waits for the first connection. Any call tells why there is none.
func (c *Client) connect(ctx context.Context) error {
	c.conn.Connect()
	for {
		state := c.conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			_, err := c.measure.Sites(ctx, &measurepb.SitesRequest{})
			if err == nil || c.conn.GetState() == connectivity.Ready {
				return nil
			}
			return fmt.Errorf("%w: %s", ErrUnavailable, status.Convert(err).Message())
		case connectivity.Idle, connectivity.Connecting:
		}
		if !c.conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
		}
	}
}

// Close ends the connection, and the calls under way with it.
func (c *Client) Close() error { return c.conn.Close() }

// errorOf makes the error of a call one to branch on.
func errorOf(ctx context.Context, call string, err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	var kind error
	switch s.Code() {
	case codes.Unavailable, codes.Aborted:
		kind = ErrUnavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		kind = ErrDenied
	case codes.InvalidArgument, codes.FailedPrecondition:
		kind = ErrInvalid
	case codes.ResourceExhausted:
		kind = ErrQuota
	case codes.Unimplemented:
		kind = ErrUnsupported
	case codes.NotFound:
		kind = anycast.ErrNoMeasurement
	case codes.Canceled, codes.DeadlineExceeded:
		if kind = context.Cause(ctx); kind != nil {
			return fmt.Errorf("%s: %w", call, kind)
		}
		kind = ErrUnavailable
	default:
		return fmt.Errorf("%s: %s (%s)", call, s.Message(), s.Code())
	}
	// Both sides have the same words for some things, which are said once.
	if what, ok := strings.CutSuffix(s.Message(), ": "+kind.Error()); ok {
		return fmt.Errorf("%s: %s: %w", call, what, kind)
	}
	return fmt.Errorf("%s: %w: %s", call, kind, strings.TrimPrefix(s.Message(), kind.Error()+": "))
}

// Targets are what to measure.
type Targets struct {
	// Text are addresses, names, and prefixes, of which each /24 or /48 inside gives one address.
	Text []string
	// Addrs are addresses, of both versions in any order. Millions of them are no problem.
	Addrs []netip.Addr
}

// A request's message has so many targets at most, which keeps it below 1 MiB.
const (
	chunkText  = 1024
	chunkAddrs = 32768
)

// Start begins a measurement and gives what it tells. An attached one is cancelled when the stream ends early, be it because
// ctx does or because the connection breaks; another goes on, and Follow finds it again.
// Errors: those of the package; ErrInvalid says which field of the definition is wrong.
func (c *Client) Start(ctx context.Context, d anycast.Definition, targets Targets, attached bool) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	call, err := c.measure.Start(ctx)
	if err == nil {
		err = sendTargets(call.Send, &measurepb.StartRequest{Definition: measurepb.FromDefinition(&d), Attached: attached}, targets)
	}
	if errors.Is(err, io.EOF) { // the controller knows why
		_, err = call.Recv()
	} else if err == nil {
		err = call.CloseSend()
	}
	return newStream(ctx, cancel, "start", call, err)
}

// Feed begins a catchment, latency or flipping measurement whose targets are sent while it runs. What it tells has to be read at the same time, with
// All. It is cut when the stream ends, or the connection breaks, before CloseSend; what was found by then is kept.
// Errors: as of Start.
func (c *Client) Feed(ctx context.Context, d anycast.Definition) (*Feed, error) {
	ctx, cancel := context.WithCancel(ctx)
	call, err := c.measure.Feed(ctx)
	if err == nil {
		if err = call.Send(&measurepb.StartRequest{Definition: measurepb.FromDefinition(&d)}); errors.Is(err, io.EOF) { // the controller knows why
			_, err = call.Recv()
		}
	}
	s, err := newStream(ctx, cancel, "feed", call, err)
	if err != nil {
		return nil, err
	}
	return &Feed{Stream: s, call: call}, nil
}

// Feed is a measurement that takes targets while it runs, and what it tells.
type Feed struct {
	*Stream
	call measurepb.Measure_FeedClient
}

// Send sends targets. It waits while the controller has more than it can probe soon. Not to be called by several goroutines at once.
// io.EOF means that the measurement is over or cut; All tells why.
func (f *Feed) Send(t Targets) error {
	err := sendTargets(f.call.Send, &measurepb.StartRequest{}, t)
	if err != nil && !errors.Is(err, io.EOF) {
		return errorOf(f.ctx, f.name, err)
	}
	return err
}

// CloseSend tells that there are no more targets: the measurement goes on to its end. Not to be called together with Send.
func (f *Feed) CloseSend() error { return errorOf(f.ctx, f.name, f.call.CloseSend()) }

func sendTargets(send func(*measurepb.StartRequest) error, m *measurepb.StartRequest, t Targets) error {
	for {
		n := min(len(t.Text), chunkText)
		m.Targets, t.Text = t.Text[:n], t.Text[n:]
		n = min(len(t.Addrs), chunkAddrs)
		for _, a := range t.Addrs[:n] {
			if a = a.Unmap().WithZone(""); a.Is4() {
				m.Targets4 = append(m.Targets4, a.AsSlice()...)
			} else {
				m.Targets6 = append(m.Targets6, a.AsSlice()...)
			}
		}
		t.Addrs = t.Addrs[n:]
		if err := send(m); err != nil {
			return err
		}
		if len(t.Text) == 0 && len(t.Addrs) == 0 {
			return nil
		}
		m = &measurepb.StartRequest{}
	}
}

// Follow tells what a measurement found so far, and goes on until it ends. Errors: anycast.ErrNoMeasurement, those of the
// package.
func (c *Client) Follow(ctx context.Context, id string) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	call, err := c.measure.Follow(ctx, &measurepb.FollowRequest{Id: id})
	return newStream(ctx, cancel, "follow", call, err)
}

// Event is something that a controller tells about a measurement: one of its fields is set.
type Event struct {
	// Measurement is its state: first of all, when it changes, and last of all.
	Measurement *anycast.Measurement
	Progress    *anycast.Progress
	// Results were found; all before them have been told.
	Results []anycast.Result
}

// Stream is what a controller tells about one measurement.
type Stream struct {
	ctx    context.Context
	cancel context.CancelFunc
	name   string
	call   interface {
		Recv() (*measurepb.Event, error)
	}
	first anycast.Measurement
	last  anycast.Measurement
}

// newStream waits for the first event, which tells whether the call succeeded.
func newStream(ctx context.Context, cancel context.CancelFunc, name string, call interface {
	Recv() (*measurepb.Event, error)
}, err error,
) (*Stream, error) {
	s := &Stream{ctx: ctx, cancel: cancel, name: name, call: call}
	if err != nil {
		cancel()
		return nil, errorOf(ctx, name, err)
	}
	e, err := s.next()
	if err == nil && e.Measurement == nil {
		err = fmt.Errorf("%s: %w: no measurement came first", name, ErrProtocol)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	s.first = *e.Measurement
	return s, nil
}

// Measurement is the measurement as last told.
func (s *Stream) Measurement() anycast.Measurement { return s.last }

// All gives the events, the first one included, until the measurement has ended. After an error there are no more. It is
// used once; leaving the loop ends the stream.
func (s *Stream) All() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		defer s.cancel()
		if !yield(Event{Measurement: &s.first}, nil) {
			return
		}
		for {
			e, err := s.next()
			if errors.Is(err, io.EOF) || !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Close ends the stream early.
func (s *Stream) Close() { s.cancel() }

func (s *Stream) next() (Event, error) {
	p, err := s.call.Recv()
	if errors.Is(err, io.EOF) {
		return Event{}, io.EOF
	}
	if err != nil {
		return Event{}, errorOf(s.ctx, s.name, err)
	}
	var e Event
	switch p := p.GetEvent().(type) {
	case *measurepb.Event_Measurement:
		var m anycast.Measurement
		if m, err = measurepb.ToMeasurement(p.Measurement); err == nil {
			e.Measurement, s.last = &m, m
		}
	case *measurepb.Event_Progress:
		e.Progress = new(measurepb.ToProgress(p.Progress))
	case *measurepb.Event_Found:
		e.Results, err = resultsOf(p.Found)
	default: // of a later version
	}
	if err != nil {
		return Event{}, fmt.Errorf("%s: %w: %w", s.name, ErrProtocol, err)
	}
	return e, nil
}

func resultsOf(found *measurepb.Found) ([]anycast.Result, error) {
	results := make([]anycast.Result, len(found.GetResults()))
	for i, p := range found.GetResults() {
		var err error
		if results[i], err = measurepb.ToResult(p); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// Cancel ends a measurement, or a schedule with the run that it is in. One that is over stays as it is.
// Errors: anycast.ErrNoMeasurement, those of the package.
func (c *Client) Cancel(ctx context.Context, id string) error {
	_, err := c.measure.Cancel(ctx, &measurepb.CancelRequest{Id: id})
	return errorOf(ctx, "cancel "+id, err)
}

// Delete forgets a measurement that is over, and its results. Errors: anycast.ErrNoMeasurement, those of the package.
func (c *Client) Delete(ctx context.Context, id string) error {
	_, err := c.measure.Delete(ctx, &measurepb.DeleteRequest{Id: id})
	return errorOf(ctx, "delete "+id, err)
}

// List gives the measurements that match, newest first.
func (c *Client) List(ctx context.Context, q anycast.Query) ([]anycast.Measurement, error) {
	resp, err := c.measure.List(ctx, measurepb.FromQuery(q))
	if err != nil {
		return nil, errorOf(ctx, "list", err)
	}
	list := make([]anycast.Measurement, len(resp.GetMeasurements()))
	for i, p := range resp.GetMeasurements() {
		if list[i], err = measurepb.ToMeasurement(p); err != nil {
			return nil, fmt.Errorf("list: %w: %w", ErrProtocol, err)
		}
	}
	return list, nil
}

// Result is a stored result and the measurement that found it.
type Result struct {
	Measurement string
	anycast.Result
}

// Results gives stored results that match. After an error there are no more.
func (c *Client) Results(ctx context.Context, q anycast.Query) iter.Seq2[Result, error] {
	return func(yield func(Result, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		call, err := c.measure.Results(ctx, measurepb.FromQuery(q))
		for err == nil {
			var e *measurepb.Event
			if e, err = call.Recv(); err != nil {
				break
			}
			var results []anycast.Result
			if results, err = resultsOf(e.GetFound()); err != nil {
				yield(Result{}, fmt.Errorf("results: %w: %w", ErrProtocol, err))
				return
			}
			for _, r := range results {
				if !yield(Result{e.GetFound().GetMeasurement(), r}, nil) {
					return
				}
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(Result{}, errorOf(ctx, "results", err))
		}
	}
}

// Sites gives the connected sites, by name.
func (c *Client) Sites(ctx context.Context) ([]anycast.Site, error) {
	resp, err := c.measure.Sites(ctx, &measurepb.SitesRequest{})
	if err != nil {
		return nil, errorOf(ctx, "sites", err)
	}
	sites := make([]anycast.Site, len(resp.GetSites()))
	for i, p := range resp.GetSites() {
		if sites[i], err = measurepb.ToSite(p); err != nil {
			return nil, fmt.Errorf("sites: %w: %w", ErrProtocol, err)
		}
	}
	return sites, nil
}

// Request sends a text request, such as "volta SITE HOST", to a controller of any kind, and gives the answer: code 200 and
// the result, or another code and what was wrong. An error means that there is no answer.
func (c *Client) Request(ctx context.Context, command string) (code int32, output string, err error) {
	resp, err := c.anycast.UserRequest(ctx, &anycastpb.Request{Command: command})
	return resp.GetCode(), resp.GetOutput(), errorOf(ctx, "request", err)
}

// Enroll carries a message of package enroll to the controller, and its answer back.
func (c *Client) Enroll(ctx context.Context, request []byte) ([]byte, error) {
	resp, err := c.enrolment.Enroll(ctx, &measurepb.EnrollRequest{Request: request})
	return resp.GetResponse(), errorOf(ctx, "enroll", err)
}

// Exchange makes the one call of an enrolment over a connection whose handshake is done, and closes the connection. It is
// the Exchange that enroll.Join wants.
func Exchange(ctx context.Context, conn net.Conn, request []byte) (reply []byte, err error) {
	conns := make(chan net.Conn, 1)
	conns <- conn
	c, err := Dial(ctx, conn.RemoteAddr().String(), Options{
		Insecure: true, // gRPC's part; the connection is TLS
		Dialer: func(context.Context, string) (net.Conn, error) {
			select {
			case conn := <-conns:
				return conn, nil
			default:
				return nil, net.ErrClosed // the request is bound to that one connection
			}
		},
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Enroll(ctx, request)
}
