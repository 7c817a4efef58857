// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/netip"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/access"
	"github.com/seed5728abee/fathom/anycast/enroll"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// revocationInterval is how long a revoked agent may stay connected.
const revocationInterval = 5 * time.Second

// caller is who makes a call.
type caller struct {
	id   enroll.Identity // nobody over cleartext
	from netip.AddrPort
	addr string // host, without port
	tls  *tls.ConnectionState
}

type callerKey struct{}

// callerOf gives who makes the call that ctx belongs to.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// secure tells that the caller's identity is proven.
func (c caller) secure() bool { return c.id.Name != "" }

// String is role and name, or the host.
func (c caller) String() string {
	if c.secure() {
		return c.id.String()
	}
	return "cleartext " + c.addr
}

// checkAgent tells whether the caller may register as an agent of this name.
func (c caller) checkAgent(name string) error {
	if c.secure() {
		return c.id.CheckAgent(name)
	}
	return enroll.CheckName(name)
}

// actions says what a call needs. Enrol needs nothing: it brings its own proof.
var actions = map[string]enroll.Action{
	anycastpb.AnycastService_ControlStream_FullMethodName: enroll.Serve,
	anycastpb.AnycastService_UserRequest_FullMethodName:   enroll.Measure,
	measurepb.Fleet_Attach_FullMethodName:                 enroll.Serve,
	measurepb.Measure_Start_FullMethodName:                enroll.Measure,
	measurepb.Measure_Feed_FullMethodName:                 enroll.Measure,
	measurepb.Measure_Cancel_FullMethodName:               enroll.Measure,
	measurepb.Measure_Delete_FullMethodName:               enroll.Measure,
	measurepb.Measure_Follow_FullMethodName:               enroll.Read,
	measurepb.Measure_List_FullMethodName:                 enroll.Read,
	measurepb.Measure_Results_FullMethodName:              enroll.Read,
	measurepb.Measure_Sites_FullMethodName:                enroll.Read,
}

// admit tells who makes a call, if it may be made.
func (c *Controller) admit(ctx context.Context, method string) (caller, error) {
	var who caller
	p, ok := peer.FromContext(ctx)
	if !ok {
		return who, status.Error(codes.Internal, "call without a peer")
	}
	who.addr = p.Addr.String()
	if ap, err := netip.ParseAddrPort(who.addr); err == nil {
		who.from, who.addr = ap, ap.Addr().Unmap().String()
	}
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		who.tls = &info.State
	}
	if method == measurepb.Enrolment_Enroll_FullMethodName {
		return who, nil
	}
	if who.tls == nil {
		// What the originals' agents and clients need, and, without any certificates, everything.
		if c.opts.Authority != nil && !strings.HasPrefix(method, "/AnycastService/") {
			return who, status.Error(codes.Unauthenticated, "this call needs a certificate: enrol first")
		}
		return who, nil
	}
	var err error
	if who.id, err = c.opts.Authority.Peer(*who.tls); err != nil {
		return who, status.Error(codes.Unauthenticated, err.Error())
	}
	action, ok := actions[method]
	if !ok {
		return who, status.Errorf(codes.Unimplemented, "no method %s", method)
	}
	if err := who.id.Check(action); err != nil {
		return who, statusOf(err)
	}
	return who, nil
}

// stillGood tells whether a caller of a long call would still be admitted.
func (c *Controller) stillGood(who caller) error {
	if !who.secure() {
		return nil
	}
	_, err := c.opts.Authority.Peer(*who.tls)
	return err
}

func (c *Controller) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	who, err := c.admit(ctx, info.FullMethod)
	if err == nil {
		return handler(context.WithValue(ctx, callerKey{}, who), req)
	}
	c.audit(who, path.Base(info.FullMethod), "", err)
	return nil, err
}

func (c *Controller) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	who, err := c.admit(ss.Context(), info.FullMethod)
	if err == nil {
		return handler(srv, &admitted{ServerStream: ss, ctx: context.WithValue(ss.Context(), callerKey{}, who)})
	}
	c.audit(who, path.Base(info.FullMethod), "", err)
	return err
}

// admitted is a stream whose context knows the caller.
type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (a *admitted) Context() context.Context { return a.ctx }

// statusOf makes an error one that crosses the wire with a code to branch on.
func statusOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil // the peer has ended its side, as it may
	}
	if _, ok := status.FromError(err); ok {
		return err // its own, or nil
	}
	code := codes.Internal
	for _, c := range []struct {
		is   error
		code codes.Code
	}{
		{enroll.ErrName, codes.PermissionDenied},
		{enroll.ErrRole, codes.PermissionDenied},
		{enroll.ErrRevoked, codes.Unauthenticated},
		{enroll.ErrExpired, codes.Unauthenticated},
		{access.ErrQuota, codes.ResourceExhausted},
		{anycast.ErrDefinition, codes.InvalidArgument},
		{anycast.ErrNoMeasurement, codes.NotFound},
		{anycast.ErrNoPorts, codes.ResourceExhausted},
		{errReplaced, codes.Aborted},
		{errStopping, codes.Unavailable},
		{errSlowLink, codes.ResourceExhausted},
		{errHello, codes.InvalidArgument},
		{errInvalid, codes.InvalidArgument},
		{errStore, codes.Unavailable},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		if errors.Is(err, c.is) {
			code = c.code
			break
		}
	}
	return status.Error(code, err.Error())
}

// Errors of calls.
var (
	errInvalid = errors.New("invalid request")
	errStore   = errors.New("the store failed")
)

// printable makes text from outside fit for logs and terminals: at most n runes, none that steers a terminal.
func printable(s string, n int) string {
	out := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd {
			return '?'
		}
		return r
	}, s[:min(len(s), 4*n)])
	if runes := []rune(out); len(runes) > n {
		out = string(runes[:n]) + "..."
	}
	return out
}
