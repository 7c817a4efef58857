// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// vectorToken and vectorText are one token in both forms. Tokens outlive programs, so the text must not change.
var vectorToken = Token{
	Identity: fra1, Controller: "[2001:db8::1]:50051", Expires: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	Pin: Pin(bytes.Repeat([]byte{0xaa}, 32)), id: memberID{0x41, 2, 3, 4, 5, 6, 7, 8}, secret: [secretLen]byte(bytes.Repeat([]byte{0x55}, 16)),
}

const (
	vectorOpen   = "fathom-join:agent/fra1/[2001:db8::1]:50051/"
	vectorSealed = "QQIDBAUGBwgAAAAAaVc1paqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqVVVVVVVVVVVVVVVVVVVVVbU_NQ4"
)

func TestToken(t *testing.T) {
	if got := vectorToken.Reveal(); got != vectorOpen+vectorSealed {
		t.Errorf("got  %s\nwant %s", got, vectorOpen+vectorSealed)
	}
	got, err := ParseToken("  " + vectorOpen + vectorSealed + "\r\n")
	if err != nil || got != vectorToken {
		t.Errorf("got %#v, %v", got, err)
	}
	whole := vectorOpen + vectorSealed
	for n := range whole {
		if _, err := ParseToken(whole[:n]); !errors.Is(err, ErrToken) {
			t.Errorf("cut after %d characters: %v, want ErrToken", n, err)
		}
	}
	for _, bad := range []struct {
		text string
		want error
	}{
		{strings.Replace(whole, "fra1", "fra2", 1), ErrToken},
		{strings.Replace(whole, "agent", "viewer", 1), ErrToken},
		{strings.Replace(whole, "agent", "controller", 1), ErrRole},
		{strings.Replace(whole, "agent", "root", 1), ErrRole},
		{strings.Replace(whole, "fra1", "-fra1", 1), ErrName},
		{strings.Replace(whole, ":50051/", ":0/", 1), ErrToken},
		{strings.Replace(whole, vectorSealed, strings.ToLower(vectorSealed), 1), ErrToken},
		{whole + "A", ErrToken},
		{strings.Repeat("x", 1<<20), ErrToken},
	} {
		_, err := ParseToken(bad.text)
		if !errors.Is(err, ErrToken) || !errors.Is(err, bad.want) {
			t.Errorf("%.90s: got %v, want %v", bad.text, err, bad.want)
		}
		if err != nil && strings.Contains(err.Error(), vectorSealed[60:]) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

// TestSecrets prints a token in every way that there is.
func TestSecrets(t *testing.T) {
	token := vectorToken
	holder := struct {
		Token *Token
		Value Token
	}{&token, token}
	var printed strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T"} {
		fmt.Fprintf(&printed, verb+verb+verb+"\n", token, &token, holder)
	}
	fmt.Fprintln(&printed, token, &token, []Token{token})
	b, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	printed.Write(b)
	for _, h := range []slog.Handler{slog.NewJSONHandler(&printed, nil), slog.NewTextHandler(&printed, nil)} {
		slog.New(h).Info("token", "token", token, "pointer", &token, "holder", holder)
	}
	// The secret in Base64 at each of its offsets, in hexadecimal, as numbers.
	for _, secret := range []string{"VVVVVV", "VVVV", "UUUU", "5555", "85, 85", "85 85", "85,85", "0x55"} {
		if at := strings.Index(printed.String(), secret); at >= 0 {
			t.Errorf("the secret shows as %q: ...%s", secret, printed.String()[max(0, at-80):at])
		}
	}
	if !strings.Contains(printed.String(), vectorOpen+"...") {
		t.Error("a token says nothing about itself")
	}
}

func TestRoles(t *testing.T) {
	got := map[string]string{}
	for r := Role(0); r <= Controller+1; r++ {
		for a := Action(0); a <= Measure+1; a++ {
			if r.May(a) {
				got[r.String()] += a.String() + " "
			}
		}
	}
	want := map[string]string{"agent": "serve ", "operator": "read measure ", "viewer": "read "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("permissions (-want +got):\n%s", diff)
	}
	if s := fmt.Sprint(Role(37), Action(37), State(37)); s != "Role(37) Action(37) State(37)" {
		t.Errorf("unknown values print as %s", s)
	}
	wantError(t, "a viewer measures", Identity{Viewer, "bob"}.Check(Measure), ErrRole)
	wantError(t, "an operator registers", alice.CheckAgent("alice"), ErrRole)
	wantError(t, "an agent registers as another", fra1.CheckAgent("ams1"), ErrName)
	if err := fra1.CheckAgent("fra1"); err != nil {
		t.Error(err)
	}
	for _, r := range []Role{Agent, Operator, Viewer, Controller} {
		if got, err := ParseRole(r.String()); got != r || err != nil {
			t.Errorf("%v is read as %v, %v", r, got, err)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "fra1", "A.b_c-9", strings.Repeat("x", maxName)} {
		if err := CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-a", "_", "a/b", "a b", "ü", "a\x00", "a\n", "a%20", strings.Repeat("x", maxName+1)} {
		if err := CheckName(bad); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v, want ErrName", bad, err)
		}
	}
}

// TestMessages pins the form of messages, which both ends must agree on.
func TestMessages(t *testing.T) {
	proof := strings.Repeat("A", 43) + "="
	for _, tt := range []struct {
		text string
		want error
	}{
		{`{"version":1,"op":"renew"}`, nil},
		{`{"version":1,"op":"join","member":"4102030405060708","csr":"MA==","proof":"` + proof + `"}`, nil},
		{`{"version":2,"op":"renew"}`, ErrRequest},
		{`{"version":1,"op":"renew","csr":"MA=="}`, ErrRequest},
		{`{"version":1,"op":"join","member":"4102030405060708","csr":"MA==","proof":"AAAA"}`, ErrRequest},
		{`{"version":1,"op":"join","csr":"MA==","proof":"` + proof + `"}`, ErrRequest},
		{`{"version":1}`, ErrRequest},
		{`null`, ErrRequest},
		{`[]`, ErrRequest},
		{``, ErrRequest},
		{strings.Repeat(" ", maxMessage) + `{"version":1,"op":"renew"}`, ErrRequest},
	} {
		r, err := parseRequest([]byte(tt.text))
		if !errors.Is(err, tt.want) {
			t.Errorf("%.80s: got %v, want %v", tt.text, err, tt.want)
		} else if err == nil && string(marshal(r)) != tt.text {
			t.Errorf("%s becomes %s", tt.text, marshal(r))
		}
	}
	for _, r := range refusals {
		_, err := parseAnswer(marshal(refuse(fmt.Errorf("secret detail: %w", r.err))))
		if !errors.Is(err, r.err) || strings.Contains(err.Error(), "detail") {
			t.Errorf("%v crosses the wire as %v", r.err, err)
		}
	}
	_, err := parseAnswer(marshal(refuse(errors.New("open DIR/ca/1/key.pem: permission denied"))))
	if err == nil || strings.Contains(err.Error(), "key.pem") {
		t.Errorf("trouble of the controller's own crosses the wire as %v", err)
	}
	if _, err := parseAnswer([]byte(`{"version":1}`)); !errors.Is(err, ErrRequest) {
		t.Errorf("empty answer: %v", err)
	}
}
