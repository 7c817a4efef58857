// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"github.com/seed5728abee/fathom/probe"
)

// run is the program. mtr starts it without arguments.
func run(args []string, getenv func(string) string) int {
	if len(args) > 0 {
		switch args[0] {
		case "-h", "--help":
			fmt.Print(usage)
			return exitDone
		case "-v", "--version":
			fmt.Println("mtr-packet", dialect096.version)
			return exitDone
		}
		fmt.Fprintf(os.Stderr, "mtr-packet: unknown argument %q\n%s", args[0], usage)
		return exitUsage
	}
	c, err := configure(getenv)
	if err != nil {
		fmt.Fprintf(os.Stderr, "mtr-packet: %v\n", err)
		return exitUsage
	}
	l := newLoop(0, 1)
	l.orphaned = watchParent()
	p, err := probe.New(probe.Options{
		MaxInFlight:   c.probes,
		ICMPID:        uint16(os.Getpid()),
		FirstSequence: c.dialect.firstSequence,
		Loop:          l.hooks(),
	})
	if err != nil {
		// The two lines are the original's, for those who look for them.
		fmt.Fprintf(os.Stderr, "mtr-packet: Failure to open IPv4 sockets: %v\nmtr-packet: Failure to open IPv6 sockets\n", err)
		return exitFailed
	}
	if err := narrowPrivileges(); err != nil {
		fmt.Fprintf(os.Stderr, "mtr-packet: drop privileges: %v\n", err)
		return exitFailed
	}
	l.begin(newSession(p, c.dialect, func(keepMark bool) (kept bool) {
		kept, err := settlePrivileges(keepMark)
		if err != nil {
			// Going on with more than was promised is worse than ending.
			fmt.Fprintf(os.Stderr, "mtr-packet: drop privileges: %v\n", err)
			os.Exit(exitFailed)
		}
		return kept
	}))
	// The prober is not closed: the kernel does that faster, and nobody waits for its probes.
	return <-l.exit
}

// watchParent returns a function that tells whether the process that started this one has ended.
//
// The Python package mtrpacket starts its helper through a shell, and closes by killing the shell and waiting for the
// end of our output: it would wait for probes that nobody wants any more. A driver that uses
// files is left alone. It may be a script that goes on in the background.
func watchParent() (gone func() bool) {
	for _, f := range []*os.File{os.Stdin, os.Stdout} {
		info, err := f.Stat()
		if err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
			return func() bool { return false }
		}
	}
	parent := os.Getppid()
	return func() bool { return os.Getppid() != parent }
}
