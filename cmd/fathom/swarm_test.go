// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/view"
)

// wholeRing gives what a walk around a ring of n members brings.
func wholeRing(n int) []swarm.Neighbourhood {
	m := func(i int) swarm.Member {
		i = (i%n + n) % n
		return swarm.Member{ID: swarm.Hash{byte(i + 1)}, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 49610)}
	}
	var members []swarm.Neighbourhood
	for i := range n {
		nb := swarm.Neighbourhood{Self: m(i), RTT: time.Millisecond}
		if n > 1 {
			nb.Successors, nb.Predecessors = []swarm.Member{m(i + 1)}, []swarm.Member{m(i - 1)}
		}
		members = append(members, nb)
	}
	return members
}

func TestCheckRing(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 10} {
		if problems := checkRing(wholeRing(n)); len(problems) > 0 {
			t.Errorf("a whole ring of %d: %v", n, problems)
		}
	}
	for what, tt := range map[string]struct {
		spoil func(r []swarm.Neighbourhood)
		want  string
	}{
		"dead":              {func(r []swarm.Neighbourhood) { r[2].Successors, r[2].Predecessors = nil, nil }, "[{2 does not answer}]"},
		"wrong predecessor": {func(r []swarm.Neighbourhood) { r[2].Predecessors[0] = r[4].Self }, "[{2 names 192.0.2.5:49610 as its predecessor, not 192.0.2.2:49610}]"},
		"wrong successor":   {func(r []swarm.Neighbourhood) { r[4].Successors[0] = r[1].Self }, "[{4 names 192.0.2.2:49610 as its successor, not 192.0.2.1:49610}]"},
		"no successor":      {func(r []swarm.Neighbourhood) { r[4].Successors = nil }, "[{4 names 192.0.2.5:49610 as its successor, not 192.0.2.1:49610}]"},
		"disorder": {
			func(r []swarm.Neighbourhood) { r[1].Self, r[2].Self = r[2].Self, r[1].Self },
			"is not between its neighbours",
		},
	} {
		r := wholeRing(5)
		tt.spoil(r)
		if got := fmt.Sprint(checkRing(r)); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s, want %s", what, got, tt.want)
		}
	}
	var b bytes.Buffer
	r := wholeRing(3)
	r[1].Predecessors[0].Addr = netip.AddrPort{}
	r[1].Predecessors[0].ID = swarm.Hash{0xee}
	if err := printRing(&b, r, checkRing(r)); err != nil || !strings.HasSuffix(b.String(),
		"2 (192.0.2.2:49610) names ee000000 as its predecessor, not 192.0.2.1:49610\n3 members, the ring is not whole\n") {
		t.Errorf("printed\n%s", b.String())
	}
}

func TestSwarmKey(t *testing.T) {
	t.Parallel()
	id := swarm.HashOf("foo").String()
	for in, want := range map[string]string{"foo": id, id: id, strings.ToUpper(id): id, id[1:]: swarm.HashOf(id[1:]).String(), "": swarm.HashOf("").String()} {
		if got := swarmKey(in).String(); got != want {
			t.Errorf("%q is at %s, want %s", in, got, want)
		}
	}
}

// ringInProcess gives members in one ring, on this host.
func ringInProcess(t *testing.T, n int) []*swarm.Peer {
	t.Helper()
	var peers []*swarm.Peer
	for i := range n {
		p := swarm.New(swarm.Options{Name: fmt.Sprint("member", i), Reachable: true})
		if err := p.Bind(t.Context(), "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		if i > 0 {
			if err := p.Connect(t.Context(), peers[0].Addr().String()); err != nil {
				t.Fatal(err)
			}
		}
		peers = append(peers, p)
	}
	return peers
}

// The commands that ask, with a ring of three.
func TestSwarmCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	t.Parallel()
	peers := ringInProcess(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	entry := peers[1].Addr().String()
	run := func(args ...string) (*testApp, int) {
		ta := newTestApp(nil)
		ta.stdin = strings.NewReader("from standard input")
		return ta, ta.fathom(ctx, append(append([]string{"swarm"}, args...), "--join", entry)...)
	}
	var doc ringDocument
	for deadline := time.Now().Add(20 * time.Second); ; {
		ta, code := run("ring", "--json")
		if err := json.Unmarshal(ta.out.Bytes(), &doc); err != nil {
			t.Fatalf("exit code %d: %v: %s%s", code, err, ta.out.String(), ta.err.String())
		}
		if doc.Whole && code == exitDone && len(doc.Members) == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no whole ring: %+v", doc)
		}
	}
	if ta, code := run("ring"); code != exitDone || !strings.HasSuffix(ta.out.String(), "3 members, the ring is whole\n") {
		t.Errorf("ring: %d\n%s%s", code, ta.out.String(), ta.err.String())
	}
	owner := slices.MinFunc(peers, func(a, b *swarm.Peer) int {
		return swarm.HashOf("key").Distance(a.ID()).Compare(swarm.HashOf("key").Distance(b.ID()))
	})
	ta, code := run("lookup", "--json", "key")
	var found lookupDocument
	if err := json.Unmarshal(ta.out.Bytes(), &found); err != nil || code != exitDone || found.Owner.ID != owner.ID() || found.Key != swarm.HashOf("key") || len(found.Path) != found.Hops {
		t.Errorf("lookup: %d %s%s", code, ta.out.String(), ta.err.String())
	}
	if ta, code := run("lookup", "key"); code != exitDone || !strings.Contains(ta.out.String(), owner.ID().String()) {
		t.Errorf("lookup: %d %s%s", code, ta.out.String(), ta.err.String())
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"send", peers[2].Addr().String(), "a", "b"}, "a b"},
		{[]string{"send", peers[2].ID().String()}, "from standard input"},
		{[]string{"send", "member2", "by name", "--json"}, "by name"},
		{[]string{"broadcast", "to", "all"}, "to all"},
	} {
		if ta, code := run(tt.args...); code != exitDone || ta.out.Len() == 0 {
			t.Errorf("%q: %d %s%s", tt.args, code, ta.out.String(), ta.err.String())
			continue
		}
		if m, err := peers[2].Recv(ctx); err != nil || string(m.Data) != tt.want {
			t.Errorf("%q: got %q, %v", tt.args, m.Data, err)
		}
	}
	if ta, code := run("send", "nobody-of-that-name", "x"); code != exitFailed || !strings.Contains(ta.err.String(), "no such member") {
		t.Errorf("send to nobody: %d %s", code, ta.err.String())
	}
	svg := filepath.Join(t.TempDir(), "ring.svg")
	if ta, code := run("view", "--svg", svg); code != exitDone {
		t.Errorf("view: %d %s", code, ta.err.String())
	}
	if text, err := os.ReadFile(svg); err != nil || strings.Count(string(text), "<title>") != 3 {
		t.Errorf("the picture: %v\n%s", err, text)
	}
	ta, code = run("view", "--once")
	for _, p := range peers {
		if !strings.Contains(ta.out.String(), p.Addr().String()) || code != exitDone {
			t.Errorf("no %s in the picture: %d %s\n%s", p.Addr(), code, ta.err.String(), ta.out.String())
		}
	}
}

func TestReplaceFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "ring.svg")
	for _, text := range []string{"one", "two"} {
		if err := replaceFile(name, func(w io.Writer) error { _, err := io.WriteString(w, text); return err }); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != text {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if err := replaceFile(name, func(io.Writer) error { return io.ErrShortWrite }); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a failure to write: %v", err)
	}
	files, err := os.ReadDir(filepath.Dir(name))
	if got, readErr := os.ReadFile(name); err != nil || readErr != nil || string(got) != "two" || len(files) != 1 {
		t.Errorf("after the failure: %q, %v, %v", got, files, err)
	}
}

// A member without a program behind it takes in what is sent to it, and gets into its swarm when there is one.
func TestSwarmDaemon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newTestApp(nil)
		p := newFakePeer("192.0.2.1:49610")
		ctx, cancel := context.WithCancel(t.Context())
		go a.discard(ctx, p)
		for range 100 {
			p.inbox <- swarm.Message{}
		}
		p.fail = swarm.ErrNoEntry
		began, tried, joined := time.Now(), make(chan struct{}), make(chan struct{})
		go func() {
			a.keepJoining(ctx, p, []string{"192.0.2.2:1", "192.0.2.3:1"}, tried)
			close(joined)
		}()
		<-tried
		time.Sleep(time.Minute)
		if n := len(p.told()); n < 6 || n > 12 || p.told()[0] != "connect 192.0.2.2:1 192.0.2.3:1" {
			t.Errorf("tried %d times in a minute: %q", n, p.told()[0])
		}
		p.mu.Lock()
		p.fail = nil
		p.mu.Unlock()
		<-joined
		if took := time.Since(began); took > time.Minute+swarmJoinMost {
			t.Errorf("joined after %v", took)
		}
		cancel()
		synctest.Wait()
	})
}

// The live view, with members that run here.
func TestRingModel(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := newSwarmScene(swarm.Options{}, nil, 20*time.Second)
	t.Cleanup(s.close)
	if err := s.begin(ctx, 4); err != nil {
		t.Fatal(err)
	}
	m := newRingModel(ctx, s, time.Second)
	m.Update(tea.WindowSizeMsg{Width: 120, Height: 40})
	look := func() { m.Update(m.look()) }
	// press gives keys, and waits for what they begin.
	press := func(keys ...string) {
		for _, k := range keys {
			msg := tea.KeyPressMsg{Text: k, Code: []rune(k)[0]}
			if code, ok := map[string]rune{"right": tea.KeyRight, "left": tea.KeyLeft, "enter": tea.KeyEnter, "esc": tea.KeyEscape}[k]; ok {
				msg = tea.KeyPressMsg{Code: code}
			}
			if _, cmd := m.Update(msg); cmd != nil {
				m.Update(cmd())
			}
		}
		look()
	}
	screen := func() string { return ansi.Strip(m.View().Content) }
	states := func() map[view.State]int {
		found := make(map[view.State]int)
		for _, o := range m.ring.Members {
			found[o.State]++
		}
		return found
	}
	look()
	if got := states(); got[view.Alone] != 4 {
		t.Fatalf("at the start: %v", got)
	}
	press("right", "j", "right", "enter")
	if got := states(); got[view.InRing] != 2 || !strings.Contains(m.status, "joined") {
		t.Errorf("two joined: %v, %s", got, m.status)
	}
	press("r")
	if got := states(); got[view.InRing] != 4 {
		t.Errorf("all joined: %v, %s", got, m.status)
	}
	press("a")
	if got := states(); got[view.InRing] != 5 {
		t.Errorf("one more: %v, %s", got, m.status)
	}
	press("b")
	if !strings.Contains(m.status, "reached 4 of 4 others") {
		t.Errorf("broadcast: %s", m.status)
	}
	if dots := s.onTheirWay(time.Now()); len(dots) == 0 {
		t.Error("no messages on their way")
	}
	press("l", "left", "enter")
	if !strings.Contains(m.status, "hop") || !strings.Contains(m.status, "ms") {
		t.Errorf("lookup: %s", m.status)
	}
	press("f")
	if !strings.Contains(screen(), "Fingers of") || !strings.Contains(screen(), "after") {
		t.Errorf("no fingers in\n%s", screen())
	}
	press("p")
	if !strings.Contains(screen(), "Peers of") || !strings.Contains(screen(), "direct") {
		t.Errorf("no peers in\n%s", screen())
	}
	press("esc", "d")
	if got := states(); got[view.Alone] != 1 || !strings.Contains(m.status, "has left") {
		t.Errorf("one left: %v, %s", got, m.status)
	}
	// A click where a member stands selects it.
	screen()
	for i, line := range strings.Split(screen(), "\n") {
		if x := strings.IndexRune(line, '◉'); x >= 0 {
			m.Update(tea.MouseClickMsg{X: len([]rune(line[:x])), Y: i})
			break
		}
	}
	if top := m.ring.Members[0].ID; m.ring.Selected == nil || *m.ring.Selected != top {
		t.Errorf("the click selects %v, not the topmost", m.ring.Selected)
	}
	for _, size := range []tea.WindowSizeMsg{{Width: 20, Height: 5}, {Width: 1, Height: 1}, {}} {
		m.Update(size)
		if got := strings.Count(screen(), "\n") + 1; size.Height > 0 && got > size.Height {
			t.Errorf("%d lines on a screen of %d", got, size.Height)
		}
	}
	m.Update(tea.WindowSizeMsg{Width: 120, Height: 40})
	press("h")
	if !strings.Contains(screen(), "Any key goes back") {
		t.Errorf("no help in\n%s", screen())
	}
	press("x")
	if _, cmd := m.Update(tea.KeyPressMsg{Text: "q", Code: 'q'}); cmd == nil {
		t.Error("q does nothing")
	}
}
