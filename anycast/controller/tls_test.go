// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/client"
	"github.com/seed5728abee/fathom/anycast/enroll"
	"github.com/seed5728abee/fathom/anycast/volta"
)

// members is a controller with certificates, and a way to become a member.
type members struct {
	*started
	authority *enroll.Authority
}

func secured(t *testing.T, insecure bool) *members {
	t.Helper()
	a, err := enroll.Open(filepath.Join(t.TempDir(), "authority"), enroll.AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &members{start(t, Options{Authority: a, Insecure: insecure, Hosts: []string{"controller.example"}}), a}
}

// join makes a member in the way of a user: with a token.
func (m *members) join(role enroll.Role, name string) *enroll.Credentials {
	m.t.Helper()
	token, err := m.authority.Token(enroll.Identity{Role: role, Name: name}, time.Hour, "controller.example:50051")
	if err != nil {
		m.t.Fatal(err)
	}
	creds, err := enroll.Join(m.t.Context(), token, filepath.Join(m.t.TempDir(), "credentials"), enroll.JoinOptions{
		Exchange: client.Exchange,
		Dial:     func(ctx context.Context, _, address string) (net.Conn, error) { return m.dial(ctx, address) },
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return creds
}

func (m *members) clientOf(creds *enroll.Credentials) (*client.Client, error) {
	c, err := client.Dial(m.t.Context(), "controller.example:50051", client.Options{TLS: creds.ClientTLS(), Dialer: m.dial})
	if err == nil {
		m.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// connOf is a raw connection of a member's.
func (m *members) connOf(creds *enroll.Credentials) *grpc.ClientConn {
	m.t.Helper()
	cc, err := grpc.NewClient("passthrough:///controller.example:50051",
		grpc.WithTransportCredentials(credentials.NewTLS(creds.ClientTLS())), grpc.WithContextDialer(m.dial))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { cc.Close() })
	return cc
}

func TestMembers(t *testing.T) {
	m := secured(t, false)
	w := &world{hops: 4, receiver: atSite("fra1")}
	fra := m.join(enroll.Agent, "fra1")
	if err := w.agent("fra1").tryAttach(t, m.connOf(fra)); err != nil {
		t.Fatal(err)
	}
	m.connected("fra1")
	// An agent is who its certificate says.
	if err := w.agent("ams1").tryAttach(t, m.connOf(fra)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("under another name: %v", err)
	}
	delete(w.agents, "ams1")

	alice := must(m.clientOf(m.join(enroll.Operator, "alice")))
	bob := must(m.clientOf(m.join(enroll.Viewer, "bob")))
	agent := must(m.clientOf(fra))
	got := listen(t, must(alice.Start(t.Context(), catchment(1000, "fra1"), clientTargets(10), false)), nil)
	if got.last.State != anycast.Done || got.last.Owner != "operator/alice" {
		t.Errorf("%+v", got.last)
	}
	if code, output, err := alice.Request(t.Context(), "volta fra1 203.0.113.10"); err != nil || code != 200 {
		t.Errorf("%d %s %v", code, output, err)
	}
	if list, err := bob.List(t.Context(), anycast.Query{}); err != nil || len(list) != 1 {
		t.Errorf("a viewer's list: %v %v", list, err)
	}
	listen(t, must(bob.Follow(t.Context(), got.last.ID)), nil)
	for what, err := range map[string]error{
		"a viewer starts":   second(bob.Start(t.Context(), catchment(1000), clientTargets(1), false)),
		"a viewer cancels":  bob.Cancel(t.Context(), got.last.ID),
		"a viewer deletes":  bob.Delete(t.Context(), got.last.ID),
		"an agent lists":    second(agent.List(t.Context(), anycast.Query{})),
		"an agent measures": third(agent.Request(t.Context(), "volta fra1 203.0.113.10")),
	} {
		if !errors.Is(err, client.ErrDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Cleartext is refused, and says nothing of what is behind.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := client.Dial(ctx, "controller", client.Options{Insecure: true, Dialer: m.dial}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("cleartext: %v", err)
	}
	// Nor is a certificate of somebody else's any good.
	other := secured(t, false).join(enroll.Operator, "alice")
	if _, err := m.clientOf(other); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("another authority's: %v", err)
	}
}

func third[A, B any](_ A, _ B, err error) error { return err }

// TestRevoked: who is revoked is thrown out within seconds, also in the middle of a stream.
func TestRevoked(t *testing.T) {
	t.Parallel() // it mostly waits
	m := secured(t, false)
	w := &world{hops: 4, receiver: atSite("fra1")}
	fra := w.agent("fra1")
	if err := fra.tryAttach(t, m.connOf(m.join(enroll.Agent, "fra1"))); err != nil {
		t.Fatal(err)
	}
	alice := must(m.clientOf(m.join(enroll.Operator, "alice")))
	for _, name := range []string{"fra1", "alice"} {
		if _, err := m.authority.Revoke(name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := alice.Sites(t.Context()); !errors.Is(err, client.ErrDenied) {
		t.Errorf("a revoked operator: %v", err)
	}
	if err := <-fra.ended; status.Code(err) != codes.Unauthenticated {
		t.Errorf("a revoked agent's stream ends with %v", err)
	}
}

// TestBothOnOnePort: members over TLS, and the originals' agents and clients in cleartext, if that is allowed.
func TestBothOnOnePort(t *testing.T) {
	m := secured(t, true)
	w := &world{hops: 4, receiver: func(int, netip.Addr) string { return "fra1" }}
	fra := w.agent("fra1")
	if err := fra.tryAttach(t, m.connOf(m.join(enroll.Agent, "fra1"))); err != nil {
		t.Fatal(err)
	}
	old := m.origin("old", volta.Seed)
	defer old.run(func(volta.Job) {})()
	m.connected("fra1", "old")
	if code, output := m.request("volta fra1 203.0.113.10 -w 3"); code != 200 || !strings.Contains(output, "4  203.0.113.10") {
		t.Errorf("%d\n%s", code, output)
	}
	c := m.client()
	if _, err := c.Sites(t.Context()); !errors.Is(err, client.ErrDenied) {
		t.Errorf("cleartext asks for sites: %v", err)
	}
	if err := w.agent("ams1").tryAttach(t, m.conn()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("cleartext attaches: %v", err)
	}
	// A name that is proven is not for those who cannot prove it.
	thief := must(anycastStream(t, m.started))
	p := must(volta.Encode(volta.Seed, volta.Register{AgentID: "fra1"}))
	if err := thief.Send(p); err != nil {
		t.Fatal(err)
	}
	if _, err := thief.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the thief of a name: %v", err)
	}
	if code, _ := m.request("volta fra1 203.0.113.10 -w 3"); code != 200 {
		t.Errorf("after the attempt: %d", code)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no range":        {Insecure: true},
		"block too large": {Start: 1000, End: 1100, Block: 200, Insecure: true},
		"port 65536":      {Start: 65000, End: 65537, Block: 100, Insecure: true},
		"no links":        {Start: 1000, End: 2000, Block: 100},
		"volta replaced":  {Start: 1000, End: 2000, Block: 100, Insecure: true, Programs: map[string]anycast.NewProgram{"volta": func(anycast.ProgramConf) (anycast.Program, error) { return nil, nil }}},
	} {
		if _, err := New(o); !errors.Is(err, ErrOptions) && !errors.Is(err, volta.ErrRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
