// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// The policies of the page: nothing but what the server itself serves, and no frame around it.
const (
	pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	// A picture stands by itself: it has its style inside, and nothing else.
	picturePolicy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
)

// gate decides who may come in.
type gate struct {
	hosts map[string]bool
	// secret is the hash of the token: what is compared has always the same length. nil means that there is no token.
	secret []byte
	// A cookie has not the token, but what follows from it. Browsers share cookies between the ports of
	// a host, so the name depends on the token as well.
	cookieName, cookieValue string
}

func newGate(token string, hosts []string) gate {
	g := gate{hosts: map[string]bool{"localhost": true}}
	for _, host := range hosts {
		g.hosts[canonicalHost(host)] = true
	}
	if token != "" {
		g.secret = hash(token)
		g.cookieName = "fathom-" + hex.EncodeToString(derive(token, "name")[:4])
		g.cookieValue = hex.EncodeToString(derive(token, "session"))
	}
	return g
}

func hash(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

func derive(token, purpose string) []byte {
	m := hmac.New(sha256.New, []byte(token))
	m.Write([]byte("fathom web " + purpose))
	return m.Sum(nil)
}

// guard serves those who may come in.
func (g *gate) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", pagePolicy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "DENY")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cache-Control", "no-store")
		switch {
		case !g.knows(r):
			refuse(w, r, http.StatusMisdirectedRequest, "This server does not answer to that host name. If it is yours, add it to the names that the server was started with.")
		case g.secret == nil && !local(r):
			refuse(w, r, http.StatusForbidden, "Without a token, only this host's own users may see the page.")
		case r.URL.Path == "/favicon.ico":
			// Browsers ask for it beside a text; the page itself names its picture.
			w.WriteHeader(http.StatusNoContent)
		case g.secret != nil && r.URL.Path == "/" && r.URL.Query().Has("token"):
			g.enter(w, r)
		case g.secret != nil && !g.admits(r):
			header.Set("WWW-Authenticate", "Bearer")
			refuse(w, r, http.StatusUnauthorized, "Open this page with its token: the address ends in ?token= and the token that the server was started with.")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// knows tells whether the request is for a name of ours. A page elsewhere whose name was made to point here (DNS
// rebinding) carries its own. Addresses cannot be rebound, but only the one that was called is expected.
func (g *gate) knows(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = canonicalHost(host)
	if g.hosts[host] {
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	called, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	here, err := netip.ParseAddrPort(called.String())
	return err == nil && here.Addr().Unmap().WithZone("") == addr.Unmap().WithZone("")
}

func canonicalHost(s string) string {
	s = strings.ToLower(strings.TrimSuffix(strings.Trim(s, "[]"), "."))
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().String()
	}
	return s
}

// local tells whether the client is on this host, and does not speak for one that is not.
func local(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		return false
	}
	return r.Header.Get("Forwarded") == "" && r.Header.Get("X-Forwarded-For") == ""
}

// admits tells whether the request has the cookie or the token.
func (g *gate) admits(r *http.Request) bool {
	if c, err := r.Cookie(g.cookieName); err == nil && hmac.Equal([]byte(c.Value), []byte(g.cookieValue)) {
		return true
	}
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return ok && strings.EqualFold(scheme, "Bearer") && hmac.Equal(hash(token), g.secret)
}

// enter exchanges the token in the address for a cookie. The page is then called by the answer itself, not by
// a redirection: the browser would count that as part of whatever led here, and from elsewhere withhold a strict cookie.
func (g *gate) enter(w http.ResponseWriter, r *http.Request) {
	if !hmac.Equal(hash(r.URL.Query().Get("token")), g.secret) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(w, r, http.StatusUnauthorized, "That is not the token that the server was started with.")
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: g.cookieName, Value: g.cookieValue, Path: "/", HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode,
	})
	w.Header().Set("Refresh", "0; url=./")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("Welcome. The page opens by itself.\n"))
}

// refuse says why not: to the API's clients as JSON, to people as text.
func refuse(w http.ResponseWriter, r *http.Request, code int, why string) {
	if strings.HasPrefix(r.URL.Path, "/api/") {
		writeError(w, code, why)
		return
	}
	http.Error(w, why, code)
}
