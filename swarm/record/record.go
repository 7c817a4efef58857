// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

const (
	// MaxName is the size of the longest name, in bytes.
	MaxName = 255
	// MaxLife is the longest that a record can live. A member that stays publishes again well before that.
	MaxLife = 24 * time.Hour
	// DefaultLife is how long a record lives if its publisher does not say.
	DefaultLife = time.Hour
	// Skew is how far ahead of ours a publisher's clock may be.
	Skew = 5 * time.Minute
)

var (
	// ErrRecord says that bytes are not a record.
	ErrRecord = errors.New("malformed record")
	// ErrName says that a text is not a name.
	ErrName = errors.New("not a name: 1 to 255 bytes of printable UTF-8 without a space at either end")
	// ErrSignature says that a record is not signed with the key of its contact.
	ErrSignature = errors.New("the record's signature is wrong")
	// ErrTime says that a record has expired, or is from the future.
	ErrTime = errors.New("the record is not of this time")
)

// A Record binds a name to a member.
type Record struct {
	// Name is in normal form ([Normal]).
	Name string

	// Contact is the member. Its Key signs the record.
	Contact member.Contact

	// Sequence orders the records of one publisher under one name: the highest counts. For Sign, 0 means the time of
	// issue in nanoseconds since 1970, which grows as long as the publisher's clock does.
	Sequence uint64

	// Issued and Expires say when the record holds, at most MaxLife, in whole milliseconds. For Sign, zero means now,
	// and DefaultLife after Issued.
	Issued, Expires time.Time
}

// Key returns the place on the ring where the records of a name live. The name need not be in normal form.
func Key(name string) member.ID {
	return member.HashOf("fathom swarm name\x00" + norm.NFC.String(name))
}

// Normal returns the form of a name that records hold: Unicode's normal form C (UAX #15), so that a letter with an
// accent is the same however it was typed. Upper and lower case differ. Names are of printable characters
// ([unicode.IsPrint]: no controls, no invisible or direction-changing characters, no space but U+0020), as people see
// them and terminals show them. The error wraps [ErrName].
func Normal(name string) (string, error) {
	n := norm.NFC.String(name)
	if n == "" || len(n) > MaxName || !utf8.ValidString(n) || n[0] == ' ' || n[len(n)-1] == ' ' {
		return "", fmt.Errorf("%.300q: %w", name, ErrName)
	}
	for _, r := range n {
		if !unicode.IsPrint(r) {
			return "", fmt.Errorf("%.300q with %U: %w", name, r, ErrName)
		}
	}
	return n, nil
}

const (
	version  = 1
	signedAt = 1 + ed25519.SignatureSize
	nameAt   = signedAt + 3*8 + 1
)

// signed returns what the signature of an encoded record covers.
func signed(b []byte) []byte {
	return append(append([]byte("fathom swarm record\x00"), b[0]), b[signedAt:]...)
}

// Sign completes a record and returns it encoded, for [Store.Put] of those who keep it. The contact's key is taken
// from the identity if it has none; it must not be another's.
func Sign(r Record, i *member.Identity) ([]byte, error) {
	name, err := Normal(r.Name)
	if err != nil {
		return nil, fmt.Errorf("sign record: %w", err)
	}
	if r.Contact.Key == nil {
		r.Contact.Key = i.Public()
	} else if !i.Public().Equal(r.Contact.Key) {
		return nil, fmt.Errorf("sign record of %q: the contact has another's key: %w", name, ErrSignature)
	}
	if r.Issued.IsZero() {
		r.Issued = time.Now()
	}
	if r.Expires.IsZero() {
		r.Expires = r.Issued.Add(DefaultLife)
	}
	b := make([]byte, signedAt, 512)
	b[0] = version
	b = binary.BigEndian.AppendUint64(b, cmp.Or(r.Sequence, uint64(r.Issued.UnixNano())))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Issued.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Expires.UnixMilli()))
	b = append(append(b, byte(len(name))), name...)
	b = wire.AppendContact(b, r.Contact)
	copy(b[1:], ed25519.Sign(i.Private(), signed(b)))
	// What nobody would take is not given out.
	if _, err := Decode(b); err != nil {
		return nil, fmt.Errorf("sign record of %q: %w", name, err)
	}
	return b, nil
}

// Decode reads a record and checks its form and its signature; [Record.Check] looks at the rest. Nothing of it shares
// memory with b. The error wraps [ErrRecord] or [ErrSignature].
func Decode(b []byte) (Record, error) {
	r, err := parse(b)
	if err == nil {
		err = r.verify(b)
	}
	if err != nil {
		return Record{}, err
	}
	return r, nil
}

// parse is Decode without the signature, which costs most of it.
func parse(b []byte) (Record, error) {
	malformed := func(why string) (Record, error) { return Record{}, fmt.Errorf("%w: %s", ErrRecord, why) }
	switch {
	case len(b) > wire.MaxRecord:
		return malformed("too long")
	case len(b) < nameAt || len(b) < nameAt+int(b[nameAt-1]):
		return malformed("too short")
	case b[0] != version:
		return malformed(fmt.Sprintf("version %d", b[0]))
	}
	numbers, name, contact := b[signedAt:nameAt-1], b[nameAt:nameAt+int(b[nameAt-1])], b[nameAt+int(b[nameAt-1]):]
	issued, expires := binary.BigEndian.Uint64(numbers[8:]), binary.BigEndian.Uint64(numbers[16:])
	// Year 10889: far enough, and all sums stay small.
	if issued >= 1<<48 || expires <= issued || expires-issued > uint64(MaxLife.Milliseconds()) {
		return malformed("times")
	}
	if n, err := Normal(string(name)); err != nil || n != string(name) {
		return malformed("name not in normal form")
	}
	c, err := wire.DecodeContact(contact)
	switch {
	case err != nil:
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	case len(c.Key) == 0:
		return malformed("contact without a key")
	}
	return Record{
		Name: string(name), Contact: c, Sequence: binary.BigEndian.Uint64(numbers),
		Issued: time.UnixMilli(int64(issued)), Expires: time.UnixMilli(int64(expires)),
	}, nil
}

func (r Record) verify(b []byte) error {
	if !ed25519.Verify(r.Contact.Key, signed(b), b[1:signedAt]) {
		return ErrSignature
	}
	return nil
}

// Check tells whether a record holds at a time, in a swarm with this binding. The error wraps [ErrTime] or is one of
// [member.Contact.Verify].
func (r Record) Check(b member.Binding, now time.Time) error {
	switch {
	case !now.Before(r.Expires):
		return fmt.Errorf("%w: it expired at %s", ErrTime, r.Expires.UTC().Format(time.RFC3339))
	case r.Issued.After(now.Add(Skew)):
		return fmt.Errorf("%w: it was issued at %s, by a clock that is ahead", ErrTime, r.Issued.UTC().Format(time.RFC3339))
	}
	return r.Contact.Verify(b)
}

// Select reads what members answered to a question for a name, and returns the records that hold: of each publisher
// the newest, in the order of its first appearance. More than one is a conflict; the first is the one that the member
// that was asked first has had for longest. Anything that is not a record of this name is passed over, as members may
// lie.
func Select(name string, b member.Binding, now time.Time, answers ...[]byte) []Record {
	var list []Record
	name = norm.NFC.String(name)
answers:
	for _, a := range answers {
		r, err := Decode(a)
		if err != nil || r.Name != name || r.Check(b, now) != nil {
			continue
		}
		for i, other := range list {
			if bytes.Equal(other.Contact.Key, r.Contact.Key) {
				if r.Sequence > other.Sequence {
					list[i] = r
				}
				continue answers
			}
		}
		list = append(list, r)
	}
	return list
}
