// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// ping runs the system's ping on a host, and fails the test unless all is answered.
func ping(t *testing.T, l *Lab, from string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("ping"); err != nil {
		t.Skip("needs ping")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := l.Host(from).Command(ctx, "ping", append([]string{"-n", "-c", "2", "-i", "0.05", "-W", "2"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: ping %v: %v\n%s", from, args, err, out)
	}
	return string(out)
}

// a --- r1 --- r2 --- b
func TestKernelRouters(t *testing.T) {
	l := New(t, MustParse(`
		[host.a]
		[router.r1]
		[router.r2]
		[host.b]
		addresses = ["192.0.2.1", "2001:db8::1"]
		[[wire]]
		ends = ["a", "r1"]
		[[wire]]
		ends = ["r1", "r2"]
		[[wire]]
		ends = ["r2", "b"]
	`))
	b := l.Host("b")
	for _, addr := range b.Addrs() {
		ping(t, l, "a", addr.String())
	}
}
