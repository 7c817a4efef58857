// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	fra1  = Identity{Agent, "fra1"}
	alice = Identity{Operator, "alice"}
)

func TestJoin(t *testing.T) {
	a := newAuthority(t)
	s := newServer(t, a, "controller.example", "192.0.2.1", "2001:db8::1")
	peers := make(chan Identity, 1)
	respond := s.handle
	s.handle = func(cs tls.ConnectionState, request []byte) []byte {
		who, err := a.Peer(cs)
		if err == nil {
			peers <- who
		} else if !errors.Is(err, ErrNoCertificate) {
			t.Error(err)
		}
		return respond(cs, request)
	}
	dir := filepath.Join(t.TempDir(), "a", "b")
	token := newToken(t, a, fra1)
	o := JoinOptions{Exchange: exchange, Dial: s.dial}
	c, err := Join(t.Context(), token, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity() != fra1 || c.Controller() != testController {
		t.Errorf("got %v of %s, want %v of %s", c.Identity(), c.Controller(), fra1, testController)
	}
	if left := time.Until(c.Expires()); left < DefaultLifetime-time.Minute || left > DefaultLifetime {
		t.Errorf("the certificate is good for %v, want %v", left, DefaultLifetime)
	}
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem", "controller"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if runtime.GOOS != "windows" && info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, info.Mode())
		}
	}

	loaded, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.renew(loaded); err != nil {
		t.Fatal(err)
	}
	if who := <-peers; who != fra1 {
		t.Errorf("the controller sees %v, want %v", who, fra1)
	}

	_, err = Join(t.Context(), newToken(t, a, alice), dir, o)
	wantError(t, "a directory with credentials", err, ErrEnrolled)

	list, err := a.Members()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Identity != fra1 || list[0].State != Joined || list[0].CA != 1 || list[0].Joined.IsZero() ||
		list[1].Identity != alice || list[1].State != Invited {
		t.Errorf("members: %+v", list)
	}
}

// TestServerNames holds that ordinary software, which goes by host names, accepts the controller.
func TestServerNames(t *testing.T) {
	a := newAuthority(t)
	s := newServer(t, a, "controller.example", "192.0.2.1", "2001:db8::1")
	cas, err := loadCAs(a.caDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"controller.example", "192.0.2.1", "2001:db8::1"} {
		raw, _ := s.dial(t.Context(), "", "")
		conn := tls.Client(raw, &tls.Config{RootCAs: poolOf(cas), ServerName: name})
		if err := conn.Handshake(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
	for _, bad := range []string{"", "a/b", "a b", "host:1x"} {
		if _, err := a.ServerTLS(bad); bad != "host:1x" && !errors.Is(err, ErrName) {
			t.Errorf("ServerTLS(%q): %v, want ErrName", bad, err)
		}
	}
}

func TestJoinRefused(t *testing.T) {
	a := newAuthority(t)
	s := newServer(t, a)

	used := newToken(t, a, fra1)
	s.mustJoin(t, used)
	_, err := s.join(t, used)
	wantError(t, "used token", err, ErrTokenUsed)

	withdrawn := newToken(t, a, alice)
	fresh := newToken(t, a, alice)
	_, err = s.join(t, withdrawn)
	wantError(t, "token withdrawn by a newer one", err, ErrRevoked)

	unknown := fresh
	unknown.id = newMemberID()
	_, err = s.join(t, unknown)
	wantError(t, "unknown token", err, ErrToken)

	guessed := fresh
	guessed.secret[0] ^= 1
	_, err = s.join(t, guessed)
	wantError(t, "wrong secret", err, ErrProof)

	other := fresh
	other.Identity.Name = "mallory"
	_, err = s.join(t, other)
	wantError(t, "wrong name", err, ErrName)

	other = fresh
	other.Identity.Role = Agent
	_, err = s.join(t, other)
	wantError(t, "wrong role", err, ErrRole)

	// None of that used the token up.
	if c := s.mustJoin(t, fresh); c.Identity() != alice {
		t.Errorf("joined as %v, want %v", c.Identity(), alice)
	}

	revoked := newToken(t, a, Identity{Viewer, "bob"})
	if _, err := a.Revoke("bob"); err != nil {
		t.Fatal(err)
	}
	_, err = s.join(t, revoked)
	wantError(t, "revoked token", err, ErrRevoked)
}

func TestTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		s := newServer(t, a)
		first, err := a.Token(fra1, time.Minute, testController)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		_, err = s.join(t, first)
		wantError(t, "a minute later", err, ErrTokenExpired)

		second, err := a.Token(fra1, time.Minute, testController)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute - 2*time.Second)
		s.mustJoin(t, second)
		s.close()

		// Both invitations are remembered for a month, then only the one that was used.
		for _, want := range []int{3, 2} {
			newToken(t, a, alice)
			if list, err := a.Members(); err != nil || len(list) != want {
				t.Errorf("%d members, want %d: %+v, %v", len(list), want, list, err)
			}
			time.Sleep(keepUnused + 2*time.Hour)
		}
	})
}

// TestImpostors puts somebody else in the controller's place. Nobody of them may see a request.
func TestImpostors(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	real := newServer(t, a)
	agent := real.mustJoin(t, newToken(t, a, fra1))
	token := newToken(t, a, alice)
	operator := real.mustJoin(t, newToken(t, a, Identity{Operator, "carol"}))
	genuine, err := loadCAs(a.caDir())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := (&serverCert{authority: stranger}).get()
	if err != nil {
		t.Fatal(err)
	}
	mixed := *foreign // its own certificate, and the genuine CA for decoration
	mixed.Certificate = append([][]byte{foreign.Certificate[0]}, chain(genuine)...)
	member, _ := agent.now()
	posing := *member // a member's certificate, which the genuine CA did sign
	posing.Certificate = append([][]byte{member.Certificate[0]}, chain(genuine)...)
	caOnly := *foreign // the genuine CA's certificate without its key
	caOnly.Certificate = chain(genuine)
	caOnly.Leaf = nil

	for _, tt := range []struct {
		name     string
		cert     tls.Certificate
		joining  error
		carrying error
	}{
		{"another authority", *foreign, ErrPin, ErrUntrusted},
		{"another authority with the genuine CA in its chain", mixed, ErrPin, ErrUntrusted},
		{"a member", posing, ErrRole, ErrRole},
		{"the CA's certificate without its key", caOnly, nil, nil},
	} {
		s := &server{
			config: &tls.Config{Certificates: []tls.Certificate{tt.cert}, ClientAuth: tls.RequestClientCert},
			handle: func(tls.ConnectionState, []byte) []byte {
				t.Errorf("%s has seen a request", tt.name)
				return nil
			},
		}
		_, err := s.join(t, token)
		if err == nil || !errors.Is(err, tt.joining) && tt.joining != nil {
			t.Errorf("%s, joining: got %v, want %v", tt.name, err, tt.joining)
		}
		_, err = s.call(operator.ClientTLS(), operator.RenewRequest())
		if err == nil || !errors.Is(err, tt.carrying) && tt.carrying != nil {
			t.Errorf("%s, connecting: got %v, want %v", tt.name, err, tt.carrying)
		}
		s.close()
	}
	real.mustJoin(t, token)
}

// TestReplay sends a request that was made for one connection over another, as somebody who relays or has
// recorded it would.
func TestReplay(t *testing.T) {
	a := newAuthority(t)
	s := newServer(t, a)
	token := newToken(t, a, fra1)
	var recorded []byte
	stop := errors.New("stop")
	_, err := Join(t.Context(), token, filepath.Join(t.TempDir(), "c"), JoinOptions{
		Dial: s.dial,
		Exchange: func(_ context.Context, _ net.Conn, request []byte) ([]byte, error) {
			recorded = bytes.Clone(request)
			return nil, stop
		},
	})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	reply, err := s.call(pinnedTLS(token.Pin), recorded)
	if err != nil {
		t.Fatal(err)
	}
	_, err = parseAnswer(reply)
	wantError(t, "replayed request", err, ErrProof)
	s.mustJoin(t, token)
}

func TestClientRefused(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	s := newServer(t, a)
	foreign := newServer(t, stranger)

	// Without a certificate one may ask, but not be anybody.
	token := newToken(t, a, fra1)
	reply, err := s.call(pinnedTLS(token.Pin), (&Credentials{}).RenewRequest())
	if err != nil {
		t.Fatal(err)
	}
	_, err = parseAnswer(reply)
	wantError(t, "no certificate", err, ErrNoCertificate)

	// A certificate of another authority, at our controller.
	c := foreign.mustJoin(t, newToken(t, stranger, fra1))
	config := c.ClientTLS()
	config.VerifyConnection = nil
	_, err = s.call(config, c.RenewRequest())
	wantError(t, "another authority's member", Explain(err), ErrUntrusted)

	// The controller's own certificate is not for clients.
	own, err := (&serverCert{authority: a}).get()
	if err != nil {
		t.Fatal(err)
	}
	config = pinnedTLS(token.Pin)
	config.Certificates = []tls.Certificate{*own}
	if _, err := s.call(config, nil); err == nil {
		t.Error("the controller accepts its own certificate from a client")
	}

	// A member with the right CA, but made without a record.
	cas, err := loadCAs(a.caDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := cas[0].sign(grant{member: newMemberID(), identity: alice, key: key.Public(), lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = []tls.Certificate{*certificate(cert, key)}
	_, err = s.call(config, nil)
	wantError(t, "member without a record", Explain(err), ErrRevoked)

	// TLS 1.2 has no exporter that binds, and shows certificates to everybody.
	c = s.mustJoin(t, token)
	config = c.ClientTLS()
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := s.call(config, c.RenewRequest()); err == nil {
		t.Error("the controller speaks TLS 1.2")
	}
}

func TestCertificateExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		s := newServer(t, a)
		c := s.mustJoin(t, newToken(t, a, fra1))

		raw, _ := s.dial(t.Context(), "", "")
		conn := tls.Client(raw, c.ClientTLS())
		defer conn.Close()
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(DefaultLifetime - time.Second)
		if _, err := Load(c.dir); err != nil {
			t.Errorf("a second before its end: %v", err)
		}
		time.Sleep(2 * time.Second)
		_, err := s.call(c.ClientTLS(), c.RenewRequest())
		wantError(t, "handshake", Explain(err), ErrExpired)
		_, err = Load(c.dir)
		wantError(t, "load", err, ErrExpired)

		// A link that was there before ends at its next request.
		reply, err := exchange(t.Context(), conn, c.RenewRequest())
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, "renewal over an old link", c.Renewed(reply), ErrExpired)
		conn.Close()
		s.close()
	})
}

// TestRevokeWhileJoining: a host that is revoked between the use of its token and its certificate is revoked for good,
// also when what is left of it is tidied away.
func TestRevokeWhileJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		token := newToken(t, a, fra1)
		r, _, err := a.members.find(token.id)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.members.claim(token.id); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Revoke("fra1"); err != nil {
			t.Fatal(err)
		}
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.issue(token.id, fra1, key.Public(), r); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.members.good(token.id); !errors.Is(err, ErrRevoked) {
				t.Errorf("got %v, want ErrRevoked", err)
			}
			time.Sleep(keepUnused + 2*time.Hour)
			newToken(t, a, Identity{Agent, "ams1"}) // tidies
		}
	})
}

func TestRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		s := newServer(t, a)
		c := s.mustJoin(t, newToken(t, a, fra1))
		spare := s.mustJoin(t, newToken(t, a, Identity{Agent, "ams1"}))

		watched := make(chan error, 1)
		s.handle = func(cs tls.ConnectionState, _ []byte) []byte {
			watched <- a.Watch(t.Context(), cs)
			return nil
		}
		linkDone := make(chan struct{})
		go func() {
			defer close(linkDone)
			s.call(c.ClientTLS(), nil)
		}()
		time.Sleep(time.Minute)
		select {
		case err := <-watched:
			t.Fatalf("watch ended early: %v", err)
		default:
		}

		// Another process revokes.
		command, err := Open(a.dir, AuthorityOptions{})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		list, err := command.Revoke("fra1")
		if err != nil || len(list) != 1 || list[0].Identity != fra1 {
			t.Fatalf("revoked %+v, %v", list, err)
		}
		wantError(t, "watched link", <-watched, ErrRevoked)
		if took := time.Since(start); took > watchInterval {
			t.Errorf("the link ended after %v, want at most %v", took, watchInterval)
		}
		<-linkDone
		wantError(t, "handshake", s.renew(c), ErrRevoked)
		_, err = command.Revoke("fra1")
		wantError(t, "revoked again", err, ErrName)

		s.handle = func(cs tls.ConnectionState, request []byte) []byte {
			reply, _, _ := a.Respond(cs, request)
			return reply
		}
		if err := s.renew(spare); err != nil {
			t.Errorf("somebody else: %v", err)
		}
		s.close()
	})
}

// TestRejoin: an identity is one host. Who joins anew under a name ends what had the name before.
func TestRejoin(t *testing.T) {
	a := newAuthority(t)
	s := newServer(t, a)
	before := s.mustJoin(t, newToken(t, a, fra1))
	token := newToken(t, a, fra1)
	if err := s.renew(before); err != nil {
		t.Errorf("a token that is not used yet ends nothing: %v", err)
	}
	now := s.mustJoin(t, token)
	wantError(t, "former holder", s.renew(before), ErrRevoked)
	if err := s.renew(now); err != nil {
		t.Error(err)
	}
	_, err := a.Token(Identity{Operator, "fra1"}, 0, testController)
	wantError(t, "a name with another role", err, ErrName)
	_, err = a.Token(Identity{Controller, "second"}, 0, testController)
	wantError(t, "a token for a controller", err, ErrRole)
	for _, address := range []string{"", "host", "host:0", "host:99999", ":1", "a/b:1", "a b:1"} {
		if _, err := a.Token(alice, 0, address); !errors.Is(err, ErrName) {
			t.Errorf("controller %q: %v, want ErrName", address, err)
		}
	}
	for _, ttl := range []time.Duration{-1, time.Millisecond, maxTokenLifetime + 1} {
		if _, err := a.Token(alice, ttl, testController); err == nil {
			t.Errorf("a token for %v", ttl)
		}
	}
}

// TestKeepFresh keeps a member for two years, with a controller that is away for twenty days of each quarter.
func TestKeepFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		s := newServer(t, a)
		c := s.mustJoin(t, newToken(t, a, fra1))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		var asked, renewed int
		start := time.Now()
		go func() {
			done <- c.KeepFresh(ctx, func(_ context.Context, request []byte) ([]byte, error) {
				asked++
				if int(time.Since(start).Hours()/24)%90 < 20 {
					return nil, errors.New("the controller is away")
				}
				renewed++
				return s.call(c.ClientTLS(), request)
			})
		}()
		time.Sleep(2 * 365 * 24 * time.Hour)
		if left := time.Until(c.Expires()); left <= 0 {
			t.Errorf("expired %v ago", -left)
		}
		if renewed < 8 || renewed > 13 {
			t.Errorf("renewed %d times in two years, want about twelve", renewed)
		}
		if asked > renewed+12*20*24+100 {
			t.Errorf("asked %d times: it does not back off", asked)
		}
		loaded, err := Load(c.dir)
		if err != nil {
			t.Fatal(err)
		}
		if !loaded.Expires().Equal(c.Expires()) {
			t.Errorf("the directory has a certificate until %v; in use is one until %v", loaded.Expires(), c.Expires())
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("after cancel: %v", err)
		}

		go func() {
			done <- c.KeepFresh(t.Context(), func(context.Context, []byte) ([]byte, error) { return nil, errors.New("gone for good") })
		}()
		wantError(t, "controller gone for good", <-done, ErrExpired)
		s.close()
	})
}

func TestKeepFreshRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		s := newServer(t, a)
		c := s.mustJoin(t, newToken(t, a, fra1))
		if _, err := a.Revoke("fra1"); err != nil {
			t.Fatal(err)
		}
		err := c.KeepFresh(t.Context(), func(_ context.Context, request []byte) ([]byte, error) {
			reply, err := s.call(c.ClientTLS(), request)
			return reply, Explain(err)
		})
		wantError(t, "revoked member", err, ErrRevoked)
		s.close()
	})
}

func TestRotateCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		s := newServer(t, a) // runs all the time, while commands change the CAs
		steady := s.mustJoin(t, newToken(t, a, fra1))
		sleeper := s.mustJoin(t, newToken(t, a, Identity{Agent, "ams1"}))
		early := newToken(t, a, alice)
		if err := a.RetireCA(1); err == nil {
			t.Error("retired the CA that signs")
		}

		for range 2 {
			if err := a.RotateCA(); err != nil {
				t.Fatal(err)
			}
		}
		cas, err := a.CAs()
		if err != nil || len(cas) != 3 || cas[0].Signs || cas[1].Signs || !cas[2].Signs {
			t.Fatalf("CAs: %+v, %v", cas, err)
		}
		for n := range 2 {
			if _, err := os.Stat(filepath.Join(a.caDir(), string(rune('1'+n)), "key.pem")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the key of CA %d: %v, want that it is destroyed", n+1, err)
			}
		}
		// Who knows the first only follows two rotations; a token with its pin works; so does a new one.
		if err := s.renew(steady); err != nil {
			t.Errorf("member from before: %v", err)
		}
		s.mustJoin(t, early)
		late := s.mustJoin(t, newToken(t, a, Identity{Viewer, "bob"}))

		for n := 1; n <= 2; n++ {
			if err := a.RetireCA(n); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []*Credentials{steady, late} {
			if err := s.renew(c); err != nil {
				t.Errorf("%v, from the new CA: %v", c.Identity(), err)
			}
		}
		_, err = s.call(sleeper.ClientTLS(), sleeper.RenewRequest())
		wantError(t, "member that slept through it", err, ErrUntrusted)
		list, err := a.Members()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			want := 3
			if m.Identity.Name == "ams1" {
				want = 1
			}
			if m.CA != want {
				t.Errorf("%v has a certificate of CA %d, want %d", m.Identity, m.CA, want)
			}
		}
		if err := a.RetireCA(7); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("retire a CA that never was: %v", err)
		}
		s.close()
	})
}

// TestOneTime lets many hosts prove one token at once.
func TestOneTime(t *testing.T) {
	a := newAuthority(t)
	token := newToken(t, a, fra1)
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 12 {
		s := newServer(t, a)
		wg.Go(func() {
			switch _, err := s.join(t, token); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ErrTokenUsed):
				t.Errorf("got %v, want ErrTokenUsed", err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d hosts joined with one token", won.Load())
	}
}

// TestCSR holds that a request decides nothing but the key.
func TestCSR(t *testing.T) {
	make := func(key any, uris ...string) []byte {
		var list []*url.URL
		for _, s := range uris {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, u)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: list}, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	p256, _ := newKey()
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	good := make(p256, "fathom://agent/fra1")
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	for _, tt := range []struct {
		name string
		der  []byte
		want error
	}{
		{"right", good, nil},
		{"of another curve", make(p384, "fathom://agent/fra1"), ErrRequest},
		{"signature wrong", forged, ErrRequest},
		{"not a CSR", []byte("CSR"), ErrRequest},
		{"nobody", make(p256), ErrName},
		{"two", make(p256, "fathom://agent/fra1", "fathom://operator/alice"), ErrName},
		{"another name", make(p256, "fathom://agent/fra2"), ErrName},
		{"another role", make(p256, "fathom://operator/fra1"), ErrRole},
		{"an unknown role", make(p256, "fathom://root/fra1"), ErrRole},
		{"with a query", make(p256, "fathom://agent/fra1?x"), ErrName},
		{"escaped", make(p256, "fathom://agent/fr%61%31"), ErrName},
	} {
		if _, err := checkCSR(tt.der, fra1); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes")
	}
	a := newAuthority(t)
	s := newServer(t, a)
	c := s.mustJoin(t, newToken(t, a, fra1))

	refused := func(name string, open fs.FileMode, do func() error) {
		t.Helper()
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, open); err != nil {
			t.Fatal(err)
		}
		err = do()
		if !errors.Is(err, ErrMode) || !strings.Contains(err.Error(), "chmod") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s with mode %v: got %v, want ErrMode and the command that helps", name, open, err)
		}
		if err := os.Chmod(name, info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	load := func() error { _, err := Load(c.dir); return err }
	open := func() error { _, err := Open(a.dir, AuthorityOptions{}); return err }
	refused(filepath.Join(c.dir, "key.pem"), 0o640, load)
	refused(filepath.Join(c.dir, "ca.pem"), 0o602, load)
	refused(c.dir, 0o755, load)
	refused(filepath.Join(a.caDir(), "1", "key.pem"), 0o644, open)
	refused(a.dir, 0o750, open)
	for _, err := range []error{load(), open()} {
		if err != nil {
			t.Error(err)
		}
	}

	err := filepath.WalkDir(a.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&othersMay != 0 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "nothing")); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("no directory: %v, want ErrNotEnrolled", err)
	}
}

// TestLostCA holds that an authority whose CA is gone does not quietly become another.
func TestLostCA(t *testing.T) {
	a := newAuthority(t)
	newToken(t, a, fra1)
	if err := os.RemoveAll(filepath.Join(a.caDir(), "1")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(a.dir, AuthorityOptions{}); err == nil || !strings.Contains(err.Error(), "restore") {
		t.Errorf("got %v, want an error that says what to do", err)
	}
}

// TestJoinLeavesNothing holds that a join that failed leaves no file, and not even the key.
func TestJoinLeavesNothing(t *testing.T) {
	a := newAuthority(t)
	s := newServer(t, a)
	token := newToken(t, a, fra1)
	token.secret[3] ^= 1
	parent := t.TempDir()
	if _, err := Join(t.Context(), token, filepath.Join(parent, "c"), JoinOptions{Exchange: exchange, Dial: s.dial}); err == nil {
		t.Fatal("joined with a wrong secret")
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
