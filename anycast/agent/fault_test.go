// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"

	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// partition is a network between agent and controller that can lose everything without telling anybody.
type partition struct {
	cut atomic.Bool
}

func (p *partition) dial(dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		if p.cut.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		c, err := dial(ctx, address)
		return &wire{Conn: c, p: p}, err
	}
}

// wire is a connection. One that lost something is of no use any more, as its streams have holes.
type wire struct {
	net.Conn
	p    *partition
	lost atomic.Bool
}

func (w *wire) loses() bool {
	if w.p.cut.Load() {
		w.lost.Store(true)
	}
	return w.lost.Load()
}

func (w *wire) Write(b []byte) (int, error) {
	if w.loses() {
		return len(b), nil
	}
	return w.Conn.Write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	for {
		if n, err := w.Conn.Read(b); err != nil || !w.loses() {
			return n, err
		}
	}
}

// TestPartition cuts the network for a minute. The agent notices, connects again when it can, and delivers what it has
// heard in the meantime.
func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		var p partition
		s := start(t, Options{Links: oneLink, Dial: p.dial(c.dial)})
		a := c.accept(0)
		o := open(1, measurepb.Protocol_PROTOCOL_ICMP)
		a.order(o)
		order := send(1, 1, 0, 100, 0)
		order.Rate = 1
		a.order(order)
		tab := table(t, o)
		book := ledger{numbers: map[uint32]int{}, reports: map[uint64]int{}}
		number := func(r received) uint32 { return uint32(parse(t, tab, r).Number) }
		for len(book.numbers) < 5 {
			book.take(t, a.next(), number)
		}
		p.cut.Store(true)
		time.Sleep(pingEvery + pingTimeout + 5*time.Second)
		if st := s.Stats().Links[0]; st.Connected {
			t.Errorf("%+v during a partition", st)
		}
		time.Sleep(25 * time.Second)
		p.cut.Store(false)
		for len(a.in) > 0 {
			book.take(t, <-a.in, number)
		}
		a = c.accept(book.seq, 1)
		for len(book.numbers) < 100 || len(book.reports) < 1 {
			book.take(t, a.next(), number)
		}
		for n, times := range book.numbers {
			if times != 1 {
				t.Errorf("answer %d came %d times", n, times)
			}
		}
	})
}

// TestSilentController accepts connections, and says nothing.
func TestSilentController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		start(t, Options{Links: oneLink, Dial: c.dial})
		<-c.attached
		began := time.Now()
		<-c.attached
		if d := time.Since(began); d < dialTimeout || d > dialTimeout+time.Second {
			t.Errorf("the next attempt came after %v, want a little more than %v", d, dialTimeout)
		}
	})
}

// TestDeafController sends orders without ever acknowledging a report: the agent does not keep more and more of them.
func TestDeafController(t *testing.T) {
	c := newController(t)
	s := start(t, Options{Links: oneLink, Dial: c.dial, Spool: 1000})
	a := c.accept(0)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for range a.in {
		}
	}()
	for i := 0; ; i++ {
		select {
		case <-gone:
			if st := s.Stats().Links[0]; st.Spooled > 2*maxReports {
				t.Errorf("%+v", st)
			}
			return
		default:
		}
		if i > 1<<20 {
			t.Fatal("the agent took a million bad orders")
		}
		a.order(&measurepb.Send{Session: 77, Batch: uint64(i)})
	}
}

// certificate makes one that signs itself.
func certificate(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, pool
}

// TestTLS attaches with certificates at both ends, and refuses a controller of another name or an old version of TLS.
func TestTLS(t *testing.T) {
	server, serverPool := certificate(t, "control.test")
	client, clientPool := certificate(t, "ams")
	for _, test := range []struct {
		name    string
		address string
		version uint16
		ok      bool
	}{
		{"good", "control.test:50051", tls.VersionTLS13, true},
		{"other name", "other.test:50051", tls.VersionTLS13, false},
		{"old", "control.test:50051", tls.VersionTLS12, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &controller{t: t, listener: bufconn.Listen(1 << 20), attached: make(chan *attachment, 1)}
			c.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
				Certificates: []tls.Certificate{server}, ClientCAs: clientPool, ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: test.version,
			})))
			measurepb.RegisterFleetServer(c.server, c)
			serve(t, c.server, c.listener)
			var dialled atomic.Int32
			start(t, Options{
				Links: []Link{{Address: test.address, TLS: &tls.Config{Certificates: []tls.Certificate{client}, RootCAs: serverPool}}},
				Dial: func(ctx context.Context, address string) (net.Conn, error) {
					dialled.Add(1)
					return c.dial(ctx, address)
				},
			})
			if test.ok {
				a := c.accept(0)
				a.order(&measurepb.Ping{Id: 1})
				if a.next().GetPong().GetId() != 1 {
					t.Error("no pong")
				}
				return
			}
			for end := time.Now().Add(patience); dialled.Load() < 2; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("there was no second attempt")
				}
			}
			if len(c.attached) > 0 {
				t.Error("attached")
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	c := newController(t)
	s := start(t, Options{Links: oneLink, Dial: c.dial, Metrics: registry})
	a := c.accept(0)
	a.order(open(1, measurepb.Protocol_PROTOCOL_ICMP))
	a.order(send(1, 1, 0, 3, 0))
	a.collect(1, 3)
	want := `
		# HELP fathom_anycast_agent_answers_recognised_total Answers to probes of open sessions.
		# TYPE fathom_anycast_agent_answers_recognised_total counter
		fathom_anycast_agent_answers_recognised_total 3
		# HELP fathom_anycast_agent_connected 1 while the controller is there.
		# TYPE fathom_anycast_agent_connected gauge
		fathom_anycast_agent_connected{controller="control.test:50051"} 1
		# HELP fathom_anycast_agent_probes_sent_total Probes handed to the network.
		# TYPE fathom_anycast_agent_probes_sent_total counter
		fathom_anycast_agent_probes_sent_total 3
	`
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = testutil.GatherAndCompare(registry, strings.NewReader(want), "fathom_anycast_agent_answers_recognised_total",
			"fathom_anycast_agent_connected", "fathom_anycast_agent_probes_sent_total"); err == nil {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry); n != 0 || err != nil {
		t.Errorf("%d metrics of a closed agent, error %v", n, err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("a closed agent runs")
	}
}
