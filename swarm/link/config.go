// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Defaults and bounds of [Config].
const (
	DefaultMaxRequests = 256
	DefaultMaxStreams  = 256
	DefaultMaxBody     = 16<<20 + 64<<10 // a message of 16 MiB, with what a swarm puts around it
	DefaultMaxWindow   = 4 << 20
	DefaultKeepAlive   = 20 * time.Second
	DefaultHandshake   = 5 * time.Second

	MaxHello     = 4 << 10 // bytes of a hello
	MaxHeader    = 4 << 10 // bytes of a stream's header
	MaxSwarmKeys = 16
)

// A Config is what a member's links have in common. The same one may be used for any number of links at a time; nothing
// in it is changed.
type Config struct {
	// Identity is the key that the member is known by. Required.
	Identity ed25519.PrivateKey

	// SwarmKeys are secrets that all members of the swarm share: whoever has none of them learns nothing from a member
	// but that it speaks this protocol. The first is used to dial, all are accepted (at most MaxSwarmKeys), so
	// that keys can be replaced one member at a time. None: anyone may link.
	SwarmKeys [][32]byte

	// Hello returns what to tell the other side about this one under the handshake's protection, at most MaxHello
	// bytes. The dialling side learns it before it has proved itself. Nil: nothing.
	Hello func(remote net.Addr) []byte

	// Check decides whether to accept a member whose key is proved, and what its hello says. It may block, within
	// Handshake. An error's text is told to the other side. Nil accepts everyone.
	Check func(key ed25519.PublicKey, hello []byte, remote net.Addr) error

	// Handler takes what comes in. Required.
	Handler Handler

	// MaxRequests is how many requests of the other side may be under way at a time, and as many casts. Further
	// requests wait at the other side; further casts are dropped. Default DefaultMaxRequests.
	MaxRequests int
	// MaxStreams is how many streams the other side may have open. Default DefaultMaxStreams.
	MaxStreams int
	// MaxBody is the longest body of a request, answer or cast, and the longest message, that is accepted. It is also
	// how much memory large ones may take at a time, for requests, answers, casts and messages each. Default
	// DefaultMaxBody, at least 64 KiB, at most 1 GiB.
	MaxBody int
	// MaxWindow is how far the receive window of a stream, and that of small messages, may grow when the path needs it.
	// All streams of a link together may have four times that beyond the 64 KiB each starts with. Default
	// DefaultMaxWindow, at least 64 KiB.
	MaxWindow int
	// KeepAlive is the silence after which, with up to a quarter less by chance, the other side is asked whether it is
	// still there; after twice that the link is dead. Default DefaultKeepAlive; negative: never (tests).
	KeepAlive time.Duration
	// Handshake bounds how long a handshake may take, whatever the other side does. Default DefaultHandshake.
	Handshake time.Duration

	// Closed is called once when a link that was up has ended, as Session.Done is closed, by whichever goroutine ended
	// it: it must be quick, and not call Close. It saves who holds many links a goroutine for each. It may be
	// called before Client or Server has returned. Nil: nobody is told.
	Closed func(s *Session)

	// Logger gets one line at level debug when a link ends by a fault. Nil: none.
	Logger *slog.Logger
}

// A Handler takes what the other side of a link sends. Its methods are called from goroutines of the link and may
// block: Request, Cast and Stream each in a goroutine of its own, Message in one for all messages of a link.
// [Session.Close] waits until they have returned, so none may call it; [Session.Bye] is fine.
type Handler interface {
	// Request answers a request: reply must be called exactly once, before or after Request returns and from any
	// goroutine. It does not keep the slice, and waits while much is queued for the other side. body belongs to Request.
	Request(s *Session, body []byte, reply func(answer []byte))

	// Cast takes what is not answered. body belongs to Cast.
	Cast(s *Session, body []byte)

	// Message takes a message, one at a time in the order they were sent (but for large ones, which others may overtake).
	// Nil says that it is delivered; the text of an error goes back to the sender. payload is valid until
	// Message returns.
	Message(s *Session, payload []byte) error

	// Stream takes a stream that the other side opens. An error refuses it, and its text is told to the other side; nil
	// accepts it, and whoever Stream has left it to has to close it. It should return soon, as the other side waits
	// for that, or for the first byte that is written. stream is a *[Stream]; header belongs to Stream.
	Stream(s *Session, header []byte, stream net.Conn) error
}

func (c Config) withDefaults() (Config, error) {
	if len(c.Identity) != ed25519.PrivateKeySize {
		return c, fmt.Errorf("link: an identity of %d bytes, not %d", len(c.Identity), ed25519.PrivateKeySize)
	}
	if c.Handler == nil {
		return c, errors.New("link: no handler")
	}
	if len(c.SwarmKeys) > MaxSwarmKeys {
		return c, fmt.Errorf("link: %d swarm keys, at most %d", len(c.SwarmKeys), MaxSwarmKeys)
	}
	for _, d := range []struct {
		value           *int
		otherwise       int
		lowest, highest int
		name            string
	}{
		{&c.MaxRequests, DefaultMaxRequests, 1, 1 << 20, "MaxRequests"},
		{&c.MaxStreams, DefaultMaxStreams, 1, 1 << 20, "MaxStreams"},
		{&c.MaxBody, DefaultMaxBody, 64 << 10, 1 << 30, "MaxBody"},
		{&c.MaxWindow, DefaultMaxWindow, startWindow, 1 << 30, "MaxWindow"},
	} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
		if *d.value < d.lowest || *d.value > d.highest {
			return c, fmt.Errorf("link: %s is %d, not from %d to %d", d.name, *d.value, d.lowest, d.highest)
		}
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = DefaultKeepAlive
	}
	if c.Handshake <= 0 {
		c.Handshake = DefaultHandshake
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
