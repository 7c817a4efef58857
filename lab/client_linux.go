// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Client speaks to a lab that another process holds.
type Client struct {
	name string
	path string
}

// Dial finds a running lab of this user. The empty name is the only one that runs. It returns
// [ErrNoLab] if there is none, and removes the socket that a killed lab left.
func Dial(name string) (*Client, error) {
	dir, err := RuntimeDir()
	if err != nil {
		return nil, err
	}
	if name == "" {
		switch names, err := runningNames(dir); {
		case err != nil:
			return nil, err
		case len(names) == 0:
			return nil, fmt.Errorf("%w: none is running", ErrNoLab)
		case len(names) > 1:
			return nil, fmt.Errorf("%w without a name: %s are running", ErrNoLab, strings.Join(names, ", "))
		default:
			name = names[0]
		}
	}
	if !validName(name) {
		return nil, fmt.Errorf("%w: %q", ErrNoLab, name)
	}
	path, err := socketPath(dir, name)
	if err != nil {
		return nil, err
	}
	c := &Client{name: name, path: path}
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	return c, conn.Close()
}

// Running describes all running labs of this user, by name.
func Running(ctx context.Context) ([]Status, error) {
	dir, err := RuntimeDir()
	if err != nil {
		return nil, err
	}
	names, err := runningNames(dir)
	if err != nil {
		return nil, err
	}
	var out []Status
	for _, name := range names {
		c, err := Dial(name)
		if err == nil {
			var st Status
			if st, err = c.Status(ctx); err == nil {
				out = append(out, st)
			}
		}
		if err != nil && !errors.Is(err, ErrNoLab) {
			return out, fmt.Errorf("lab %s: %w", name, err)
		}
	}
	return out, nil
}

// runningNames lists the labs that answer, and removes the sockets of those that do not.
func runningNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		if !ok || !validName(name) {
			continue
		}
		c := &Client{name: name, path: filepath.Join(dir, e.Name())}
		if conn, err := c.connect(); err == nil {
			conn.Close()
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (c *Client) connect() (*net.UnixConn, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: c.path, Net: "unix"})
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		_ = os.Remove(c.path) // its lab was killed
		return nil, fmt.Errorf("%w: %s", ErrNoLab, c.name)
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w: %s", ErrNoLab, c.name)
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return conn, nil
}

// Name of the lab.
func (c *Client) Name() string { return c.name }

// Status describes the lab.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	conn, err := c.connect()
	if err != nil {
		return st, err
	}
	defer conn.Close()
	resp, err := c.roundTrip(ctx, conn, request{Op: opStatus})
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(resp.Status, &st); err != nil {
		return st, fmt.Errorf("lab %s: malformed answer: %w", c.name, err)
	}
	// The lab counts processes from 1 in a PID namespace of its own; the kernel translates.
	raw, err := conn.SyscallConn()
	if err != nil {
		return st, err
	}
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			st.PID = int(cred.Pid)
		}
	})
	return st, err
}

// Graph draws the lab as it is now; formats are those of [Topology.Graph].
func (c *Client) Graph(ctx context.Context, format string) (string, error) {
	resp, err := c.call(ctx, request{Op: opGraph, Graph: format})
	return resp.Text, err
}

// Set changes fields of the impairment of a wire, by the keys and values of the topology file, in
// both directions or only from the first node to the second.
func (c *Client) Set(ctx context.Context, from, to string, oneWay bool, fields map[string]string) error {
	_, err := c.call(ctx, request{Op: opSet, Set: &setMessage{From: from, To: to, OneWay: oneWay, Fields: fields}})
	return err
}

// Announce is [Lab.Announce] of the lab.
func (c *Client) Announce(ctx context.Context, node string, o AnnounceOptions) error {
	_, err := c.call(ctx, request{Op: opAnnounce, Announce: &announceMessage{Node: node, Options: o}})
	return err
}

// Withdraw is [Lab.Withdraw] of the lab.
func (c *Client) Withdraw(ctx context.Context, node string, o AnnounceOptions) error {
	_, err := c.call(ctx, request{Op: opAnnounce, Announce: &announceMessage{Node: node, Withdraw: true, Options: o}})
	return err
}

// Down takes the lab down, and returns when nothing is left of it.
func (c *Client) Down(ctx context.Context) error {
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := c.roundTrip(ctx, conn, request{Op: opDown}); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if _, err := os.Lstat(c.path); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return ctx.Err()
}

func (c *Client) call(ctx context.Context, req request) (response, error) {
	conn, err := c.connect()
	if err != nil {
		return response{}, err
	}
	defer conn.Close()
	return c.roundTrip(ctx, conn, req)
}

func (c *Client) roundTrip(ctx context.Context, conn *net.UnixConn, req request) (response, error) {
	if err := c.send(conn, req, nil); err != nil {
		return response{}, err
	}
	return c.receive(ctx, conn)
}

// send sends a request, with descriptors if there are any.
func (c *Client) send(conn *net.UnixConn, req request, files []*os.File) error {
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if len(b) > maxRequest {
		return fmt.Errorf("lab %s: a request of %d bytes is too long", c.name, len(b))
	}
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	n, _, err := conn.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) { // not a byte after the request: the lab may have answered and hung up
		_, err = conn.Write(b[n:])
	}
	if err != nil {
		return fmt.Errorf("lab %s: %w", c.name, err)
	}
	return conn.SetWriteDeadline(time.Time{})
}

// receive waits for the answer. When ctx is done it hangs up, which kills a command.
func (c *Client) receive(ctx context.Context, conn *net.UnixConn) (response, error) {
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	var resp response
	err := json.NewDecoder(conn).Decode(&resp)
	switch {
	case err != nil && ctx.Err() != nil:
		return resp, ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return resp, fmt.Errorf("lab %s: %w: it went down", c.name, ErrNoLab)
	case err != nil:
		return resp, fmt.Errorf("lab %s: %w", c.name, err)
	case resp.Error != "":
		return resp, &remoteError{resp.Error, errorCodes[resp.Code]}
	}
	return resp, nil
}

// Exec runs a command on a host of the lab, with this process's streams, and returns its exit code: 128
// and the signal's number if a signal ended it. Signals that this process gets meanwhile go to
// the command. It is killed when ctx is done or this process ends.
func (c *Client) Exec(ctx context.Context, r ExecRequest) (int, error) {
	conn, err := c.connect()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	m := &execMessage{Host: r.Host, Path: r.Path, Args: r.Args, Env: r.Env, Dir: r.Dir, Unprivileged: r.Unprivileged}
	files := []*os.File{r.Stdin, r.Stdout, r.Stderr}
	term, err := openTerminal(r.Stdin, r.Stdout)
	if err != nil {
		return 0, err
	}
	if term != nil {
		defer term.close()
		m.Terminal = true
		files[0], files[1] = term.slave, term.slave
		if isTerminal(r.Stderr) {
			files[2] = term.slave
		}
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwardedSignals...)
	defer signal.Stop(signals)
	if term != nil {
		if err := term.start(); err != nil {
			return 0, err
		}
	}
	if err := c.send(conn, request{Op: opExec, Exec: m}, files); err != nil {
		return 0, err
	}
	if term != nil {
		term.slave.Close() // so that output ends when the command's side is closed
	}
	done := make(chan struct{})
	var forwarder sync.WaitGroup
	forwarder.Go(func() {
		enc := json.NewEncoder(conn)
		for {
			select {
			case sig := <-signals:
				_ = enc.Encode(signalMessage{int(sig.(syscall.Signal))}) // the command may have ended
			case <-done:
				return
			}
		}
	})
	resp, err := c.receive(ctx, conn)
	close(done)
	forwarder.Wait()
	return resp.Exit, err
}

// Launch starts this program again with args, as a process of its own that outlives this one, and
// waits until the lab of that name, which args tell it to hold with [Serve], answers. input is what it
// reads from standard input. If it ends before, the error is what it wrote.
func Launch(ctx context.Context, name string, args []string, input []byte) (*Client, error) {
	dir, err := RuntimeDir()
	if err != nil {
		return nil, err
	}
	if _, err := Dial(name); err == nil {
		return nil, fmt.Errorf("%w: %s", ErrLabExists, name)
	}
	// Files without a name: the holder can go on writing when this process is gone.
	stdin, err := memoryFile("topology", input)
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	output, err := memoryFile("output", nil)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), dirVar+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start holder: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it failed whatever its code is: a holder ends only after it has answered
		close(ended)
	}()
	for {
		if c, err := Dial(name); err == nil {
			return c, nil
		}
		select {
		case <-ended:
			text, _ := io.ReadAll(io.NewSectionReader(output, 0, 64<<10))
			return nil, &holderError{strings.TrimSpace(string(text))}
		case <-ctx.Done():
			_ = cmd.Process.Kill() // the kernel then kills all that it started
			<-ended
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// holderError is what a holder wrote before it gave up.
type holderError struct{ text string }

func (e *holderError) Error() string {
	if e.text == "" {
		return "the holder ended without a word"
	}
	return e.text
}

func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("fathom-lab-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("fill memory file: %w", err)
	}
	return f, nil
}
