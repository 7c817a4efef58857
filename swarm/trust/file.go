// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed5728abee/fathom/swarm/internal/secretfile"
	"github.com/seed5728abee/fathom/swarm/member"
)

var (
	// ErrFile says that a text is not a key file.
	ErrFile = errors.New("not a file of trusted hosts")
	// ErrMode says that others than its owner can read or change a key file.
	ErrMode = secretfile.ErrMode
)

// Load reads a key file. It refuses one that others can read with [ErrMode], and one that is malformed with
// [ErrFile]; the error then names the entry, counted from 1, and the line.
func Load(name string) (*Table, error) {
	text, err := secretfile.Read(name)
	if err != nil {
		return nil, fmt.Errorf("trusted hosts: %w", err)
	}
	t, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("trusted hosts %s: %w", name, err)
	}
	return t, nil
}

// Parse reads the text of a key file. It is strict: what it does not know, and what is there twice, is an error that
// wraps [ErrFile], as a host that is not listed by mistake would be talked to in clear. Errors show no keys.
func Parse(text []byte) (*Table, error) {
	p := parser{text: text, json: json.NewDecoder(bytes.NewReader(text))}
	t := &Table{
		byID: make(map[member.ID]*host), byAddr: make(map[netip.AddrPort]*host), byIP: make(map[netip.Addr]*host),
		loaded: time.Now().Truncate(time.Millisecond),
	}
	if !utf8.Valid(text) { // encoding/json would put the same character in the place of any
		return nil, fmt.Errorf("not UTF-8: %w", ErrFile)
	}
	if err := p.file(t); err != nil {
		where := fmt.Sprintf("line %d", 1+bytes.Count(text[:p.json.InputOffset()], []byte("\n")))
		if p.entry > 0 {
			where = fmt.Sprintf("entry %d, %s", p.entry, where)
		}
		return nil, fmt.Errorf("%s: %w: %w", where, err, ErrFile)
	}
	return t, nil
}

// A parser reads tokens, as encoding/json alone would take a member given twice, and in any case of letters.
type parser struct {
	text  []byte
	json  *json.Decoder
	entry int // being read; 0 outside
}

// next reads a token. The error of encoding/json is not shown: it may quote some of a key.
func (p *parser) next() (json.Token, error) {
	token, err := p.json.Token()
	switch {
	case err == nil:
		return token, nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errors.New("the text ends too early")
	default:
		return nil, errors.New("not JSON")
	}
}

func (p *parser) expect(want json.Token, problem string) error {
	token, err := p.next()
	if err == nil && token != want {
		err = errors.New(problem)
	}
	return err
}

func (p *parser) file(t *Table) error {
	if err := p.expect(json.Delim('{'), "not a JSON object"); err != nil {
		return err
	}
	const shape = `has to be {"trusted_hosts": [...]} and nothing else`
	if err := p.expect("trusted_hosts", shape); err != nil {
		return err
	}
	if err := p.expect(json.Delim('['), "trusted_hosts is not a list"); err != nil {
		return err
	}
	for p.entry = 1; p.json.More(); p.entry++ {
		if err := p.host(t); err != nil {
			return err
		}
	}
	p.entry = 0
	if err := p.expect(json.Delim(']'), shape); err != nil {
		return err
	}
	if err := p.expect(json.Delim('}'), shape); err != nil {
		return err
	}
	if _, err := p.json.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more after the end")
	}
	return nil
}

// host reads one entry into the table.
func (p *parser) host(t *Table) error {
	fields, err := p.fields()
	if err != nil || len(fields) == 0 {
		return err
	}
	for _, name := range []string{"outbound_key", "inbound_key"} {
		if fields[name] == "" {
			return fmt.Errorf("%s is missing or empty", name)
		}
	}
	h := &host{entry: p.entry, outbound: fields["outbound_key"], inbound: fields["inbound_key"]}
	peer, isPeer := fields["peer"]
	address, isAddress := fields["address"]
	if isPeer == isAddress {
		return errors.New("one of peer and address is needed, and not both")
	}
	if isPeer {
		id, err := member.ParseID(peer)
		if err != nil {
			return fmt.Errorf("peer is %w", member.ErrID)
		}
		return put(t.byID, id, h)
	}
	if rest, ok := strings.CutPrefix(address, "localhost"); ok && (rest == "" || rest[0] == ':') {
		address = "127.0.0.1" + rest
	}
	if ip, err := netip.ParseAddr(strings.Trim(address, "[]")); err == nil && ip.Zone() == "" {
		return put(t.byIP, ip.Unmap(), h)
	}
	addr, err := netip.ParseAddrPort(address)
	if err != nil || addr.Port() == 0 || addr.Addr().Zone() != "" {
		return errors.New("address is neither IP nor IP:PORT; names are not looked up: write the address that the name stands for, or the peer")
	}
	return put(t.byAddr, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), h)
}

// fields reads an object of strings.
func (p *parser) fields() (map[string]string, error) {
	if err := p.expect(json.Delim('{'), "not a JSON object"); err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	for p.json.More() {
		token, err := p.next()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string) // names always are
		switch name {
		case "peer", "address", "outbound_key", "inbound_key":
		default:
			return nil, fmt.Errorf("%.40q is not known: it can have peer or address, outbound_key and inbound_key", name)
		}
		if _, ok := fields[name]; ok {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		if token, err = p.next(); err != nil {
			return nil, err
		}
		value, ok := token.(string)
		if !ok {
			return nil, fmt.Errorf("%s is not a string", name)
		}
		fields[name] = value
	}
	return fields, p.expect(json.Delim('}'), "not a JSON object")
}

// put adds a host that is not there yet.
func put[K comparable](hosts map[K]*host, key K, h *host) error {
	if other := hosts[key]; other != nil {
		return fmt.Errorf("%v is the host of entry %d already", key, other.entry)
	}
	hosts[key] = h
	return nil
}
