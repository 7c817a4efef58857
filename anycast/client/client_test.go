// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server in memory until the test ends, and connects to it.
func serve(t *testing.T, register func(*grpc.Server)) *Client {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	register(s)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	c, err := Dial(t.Context(), "controller", Options{Insecure: true, Dialer: func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// origin is one of the originals' controllers: it knows text requests only.
type origin struct {
	anycastpb.UnimplementedAnycastServiceServer
}

func (origin) UserRequest(_ context.Context, r *anycastpb.Request) (*anycastpb.Response, error) {
	return &anycastpb.Response{Code: 400, Output: "Invalid command: " + r.GetCommand()}, nil
}

func TestOriginalController(t *testing.T) {
	c := serve(t, func(s *grpc.Server) { anycastpb.RegisterAnycastServiceServer(s, origin{}) })
	code, output, err := c.Request(t.Context(), "volta")
	if err != nil || code != 400 || output != "Invalid command: volta" {
		t.Errorf("%d %s %v", code, output, err)
	}
	if _, err := c.Sites(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("sites: %v", err)
	}
	if _, err := c.Start(t.Context(), anycast.Definition{Program: anycast.KindCatchment}, Targets{Text: []string{"192.0.2.1"}}, false); !errors.Is(err, ErrUnsupported) {
		t.Errorf("start: %v", err)
	}
}

// odd is a controller whose answers make no sense, or are refusals.
type odd struct {
	measurepb.UnimplementedMeasureServer
	got    []*measurepb.StartRequest
	events []*measurepb.Event
	err    error
}

func (o *odd) Start(s measurepb.Measure_StartServer) error {
	for {
		m, err := s.Recv()
		if err != nil {
			break
		}
		o.got = append(o.got, m)
	}
	return o.tell(s.Send)
}

func (o *odd) Follow(_ *measurepb.FollowRequest, s measurepb.Measure_FollowServer) error {
	return o.tell(s.Send)
}

func (o *odd) Results(_ *measurepb.ListRequest, s measurepb.Measure_ResultsServer) error {
	return o.tell(s.Send)
}

func (o *odd) tell(send func(*measurepb.Event) error) error {
	for _, e := range o.events {
		if err := send(e); err != nil {
			return err
		}
	}
	return o.err
}

func (o *odd) List(context.Context, *measurepb.ListRequest) (*measurepb.ListResponse, error) {
	return &measurepb.ListResponse{}, o.err
}

func (o *odd) Sites(context.Context, *measurepb.SitesRequest) (*measurepb.SitesResponse, error) {
	return &measurepb.SitesResponse{Sites: []*measurepb.Site{{Name: "a", Anycast: [][]byte{{1, 2, 3}}}}}, nil
}

func measurement(state measurepb.State) *measurepb.Event {
	return &measurepb.Event{Event: &measurepb.Event_Measurement{Measurement: &measurepb.Measurement{
		Id: "m", State: state, Definition: &measurepb.Definition{Program: &measurepb.Definition_Catchment{}},
	}}}
}

func TestErrors(t *testing.T) {
	o := &odd{}
	c := serve(t, func(s *grpc.Server) { measurepb.RegisterMeasureServer(s, o) })
	for code, want := range map[codes.Code]error{
		codes.Unavailable: ErrUnavailable, codes.Aborted: ErrUnavailable, codes.PermissionDenied: ErrDenied, codes.Unauthenticated: ErrDenied,
		codes.InvalidArgument: ErrInvalid, codes.ResourceExhausted: ErrQuota, codes.Unimplemented: ErrUnsupported, codes.NotFound: anycast.ErrNoMeasurement,
	} {
		o.err = status.Error(code, "the reason")
		_, err := c.List(t.Context(), anycast.Query{})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "the reason") {
			t.Errorf("%v becomes %v, want %v", code, err, want)
		}
		if _, err := c.Follow(t.Context(), "m"); !errors.Is(err, want) {
			t.Errorf("%v of a stream becomes %v", code, err)
		}
		for _, err := range c.Results(t.Context(), anycast.Query{}) {
			if !errors.Is(err, want) {
				t.Errorf("%v of results becomes %v", code, err)
			}
		}
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the user left"))
	if _, err := c.List(gone, anycast.Query{}); err == nil || !strings.Contains(err.Error(), "the user left") {
		t.Errorf("cancelled: %v", err)
	}

	o.err = nil
	if _, err := c.Sites(t.Context()); !errors.Is(err, ErrProtocol) {
		t.Errorf("malformed site: %v", err)
	}
	for name, events := range map[string][]*measurepb.Event{
		"nothing":        {},
		"progress first": {{Event: &measurepb.Event_Progress{Progress: &measurepb.Progress{}}}},
		"empty event":    {{}},
	} {
		o.events = events
		if _, err := c.Follow(t.Context(), "m"); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	o.events = []*measurepb.Event{measurement(measurepb.State_STATE_RUNNING), {Event: &measurepb.Event_Found{Found: &measurepb.Found{Results: []*measurepb.Result{{}}}}}}
	s, err := c.Follow(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	for _, err = range s.All() {
	}
	if !errors.Is(err, ErrProtocol) {
		t.Errorf("an unknown result: %v", err)
	}
}

func TestStream(t *testing.T) {
	o := &odd{events: []*measurepb.Event{
		measurement(measurepb.State_STATE_RUNNING),
		{Event: &measurepb.Event_Progress{Progress: &measurepb.Progress{Done: 1, Total: 2}}},
		{}, // of a later version
		{Event: &measurepb.Event_Found{Found: &measurepb.Found{Measurement: "m", Results: []*measurepb.Result{
			measurepb.FromResult(&anycast.Catch{Target: netip.MustParseAddr("192.0.2.9"), Receiver: "a"}),
		}}}},
		measurement(measurepb.State_STATE_DONE),
	}}
	c := serve(t, func(s *grpc.Server) { measurepb.RegisterMeasureServer(s, o) })
	targets := Targets{Text: []string{"a.example"}}
	for i := range 2*chunkAddrs + 5 {
		targets.Addrs = append(targets.Addrs, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	targets.Addrs = append(targets.Addrs, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("::ffff:192.0.2.1"))
	s, err := c.Start(t.Context(), anycast.Definition{Program: anycast.KindCatchment, Name: "n"}, targets, true)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for e, err := range s.All() {
		switch {
		case err != nil:
			t.Fatal(err)
		case e.Measurement != nil:
			kinds = append(kinds, e.Measurement.State.String())
		case e.Progress != nil:
			kinds = append(kinds, "progress")
		case e.Results != nil:
			kinds = append(kinds, e.Results[0].(*anycast.Catch).Receiver)
		default:
			kinds = append(kinds, "-")
		}
	}
	if got := strings.Join(kinds, " "); got != "running progress - a done" || s.Measurement().State != anycast.Done {
		t.Errorf("%s, %v", got, s.Measurement().State)
	}
	four, six, text := 0, 0, 0
	for i, m := range o.got {
		if (m.GetDefinition() != nil) != (i == 0) || m.GetAttached() != (i == 0) {
			t.Errorf("message %d has the definition: %v", i, m.GetDefinition())
		}
		four += len(m.GetTargets4()) / 4
		six += len(m.GetTargets6()) / 16
		text += len(m.GetTargets())
	}
	if len(o.got) != 3 || four != 2*chunkAddrs+6 || six != 1 || text != 1 {
		t.Errorf("%d messages with %d, %d and %d targets", len(o.got), four, six, text)
	}
}

func TestDial(t *testing.T) {
	if _, err := Dial(t.Context(), "x:1", Options{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("neither TLS nor cleartext: %v", err)
	}
	refuse := func(context.Context, string) (net.Conn, error) { return nil, errors.New("nobody listens") }
	if _, err := Dial(t.Context(), "x:1", Options{Insecure: true, Dialer: refuse}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	silent := func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if _, err := Dial(ctx, "x:1", Options{Insecure: true, Dialer: silent}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}
