// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
)

// A message is JSON, because enrolment happens once in a quarter and must stay readable for other
// implementations: an object with the members of request or answer, binary values in Base64.

// maxMessage bounds requests and answers. The largest answer has a certificate and some CAs of 0.5 kB each.
const maxMessage = 16 << 10

const messageVersion = 1

const (
	opJoin  = "join"
	opRenew = "renew"
)

// request is what a host sends. A renewal has nothing but its op: who asks, and for which key, the
// certificate of the connection says.
type request struct {
	Version int    `json:"version"`
	Op      string `json:"op"`
	Member  string `json:"member,omitempty"` // the token's number, 16 hexadecimal digits
	CSR     []byte `json:"csr,omitempty"`    // PKCS #10 in DER, with the identity as URI SAN
	Proof   []byte `json:"proof,omitempty"`  // see prove
}

// answer is a certificate with the CAs to trust, or a refusal.
type answer struct {
	Version     int      `json:"version"`
	Certificate []byte   `json:"certificate,omitempty"` // DER
	Roots       [][]byte `json:"roots,omitempty"`       // DER
	Refused     string   `json:"refused,omitempty"`     // a code of refusals
	Message     string   `json:"message,omitempty"`     // the same for people
}

// refusals are the errors that cross the wire.
var refusals = []struct {
	code string
	err  error
}{
	{"token_used", ErrTokenUsed},
	{"token_expired", ErrTokenExpired},
	{"token", ErrToken},
	{"proof", ErrProof},
	{"revoked", ErrRevoked},
	{"expired", ErrExpired},
	{"role", ErrRole},
	{"name", ErrName},
	{"no_certificate", ErrNoCertificate},
	{"request", ErrRequest},
}

// errInternal is all that a peer learns about trouble that is the controller's own.
var errInternal = errors.New("the controller could not enrol; its log says why")

// refuse makes the answer for an error, without anything in it that is the controller's own affair.
func refuse(err error) answer {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			return answer{Version: messageVersion, Refused: r.code, Message: r.err.Error()}
		}
	}
	return answer{Version: messageVersion, Refused: "internal", Message: errInternal.Error()}
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings, numbers and bytes can always be written
	}
	return b
}

func parseRequest(b []byte) (request, error) {
	var r request
	if err := parseMessage(b, &r); err != nil {
		return request{}, err
	}
	switch {
	case r.Version != messageVersion:
		return request{}, fmt.Errorf("version %d, want %d: %w", r.Version, messageVersion, ErrRequest)
	case r.Op == opRenew && r.Member == "" && r.CSR == nil && r.Proof == nil:
	case r.Op == opJoin && r.Member != "" && len(r.CSR) > 0 && len(r.Proof) == sha256.Size:
	default:
		return request{}, fmt.Errorf("%.16q with the wrong members: %w", r.Op, ErrRequest)
	}
	return r, nil
}

// parseAnswer gives a certificate and CAs, or the refusal as an error.
func parseAnswer(b []byte) (answer, error) {
	var a answer
	if err := parseMessage(b, &a); err != nil {
		return answer{}, err
	}
	if a.Refused != "" {
		for _, r := range refusals {
			if r.code == a.Refused {
				return answer{}, fmt.Errorf("the controller refuses: %w", r.err)
			}
		}
		return answer{}, fmt.Errorf("the controller refuses: %.200q", a.Message)
	}
	if a.Version != messageVersion || len(a.Certificate) == 0 || len(a.Roots) == 0 {
		return answer{}, fmt.Errorf("answer of version %d without certificates: %w", a.Version, ErrRequest)
	}
	return a, nil
}

func parseMessage(b []byte, v any) error {
	if len(b) > maxMessage {
		return fmt.Errorf("%d bytes, at most %d: %w", len(b), maxMessage, ErrRequest)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("not JSON of the expected form: %w", ErrRequest)
	}
	return nil
}

// prove binds a request to its token and to its connection: HMAC-SHA-256, keyed with the token's
// secret, of a label, the connection's channel binding (tls-exporter, RFC 9266) and the CSR. On any other
// connection, for any other key or name, the proof is worthless; so somebody who sits between the two
// ends of two connections, or reads it in a log, gains nothing.
func prove(secret []byte, cs tls.ConnectionState, csr []byte) ([]byte, error) {
	if cs.Version != tls.VersionTLS13 || !cs.HandshakeComplete {
		return nil, fmt.Errorf("not over TLS 1.3: %w", ErrProof)
	}
	binding, err := cs.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil, fmt.Errorf("channel binding: %w", err)
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("fathom join v1\x00"))
	mac.Write(binding)
	mac.Write(csr)
	return mac.Sum(nil), nil
}
