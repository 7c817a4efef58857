// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/lab"
)

// swarmNet is members of swarms on the hosts of a lab, each a process that is driven over its standard input and output.
type swarmNet struct {
	t   *testing.T
	lab *lab.Lab
}

func newSwarmNet(t *testing.T, file string) *swarmNet {
	t.Helper()
	return &swarmNet{t: t, lab: lab.New(t, lab.MustParse(file))}
}

// swarmPort is that of all members.
const swarmPort = "49610"

// swarmLine is a line that a member writes: an answer or an event, with those of its parts that tests look at.
type swarmLine struct {
	Re    int
	OK    bool
	Error string

	Seconds   float64
	ID        string
	Addr      netip.AddrPort
	Connected bool
	Leaf      bool
	Pred      *netip.AddrPort
	Succ      *netip.AddrPort
	Hosts     []netip.AddrPort
	Leaves    []netip.AddrPort
	Links     []struct {
		ID   string
		Addr *netip.AddrPort
		How  string
		Leaf bool
	}
	Mapping  *struct{ External netip.AddrPort }
	Received int
	Counters map[string]int

	Event    string `json:"ev"`
	Source   string `json:"src"`
	SourceID string `json:"src_id"`
	Data     string
	Kind     string

	at time.Time // when it came
}

// swarmNode is a member.
type swarmNode struct {
	*process
	net   *swarmNet
	host  string
	in    io.WriteCloser
	began time.Time // when its process was started

	writing sync.Mutex // guards in and seq
	seq     int

	mu     sync.Mutex // guards all that follows
	part   []byte     // of a line
	ready  *swarmLine
	heard  []swarmLine // messages
	events []swarmLine // but ready and messages
	wait   map[int]chan swarmLine
	came   chan struct{} // closed, and replaced, with each line
}

// node starts a member on a host.
func (n *swarmNet) node(host string, flags ...string) *swarmNode {
	n.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		n.t.Fatal(err)
	}
	c := n.lab.Host(host).Command(context.Background(), "fathom", append([]string{"swarm", "node", "--control", "stdio", "--verbose"}, flags...)...)
	m := &swarmNode{net: n, host: host, in: w, wait: map[int]chan swarmLine{}, came: make(chan struct{})}
	c.Stdin, c.Stdout = r, m
	m.began = time.Now()
	m.process = startProcess(n.t, host+", swarm node "+strings.Join(flags, " "), c)
	r.Close()
	n.t.Cleanup(func() { w.Close() })
	return m
}

// on is the option to listen on all of a host's IPv4 addresses.
const on = "0.0.0.0:" + swarmPort

// Write takes in what the member says.
func (m *swarmNode) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.part = append(m.part, b...)
	for {
		line, rest, whole := bytes.Cut(m.part, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		l := swarmLine{at: now}
		if err := json.Unmarshal(line, &l); err != nil {
			m.net.t.Errorf("%s says %q: %v", m.host, line, err)
		}
		m.part = rest
		switch {
		case l.Event == "":
			if c := m.wait[l.Re]; c != nil {
				c <- l
				delete(m.wait, l.Re)
			}
		case l.Event == "ready":
			m.ready = &l
		case l.Event == "recv":
			m.heard = append(m.heard, l)
		default:
			m.events = append(m.events, l)
		}
		close(m.came)
		m.came = make(chan struct{})
	}
}

// until waits for something that the member's lines tell. is is called with m.mu held.
func (m *swarmNode) until(what string, is func() bool) {
	m.t.Helper()
	late := time.After(patience)
	for {
		m.mu.Lock()
		done, came := is(), m.came
		m.mu.Unlock()
		if done {
			return
		}
		select {
		case <-came:
		case <-m.ended:
			m.t.Fatalf("%s ended: %v; waited for: %s", m.host, m.err, what)
		case <-late:
			m.t.Fatalf("%s, not within %v: %s", m.host, patience, what)
		}
	}
}

// up waits until the member says that it is ready, and in the swarm if it was told to join one, and gives when.
func (m *swarmNode) up() time.Time {
	m.t.Helper()
	m.until("ready", func() bool { return m.ready != nil })
	return m.ready.at
}

// start begins a command and gives where the answer comes.
func (m *swarmNode) start(op string, arguments map[string]any) <-chan swarmLine {
	m.t.Helper()
	m.writing.Lock()
	defer m.writing.Unlock()
	m.seq++
	command := map[string]any{"seq": m.seq, "op": op}
	for name, value := range arguments {
		command[name] = value
	}
	line, err := json.Marshal(command)
	if err != nil {
		m.t.Fatal(err)
	}
	answer := make(chan swarmLine, 1)
	m.mu.Lock()
	m.wait[m.seq] = answer
	m.mu.Unlock()
	if _, err := m.in.Write(append(line, '\n')); err != nil {
		m.t.Fatalf("%s: %v", m.host, err)
	}
	return answer
}

// try runs a command and gives the answer, whatever it is.
func (m *swarmNode) try(op string, arguments map[string]any) swarmLine {
	m.t.Helper()
	select {
	case l := <-m.start(op, arguments):
		return l
	case <-m.ended:
		m.t.Fatalf("%s ended: %v; it was asked to %s", m.host, m.err, op)
	case <-time.After(2 * patience):
		m.t.Fatalf("%s does not answer %s %v", m.host, op, arguments)
	}
	return swarmLine{}
}

// do runs a command, which must succeed.
func (m *swarmNode) do(op string, arguments map[string]any) swarmLine {
	m.t.Helper()
	l := m.try(op, arguments)
	if !l.OK {
		m.t.Errorf("%s: %s %v: %s", m.host, op, arguments, l.Error)
	}
	return l
}

// state asks a member what it knows.
func (m *swarmNode) state() swarmLine {
	m.t.Helper()
	return m.do("state", nil)
}

// to are the arguments that name a member.
func (m *swarmNode) to(data string) map[string]any {
	addr := m.state().Addr
	return map[string]any{"host": addr.Addr().String(), "port": addr.Port(), "data": data}
}

// sendTo sends to another member, which must get it once, and gives when it had it.
func (m *swarmNode) sendTo(other *swarmNode, data string) time.Time {
	m.t.Helper()
	m.do("send", other.to(data))
	return other.hears(data, "data", m)
}

// hears waits for a message, and gives when it came.
func (m *swarmNode) hears(data, kind string, from *swarmNode) (at time.Time) {
	m.t.Helper()
	m.until(fmt.Sprintf("%s %q", kind, data), func() bool {
		i := slices.IndexFunc(m.heard, func(l swarmLine) bool { return l.Data == data })
		if i < 0 {
			return false
		}
		l := m.heard[i]
		at = l.at
		if id := from.id(); l.Kind != kind || id != "" && l.SourceID != id {
			m.t.Errorf("%s has %q as %s from %s, want %s from %s", m.host, data, l.Kind, l.SourceID, kind, id)
		}
		return true
	})
	return at
}

// id is the member's ID as it was when it was ready.
func (m *swarmNode) id() string {
	if m.ready == nil {
		return ""
	}
	return m.ready.ID
}

// copies is how often a message came.
func (m *swarmNode) copies(data string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.heard {
		if l.Data == data {
			n++
		}
	}
	return n
}

// how says by which kind of way the member is linked to another, and is empty if it is not.
func (m *swarmNode) how(other *swarmNode) string {
	m.t.Helper()
	id := other.state().ID
	for _, l := range m.state().Links {
		if l.ID == id {
			return l.How
		}
	}
	return ""
}
