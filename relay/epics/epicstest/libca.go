// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epicstest

import (
	_ "embed" // casearch.py
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
)

//go:embed casearch.py
var caSearch string

// ErrNoLibCA: the genuine Channel Access library, or the Python to drive it, is not installed. On Debian 12 it is
// in the packages libca4.13.5 and python3.
var ErrNoLibCA = errors.New("no Channel Access library")

// LibCA returns the command by which the client library of EPICS Base searches for names, to be run as it is on
// any host of a lab. It writes "searching" and a newline to its standard output once it does, goes on until its standard input ends, and
// takes its configuration from the environment: EPICS_CA_ADDR_LIST, EPICS_CA_AUTO_ADDR_LIST,
// EPICS_CA_SERVER_PORT. Without one it searches at port 5064 of the broadcast address of each interface. That it finds
// no repeater, and says so on its standard error, is no harm. The first gaps between searches are some 30 ms, and double.
//
// It returns [ErrNoLibCA] if there is no library.
func LibCA(names ...string) (command []string, err error) {
	python, err := exec.LookPath("python3")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoLibCA, err)
	}
	for _, pattern := range []string{"/usr/lib/libca.so*", "/usr/lib/*/libca.so*"} {
		libraries, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		if len(libraries) > 0 {
			return append([]string{python, "-c", caSearch, libraries[0]}, names...), nil
		}
	}
	return nil, ErrNoLibCA
}
