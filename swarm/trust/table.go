// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
)

// Errors of [Table.Open]. The message is refused: it is not to be delivered.
var (
	// ErrNotSealed says that a message from a trusted host came in clear.
	ErrNotSealed = errors.New("the message from a trusted host is not sealed")
	// ErrWrongKey says that a message cannot be opened with the key of the host that it is said to come from: it was
	// sealed with another key, by or for another member, or it was changed on its way.
	ErrWrongKey = errors.New("the message was sealed with another key")
	// ErrReplayed says that a message was there before, or may have been.
	ErrReplayed = errors.New("the message is repeated")
	// ErrClock says that a message is not of this time by the clock of this host. It comes with ErrReplayed when the
	// message is from the past.
	ErrClock = errors.New("the message is not of this time: the clocks of the two hosts may differ")
	// ErrNotListed says that a sealed message comes from a host that the key file does not list.
	ErrNotListed = errors.New("the message is sealed, but its sender is not in the key file")
)

const (
	// Window is how far the time of a message may be from this host's, either way.
	Window = 2 * time.Minute

	// Overhead is how much longer a sealed message is than its payload, in bytes.
	Overhead = headerSize + tagSize
)

const (
	marker     = "\xfffathom"
	version    = 1
	sessionAt  = len(marker) + 1
	counterAt  = sessionAt + len(sessionID{})
	timeAt     = counterAt + 8
	headerSize = timeAt + 8
	tagSize    = 16

	// maxSessions is how many sessions of a host are followed at a time. A host has one for each of its processes in
	// the last minutes.
	maxSessions = 256
	// maxMessages is how long a session lasts: well below what AES-GCM allows under one key.
	maxMessages = 1 << 32
	// maxReceivers bounds the keys held for sending. An entry for a whole host may stand for many members.
	maxReceivers = 64
)

// A Table has the hosts of a key file. It is safe for concurrent use. Replays are known to the one table that opened
// the message, so a process needs one, for as long as it runs.
type Table struct {
	byID   map[member.ID]*host
	byAddr map[netip.AddrPort]*host
	byIP   map[netip.Addr]*host
	loaded time.Time
}

// Len returns how many hosts the table has.
func (t *Table) Len() int { return len(t.byID) + len(t.byAddr) + len(t.byIP) }

// Trusted tells whether the member with an ID, known by an address, is in the key file. The address may be the zero
// AddrPort.
func (t *Table) Trusted(id member.ID, addr netip.AddrPort) bool { return t.find(id, addr) != nil }

func (t *Table) find(id member.ID, addr netip.AddrPort) *host {
	if h := t.byID[id]; h != nil {
		return h
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if h := t.byAddr[addr]; h != nil {
		return h
	}
	return t.byIP[addr.Addr()]
}

// A host is an entry of the key file.
type host struct {
	entry             int
	outbound, inbound string

	mu sync.Mutex // guards what follows

	session sessionID // of ours
	counter uint64    // of the next message
	seals   map[pair]cipher.AEAD

	sessions map[theirs]*session
}

type sessionID [16]byte

// A pair is a direction between two members.
type pair struct{ from, to member.ID }

// theirs is a session of a sender.
type theirs struct {
	pair
	id sessionID
}

// A session is what is known about messages that came.
type session struct {
	aead   cipher.AEAD
	newest time.Time // by the sender's clock
	seen   window
}

// newAEAD derives a key; see the package comment.
func newAEAD(key string, p pair, id sessionID) cipher.AEAD {
	info := slices.Concat([]byte("fathom swarm trust 1"), p.from[:], p.to[:])
	derived, err := hkdf.Key(sha256.New, []byte(key), id[:], string(info), 32)
	if err != nil {
		panic(err) // only for more bytes than 255 hashes
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		panic(err) // only for other sizes of key
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for other sizes of block
	}
	return aead
}

func nonce(counter uint64) (n [12]byte) {
	binary.BigEndian.PutUint64(n[4:], counter)
	return n
}

// Seal prepares a message from this member to another one that is known by addr (which may be the zero AddrPort). If
// that one is in the key file, Seal returns the payload sealed, and true; otherwise the payload as it is, and false.
// Each try to send is sealed anew: a body that has arrived is refused when it comes again.
func (t *Table) Seal(self, to member.ID, addr netip.AddrPort, payload []byte) (body []byte, sealed bool) {
	h := t.find(to, addr)
	if h == nil {
		return payload, false
	}
	aead, id, counter := h.next(pair{self, to})
	return seal(aead, id, counter, time.Now(), payload), true
}

// next returns the key for the next message of a pair, and the message's place in our session.
func (h *host) next(p pair) (cipher.AEAD, sessionID, uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seals == nil || h.counter == maxMessages {
		rand.Read(h.session[:]) // never fails (crypto/rand)
		h.counter, h.seals = 0, make(map[pair]cipher.AEAD)
	}
	aead := h.seals[p]
	if aead == nil {
		if len(h.seals) == maxReceivers {
			clear(h.seals) // they are quick to derive
		}
		aead = newAEAD(h.outbound, p, h.session)
		h.seals[p] = aead
	}
	h.counter++
	return aead, h.session, h.counter - 1
}

func seal(aead cipher.AEAD, id sessionID, counter uint64, now time.Time, payload []byte) []byte {
	b := make([]byte, 0, Overhead+len(payload))
	b = append(append(append(b, marker...), version), id[:]...)
	b = binary.BigEndian.AppendUint64(b, counter)
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMilli()))
	n := nonce(counter)
	return aead.Seal(b, n[:], payload, b)
}

// Open reads a message to this member from another one that is known by addr, which is not a broadcast. If that one is
// in the key file, the message has to be sealed: Open returns its payload and true. Otherwise it returns the body as
// it is, and false. The error wraps [ErrNotSealed], [ErrWrongKey], [ErrReplayed], [ErrClock] or [ErrNotListed].
func (t *Table) Open(self, from member.ID, addr netip.AddrPort, body []byte) (payload []byte, sealed bool, err error) {
	h, marked := t.find(from, addr), len(body) >= len(marker) && string(body[:len(marker)]) == marker
	switch {
	case h == nil && marked:
		return nil, false, ErrNotListed
	case h == nil:
		return body, false, nil
	case !marked:
		return nil, false, ErrNotSealed
	case len(body) < Overhead:
		return nil, false, fmt.Errorf("%w: it was cut off", ErrWrongKey)
	case body[len(marker)] != version:
		return nil, false, fmt.Errorf("%w: in a form of version %d", ErrWrongKey, body[len(marker)])
	}
	key := theirs{pair{from, self}, sessionID(body[sessionAt:])}
	counter := binary.BigEndian.Uint64(body[counterAt:])
	aead := h.aead(key)
	n := nonce(counter)
	// Only a message that is authentic may change what is remembered.
	payload, err = aead.Open(nil, n[:], body[headerSize:], body[:headerSize])
	if err != nil {
		return nil, false, ErrWrongKey
	}
	if err := t.admit(h, key, aead, counter, binary.BigEndian.Uint64(body[timeAt:])); err != nil {
		return nil, false, err
	}
	return payload, true, nil
}

func (h *host) aead(key theirs) cipher.AEAD {
	h.mu.Lock()
	s := h.sessions[key]
	h.mu.Unlock()
	if s != nil {
		return s.aead
	}
	return newAEAD(h.inbound, key.pair, key.id)
}

// admit refuses an authentic message that was there before, or of which nobody can tell any more.
func (t *Table) admit(h *host, key theirs, aead cipher.AEAD, counter, ms uint64) error {
	now, sent := time.Now(), time.UnixMilli(int64(ms))
	switch age := now.Sub(sent); {
	case age > Window:
		return fmt.Errorf("%w: sent %s ago: %w", ErrReplayed, age.Round(time.Second), ErrClock)
	case age < -Window:
		return fmt.Errorf("%w: sent %s from now", ErrClock, (-age).Round(time.Second))
	case sent.Before(t.loaded):
		return fmt.Errorf("%w: sent before this host started, by the sender's clock", ErrReplayed)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[key]
	if s == nil {
		if len(h.sessions) >= maxSessions {
			h.forgetLocked(now)
		}
		if len(h.sessions) >= maxSessions {
			return fmt.Errorf("%w, or the host has started more than %d times in %s", ErrReplayed, maxSessions, 2*Window)
		}
		if h.sessions == nil {
			h.sessions = make(map[theirs]*session)
		}
		s = &session{aead: aead}
		h.sessions[key] = s
	}
	if !s.seen.admit(counter) {
		return ErrReplayed
	}
	if sent.After(s.newest) {
		s.newest = sent
	}
	return nil
}

// forgetLocked drops sessions of which all that came is too old to be admitted again.
func (h *host) forgetLocked(now time.Time) {
	for key, s := range h.sessions {
		if now.Sub(s.newest) > Window {
			delete(h.sessions, key)
		}
	}
}
