// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/seed5728abee/fathom/packet"
)

// Usage is the form of a command, in one line.
const Usage = "usage: volta <source> <destination> [-m <max-ttls>] [-w <waittime>] [-q <nqueries>] [-t <tos>] [-I]"

// Command is a parsed request for a traceroute.
type Command struct {
	// Source is the id of the agent that probes.
	Source string
	// Destination is a name or an address.
	Destination string
	// MaxTTL (-m, --max-ttls) is the highest hop limit: 0 to 255, by default 20.
	MaxTTL int
	// Queries (-q, --nqueries) is the number of probes for each hop limit: 0 or more, by default 3.
	Queries int
	// Wait (-w, --waittime) bounds the whole request: whole seconds from 0 to an hour, by default 5 s.
	Wait time.Duration
	// TOS (-t, --tos) is 0 to 255, by default 1. TrafficClass says what it means.
	TOS int
	// ICMP (-I) asks for echo requests instead of UDP. No agent of an original has them.
	ICMP bool
}

// Bounds of a command. The originals have none.
const (
	maxCommand = 4096 // bytes; two names of 253 and every option are far below
	maxTTL     = 255
	maxWait    = 3600 // seconds
)

// A CommandError reports a command that cannot be understood. Its text is meant for whoever sent it.
type CommandError struct {
	Problem string // what is wrong with it; empty when it asks for help
}

// Error says what is wrong, and what would be right.
func (e *CommandError) Error() string {
	if e.Problem == "" {
		return "Invalid command: " + Usage
	}
	return "Invalid command: " + e.Problem + "; " + Usage
}

// A SizeError reports a command that needs more source ports than a block has.
type SizeError struct {
	MaxTTL, Queries, Block int
}

// Error is the text of the originals.
func (e *SizeError) Error() string {
	return fmt.Sprintf("Max hops * probe num (%d * %d) exceeds block size (%d)", e.MaxTTL, e.Queries, e.Block)
}

// Probes is the number of probes that the command asks for at most.
func (c Command) Probes() int { return c.MaxTTL * c.Queries }

// CheckSize returns a *SizeError if the command needs more source ports than a block of this size has.
func (c Command) CheckSize(block int) error {
	if c.Probes() > block {
		return &SizeError{MaxTTL: c.MaxTTL, Queries: c.Queries, Block: block}
	}
	return nil
}

// TrafficClass is the TOS byte that the command asks for. As the originals document -t, 1 is plain and 2
// switches ECN on, in both bits; every other number is the byte itself.
func (c Command) TrafficClass() uint8 {
	switch c.TOS {
	case 1:
		return 0
	case 2:
		return packet.SetECN(0, true)
	default:
		return uint8(c.TOS)
	}
}

// option is one option of the command. One without a value is a flag.
type option struct {
	short, long string
	value       func(*numbers) *int
}

// numbers are the values of options before they are known to make sense.
type numbers struct{ maxTTL, wait, queries, tos int }

var options = []option{
	{"-m", "--max-ttls", func(n *numbers) *int { return &n.maxTTL }},
	{"-w", "--waittime", func(n *numbers) *int { return &n.wait }},
	{"-q", "--nqueries", func(n *numbers) *int { return &n.queries }},
	{"-t", "--tos", func(n *numbers) *int { return &n.tos }},
	{"-I", "-I", nil},
	{"-h", "--help", nil},
}

func (o *option) String() string {
	if o.short == o.long {
		return o.short
	}
	return o.short + "/" + o.long
}

// ParseCommand reads a command with the grammar of the original, which is that of Python's argparse:
// the first word is dropped unseen, options may stand anywhere, as -q1, -q 1, -q=1, --nqueries 1,
// --nqueries=1 or an unambiguous beginning of that; the last of several wins; behind "--" nothing is an
// option; what looks like a negative number is none either. What it returns is within the bounds of
// Command.
//
// The error is a *CommandError.
func ParseCommand(text string) (Command, error) {
	if len(text) > maxCommand {
		return Command{}, wrong("%d bytes are more than %d", len(text), maxCommand)
	}
	if !utf8.ValidString(text) {
		return Command{}, wrong("not UTF-8")
	}
	words := strings.Fields(text)
	for _, word := range words {
		if strings.ContainsFunc(word, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return Command{}, wrong("unprintable characters in %.60q", word)
		}
	}
	p := commandParser{numbers: numbers{maxTTL: 20, wait: 5, queries: 3, tos: 1}}
	if len(words) > 0 {
		p.words = words[1:]
	}
	if err := p.parse(); err != nil {
		return Command{}, err
	}
	return Command{
		Source: p.names[0], Destination: p.names[1],
		MaxTTL: p.maxTTL, Queries: p.queries, Wait: time.Duration(p.wait) * time.Second, TOS: p.tos, ICMP: p.icmp,
	}, nil
}

func wrong(format string, args ...any) error {
	return &CommandError{Problem: fmt.Sprintf(format, args...)}
}

type commandParser struct {
	words []string // not yet read
	names []string // positional arguments
	extra []string // what nobody asked for
	icmp  bool
	numbers
}

func (p *commandParser) parse() error {
	for len(p.words) > 0 {
		word := p.words[0]
		p.words = p.words[1:]
		if word == "--" {
			p.names = append(p.names, p.words...)
			break
		}
		opt, value, hasValue, err := findOption(word)
		switch {
		case err != nil:
			return err
		case opt != nil:
			if err := p.apply(opt, value, hasValue); err != nil {
				return err
			}
		case isOption(word):
			p.extra = append(p.extra, word)
		default:
			p.names = append(p.names, word)
		}
	}
	switch len(p.names) {
	case 0:
		return wrong("the following arguments are required: source, destination")
	case 1:
		return wrong("the following arguments are required: destination")
	}
	if p.extra = append(p.extra, p.names[2:]...); len(p.extra) > 0 {
		return wrong("unrecognized arguments: %.200s", strings.Join(p.extra, " "))
	}
	for _, bound := range []struct{ opt, value, most int }{
		{0, p.maxTTL, maxTTL},
		{1, p.wait, maxWait},
		{2, p.queries, math.MaxInt32}, // a block's size bounds it further
		{3, p.tos, math.MaxUint8},
	} {
		if bound.value < 0 || bound.value > bound.most {
			return wrong("argument %v: must be 0 to %d, not %d", &options[bound.opt], bound.most, bound.value)
		}
	}
	return nil
}

// apply does what an option says: hasValue tells that value stood in the same word. Flags can be run
// together with what follows: -Iq1.
func (p *commandParser) apply(opt *option, value string, hasValue bool) error {
	for opt.value == nil {
		switch opt.short {
		case "-h":
			return &CommandError{}
		case "-I":
			p.icmp = true
		}
		if !hasValue {
			return nil
		}
		var next *option
		if value != "" {
			next = byShort("-" + value[:1])
		}
		if next == nil {
			return wrong("argument %v: ignored explicit argument %.60q", opt, value)
		}
		opt, value, hasValue = next, value[1:], len(value) > 1
	}
	if !hasValue {
		if len(p.words) == 0 || isOption(p.words[0]) {
			return wrong("argument %v: expected one argument", opt)
		}
		value, p.words = p.words[0], p.words[1:]
	}
	n, err := parseInt(value)
	if err != nil {
		return wrong("argument %v: invalid int value: %.60q", opt, value)
	}
	*opt.value(&p.numbers) = n
	return nil
}

// findOption finds the option that a word is, and the value in the same word. It is nil for every other
// word.
func findOption(word string) (opt *option, value string, hasValue bool, err error) {
	if len(word) < 2 || word[0] != '-' {
		return nil, "", false, nil
	}
	name, value, hasValue := strings.Cut(word, "=")
	for i := range options {
		if o := &options[i]; name == o.short || name == o.long {
			return o, value, hasValue, nil
		}
	}
	if word[1] != '-' {
		if o := byShort(word[:2]); o != nil {
			return o, word[2:], true, nil
		}
		return nil, "", false, nil
	}
	var found []string
	for i := range options {
		if o := &options[i]; strings.HasPrefix(o.long, name) {
			opt, found = o, append(found, o.long)
		}
	}
	switch len(found) {
	case 0:
		return nil, "", false, nil
	case 1:
		return opt, value, hasValue, nil
	default:
		return nil, "", false, wrong("ambiguous option: %.60q could match %s", word, strings.Join(found, ", "))
	}
}

func byShort(name string) *option {
	for i := range options {
		if options[i].short == name {
			return &options[i]
		}
	}
	return nil
}

// isOption tells a word that argparse takes for an option, known or not, from an argument.
func isOption(word string) bool {
	if len(word) < 2 || word[0] != '-' {
		return false
	}
	whole, decimals, point := strings.Cut(word[1:], ".")
	if point {
		return !isDigits(decimals) || whole != "" && !isDigits(whole)
	}
	return !isDigits(whole)
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// parseInt reads what Python's int does, in ASCII: a sign, digits, single underscores between digits. A
// number too large is the largest.
func parseInt(s string) (int, error) {
	if strings.HasPrefix(s, "_") || strings.HasSuffix(s, "_") || strings.Contains(s, "__") ||
		strings.HasPrefix(s, "+_") || strings.HasPrefix(s, "-_") {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.Atoi(strings.ReplaceAll(s, "_", ""))
	if errors.Is(err, strconv.ErrRange) {
		err = nil
	}
	return n, err
}
