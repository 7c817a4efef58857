// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package member

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/seed5728abee/fathom/swarm/internal/secretfile"
)

// MaxSwarmKeys is the most keys that a swarm accepts at a time. Two are enough to change them.
const MaxSwarmKeys = 16

// swarmKeyPrefix says what a line is, wherever it turns up.
const swarmKeyPrefix = "fathom-swarm-key:"

// A SwarmKey is a secret that all members of a swarm share: who does not have it is not let in. Its text form names it
// without telling it.
type SwarmKey [32]byte

// NewSwarmKey makes a key of random bytes.
func NewSwarmKey() SwarmKey {
	var k SwarmKey
	rand.Read(k[:]) // never fails (crypto/rand)
	return k
}

// Reveal returns the key itself, as a line of a key file has it, without the end of the line.
func (k SwarmKey) Reveal() string {
	return swarmKeyPrefix + base64.StdEncoding.EncodeToString(k[:])
}

// String names the key: two members can compare names to find out whether they have the same.
func (k SwarmKey) String() string {
	h := hmac.New(sha256.New, k[:])
	h.Write([]byte("fathom swarm key name"))
	return "SwarmKey(" + hex.EncodeToString(h.Sum(nil)[:4]) + ")"
}

// Format prints String whatever the verb.
func (k SwarmKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// MarshalText returns String, so that no encoder tells the key. [SwarmKey.Reveal] does.
func (k SwarmKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// LogValue logs String.
func (k SwarmKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// SwarmKeys are the keys that a member accepts. The first is the one that it uses; the others are there while the keys
// of a swarm are being changed: first every member gets the new one as its last, then as its first, and then the old
// one is taken away.
type SwarmKeys []SwarmKey

// Raw returns the keys as the plain arrays that links take.
func (ks SwarmKeys) Raw() [][32]byte {
	var raw [][32]byte
	for _, k := range ks {
		raw = append(raw, k)
	}
	return raw
}

// Save puts the keys into a new file that only its owner can read. It never overwrites one: the error then wraps
// [io/fs.ErrExist].
func (ks SwarmKeys) Save(name string) error {
	var b strings.Builder
	for _, k := range ks {
		b.WriteString(k.Reveal() + "\n")
	}
	if err := secretfile.Create(name, []byte(b.String())); err != nil {
		return fmt.Errorf("save swarm keys: %w", err)
	}
	return nil
}

// LoadSwarmKeys reads a file of swarm keys. It refuses one that others can read with [ErrMode].
func LoadSwarmKeys(name string) (SwarmKeys, error) {
	text, err := secretfile.Read(name)
	if err != nil {
		return nil, fmt.Errorf("swarm keys: %w", err)
	}
	keys, err := ParseSwarmKeys(text)
	if err != nil {
		return nil, fmt.Errorf("swarm keys %s: %w", name, err)
	}
	return keys, nil
}

// ParseSwarmKeys reads the text of a file of swarm keys: one per line, "fathom-swarm-key:" and 32 bytes in base64
// (RFC 4648, 44 characters) or hexadecimal; # begins a comment. The error wraps [ErrSwarmKey], names the line and what
// to do about it, and shows nothing of the text: it may be a key with a slip in it.
func ParseSwarmKeys(text []byte) (SwarmKeys, error) {
	var keys SwarmKeys
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line, _, _ = bytes.Cut(line, []byte("#"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		k, problem := parseSwarmKey(line)
		switch {
		case problem != "":
		case k == (SwarmKey{}):
			problem = "a key of zeros is no secret: make one with `fathom swarm keygen`"
		case slices.Contains(keys, k):
			problem = "the same key once more: remove the line"
		case len(keys) == MaxSwarmKeys:
			problem = fmt.Sprintf("more than %d keys: remove old ones", MaxSwarmKeys)
		}
		if problem != "" {
			return nil, fmt.Errorf("line %d: %s: %w", number, problem, ErrSwarmKey)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key in it: make one with `fathom swarm keygen`: %w", ErrSwarmKey)
	}
	return keys, nil
}

// parseSwarmKey reads a line, or says what is wrong with it.
func parseSwarmKey(line []byte) (k SwarmKey, problem string) {
	digits, ok := bytes.CutPrefix(line, []byte(swarmKeyPrefix))
	if !ok {
		return k, "does not begin with " + swarmKeyPrefix + ": put that before the key, or a # before a comment"
	}
	digits = bytes.TrimSpace(digits)
	var n int
	var err error
	var b [48]byte
	switch len(digits) {
	case hex.EncodedLen(len(k)):
		n, err = hex.Decode(b[:], digits)
	case base64.StdEncoding.EncodedLen(len(k)):
		n, err = base64.StdEncoding.Strict().Decode(b[:], digits)
	}
	if err != nil || n != len(k) {
		return k, "not 32 bytes in base64 (44 characters) or hexadecimal (64): copy the key again"
	}
	return SwarmKey(b[:len(k)]), ""
}
