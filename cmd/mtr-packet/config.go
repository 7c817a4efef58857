// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

const (
	envDialect = "FATHOM_MTR_DIALECT"
	envProbes  = "FATHOM_MTR_PROBES"

	defaultProbes = 10240
	// maxProbes is what the 16-bit sequence numbers from 33434 to 65535 allow, rounded.
	maxProbes = 32000
)

const usage = `Usage: mtr-packet

Sends network probes for mtr or the Python package mtrpacket, which start it and
talk to it through a pipe: name it in MTR_PACKET, or put it first in PATH.

  MTR_PACKET=/usr/local/bin/mtr-packet mtr example.net

Environment:
  FATHOM_MTR_DIALECT  0.96 (default), or 0.95 for mtr up to that release, which
                      does not know the newer words for unreachable targets
  FATHOM_MTR_PROBES   how many probes may be in flight (default 10240, at most 32000)

Raw sockets need a capability: setcap cap_net_raw+ep mtr-packet
`

// config is what the environment says.
type config struct {
	dialect *dialect
	probes  int
}

func configure(getenv func(string) string) (config, error) {
	c := config{dialect: &dialect096, probes: defaultProbes}
	switch v := getenv(envDialect); v {
	case "", "0.96":
	case "0.95":
		c.dialect = &dialect095
	default:
		return c, fmt.Errorf("%s=%q: want 0.96 or 0.95", envDialect, v)
	}
	if v := getenv(envProbes); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxProbes {
			return c, fmt.Errorf("%s=%q: want a number from 1 to %d", envProbes, v, maxProbes)
		}
		c.probes = n
	}
	return c, nil
}
