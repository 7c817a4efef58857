// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/cicada/cicadatest"
	"github.com/seed5728abee/fathom/swarm/member"
)

// swarmFile is examples/swarm.toml; a test holds them together.
//
//go:embed demo/swarm.toml
var swarmFile []byte

const (
	// swarmPatience is how long anything may take that is to happen soon, on a busy machine.
	swarmPatience = 8 * time.Second
	// swarmHeals is how long the ring may be broken when a member is killed.
	swarmHeals = 3 * time.Second
)

var (
	// swarmOpen are the hosts on the open net, the first of which all join at.
	swarmOpen = []string{"seed", "east", "west"}
	// swarmHidden are those behind NATs.
	swarmHidden = []string{"laptop", "desktop", "desk", "phone"}
)

// swarmOld is the host with a peer of Cicada.
const swarmOld = "old"

// swarmDemo is the chapter's lab with a swarm in it.
type swarmDemo struct {
	*demo
	lab     *lab.Lab
	members map[string]*demoMember
	old     *cicadatest.Original
	told    chan error // has the outcome of the message to old
}

func swarmChapter(ctx context.Context, d *demo) error {
	topology, err := lab.Parse(swarmFile)
	if err != nil {
		return err
	}
	l, err := lab.Start(ctx, topology, lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	p := &swarmDemo{demo: d, lab: l, members: map[string]*demoMember{}, told: make(chan error, 1)}
	p.picture(swarmFile, "# Try it")

	ctx, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		for _, m := range p.members {
			m.wait()
		}
		if p.old != nil {
			p.old.Close()
		}
	}()
	for i, part := range []func(context.Context) error{p.join, p.ways, p.original, p.broadcasts, p.kill} {
		if i > 0 {
			p.say("")
		}
		if err := part(ctx); err != nil {
			return err
		}
	}
	p.say("")
	return nil
}

// at is the address of the member on a host of the open net.
func (p *swarmDemo) at(host string) netip.AddrPort {
	return netip.AddrPortFrom(p.lab.Host(host).Addr(), swarm.DefaultPort)
}

// join starts all members, and shows who has a place on the ring.
func (p *swarmDemo) join(ctx context.Context) error {
	began := time.Now()
	entry := p.at(swarmOpen[0]).String()
	if err := p.start(ctx, swarmOpen[0], "--listen", entry); err != nil {
		return err
	}
	first := p.members[swarmOpen[0]]
	if err := first.await(ctx, "it is ready", func() bool { return first.ready }); err != nil {
		return err
	}
	for _, host := range swarmOpen[1:] {
		if err := p.start(ctx, host, "--listen", p.at(host).String(), "--join", entry); err != nil {
			return err
		}
	}
	for _, host := range swarmHidden {
		if err := p.start(ctx, host, "--listen", "0.0.0.0:"+strconv.Itoa(swarm.DefaultPort), "--join", entry); err != nil {
			return err
		}
	}
	if err := p.startOld(ctx); err != nil {
		return err
	}
	for _, m := range p.members {
		if err := m.await(ctx, "it is ready", func() bool { return m.ready }); err != nil {
			return err
		}
	}
	p.heading(fmt.Sprintf("all join at %s, in %.1f s", swarmOpen[0], time.Since(began).Seconds()))
	for _, host := range slices.Concat(swarmOpen, swarmHidden) {
		s, err := p.members[host].state(ctx)
		if err != nil {
			return err
		}
		found := "on the ring"
		if s.Leaf {
			found = "no place; met through " + count(len(s.Hosts), "member")
		}
		truth, hidden := "on the open net", slices.Contains(swarmHidden, host)
		if hidden {
			truth = "behind a NAT"
		}
		p.check(host, found, truth, s.Leaf == hidden && hidden == (len(s.Hosts) > 0))
	}
	return p.ring(ctx, append([]string{swarmOld}, swarmOpen...), swarmPatience, "")
}

// start starts a member on a host.
func (p *swarmDemo) start(ctx context.Context, host string, flags ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	m := &demoMember{host: host, done: make(chan struct{}), answers: map[string]chan []byte{}, heard: map[string]int{}}
	m.cmd = p.lab.Host(host).Command(ctx, self, append([]string{"swarm", "node", "--control", "stdio"}, flags...)...)
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	go m.read(out)
	p.members[host] = m
	return nil
}

// startOld starts the peer of Cicada.
func (p *swarmDemo) startOld(ctx context.Context) error {
	at := p.at(swarmOld)
	var listener net.Listener
	err := p.lab.Host(swarmOld).Do(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp4", at.String())
		return err
	})
	if err != nil {
		return err
	}
	p.old = cicadatest.New(listener, cicadatest.Options{
		Dial: func(ctx context.Context, to netip.AddrPort) (conn net.Conn, err error) {
			err = p.lab.Host(swarmOld).Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, "tcp4", to.String())
				return err
			})
			return conn, err
		},
	})
	return p.old.Join(ctx, p.at(swarmOpen[0]))
}

// ring waits until hosts, and no others, are a ring, as each of the members among them sees it.
func (p *swarmDemo) ring(ctx context.Context, hosts []string, limit time.Duration, within string) error {
	slices.SortFunc(hosts, func(a, b string) int { return member.OfAddr(p.at(a)).Compare(member.OfAddr(p.at(b))) })
	names := map[netip.AddrPort]string{}
	for _, host := range hosts {
		names[p.at(host)] = host
	}
	truth := strings.Join(hosts, ", ")
	began := time.Now()
	found := ""
	for {
		after := map[string]string{} // as both of a pair agree
		before := map[string]string{}
		for _, host := range hosts {
			if host == swarmOld {
				n := p.old.Node()
				after[host], before[host] = names[n.Successor.Addr], names[n.Predecessor.Addr]
				continue
			}
			s, err := p.members[host].state(ctx)
			if err != nil {
				return err
			}
			if s.Succ != nil && s.Pred != nil {
				after[host], before[host] = names[*s.Succ], names[*s.Pred]
			}
		}
		walk := []string{hosts[0]}
		for len(walk) <= len(hosts) {
			last := walk[len(walk)-1]
			next := after[last]
			if next == "" || before[next] != last || next == hosts[0] {
				break
			}
			walk = append(walk, next)
		}
		found = strings.Join(walk, ", ")
		if found == truth || time.Since(began) > limit {
			break
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	agrees := found == truth
	if within != "" {
		found += fmt.Sprintf(", after %.2f s", time.Since(began).Seconds())
	}
	p.check("the ring, clockwise", found, truth+within, agrees)
	return nil
}

// ways shows how the links between members go.
func (p *swarmDemo) ways(ctx context.Context) error {
	p.heading("messages, both ways")
	go func() { // that takes the time that an original takes, which is long
		to := p.at(swarmOld)
		command := swarmCommand{Op: "send", Host: to.Addr().String(), Port: int(to.Port()), Data: latin1("laptop to old")}
		p.told <- p.members["laptop"].ask(ctx, command, nil)
	}()
	for _, pair := range []struct{ a, b, want, truth string }{
		{"laptop", "desktop", "direct", "one LAN"},
		{"laptop", "desk", "punched", "NATs that keep a port: a hole"},
		{"laptop", "phone", "circuit", "one at random: a circuit"},
		{"phone", "west", "direct", "west is on the open net"},
	} {
		a, b := p.members[pair.a], p.members[pair.b]
		began := time.Now()
		arrived := 0
		for _, way := range []struct{ from, to *demoMember }{{a, b}, {b, a}} {
			text := way.from.host + " to " + way.to.host
			if err := way.from.send(ctx, way.to, text); err != nil {
				return err
			}
			if err := way.to.await(ctx, "it hears "+text, func() bool { return way.to.heard[text] > 0 }); err != nil {
				return err
			}
			arrived += way.to.count(text)
		}
		took := time.Since(began)
		var how string
		for {
			var err error
			if how, err = a.how(ctx, b); err != nil {
				return err
			}
			if strings.HasPrefix(how, pair.want) || time.Since(began) > swarmPatience {
				break
			}
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
		p.check(pair.a+" and "+pair.b, fmt.Sprintf("%d in %.2f s; then %s", arrived, took.Seconds(), how), pair.truth,
			arrived == 2 && strings.HasPrefix(how, pair.want))
	}
	return nil
}

// original shows that a peer of Cicada is one of them.
func (p *swarmDemo) original(ctx context.Context) error {
	p.heading("messages, to and from old")
	laptop := p.members["laptop"]
	if err := <-p.told; err != nil {
		return err
	}
	for began := time.Now(); p.old.Got("laptop to old") == 0 && time.Since(began) < swarmPatience; {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	n := p.old.Got("laptop to old")
	p.check("old hears laptop", times(n), "once", n == 1)
	s, err := laptop.state(ctx)
	if err != nil {
		return err
	}
	if err := p.old.Send(s.ID, "old to laptop"); err != nil {
		return err
	}
	if err := laptop.await(ctx, "it hears old", func() bool { return laptop.heard["old to laptop"] > 0 }); err != nil {
		return err
	}
	p.check("laptop hears old", times(laptop.count("old to laptop")), "once", laptop.count("old to laptop") == 1)
	return nil
}

// broadcasts shows that a broadcast comes to all, and once.
func (p *swarmDemo) broadcasts(ctx context.Context) error {
	p.heading("broadcasts")
	if err := p.members["phone"].ask(ctx, swarmCommand{Op: "bcast", Data: latin1("phone to all")}, nil); err != nil {
		return err
	}
	if err := p.heardOnce(ctx, "phone", "phone to all", true); err != nil {
		return err
	}
	p.old.Broadcast("old to all")
	return p.heardOnce(ctx, swarmOld, "old to all", false)
}

// heardOnce waits until a broadcast has come to all but its sender, and shows how often.
func (p *swarmDemo) heardOnce(ctx context.Context, from, text string, old bool) error {
	began := time.Now()
	counts := func() (once, others int, rest string) {
		each := map[string]int{}
		for host, m := range p.members {
			each[host] = m.count(text)
		}
		if old {
			each[swarmOld] = p.old.Got(text)
		}
		delete(each, from)
		for host, n := range each {
			if n == 1 {
				once++
			} else {
				rest += fmt.Sprintf(", by %s %s", host, times(n))
			}
		}
		return once, len(each), rest
	}
	for {
		if once, others, _ := counts(); once == others || time.Since(began) > swarmPatience {
			break
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	if err := pause(ctx, settle/2); err != nil { // for what comes twice
		return err
	}
	once, others, rest := counts()
	p.check("of "+from, fmt.Sprintf("heard once by %d%s", once, rest), fmt.Sprintf("there are %d others", others), once == others)
	return nil
}

// kill shows that the ring closes when a member dies.
func (p *swarmDemo) kill(ctx context.Context) error {
	p.heading("east is killed")
	east := p.members["east"]
	if err := east.cmd.Process.Kill(); err != nil {
		return err
	}
	delete(p.members, "east")
	east.wait()
	rest := slices.DeleteFunc(append([]string{swarmOld}, swarmOpen...), func(host string) bool { return host == "east" })
	if err := p.ring(ctx, rest, swarmHeals, fmt.Sprintf(", within %.0f s", swarmHeals.Seconds())); err != nil {
		return err
	}
	if err := p.members["desk"].ask(ctx, swarmCommand{Op: "bcast", Data: latin1("desk to all")}, nil); err != nil {
		return err
	}
	if err := p.heardOnce(ctx, "desk", "desk to all", true); err != nil {
		return err
	}
	harm := p.old.Harm()
	found := "nothing"
	if len(harm) > 0 {
		found = strings.Join(harm, "; ")
	}
	p.check("what has broken old", found, "nothing", len(harm) == 0)
	return nil
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// demoMember is a member of the swarm, a process that is driven by its machine interface.
type demoMember struct {
	host string
	cmd  *lab.Cmd
	in   io.WriteCloser
	done chan struct{} // closed when it says no more

	mu      sync.Mutex // guards all that follows
	seq     int
	answers map[string]chan []byte
	ready   bool
	heard   map[string]int // how often each message came
}

// read takes in what the member says, until it ends.
func (m *demoMember) read(out io.Reader) {
	defer close(m.done)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l struct {
			Re    json.RawMessage `json:"re"`
			Event string          `json:"ev"`
			Data  latin1          `json:"data"`
		}
		if json.Unmarshal(lines.Bytes(), &l) != nil {
			continue
		}
		m.mu.Lock()
		switch l.Event {
		case "ready":
			m.ready = true
		case "recv":
			m.heard[string(l.Data)]++
		case "":
			if c := m.answers[string(l.Re)]; c != nil {
				c <- slices.Clone(lines.Bytes())
				delete(m.answers, string(l.Re))
			}
		}
		m.mu.Unlock()
	}
}

// wait waits for the end of a member that was killed, itself or with the context that it was started with.
func (m *demoMember) wait() {
	<-m.done
	_ = m.cmd.Wait() // that it was killed is no news
}

var errMemberEnded = errors.New("the program has ended")

// ask has the member obey a command. answer takes what it says, and may be nil.
func (m *demoMember) ask(ctx context.Context, command swarmCommand, answer any) error {
	said := make(chan []byte, 1)
	m.mu.Lock()
	m.seq++
	command.Seq = json.RawMessage(strconv.Itoa(m.seq))
	m.answers[string(command.Seq)] = said
	line, err := json.Marshal(command)
	if err == nil {
		_, err = m.in.Write(append(line, '\n'))
	}
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s on %s: %w", command.Op, m.host, err)
	}
	select {
	case line = <-said:
	case <-m.done:
		return fmt.Errorf("%s on %s: %w", command.Op, m.host, errMemberEnded)
	case <-ctx.Done():
		return ctx.Err()
	}
	var head swarmAnswer
	if err := json.Unmarshal(line, &head); err != nil {
		return err
	}
	if !head.OK {
		return fmt.Errorf("%s on %s: %s", command.Op, m.host, head.Error)
	}
	if answer != nil {
		return json.Unmarshal(line, answer)
	}
	return nil
}

func (m *demoMember) state(ctx context.Context) (s swarmState, err error) {
	err = m.ask(ctx, swarmCommand{Op: "state"}, &s)
	return s, err
}

// send sends to another member, by its address.
func (m *demoMember) send(ctx context.Context, to *demoMember, text string) error {
	s, err := to.state(ctx)
	if err != nil {
		return err
	}
	return m.ask(ctx, swarmCommand{Op: "send", Host: s.Addr.Addr().String(), Port: int(s.Addr.Port()), Data: latin1(text)}, nil)
}

// how says how the link to another member goes.
func (m *demoMember) how(ctx context.Context, to *demoMember) (string, error) {
	other, err := to.state(ctx)
	if err != nil {
		return "", err
	}
	s, err := m.state(ctx)
	for _, l := range s.Links {
		if l.ID == other.ID {
			return l.How, err
		}
	}
	return "no link", err
}

// await waits until something is so, which is asked with m.mu held.
func (m *demoMember) await(ctx context.Context, what string, is func() bool) error {
	for began := time.Now(); ; {
		m.mu.Lock()
		done := is()
		m.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-m.done:
			return fmt.Errorf("%s: %w", m.host, errMemberEnded)
		default:
		}
		if time.Since(began) > swarmPatience {
			return fmt.Errorf("%s: not within %v: %s", m.host, swarmPatience, what)
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
}

// count is how often a message came.
func (m *demoMember) count(text string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard[text]
}
