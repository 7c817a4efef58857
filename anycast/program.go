// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"log/slog"
)

// Program is one run of something that measures. Run returns the text that the asker gets.
// A program that opens sessions is usually their [Handler] as well.
type Program interface {
	Run(ctx context.Context) (output string, err error)
}

// ProgramConf is what a program is made from.
type ProgramConf struct {
	// Name is the first word of the request, Words are the others.
	Name  string
	Words []string
	// Fleet is the sites.
	Fleet Fleet
	// Log is for what the operator should know.
	Log *slog.Logger
}

// NewProgram makes a program for one request. Its error is the answer to a request that makes no sense.
// A controller has a table of them by name, so that users can add their own.
type NewProgram func(ProgramConf) (Program, error)
