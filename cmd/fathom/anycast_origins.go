// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/seed5728abee/fathom/anycast"
)

// addrsValue is an option that takes IP addresses, several times or with commas.
type addrsValue []netip.Addr

func (a *addrsValue) String() string {
	words := make([]string, len(*a))
	for i, addr := range *a {
		words[i] = addr.String()
	}
	return strings.Join(words, ",")
}

func (a *addrsValue) Type() string { return "addresses" }

func (a *addrsValue) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		addr, err := netip.ParseAddr(strings.TrimSpace(word))
		if err != nil {
			return errors.New("want IP addresses, with commas between them")
		}
		*a = append(*a, addr.Unmap())
	}
	return nil
}

// originsOf makes each of several addresses an origin, which is called by its address.
func originsOf(sources []netip.Addr) []anycast.Origin {
	origins := make([]anycast.Origin, len(sources))
	for i, a := range sources {
		origins[i] = anycast.Origin{Name: a.String(), Source: a}
	}
	return origins
}

// originFile is a file of origins.
type originFile struct {
	Origin []struct {
		Name            string     `toml:"name"`
		Source          netip.Addr `toml:"source"`
		SourcePort      uint16     `toml:"source_port"`
		DestinationPort uint16     `toml:"destination_port"`
		Sites           []string   `toml:"sites"`
	} `toml:"origin"`
}

// maxOriginFile bounds a file of origins, of which there are at most anycast.MaxOrigins.
const maxOriginFile = 1 << 20

// readOrigins reads the file of --configuration.
func readOrigins(name string) ([]anycast.Origin, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	origins, err := parseOrigins(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return origins, nil
}

// parseOrigins decodes a file of origins. Keys that there are not are an error, which shows the line.
func parseOrigins(data []byte) ([]anycast.Origin, error) {
	if len(data) > maxOriginFile {
		return nil, fmt.Errorf("longer than %d bytes", maxOriginFile)
	}
	var f originFile
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&f); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return nil, fmt.Errorf("want [[origin]] with name, source, source_port, destination_port, sites:\n%s", strict.String())
		}
		if decode, ok := errors.AsType[*toml.DecodeError](err); ok {
			return nil, fmt.Errorf("%w\n%s", decode, decode.String())
		}
		return nil, err
	}
	if len(f.Origin) == 0 {
		return nil, errors.New("want at least one [[origin]]")
	}
	origins := make([]anycast.Origin, len(f.Origin))
	for i, o := range f.Origin {
		origins[i] = anycast.Origin{Name: o.Name, Source: o.Source.Unmap(), SourcePort: o.SourcePort, Port: o.DestinationPort, Sites: o.Sites}
		if o.Name == "" && o.Source.IsValid() {
			origins[i].Name = origins[i].Source.String()
		}
	}
	return origins, nil
}
