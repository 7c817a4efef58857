// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package enroll gives the parts of a fleet their identities: certificates for the links between a
// controller, its agents, and the people who measure.
//
// Every link is TLS 1.3 and both ends show a certificate. Who a member is, and what it may do, stands in
// the certificate, as the URI SAN fathom://ROLE/NAME; see [Role] and [Identity].
//
// # Joining
//
// An [Authority] is a directory on the controller's host. It makes a [Token], one line of text, which a person takes
// to the host that shall join. There, [Join] makes a key, asks for a certificate and saves [Credentials]:
//
//	controller's host                                   host that joins
//	authority.Token(agent/fra1, 1 h, HOST:PORT)
//	      fathom-join:agent/fra1/HOST:PORT/... -- by hand ------> enroll.ParseToken
//	                          <------------- TLS 1.3 ----------- enroll.Join
//	      certificate with the pinned CA -----------------------> is it the CA of the token?
//	                          <---- CSR, HMAC(secret; connection, CSR)
//	authority.Respond: unused? in time? right?
//	      certificate, CAs -------------------------------------> ca.pem cert.pem key.pem
//
// The key never leaves its host, the token's secret never leaves the token. The host knows the controller by the
// pin of its CA before it sends anything. The proof holds for one connection (RFC 9266), one key and
// one name, so who relays or records it gains nothing. The first host that proves a token uses it up.
//
// # Afterwards
//
// A member renews over its own link ([Credentials.KeepFresh]); no token is needed, and the key stays. A member that is
// revoked ([Authority.Revoke]) is refused in the handshake from that moment on, and at every request
// that is checked with [Authority.Peer]; [Authority.Watch] ends its streams. Renewal does not help it, for all
// certificates of one enrolment share the first half of their serial number. A name that joins anew revokes what it
// was before.
//
// The CA is replaced by [Authority.RotateCA]: the new one is signed by the old one, and both are trusted until
// [Authority.RetireCA]. Members learn the new one when they renew, so with the default lifetimes the old one can
// go after 90 days, when [Authority.Members] shows nobody with a certificate of it.
//
// # Carrying messages
//
// This package has no protocol but TLS: requests and answers are bytes. A gRPC service needs
//
//	func (s *server) Enroll(ctx context.Context, r *measurepb.EnrollRequest) (*measurepb.EnrollResponse, error) {
//		p, _ := peer.FromContext(ctx)
//		info, ok := p.AuthInfo.(credentials.TLSInfo)
//		if !ok {
//			return nil, status.Error(codes.FailedPrecondition, "enrolment needs TLS")
//		}
//		reply, who, err := s.authority.Respond(info.State, r.GetRequest())
//		s.audit.Record(...)
//		return &measurepb.EnrollResponse{Response: reply}, nil
//	}
//
// and the host that joins an [Exchange], which makes one call over the connection that it is given; a test of
// this package has it whole.
//
// # What it protects, and what it does not
//
// A host that is taken over can be revoked and could do only what its role allows: an agent reads no results and
// starts no measurements, and no member can pose as the controller. Whoever reads the authority's directory
// is the authority. Tokens are secrets until they are used or expire: they belong into a terminal or a
// secret store, not into a ticket. Clocks may differ by an hour.
//
// References: RFC 8446 (TLS 1.3), RFC 9266 (channel binding for it), RFC 5280 (certificates), RFC 2986 (PKCS #10),
// RFC 7469 section 2.4 (pins).
package enroll
