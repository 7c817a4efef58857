// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package web shows what an anycast controller knows in a browser: its sites, its measurements as they run,
// catchments as a map, who moved between two of them, and paths with the site that heard each hop.
//
// [New] gives an http.Handler over a [Source]. It only reads. The page is plain HTML, CSS and ES modules in the program
// itself: it needs no other host, and no build. Behind it is an API of JSON, JSON Lines and Server-Sent Events, which
// openapi.yaml describes and the handler serves at /api.
//
//	h, err := web.New(web.Options{Source: source, Token: token})
//	if err != nil {
//		return err
//	}
//	defer h.Close()
//	server := &http.Server{Addr: "127.0.0.1:8080", Handler: h, ReadHeaderTimeout: 10 * time.Second}
//	server.RegisterOnShutdown(func() { h.Close() })
//	return server.ListenAndServe()
//
// Measurements may have millions of results, and browsers should not. The handler follows a measurement that somebody
// looks at once, however many look, and sums it up by network: 24 bits of an IPv4 address, 48 of an IPv6
// address. Sums are kept for a while after the last visitor has left; their memory is bounded.
//
// # Safety
//
// Without [Options.Token] only clients of the same host are served. With it, a browser that opens /?token=TOKEN once gets
// a cookie, and programs send the header "Authorization: Bearer TOKEN". Requests must name a host that the server
// answers to (see [Options.Hosts]), which ends DNS rebinding. The page's Content-Security-Policy allows
// no script, style, image or connection but the server's own, and no frame around it. What comes from outside, such as names and
// the text of CHAOS answers, is put into the page as text, never as HTML.
//
// There is no TLS here: that is the server's business, which may be one behind a proxy. A proxy on the same host makes every
// client look local, so it needs a token; requests that say that they were forwarded are refused without one.
//
// # References
//
//   - D. Hilbert, Ueber die stetige Abbildung einer Linie auf ein Flächenstück, 1891; as a map of the IPv4 Internet:
//     R. Munroe, 2006, and J. Heidemann et al., Census and survey of the visible Internet, IMC 2008.
//   - M. Okabe, K. Ito, Color universal design, 2008: the palette.
//   - WHATWG HTML, section 9.2: Server-Sent Events.
package web
