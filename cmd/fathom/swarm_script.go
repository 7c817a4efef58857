// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
)

// swarmMaxScript is the size of the largest script, in bytes: room for messages of the largest size.
const swarmMaxScript = 64 << 20

// scriptOp is a command of a runtime script, in Cicada's language.
type scriptOp uint8

const (
	_ scriptOp = iota
	scriptSend
	scriptRecv
	scriptBroadcast
	scriptOpt
	scriptWait
)

var scriptOps = map[string]scriptOp{
	"SEND": scriptSend, "S": scriptSend, "RECV": scriptRecv, "R": scriptRecv, "BCAST": scriptBroadcast, "B": scriptBroadcast,
	"OPT": scriptOpt, "O": scriptOpt, "WAIT": scriptWait, "W": scriptWait,
}

// scriptStep is one line of a script.
type scriptStep struct {
	line   int // counted from 1
	op     scriptOp
	to     string        // SEND: host:port
	data   []byte        // SEND, BCAST
	number int           // RECV: how many; OPT: duplicates
	wait   time.Duration // WAIT: below 0 for ever
}

// parseSwarmScript reads a script. An error names the line, counted from 1.
func parseSwarmScript(text []byte) ([]scriptStep, error) {
	if len(text) > swarmMaxScript {
		return nil, fmt.Errorf("longer than %d bytes", swarmMaxScript)
	}
	var steps []scriptStep
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line = bytes.TrimRight(line, "\r\n")
		word, rest := cutWord(line)
		if word == "" || word[0] == '#' {
			continue
		}
		step := scriptStep{line: number, op: scriptOps[strings.ToUpper(word)]}
		if err := step.parse(word, rest); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		steps = append(steps, step)
	}
	return steps, nil
}

// cutWord cuts the first word off a line. What follows begins with the word after it.
func cutWord(line []byte) (word string, rest []byte) {
	line = bytes.TrimLeft(line, " \t")
	i := bytes.IndexAny(line, " \t")
	if i < 0 {
		return string(line), nil
	}
	return string(line[:i]), bytes.TrimLeft(line[i:], " \t")
}

func (s *scriptStep) parse(word string, rest []byte) error {
	switch s.op {
	case scriptSend:
		host, rest := cutWord(rest)
		port, data := cutWord(rest)
		if len(data) == 0 {
			return errors.New("SEND: want a host, a port and data")
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("SEND: port %q: want a number from 1 to 65535", port)
		}
		s.to, s.data = net.JoinHostPort(strings.Trim(host, "[]"), port), data
	case scriptBroadcast:
		if len(rest) == 0 {
			return errors.New("BCAST: want data")
		}
		s.data = rest
	case scriptRecv:
		count, err := onlyWord("RECV", rest)
		if err != nil {
			return err
		}
		s.number = 1
		if count != "" {
			if s.number, err = strconv.Atoi(count); err != nil || s.number < 0 {
				return fmt.Errorf("RECV: count %q: want a number", count)
			}
		}
	case scriptWait:
		seconds, err := onlyWord("WAIT", rest)
		if err != nil {
			return err
		}
		s.wait = -1
		if seconds != "" {
			n, err := strconv.ParseFloat(seconds, 64)
			if err != nil || math.IsNaN(n) || n > float64(math.MaxInt64/time.Second) {
				return fmt.Errorf("WAIT: %q: want a number of seconds, or -1 for ever", seconds)
			}
			if n >= 0 {
				s.wait = time.Duration(n * float64(time.Second))
			}
		}
	case scriptOpt:
		return s.parseOptions(rest)
	default:
		return fmt.Errorf("unknown command %q: want SEND, RECV, BCAST, OPT or WAIT", word)
	}
	return nil
}

func (s *scriptStep) parseOptions(rest []byte) error {
	pairs := strings.Fields(string(rest))
	if len(pairs) == 0 {
		return errors.New("OPT: want key=value")
	}
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		switch {
		case !ok:
			return fmt.Errorf("OPT: %q: want key=value", pair)
		case !strings.EqualFold(key, "duplicates"):
			return fmt.Errorf("OPT: unknown option %q: want duplicates", key)
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > swarmMaxDuplicates {
			return fmt.Errorf("OPT: duplicates %q: want a number from 0 to %d", value, swarmMaxDuplicates)
		}
		s.number = n
	}
	return nil
}

// onlyWord gives the only argument of a command, which may be missing.
func onlyWord(command string, rest []byte) (string, error) {
	word, more := cutWord(rest)
	if len(more) > 0 {
		return "", fmt.Errorf("%s: takes one number: %q", command, rest)
	}
	return word, nil
}
