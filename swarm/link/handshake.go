// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/flynn/noise"
)

var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherAESGCM, noise.HashSHA256)

const (
	// Magic is the first byte that either side of a link sends; Version is the second.
	Magic   = 0xFA
	Version = 1

	prologue = "fathom swarm link \xfa\x01"

	keyLen = 32 // of X25519
	// The length of the first message says whether a swarm key went into it: then it has a tag.
	firstOpen  = keyLen
	firstKeyed = keyLen + tagSize

	announcement = ed25519.PublicKeySize + ed25519.SignatureSize + 3*4
	// The second and third messages hold the sender's keys and what it announces, encrypted.
	maxHandshake = keyLen + keyLen + tagSize + announcement + MaxHello + tagSize
)

// Contexts of signatures, so that none can stand for one of the other side or one made elsewhere.
const (
	dialerContext   = "fathom swarm link dialer:"
	accepterContext = "fathom swarm link accepter:"
)

// limits are what a side accepts, as it tells the other.
type limits struct{ requests, streams, body uint32 }

// An announced is what a side says and proves in the handshake.
//
//	0     32          96         100       104    108
//	+-----+-----------+----------+---------+------+-------
//	| key | signature | requests | streams | body | hello
//	+-----+-----------+----------+---------+------+-------
type announced struct {
	key       ed25519.PublicKey
	signature []byte
	limits    limits
	hello     []byte
}

func (a announced) append(b []byte) []byte {
	b = append(b, a.key...)
	b = append(b, a.signature...)
	b = binary.BigEndian.AppendUint32(b, a.limits.requests)
	b = binary.BigEndian.AppendUint32(b, a.limits.streams)
	b = binary.BigEndian.AppendUint32(b, a.limits.body)
	return append(b, a.hello...)
}

func decodeAnnounced(b []byte) (announced, error) {
	if len(b) < announcement || len(b) > announcement+MaxHello {
		return announced{}, fmt.Errorf("%w: announced in %d bytes", ErrHandshake, len(b))
	}
	b = bytes.Clone(b)
	a := announced{key: b[:32:32], signature: b[32:96:96], hello: b[announcement:]}
	a.limits.requests = binary.BigEndian.Uint32(b[96:])
	a.limits.streams = binary.BigEndian.Uint32(b[100:])
	a.limits.body = binary.BigEndian.Uint32(b[104:])
	if a.limits.requests == 0 || a.limits.body < 64<<10 {
		return announced{}, fmt.Errorf("%w: takes %d requests and %d bytes", ErrHandshake, a.limits.requests, a.limits.body)
	}
	return a, nil
}

// signed is what the identity key signs: the Noise key, made for this link alone, and the other side's ephemeral key. So
// the signature is worth nothing outside of this handshake, whatever becomes known later.
func signed(context string, static, ephemeral []byte) []byte {
	b := make([]byte, 0, len(context)+2*keyLen)
	return append(append(append(b, context...), static...), ephemeral...)
}

// A shake is a handshake under way.
type shake struct {
	conn   net.Conn
	config Config
	dialer bool
	random io.Reader // nil: crypto/rand
	static noise.DHKey
	state  *noise.HandshakeState
	sent   time.Time // when the message went out whose answer gives the round trip
	rtt    time.Duration
	peer   announced
}

// start gives conn the handshake's deadline. The function it returns ends that, and returns an error if the time was up.
func (c *Config) start(ctx context.Context, conn net.Conn) (stop func() error) {
	limited, cancel := context.WithTimeout(ctx, c.Handshake)
	// Closing works with every connection; not all have deadlines.
	unhook := context.AfterFunc(limited, func() { conn.Close() })
	return func() error {
		defer cancel()
		if !unhook() && limited.Err() != nil {
			return fmt.Errorf("%w: %w", ErrHandshake, limited.Err())
		}
		return nil
	}
}

func (h *shake) newState(psk []byte) (*noise.HandshakeState, error) {
	return noise.NewHandshakeState(noise.Config{
		CipherSuite: suite, Pattern: noise.HandshakeXX, Initiator: h.dialer, Prologue: []byte(prologue),
		StaticKeypair: h.static, PresharedKey: psk, Random: h.random,
	})
}

// announce makes what this side says; the other's ephemeral key is known.
func (h *shake) announce() ([]byte, error) {
	var hello []byte
	if h.config.Hello != nil {
		hello = h.config.Hello(h.conn.RemoteAddr())
	}
	if len(hello) > MaxHello {
		return nil, fmt.Errorf("a hello of %d bytes, at most %d: %w", len(hello), MaxHello, ErrTooLarge)
	}
	context := accepterContext
	if h.dialer {
		context = dialerContext
	}
	return announced{
		key:       h.config.Identity.Public().(ed25519.PublicKey),
		signature: ed25519.Sign(h.config.Identity, signed(context, h.static.Public, h.state.PeerEphemeral())),
		limits: limits{
			uint32(h.config.MaxRequests), uint32(h.config.MaxStreams), uint32(h.config.MaxBody),
		},
		hello: hello,
	}.append(nil), nil
}

// verify takes in what the other side says.
func (h *shake) verify(text []byte) (err error) {
	if h.peer, err = decodeAnnounced(text); err != nil {
		return err
	}
	context := dialerContext
	if h.dialer {
		context = accepterContext
	}
	if !ed25519.Verify(h.peer.key, signed(context, h.state.PeerStatic(), h.state.LocalEphemeral().Public), h.peer.signature) {
		return fmt.Errorf("%w: its key did not sign this link's key", ErrHandshake)
	}
	if h.peer.key.Equal(h.config.Identity.Public()) {
		return ErrSelf
	}
	return nil
}

func (h *shake) check() error {
	if h.config.Check == nil {
		return nil
	}
	return h.config.Check(h.peer.key, h.peer.hello, h.conn.RemoteAddr())
}

// write sends a message of the handshake; the first of each side begins with magic and version.
func (h *shake) write(first bool, message []byte) error {
	b := make([]byte, 0, 4+len(message))
	if first {
		b = append(b, Magic, Version)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	if _, err := h.conn.Write(append(b, message...)); err != nil {
		return fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	return nil
}

// read receives a message of the handshake. It makes room for no more than most says.
func (h *shake) read(first bool, most int) ([]byte, error) {
	var head [4]byte
	b := head[:2]
	if first {
		b = head[:4]
	}
	if err := h.readFull(b); err != nil {
		return nil, err
	}
	if first {
		switch {
		case b[0] != Magic:
			return nil, fmt.Errorf("%w: it begins with byte %#02x", ErrHandshake, b[0])
		case b[1] != Version:
			return nil, fmt.Errorf("%w: %d, not %d", ErrVersion, b[1], Version)
		}
		b = b[2:]
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > most {
		return nil, fmt.Errorf("%w: a message of %d bytes", ErrHandshake, n)
	}
	b = make([]byte, n)
	return b, h.readFull(b)
}

func (h *shake) readFull(b []byte) error {
	if _, err := io.ReadFull(h.conn, b); err != nil {
		return fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	return nil
}

// dial is the dialling side: it learns who the other is before it says who it is itself.
func (h *shake) dial(expect ed25519.PublicKey) (send, recv *noise.CipherState, err error) {
	var psk []byte
	if len(h.config.SwarmKeys) > 0 {
		psk = h.config.SwarmKeys[0][:]
	}
	if h.static, err = suite.GenerateKeypair(h.random); err != nil {
		return nil, nil, err
	}
	if h.state, err = h.newState(psk); err != nil {
		return nil, nil, err
	}
	message, _, _, err := h.state.WriteMessage(nil, nil)
	if err != nil {
		return nil, nil, err
	}
	h.sent = time.Now()
	if err := h.write(true, message); err != nil {
		return nil, nil, err
	}
	if message, err = h.read(true, maxHandshake); err != nil {
		return nil, nil, err
	}
	h.rtt = time.Since(h.sent)
	if len(message) == 0 {
		return nil, nil, ErrSwarmKey
	}
	text, _, _, err := h.state.ReadMessage(nil, message)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: second message: %w", ErrHandshake, err)
	}
	if err := h.verify(text); err != nil {
		return nil, nil, err
	}
	if expect != nil && !expect.Equal(h.peer.key) {
		return nil, nil, fmt.Errorf("%w: %x, not %x", ErrWrongMember, []byte(h.peer.key), []byte(expect))
	}
	if err := h.check(); err != nil {
		return nil, nil, err
	}
	if text, err = h.announce(); err != nil {
		return nil, nil, err
	}
	message, send, recv, err = h.state.WriteMessage(nil, text)
	if err != nil {
		return nil, nil, err
	}
	return send, recv, h.write(false, message)
}

// accept is the other side. What came is checked before anything is computed with public keys: with swarm
// keys, whoever does not have one gets no further than a few hashes.
func (h *shake) accept() (send, recv *noise.CipherState, err error) {
	message, err := h.read(true, firstKeyed)
	if err != nil {
		if errors.Is(err, ErrVersion) {
			_ = h.write(true, nil) // tells which version would do
		}
		return nil, nil, err
	}
	if err := h.openFirst(message); err != nil {
		_ = h.write(true, nil)
		return nil, nil, err
	}
	text, err := h.announce()
	if err != nil {
		return nil, nil, err
	}
	if message, _, _, err = h.state.WriteMessage(nil, text); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	h.sent = time.Now()
	if err := h.write(true, message); err != nil {
		return nil, nil, err
	}
	if message, err = h.read(false, maxHandshake); err != nil {
		return nil, nil, err
	}
	h.rtt = time.Since(h.sent)
	text, recv, send, err = h.state.ReadMessage(nil, message)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: third message: %w", ErrHandshake, err)
	}
	return send, recv, h.verify(text)
}

// openFirst takes in a first message.
func (h *shake) openFirst(message []byte) error {
	psk, err := h.findKey(message)
	if err != nil {
		return err
	}
	if h.static, err = suite.GenerateKeypair(h.random); err != nil {
		return err
	}
	if h.state, err = h.newState(psk); err != nil {
		return err
	}
	if _, _, _, err := h.state.ReadMessage(nil, message); err != nil {
		return fmt.Errorf("%w: first message: %w", ErrHandshake, err)
	}
	return nil
}

// findKey returns the swarm key that a first message was made with, the one under which it is authentic; nil if there
// are none.
func (h *shake) findKey(message []byte) ([]byte, error) {
	if len(h.config.SwarmKeys) == 0 {
		if len(message) != firstOpen {
			return nil, ErrSwarmKey
		}
		return nil, nil
	}
	if len(message) != firstKeyed {
		return nil, ErrSwarmKey
	}
	for _, key := range h.config.SwarmKeys {
		state, err := h.newState(key[:])
		if err != nil {
			return nil, err
		}
		if _, _, _, err := state.ReadMessage(nil, message); err == nil {
			return key[:], nil
		}
	}
	return nil, ErrSwarmKey
}
