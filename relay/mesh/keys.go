// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
)

// A Key is a secret that all relays of a mesh share.
type Key [32]byte

// Errors of key files and certificates; branch on them with errors.Is.
var (
	// ErrKey is text that is not a list of keys.
	ErrKey = errors.New("not a list of mesh keys")
	// ErrKeyMode is a secret in a file that others can read or change.
	ErrKeyMode = errors.New("a secret must be its owner's")
)

// MaxKeys is the most keys that a mesh accepts at a time. Two are enough to rotate.
const MaxKeys = 16

// maxSecretFile is far more than keys, comments or a chain of certificates need.
const maxSecretFile = 256 << 10

// GenerateKey makes a key of random bytes.
func GenerateKey() Key {
	var k Key
	rand.Read(k[:]) // never fails (crypto/rand)
	return k
}

// AppendText gives the key as a line of a key file has it: base64 (RFC 4648), 44 characters.
func (k Key) AppendText(b []byte) ([]byte, error) {
	return base64.StdEncoding.AppendEncode(b, k[:]), nil
}

// String names the key without telling it, so that a key that is printed by mistake stays secret.
func (k Key) String() string { return fmt.Sprintf("Key(%x)", k.id()) }

// GoString is String.
func (k Key) GoString() string { return k.String() }

// id is what stands in a handshake for the key. It tells nothing about it.
func (k Key) id() [4]byte {
	h := hmac.New(sha256.New, k[:])
	h.Write([]byte("fathom relay mesh key id"))
	return [4]byte(h.Sum(nil))
}

// ParseKeys reads the text of a key file: one key in base64 per line, # begins a comment. The first key is what a
// relay starts with, all are accepted.
func ParseKeys(text []byte) ([]Key, error) {
	var keys []Key
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line, _, _ = bytes.Cut(line, []byte("#"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		var k Key
		if base64.StdEncoding.DecodedLen(len(line)) > len(k)+2 {
			return nil, fmt.Errorf("line %d: longer than 32 bytes in base64: %w", number, ErrKey)
		}
		var b [len(k) + 2]byte
		// The line itself is not shown: it may be a key with a slip in it.
		switch n, err := base64.StdEncoding.Strict().Decode(b[:], line); {
		case err != nil:
			return nil, fmt.Errorf("line %d: not base64: %w", number, ErrKey)
		case n != len(k):
			return nil, fmt.Errorf("line %d: %d bytes, not 32: %w", number, n, ErrKey)
		}
		k = Key(b[:])
		if k == (Key{}) {
			return nil, fmt.Errorf("line %d: a key of zeros is no secret: %w", number, ErrKey)
		}
		if slices.Contains(keys, k) {
			return nil, fmt.Errorf("line %d: the same key once more: %w", number, ErrKey)
		}
		if len(keys) == MaxKeys {
			return nil, fmt.Errorf("line %d: more than %d keys: %w", number, MaxKeys, ErrKey)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key in it: %w", ErrKey)
	}
	return keys, nil
}

// ReadKeyFile reads a key file. It refuses one that others may read or that the group may write.
func ReadKeyFile(name string) ([]Key, error) {
	text, err := readSecret(name)
	if err != nil {
		return nil, fmt.Errorf("mesh key: %w", err)
	}
	keys, err := ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("mesh key %s: %w", name, err)
	}
	return keys, nil
}

// readSecret reads a file that is nobody else's business. Its group may read it: that is how orchestrators
// hand secrets to processes that are not root.
func readSecret(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Windows has no modes.
	if mode := info.Mode().Perm(); mode&0o027 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s has mode %#o: run `chmod 0600 %s`: %w", name, mode, name, ErrKeyMode)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(text) > maxSecretFile {
		err = fmt.Errorf("%s has more than %d bytes", name, maxSecretFile)
	}
	return text, err
}
