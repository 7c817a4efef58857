// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// Bounds against answers and files of somebody else's making. A relay sends each broadcast to each peer, so that no mesh
// comes near them.
const (
	maxEndpoints = 1024      // of one source
	maxAddresses = 1024      // of one name
	maxFile      = 256 << 10 // bytes
)

// fileSettle is how long a file must stay as it is to be believed: somebody may be writing it.
const fileSettle = 100 * time.Millisecond

// A Source is where peers come from. It has no state: it can be used several times.
type Source struct {
	name string
	// list gives the endpoints. With nothing but an error, those of the last time are kept; with both, the error is about
	// some that are missing.
	list func(ctx context.Context, r *net.Resolver) ([]endpoint, error)
	// every is how often the list may change, and pause how long to wait after a failure. 0: it never changes.
	every, pause time.Duration
}

// String is the name of the source, as in [SourceStatus].
func (s Source) String() string { return s.name }

// Static is a source of peers with given addresses and names, as in [Check]; port is that of those which have none of
// their own. Addresses are peers always, names are looked up like [Name]. What is neither shows as a problem.
func Static(port uint16, names ...string) Source {
	return fixed("static", port, names)
}

// Tasks is a source of peers that are the tasks of a Docker Swarm service: the addresses of tasks.SERVICE, which the
// engine answers with one for each task. The service's own name would give its virtual address, behind which they are all one.
func Tasks(port uint16, service string) Source {
	return fixed("tasks."+service, port, []string{"tasks." + service})
}

// Name is a source of peers that are the addresses, IPv4 and IPv6, of a DNS name: of a service of Compose, or of a headless
// service of Kubernetes. A dot at the end of the name spares the resolver its search list.
func Name(port uint16, name string) Source {
	return fixed(name, port, []string{name})
}

func fixed(name string, port uint16, texts []string) Source {
	var list []endpoint
	var problem error // the first is enough to find the others
	for _, text := range texts {
		e, err := parseEndpoint(text, port)
		if err != nil {
			problem = cmp.Or(problem, err)
			continue
		}
		list = append(list, e)
	}
	return Source{name: name, list: func(context.Context, *net.Resolver) ([]endpoint, error) { return list, problem }}
}

// SRV is a source of peers that are the targets of the SRV records of a name such as _fathom._udp.example.net, at the ports
// that the records give. Kubernetes has them for the named ports of a headless service.
func SRV(name string) Source {
	return Source{name: name, every: lookupEvery, pause: lookupPause, list: func(ctx context.Context, r *net.Resolver) ([]endpoint, error) {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		// With records that make no sense, there is an error and the others.
		_, records, err := r.LookupSRV(ctx, "", "", name)
		var list []endpoint
		for _, record := range records[:min(len(records), maxEndpoints)] {
			// No host has the name ".", by which RFC 2782 says that there is decidedly no such service.
			if record.Port != 0 && validHost(record.Target) {
				list = append(list, endpoint{host: record.Target, port: record.Port})
			}
		}
		if len(list) == 0 && err == nil {
			err = fmt.Errorf("look up %s: no usable SRV record", name)
		}
		// The resolver shuffles them.
		slices.SortFunc(list, func(a, b endpoint) int { return strings.Compare(a.String(), b.String()) })
		return slices.Compact(list), err
	}}
}

// File is a source of peers that stand in a file, one a line, in the form of [Static]. Empty lines and what follows a # are
// ignored. The file is read every 2 s. An empty one is no peers; one that is not there, or says nothing that
// makes sense, changes nothing.
func File(port uint16, path string) Source {
	return Source{name: path, every: filePeriod, pause: filePeriod, list: func(ctx context.Context, _ *net.Resolver) ([]endpoint, error) {
		data, err := readSettled(ctx, path)
		if err != nil {
			return nil, err
		}
		return parseFile(data, port, path)
	}}
}

// readSettled reads a file that nobody is writing.
func readSettled(ctx context.Context, path string) ([]byte, error) {
	data, err := readBounded(path)
	for range 10 {
		if err != nil || !pause(ctx, fileSettle) {
			break
		}
		before := data
		if data, err = readBounded(path); err == nil && bytes.Equal(data, before) {
			return data, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("read %s: it changes all the time", path)
	}
	return nil, err
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("read %s: longer than %d bytes", path, maxFile)
	}
	return data, err
}

func parseFile(data []byte, port uint16, path string) ([]endpoint, error) {
	list := []endpoint{}
	var problem error // the first, as above
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff"))))
	lines.Buffer(nil, maxFile+1)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		e, err := parseEndpoint(text, port)
		if err == nil && len(list) == maxEndpoints {
			err = fmt.Errorf("more than %d peers", maxEndpoints)
		}
		if err != nil {
			problem = cmp.Or(problem, fmt.Errorf("%s:%d: %w", path, n, err))
			continue
		}
		list = append(list, e)
	}
	if len(list) == 0 && problem != nil {
		return nil, problem
	}
	return list, problem
}

// pause waits, and tells whether it was not for the end of ctx.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
