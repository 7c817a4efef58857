// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Command anycast-program is a controller with a program of its own beside the built-in ones: "hears TARGET..." tells
// which site hears each target, by one echo request to each.
//
//	fathom anycast request --controller 127.0.0.1:50051 "hears 9.9.9.9 2620:fe::fe"
package main
