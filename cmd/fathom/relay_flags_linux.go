// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"github.com/seed5728abee/fathom/relay"
	"github.com/seed5728abee/fathom/relay/control"
	"github.com/seed5728abee/fathom/relay/datagram"
	"github.com/seed5728abee/fathom/relay/discovery"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// listValue is an option with several values: with commas between, or each with the option before it. The first
// that is given puts the default away.
type listValue[T any] struct {
	values *[]T
	parse  func(string) ([]T, error)
	kind   string
	text   string
	given  bool
}

func listVarP[T any](flags *pflag.FlagSet, values *[]T, name, short, kind, usage string, parse func(string) ([]T, error), otherwise ...T) {
	v := &listValue[T]{values: values, parse: parse, kind: kind}
	if *values = otherwise; len(otherwise) > 0 {
		v.text = strings.Trim(fmt.Sprint(otherwise), "[]")
	}
	flags.VarP(v, name, short, usage)
}

func (l *listValue[T]) String() string { return l.text }
func (l *listValue[T]) Type() string   { return l.kind }

func (l *listValue[T]) Set(s string) error {
	var values []T
	for item := range strings.SplitSeq(s, ",") {
		parsed, err := l.parse(strings.TrimSpace(item))
		if err != nil {
			return plainly(err)
		}
		values = append(values, parsed...)
	}
	if !l.given {
		*l.values, l.text, l.given = nil, "", true
	} else {
		l.text += ","
	}
	*l.values = append(*l.values, values...)
	l.text += s
	return nil
}

// plainly gives an error without the sentinels that say no more than that an option is wrong, which is said already.
func plainly(err error) error {
	text := err.Error()
	for _, sentinel := range []error{relay.ErrOptions, datagram.ErrConfig, mesh.ErrOptions, discovery.ErrName} {
		text = strings.TrimSuffix(strings.TrimPrefix(text, sentinel.Error()+": "), ": "+sentinel.Error())
	}
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}

func parsePorts(s string) ([]datagram.PortRange, error) {
	ports, err := datagram.ParsePorts(s)
	if err != nil {
		return nil, errors.New("want a port from 1 to 65535, or a range such as 5064-5065")
	}
	return ports, nil
}

func parseGroups(s string) ([]datagram.Group, error) {
	groups, err := relay.ParseGroups([]string{s})
	if err != nil || !groups[0].Addr.IsMulticast() {
		return nil, errors.New("want a multicast address, or address:port")
	}
	return groups, nil
}

func parsePreset(s string) ([]relay.Preset, error) {
	p, err := relay.FindPreset(s)
	if err != nil {
		return nil, fmt.Errorf("want one of %s", strings.Join(relay.PresetNames(), ", "))
	}
	return []relay.Preset{p}, nil
}

// parseNetwork takes an address for the network of it alone.
func parseNetwork(s string) ([]netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil, errors.New("want a network such as 192.0.2.0/24")
	}
	return []netip.Prefix{p.Masked()}, nil
}

func parseInterface(s string) ([]string, error) {
	if s == "" {
		return nil, errors.New("want the name of an interface")
	}
	return []string{s}, nil
}

// parseEndpoint takes where a relay is: an address or a name, with a port or without.
func parseEndpoint(s string) ([]string, error) {
	if discovery.Check(s) != nil {
		return nil, errors.New("want an address or a name, with :PORT behind it or without")
	}
	return []string{s}, nil
}

// parseName takes what is asked for in the DNS.
func parseName(s string) ([]string, error) {
	if _, err := netip.ParseAddr(s); err == nil || discovery.Check(s) != nil {
		return nil, errors.New("want a DNS name")
	}
	return []string{s}, nil
}

// controlName is what a relay may be called.
type controlName string

func (n *controlName) String() string { return string(*n) }
func (n *controlName) Type() string   { return "name" }

func (n *controlName) Set(s string) error {
	if err := control.CheckName(s); err != nil {
		return errors.New("want up to 64 letters, digits, dots, hyphens or underscores")
	}
	*n = controlName(s)
	return nil
}

// logLevel is one of SnowSignal's log levels.
type logLevel slog.Level

var originLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn, "error": slog.LevelError, "critical": slog.LevelError + 4,
}

func (l *logLevel) String() string {
	for name, level := range originLevels {
		if level == slog.Level(*l) {
			return name
		}
	}
	return slog.Level(*l).String()
}

func (l *logLevel) Type() string { return "level" }

func (l *logLevel) Set(s string) error {
	level, ok := originLevels[strings.ToLower(s)]
	if !ok {
		return errors.New("want debug, info, warning, error or critical")
	}
	*l = logLevel(level)
	return nil
}
