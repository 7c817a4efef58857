// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package measurepb is the protocol fathom.measure.v1: what agents and people's programs speak with a
// controller, over gRPC. measure.proto, beside this file, is its reference; `make generate` makes the Go code from it.
//
// The messages mirror the types of package anycast; the functions of convert.go go from one to the other.
package measurepb
