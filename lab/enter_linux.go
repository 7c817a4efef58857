// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stageVar tells a process that Enter started which part it plays. It is removed before the
// program proper runs, so that a lab within a lab works as the first one does.
const stageVar = "FATHOM_LAB_STAGE"

const (
	stageInit    = "init"    // process 1 of the new PID namespace: starts the program, reaps orphans
	stageProgram = "program" // the program proper
)

// Enter moves the program into network, mount and PID namespaces of its own and, if it is not root,
// a user namespace in which it is. It does so by starting the program
// again: in the outer process Enter does not return but waits, hands signals on, and exits with
// the code of the inner one. In the inner process it returns nil. Call it first thing, before
// the program reads its input or opens anything.
//
// Whatever becomes of the outer process, kill -9 included, the kernel then kills every process
// inside and drops every network with them.
//
// Where the system forbids namespaces Enter returns an error that wraps [ErrNoNamespaces].
func Enter() error {
	switch os.Getenv(stageVar) {
	case stageInit:
		os.Exit(initStage())
	case stageProgram:
		return os.Unsetenv(stageVar)
	}
	code, err := outerStage()
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

// enterErr is why Main could not enter namespaces; every test that skips says so. Written before the tests run.
var enterErr error

// Main is for a package's TestMain: it enters namespaces, runs the tests and returns the code to exit
// with. Where namespaces are forbidden the tests run all the same, and [New] skips those that
// need a lab.
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
func Main(m *testing.M) int {
	for _, arg := range os.Args[1:] {
		name := strings.TrimLeft(arg, "-")
		// A fuzz worker talks to its coordinator over inherited descriptors, and a listing needs nothing.
		if strings.HasPrefix(name, "test.fuzzworker") || strings.HasPrefix(name, "test.list") {
			return m.Run()
		}
	}
	if err := Enter(); err != nil {
		enterErr = err
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
	}
	return m.Run()
}

// outerStage starts the init stage in new namespaces and waits for it.
func outerStage() (int, error) {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if !capable() {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	code, err := runStage(stageInit, attr, nil)
	if err != nil {
		return 0, noNamespaces(err)
	}
	return code, nil
}

// initStage is process 1 of the namespaces.
func initStage() int {
	if err := errors.Join(prepareMounts(), prepareNetwork()); err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		return 1
	}
	code, err := runStage(stageProgram, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, reap)
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		return 1
	}
	return code
}

// runStage starts this program again, as a part of it, and waits. Signals that arrive meanwhile
// are handed on.
func runStage(stage string, attr *syscall.SysProcAttr, wait func(*os.Process) (int, error)) (int, error) {
	// The parent-death signal comes when the thread that started the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwardedSignals...)
	defer signal.Stop(signals)
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), stageVar+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	var forwarder sync.WaitGroup
	forwarder.Go(func() {
		for {
			select {
			case sig := <-signals:
				if !fromTerminal(sig) {
					_ = cmd.Process.Signal(sig) // it may have just ended
				}
			case <-done:
				return
			}
		}
	})
	defer forwarder.Wait()
	defer close(done)
	if wait != nil {
		return wait(cmd.Process)
	}
	err := cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return 0, err
	}
	return exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

var forwardedSignals = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
}

// fromTerminal guesses whether the terminal sent a signal. If so it went to the whole foreground process
// group and must not be handed on a second time.
func fromTerminal(sig os.Signal) bool {
	if sig != syscall.SIGINT && sig != syscall.SIGQUIT {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// reap waits for the program, and meanwhile for every orphan that the kernel hands to process 1.
func reap(program *os.Process) (int, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for children: %w", err)
		case pid == program.Pid && (status.Exited() || status.Signaled()):
			return exitCode(status), nil
		}
	}
}

// exitCode is what a shell makes of a wait status.
func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// prepareMounts detaches our mounts from the system's, and shows the processes of this PID
// namespace in /proc. A container may refuse the latter; then /proc shows the outer ones, and
// its "self" entries, which are all that this package uses, are right all the same.
func prepareMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}

// prepareNetwork gives the program's own namespace, outside all labs, a working loopback.
func prepareNetwork() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	if err := handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up loopback interface: %w", err)
	}
	for _, s := range nodeSysctls {
		if err := s.write(); err != nil {
			return err
		}
	}
	return nil
}

// capable reports whether this process may create namespaces and configure networks as it is.
func capable() bool {
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&need == need
}

// noNamespaces explains why the kernel refused.
func noNamespaces(err error) error {
	hint := "the kernel or the container forbids them"
	switch {
	case fileSays("/proc/sys/user/max_user_namespaces", "0"):
		hint = "user.max_user_namespaces is 0: raise it with sysctl, or run as root"
	case fileSays("/proc/sys/kernel/unprivileged_userns_clone", "0"):
		hint = "kernel.unprivileged_userns_clone is 0: set it to 1 with sysctl, or run as root"
	case fileSays("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"):
		hint = "AppArmor restricts user namespaces: set kernel.apparmor_restrict_unprivileged_userns to 0 with sysctl, or run as root"
	case errors.Is(err, unix.EPERM):
		hint = "user namespaces are forbidden here: run as root, or allow them (a container needs --privileged or a seccomp profile with unshare)"
	case errors.Is(err, unix.ENOSPC):
		hint = "the limit on namespaces is reached (user.max_*_namespaces)"
	}
	return fmt.Errorf("%w: %w; %s", ErrNoNamespaces, err, hint)
}

func fileSays(path, value string) bool {
	b, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(b)) == value
}
