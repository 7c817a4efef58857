// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net/url"
	"strings"
	"testing"
)

func FuzzParseToken(f *testing.F) {
	f.Add(vectorToken.Reveal())
	f.Add(vectorOpen)
	f.Add("fathom-join:////")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Errorf("%q: %v is not ErrToken", s, err)
			}
			return
		}
		if token.Reveal() != strings.TrimSpace(s) {
			t.Errorf("%q is written as %q", s, token.Reveal())
		}
	})
}

// FuzzRespond gives an authority what a peer without a certificate might send. Whatever it is, it is
// refused, in an answer that the peer can read.
func FuzzRespond(f *testing.F) {
	a := newAuthority(f)
	f.Add([]byte(`{"version":1,"op":"renew"}`))
	f.Add([]byte(`{"version":1,"op":"join","member":"4102030405060708","csr":"MA==","proof":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		reply, who, err := a.Respond(tls.ConnectionState{}, b)
		if err == nil || who != (Identity{}) {
			t.Fatalf("%q: accepted as %v", b, who)
		}
		if len(reply) > 1<<10 || bytes.Contains(reply, []byte("internal")) {
			t.Errorf("%q: answered with %s", b, reply)
		}
		if _, err := parseAnswer(reply); err == nil {
			t.Errorf("%q: the answer %s is no refusal", b, reply)
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(`{"version":1,"certificate":"MA==","roots":["MA=="]}`))
	f.Add([]byte(`{"version":1,"refused":"token_used","message":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			return
		}
		if cert, roots, err := a.certificates(); err == nil && (cert == nil || len(roots) == 0) {
			t.Errorf("%q: no certificates and no error", b)
		}
	})
}

func FuzzCSR(f *testing.F) {
	f.Add([]byte("0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := checkCSR(b, fra1); (key == nil) == (err == nil) {
			t.Errorf("%x: key %v, error %v", b, key, err)
		}
	})
}

// FuzzIdentity holds that two URIs that are spelled differently are never the same identity.
func FuzzIdentity(f *testing.F) {
	f.Add("fathom://agent/fra1")
	f.Add("fathom://agent:1/fra1?x#y")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		if id, err := identityOf([]*url.URL{u}); err == nil && id.uri().String() != u.String() {
			t.Errorf("%q is read as %v", s, id)
		}
	})
}
