// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// ErrCertificate is a certificate that does not prove who a relay is.
var ErrCertificate = errors.New("certificate refused")

// An Identity is a relay's certificate with its key, and the authorities whose certificates it accepts.
type Identity struct {
	chain  [][]byte // DER, the relay's own first
	leaf   *x509.Certificate
	signer crypto.Signer
	roots  *x509.CertPool
}

// What is accepted of a peer that has proved nothing yet. Anybody can make certificates that are slow to verify: seven with one
// subject, each with a key of curve P-521, take a tenth of a second, for each may have signed each.
const (
	maxChain      = 4
	maxChainBytes = 12 << 10
	maxRSABits    = 4096
	maxNames      = 100 // of a certificate: each is compared with each constraint of those above it
)

// ParseIdentity reads PEM: the relay's certificate, with those between it and the authority after it, its key, and
// the authorities'. Ed25519, ECDSA and RSA keys will do.
//
// The certificate must be valid now, under one of the authorities, and allow the use by a client or a server
// when it says anything about it. At most four certificates are shown to peers, each with another subject and no RSA key above
// 4096 bits.
func ParseIdentity(certificate, key, authorities []byte) (*Identity, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrCertificate)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign: %w", pair.PrivateKey, ErrCertificate)
	}
	id := &Identity{chain: pair.Certificate, leaf: pair.Leaf, signer: signer, roots: x509.NewCertPool()}
	if !id.roots.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("no certificate among the authorities: %w", ErrCertificate)
	}
	bytes := 0
	for _, c := range id.chain {
		bytes += len(c)
	}
	if len(id.chain) > maxChain || bytes > maxChainBytes {
		return nil, fmt.Errorf("a chain of %d certificates in %d bytes: at most %d in %d: %w",
			len(id.chain), bytes, maxChain, maxChainBytes, ErrCertificate)
	}
	if _, err := id.verifyChain(id.chain, time.Now()); err != nil {
		return nil, fmt.Errorf("this relay's own: %w", err)
	}
	return id, nil
}

// ReadIdentity is [ParseIdentity] with the names of files. The key's must be its owner's, as in [ReadKeyFile].
func ReadIdentity(certificate, key, authorities string) (*Identity, error) {
	certificatePEM, err := os.ReadFile(certificate)
	if err != nil {
		return nil, fmt.Errorf("mesh certificate: %w", err)
	}
	authoritiesPEM, err := os.ReadFile(authorities)
	if err != nil {
		return nil, fmt.Errorf("mesh authorities: %w", err)
	}
	keyPEM, err := readSecret(key)
	if err != nil {
		return nil, fmt.Errorf("mesh certificate's key: %w", err)
	}
	id, err := ParseIdentity(certificatePEM, keyPEM, authoritiesPEM)
	if err != nil {
		return nil, fmt.Errorf("mesh certificate %s: %w", certificate, err)
	}
	return id, nil
}

// Name is what peers call this relay: the first DNS name or URI of its certificate, or else the common name.
func (id *Identity) Name() string { return certificateName(id.leaf) }

// NotAfter is when the certificate ends, and with it every link that it began.
func (id *Identity) NotAfter() time.Time { return id.leaf.NotAfter }

func certificateName(c *x509.Certificate) string {
	name := c.Subject.CommonName
	switch {
	case len(c.DNSNames) > 0:
		name = c.DNSNames[0]
	case len(c.URIs) > 0:
		name = c.URIs[0].String()
	}
	if len(name) > 253 || !printable([]byte(name)) {
		name = fmt.Sprintf("%.253q", name)
	}
	return name
}

// verifyChain checks a chain against the authorities and gives its first certificate.
func (id *Identity) verifyChain(chain [][]byte, now time.Time) (*x509.Certificate, error) {
	options := x509.VerifyOptions{
		Roots:         id.roots,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	var leaf *x509.Certificate
	var subjects [][]byte
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrCertificate)
		}
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits: %w", key.N.BitLen(), ErrCertificate)
		}
		if slices.ContainsFunc(subjects, func(s []byte) bool { return bytes.Equal(s, c.RawSubject) }) {
			return nil, fmt.Errorf("two certificates of one subject: %w", ErrCertificate)
		}
		subjects = append(subjects, c.RawSubject)
		if n := len(c.DNSNames) + len(c.EmailAddresses) + len(c.IPAddresses) + len(c.URIs); n > maxNames {
			return nil, fmt.Errorf("%d names in a certificate: at most %d: %w", n, maxNames, ErrCertificate)
		}
		if i == 0 {
			leaf = c
		} else {
			options.Intermediates.AddCert(c)
		}
	}
	if leaf == nil {
		return nil, fmt.Errorf("none shown: %w", ErrCertificate)
	}
	if _, err := leaf.Verify(options); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrCertificate)
	}
	return leaf, nil
}

// staticContext keeps a signature over a Noise key from being taken for one over something else, and the other way
// round. The construction is that of libp2p's Noise handshake.
const staticContext = "fathom relay mesh static key:"

func signedDigest(static []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(staticContext), static...))
}

// prove appends what a handshake carries: a signature of the certificate's key over the relay's Noise key, and the
// chain.
//
//	0        2           +n      +1
//	+--------+-----------+-------+---------------+---
//	| n      | signature | certs | length [2]    | DER ...
//	+--------+-----------+-------+---------------+---
func (id *Identity) prove(b, static []byte) ([]byte, error) {
	var signature []byte
	var err error
	digest := signedDigest(static)
	switch id.signer.Public().(type) {
	case ed25519.PublicKey:
		signature, err = id.signer.Sign(rand.Reader, digest[:], crypto.Hash(0))
	case *rsa.PublicKey:
		signature, err = id.signer.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	default:
		signature, err = id.signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("sign with the certificate's key: %w", err)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(signature)))
	b = append(b, signature...)
	b = append(b, byte(len(id.chain)))
	for _, der := range id.chain {
		b = binary.BigEndian.AppendUint16(b, uint16(len(der)))
		b = append(b, der...)
	}
	return b, nil
}

// check reads a proof and gives the certificate that it is from.
func (id *Identity) check(b, static []byte, now time.Time) (*x509.Certificate, error) {
	malformed := fmt.Errorf("malformed: %w", ErrCertificate)
	sized := func() ([]byte, bool) {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, false
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		data := b[2:n]
		b = b[n:]
		return data, true
	}
	if len(b) > maxChainBytes+2048 {
		return nil, malformed
	}
	signature, ok := sized()
	if !ok || len(b) < 1 || b[0] > maxChain {
		return nil, malformed
	}
	chain := make([][]byte, b[0])
	b = b[1:]
	for i := range chain {
		if chain[i], ok = sized(); !ok {
			return nil, malformed
		}
	}
	leaf, err := id.verifyChain(chain, now)
	if err != nil {
		return nil, err
	}
	digest := signedDigest(static)
	switch key := leaf.PublicKey.(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, digest[:], signature)
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, digest[:], signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPSS(key, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	default:
		ok = false
	}
	if !ok {
		return nil, fmt.Errorf("its key did not sign this link's key: %w", ErrCertificate)
	}
	return leaf, nil
}
