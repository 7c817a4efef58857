// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package member

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/internal/secretfile"
)

// Errors of files with secrets.
var (
	// ErrIdentity says that a file is not an identity.
	ErrIdentity = errors.New("not an identity: a PKCS #8 Ed25519 key in PEM")
	// ErrSwarmKey says that a file is not a list of swarm keys.
	ErrSwarmKey = errors.New("not a list of swarm keys")
	// ErrMode says that others than its owner can read or change a file with a secret.
	ErrMode = secretfile.ErrMode
)

// An Identity is the key pair (Ed25519, RFC 8032) that proves who a member is. Its text form never shows the private
// key, in a log or anywhere else. Make one with [NewIdentity] or [LoadIdentity].
type Identity struct{ key ed25519.PrivateKey }

// NewIdentity makes an identity that has not been there before.
func NewIdentity() *Identity {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err) // the source of random numbers never fails (crypto/rand)
	}
	return &Identity{key}
}

// LoadIdentity reads the file that [Identity.Save] or `openssl genpkey -algorithm ed25519` wrote. It refuses one that
// others can read with [ErrMode]. When there is none, the error wraps [io/fs.ErrNotExist].
func LoadIdentity(name string) (*Identity, error) {
	text, err := secretfile.Read(name)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	i, err := ParseIdentity(text)
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", name, err)
	}
	return i, nil
}

// ParseIdentity reads what is in an identity's file. The error wraps [ErrIdentity] and shows nothing of the text.
func ParseIdentity(text []byte) (*Identity, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, fmt.Errorf("no PEM block: %w", ErrIdentity)
	case block.Type != "PRIVATE KEY":
		return nil, fmt.Errorf("another kind of PEM block: %w", ErrIdentity)
	}
	if second, _ := pem.Decode(rest); second != nil {
		return nil, fmt.Errorf("more than one PEM block: %w", ErrIdentity)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the block is no key: %w", ErrIdentity) // x509's words may quote some of it
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of another algorithm: %w", ErrIdentity)
	}
	return &Identity{key}, nil
}

// Save puts the identity into a new file that only its owner can read (mode 0600; PEM, PKCS #8). It never overwrites
// one: the error then wraps [io/fs.ErrExist].
func (i *Identity) Save(name string) error {
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := secretfile.Create(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	return nil
}

// Public returns the public key.
func (i *Identity) Public() ed25519.PublicKey { return i.key.Public().(ed25519.PublicKey) }

// Private returns the key pair itself, for who has to sign with it. It is to be shown to nobody.
func (i *Identity) Private() ed25519.PrivateKey { return i.key }

// ID returns the place on the ring of the member with this identity that is known by an address, in a swarm with
// this binding: that of the key, or that of the address.
func (i *Identity) ID(b Binding, addr netip.AddrPort) ID {
	if b == ByKey {
		return OfKey(i.Public())
	}
	return OfAddr(addr)
}

// String names the identity by its place in a swarm that is bound by key.
func (i *Identity) String() string { return "Identity(" + OfKey(i.Public()).Short() + ")" }

// Format prints String whatever the verb, as %d and %#v would otherwise print the private key.
func (i *Identity) Format(f fmt.State, _ rune) { fmt.Fprint(f, i.String()) }

// LogValue logs String.
func (i *Identity) LogValue() slog.Value { return slog.StringValue(i.String()) }
