// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Member is one enrolment: a token that was made, and what became of it.
type Member struct {
	ID       string // 16 hexadecimal digits; its certificates' serial numbers begin with them
	Identity Identity
	State    State
	Invited  time.Time // when its token was made
	Deadline time.Time // when its token expires or expired
	Joined   time.Time // when its token was used; zero before
	Expires  time.Time // end of its newest certificate; zero before it joined
	CA       int       // the number of the CA that signed that certificate
	Revoked  time.Time // zero unless revoked
}

// State says where an enrolment stands.
type State uint8

// The states. Nothing leaves Revoked.
const (
	_       State = iota
	Invited       // its token can be used, or has expired
	Joined        // it has a certificate, or had one that has expired
	Revoked       // its token or its certificates are refused
)

var stateNames = [...]string{Invited: "invited", Joined: "joined", Revoked: "revoked"}

func (s State) String() string {
	if s == 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("State(%d)", uint8(s))
	}
	return stateNames[s]
}

// record is what a file of the members directory holds.
type record struct {
	Role     string    `json:"role"`
	Name     string    `json:"name"`
	Invited  time.Time `json:"invited"`
	Deadline time.Time `json:"deadline"`
	Secret   []byte    `json:"secret,omitempty"` // the token's, until it is used
	Joined   time.Time `json:"joined,omitzero"`
	Expires  time.Time `json:"expires,omitzero"`
	CA       int       `json:"ca,omitempty"`
	Revoked  time.Time `json:"revoked,omitzero"`
}

// members is the list of enrolments: a directory with one file for each, called ID.STATE.
//
// The controller and the commands on its host share it without locks. What must happen once is a
// rename, which one of several wins; what must never be undone is a name that is looked for first:
//
//	ID.invited --claim--> ID.joined
//	     |                    |
//	     +------ revoke ------+----> ID.revoked
//
// A certificate is good only while its ID.joined is there and no ID.revoked. Nothing is cached, so
// a revocation holds from the moment in which its rename is done.
type members string

func (m members) file(id memberID, s State) string {
	return filepath.Join(string(m), id.String()+"."+s.String())
}

// find reads an enrolment. Errors: fs.ErrNotExist.
func (m members) find(id memberID) (record, State, error) {
	// A member may move on between two looks, but only to a state that was looked for before.
	for range 2 {
		for _, s := range []State{Revoked, Joined, Invited} {
			b, err := readPrivate(m.file(id, s))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return record{}, 0, err
			}
			var r record
			if err := json.Unmarshal(b, &r); err != nil {
				return record{}, 0, fmt.Errorf("%s: %w", m.file(id, s), err)
			}
			return r, s, nil
		}
	}
	return record{}, 0, fmt.Errorf("member %v: %w", id, fs.ErrNotExist)
}

func (m members) write(id memberID, s State, r record) error {
	return writeFile(m.file(id, s), marshal(r))
}

// claim uses up an invitation. Of any number of callers, in any number of processes, one gets nil.
func (m members) claim(id memberID) error {
	err := os.Rename(m.file(id, Invited), m.file(id, Joined))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrTokenUsed
	}
	return err
}

// revoke ends an enrolment. It is no error if it has ended.
func (m members) revoke(id memberID) error {
	for {
		r, s, err := m.find(id)
		if err != nil || s == Revoked {
			return err
		}
		err = os.Rename(m.file(id, s), m.file(id, Revoked))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it moved on meanwhile
		} else if err != nil {
			return err
		}
		if err := syncDir(string(m)); err != nil {
			return err
		}
		// From here on it is revoked; the rest is for the list.
		r.Revoked, r.Secret = time.Now().UTC(), nil
		return m.write(id, Revoked, r)
	}
}

// good says whether certificates of a member are accepted. Errors: ErrRevoked.
func (m members) good(id memberID) error {
	switch _, err := os.Lstat(m.file(id, Revoked)); {
	case err == nil:
		return ErrRevoked
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// A member without a record was restored from nothing, or its record removed by hand: both mean no.
	_, err := os.Lstat(m.file(id, Joined))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("member %v has no record: %w", id, ErrRevoked)
	}
	return err
}

// list gives every enrolment, by role, name and time.
func (m members) list() ([]Member, error) {
	entries, err := os.ReadDir(string(m))
	if err != nil {
		return nil, err
	}
	seen := map[memberID]bool{}
	var list []Member
	for _, e := range entries {
		name, _, ok := strings.Cut(e.Name(), ".")
		id, err := parseMemberID(name)
		if !ok || err != nil || seen[id] {
			continue
		}
		seen[id] = true
		r, s, err := m.find(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // tidied away meanwhile
		} else if err != nil {
			return nil, err
		}
		role, err := ParseRole(r.Role)
		if err != nil {
			return nil, fmt.Errorf("member %v: %w", id, err)
		}
		list = append(list, Member{
			ID: id.String(), Identity: Identity{role, r.Name}, State: s, Invited: r.Invited, Deadline: r.Deadline,
			Joined: r.Joined, Expires: r.Expires, CA: r.CA, Revoked: r.Revoked,
		})
	}
	slices.SortFunc(list, func(a, b Member) int {
		if c := int(a.Identity.Role) - int(b.Identity.Role); c != 0 {
			return c
		}
		if c := strings.Compare(a.Identity.Name, b.Identity.Name); c != 0 {
			return c
		}
		return a.Invited.Compare(b.Invited)
	})
	return list, nil
}

// keepUnused is how long an expired invitation is remembered, so that whoever comes late is told so.
const keepUnused = 30 * 24 * time.Hour

// tidy forgets invitations that expired long ago without having been used, and gives the rest of the list.
func (m members) tidy(list []Member) ([]Member, error) {
	kept := list[:0]
	for _, member := range list {
		if member.State == Joined || !member.Joined.IsZero() || time.Since(member.Deadline) < keepUnused {
			kept = append(kept, member)
			continue
		}
		id, err := parseMemberID(member.ID)
		if err != nil {
			return nil, err
		}
		// A host that joined in the moment of its revocation has left a record, with which it would be good
		// again without the other. So that one goes first.
		for _, s := range []State{Joined, member.State} {
			err := os.Remove(m.file(id, s))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	return kept, nil
}
