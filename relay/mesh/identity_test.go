// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/relay/drop"
)

// authority is a CA of one day.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
	now  time.Time
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &authority{cert: cert, key: key, pem: block("CERTIFICATE", der), now: now}
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// issue gives a certificate and its key.
func (a *authority) issue(tb testing.TB, key crypto.Signer, change func(*x509.Certificate)) (cert, keyPEM []byte) {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "relay"},
		NotBefore: a.now.Add(-time.Hour), NotAfter: a.now.Add(12 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		tb.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8)
}

// identity is a relay's with a name; key nil makes one.
func (a *authority) identity(tb testing.TB, name string, key crypto.Signer) *Identity {
	tb.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			tb.Fatal(err)
		}
	}
	cert, keyPEM := a.issue(tb, key, func(c *x509.Certificate) {
		c.DNSNames = []string{name}
		c.NotAfter = a.now.Add(15 * time.Minute)
	})
	id, err := ParseIdentity(cert, keyPEM, a.pem)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

func TestCertificates(t *testing.T) {
	ca := newAuthority(t)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w := newNetwork(t, 1)
	w.now = ca.now
	a := w.add(1, Options{Identity: ca.identity(t, "a.example", nil)})
	b := w.add(2, Options{Identity: ca.identity(t, "b.example", edKey)})
	c := w.add(3, Options{Identity: ca.identity(t, "c.example", rsaKey)})
	for _, x := range []*node{a, b, c} {
		x.peers(1, 2, 3)
	}
	w.seen = func(_, _ netip.AddrPort, data []byte) {
		for _, name := range []string{"a.example", "b.example", "c.example"} {
			if bytes.Contains(data, []byte(name)) {
				t.Errorf("%s in clear", name)
			}
		}
	}
	w.run(time.Second)
	for i, name := range []string{"", "a.example", "b.example", "c.example"} {
		for j, x := range []*node{nil, a, b, c} {
			if i == 0 || j == 0 || i == j {
				continue
			}
			if s := x.status(i); s.Name != name || s.State != Up || !s.Sealed {
				t.Errorf("%v sees %+v, want %s", x, s, name)
			}
		}
	}
	a.send(frame(1), multicast(2, 9000))
	w.run(time.Second)
	wantNumbers(t, b, 1, 2)
	wantNumbers(t, c, 1, 2)
	// A new certificate: links prove themselves anew and lose nothing.
	if err := b.SetIdentity(ca.identity(t, "new.example", nil)); err != nil {
		t.Fatal(err)
	}
	for n := range uint32(40) {
		a.send(frame(n))
		b.send(frame(n))
		w.run(100 * time.Millisecond)
	}
	w.run(time.Second)
	wantNumbers(t, b, seq(0, 40)...)
	if s := a.status(2); s.Name != "new.example" || s.State != Up {
		t.Errorf("after the change: %+v", s)
	}
	if len(a.take()) != 40 {
		t.Error("broadcasts were lost when the certificate changed")
	}
	// When the certificates have ended, so have the links.
	w.run(14 * time.Minute)
	a.wantState(2, Ours, Up)
	w.run(time.Minute)
	for i := range 3 {
		if s := c.status(i + 1); s.State == Up {
			t.Errorf("up with a certificate that has ended: %+v", s)
		}
	}
}

// Certificates that prove nothing.
func TestCertificatesRefused(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := ca.identity(t, "good.example", nil)
	static := make([]byte, dhLen)
	for _, c := range []struct {
		name   string
		from   *authority
		change func(*x509.Certificate)
		ok     bool
	}{
		{"good", ca, nil, true},
		{"server", ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, true},
		{"no usage named", ca, func(c *x509.Certificate) { c.ExtKeyUsage = nil }, true},
		{"another authority", other, nil, false},
		{"ended", ca, func(c *x509.Certificate) { c.NotAfter = ca.now.Add(-time.Minute) }, false},
		{"not begun", ca, func(c *x509.Certificate) { c.NotBefore = ca.now.Add(time.Hour) }, false},
		{"for signing code", ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cert, keyPEM := c.from.issue(t, key, c.change)
			if _, err := ParseIdentity(cert, keyPEM, ca.pem); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCertificate) {
				t.Errorf("as the own one: %v", err)
			}
			der, _ := pem.Decode(cert)
			bad := &Identity{chain: [][]byte{der.Bytes}, signer: key, roots: ca.identity(t, "x", nil).roots}
			proof, err := bad.prove(nil, static)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := good.check(proof, static, ca.now); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCertificate) {
				t.Errorf("as a peer's: %v", err)
			}
			if c.ok {
				if _, err := good.check(proof, append([]byte{1}, static[1:]...), ca.now); !errors.Is(err, ErrCertificate) {
					t.Errorf("for another link's key: %v", err)
				}
				for n := range proof {
					if _, err := good.check(proof[:n], static, ca.now); !errors.Is(err, ErrCertificate) {
						t.Fatalf("%d of %d bytes: %v", n, len(proof), err)
					}
				}
			}
		})
	}
	t.Run("another authority on the way", func(t *testing.T) {
		w := newNetwork(t, 1)
		w.now = ca.now
		a := w.add(1, Options{Identity: good})
		b := w.add(2, Options{Identity: other.identity(t, "b.example", nil)})
		a.peers(2)
		w.run(30 * time.Second)
		a.wantState(2, Unknown, Connecting)
		if a.drops[drop.Unauthenticated] == 0 || len(b.Peers(w.now)) != 0 {
			t.Errorf("dropped %v; %+v", a.drops, b.Peers(w.now))
		}
	})
}

// Certificates that anybody can make, and that would take long to verify, are refused without.
func TestCertificatesSlow(t *testing.T) {
	good := newAuthority(t).identity(t, "good.example", nil)
	const n = 3
	var keys []*ecdsa.PrivateKey
	for range n {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	// Each is signed by the next, and the last by the first.
	chain := func(name func(i int) string, names int) [][]byte {
		var all [][]byte
		for i := range n {
			signer := (i + 1) % n
			c := &x509.Certificate{
				SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name(i)}, DNSNames: make([]string, names),
				NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: i > 0, BasicConstraintsValid: true,
			}
			for j := range c.DNSNames {
				c.DNSNames[j] = "x"
			}
			issuer := &x509.Certificate{Subject: pkix.Name{CommonName: name(signer)}}
			der, err := x509.CreateCertificate(rand.Reader, c, issuer, keys[i].Public(), keys[signer])
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, der)
		}
		return all
	}
	same := func(int) string { return "same" }
	different := func(i int) string { return string(rune('a' + i)) }
	for _, c := range []struct {
		name  string
		chain [][]byte
		want  string
	}{
		{"of one subject", chain(same, 0), "one subject"},
		{"with many names", chain(different, maxNames+1), "names"},
		{"of nobody", chain(different, maxNames), "unknown authority"},
	} {
		if _, err := good.verifyChain(c.chain, time.Now()); !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("certificates %s: %v", c.name, err)
		}
	}
}

// Strangers with certificates that prove nothing: most are not even looked at.
func TestFloodOfCertificates(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	w := newNetwork(t, 1)
	w.now = ca.now
	b := w.add(250, Options{Identity: ca.identity(t, "b.example", nil)})
	own, strange := ca.identity(t, "a.example", nil), other.identity(t, "a.example", nil)
	for i := range 20 {
		x := w.add(1+i, Options{Identity: strange})
		x.identity = own // so that it goes on with what b shows
		x.peers(250)
	}
	w.run(100 * time.Millisecond)
	if refused, checked := b.drops[drop.Rate], b.drops[drop.Unauthenticated]; refused < 20-proofBurst-1 || checked == 0 {
		t.Errorf("%d refused unread, %d checked", refused, checked)
	}
}

func TestCertificateName(t *testing.T) {
	u, err := url.Parse("fathom://relay/fra1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cert x509.Certificate
		want string
	}{
		{x509.Certificate{Subject: pkix.Name{CommonName: "cn"}}, "cn"},
		{x509.Certificate{Subject: pkix.Name{CommonName: "cn"}, URIs: []*url.URL{u}}, "fathom://relay/fra1"},
		{x509.Certificate{DNSNames: []string{"a.example", "b.example"}, URIs: []*url.URL{u}}, "a.example"},
		{x509.Certificate{Subject: pkix.Name{CommonName: "\x1b[2J"}}, `"\x1b[2J"`},
	} {
		if got := certificateName(&c.cert); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestReadIdentity(t *testing.T) {
	ca := newAuthority(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, keyPEM := ca.issue(t, key, nil)
	dir := t.TempDir()
	write := func(name string, data []byte, mode os.FileMode) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	certFile, keyFile, caFile := write("cert.pem", cert, 0o644), write("key.pem", keyPEM, 0o600), write("ca.pem", ca.pem, 0o644)
	id, err := ReadIdentity(certFile, keyFile, caFile)
	if err != nil || id.Name() != "relay" || id.NotAfter().Before(ca.now) {
		t.Errorf("%v, %v", id, err)
	}
	if err := os.Chmod(keyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadIdentity(certFile, keyFile, caFile); !errors.Is(err, ErrKeyMode) {
		t.Errorf("a key that all can read: %v", err)
	}
	if _, err := ReadIdentity(certFile, filepath.Join(dir, "none"), caFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no key: %v", err)
	}
}
