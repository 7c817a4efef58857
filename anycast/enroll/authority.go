// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// DefaultLifetime is how long a member's certificate is good. It is renewed after two thirds of that, so a
// host may be away for a month, and one that was forgotten is out after a quarter.
const DefaultLifetime = 90 * 24 * time.Hour

// DefaultTokenLifetime is how long a token waits for its host.
const DefaultTokenLifetime = time.Hour

// maxTokenLifetime keeps an invitation from outliving everybody's memory of it.
const maxTokenLifetime = 30 * 24 * time.Hour

// AuthorityOptions are the choices of an [Authority]. The zero value is good.
type AuthorityOptions struct {
	// Lifetime of members' certificates; 0 means DefaultLifetime. Shorter ones limit what a stolen key is
	// worth where revocation is forgotten; members must be there to renew them after two thirds.
	Lifetime time.Duration
}

// Authority makes tokens and certificates, and says who may connect. It is a directory:
//
//	DIR/ca/1/cert.pem, key.pem       the CA; after a rotation also ca/2, with cross.pem
//	DIR/members/ID.joined            one file per enrolment; ID.invited, ID.revoked
//
// Several processes may use one directory at once: the controller, and the commands on its host that make
// tokens, list and revoke. Nothing is cached, so each sees at once what another did. All methods may be
// called from several goroutines.
type Authority struct {
	dir      string
	members  members
	lifetime time.Duration
}

// Open opens the authority in dir, or makes one if there is none. The directory becomes 0700 and its files
// 0600; root gives what it makes to the directory's owner. Errors: [ErrMode] if dir is open to others.
func Open(dir string, o AuthorityOptions) (*Authority, error) {
	if o.Lifetime < 0 {
		return nil, fmt.Errorf("lifetime %v of certificates is negative", o.Lifetime)
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	a := &Authority{dir: dir, members: members(filepath.Join(dir, "members")), lifetime: o.Lifetime}
	if err := a.open(); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	return a, nil
}

func (a *Authority) open() error {
	if err := makePrivateDir(a.dir); err != nil {
		return err
	}
	for _, sub := range []string{a.caDir(), string(a.members)} {
		err := os.Mkdir(sub, dirMode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = a.give(filepath.Base(sub))
		}
		if err != nil {
			return err
		}
	}
	cas, err := loadCAs(a.caDir())
	if errors.Is(err, fs.ErrNotExist) {
		// Members without a CA: it was lost, and a new one would strand them all without a word.
		if entries, err := os.ReadDir(string(a.members)); err != nil || len(entries) > 0 {
			return errors.Join(err, fmt.Errorf("%s has members, but no CA: restore %s, or move %s away to begin anew", a.dir, a.caDir(), a.dir))
		}
		// Of several that start at once, one succeeds.
		if err := createCA(a.caDir(), 1, nil, nil); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make CA: %w", err)
		}
		cas, err = loadCAs(a.caDir())
	}
	if err != nil {
		return err
	}
	// Find out now, and not when the first host joins, that the key cannot be used.
	_, err = cas[len(cas)-1].key()
	return err
}

// give gives a directory that root has made to the authority's owner.
func (a *Authority) give(name string) error {
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	sub, err := root.OpenRoot(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	return giveDir(a.dir, sub)
}

func (a *Authority) caDir() string { return filepath.Join(a.dir, "ca") }

// Token makes a token with which one host can join as who within ttl; 0 means [DefaultTokenLifetime], at most 30
// days. The host will reach the controller at controller (HOST:PORT).
//
// A new token withdraws an unused one of the same identity. Joining with it revokes the certificate that
// the identity had until then: an identity is one host, and a name that moves leaves nothing behind.
// Errors: [ErrRole] for a controller, [ErrName] for a malformed name, or one that is in use with another role.
func (a *Authority) Token(who Identity, ttl time.Duration, controller string) (Token, error) {
	t, err := a.token(who, ttl, controller)
	if err != nil {
		return Token{}, fmt.Errorf("token for %v: %w", who, err)
	}
	return t, nil
}

func (a *Authority) token(who Identity, ttl time.Duration, controller string) (Token, error) {
	if who.Role == Controller {
		return Token{}, fmt.Errorf("controllers share the authority's directory, they do not join: %w", ErrRole)
	}
	if err := errors.Join(who.check(), checkController(controller)); err != nil {
		return Token{}, err
	}
	if ttl == 0 {
		ttl = DefaultTokenLifetime
	}
	if ttl < time.Second || ttl > maxTokenLifetime {
		return Token{}, fmt.Errorf("a token lives from 1 s to %v, not %v", maxTokenLifetime, ttl)
	}
	list, err := a.members.list()
	if err != nil {
		return Token{}, err
	}
	if list, err = a.members.tidy(list); err != nil {
		return Token{}, err
	}
	now := time.Now()
	for _, m := range list {
		live := m.State == Invited && now.Before(m.Deadline) || m.State == Joined && now.Before(m.Expires)
		if live && m.Identity.Name == who.Name && m.Identity.Role != who.Role {
			return Token{}, fmt.Errorf("%v has this name; revoke it first or choose another: %w", m.Identity, ErrName)
		}
	}
	for _, m := range list {
		if m.State == Invited && m.Identity == who {
			if err := a.revokeMember(m); err != nil {
				return Token{}, err
			}
		}
	}
	cas, err := loadCAs(a.caDir())
	if err != nil {
		return Token{}, err
	}
	t := Token{
		Identity: who, Controller: controller, Pin: pinOf(cas[len(cas)-1].cert),
		Expires: now.Add(ttl).UTC().Truncate(time.Second), id: newMemberID(),
	}
	rand.Read(t.secret[:])
	return t, a.members.write(t.id, Invited, record{
		Role: who.Role.String(), Name: who.Name, Invited: now.UTC(), Deadline: t.Expires, Secret: t.secret[:],
	})
}

// Members lists every enrolment, by role, name and time of invitation. Unused tokens disappear 30 days after
// they expired.
func (a *Authority) Members() ([]Member, error) {
	list, err := a.members.list()
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	return list, nil
}

// Revoke ends every enrolment of a name, used or not, and gives those that it ended. The
// certificates are refused at once, at handshakes and by [Authority.Peer]; connections that are there end
// where [Authority.Watch] watches them. Errors: [ErrName] if there is nothing to revoke.
func (a *Authority) Revoke(name string) ([]Member, error) {
	list, err := a.members.list()
	if err != nil {
		return nil, fmt.Errorf("revoke %.80q: %w", name, err)
	}
	var revoked []Member
	for _, m := range list {
		if m.Identity.Name != name || m.State == Revoked {
			continue
		}
		if err := a.revokeMember(m); err != nil {
			return revoked, fmt.Errorf("revoke %v: %w", m.Identity, err)
		}
		revoked = append(revoked, m)
	}
	if len(revoked) == 0 {
		return nil, fmt.Errorf("revoke %.80q: nobody has this name: %w", name, ErrName)
	}
	return revoked, nil
}

func (a *Authority) revokeMember(m Member) error {
	id, err := parseMemberID(m.ID)
	if err != nil {
		return err
	}
	return a.members.revoke(id)
}

// CA describes one CA of an [Authority].
type CA struct {
	Number  int
	Pin     Pin
	Expires time.Time
	Signs   bool // the newest does; the others are only trusted
}

// CAs lists the authority's CAs, oldest first.
func (a *Authority) CAs() ([]CA, error) {
	cas, err := loadCAs(a.caDir())
	if err != nil {
		return nil, err
	}
	list := make([]CA, len(cas))
	for i, ca := range cas {
		list[i] = CA{Number: ca.number, Pin: pinOf(ca.cert), Expires: ca.cert.NotAfter, Signs: i == len(cas)-1}
	}
	return list, nil
}

// RotateCA makes a new CA, which signs from now on, and destroys the key of the one before. Members keep
// working, because the old CA is trusted until [Authority.RetireCA] and has signed the new one; they learn the
// new one when they renew. Tokens made before keep working, too.
//
// A CA whose key was stolen cannot be left this way: what the thief made would be trusted. Then begin with
// an empty directory, and enrol every host again.
func (a *Authority) RotateCA() error {
	cas, err := loadCAs(a.caDir())
	if err != nil {
		return fmt.Errorf("rotate CA: %w", err)
	}
	last := cas[len(cas)-1]
	key, err := last.key()
	if err != nil {
		return fmt.Errorf("rotate CA: %w", err)
	}
	if err := createCA(a.caDir(), last.number+1, last, key); err != nil {
		return fmt.Errorf("rotate CA: %w", err)
	}
	if err := os.Remove(filepath.Join(last.dir, "key.pem")); err != nil {
		return fmt.Errorf("rotate CA: destroy the old key: %w", err)
	}
	return nil
}

// RetireCA ends the trust in a CA that no longer signs. Members whose certificates are from it
// ([Member.CA]) must join again; those that have renewed since the rotation notice nothing.
func (a *Authority) RetireCA(number int) error {
	cas, err := loadCAs(a.caDir())
	if err != nil {
		return fmt.Errorf("retire CA %d: %w", number, err)
	}
	for i, ca := range cas {
		switch {
		case ca.number != number:
		case i == len(cas)-1:
			return fmt.Errorf("retire CA %d: it signs; rotate first", number)
		default:
			// Without its certificate, which goes at once, a CA is not there.
			if err := os.Remove(filepath.Join(ca.dir, "cert.pem")); err != nil {
				return fmt.Errorf("retire CA %d: %w", number, err)
			}
			return os.RemoveAll(ca.dir)
		}
	}
	return fmt.Errorf("retire CA %d: %w", number, fs.ErrNotExist)
}

// Respond handles one request of a host: to join with a token, or to renew the certificate with which it is
// connected. The answer goes back to it in any case. The identity is whose request it was, as far as that was
// proven, and err is why it was refused, both for a log and an audit; the peer learns no more than the
// sentinel.
func (a *Authority) Respond(cs tls.ConnectionState, message []byte) (reply []byte, who Identity, err error) {
	cert, who, err := a.respond(cs, message)
	var roots []*authorityCert
	if err == nil {
		roots, err = loadCAs(a.caDir())
	}
	if err != nil {
		return marshal(refuse(err)), who, fmt.Errorf("enrol: %w", err)
	}
	granted := answer{Version: messageVersion, Certificate: cert.Raw}
	for _, ca := range roots {
		granted.Roots = append(granted.Roots, ca.cert.Raw)
	}
	return marshal(granted), who, nil
}

func (a *Authority) respond(cs tls.ConnectionState, message []byte) (*x509.Certificate, Identity, error) {
	r, err := parseRequest(message)
	if err != nil {
		return nil, Identity{}, err
	}
	if r.Op == opRenew {
		return a.renew(cs)
	}
	return a.join(cs, r)
}

func (a *Authority) renew(cs tls.ConnectionState) (*x509.Certificate, Identity, error) {
	who, err := a.Peer(cs)
	if err != nil {
		return nil, who, err
	}
	old := cs.PeerCertificates[0]
	id, _ := memberOfSerial(old.SerialNumber)
	r, _, err := a.members.find(id)
	if err != nil {
		return nil, who, err
	}
	cert, err := a.issue(id, who, old.PublicKey, r)
	return cert, who, err
}

func (a *Authority) join(cs tls.ConnectionState, req request) (*x509.Certificate, Identity, error) {
	id, err := parseMemberID(req.Member)
	if err != nil {
		return nil, Identity{}, err
	}
	r, state, err := a.members.find(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, Identity{}, fmt.Errorf("number %v: %w", id, ErrToken)
	case err != nil:
		return nil, Identity{}, err
	case state == Revoked:
		return nil, Identity{}, fmt.Errorf("token of %s/%s: %w", r.Role, r.Name, ErrRevoked)
	case state == Joined:
		return nil, Identity{}, fmt.Errorf("token of %s/%s: %w", r.Role, r.Name, ErrTokenUsed)
	case len(r.Secret) != secretLen:
		return nil, Identity{}, fmt.Errorf("record of member %v has no secret", id)
	}
	// Nothing about the token's holder is believed, nor its CSR looked at, before the proof.
	want, err := prove(r.Secret, cs, req.CSR)
	if err != nil {
		return nil, Identity{}, err
	}
	if !hmac.Equal(want, req.Proof) {
		return nil, Identity{}, fmt.Errorf("token of %s/%s: %w", r.Role, r.Name, ErrProof)
	}
	role, err := ParseRole(r.Role)
	if err != nil {
		return nil, Identity{}, err
	}
	who := Identity{role, r.Name}
	if !time.Now().Before(r.Deadline) {
		return nil, who, fmt.Errorf("at %s: %w", r.Deadline.Format(time.RFC3339), ErrTokenExpired)
	}
	key, err := checkCSR(req.CSR, who)
	if err != nil {
		return nil, who, err
	}
	if err := a.members.claim(id); err != nil {
		return nil, who, err
	}
	r.Joined, r.Secret = time.Now().UTC(), nil
	cert, err := a.issue(id, who, key, r)
	if err != nil {
		return nil, who, err
	}
	return cert, who, a.replace(id, who)
}

// checkCSR gives the key of a request that is made by its holder and for the identity that the token
// names. Everything else in it is ignored: what a certificate says is up to the authority.
func checkCSR(der []byte, who Identity) (*ecdsa.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("CSR: %w", ErrRequest)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || !acceptableKey(key) {
		return nil, fmt.Errorf("CSR: want an ECDSA key on P-256: %w", ErrRequest)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("CSR's signature: %w", ErrRequest)
	}
	asked, err := identityOf(csr.URIs)
	switch {
	case err != nil:
		return nil, fmt.Errorf("CSR: %w", err)
	case asked.Role != who.Role:
		return nil, fmt.Errorf("the token is for %v, not %v: %w", who, asked, ErrRole)
	case asked != who:
		return nil, fmt.Errorf("the token is for %v, not %v: %w", who, asked, ErrName)
	}
	return key, nil
}

// issue signs a member's certificate and notes it. A member that is revoked meanwhile stays revoked, because its
// number is in the certificate.
func (a *Authority) issue(id memberID, who Identity, key any, r record) (*x509.Certificate, error) {
	cas, err := loadCAs(a.caDir())
	if err != nil {
		return nil, err
	}
	ca := cas[len(cas)-1]
	cert, err := ca.sign(grant{member: id, identity: who, key: key, lifetime: a.lifetime})
	if err != nil {
		return nil, err
	}
	r.Expires, r.CA = cert.NotAfter, ca.number
	return cert, a.members.write(id, Joined, r)
}

// replace revokes what an identity was before it joined anew.
func (a *Authority) replace(id memberID, who Identity) error {
	list, err := a.members.list()
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.Identity == who && m.State == Joined && m.ID != id.String() {
			if err := a.revokeMember(m); err != nil {
				return fmt.Errorf("revoke the former %v: %w", who, err)
			}
		}
	}
	return nil
}

// ServerTLS gives the configuration of a controller that is known by the given host names and addresses.
// They matter only to other software, such as browsers: members recognize a controller by its role.
//
// TLS 1.3 only. A client may come without a certificate, because a host that joins has none, so every
// request must be checked with [Authority.Peer]; a certificate that is shown must be good. The
// controller's own certificate is made in memory, and made anew when its time or its CA's is over, so no file
// of it can be stolen. There is no resumption: every handshake asks again whether the client is revoked.
func (a *Authority) ServerTLS(hosts ...string) (*tls.Config, error) {
	for _, h := range hosts {
		if net.ParseIP(h) == nil && checkController(net.JoinHostPort(h, "1")) != nil {
			return nil, fmt.Errorf("host %.80q of the controller's certificate: %w", h, ErrName)
		}
	}
	s := &serverCert{authority: a, hosts: hosts}
	if _, err := s.get(); err != nil {
		return nil, fmt.Errorf("controller's certificate: %w", err)
	}
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
		ClientAuth:             tls.VerifyClientCertIfGiven,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.get() },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			_, err := a.Peer(cs)
			return err
		},
	}
	base := config.Clone()
	// Each handshake reads the list of CAs, because a command may have changed it.
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cas, err := loadCAs(a.caDir())
		if err != nil {
			return nil, err
		}
		c := base.Clone()
		c.ClientCAs = poolOf(cas)
		return c, nil
	}
	return config, nil
}

// serverCert is a controller's certificate.
type serverCert struct {
	authority *Authority
	hosts     []string

	mu   sync.Mutex
	cert *tls.Certificate
	sent [][]byte // the chain that is in cert
}

func (s *serverCert) get() (*tls.Certificate, error) {
	cas, err := loadCAs(s.authority.caDir())
	if err != nil {
		return nil, err
	}
	sent := chain(cas)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert != nil && time.Now().Before(renewAt(s.cert.Leaf)) && bytes.Equal(bytes.Join(sent, nil), bytes.Join(s.sent, nil)) {
		return s.cert, nil
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := cas[len(cas)-1].sign(grant{
		member: newMemberID(), identity: Identity{Controller, "controller"}, key: key.Public(), lifetime: serverLifetime, hosts: s.hosts,
	})
	if err != nil {
		return nil, err
	}
	s.cert = &tls.Certificate{Certificate: append([][]byte{cert.Raw}, sent...), PrivateKey: key, Leaf: cert}
	s.sent = sent
	return s.cert, nil
}

// FromPeer tells who is at the other end of a server's connection: the identity of a certificate that was
// verified in the handshake. It does not ask whether that is still good; [Authority.Peer] does.
// Errors: [ErrNoCertificate], [ErrRole], [ErrName].
func FromPeer(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 || cs.Version != tls.VersionTLS13 {
		return Identity{}, ErrNoCertificate
	}
	if len(cs.VerifiedChains) == 0 {
		return Identity{}, ErrUntrusted
	}
	return IdentityOf(cs.PeerCertificates[0])
}

// Peer tells who is at the other end of a connection to a server of this authority ([Authority.ServerTLS]), if
// its certificate is good now. Call it for every request; it costs two looks at the file system.
// Errors: [ErrNoCertificate], [ErrExpired], [ErrRevoked], [ErrRole], [ErrName], [ErrUntrusted].
func (a *Authority) Peer(cs tls.ConnectionState) (Identity, error) {
	who, err := FromPeer(cs)
	if err != nil {
		return Identity{}, err
	}
	cert := cs.PeerCertificates[0]
	if who.Role == Controller {
		return Identity{}, fmt.Errorf("a controller is no client: %w", ErrRole)
	}
	if now := time.Now(); now.After(cert.NotAfter) {
		return Identity{}, fmt.Errorf("%v at %s: %w", who, cert.NotAfter.Format(time.RFC3339), ErrExpired)
	}
	id, ok := memberOfSerial(cert.SerialNumber)
	if !ok {
		return Identity{}, fmt.Errorf("%v: serial number of another form: %w", who, ErrUntrusted)
	}
	if err := a.members.good(id); err != nil {
		return Identity{}, fmt.Errorf("%v: %w", who, err)
	}
	return who, nil
}

// watchInterval is how long a revoked member may keep a connection. It is a look at the file system
// for each connection, so a second would do as well, and nobody would notice.
const watchInterval = 5 * time.Second

// Watch returns when the peer of a connection is no longer good, with the error of [Authority.Peer], or nil
// when ctx is done. A handler of a long stream runs it beside its work and ends with it.
func (a *Authority) Watch(ctx context.Context, cs tls.ConnectionState) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		if _, err := a.Peer(cs); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
