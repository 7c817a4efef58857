// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package hitlist reads the files that say what to measure: targets, networks to leave out, and query counts.
//
// All of them are text, one entry a line. Blank lines, and what follows a #, mean nothing; lines may end in CRLF. What is
// wrong is an error that names the line.
package hitlist
