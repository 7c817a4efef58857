// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed5728abee/fathom/relay"
	"github.com/seed5728abee/fathom/relay/epics"
	"github.com/seed5728abee/fathom/relay/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// relayed is a relay that says what it is told to say.
type relayed struct {
	status   relay.Status
	searches relay.SearchReport
	asked    string
	err      error
	events   []relay.Event
	watchers atomic.Int32
}

func (r *relayed) Status() relay.Status { return r.status }

func (r *relayed) Watch(ctx context.Context) <-chan relay.Event {
	events := make(chan relay.Event, len(r.events))
	for _, e := range r.events {
		events <- e
	}
	r.watchers.Add(1)
	context.AfterFunc(ctx, func() {
		r.watchers.Add(-1)
		close(events)
	})
	return events
}

func (r *relayed) Searches(top int, contains string) (relay.SearchReport, error) {
	r.asked = fmt.Sprint(top, contains)
	return r.searches, r.err
}

func (r *relayed) Test(ctx context.Context, port uint16) (iter.Seq[relay.TestReport], error) {
	if r.err != nil {
		return nil, r.err
	}
	return func(yield func(relay.TestReport) bool) {
		if yield(relay.TestReport{Peer: "this relay", Segment: fmt.Sprint(port), Outcome: "captured", Took: 7, OK: true}) {
			<-ctx.Done()
			yield(relay.TestReport{Peer: "192.0.2.1:7124", Outcome: "no report"})
		}
	}, nil
}

var turn atomic.Int32

// serve answers for r under a name of its own, until the test ends or stop is called.
func serve(t *testing.T, r *relayed) (name string, stop func()) {
	t.Helper()
	name = fmt.Sprintf("test-%d-%d", os.Getpid(), turn.Add(1))
	l, err := Listen(name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, r, slog.New(slog.DiscardHandler)) }()
	var done atomic.Bool
	stop = func() {
		if done.Swap(true) {
			return
		}
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server does not end")
		}
	}
	t.Cleanup(stop)
	return name, stop
}

func dial(t *testing.T, name string) *Client {
	t.Helper()
	c, err := Dial(name)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name() != name {
		t.Errorf("a client of %q, want %q", c.Name(), name)
	}
	return c
}

func TestStatus(t *testing.T) {
	r := &relayed{status: relay.Status{
		Version: "1.2.3", ID: "02:00:00:00:00:01", Started: time.Unix(1, 0).UTC(), Ready: true, Ports: "5076", Direction: "both",
		Segments: []relay.SegmentStatus{{Interface: "eth0", Up: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}, Dropped: map[string]uint64{"port": 3}}},
		Mesh:     relay.MeshStatus{Listen: netip.MustParseAddrPort("[::]:7124"), Mode: "sealed"},
		Peers:    []mesh.PeerStatus{{Number: 1, Address: netip.MustParseAddrPort("192.0.2.2:7124"), Kind: mesh.Ours, State: mesh.Up, RTT: time.Millisecond}},
	}}
	name, _ := serve(t, r)
	got, err := dial(t, name).Status(t.Context())
	if err != nil || !reflect.DeepEqual(got, r.status) {
		t.Errorf("%+v, %v, want %+v", got, err, r.status)
	}
}

func TestSearches(t *testing.T) {
	r := &relayed{searches: relay.SearchReport{Names: []epics.NameStats{{Name: "two:val"}}}}
	name, _ := serve(t, r)
	c := dial(t, name)
	got, err := c.Searches(t.Context(), 7, "a&b=c ")
	if err != nil || len(got.Names) != 1 || got.Names[0].Name != "two:val" || r.asked != "7a&b=c " {
		t.Errorf("%+v, %v, asked for %q", got, err, r.asked)
	}
	r.err = relay.ErrNotCounted
	if _, err := c.Searches(t.Context(), 7, ""); err == nil || !strings.Contains(err.Error(), "--count-searches") {
		t.Errorf("%v, want %v", err, r.err)
	}
}

func TestWatch(t *testing.T) {
	r := &relayed{events: []relay.Event{{Action: relay.Relayed, Length: 5}, {Action: relay.Dropped, Reason: "port", Missed: 2}}}
	name, stop := serve(t, r)
	c := dial(t, name)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := c.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []relay.Event
	for e, err := range events {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, e); len(got) == len(r.events) {
			break
		}
	}
	if !reflect.DeepEqual(got, r.events) {
		t.Errorf("%+v, want %+v", got, r.events)
	}
	// The relay notices that nobody watches any more.
	eventually(t, "the watcher is gone", func() bool { return r.watchers.Load() == 0 })

	// A stream ends with the client's wish, and with the relay: neither is an error of the stream's own.
	for _, end := range []func(){cancel, stop} {
		ctx := ctx
		if ctx.Err() != nil {
			ctx = t.Context()
		}
		if events, err = c.Watch(ctx); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err := range events {
			if err != nil {
				t.Fatalf("after %d events: %v", n, err)
			}
			if n++; n == len(r.events) {
				end()
			}
		}
		if n != len(r.events) {
			t.Errorf("%d events", n)
		}
		eventually(t, "the watcher is gone", func() bool { return r.watchers.Load() == 0 })
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrNoRelay) {
		t.Errorf("a relay that is gone: %v, want %v", err, ErrNoRelay)
	}
	if _, err := Dial(name); !errors.Is(err, ErrNoRelay) {
		t.Errorf("a relay that is gone: %v, want %v", err, ErrNoRelay)
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestTest(t *testing.T) {
	r := new(relayed)
	name, _ := serve(t, r)
	c := dial(t, name)
	reports, err := c.Test(t.Context(), 5076, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for x, err := range reports {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(x.Peer, " ", x.Segment, " ", x.Outcome, " ", x.Took, " ", x.OK))
	}
	if want := []string{"this relay 5076 captured 7ns true", "192.0.2.1:7124  no report 0s false"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	r.err = relay.ErrOptions
	if _, err := c.Test(t.Context(), 99, time.Second); err == nil || !strings.Contains(err.Error(), "bad options") {
		t.Errorf("%v, want %v", err, r.err)
	}
}

// What makes no sense is refused, with a reason.
func TestBadQuestions(t *testing.T) {
	name, _ := serve(t, new(relayed))
	c := dial(t, name)
	for _, q := range []struct {
		method, url string
		code        int
	}{
		{http.MethodGet, "/", http.StatusNotFound},
		{http.MethodPost, "/status", http.StatusMethodNotAllowed},
		{http.MethodGet, "/test?port=5076&wait=1s", http.StatusMethodNotAllowed},
		{http.MethodPost, "/test?port=5076", http.StatusBadRequest},
		{http.MethodPost, "/test?port=65536&wait=1s", http.StatusBadRequest},
		{http.MethodPost, "/test?port=-1&wait=1s", http.StatusBadRequest},
		{http.MethodPost, "/test?port=x&wait=1s", http.StatusBadRequest},
		{http.MethodPost, "/test?wait=61s", http.StatusBadRequest},
		{http.MethodPost, "/test?wait=-1s", http.StatusBadRequest},
		{http.MethodGet, "/searches?top=x", http.StatusBadRequest},
		{http.MethodGet, "/searches?top=-1", http.StatusBadRequest},
	} {
		req, err := http.NewRequestWithContext(t.Context(), q.method, "http://relay"+q.url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != q.code {
			t.Errorf("%s %s: %s, want %d", q.method, q.url, resp.Status, q.code)
		}
	}
}

func TestInUse(t *testing.T) {
	name, _ := serve(t, new(relayed))
	if _, err := Listen(name); !errors.Is(err, ErrInUse) {
		t.Errorf("%v, want %v", err, ErrInUse)
	}
}

// A server whose listener fails says so.
func TestListenerFails(t *testing.T) {
	l, err := Listen(fmt.Sprintf("test-%d-%d", os.Getpid(), turn.Add(1)))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(t.Context(), l, new(relayed), slog.New(slog.DiscardHandler)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want %v", err, net.ErrClosed)
	}
}

// aloneEnv marks the process that has a network namespace of its own, where no relay is but those of the test.
const aloneEnv = "FATHOM_CONTROL_ALONE"

func TestWhichRelay(t *testing.T) {
	if os.Getenv(aloneEnv) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWhichRelay$", "-test.v")
		cmd.Env = append(os.Environ(), aloneEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if uid := os.Getuid(); uid != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, os.ErrPermission) {
			t.Skip("needs a network namespace:", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	for _, name := range []string{"", "a"} {
		if _, err := Dial(name); !errors.Is(err, ErrNoRelay) {
			t.Errorf("none: %v, want %v", err, ErrNoRelay)
		}
	}
	first, _ := serve(t, &relayed{status: relay.Status{ID: "first"}})
	c, err := Dial("")
	if err != nil || c.Name() != first {
		t.Fatalf("the only one: %v", err)
	}
	if s, err := c.Status(t.Context()); err != nil || s.ID != "first" {
		t.Errorf("the only one: %+v, %v", s, err)
	}
	second, stop := serve(t, &relayed{status: relay.Status{ID: "second"}})
	if _, err := Dial(""); !errors.Is(err, ErrSeveral) || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), second) {
		t.Errorf("two: %v, want %v with their names", err, ErrSeveral)
	}
	if names, err := Running(); err != nil || !slices.Equal(names, []string{first, second}) {
		t.Errorf("%q, %v", names, err)
	}
	if s, err := dial(t, second).Status(t.Context()); err != nil || s.ID != "second" {
		t.Errorf("by its name: %+v, %v", s, err)
	}
	stop()
	if c, err := Dial(""); err != nil || c.Name() != first {
		t.Errorf("the one that is left: %v", err)
	}
}
