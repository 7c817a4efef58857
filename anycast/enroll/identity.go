// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// Role is what a member is. It stands in the certificate, so a controller needs no table of users.
type Role uint8

// The roles. What each may do is [Role.May].
const (
	_          Role = iota
	Agent           // a host that probes and reports
	Operator        // a person or program that measures
	Viewer          // a person or program that looks at results
	Controller      // the controller itself; never given to a token
)

var roleNames = [...]string{Agent: "agent", Operator: "operator", Viewer: "viewer", Controller: "controller"}

func (r Role) String() string {
	if r == 0 || int(r) >= len(roleNames) {
		return fmt.Sprintf("Role(%d)", uint8(r))
	}
	return roleNames[r]
}

// ParseRole is the inverse of [Role.String], for a command line. Errors: [ErrRole].
func ParseRole(s string) (Role, error) {
	for r := Agent; int(r) < len(roleNames); r++ {
		if roleNames[r] == s {
			return r, nil
		}
	}
	return 0, fmt.Errorf("role %.64q is none of agent, operator and viewer: %w", s, ErrRole)
}

// Action is something that a member asks of the controller.
type Action uint8

// The actions. Enrolling, renewing one's own certificate and asking for the controller's version
// need no permission; tokens and revocations are made on the controller's host, never over the network.
const (
	_       Action = iota
	Serve          // register as an agent, take jobs, report replies
	Read           // list, show, follow, compare and export measurements and results
	Measure        // start, schedule and cancel measurements
)

var actionNames = [...]string{Serve: "serve", Read: "read", Measure: "measure"}

func (a Action) String() string {
	if a == 0 || int(a) >= len(actionNames) {
		return fmt.Sprintf("Action(%d)", uint8(a))
	}
	return actionNames[a]
}

// permissions is the whole of it: what is not in the table is not allowed. An agent reads nothing,
// because a host at a site is the likeliest to be lost to somebody else.
var permissions = map[Role]map[Action]bool{
	Agent:    {Serve: true},
	Operator: {Read: true, Measure: true},
	Viewer:   {Read: true},
}

// May tells whether members of the role may do a.
func (r Role) May(a Action) bool { return permissions[r][a] }

// Identity is who a member is. In certificates it is the URI SAN fathom://ROLE/NAME, for
// example fathom://agent/fra1. The zero value is nobody.
type Identity struct {
	Role Role
	Name string
}

// String gives role and name as on the command line: agent/fra1.
func (id Identity) String() string { return id.Role.String() + "/" + id.Name }

// Check says whether the identity may do a. Errors: [ErrRole].
func (id Identity) Check(a Action) error {
	if !id.Role.May(a) {
		return fmt.Errorf("%v may not %v: %w", id, a, ErrRole)
	}
	return nil
}

// CheckAgent says whether a member may register as the agent called name: only an agent, and only
// under the name in its certificate. Errors: [ErrRole], [ErrName].
func (id Identity) CheckAgent(name string) error {
	if err := id.Check(Serve); err != nil {
		return err
	}
	if name != id.Name {
		return fmt.Errorf("%v may not register as %.64q: %w", id, name, ErrName)
	}
	return nil
}

// maxName is the longest name, as the longest label of the DNS, rounded up.
const maxName = 64

// CheckName says whether s can be a member's name: 1 to 64 ASCII letters, digits, dots, hyphens and underscores,
// the first a letter or digit. So it needs no quoting in a shell, a URI, a file name or a table.
// Errors: [ErrName].
func CheckName(s string) error {
	ok := len(s) > 0 && len(s) <= maxName
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		alnum := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		ok = alnum || i > 0 && (c == '.' || c == '-' || c == '_')
	}
	if !ok {
		return fmt.Errorf("name %.80q: want 1 to %d letters, digits, dots, hyphens and underscores, beginning with a letter or digit: %w", s, maxName, ErrName)
	}
	return nil
}

func (id Identity) check() error {
	if id.Role == 0 || int(id.Role) >= len(roleNames) {
		return fmt.Errorf("%v: %w", id.Role, ErrRole)
	}
	return CheckName(id.Name)
}

const uriScheme = "fathom"

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: uriScheme, Host: id.Role.String(), Path: "/" + id.Name}
}

// identityOf reads the one identity among the URIs of a certificate or request.
func identityOf(uris []*url.URL) (Identity, error) {
	var id Identity
	found := 0
	for _, u := range uris {
		if u.Scheme != uriScheme {
			continue
		}
		found++
		name, ok := strings.CutPrefix(u.Path, "/")
		role, err := ParseRole(u.Host)
		if err != nil || !ok {
			return Identity{}, fmt.Errorf("identity %.128q: %w", u.String(), ErrRole)
		}
		if err := CheckName(name); err != nil {
			return Identity{}, err
		}
		id = Identity{role, name}
		if *u != *id.uri() { // a port, a query, user information, a second spelling
			return Identity{}, fmt.Errorf("identity %.128q: %w", u.String(), ErrName)
		}
	}
	if found != 1 {
		return Identity{}, fmt.Errorf("%d identities in the certificate: %w", found, ErrName)
	}
	return id, nil
}

// IdentityOf reads the identity that a certificate states. It verifies nothing: see [FromPeer].
// Errors: [ErrRole], [ErrName].
func IdentityOf(cert *x509.Certificate) (Identity, error) { return identityOf(cert.URIs) }
