// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Exchange carries one request to the controller and brings back the answer: with gRPC, one unary call. The
// connection's handshake is done, with h2 as its protocol; the request is bound to this connection and is
// worth nothing on another. Join closes conn.
type Exchange func(ctx context.Context, conn net.Conn, request []byte) (reply []byte, err error)

// JoinOptions are how [Join] reaches the controller.
type JoinOptions struct {
	// Exchange is needed.
	Exchange Exchange
	// Dial connects to the controller; nil means TCP with a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout of all of it; 0 means 30 s.
	Timeout time.Duration
}

// Join makes a key, proves a token to its controller, and saves the credentials that it gets in dir, which must
// not exist or be empty. Nothing is sent before the controller has shown that it has the pinned CA, and the token
// is used only after dir has proved writable.
//
// Errors: [ErrEnrolled], [ErrPin], [ErrRole] if a member poses as the controller, [ErrTokenUsed], [ErrTokenExpired],
// [ErrToken], [ErrProof], [ErrRevoked], [ErrName]; those of the network.
func Join(ctx context.Context, t Token, dir string, o JoinOptions) (*Credentials, error) {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c, err := join(ctx, t, dir, o)
	if err != nil {
		return nil, fmt.Errorf("join %s as %v: %w", t.Controller, t.Identity, err)
	}
	return c, nil
}

func join(ctx context.Context, t Token, dir string, o JoinOptions) (*Credentials, error) {
	dir = filepath.Clean(dir)
	if occupied(dir) {
		return nil, fmt.Errorf("%s is not empty; move it away or choose another: %w", dir, ErrEnrolled)
	}
	if err := os.MkdirAll(filepath.Dir(dir), dirMode); err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: t.Identity.Name}, URIs: []*url.URL{t.Identity.uri()},
	}, key)
	if err != nil {
		return nil, err
	}
	err = makeDir(dir, func(put func(string, []byte) error) error {
		if err := put(fileKey, keyPEM); err != nil {
			return err
		}
		if err := put(fileController, []byte(t.Controller+"\n")); err != nil {
			return err
		}
		a, err := ask(ctx, t, csr, o)
		if err != nil {
			return err
		}
		cert, roots, err := a.certificates()
		if err != nil {
			return err
		}
		who, err := checkGranted(cert, key, roots)
		if err != nil {
			return err
		}
		if who != t.Identity {
			return fmt.Errorf("the certificate is for %v: %w", who, ErrName)
		}
		if err := put(fileRoots, encodePEM("CERTIFICATE", a.Roots...)); err != nil {
			return err
		}
		return put(fileCert, encodePEM("CERTIFICATE", a.Certificate))
	})
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: %w", ErrEnrolled, err)
	} else if err != nil {
		return nil, err
	}
	return load(dir)
}

// ask sends the request over a connection whose other end has the pinned CA.
func ask(ctx context.Context, t Token, csr []byte, o JoinOptions) (answer, error) {
	raw, err := o.Dial(ctx, "tcp", t.Controller)
	if err != nil {
		return answer{}, err
	}
	conn := tls.Client(raw, pinnedTLS(t.Pin))
	defer conn.Close()
	if err := conn.HandshakeContext(ctx); err != nil {
		return answer{}, err
	}
	proof, err := prove(t.secret[:], conn.ConnectionState(), csr)
	if err != nil {
		return answer{}, err
	}
	reply, err := o.Exchange(ctx, conn, marshal(request{
		Version: messageVersion, Op: opJoin, Member: t.id.String(), CSR: csr, Proof: proof,
	}))
	if err != nil {
		return answer{}, err
	}
	return parseAnswer(reply)
}

// pinnedTLS accepts only controllers with a certificate of the CA that has the pinned key, as that CA is in the
// chain that they send.
func pinnedTLS(pin Pin) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, // VerifyConnection verifies all of it, against the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			var pinned []*x509.Certificate
			for _, c := range cs.PeerCertificates[min(1, len(cs.PeerCertificates)):] {
				if c.IsCA && pinOf(c) == pin {
					pinned = append(pinned, c)
				}
			}
			if len(pinned) == 0 {
				return ErrPin
			}
			err := verifyController(cs, pool(pinned...))
			if errors.Is(err, ErrUntrusted) {
				return fmt.Errorf("%w: %w", ErrPin, err)
			}
			return err
		},
	}
}
