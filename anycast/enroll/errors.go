// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import "errors"

// Errors to branch on with [errors.Is]. Those of the first group also cross the wire: a host that is
// refused learns which of them it was.
var (
	// ErrToken: a join token is damaged, or the controller never made it.
	ErrToken = errors.New("not a valid join token")
	// ErrTokenUsed: a token joins one host, once.
	ErrTokenUsed = errors.New("the join token has been used")
	// ErrTokenExpired: the token was not used in time.
	ErrTokenExpired = errors.New("the join token has expired")
	// ErrProof: the request does not prove the token's secret on this very connection.
	ErrProof = errors.New("the proof of the join token is wrong")
	// ErrRole: a certificate or request is of a role that does not allow what it is used for.
	ErrRole = errors.New("the role does not allow this")
	// ErrName: a name is malformed, taken, or not the one that the certificate or token says.
	ErrName = errors.New("wrong name")
	// ErrRevoked: the certificate or token was revoked.
	ErrRevoked = errors.New("revoked")
	// ErrExpired: the certificate's time is over. Only a new token helps.
	ErrExpired = errors.New("the certificate has expired")
	// ErrNoCertificate: the peer showed no certificate, or not over TLS 1.3.
	ErrNoCertificate = errors.New("the peer has shown no certificate")
	// ErrRequest: a request or an answer is malformed.
	ErrRequest = errors.New("malformed enrolment message")

	// ErrPin: the controller's certificate does not lead to the CA that the token names: somebody
	// else answered, or the CA was replaced after the token was made.
	ErrPin = errors.New("the controller is not the one that made the join token")
	// ErrUntrusted: a certificate leads to no CA that is trusted here.
	ErrUntrusted = errors.New("the certificate is from another authority")
	// ErrMode: a file or directory with secrets is open to others.
	ErrMode = errors.New("secrets are open to other users")
	// ErrNotEnrolled: a directory has no credentials.
	ErrNotEnrolled = errors.New("not enrolled")
	// ErrEnrolled: a directory already has credentials.
	ErrEnrolled = errors.New("already enrolled")
)
