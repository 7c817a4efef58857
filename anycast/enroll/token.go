// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strconv"
	"strings"
	"time"
)

// memberID names one enrolment, from its token on. It is the first half of the serial number of every
// certificate of that member, so that revoking it reaches the renewed ones, too.
type memberID [8]byte

func newMemberID() (id memberID) {
	rand.Read(id[:])
	id[0] |= 0x40 // so that every serial number has one length, and none is zero
	return id
}

func (id memberID) String() string { return hex.EncodeToString(id[:]) }

func parseMemberID(s string) (id memberID, err error) {
	if len(s) != 2*len(id) {
		return id, ErrToken
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, ErrToken
	}
	return id, nil
}

const serialLen = 16

func (id memberID) newSerial() *big.Int {
	var b [serialLen]byte
	copy(b[:], id[:])
	rand.Read(b[len(id):])
	return new(big.Int).SetBytes(b[:])
}

func memberOfSerial(serial *big.Int) (id memberID, ok bool) {
	if serial == nil || serial.Sign() <= 0 || serial.BitLen() > 8*serialLen {
		return id, false
	}
	var b [serialLen]byte
	copy(id[:], serial.FillBytes(b[:]))
	return id, true
}

// Pin is the SHA-256 of a CA's public key (its SubjectPublicKeyInfo), as in RFC 7469.
type Pin [sha256.Size]byte

func (p Pin) String() string { return hex.EncodeToString(p[:]) }

func pinOf(cert *x509.Certificate) Pin { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// Token invites one host, once: it says where the controller is, how to recognize it, and as whom
// to join, and it holds a secret. It is made by [Authority.Token].
//
// Printed or logged, a Token is redacted; [Token.Reveal] gives the line for the other host. Do not keep one in an
// unexported field of what is printed: package fmt calls no methods there.
type Token struct {
	Identity   Identity
	Controller string    // HOST:PORT
	Expires    time.Time // whole seconds
	Pin        Pin       // of the CA

	id     memberID
	secret [secretLen]byte
}

const (
	secretLen   = 16
	tokenPrefix = "fathom-join:"
	checkLen    = 4 // finds a token that was cut or mistyped; it protects from nothing else
	sealedLen   = 8 + 8 + sha256.Size + secretLen + checkLen
	// maxController bounds HOST:PORT: a host name of 253, a colon, a port.
	maxController = 253 + 1 + 5
	maxToken      = len(tokenPrefix) + 16 + 1 + maxName + 1 + maxController + 1 + (sealedLen*4+2)/3
)

// Reveal gives the token with its secret, as one line that needs no quoting except for the brackets of an IPv6
// address:
//
//	fathom-join:agent/fra1/controller.example:50051/BASE64
//
// The last part, in URL-safe Base64 (RFC 4648), is the member's number (8 bytes), the expiry (8 bytes, Unix
// seconds), the pin (32), the secret (16) and the first 4 bytes of the SHA-256 of everything before.
func (t Token) Reveal() string {
	open := t.open()
	b := make([]byte, 0, sealedLen)
	b = append(b, t.id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = append(b, t.Pin[:]...)
	b = append(b, t.secret[:]...)
	check := tokenCheck(open, b)
	return open + base64.RawURLEncoding.EncodeToString(append(b, check[:]...))
}

// open is the part of a token that is no secret.
func (t Token) open() string {
	return tokenPrefix + t.Identity.String() + "/" + t.Controller + "/"
}

func tokenCheck(open string, sealed []byte) (check [checkLen]byte) {
	h := sha256.New()
	h.Write([]byte(open))
	h.Write(sealed)
	copy(check[:], h.Sum(nil))
	return check
}

// String gives the token without its secret.
func (t Token) String() string { return t.open() + "..." }

// GoString keeps the secret from %#v.
func (t Token) GoString() string { return t.String() }

// Format keeps the secret from every other verb.
func (t Token) Format(f fmt.State, _ rune) { fmt.Fprint(f, t.String()) }

// LogValue keeps the secret from logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// ParseToken reads what [Token.Reveal] wrote; white space around it is ignored.
// Errors: [ErrToken], and with it [ErrRole] or [ErrName]. None of them repeats any of s.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if len(s) > maxToken {
		return Token{}, fmt.Errorf("%d characters: %w", len(s), ErrToken)
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 4 {
		return Token{}, fmt.Errorf("want %sROLE/NAME/CONTROLLER/CODE: %w", tokenPrefix, ErrToken)
	}
	var t Token
	role, err := ParseRole(parts[0])
	if err != nil || role == Controller {
		return Token{}, fmt.Errorf("%w: unknown role: %w", ErrToken, ErrRole)
	}
	if CheckName(parts[1]) != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, ErrName)
	}
	if checkController(parts[2]) != nil {
		return Token{}, fmt.Errorf("controller's address: %w", ErrToken)
	}
	t.Identity = Identity{role, parts[1]}
	t.Controller = parts[2]
	b, err := base64.RawURLEncoding.Strict().DecodeString(parts[3])
	if err != nil || len(b) != sealedLen {
		return Token{}, fmt.Errorf("not copied whole: %w", ErrToken)
	}
	sealed, check := b[:sealedLen-checkLen], b[sealedLen-checkLen:]
	if want := tokenCheck(t.open(), sealed); subtle.ConstantTimeCompare(want[:], check) != 1 {
		return Token{}, fmt.Errorf("not copied exactly: %w", ErrToken)
	}
	copy(t.id[:], sealed)
	// A year beyond 9999 has no text form, and no token lives that long.
	expires := binary.BigEndian.Uint64(sealed[8:])
	if expires > 253402300799 {
		return Token{}, fmt.Errorf("expiry: %w", ErrToken)
	}
	t.Expires = time.Unix(int64(expires), 0).UTC()
	copy(t.Pin[:], sealed[16:])
	copy(t.secret[:], sealed[16+sha256.Size:])
	return t, nil
}

// checkController wants HOST:PORT, with a port, that has no character of another part of a token.
func checkController(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("controller %.80q: want HOST:PORT: %w", s, ErrName)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	ok := err == nil && n > 0 && host != "" && len(s) <= maxController
	for i := 0; ok && i < len(host); i++ {
		c := host[i]
		ok = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte(".-_:%", c) >= 0
	}
	if !ok {
		return fmt.Errorf("controller %.80q: want a host name or address that other hosts reach, and a port: %w", s, ErrName)
	}
	return nil
}
