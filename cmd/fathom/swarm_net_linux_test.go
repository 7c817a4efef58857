// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
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

// wiresTo makes hosts with wires to a router, which can be cut.
func wiresTo(router string, hosts ...string) string {
	var file strings.Builder
	for _, h := range hosts {
		fmt.Fprintf(&file, "[host.%s]\n[[wire]]\nends = [\"%s\", \"%s\"]\nadjustable = true\n", h, h, router)
	}
	return file.String()
}

// homeAt makes a host behind a NAT of some kind at a router: x is behind nat-x. All homes use the same private addresses.
func homeAt(router, x, kind string) string {
	return fmt.Sprintf("[host.%[1]s]\n[nat.nat-%[1]s]\noutside = \"%[2]s\"\n%[3]s\n"+
		"[[wire]]\nends = [\"nat-%[1]s\", \"%[1]s\"]\nsubnets = [\"192.168.1.0/24\"]\n[[wire]]\nends = [\"%[2]s\", \"nat-%[1]s\"]\n", x, router, kind)
}

// cut lets nothing pass a wire, or mends it.
func (n *swarmNet) cut(a, b string, loss float64) {
	n.t.Helper()
	w, err := n.lab.Wire(a, b)
	if err == nil {
		err = w.Set(lab.Impairment{Loss: loss})
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// public starts a member on a host that everyone reaches.
func (n *swarmNet) public(host string, flags ...string) *swarmNode {
	n.t.Helper()
	return n.node(host, append([]string{"--listen", n.entry(host)}, flags...)...)
}

// entry is the address of the member on a host.
func (n *swarmNet) entry(host string) string {
	return n.lab.Host(host).Addr().String() + ":" + swarmPort
}

// members starts members on hosts that everyone reaches, the first of which the others join, and waits until they are a ring.
func (n *swarmNet) members(hosts ...string) []*swarmNode {
	n.t.Helper()
	list := []*swarmNode{n.public(hosts[0])}
	list[0].up()
	for _, h := range hosts[1:] {
		list = append(list, n.public(h, "--join", n.entry(hosts[0])))
	}
	for _, m := range list {
		m.up()
	}
	n.ring(list)
	return list
}

// ring waits until members, and no others, are a ring in the order of their IDs, and gives how long that took.
func (n *swarmNet) ring(members []*swarmNode) time.Duration {
	n.t.Helper()
	began := time.Now()
	if len(members) == 1 {
		return 0
	}
	eventually(n.t, "a ring", func() bool {
		states := make([]swarmLine, len(members))
		for i, m := range members {
			states[i] = m.state()
		}
		slices.SortFunc(states, func(a, b swarmLine) int { return strings.Compare(a.ID, b.ID) })
		for i, s := range states {
			next := states[(i+1)%len(states)]
			if s.Leaf || s.Succ == nil || *s.Succ != next.Addr || next.Pred == nil || *next.Pred != s.Addr {
				return false
			}
		}
		return true
	})
	return time.Since(began)
}

// broadcast has a member broadcast, and holds that each of the others gets it once. It gives how long the last of them waited.
func (n *swarmNet) broadcast(from *swarmNode, data string, to []*swarmNode) (last time.Duration) {
	n.t.Helper()
	began := time.Now()
	from.do("bcast", map[string]any{"data": data})
	for _, m := range to {
		if m != from {
			last = max(last, m.hears(data, "bcast", from).Sub(began))
		}
	}
	time.Sleep(settled)
	for _, m := range to {
		if k := m.copies(data); m != from && k != 1 {
			n.t.Errorf("%s heard %q %d times", m.host, data, k)
		}
	}
	return last
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
		switch l.Event {
		case "":
			if c := m.wait[l.Re]; c != nil {
				c <- l
				delete(m.wait, l.Re)
			}
		case "ready":
			m.ready = &l
		case "recv":
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
	maps.Copy(command, arguments)
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

// reaches sends to another member until that succeeds, and gives how long it took.
func (m *swarmNode) reaches(other *swarmNode, data string) time.Duration {
	m.t.Helper()
	began := time.Now()
	for i := 0; ; i++ {
		text := fmt.Sprint(data, " ", i)
		to := other.to(text) // its address may change
		if m.try("send", to).OK {
			other.until(text, func() bool {
				return slices.ContainsFunc(other.heard, func(l swarmLine) bool { return l.Data == text })
			})
			return time.Since(began)
		}
		if time.Since(began) > patience {
			m.t.Fatalf("%s does not reach %s, at %v", m.host, other.host, to)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// goes waits until the link from a member to another is of some kind, and gives how long that took.
func (m *swarmNode) goes(other *swarmNode, how ...string) time.Duration {
	m.t.Helper()
	began := time.Now()
	var last string
	for !slices.Contains(how, last) {
		if time.Since(began) > patience {
			m.t.Errorf("the link from %s to %s is %q, want %q", m.host, other.host, last, how)
			break
		}
		time.Sleep(20 * time.Millisecond)
		last = m.how(other)
	}
	return time.Since(began)
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

// terminate ends a member as a service manager does. It has to end well, and soon.
func (m *swarmNode) terminate() {
	m.t.Helper()
	began := time.Now()
	if err := m.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Fatal(err)
	}
	if code := m.code(); code != 0 {
		m.t.Errorf("%s ends with code %d", m.host, code)
	}
	if took := time.Since(began); took > 5*time.Second {
		m.t.Errorf("%s takes %v to end", m.host, took)
	}
}
