// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package hitlist reads the files that tell what to measure: targets, their weights, and networks to leave alone.
//
// There is one address, name or prefix on a line, then, after space, tab, comma or semicolon, whatever else the file has:
// [Read] ignores it, and for [ReadWeights] the first number there is the weight. Empty lines and what follows a # at the
// beginning of a word are ignored, too, as are carriage returns and a byte order mark.
//
//	# resolvers, with their queries per day
//	192.0.2.53        120000
//	198.51.100.0/24   3500     # a carrier
//	2001:db8:1::53
//	www.example.com
//
// The text may come from anywhere: lines are at most [MaxLine] bytes long, and an error names the line. Names are checked
// but not looked up.
package hitlist
