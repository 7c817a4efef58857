// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package anycastpb is the generated code of Voltadomar's gRPC service, under the names that it has on
// the wire. Package volta decodes and encodes what a Message holds; `make generate` makes this package
// from anycast.proto.
package anycastpb
