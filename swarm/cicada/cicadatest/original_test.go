// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package cicadatest_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/cicada/cicadatest"
)

// start starts an original on a free port.
func start() (*cicadatest.Original, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return cicadatest.New(l, cicadatest.Options{
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp4", to.String())
		},
	}), nil
}

// Two originals, of which one joins the other and says hello to it.
func Example() {
	a, err := start()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	b, err := start()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	if err := b.Join(context.Background(), a.Ref().Addr); err != nil {
		fmt.Println(err)
		return
	}
	if err := b.Send(a.Ref().ID, "hello"); err != nil {
		fmt.Println(err)
		return
	}
	for _, m := range a.Received() {
		fmt.Printf("%q, from the peer that joined: %v\n", m.Payload, m.From == b.Ref().ID)
	}
	// Output: "hello", from the peer that joined: true
}

// A ring of originals: who joins stands between the others, and a broadcast reaches those whom it can.
func TestRing(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("originals take their time")
	}
	a, err := start()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := start()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Join(t.Context(), a.Ref().Addr); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		na, nb := a.Node(), b.Node()
		if na.Predecessor == b.Ref() && na.Successor == b.Ref() && nb.Predecessor == a.Ref() && nb.Successor == a.Ref() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no ring: %+v, %+v", na, nb)
		}
	}
	a.Broadcast("to all")
	if n := b.Got("to all"); n != 1 {
		t.Errorf("heard %d times", n)
	}
	b.Close()
	if err := a.Send(b.Ref().ID, "gone"); err == nil {
		t.Error("what is for a dead peer is answered")
	}
	if harm := a.Harm(); len(harm) != 0 {
		t.Errorf("originals break each other: %q", harm)
	}
}
