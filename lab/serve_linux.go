// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dirVar overrides where control sockets are, and tells the inner process of [Enter],
// which no longer sees its user's real number, where the outer one found them.
const dirVar = "FATHOM_LAB_DIR"

const (
	maxRequest     = 4 << 20 // bytes: an environment may be 2 MB long
	requestTimeout = 10 * time.Second
)

// RuntimeDir is the directory of the control sockets of this user's labs:
// $FATHOM_LAB_DIR, or $XDG_RUNTIME_DIR/fathom/lab, or fathom-UID/lab in the temporary directory. It is made if
// it is not there, and refused if others can reach into it.
func RuntimeDir() (string, error) {
	dir := os.Getenv(dirVar)
	if dir == "" {
		base := os.Getenv("XDG_RUNTIME_DIR")
		if base != "" {
			base = filepath.Join(base, "fathom")
		} else {
			base = filepath.Join(os.TempDir(), fmt.Sprintf("fathom-%d", os.Getuid()))
		}
		if err := privateDir(base); err != nil {
			return "", err
		}
		dir = filepath.Join(base, "lab")
	}
	return dir, privateDir(dir)
}

func privateDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory for control sockets: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("check directory for control sockets: %w", err)
	}
	st := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("control sockets: %s is not a directory", path)
	case int(st.Uid) != os.Getuid():
		return fmt.Errorf("control sockets: %s belongs to user %d; set %s to a directory of your own", path, st.Uid, dirVar)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("control sockets: %s can be entered by others: chmod 700 it", path)
	}
	return nil
}

func socketPath(dir, name string) (string, error) {
	path := filepath.Join(dir, name+".sock")
	if limit := len(unix.RawSockaddrUnix{}.Path); len(path)+1 > limit {
		return "", fmt.Errorf("control socket %s: path is longer than %d bytes; set %s to a shorter directory", path, limit-1, dirVar)
	}
	return path, nil
}

// EnterToServe is [Enter] for a program that will call [Serve].
func EnterToServe() error {
	if os.Getenv(stageVar) == "" {
		dir, err := RuntimeDir()
		if err != nil {
			return err
		}
		if err := os.Setenv(dirVar, dir); err != nil {
			return err
		}
	}
	return Enter()
}

// Serve builds a lab and holds it, answering on a control socket named after it, until ctx is done
// or a client takes it down. Call [EnterToServe] first. ready, if not nil, is called once the lab
// answers. It returns [ErrLabExists] if the name is in use.
func Serve(ctx context.Context, t *Topology, ready func(Status)) error {
	dir, err := RuntimeDir()
	if err != nil {
		return err
	}
	name := t.label()
	l, err := Start(ctx, t, Options{HostsFile: true})
	if err != nil {
		return err
	}
	defer l.Close()
	listener, path, err := listen(dir, name)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	s := &server{lab: l, started: time.Now(), down: make(chan struct{})}
	stop := context.AfterFunc(ctx, s.takeDown)
	defer stop()
	var accepting sync.WaitGroup
	accepting.Go(func() { s.accept(listener) })
	if ready != nil {
		ready(s.status())
	}
	<-s.down
	err = errors.Join(os.Remove(path), listener.Close(), l.Close())
	accepting.Wait()
	s.conns.Wait()
	return err
}

// listen binds the control socket under a name that nobody knows and then moves it to its own, so that
// whoever finds a socket that refuses may take it for a dead lab's.
func listen(dir, name string) (*net.UnixListener, string, error) {
	path, err := socketPath(dir, name)
	if err != nil {
		return nil, "", err
	}
	if _, err := Dial(name); err == nil {
		return nil, "", fmt.Errorf("%w: %s", ErrLabExists, name)
	}
	hidden := filepath.Join(dir, "."+rand.Text()[:8])
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, "", fmt.Errorf("control socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	if err := unix.Renameat2(unix.AT_FDCWD, hidden, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		listener.Close()
		os.Remove(hidden)
		if errors.Is(err, unix.EEXIST) {
			return nil, "", fmt.Errorf("%w: %s", ErrLabExists, name)
		}
		return nil, "", fmt.Errorf("control socket %s: %w", path, err)
	}
	return listener, path, nil
}

// server answers on the control socket of one lab.
type server struct {
	lab      *Lab
	started  time.Time
	down     chan struct{}
	downOnce sync.Once
	conns    sync.WaitGroup
}

func (s *server) takeDown() { s.downOnce.Do(func() { close(s.down) }) }

func (s *server) accept(listener *net.UnixListener) {
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			s.takeDown() // closed; or broken, and a lab that nobody can reach is of no use
			return
		}
		s.conns.Go(func() {
			defer conn.Close()
			// After takeDown a client has nothing more to wait for.
			stop := make(chan struct{})
			defer close(stop)
			s.conns.Go(func() {
				select {
				case <-s.lab.closing:
					_ = conn.SetReadDeadline(time.Unix(1, 0))
				case <-stop:
				}
			})
			s.handle(conn)
		})
	}
}

func (s *server) handle(conn *net.UnixConn) {
	_ = conn.SetReadDeadline(time.Now().Add(requestTimeout))
	dec, files, req, err := readRequest(conn)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		answer(conn, response{}, fmt.Errorf("malformed request: %w", err))
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	var resp response
	switch req.Op {
	case opStatus:
		resp.Status, err = json.Marshal(s.status())
	case opGraph:
		resp.Text, err = s.graph(req.Graph)
	case opSet:
		err = s.set(req.Set)
	case opAnnounce:
		err = s.announce(req.Announce)
	case opExec:
		resp.Exit, err = s.exec(conn, dec, req.Exec, files)
	case opDown:
		s.takeDown()
		<-s.lab.closing
		err = s.lab.Close() // waits for the one that is under way
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	answer(conn, resp, err)
}

func answer(conn *net.UnixConn, resp response, err error) {
	if err != nil {
		resp.Error = err.Error()
		for code, sentinel := range errorCodes {
			if errors.Is(err, sentinel) {
				resp.Code = code
			}
		}
	}
	_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	_ = json.NewEncoder(conn).Encode(resp) // a client that left needs no answer
}

// readRequest reads the request and the descriptors that come with its first bytes.
func readRequest(conn *net.UnixConn) (*json.Decoder, []*os.File, *request, error) {
	first := make([]byte, 64<<10)
	oob := make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(first, oob)
	if err != nil {
		return nil, nil, nil, err
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, nil, nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "stream"))
		}
	}
	var req request
	limited := &io.LimitedReader{R: conn, N: maxRequest}
	dec := json.NewDecoder(io.MultiReader(bytes.NewReader(first[:n]), limited))
	err = dec.Decode(&req)
	limited.N = 1 << 62 // signals may follow for as long as the command runs
	return dec, files, &req, err
}

func (s *server) status() Status {
	st := Status{Name: s.lab.plan.topology.label(), PID: os.Getpid(), Started: s.started}
	for _, n := range s.lab.plan.nodes {
		st.Nodes = append(st.Nodes, NodeStatus{
			Name: n.name, Kind: n.kind.String(), UserSpace: n.user, Addresses: n.addresses(), Announce: s.lab.announcementsOf(n),
		})
	}
	for _, w := range s.lab.wires {
		ws := WireStatus{Ends: w.Ends(), Plain: w.Plain()}
		there, _ := w.Impairment(ws.Ends[0]) // its own ends: cannot fail
		back, _ := w.Impairment(ws.Ends[1])
		ws.Forward, ws.Backward = FormatImpairment(there), FormatImpairment(back)
		st.Wires = append(st.Wires, ws)
	}
	return st
}

func (s *server) set(m *setMessage) error {
	if m == nil {
		return errors.New("nothing to set")
	}
	w, err := s.lab.Wire(m.From, m.To)
	if err != nil {
		return err
	}
	froms := []string{m.From, m.To}
	if m.OneWay {
		froms = froms[:1]
	}
	for _, from := range froms {
		i, err := w.Impairment(from)
		if err != nil {
			return err
		}
		for key, value := range m.Fields {
			if err := SetImpairment(&i, key, value); err != nil {
				return err
			}
		}
		if err := w.SetFrom(from, i); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) announce(m *announceMessage) error {
	switch {
	case m == nil:
		return errors.New("nothing to announce")
	case m.Withdraw:
		return s.lab.Withdraw(s.lab.ctx, m.Node, m.Options)
	}
	return s.lab.Announce(s.lab.ctx, m.Node, m.Options)
}

// graph draws the lab as it is now.
func (s *server) graph(format string) (string, error) {
	t := *s.lab.plan.topology
	t.Wires = append([]WireConfig(nil), t.Wires...)
	for i, w := range s.lab.wires {
		there, _ := w.Impairment(w.Ends()[0]) // its own ends: cannot fail
		back, _ := w.Impairment(w.Ends()[1])
		t.Wires[i].Impairment, t.Wires[i].Forward, t.Wires[i].Backward = there, nil, &back
	}
	t.Hosts, t.Routers = maps.Clone(t.Hosts), maps.Clone(t.Routers)
	for _, n := range s.lab.plan.nodes {
		switch n.kind {
		case KindHost:
			h := t.Hosts[n.name]
			h.Announce = s.lab.announcementsOf(n)
			t.Hosts[n.name] = h
		case KindRouter:
			r := t.Routers[n.name]
			r.Announce = s.lab.announcementsOf(n)
			t.Routers[n.name] = r
		case KindBridge, KindNAT: // announce plainly
		}
	}
	return t.Graph(format)
}

// exec runs a command with the client's streams until it ends. A client that goes away takes it along.
func (s *server) exec(conn *net.UnixConn, dec *json.Decoder, m *execMessage, files []*os.File) (int, error) {
	if m == nil || len(m.Args) == 0 || len(files) != 3 {
		return 0, errors.New("a command needs a name and three streams")
	}
	h, err := s.lab.Lookup(m.Host)
	if err != nil {
		return 0, err
	}
	c := h.Command(context.Background(), m.Path)
	c.Path, c.Args, c.Env, c.Dir, c.Unprivileged = m.Path, m.Args, m.Env, m.Dir, m.Unprivileged
	c.Err = nil // the client has found the program
	c.Stdin, c.Stdout, c.Stderr = files[0], files[1], files[2]
	if m.Terminal {
		c.SysProcAttr.Setsid, c.SysProcAttr.Setctty = true, true
	} else {
		c.SysProcAttr.Setpgid = true // so that signals reach what the command starts, too
	}
	if err := c.Start(); err != nil {
		return 0, err
	}
	for _, f := range files {
		f.Close() // the command has its own; whoever reads the other ends waits for the last to close
	}
	var signals sync.WaitGroup
	signals.Go(func() {
		for {
			var sig signalMessage
			if err := dec.Decode(&sig); err != nil {
				_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) // it may have ended before the client left
				return
			}
			_ = syscall.Kill(-c.Process.Pid, syscall.Signal(sig.Signal))
		}
	})
	err = c.Wait()
	_ = conn.CloseRead() // ends the reading of signals
	signals.Wait()
	if c.ProcessState == nil {
		return 0, err
	}
	return exitCode(c.ProcessState.Sys().(syscall.WaitStatus)), nil
}
