// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// The files of a credentials directory.
const (
	fileRoots      = "ca.pem"     // the CAs to trust
	fileCert       = "cert.pem"   // the member's certificate
	fileKey        = "key.pem"    // its key, which never left the host
	fileController = "controller" // HOST:PORT; may be edited when the controller moves
)

// Credentials are what a member has to show: a certificate, its key, and the CAs by which it knows the
// controller. They are a directory, made by [Join] and read by [Load]:
//
//	DIR/ca.pem, cert.pem, key.pem, controller     mode 0600, in a directory of mode 0700
//
// All methods may be called from several goroutines.
type Credentials struct {
	dir        string
	controller string
	identity   Identity

	mu    sync.Mutex
	cert  *tls.Certificate // replaced as a whole; never changed
	roots *x509.CertPool   // likewise
}

// Load reads a credentials directory. Errors: [ErrNotEnrolled] if there is nothing, [ErrMode] if others may read
// it, [ErrExpired] if only a new token helps.
func Load(dir string) (*Credentials, error) {
	c, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	return c, nil
}

func load(dir string) (*Credentials, error) {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: make a token on the controller's host, and join with it here", dir, ErrNotEnrolled)
	} else if err != nil {
		return nil, err
	}
	if err := checkPrivate(dir, info); err != nil {
		return nil, err
	}
	content := map[string][]byte{}
	for _, name := range []string{fileRoots, fileCert, fileKey, fileController} {
		b, err := readPrivate(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s has no %s: %w", dir, name, ErrNotEnrolled)
		} else if err != nil {
			return nil, err
		}
		content[name] = b
	}
	roots, err := decodeCerts(content[fileRoots])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileRoots), err)
	}
	certs, err := decodeCerts(content[fileCert])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileCert), err)
	}
	key, err := decodeKey(content[fileKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileKey), err)
	}
	controller := strings.TrimSpace(string(content[fileController]))
	if err := checkController(controller); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileController), err)
	}
	identity, err := checkGranted(certs[0], key, roots)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileCert), err)
	}
	return &Credentials{
		dir: dir, controller: controller, identity: identity, roots: pool(roots...), cert: certificate(certs[0], key),
	}, nil
}

func certificate(cert *x509.Certificate, key crypto.Signer) *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// checkGranted says whether a certificate is one for key, from one of the roots, and for a client.
func checkGranted(cert *x509.Certificate, key crypto.Signer, roots []*x509.Certificate) (Identity, error) {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return Identity{}, fmt.Errorf("the certificate is for another key: %w", ErrUntrusted)
	}
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: pool(roots...), CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return Identity{}, untrusted(err)
	}
	return IdentityOf(cert)
}

// Identity is who the holder is.
func (c *Credentials) Identity() Identity { return c.identity }

// Controller is the controller's address, HOST:PORT.
func (c *Credentials) Controller() string { return c.controller }

func (c *Credentials) now() (*tls.Certificate, *x509.CertPool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cert, c.roots
}

// Expires is when the certificate ends.
func (c *Credentials) Expires() time.Time {
	cert, _ := c.now()
	return cert.Leaf.NotAfter
}

// RenewAt is when the certificate should be renewed: after two thirds of its time.
func (c *Credentials) RenewAt() time.Time {
	cert, _ := c.now()
	return renewAt(cert.Leaf)
}

func renewAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 3 * 2)
}

// ClientTLS gives the configuration of a connection to the controller, with the member's certificate. It
// may be kept: after a renewal new connections have the new certificate. The other end must have a
// certificate with the role of controller from a CA of the same authority; by what address it was
// reached does not matter.
//
// A controller refuses a certificate only after the client's handshake, so the refusal appears at the
// first read: see [Explain].
func (c *Credentials) ClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, _ := c.now()
			return cert, nil
		},
		// Host names do not matter and the CAs may change, so VerifyConnection does the whole
		// verification, in every handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, roots := c.now()
			return verifyController(cs, roots)
		},
	}
}

// RenewRequest is the request for a new certificate. It must go over a connection made with
// [Credentials.ClientTLS]; the answer is for [Credentials.Renewed].
func (c *Credentials) RenewRequest() []byte {
	return marshal(request{Version: messageVersion, Op: opRenew})
}

// Renewed takes the answer to a [Credentials.RenewRequest]: checks the certificate, uses it from now on, and saves it.
// If only saving fails, the error says so and the new certificate is in use all the same. The key stays: a
// new key is a new enrolment. Errors: those of [Authority.Respond], [ErrRequest], [ErrUntrusted].
func (c *Credentials) Renewed(message []byte) error {
	a, err := parseAnswer(message)
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	cert, roots, err := a.certificates()
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key, _ := c.cert.PrivateKey.(crypto.Signer)
	identity, err := checkGranted(cert, key, roots)
	if err == nil && identity != c.identity {
		err = fmt.Errorf("it is for %v: %w", identity, ErrName)
	}
	if err != nil {
		return fmt.Errorf("renew certificate of %v: %w", c.identity, err)
	}
	c.cert, c.roots = certificate(cert, key), pool(roots...)
	// The CAs first: they accept the old certificate's controller, too.
	err = writeFile(filepath.Join(c.dir, fileRoots), encodePEM("CERTIFICATE", a.Roots...))
	if err == nil {
		err = writeFile(filepath.Join(c.dir, fileCert), encodePEM("CERTIFICATE", a.Certificate))
	}
	if err != nil {
		return fmt.Errorf("save renewed certificate: %w", err)
	}
	return nil
}

// certificates reads the certificates of an answer.
func (a answer) certificates() (cert *x509.Certificate, roots []*x509.Certificate, err error) {
	cert, err = x509.ParseCertificate(a.Certificate)
	for i := 0; err == nil && i < len(a.Roots); i++ {
		var root *x509.Certificate
		root, err = x509.ParseCertificate(a.Roots[i])
		roots = append(roots, root)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return cert, roots, nil
}

const (
	firstRetry = time.Minute
	lastRetry  = time.Hour
)

// KeepFresh renews the certificate whenever it is time, until ctx is done, and then returns nil. The function
// renew sends a request to the controller over a connection of [Credentials.ClientTLS] and returns the answer; if it
// fails, KeepFresh tries again, first after a minute, at last every hour. It returns an error when nothing can
// help but a new token: [ErrRevoked], [ErrExpired].
func (c *Credentials) KeepFresh(ctx context.Context, renew func(ctx context.Context, request []byte) ([]byte, error)) error {
	retry := firstRetry
	wait := time.Until(c.RenewAt())
	for {
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		reply, err := renew(ctx, c.RenewRequest())
		if err == nil {
			err = c.Renewed(reply)
		}
		switch expired := !time.Now().Before(c.Expires()); {
		case errors.Is(err, ErrRevoked), errors.Is(err, ErrExpired):
			return err
		case expired:
			return fmt.Errorf("%v could not renew in time, last because: %w: %w", c.identity, err, ErrExpired)
		case err != nil:
			wait = min(retry, time.Until(c.Expires()))
			retry = min(2*retry, lastRetry)
		default:
			wait, retry = max(time.Until(c.RenewAt()), firstRetry), firstRetry
		}
	}
}

// Explain adds to an error of a connection what the controller's TLS alert means for a member:
// [ErrRevoked], [ErrExpired], [ErrUntrusted] or [ErrNoCertificate]. Other errors stay as they are. It goes by the text,
// because crypto/tls and gRPC keep nothing else of an alert. An alert may get lost when the connection is reset
// behind it; then the next attempt shows it.
func Explain(err error) error {
	if err == nil {
		return nil
	}
	const alert = "remote error: tls: "
	_, text, ok := strings.Cut(err.Error(), alert)
	if !ok {
		return err
	}
	for _, a := range []struct {
		text string
		is   error
	}{
		{"bad certificate", ErrRevoked}, // what the controller's own check refuses
		{"expired certificate", ErrExpired},
		{"unknown certificate authority", ErrUntrusted},
		{"certificate required", ErrNoCertificate},
	} {
		if strings.HasPrefix(text, a.text) && !errors.Is(err, a.is) {
			return fmt.Errorf("the controller refuses this host's certificate: %w (%w)", a.is, err)
		}
	}
	return err
}
