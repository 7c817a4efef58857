// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// userRequest answers a text request: always, and in time for the caller's deadline.
func (c *Controller) userRequest(ctx context.Context, req *anycastpb.Request) (*anycastpb.Response, error) {
	start := time.Now()
	who := callerOf(ctx)
	code, output := c.admittedCommand(ctx, who, req.GetCommand())
	if ctx.Err() != nil {
		return nil, statusOf(ctx.Err()) // nobody is there to hear it
	}
	var err error
	if code != http.StatusOK {
		err = fmt.Errorf("code %d: %s", code, printable(output, 200))
	}
	c.audit(who, "request", printable(req.GetCommand(), 200), err)
	c.metrics.request(code, time.Since(start).Seconds())
	return &anycastpb.Response{Code: code, Output: output}, nil
}

// admittedCommand is command for a client: within its quota, and when it is its turn.
func (c *Controller) admittedCommand(ctx context.Context, who caller, text string) (code int32, output string) {
	if err := c.admitRequest(who); err != nil {
		return http.StatusTooManyRequests, err.Error()
	}
	// What cannot be done needs no turn.
	if len(text) > maxCommand {
		_, err := volta.ParseCommand(text)
		return volta.ResponseFor(err)
	}
	if err := c.requests.enter(ctx, who.String()); err != nil {
		if errors.Is(err, errBusy) {
			return http.StatusServiceUnavailable, "Internal server error: " + err.Error()
		}
		return volta.ResponseFor(err)
	}
	defer c.requests.leave(who.String())
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(c.base, func() { cancel(errStopping) })
	defer stop()
	return c.command(ctx, text)
}

// maxCommand is the longest command that any program gets, in bytes.
const maxCommand = 4096

// command runs a text request: the program that its first word names, or, for every other word, a traceroute.
func (c *Controller) command(ctx context.Context, text string) (code int32, output string) {
	words := strings.Fields(text)
	if len(words) > 0 {
		if program := c.opts.Programs[words[0]]; program != nil {
			return c.userProgram(ctx, program, words)
		}
	}
	cmd, err := volta.ParseCommand(text)
	if err != nil {
		return volta.ResponseFor(err)
	}
	result, err := c.traceroute(ctx, cmd)
	if err != nil {
		return volta.ResponseFor(err)
	}
	return http.StatusOK, result.Text()
}

// userProgram runs a program that the user registered. Its faults end the request and nothing else.
func (c *Controller) userProgram(ctx context.Context, program anycast.NewProgram, words []string) (code int32, output string) {
	defer func() {
		if r := recover(); r != nil {
			c.log.Error("program panicked", "program", words[0], "error", r, "stack", string(debug.Stack()))
			code, output = http.StatusInternalServerError, "Internal server error: program "+words[0]+" failed"
		}
	}()
	p, err := program(anycast.ProgramConf{
		Name: words[0], Words: words[1:], Fleet: c.fleet, Log: c.log.With("program", words[0]),
	})
	if err != nil {
		return http.StatusBadRequest, "Invalid command: " + err.Error()
	}
	output, err = p.Run(ctx)
	if err != nil {
		return http.StatusInternalServerError, "Program execution failed: " + err.Error()
	}
	return http.StatusOK, output
}
