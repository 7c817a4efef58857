// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// holderVar makes the test binary hold the topology on its standard input, as "fathom lab up" does.
const holderVar = "FATHOM_TEST_HOLD"

// lookUpVar makes the test binary look a name or an address up.
const lookUpVar = "FATHOM_TEST_LOOK_UP"

func TestMain(m *testing.M) {
	if name := os.Getenv(lookUpVar); name != "" {
		os.Exit(lookUp(name))
	}
	if name := os.Getenv(holderVar); name != "" {
		os.Exit(hold(name))
	}
	os.Exit(Main(m))
}

func hold(name string) int {
	err := EnterToServe()
	if err == nil {
		var text []byte
		if text, err = io.ReadAll(os.Stdin); err == nil {
			var t *Topology
			if t, err = Parse(text); err == nil {
				t.Name = name
				err = Serve(context.Background(), t, nil)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func lookUp(name string) int {
	var out []string
	var err error
	if _, e := netip.ParseAddr(name); e == nil {
		out, err = net.DefaultResolver.LookupAddr(context.Background(), name)
	} else {
		out, err = net.DefaultResolver.LookupHost(context.Background(), name)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(strings.Join(out, " "))
	return 0
}

// launch starts a holder that the test takes down at its end, if it has not died before.
func launch(t *testing.T, name, topology string) *Client {
	t.Helper()
	if !capable() {
		t.Skip("needs namespaces")
	}
	if os.Getenv(dirVar) == "" {
		t.Setenv(dirVar, shortTempDir(t))
	}
	t.Setenv(holderVar, name)
	c, err := Launch(t.Context(), name, nil, []byte(topology))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Down(context.Background()); err != nil && !errors.Is(err, ErrNoLab) {
			t.Errorf("down: %v", err)
		}
	})
	return c
}

// run runs a shell command on a host, and returns its exit code and output.
func run(t *testing.T, c *Client, host, script, input string) (int, string) {
	t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inR.Close()
	defer outR.Close()
	if _, err := io.WriteString(inW, input); err != nil {
		t.Fatal(err)
	}
	inW.Close()
	code, err := c.Exec(t.Context(), ExecRequest{
		Host: host, Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: append(os.Environ(), "COLOUR=blue"), Dir: "/",
		Stdin: inR, Stdout: outW, Stderr: outW,
	})
	outW.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(outR)
	if err != nil {
		t.Fatal(err)
	}
	return code, string(out)
}

const two = "[host.a]\n[host.b]\n[[wire]]\nends = ['a', 'b']\ndelay = '1ms'\n"

func TestServe(t *testing.T) {
	c := launch(t, "two", two)
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Name != "two" || len(st.Nodes) != 2 || st.Nodes[1].Addresses[0].String() != "10.0.1.2" || st.Wires[0].Forward != "1ms" {
		t.Errorf("status: %+v", st)
	}
	outside, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if code, out := run(t, c, "b", "cat /proc/sys/kernel/hostname", ""); code != 0 || out != "b\n" {
		t.Errorf("host name: got code %d, %q; want b", code, out)
	}
	if now, err := os.Hostname(); err != nil || now != outside {
		t.Errorf("host name outside: got %q, %v; want %q as before", now, err, outside)
	}
	if code, out := run(t, c, "a", "cat; echo $COLOUR $PWD; grep 10.0.1.2 /etc/hosts; exit 7", "in\n"); code != 7 || out != "in\nblue /\n10.0.1.2 b\n" {
		t.Errorf("command: got code %d, output %q", code, out)
	}
	if code, _ := run(t, c, "a", "kill -TERM $$", ""); code != 128+int(syscall.SIGTERM) {
		t.Errorf("command that a signal ended: got code %d, want %d", code, 128+int(syscall.SIGTERM))
	}
	if _, err := c.Exec(t.Context(), ExecRequest{Host: "x", Path: "/bin/true", Args: []string{"true"}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}); !errors.Is(err, ErrNoNode) {
		t.Errorf("unknown host: got %v, want %v", err, ErrNoNode)
	}
	if err := c.Set(t.Context(), "b", "a", true, map[string]string{"delay": "30ms", "loss": "0.5"}); err != nil {
		t.Error(err)
	}
	if err := c.Set(t.Context(), "a", "b", false, map[string]string{"loss": "7"}); !errors.Is(err, ErrTopology) {
		t.Errorf("loss 7: got %v, want %v", err, ErrTopology)
	}
	if st, err = c.Status(t.Context()); err != nil || st.Wires[0].Forward != "1ms" || st.Wires[0].Backward != "30ms, loss 50%" {
		t.Errorf("wire after set: %+v, %v", st.Wires, err)
	}
	if err := c.Withdraw(t.Context(), "a", AnnounceOptions{}); !errors.Is(err, ErrNotHeld) {
		t.Errorf("withdraw nothing: got %v, want %v", err, ErrNotHeld)
	}
	if err := c.Announce(t.Context(), "x", AnnounceOptions{}); !errors.Is(err, ErrNoNode) {
		t.Errorf("announce at an unknown host: got %v, want %v", err, ErrNoNode)
	}
	if g, err := c.Graph(t.Context(), "mermaid"); err != nil || !strings.Contains(g, "30ms, loss 50%") {
		t.Errorf("graph: %q, %v", g, err)
	}
	if _, err := Launch(t.Context(), "two", nil, nil); !errors.Is(err, ErrLabExists) {
		t.Errorf("second lab of the name: got %v, want %v", err, ErrLabExists)
	}
	only, err := Dial("")
	if err != nil || only.Name() != "two" {
		t.Errorf("the only lab: %v, %v", only, err)
	}
	launch(t, "other", two)
	if _, err := Dial(""); !errors.Is(err, ErrNoLab) || !strings.Contains(err.Error(), "other, two") {
		t.Errorf("one of two labs: got %v, want %v and their names", err, ErrNoLab)
	}
	if all, err := Running(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("running: %+v, %v", all, err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Dial("two"); !errors.Is(err, ErrNoLab) {
		t.Errorf("after down: got %v, want %v", err, ErrNoLab)
	}
}

// Every address of a node has its name, the name means its first address first, and a name that the lab does not know
// is asked of nobody who would have to be waited for: by Go's resolver and by the C library's.
func TestNamesInside(t *testing.T) {
	c := launch(t, "names", `
		[host.a]
		[router.gw]
		[router.r]
		silent = true
		[host.b]
		[[wire]]
		ends = ['a', 'gw']
		[[wire]]
		ends = ['gw', 'r']
		[[wire]]
		ends = ['r', 'b']
	`)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, resolver := range []string{"go", "cgo"} {
		lookUp := func(name string) (int, string) {
			return run(t, c, "a", fmt.Sprintf("GODEBUG=netdns=%s %s=%s exec %s", resolver, lookUpVar, name, exe), "")
		}
		// The C library may put IPv6 first.
		if code, out := lookUp("r"); code != 0 || !strings.Contains(out, "10.0.2.2 10.0.3.1") || resolver == "go" && !strings.HasPrefix(out, "10.0.2.2 ") {
			t.Errorf("%s: r: got code %d, %q; want 10.0.2.2, then 10.0.3.1", resolver, code, out)
		}
		for _, addr := range []string{"10.0.2.2", "10.0.3.1", "fd00:1ab:0:2::2", "fd00:1ab:0:3::1"} {
			if code, out := lookUp(addr); code != 0 || strings.TrimRight(out, ".\n") != "r" {
				t.Errorf("%s: %s: got code %d, %q; want r", resolver, addr, code, out)
			}
		}
		for _, unknown := range []string{"nowhere.example", "192.0.2.77"} {
			start := time.Now()
			code, out := lookUp(unknown)
			if took := time.Since(start); code != 1 || took > 900*time.Millisecond { // a server that is waited for has a second
				t.Errorf("%s: %s: got code %d, %q after %v; want failure at once", resolver, unknown, code, out, took)
			}
		}
	}
}

// A client that hangs up takes its command along.
func TestExecEndsWithClient(t *testing.T) {
	c := launch(t, "two", two)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	mark := filepath.Join(t.TempDir(), "alive")
	_, err = c.Exec(ctx, ExecRequest{
		Host: "a", Path: "/bin/sh", Args: []string{"sh", "-c", "trap '' INT TERM HUP; while :; do echo x >> " + mark + "; sleep 0.01; done"},
		Env: os.Environ(), Dir: "/", Stdin: null, Stdout: null, Stderr: null,
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want %v", err, context.DeadlineExceeded)
	}
	size := int64(-1)
	poll(t, "the command to stop writing", func() bool {
		before := size
		info, err := os.Stat(mark)
		if err != nil {
			return false
		}
		size = info.Size()
		time.Sleep(50 * time.Millisecond)
		return size == before
	})
}

// kill -9 of the holder leaves no process and no namespace, and the next command removes its socket.
func TestKilledHolderLeavesNothing(t *testing.T) {
	c := launch(t, "two", two)
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// One command is waited for, the other, in a session of its own, is nobody's child.
	done := make(chan error, 1)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	token := fmt.Sprintf("%d.5", 100000+os.Getpid()) // in the arguments, so that we can find them
	go func() {
		_, err := c.Exec(t.Context(), ExecRequest{
			Host: "a", Path: "/bin/sh", Args: []string{"sh", "-c", "setsid sleep " + token + " & sleep " + token}, Env: os.Environ(), Dir: "/",
			Stdin: null, Stdout: null, Stderr: null,
		})
		done <- err
	}()
	poll(t, "both commands to run", func() bool { return len(processesWith(token)) >= 3 })
	inside := map[string]bool{}
	for _, p := range processesWith(token) {
		ns, err := os.Readlink(p + "/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		inside[ns] = true
	}
	if own, _ := os.Readlink("/proc/self/ns/net"); len(inside) != 1 || inside[own] {
		t.Fatalf("commands are in %v, we in %s; want one other namespace", inside, own)
	}
	if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll(t, "all processes to die", func() bool { return len(processesWith(token)) == 0 })
	if err := <-done; err == nil {
		t.Error("the command ended well")
	}
	poll(t, "the namespace to lose its last process", func() bool {
		links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
		for _, link := range links {
			if ns, err := os.Readlink(link); err == nil && inside[ns] {
				return false
			}
		}
		return true
	})
	if all, err := Running(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("running: %+v, %v; want none", all, err)
	}
	entries, err := os.ReadDir(os.Getenv(dirVar))
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// processesWith lists the /proc directories of processes with a word in their arguments.
func processesWith(word string) []string {
	var out []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(word)) {
			out = append(out, filepath.Dir(file))
		}
	}
	return out
}

func TestHolderSaysWhyItFailed(t *testing.T) {
	if !capable() {
		t.Skip("needs namespaces")
	}
	t.Setenv(dirVar, shortTempDir(t))
	t.Setenv(holderVar, "bad")
	if _, err := Launch(t.Context(), "bad", nil, []byte("[host.a]\nx = 1")); err == nil || !strings.Contains(err.Error(), "unknown key") {
		t.Errorf("got %v, want the holder's words", err)
	}
}

// shortTempDir is a t.TempDir whose path leaves room for a socket.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab") //nolint:usetesting // t.TempDir has the test's name in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Whatever comes over the control socket, the lab answers or hangs up, and goes on.
func TestMalformedRequests(t *testing.T) {
	c := launch(t, "two", two)
	for _, text := range []string{"", "x", "{", `{"op":"fly"}`, `{"op":"exec"}`, `{"op":"exec","exec":{"host":"a","args":["x"]}}`, `{"op":"set"}`, `{"op":7}`, `{"op":"graph","graph":"png"}`} {
		conn, err := net.Dial("unix", c.path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.UnixConn).CloseWrite()
		var resp response
		if err := json.NewDecoder(conn).Decode(&resp); err != nil || resp.Error == "" {
			t.Errorf("%q: got %+v, %v; want an error", text, resp, err)
		}
		conn.Close()
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestRuntimeDir(t *testing.T) {
	dir := shortTempDir(t)
	t.Setenv(dirVar, "")
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if got, err := RuntimeDir(); err != nil || got != dir+"/fathom/lab" {
		t.Errorf("got %s, %v", got, err)
	}
	if err := os.Chmod(dir+"/fathom", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := RuntimeDir(); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a directory that others can enter: got %v", err)
	}
	t.Setenv(dirVar, filepath.Join(dir, strings.Repeat("x", 100)))
	if _, err := Dial("two"); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a long path: got %v", err)
	}
}
