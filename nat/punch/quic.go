// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	quicProtocol = "fathom-punch/1" // ALPN

	// NATs are asked to keep a UDP mapping for two minutes, and found to keep it for half of one
	// (RFC 4787 section 4.3).
	keepAlive   = 15 * time.Second
	idleTimeout = 45 * time.Second

	// lingerTime is how long a closed connection waits for the other side to have read everything, and
	// lingerAtClose how long when the Puncher closes as well.
	lingerTime    = 10 * time.Second
	lingerAtClose = 250 * time.Millisecond
)

// quicCloseCode is the application error code of every orderly end.
const quicCloseCode = 0

func quicConfig(incoming int64) *quic.Config {
	return &quic.Config{
		Versions:              []quic.Version{quic.Version1},
		MaxIdleTimeout:        idleTimeout,
		KeepAlivePeriod:       keepAlive,
		MaxIncomingStreams:    incoming,
		MaxIncomingUniStreams: -1,
	}
}

// newCertificate makes a self-signed certificate, known by its SHA-256 alone.
func newCertificate() (tls.Certificate, [32]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, [32]byte{}, fmt.Errorf("make a key: %w", err)
	}
	// Nobody looks at the dates: the certificate is good while the Puncher lives.
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, [32]byte{}, fmt.Errorf("make a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, sha256.Sum256(der), nil
}

// tlsConfig accepts certificates by their hashes.
func tlsConfig(own tls.Certificate, accept func(hash [32]byte) bool) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{own},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{quicProtocol},
		ServerName:             "punch.invalid", // not sent anywhere that it would matter
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // no authority has signed; VerifyConnection compares with the offer
		VerifyConnection: func(cs tls.ConnectionState) error {
			if hash, ok := peerHash(cs); !ok || !accept(hash) {
				return errStranger
			}
			return nil
		},
	}
}

func peerHash(cs tls.ConnectionState) (hash [32]byte, ok bool) {
	if len(cs.PeerCertificates) == 0 {
		return hash, false
	}
	return sha256.Sum256(cs.PeerCertificates[0].Raw), true
}

// quicConn is the only stream of a QUIC connection, as a net.Conn.
type quicConn struct {
	p      *Puncher
	conn   *quic.Conn
	stream *quic.Stream
	closed atomic.Bool
	once   sync.Once

	// A stream is not to be closed while it is written to, and lingering reads after the application has.
	reading, writing sync.Mutex
}

var _ net.Conn = (*quicConn)(nil)

func (c *quicConn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closed.Load() {
		return 0, c.error("read", net.ErrClosed)
	}
	n, err := c.stream.Read(b)
	return n, c.error("read", err)
}

func (c *quicConn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.closed.Load() {
		return 0, c.error("write", net.ErrClosed)
	}
	n, err := c.stream.Write(b)
	return n, c.error("write", err)
}

// Close ends the connection once the other side has read everything and closed as well; it does not wait for that.
func (c *quicConn) Close() error {
	c.once.Do(func() {
		c.closed.Store(true)
		past := time.Unix(1, 0)
		_ = c.stream.SetDeadline(past) // who reads or writes gives up its lock
		c.p.linger(c)
	})
	return nil
}

func (c *quicConn) linger() {
	defer c.abort()
	c.writing.Lock()
	err := c.stream.Close()
	c.writing.Unlock()
	if err != nil {
		return
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	_ = c.stream.SetReadDeadline(time.Now().Add(lingerTime))
	stop := context.AfterFunc(c.p.ctx, func() { _ = c.stream.SetReadDeadline(time.Now().Add(lingerAtClose)) })
	defer stop()
	_, _ = io.Copy(io.Discard, c.stream)
}

// abort ends the connection at once. What has not arrived is lost.
func (c *quicConn) abort() {
	c.closed.Store(true)
	_ = c.conn.CloseWithError(quicCloseCode, "")
	c.p.forget(c)
}

func (c *quicConn) LocalAddr() net.Addr  { return c.conn.LocalAddr() }
func (c *quicConn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

func (c *quicConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *quicConn) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.error("set", net.ErrClosed)
	}
	return c.stream.SetReadDeadline(t)
}

func (c *quicConn) SetWriteDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.error("set", net.ErrClosed)
	}
	return c.stream.SetWriteDeadline(t)
}

// error says what went wrong in the words of package net.
func (c *quicConn) error(op string, err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case c.closed.Load():
		err = net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		// quic-go's error says no more
		err = os.ErrDeadlineExceeded
	default:
		// The other side has ended the connection in order, having read everything it wanted.
		if end, ok := errors.AsType[*quic.ApplicationError](err); ok && end.Remote && end.ErrorCode == quicCloseCode && op == "read" {
			return io.EOF
		}
	}
	return &net.OpError{Op: op, Net: "quic", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
