// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Keys are ECDSA on P-256: unlike Ed25519 it is known to every TLS library, browser, TPM and smart card,
// so the same certificate can serve the web page, and a site may keep the keys in hardware.

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// serverLifetime is short because a controller makes its certificate anew, in memory.
	serverLifetime = 7 * 24 * time.Hour
	// backdate lets hosts join whose clocks are behind.
	backdate = time.Hour
)

// authorityCert is one CA of an authority. Each is a directory of its own, ca/1, ca/2, ...: it appears
// as a whole. The highest number signs; the others are only trusted, and have no key any more.
type authorityCert struct {
	number int
	dir    string
	cert   *x509.Certificate
	// cross is the certificate of the same key that the CA before it signed, so that members who
	// know only that one follow. Nil for the first.
	cross *x509.Certificate
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// createCA makes the CA number n. Errors: fs.ErrExist if somebody else just did.
func createCA(dir string, n int, before *authorityCert, beforeKey crypto.Signer) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	id := newMemberID()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          id.newSerial(),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("Fathom CA %d %s", n, hex.EncodeToString(id[4:]))},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	files := map[string][]byte{"cert.pem": encodePEM("CERTIFICATE", der), "key.pem": keyPEM}
	if before != nil {
		template.SerialNumber = newMemberID().newSerial()
		template.NotAfter = before.cert.NotAfter
		cross, err := x509.CreateCertificate(rand.Reader, template, before.cert, key.Public(), beforeKey)
		if err != nil {
			return err
		}
		files["cross.pem"] = encodePEM("CERTIFICATE", cross)
	}
	return makeDir(filepath.Join(dir, strconv.Itoa(n)), func(put func(string, []byte) error) error {
		for name, data := range files {
			if err := put(name, data); err != nil {
				return err
			}
		}
		return nil
	})
}

// loadCAs reads the CAs in ascending order. It is done whenever they are needed, because another process may have
// added or retired one, and because reading two small files costs less than a handshake's signature.
func loadCAs(dir string) ([]*authorityCert, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var cas []*authorityCert
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil || n < 1 || !e.IsDir() {
			continue
		}
		ca := &authorityCert{number: n, dir: filepath.Join(dir, e.Name())}
		ca.cert, err = readCert(filepath.Join(ca.dir, "cert.pem"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is being retired
		} else if err != nil {
			return nil, err
		}
		ca.cross, err = readCert(filepath.Join(ca.dir, "cross.pem"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		cas = append(cas, ca)
	}
	if len(cas) == 0 {
		return nil, fmt.Errorf("no CA in %s: %w", dir, fs.ErrNotExist)
	}
	slices.SortFunc(cas, func(a, b *authorityCert) int { return a.number - b.number })
	return cas, nil
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func poolOf(cas []*authorityCert) *x509.CertPool {
	p := x509.NewCertPool()
	for _, ca := range cas {
		p.AddCert(ca.cert)
	}
	return p
}

func (ca *authorityCert) key() (crypto.Signer, error) {
	b, err := readPrivate(filepath.Join(ca.dir, "key.pem"))
	if err != nil {
		return nil, fmt.Errorf("key of CA %d: %w", ca.number, err)
	}
	return decodeKey(b)
}

// grant is what a certificate says.
type grant struct {
	member   memberID
	identity Identity
	key      crypto.PublicKey
	lifetime time.Duration
	hosts    []string // DNS names and addresses, of a controller
}

// sign makes a certificate. It ends with its CA at the latest.
func (ca *authorityCert) sign(g grant) (*x509.Certificate, error) {
	key, err := ca.key()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          g.member.newSerial(),
		Subject:               pkix.Name{CommonName: g.identity.Name, OrganizationalUnit: []string{g.identity.Role.String()}},
		URIs:                  []*url.URL{g.identity.uri()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(g.lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if g.identity.Role == Controller {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, host := range g.hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, g.key, key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %v: %w", g.identity, err)
	}
	return x509.ParseCertificate(der)
}

// chain is what a controller presents behind its own certificate: the way from the signing CA back to every one
// that is still trusted. The CAs themselves are there for hosts that join and know only a pin.
func chain(cas []*authorityCert) [][]byte {
	var ders [][]byte
	for i, ca := range slices.Backward(cas) {
		if i > 0 && ca.cross != nil {
			ders = append(ders, ca.cross.Raw)
		}
		ders = append(ders, ca.cert.Raw)
	}
	return ders
}

// verifyController accepts a connection to a controller of one of the roots. Host names do not matter:
// a controller may be reached by any address, and only the role makes it one. No member can pose as
// it, for a member's certificate has another role and is not for servers.
func verifyController(cs tls.ConnectionState, roots *x509.CertPool) error {
	if len(cs.PeerCertificates) == 0 {
		return ErrNoCertificate
	}
	leaf := cs.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: pool(cs.PeerCertificates[1:]...),
		CurrentTime:   time.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("controller's certificate: %w", untrusted(err))
	}
	id, err := IdentityOf(leaf)
	if err != nil {
		return fmt.Errorf("controller's certificate: %w", err)
	}
	if id.Role != Controller {
		return fmt.Errorf("%v is no controller: %w", id, ErrRole)
	}
	return nil
}

// untrusted puts one of our errors around one of x509's.
func untrusted(err error) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired: // or of the future: the text says which, and what the time is here
			return fmt.Errorf("%w: %w", ErrExpired, err)
		case x509.IncompatibleUsage:
			return fmt.Errorf("%w: %w", ErrRole, err)
		default:
		}
	}
	return fmt.Errorf("%w: %w", ErrUntrusted, err)
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encodePEM("PRIVATE KEY", der), nil
}

func decodeKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("not a PKCS #8 private key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS #8 private key") // x509's text may quote some of it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("a private key that cannot sign")
	}
	return signer, nil
}

func readCert(name string) (*x509.Certificate, error) {
	b, err := readPrivate(name)
	if err != nil {
		return nil, err
	}
	certs, err := decodeCerts(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return certs[0], nil
}

// decodeCerts reads the certificates of a PEM file, at least one.
func decodeCerts(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return certs, nil
}

// acceptableKey says whether a member's public key is of a kind that certificates are made for. What is not
// here would let a host choose a key that costs us time or protects nothing.
func acceptableKey(key crypto.PublicKey) bool {
	k, ok := key.(*ecdsa.PublicKey)
	return ok && k.Curve == elliptic.P256()
}
