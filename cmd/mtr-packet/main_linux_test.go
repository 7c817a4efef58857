// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/lab"
)

// asProgram makes the test binary be mtr-packet. mtr can't pass arguments to its helper, but
// hands its environment on.
const asProgram = "FATHOM_TEST_MTR_PACKET"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(os.Args[1:], os.Getenv))
	}
	os.Exit(lab.Main(m))
}

// newLab is
//
//	a --- r1 --- r2 --- b
//
// where r1 leads 203.0.113.0/24 nowhere, and shows labels if asked to.
func newLab(t *testing.T, labels ...lab.Label) *lab.Lab {
	t.Helper()
	r1 := lab.RouterConfig{Routes: []lab.RouteConfig{{To: "203.0.113.0/24", Reject: "blackhole"}}}
	r1.Behaviour.MPLS = labels
	return lab.New(t, &lab.Topology{
		Hosts:   map[string]lab.HostConfig{"a": {}, "b": {}},
		Routers: map[string]lab.RouterConfig{"r1": r1, "r2": {}},
		Wires:   []lab.WireConfig{{Ends: [2]string{"a", "r1"}}, {Ends: [2]string{"r1", "r2"}}, {Ends: [2]string{"r2", "b"}}},
	})
}

// environment makes the test binary act as mtr-packet, also below mtr.
func environment(t *testing.T, more ...string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append(os.Environ(), append(more, asProgram+"=1", "MTR_PACKET="+self)...)
}

// program is a running mtr-packet.
type program struct {
	t       *testing.T
	cmd     *lab.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	outFile *os.File
	stderr  bytes.Buffer
}

// start starts mtr-packet on a host.
func start(t *testing.T, h *lab.Host, unprivileged bool, env ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(t.Context(), self)
	cmd.Unprivileged = unprivileged
	cmd.Env = environment(t, env...)
	return startCmd(t, cmd)
}

func startCmd(t *testing.T, cmd *lab.Cmd) *program {
	t.Helper()
	p := &program{t: t, cmd: cmd}
	p.cmd.Stderr = &p.stderr
	var out *os.File
	var err error
	if p.outFile, out, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout = out
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	p.out = bufio.NewReader(p.outFile)
	t.Cleanup(func() {
		p.in.Close()
		p.outFile.Close()
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	return p
}

func (p *program) say(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		p.t.Fatalf("say %q: %v; stderr: %s", format, err, &p.stderr)
	}
}

// hear reads a line.
func (p *program) hear() string {
	p.t.Helper()
	if err := p.outFile.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("read answer: %v; stderr: %s", err, &p.stderr)
	}
	return strings.TrimSuffix(line, "\n")
}

// ask says a command and wants an answer that fits a pattern.
func (p *program) ask(pattern, format string, args ...any) {
	p.t.Helper()
	p.say(format, args...)
	if got := p.hear(); !regexp.MustCompile("^" + pattern + "$").MatchString(got) {
		p.t.Errorf("%q is answered %q, want %s", fmt.Sprintf(format, args...), got, pattern)
	}
}

// end waits for the program to exit and gives its code, -1 after a signal, and how long it took.
func (p *program) end() (code int, took time.Duration) {
	p.t.Helper()
	begin := time.Now()
	err := p.cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(begin)
}

func TestProgramDialogue(t *testing.T) {
	l := newLab(t)
	p := start(t, l.Host("a"), false)
	commands, answers := readDialogue(t)
	for i, c := range commands {
		p.say("%s", c)
		if got := p.hear(); !answers[i].MatchString(got) {
			t.Errorf("%q is answered %q, want %v", c, got, answers[i])
		}
	}
	p.in.Close()
	if code, took := p.end(); code != exitDone || took > 5*time.Second {
		t.Errorf("exit with %d after %v; stderr: %s", code, took, &p.stderr)
	}
	if p.stderr.Len() > 0 {
		t.Errorf("stderr: %s", &p.stderr)
	}
}

// Every kind of probe, and what routers and targets answer to it.
func TestProgramProbes(t *testing.T) {
	l := newLab(t)
	a, b := l.Host("a"), l.Host("b")
	for _, unprivileged := range []bool{false, true} {
		name := "privileged"
		if unprivileged {
			name = "unprivileged"
		}
		t.Run(name, func(t *testing.T) {
			p := start(t, a, unprivileged)
			for i, version := range []string{"ip-4", "ip-6"} {
				n := 4 + 2*i
				target := b.Addr()
				if n == 6 {
					target = b.Addr6()
				}
				r1, r2 := l.Host("r1").AddrTowards("a", n), l.Host("r2").AddrTowards("r1", n)
				for _, protocol := range []string{"icmp", "udp", "tcp", "sctp"} {
					p.say("1 check-support feature %s", protocol)
					if p.hear() != "1 feature-support support ok" {
						if !unprivileged {
							t.Errorf("%s is not supported", protocol)
						}
						p.ask("5 invalid-argument reason protocol-not-supported", "5 send-probe %s %s protocol %s", version, target, protocol)
						continue
					}
					p.ask(fmt.Sprintf("7 ttl-expired %s %s round-trip-time [0-9]+", version, r1), "7 send-probe %s %s protocol %s ttl 1", version, target, protocol)
					p.ask(fmt.Sprintf("8 ttl-expired %s %s round-trip-time [0-9]+", version, r2), "8 send-probe %s %s protocol %s ttl 2", version, target, protocol)
					word := "reply"
					if protocol == "sctp" {
						word = "(reply|no-route-host)" // the latter when the target's kernel has no SCTP
					}
					p.ask(fmt.Sprintf("9 %s %s %s round-trip-time [0-9]+", word, version, target), "9 send-probe %s %s protocol %s", version, target, protocol)
				}
				p.ask("10 address-not-available", "10 send-probe %s %s protocol udp local-%s %s", version, target, version, r1)
				p.ask(fmt.Sprintf("11 reply %s %s round-trip-time [0-9]+", version, target), "11 send-probe %s %s protocol udp local-device r1 tos 184 size 9000", version, target)
				p.ask("12 unexpected-error errno 19", "12 send-probe %s %s protocol udp local-device nonesuch", version, target)
				p.ask(fmt.Sprintf("13 reply %s %s round-trip-time [0-9]+", version, target), "13 send-probe %s %s protocol udp port 53 local-port 2000", version, target)
			}
			p.ask("14 no-reply", "14 send-probe ip-4 203.0.113.7 protocol udp timeout 0.05")
		})
	}
}

func TestProgramNoRoute(t *testing.T) {
	l := lab.New(t, &lab.Topology{
		Hosts: map[string]lab.HostConfig{"a": {}, "b": {}},
		Wires: []lab.WireConfig{{Ends: [2]string{"a", "b"}}},
	})
	if out, err := l.Host("a").Command(t.Context(), "ip", "route", "flush", "default").CombinedOutput(); err != nil {
		t.Skipf("ip route: %v %s", err, out)
	}
	for dialect, word := range map[string]string{"0.96": "no-route-network", "0.95": "no-route"} {
		p := start(t, l.Host("a"), false, envDialect+"="+dialect)
		for _, protocol := range []string{"icmp", "udp", "tcp"} {
			p.ask("1 "+word, "1 send-probe ip-4 203.0.113.7 protocol %s", protocol)
		}
	}
}

// A mark decides the route of its probe and of no other.
func TestProgramMark(t *testing.T) {
	l := newLab(t)
	a, target := l.Host("a"), l.Host("b").Addr()
	for _, args := range [][]string{{"-4"}, {"-6"}} {
		args = append(args, "rule", "add", "fwmark", "7", "unreachable")
		if out, err := a.Command(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Skipf("ip %v: %v %s", args, err, out)
		}
	}
	p := start(t, a, false)
	p.ask("1 feature-support support ok", "1 check-support feature mark")
	for _, protocol := range []string{"icmp", "udp", "tcp"} {
		p.ask("2 reply ip-4 .*", "2 send-probe ip-4 %s protocol %s mark 8", target, protocol)
		p.ask("3 no-route-(network|host)", "3 send-probe ip-4 %s protocol %s mark 7", target, protocol)
		p.ask("4 reply ip-4 .*", "4 send-probe ip-4 %s protocol %s", target, protocol)
	}
}

// capabilities reads a set of every thread of a process.
func capabilities(t *testing.T, pid int, set string) (found []uint64) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no threads of process %d: %v", pid, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has just ended
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			if value, ok := strings.CutPrefix(line, set+":"); ok {
				v, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, v)
			}
		}
	}
	return found
}

func TestProgramPrivileges(t *testing.T) {
	const netRaw = 1 << 13
	l := newLab(t)
	target := l.Host("b").Addr()
	tests := []struct {
		name string
		say  func(p *program)
		want uint64
	}{
		{"start", func(p *program) { p.ask("1 feature-support support ok", "1 check-support feature icmp") }, netRaw},
		{"probe", func(p *program) { p.ask("1 reply .*", "1 send-probe ip-4 %s", target) }, 0},
		{"marked probe", func(p *program) { p.ask("1 reply .*", "1 send-probe ip-4 %s mark 9", target) }, netRaw},
		{"mark asked for", func(p *program) {
			p.ask("1 feature-support support ok", "1 check-support feature mark")
			p.ask("2 reply .*", "2 send-probe ip-4 %s", target)
		}, netRaw},
		{"mark too late", func(p *program) {
			p.ask("1 reply .*", "1 send-probe ip-4 %s", target)
			p.ask("2 permission-denied", "2 send-probe ip-4 %s mark 9", target)
			p.ask("3 feature-support support no", "3 check-support feature mark")
			// Everything else works without: another protocol, another interface.
			p.ask("4 reply .*", "4 send-probe ip-4 %s protocol tcp", target)
			p.ask("5 reply .*", "5 send-probe ip-4 %s protocol udp local-device r1", target)
			p.ask("6 reply .*", "6 send-probe ip-4 127.0.0.1 local-device lo")
			p.ask("7 reply .*", "7 send-probe ip-6 %s local-device r1", l.Host("b").Addr6())
		}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := start(t, l.Host("a"), false)
			tt.say(p)
			for _, set := range []string{"CapPrm", "CapEff", "CapInh", "CapAmb"} {
				want := tt.want
				if set == "CapInh" || set == "CapAmb" {
					want = 0
				}
				for i, got := range capabilities(t, p.cmd.Process.Pid, set) {
					if got != want {
						t.Errorf("%s of thread %d is %#x, want %#x", set, i+1, got, want)
					}
				}
			}
		})
	}
}

// When commands end, what is in flight is waited for, and waiting costs nothing.
func TestProgramEndOfInput(t *testing.T) {
	l := newLab(t)
	p := start(t, l.Host("a"), false)
	begin := time.Now()
	p.say("1 send-probe ip-4 203.0.113.7 timeout 1\n2 nonsense\n3 unfinished send-probe")
	fmt.Fprint(p.in, "4 check-support feature")
	p.in.Close()
	for _, want := range []string{"2 unknown-command", "0 command-parse-error", "1 no-reply"} {
		if got := p.hear(); got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	if took := time.Since(begin); took < time.Second {
		t.Errorf("the probe timed out after %v", took)
	}
	if code, took := p.end(); code != exitDone || took > 2*time.Second {
		t.Errorf("exit with %d after %v", code, took)
	}
	usage := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	if usage > 500*time.Millisecond {
		t.Errorf("it used %v of processor time", usage)
	}
}

// Orphans do not live on: the driver has gone, with its ends of both pipes.
func TestProgramOrphan(t *testing.T) {
	l := newLab(t)
	p := start(t, l.Host("a"), false)
	p.say("1 send-probe ip-4 203.0.113.7 timeout 50")
	p.ask("2 unknown-command", "2 nonsense")
	p.in.Close()
	p.outFile.Close()
	if code, took := p.end(); code != exitFailed || took > 5*time.Second {
		t.Errorf("exit with %d after %v, want %d at once", code, took, exitFailed)
	}
}

// The same with a driver that starts the program through a shell, and kills only that: mtrpacket. It waits for the end
// of the output.
func TestProgramOrphanOfShell(t *testing.T) {
	l := newLab(t)
	cmd := l.Host("a").Command(t.Context(), "sh", "-c", `"$MTR_PACKET"; true`)
	cmd.Env = environment(t)
	p := startCmd(t, cmd)
	p.say("1 send-probe ip-4 203.0.113.7 timeout 50")
	p.ask("2 unknown-command", "2 nonsense")
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.in.Close()
	if err := p.outFile.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if line, err := p.out.ReadString('\n'); err != io.EOF {
		t.Errorf("heard %q, %v, want the end", line, err)
	}
}

func TestProgramTerminated(t *testing.T) {
	l := newLab(t)
	p := start(t, l.Host("a"), false)
	p.say("1 send-probe ip-4 203.0.113.7 timeout 50")
	p.ask("2 unknown-command", "2 nonsense")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, took := p.end(); took > 5*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v", p.cmd.ProcessState)
	}
}

// A driver that writes everything, closes, and only then reads, misses nothing.
func TestProgramSlowReader(t *testing.T) {
	l := newLab(t)
	p := start(t, l.Host("a"), false)
	const n = 200_000 // more than both pipes and the backlog hold
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(p.in, strings.Repeat("1 check-support feature send-probe\n", n))
		written <- errors.Join(err, p.in.Close())
	}()
	select {
	case err := <-written:
		t.Logf("all was taken at once: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	for i := range n {
		if got := p.hear(); got != "1 feature-support support ok" {
			t.Fatalf("answer %d is %q", i+1, got)
		}
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	if code, _ := p.end(); code != exitDone {
		t.Errorf("exit with %d", code)
	}
}

func TestProgramManyInFlight(t *testing.T) {
	l := newLab(t)
	const n = 10_000
	p := start(t, l.Host("a"), false)
	var text strings.Builder
	for i := range n {
		protocol := "icmp"
		if i%3 == 0 {
			protocol = "tcp"
		}
		fmt.Fprintf(&text, "%d send-probe ip-4 203.0.113.7 protocol %s timeout 3\n", i, protocol)
	}
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(p.in, text.String()+"-1 send-probe ip-4 "+l.Host("b").Addr().String()+"\n")
		written <- err
	}()
	if got := p.hear(); !strings.HasPrefix(got, "-1 reply ") {
		t.Errorf("while all others are in flight: %q", got)
	}
	seen := make([]bool, n)
	for range n {
		token, word, _ := strings.Cut(p.hear(), " ")
		i, err := strconv.Atoi(token)
		if err != nil || i < 0 || i >= n || seen[i] || word != "no-reply" {
			t.Fatalf("heard %q %q", token, word)
		}
		seen[i] = true
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

func TestProgramExhausted(t *testing.T) {
	l := newLab(t)
	p := start(t, l.Host("a"), false, envProbes+"=3")
	for i := range 3 {
		p.say("%d send-probe ip-4 203.0.113.7 timeout 30", i)
	}
	p.ask("3 probes-exhausted", "3 send-probe ip-4 203.0.113.7")
}

func TestProgramArguments(t *testing.T) {
	l := lab.New(t, &lab.Topology{Hosts: map[string]lab.HostConfig{"a": {}}})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		arg, env string
		code     int
		want     string
	}{
		{"--version", "", exitDone, "mtr-packet 0.96-fathom\n"},
		{"--help", "", exitDone, usage},
		{"--nonsense", "", exitUsage, "unknown argument \"--nonsense\""},
		{"", envDialect + "=0.1", exitUsage, "FATHOM_MTR_DIALECT=\"0.1\": want 0.96 or 0.95"},
		{"", envProbes + "=x", exitUsage, "FATHOM_MTR_PROBES=\"x\": want a number from 1 to 32000"},
	}
	for _, tt := range tests {
		cmd := l.Host("a").Command(t.Context(), self, strings.Fields(tt.arg)...)
		cmd.Env = environment(t, tt.env)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(out), tt.want) {
			t.Errorf("%s %s: exit with %d, %q, want %d, %q", tt.arg, tt.env, code, out, tt.code, tt.want)
		}
	}
}
