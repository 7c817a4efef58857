// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package controller is the middle of an anycast fleet: agents attach to it, people and programs ask it to
// measure, and it sees to it that every answer finds the measurement whose probe it answers, at whichever
// site it came home.
//
// One port serves everything: the agents and clients of this module (fathom.measure.v1, see package measurepb),
// and those of Voltadomar in both of its dialects, told apart by what each stream says first. With an
// [enroll.Authority] the links are TLS 1.3 with certificates; cleartext, which Voltadomar's programs need,
// comes to the same port only when Options.Insecure allows it.
//
//	c, err := controller.New(controller.Options{Start: 10000, End: 20000, Block: 100, Authority: authority, Store: store})
//	...
//	err = c.Serve(ctx, listener) // until ctx ends
//
// What it promises: one who misbehaves disturbs nobody else. A message that makes no sense is dropped and
// counted; a client's requests wait in the client's own queue; an agent that does not take its orders loses its
// connection; an answer that does not prove its probe counts for nothing; whoever follows a measurement
// slowly is told of it from the store. A measurement whose results cannot be kept fails and says so.
//
// A restart cuts nothing that can go on: schedules and catchments do; others are marked as interrupted, with what
// they found.
//
// Text requests ([Voltadomar's command], or a program of the user's registered by name) are not kept: ask for a
// measurement of kind volta to have one listed.
//
// [Voltadomar's command]: https://pkg.go.dev/github.com/seed5728abee/fathom/anycast/volta#ParseCommand
package controller
