// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast/client"
)

// slowConn writes late: the other end has closed by then.
type slowConn struct{ net.Conn }

func (c slowConn) Write(b []byte) (int, error) {
	time.Sleep(20 * time.Millisecond)
	return c.Conn.Write(b)
}

// TestRefused holds that a client whose certificate is refused is told that, and not only of a broken pipe.
func TestRefused(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		VerifyConnection: func(tls.ConnectionState) error { return errors.New("revoked") },
	})
	if err != nil {
		t.Fatal(err)
	}
	var server sync.WaitGroup
	server.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake() // it sends the alert
			conn.Close()
		}
	})
	defer func() { listener.Close(); server.Wait() }()
	for range 5 {
		c, err := client.Dial(t.Context(), listener.Addr().String(), client.Options{
			TLS: &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"h2"}},
			Dialer: func(ctx context.Context, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
				return slowConn{conn}, err
			},
		})
		if err == nil {
			c.Close()
			t.Fatal("no error")
		}
		if !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), "remote error: tls: bad certificate") {
			t.Errorf("the error does not say why: %v", err)
		}
	}
}
