// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package client talks to the controller of an anycast fleet: it starts measurements and follows what they find, asks
// for what is stored, and sends text requests in Voltadomar's language.
//
//	c, err := client.Dial(ctx, "controller.example:50051", client.Options{TLS: credentials.ClientTLS()})
//	...
//	defer c.Close()
//	stream, err := c.Start(ctx, definition, client.Targets{Text: []string{"192.0.2.0/24"}}, true)
//	...
//	for event, err := range stream.All() {
//		...
//	}
//
// Against Voltadomar's own controllers only [Client.Request] works, in cleartext.
package client
