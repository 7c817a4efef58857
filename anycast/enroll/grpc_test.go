// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/seed5728abee/fathom/anycast/enroll"
)

// enrolment is a service of one method, from bytes to bytes.
type enrolment interface {
	enroll(ctx context.Context, request []byte) ([]byte, error)
}

const enrolMethod = "/enrolment/Enroll"

var enrolmentService = grpc.ServiceDesc{
	ServiceName: "enrolment",
	HandlerType: (*enrolment)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Enroll",
		Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var request wrapperspb.BytesValue
			if err := decode(&request); err != nil {
				return nil, err
			}
			reply, err := srv.(enrolment).enroll(ctx, request.GetValue())
			return wrapperspb.Bytes(reply), err
		},
	}},
}

// controller is the service's handler, as a controller has it.
type controller struct{ authority *enroll.Authority }

func (c controller) enroll(ctx context.Context, request []byte) ([]byte, error) {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, status.Error(codes.FailedPrecondition, "enrolment needs TLS")
	}
	reply, _, _ := c.authority.Respond(info.State, request)
	return reply, nil
}

// overConn makes one call over a connection whose TLS is done.
func overConn(ctx context.Context, conn net.Conn, request []byte) ([]byte, error) {
	conns := make(chan net.Conn, 1)
	conns <- conn
	client, err := grpc.NewClient("passthrough:///controller",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-conns:
				return c, nil
			default:
				return nil, errors.New("the request is bound to a connection that is gone")
			}
		}))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return call(ctx, client, request)
}

func call(ctx context.Context, client *grpc.ClientConn, request []byte) ([]byte, error) {
	var reply wrapperspb.BytesValue
	err := client.Invoke(ctx, enrolMethod, wrapperspb.Bytes(request), &reply)
	return reply.GetValue(), err
}

// TestGRPC is what a controller and a host do with this package, over gRPC and a socket.
func TestGRPC(t *testing.T) {
	authority, err := enroll.Open(filepath.Join(t.TempDir(), "authority"), enroll.AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := authority.ServerTLS("localhost", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	server.RegisterService(&enrolmentService, controller{authority})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	token, err := authority.Token(enroll.Identity{Role: enroll.Agent, Name: "fra1"}, 0, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	join := func() (*enroll.Credentials, error) {
		return enroll.Join(t.Context(), token, filepath.Join(t.TempDir(), "fra1"), enroll.JoinOptions{Exchange: overConn})
	}
	member, err := join()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := join(); !errors.Is(err, enroll.ErrTokenUsed) {
		t.Errorf("joined again: %v, want ErrTokenUsed", err)
	}

	dial := func() *grpc.ClientConn {
		client, err := grpc.NewClient(member.Controller(), grpc.WithTransportCredentials(credentials.NewTLS(member.ClientTLS())))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		return client
	}
	link := dial()
	reply, err := call(t.Context(), link, member.RenewRequest())
	if err != nil {
		t.Fatal(err)
	}
	if err := member.Renewed(reply); err != nil {
		t.Fatal(err)
	}

	if _, err := authority.Revoke("fra1"); err != nil {
		t.Fatal(err)
	}
	reply, err = call(t.Context(), link, member.RenewRequest())
	if err != nil {
		t.Fatal(err)
	}
	if err := member.Renewed(reply); !errors.Is(err, enroll.ErrRevoked) {
		t.Errorf("revoked, over the old link: %v, want ErrRevoked", err)
	}
	// The alert that says so may be lost when the controller resets the connection, so try more than once.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := call(t.Context(), dial(), member.RenewRequest())
		if err == nil {
			t.Fatal("revoked, and yet it connects")
		}
		if errors.Is(enroll.Explain(err), enroll.ErrRevoked) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("revoked, over a new link: %v, want ErrRevoked", err)
		}
	}
}
