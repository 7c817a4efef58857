// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"net"
	"testing"
	"time"
)

// A socket connects from the port that another one listens on, and is taken for what it is.
func TestReusePort(t *testing.T) {
	lc := net.ListenConfig{Control: ReusePort}
	here, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()

	plain := net.Dialer{LocalAddr: here.Addr(), Timeout: 5 * time.Second}
	if c, err := plain.Dial("tcp4", there.Addr().String()); err == nil {
		c.Close()
		t.Error("connected from the port of a listener without asking for it")
	}
	d := net.Dialer{LocalAddr: here.Addr(), Control: ReusePort, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp4", there.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := there.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if got, want := accepted.RemoteAddr().String(), here.Addr().String(); got != want {
		t.Errorf("connected from %s, want %s", got, want)
	}
}
