// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package access keeps what members of a fleet ask of a controller within bounds, and on record.
//
// Who somebody is, and what the role allows, is package enroll's part. Here are the other two questions
// of a shared installation:
//
//   - [Quotas]: how much may each ask at once? A refusal says which limit it was, how much it is, and when to
//     come back.
//   - [Audit]: who asked what, when, from where, and how did it end? One line of JSON each, in a file that only grows.
package access
