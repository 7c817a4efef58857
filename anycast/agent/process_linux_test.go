// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"testing"

	"google.golang.org/grpc"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/probe"
)

// processVariable makes the test program an agent, with the controller at its value.
const processVariable = "FATHOM_TEST_AGENT_CONTROLLER"

// process is an agent in a process of its own, as a site runs it: without privileges once it has its sockets. It ends with its
// standard input, and then says how much memory it needed at most.
func process(controller string) int {
	a, err := New(Options{ID: "a", Links: []Link{{Address: controller}}, Anycast: shared[:]})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if err := probe.DropPrivileges(false); err != nil {
		fmt.Println(err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := a.Run(ctx); err != nil {
		fmt.Println(err)
		return 1
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("%s\n", status)
	return 0
}

// TestProcess has an agent without privileges open sessions, send and hear, and holds what it takes of memory under load.
func TestProcess(t *testing.T) {
	l := pair(t)
	c := newController(t)
	var listener net.Listener
	if err := l.Host("b").Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(target[0].String(), "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	measurepb.RegisterFleetServer(server, c)
	serve(t, server, listener)

	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := l.Host("a").Command(t.Context(), program)
	cmd.Env = append(os.Environ(), processVariable+"="+listener.Addr().String())
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	at := c.accept(0)
	at.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
	at.order(open(2, measurepb.Protocol_PROTOCOL_UDP))
	for v := range 2 {
		at.order(send(1, uint64(v), v, 10, 0))
		rs, _ := at.collect(1, 10)
		if rs[0].GetError() != "" || rs[0].GetCount() != 10 || !rs[0].GetKernel() {
			t.Errorf("report %v", rs[0])
		}
	}
	const orders, each = 5, 20000
	for i := range orders {
		s := send(1, uint64(i), 0, each, 0)
		s.Stamps = false
		at.order(s)
	}
	if n := at.count(orders * each); n != orders*each {
		t.Errorf("%d answers to %d probes", n, orders*each)
	}
	stdin.Close()
	var peak, capabilities string
	pattern := regexp.MustCompile(`^(VmHWM|CapPrm):\s*(\w+)`)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if m := pattern.FindStringSubmatch(lines.Text()); m != nil && m[1] == "VmHWM" {
			peak = m[2]
		} else if m != nil {
			capabilities = m[2]
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if capabilities != "0000000000000000" {
		t.Errorf("capabilities %q are left", capabilities)
	}
	kib, err := strconv.Atoi(peak)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d probes and answers took %d MB at most", orders*each, kib>>10)
	if kib > raceFactor*64<<10 { // twice the goal: the test program is larger than an agent
		t.Errorf("%d KiB of memory", kib)
	}
}
