// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/relay"
)

// Errors to branch on.
var (
	// ErrNoRelay tells that no relay answers to the name in this network namespace.
	ErrNoRelay = errors.New("no relay is running here")
	// ErrSeveral tells that several do, so that one must be named.
	ErrSeveral = errors.New("several relays are running here")
	// ErrInUse tells that a relay has the name already.
	ErrInUse = errors.New("another relay is running here under that name")
	// ErrName tells that no relay can have the name.
	ErrName = errors.New("not a name for a relay")
)

// maxName is the most bytes of a name, which has to fit into a socket's address.
const maxName = 64

// CheckName tells whether a relay can be called so: up to 64 letters, digits, dots, hyphens and underscores. The error
// wraps [ErrName].
func CheckName(name string) error {
	odd := strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_", r)
	})
	if name == "" || len(name) > maxName || odd {
		return fmt.Errorf("%.80q: %w", name, ErrName)
	}
	return nil
}

// prefix begins the address of every control socket.
const prefix = "@fathom-relay/"

func address(name string) string { return prefix + name }

// Running names the relays of this network namespace.
func Running() ([]string, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var names []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		// Num RefCount Protocol Flags Type St Inode Path; state 01 listens.
		if len(fields) != 8 || fields[5] != "01" {
			continue
		}
		if name, ok := strings.CutPrefix(fields[7], prefix); ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, lines.Err()
}

// Client asks a relay.
type Client struct {
	name string
	http *http.Client
}

// Dial gives a client for the relay called name, or, if name is empty, for the only one there is.
func Dial(name string) (*Client, error) {
	running, err := Running()
	if err != nil {
		return nil, err
	}
	switch {
	case name != "" && slices.Contains(running, name):
	case name != "" || len(running) == 0:
		return nil, ErrNoRelay
	case len(running) > 1:
		return nil, fmt.Errorf("%w: %s", ErrSeveral, strings.Join(running, ", "))
	default:
		name = running[0]
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", address(name))
	}
	// A connection for each question: nothing is left open that would have to be closed.
	return &Client{name: name, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
}

// Name is the relay's name.
func (c *Client) Name() string { return c.name }

func (c *Client) ask(ctx context.Context, method, path string, query url.Values) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: "relay", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNoRelay
	case err != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("ask relay %s (only its own user and root may): %w", c.name, err)
	case err != nil:
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<12))
		if err != nil {
			return nil, err
		}
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return resp.Body, nil
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (v T, err error) {
	body, err := c.ask(ctx, http.MethodGet, path, query)
	if err != nil {
		return v, err
	}
	defer body.Close()
	err = json.NewDecoder(body).Decode(&v)
	return v, err
}

// Status asks what the relay is doing.
func (c *Client) Status(ctx context.Context) (relay.Status, error) {
	return get[relay.Status](ctx, c, "/status", nil)
}

// Searches asks who searches for what: the top names of those that contain a text.
func (c *Client) Searches(ctx context.Context, top int, contains string) (relay.SearchReport, error) {
	return get[relay.SearchReport](ctx, c, "/searches", url.Values{"top": {strconv.Itoa(top)}, "contains": {contains}})
}

// lines gives the values of a stream, until it ends, which is no error, or fails.
func lines[T any](ctx context.Context, body io.ReadCloser) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		defer body.Close()
		for dec := json.NewDecoder(body); ; {
			var v T
			err := dec.Decode(&v)
			if err == io.EOF || ctx.Err() != nil {
				return
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// Watch gives what the relay does, as it does it, until ctx ends.
func (c *Client) Watch(ctx context.Context) (iter.Seq2[relay.Event, error], error) {
	body, err := c.ask(ctx, http.MethodGet, "/watch", nil)
	if err != nil {
		return nil, err
	}
	return lines[relay.Event](ctx, body), nil
}

// Test makes the relay send a test broadcast to a port (0: its first) on each of its segments, and gives what the
// peers report, for so long.
func (c *Client) Test(ctx context.Context, port uint16, wait time.Duration) (iter.Seq2[relay.TestReport, error], error) {
	body, err := c.ask(ctx, http.MethodPost, "/test", url.Values{"port": {strconv.Itoa(int(port))}, "wait": {wait.String()}})
	if err != nil {
		return nil, err
	}
	return lines[relay.TestReport](ctx, body), nil
}
