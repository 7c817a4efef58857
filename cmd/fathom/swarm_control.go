// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/member"
)

// Bounds of the machine interface.
const (
	// swarmMaxLine has room for the largest message with every byte escaped ("\u00ff").
	swarmMaxLine = 6*swarm.MaxMessage + 1<<16
	// swarmMaxCommands is how many commands run at a time; the next ones wait to be read.
	swarmMaxCommands = 1024
	// swarmMaxDuplicates is more ways than any swarm has that do not meet.
	swarmMaxDuplicates = 64
	// swarmTimeout is how long a join or a lookup may take when the command does not say.
	swarmTimeout = 10 * time.Second
	// swarmFinish is how long commands under way have to finish when the input ends.
	swarmFinish = 2 * time.Second
)

// swarmControl runs a peer by JSON lines: commands in, answers and events out.
type swarmControl struct {
	peer  swarmPeer
	out   *lineWriter
	quiet atomic.Bool // recv events are only counted

	slots chan struct{}
	wg    sync.WaitGroup
}

func newSwarmControl(peer swarmPeer, out *lineWriter) *swarmControl {
	return &swarmControl{peer: peer, out: out, slots: make(chan struct{}, swarmMaxCommands)}
}

// latin1 is data as the interface shows it: text, of which each character is one byte.
type latin1 []byte

var errLatin1 = errors.New("data has a character above U+00FF: each stands for one byte")

func (l latin1) MarshalText() ([]byte, error) {
	text := make([]byte, 0, len(l))
	for _, b := range l {
		text = utf8.AppendRune(text, rune(b))
	}
	return text, nil
}

func (l *latin1) UnmarshalText(text []byte) error {
	data := make([]byte, 0, len(text))
	for _, r := range string(text) {
		if r > 0xff { // which the replacement of what is no UTF-8 is, too
			return errLatin1
		}
		data = append(data, byte(r))
	}
	*l = data
	return nil
}

// swarmCommand is one line of input.
type swarmCommand struct {
	Seq        json.RawMessage `json:"seq"`
	Op         string          `json:"op"`
	Host       string          `json:"host"`
	Port       int             `json:"port"`
	Data       latin1          `json:"data"`
	Duplicates int             `json:"duplicates"`
	Timeout    *float64        `json:"timeout"` // seconds
	Key        *string         `json:"key"`
	ID         string          `json:"id"`
	On         *bool           `json:"on"`
	Count      int             `json:"count"`
	Size       int             `json:"size"`
}

// decodeSwarmCommand reads a line of input. The command has its Seq also when there is an error, if that could be read.
func decodeSwarmCommand(line []byte) (swarmCommand, error) {
	var c swarmCommand
	if err := json.Unmarshal(line, &c); err != nil {
		if errors.Is(err, errLatin1) {
			err = errLatin1
		}
		var head struct {
			Seq json.RawMessage `json:"seq"`
		}
		if json.Unmarshal(line, &head) != nil {
			head.Seq = nil
		}
		if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			if kind.Field == "" {
				err = fmt.Errorf("want a JSON object, not a JSON %s", kind.Value)
			} else {
				err = fmt.Errorf("%s cannot be a JSON %s", kind.Field, kind.Value)
			}
		}
		return swarmCommand{Seq: head.Seq}, fmt.Errorf("cannot read the command: %w", err)
	}
	return c, nil
}

// target gives whom host and port name.
func (c *swarmCommand) target() (swarm.Target, error) {
	address, err := c.address()
	if err != nil {
		return swarm.Target{}, err
	}
	return swarm.ToAddr(address), nil
}

func (c *swarmCommand) address() (string, error) {
	switch {
	case c.Host == "":
		return "", fmt.Errorf("%s: no host", c.Op)
	case c.Port < 1 || c.Port > 65535:
		return "", fmt.Errorf("%s: port %d: want a number from 1 to 65535", c.Op, c.Port)
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)), nil
}

func (c *swarmCommand) timeout() (time.Duration, error) {
	if c.Timeout == nil {
		return swarmTimeout, nil
	}
	if s := *c.Timeout; s > 0 && s <= 1e6 {
		return time.Duration(s * float64(time.Second)), nil
	}
	return 0, fmt.Errorf("%s: timeout %v: want seconds, more than 0", c.Op, *c.Timeout)
}

// lookupKey gives the place that a lookup is for.
func (c *swarmCommand) lookupKey() (swarm.Hash, error) {
	switch {
	case c.Key != nil && c.ID != "":
		return swarm.Hash{}, errors.New("lookup: give a key or an id, not both")
	case c.ID != "":
		id, err := member.ParseID(c.ID)
		if err != nil {
			return id, fmt.Errorf("lookup: %w", err)
		}
		return id, nil
	case c.Key != nil:
		return swarm.HashOf(*c.Key), nil
	}
	return swarm.Hash{}, errors.New("lookup: give a key, or an id")
}

// swarmAnswer begins every answer.
type swarmAnswer struct {
	Re    json.RawMessage `json:"re"`
	OK    bool            `json:"ok"`
	Error string          `json:"error,omitempty"`
}

func (a *swarmAnswer) head() *swarmAnswer { return a }

// swarmTook answers with how long it took, in seconds.
type swarmTook struct {
	swarmAnswer
	Seconds float64 `json:"seconds"`
}

type swarmFound struct {
	swarmAnswer
	Addr    *netip.AddrPort `json:"addr"`
	ID      swarm.Hash      `json:"id"`
	Hops    int             `json:"hops"`
	Path    []swarm.Hash    `json:"path"`
	Leaf    *swarmMember    `json:"leaf,omitempty"` // the key is its ID, and the owner its host
	Seconds float64         `json:"seconds"`
}

// swarmMember is a member as programs see it.
type swarmMember struct {
	ID       swarm.Hash      `json:"id"`
	Addr     *netip.AddrPort `json:"addr"`
	Original bool            `json:"original,omitempty"`
	Leaf     bool            `json:"leaf,omitempty"`
}

func swarmMemberOf(m swarm.Member) swarmMember {
	return swarmMember{ID: m.ID, Addr: addrOrNull(m), Original: m.Original, Leaf: m.Leaf}
}

func addrOrNull(m swarm.Member) *netip.AddrPort {
	if !m.Addr.IsValid() {
		return nil
	}
	return &m.Addr
}

type swarmLink struct {
	swarmMember
	How      string  `json:"how"`
	RTT      float64 `json:"rtt"` // seconds
	Inbound  bool    `json:"inbound,omitempty"`
	Sent     uint64  `json:"sent"` // bytes
	Received uint64  `json:"received"`
}

type swarmMapped struct {
	Method   nat.Method     `json:"method"`
	Proto    nat.Protocol   `json:"proto"`
	External netip.AddrPort `json:"external"`
	Lifetime int            `json:"lifetime"` // seconds
}

type swarmState struct {
	swarmAnswer
	ID        swarm.Hash       `json:"id"`
	Addr      *netip.AddrPort  `json:"addr"`
	Connected bool             `json:"connected"`
	Leaf      bool             `json:"leaf"`
	Pred      *netip.AddrPort  `json:"pred"`
	Succ      *netip.AddrPort  `json:"succ"`
	Peers     []netip.AddrPort `json:"peers"`
	Fingers   []netip.AddrPort `json:"fingers"`
	Hosts     []netip.AddrPort `json:"hosts"`
	Leaves    []netip.AddrPort `json:"leaves"`
	Links     []swarmLink      `json:"links"`
	Mapping   *swarmMapped     `json:"mapping"`
	Received  uint64           `json:"received"`
	Counters  swarm.Counters   `json:"counters"`
}

// addrsOf gives the addresses of members, each once.
func addrsOf(lists ...[]swarm.Member) []netip.AddrPort {
	addrs := []netip.AddrPort{}
	seen := make(map[netip.AddrPort]bool)
	for _, list := range lists {
		for _, m := range list {
			if m.Addr.IsValid() && !seen[m.Addr] {
				seen[m.Addr] = true
				addrs = append(addrs, m.Addr)
			}
		}
	}
	return addrs
}

func newSwarmState(s swarm.State) *swarmState {
	answer := &swarmState{
		ID: s.Self.ID, Addr: addrOrNull(s.Self), Connected: s.Connected, Leaf: s.Self.Leaf,
		Fingers: addrsOf(s.Forward, s.Backward), Hosts: addrsOf(s.Hosts), Leaves: addrsOf(s.Leaves),
		Links: []swarmLink{}, Received: s.Received, Counters: s.Counters,
	}
	if len(s.Predecessors) > 0 {
		answer.Pred = addrOrNull(s.Predecessors[0])
	}
	if len(s.Successors) > 0 {
		answer.Succ = addrOrNull(s.Successors[0])
	}
	var linked []swarm.Member
	for _, l := range s.Peers {
		linked = append(linked, l.Member)
		answer.Links = append(answer.Links, swarmLink{
			swarmMember: swarmMemberOf(l.Member), How: l.How.String(), RTT: l.RTT.Seconds(), Inbound: l.Inbound, Sent: l.Sent, Received: l.Received,
		})
	}
	answer.Peers = addrsOf(linked)
	if m := s.Mapping; m != nil {
		answer.Mapping = &swarmMapped{Method: m.Method, Proto: m.Protocol, External: m.External, Lifetime: int(m.Lifetime.Seconds())}
	}
	return answer
}

type swarmReady struct {
	Event string          `json:"ev"`
	ID    swarm.Hash      `json:"id"`
	Addr  *netip.AddrPort `json:"addr"`
}

type swarmReceived struct {
	Event  string          `json:"ev"`
	Source *netip.AddrPort `json:"src"`
	ID     swarm.Hash      `json:"src_id"`
	Data   latin1          `json:"data"`
	Time   float64         `json:"t"` // seconds since 1970, UTC
	Kind   string          `json:"kind"`
	Sealed bool            `json:"sealed,omitempty"`
}

type swarmMappingEvent struct {
	Event    string         `json:"ev"`
	Proto    string         `json:"proto"`
	External netip.AddrPort `json:"external"`
	Lifetime int            `json:"lifetime"`
	Error    string         `json:"error,omitempty"`
}

// ready tells that the peer is there.
func (c *swarmControl) ready() {
	self := c.peer.Self()
	c.out.write(swarmReady{Event: "ready", ID: self.ID, Addr: addrOrNull(self)})
}

// mappingEvents tells what happened to a port mapping, an event for each protocol.
func mappingEvents(out *lineWriter, e nat.Event) {
	var name string
	switch e.Kind {
	case nat.Renewed:
		name = "mapping_renewed"
	case nat.Lost:
		name = "mapping_lost"
	default: // there is one, or another one
		name = "mapping"
	}
	for _, proto := range []nat.Protocol{nat.TCP, nat.UDP} {
		if e.State.Protocol&proto == 0 {
			continue
		}
		event := swarmMappingEvent{Event: name, Proto: proto.String(), External: e.State.External, Lifetime: int(e.State.Lifetime.Seconds())}
		if e.Err != nil {
			event.Error = e.Err.Error()
		}
		out.write(event)
	}
}

// receive makes events of messages until the peer is closed or ctx ends.
func (c *swarmControl) receive(ctx context.Context) {
	for {
		m, err := c.peer.Recv(ctx)
		if err != nil {
			return
		}
		if c.quiet.Load() {
			continue
		}
		kind := "data"
		if m.Broadcast {
			kind = "bcast"
		}
		c.out.write(swarmReceived{
			Event: "recv", Source: addrOrNull(m.From), ID: m.From.ID, Data: m.Data,
			Time: float64(m.Time.UnixMicro()) / 1e6, Kind: kind, Sealed: m.Sealed,
		})
	}
}

// run obeys commands until one says quit, the input or ctx ends, or nobody reads the answers. It returns when all that it
// started has ended; the peer is closed then.
func (c *swarmControl) run(ctx context.Context, in io.Reader) error {
	commands, cancel := context.WithCancel(ctx)
	defer cancel()
	c.wg.Go(func() { c.receive(commands) })

	lines, readError := make(chan []byte), make(chan error, 1)
	// A read of a terminal or a pipe cannot be interrupted: when something else ends the run, this goroutine stays until
	// the program ends.
	go func() { readError <- scanLines(commands, in, swarmMaxLine, lines) }()

	var err error
	graceful := false
loop:
	for {
		select {
		case line := <-lines:
			if c.obey(commands, line) {
				graceful = true
				break loop
			}
		case err = <-readError:
			graceful = err == nil
			break loop
		case <-c.out.failed:
			break loop
		case <-ctx.Done():
			break loop
		}
	}
	if graceful {
		c.finish(ctx)
	}
	cancel()
	closeError := c.peer.Close()
	c.wg.Wait()
	return errors.Join(err, closeError)
}

// finish waits a little for the commands under way.
func (c *swarmControl) finish(ctx context.Context) {
	late := time.NewTimer(swarmFinish)
	defer late.Stop()
	for range cap(c.slots) { // whoever has all slots is the last
		select {
		case c.slots <- struct{}{}:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// obey starts a command, and reports whether it was the last one.
func (c *swarmControl) obey(ctx context.Context, line []byte) (quit bool) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return false
	}
	cmd, err := decodeSwarmCommand(line)
	if err != nil {
		c.answer(&cmd, &swarmAnswer{}, err)
		return false
	}
	// What only looks or switches is done at once, in order.
	switch cmd.Op {
	case "quit":
		c.answer(&cmd, &swarmAnswer{}, nil)
		return true
	case "quiet":
		c.quiet.Store(cmd.On == nil || *cmd.On)
		c.answer(&cmd, &swarmAnswer{}, nil)
		return false
	case "state":
		c.answer(&cmd, newSwarmState(c.peer.State()), nil)
		return false
	}
	run := c.command(&cmd)
	if run == nil {
		c.answer(&cmd, &swarmAnswer{}, fmt.Errorf("unknown op %q", cmd.Op))
		return false
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	c.wg.Go(func() {
		defer func() { <-c.slots }()
		answer, err := run(ctx)
		c.answer(&cmd, answer, err)
	})
	return false
}

// answerer is an answer with a head.
type answerer interface{ head() *swarmAnswer }

func (c *swarmControl) answer(cmd *swarmCommand, answer answerer, err error) {
	if err != nil { // there is nothing else to tell then
		answer = &swarmAnswer{Error: err.Error()}
	}
	h := answer.head()
	h.Re, h.OK = cmd.Seq, err == nil
	c.out.write(answer)
}

// command gives what a command does, nil if there is none such.
func (c *swarmControl) command(cmd *swarmCommand) func(context.Context) (answerer, error) {
	switch cmd.Op {
	case "join":
		return func(ctx context.Context) (answerer, error) { return c.timed(ctx, cmd, c.join) }
	case "send":
		return func(ctx context.Context) (answerer, error) { return c.timed(ctx, cmd, c.send) }
	case "bcast":
		return func(ctx context.Context) (answerer, error) {
			return c.timed(ctx, cmd, func(ctx context.Context, cmd *swarmCommand) error { return c.peer.Broadcast(ctx, cmd.Data) })
		}
	case "flood":
		return func(ctx context.Context) (answerer, error) { return c.timed(ctx, cmd, c.flood) }
	case "leave":
		return func(ctx context.Context) (answerer, error) {
			return c.timed(ctx, cmd, func(ctx context.Context, _ *swarmCommand) error { return c.peer.Disconnect(ctx) })
		}
	case "lookup":
		return func(ctx context.Context) (answerer, error) { return c.lookup(ctx, cmd) }
	}
	return nil
}

func (c *swarmControl) timed(ctx context.Context, cmd *swarmCommand, do func(context.Context, *swarmCommand) error) (answerer, error) {
	began := time.Now()
	err := do(ctx, cmd)
	return &swarmTook{Seconds: time.Since(began).Seconds()}, err
}

func (c *swarmControl) join(ctx context.Context, cmd *swarmCommand) error {
	address, err := cmd.address()
	if err != nil {
		return err
	}
	timeout, err := cmd.timeout()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.peer.Connect(ctx, address)
}

func (c *swarmControl) send(ctx context.Context, cmd *swarmCommand) error {
	to, err := cmd.target()
	switch {
	case err != nil:
		return err
	case cmd.Duplicates < 0 || cmd.Duplicates > swarmMaxDuplicates:
		return fmt.Errorf("send: %d duplicates: want 0 to %d", cmd.Duplicates, swarmMaxDuplicates)
	case cmd.Duplicates > 0:
		return c.peer.SendDisjoint(ctx, to, cmd.Data, cmd.Duplicates)
	}
	return c.peer.Send(ctx, to, cmd.Data)
}

func (c *swarmControl) lookup(ctx context.Context, cmd *swarmCommand) (answerer, error) {
	key, err := cmd.lookupKey()
	if err != nil {
		return nil, err
	}
	timeout, err := cmd.timeout()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	r, err := c.peer.Lookup(ctx, key, swarm.LookupOptions{})
	if err != nil {
		return nil, err
	}
	return newSwarmFound(r, time.Since(began)), nil
}

func newSwarmFound(r swarm.Result, took time.Duration) *swarmFound {
	found := &swarmFound{Addr: addrOrNull(r.Owner), ID: r.Owner.ID, Hops: r.Hops, Path: r.Path, Seconds: took.Seconds()}
	if found.Path == nil {
		found.Path = []swarm.Hash{}
	}
	if r.Leaf != nil {
		leaf := swarmMemberOf(*r.Leaf)
		found.Leaf = &leaf
	}
	return found
}

// flood sends messages as fast as they are acknowledged.
func (c *swarmControl) flood(ctx context.Context, cmd *swarmCommand) error {
	to, err := cmd.target()
	switch {
	case err != nil:
		return err
	case cmd.Count < 1:
		return fmt.Errorf("flood: count %d: want 1 or more", cmd.Count)
	case cmd.Size < 0 || cmd.Size > swarm.MaxMessage:
		return fmt.Errorf("flood: size %d: want 0 to %d", cmd.Size, swarm.MaxMessage)
	}
	data := bytes.Repeat([]byte{'x'}, cmd.Size)
	var wg sync.WaitGroup
	var failed atomic.Int64
	var first atomic.Pointer[error]
	done := func(err error) {
		if err != nil {
			failed.Add(1)
			first.CompareAndSwap(nil, &err)
		}
		wg.Done()
	}
	for range cmd.Count {
		wg.Add(1)
		if err := c.peer.SendAsync(ctx, to, data, done); err != nil {
			done(err)
			break // nor will the next ones leave
		}
	}
	wg.Wait()
	if err := first.Load(); err != nil {
		return fmt.Errorf("flood: %d of %s failed: %w", failed.Load(), count(cmd.Count, "message"), *err)
	}
	return nil
}

// scanLines reads lines of at most limit bytes and hands them on, without their ends, until the input or ctx ends.
func scanLines(ctx context.Context, in io.Reader, limit int, lines chan<- []byte) error {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, limit)
	for scanner.Scan() {
		select {
		case lines <- bytes.Clone(scanner.Bytes()):
		case <-ctx.Done():
			return nil
		}
	}
	if errors.Is(scanner.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line of input is longer than %d bytes", limit)
	}
	return scanner.Err()
}

// lineWriter writes JSON lines, for several who have something to say: in batches while there is much, at once otherwise.
// Whoever writes waits when the reader is slow.
type lineWriter struct {
	lines  chan []byte
	failed chan struct{} // closed when nobody reads any more
	done   chan struct{}
	err    error // why not; valid when done is closed
}

func newLineWriter(w io.Writer) *lineWriter {
	l := &lineWriter{lines: make(chan []byte, 1024), failed: make(chan struct{}), done: make(chan struct{})}
	go l.run(bufio.NewWriterSize(w, 1<<16))
	return l
}

func (l *lineWriter) run(w *bufio.Writer) {
	defer close(l.done)
	for line := range l.lines {
		if l.err != nil {
			continue
		}
		_, err := w.Write(line)
		if err == nil && len(l.lines) == 0 {
			err = w.Flush()
		}
		if err != nil {
			l.err = err
			close(l.failed)
		}
	}
	if l.err == nil {
		l.err = w.Flush()
	}
}

// write writes v as one line.
func (l *lineWriter) write(v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // all that is written here can be encoded
	}
	select {
	case l.lines <- b.Bytes():
	case <-l.failed:
	}
}

// close writes what is left. Nothing may be written afterwards.
func (l *lineWriter) close() error {
	close(l.lines)
	<-l.done
	return l.err
}
