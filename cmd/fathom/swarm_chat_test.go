// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/seed5728abee/fathom/swarm"
)

// testChat is a messenger that keeps what it shows.
type testChat struct {
	*chat
	peer  *fakePeer
	shown []string
}

func newTestChat() *testChat {
	p := newFakePeer("192.0.2.1:49610")
	c := &testChat{chat: newChat(p, "alice", 0), peer: p}
	c.print = func(name, text string) { c.shown = append(c.shown, name+": "+text) }
	return c
}

// hears shows a message, and returns what came of it.
func (c *testChat) hears(from int, broadcast bool, data string) string {
	c.shown = nil
	m := swarm.Member{ID: swarm.Hash{byte(from)}, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(from)}), 49610), Original: from >= 100}
	c.show(swarm.Message{From: m, Data: []byte(data), Broadcast: broadcast})
	return strings.Join(c.shown, "\n")
}

// does obeys a line, and returns what was shown and what the peer was told.
func (c *testChat) does(t *testing.T, line string) (shown, told string) {
	c.shown, c.peer.calls = nil, nil
	c.obey(t.Context(), line)
	return strings.Join(c.shown, "\n"), strings.Join(c.peer.told(), "\n")
}

func TestChatShows(t *testing.T) {
	t.Parallel()
	c := newTestChat()
	for _, tt := range []struct {
		from      int
		broadcast bool
		data      string
		want      string
	}{
		{2, true, `{"message":"hello","sender":"bob","to":""}`, "bob: hello"},
		{2, false, `{"message":"psst","sender":"bob","to":"alice"}`, "bob: (to you) psst"},
		{100, false, `{"sender": "carl", "message": "psst", "to": "alice"}`, "carl: (to you, not encrypted) psst"},
		{100, true, `{"sender": "carl", "message": "psst", "to": "alice"}`, "carl: (to alice, said to everybody) psst"},
		{2, true, `{"message":"x","sender":"bob","to":"#go"}`, ""}, // not joined
		{2, true, `{"message":"\u001b[2J\u202e","sender":"b\u0007b","to":""}`, `b\ab: \x1b[2J\u202e`},
		{2, true, `{"message":"x","sender":"bob","more":[1]}`, "bob: x"},
		{2, true, `{"message":5,"sender":"bob","to":""}`, "***: 192.0.2.2:49610 sent something else than a message: 36 bytes"},
		{2, true, "\xff\x00", "***: 192.0.2.2:49610 sent something else than a message: 2 bytes"},
		// Two who call themselves alike are told apart, each once.
		{3, true, `{"message":"I am bob","sender":"bob","to":""}`, "***: another one calls himself bob: bob~03000000\nbob: I am bob"},
		{3, true, `{"message":"really","sender":"bob","to":""}`, "bob: really"},
		{4, true, `{"message":"I am you","sender":"alice","to":""}`, "***: another one calls himself alice: alice~04000000\nalice: I am you"},
	} {
		if got := c.hears(tt.from, tt.broadcast, tt.data); got != tt.want {
			t.Errorf("%s: shown %q, want %q", tt.data, got, tt.want)
		}
	}
}

func TestChatCommands(t *testing.T) {
	t.Parallel()
	c := newTestChat()
	c.hears(2, true, `{"message":"x","sender":"bob","to":""}`)
	c.hears(3, true, `{"message":"x","sender":"bob","to":""}`)
	c.hears(100, true, `{"message":"x","sender":"carl","to":""}`)
	id := func(n byte) string { return swarm.Hash{n}.String() }
	for _, tt := range []struct{ line, shown, told string }{
		{"  ", "", ""},
		{"hello <all>", "alice: hello <all>", `broadcast "{\"message\":\"hello <all>\",\"sender\":\"alice\",\"to\":\"\"}"`},
		{"/join go", "***: You speak in #go now.", ""},
		{"hi", "alice: #go hi", `broadcast "{\"message\":\"hi\",\"sender\":\"alice\",\"to\":\"#go\"}"`},
		{"/JOIN #rust", "***: You speak in #rust now.", ""},
		{"/part", "***: You have left #rust, and speak in #go now.", ""},
		{"/part rust", "***: you are in no such channel", ""},
		{"/part go", "***: You have left #go, and speak to everybody now.", ""},
		{"/part", "***: you are in no such channel", ""},
		{"/join a b", `***: channel: the name "a b" is not one word`, ""},
		{"/msg carl psst now", "alice: (to carl, not encrypted) psst now", "send " + id(100) + ` "{\"message\":\"psst now\",\"sender\":\"alice\",\"to\":\"carl\"}"`},
		{"/msg bob~03 x", "alice: (to bob~03) x", "send " + id(3) + ` "{\"message\":\"x\",\"sender\":\"alice\",\"to\":\"bob~03\"}"`},
		{"/msg bob~05 x", "***: nobody known is bob~05", ""},
		{"/msg dora x", "alice: (to dora) x", `send dora "{\"message\":\"x\",\"sender\":\"alice\",\"to\":\"dora\"}"`},
		{"/msg 192.0.2.7:1 x", "alice: (to 192.0.2.7:1) x", `send 192.0.2.7:1 "{\"message\":\"x\",\"sender\":\"alice\",\"to\":\"192.0.2.7:1\"}"`},
		{"/msg bob", "***: /msg takes a user and a text", ""},
		{"/connect", "***: /connect takes host:port", ""},
		{"/connect here", "***: here: want host:port", ""},
		{"/connect h:1", "***: Joining h:1 ...\n***: Connected as 192.0.2.1:49610.", "connect h:1"},
		{"/dance", "***: there is no /dance: /help lists the commands", ""},
		{"/quit", "***: Quitting.", ""},
	} {
		if shown, told := c.does(t, tt.line); shown != tt.shown || told != tt.told {
			t.Errorf("%s:\nshown %q, want %q\ntold  %s, want %s", tt.line, shown, tt.shown, told, tt.told)
		}
	}
	if shown, told := c.does(t, "/msg bob x"); told != "" || !strings.Contains(shown, "bob~02000000") || !strings.Contains(shown, "bob~03000000") {
		t.Errorf("a name of two: %q, %s", shown, told)
	}
	c.duplicates = 2
	if _, told := c.does(t, "/msg carl x"); !strings.HasSuffix(told, "by 2 more") {
		t.Errorf("with resilience: %s", told)
	}
	c.peer.fail = swarm.ErrAlone
	if shown, _ := c.does(t, "anybody?"); shown != "***: "+swarm.ErrAlone.Error() {
		t.Errorf("alone: %q", shown)
	}
	if shown, _ := c.does(t, strings.Repeat("x", chatMaxText+1)); !strings.Contains(shown, "longer than") {
		t.Errorf("too long: %q", shown)
	}
	// In a channel, what is said there is shown.
	c.does(t, "/join go")
	if got := c.hears(2, true, `{"message":"x","sender":"bob","to":"#go"}`); got != "bob: #go x" {
		t.Errorf("in a channel: %q", got)
	}
}

// Strangers cannot make the messenger remember without bound.
func TestChatForgets(t *testing.T) {
	t.Parallel()
	c := newTestChat()
	for i := range chatMaxUsers + 100 {
		c.hears(2, true, fmt.Sprintf(`{"message":"x","sender":"u%d","to":""}`, i))
	}
	for i := range 100 {
		c.hears(i, true, `{"message":"x","sender":"u1","to":""}`)
	}
	if len(c.known) != chatMaxUsers || len(c.known["u1"]) != chatMaxNamesakes {
		t.Errorf("%d names, %d namesakes", len(c.known), len(c.known["u1"]))
	}
}

func TestChatLines(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text string
		width      int
		want       string
	}{
		{"bob", "hello", 0, "             bob | hello"},
		{"abcdefghijklmnopqr", "hello", 80, "abcdefghijklmno… | hello"},
		{"***", "one two three four", 36, "             *** | one two three\n                 | four"},
		{"日本", "x", 80, "            日本 | x"},
		{"bob", "abcdefghijklmnopqrstuvwxyz", 1, "             bob | abcdefghijklmnop\n                 | qrstuvwxyz"},
		{"bob", "", 80, "             bob | "},
	} {
		lines := chatLines(tt.name, tt.text, tt.width)
		for i := range lines {
			if strings.TrimSpace(tt.text) != "" {
				lines[i] = strings.TrimRight(lines[i], " ")
			}
		}
		if got := strings.Join(lines, "\n"); got != tt.want {
			t.Errorf("%s in %d columns:\n%s\nwant\n%s", tt.text, tt.width, got, tt.want)
		}
	}
}

func FuzzDecodeChatMessage(f *testing.F) {
	f.Add([]byte(`{"message":"hello","sender":"bob","to":""}`))
	f.Add([]byte(`{"sender": "b\u00f6b", "message": "", "to": "#go"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeChatMessage(data)
		if err != nil {
			return
		}
		if again, err := decodeChatMessage(m.encode()); err == nil && again != m {
			t.Errorf("%+v became %+v", m, again)
		}
		if shown := printable(m.Text); strings.ContainsAny(shown, "\x1b\n\r\x00\u202e") {
			t.Errorf("%q is shown as it is", shown)
		}
	})
}

// The line to write in: editing, history, and what was said in order.
func TestChatModel(t *testing.T) {
	t.Parallel()
	m := &chatModel{prompt: "alice", lines: make(chan string, 2), width: 60}
	press := func(keys ...string) {
		for _, k := range keys {
			msg := tea.KeyPressMsg{Text: k}
			if code, ok := map[string]rune{"enter": tea.KeyEnter, "up": tea.KeyUp, "down": tea.KeyDown, "left": tea.KeyLeft, "right": tea.KeyRight, "backspace": tea.KeyBackspace, "delete": tea.KeyDelete, "home": tea.KeyHome}[k]; ok {
				msg = tea.KeyPressMsg{Code: code}
			} else if rest, ok := strings.CutPrefix(k, "ctrl+"); ok {
				msg = tea.KeyPressMsg{Code: rune(rest[0]), Mod: tea.ModCtrl}
			}
			m.Update(msg)
		}
	}
	line := func() string {
		t.Helper()
		select {
		case line := <-m.lines:
			return line
		default:
			return "nothing"
		}
	}
	press("h", "é", "y", "left", "left", "delete", "e", "enter")
	if got := line(); got != "hey" {
		t.Errorf("entered %q", got)
	}
	press("o", "n", "e", " ", "t", "w", "o", "ctrl+w", "2", "home", "0", "enter")
	if got := line(); got != "0one 2" {
		t.Errorf("entered %q", got)
	}
	press("up", "up", "!", "enter")
	if got := line(); got != "hey!" {
		t.Errorf("recalled %q", got)
	}
	press("up", "down", "enter", " ", "enter")
	if got := line(); got != "nothing" {
		t.Errorf("entered %q", got)
	}
	m.Update(tea.PasteMsg{Content: "two\nlines\x1b"})
	if got := ansi.Strip(m.View().Content); got != "           alice >  two lines" {
		t.Errorf("the line is %q", got)
	}
	press("ctrl+u")
	press(slices.Repeat([]string{"0123456789"}, 10)...)
	if got := m.View(); ansi.StringWidth(got.Content) > 60 || got.Cursor.X >= 60 || !strings.HasSuffix(got.Content, "0123456789") {
		t.Errorf("a long line is %q, with the cursor at %d", got.Content, got.Cursor.X)
	}
	// What is said while something is being printed waits for it.
	if _, cmd := m.Update(chatSaid{"bob", "one"}); cmd == nil {
		t.Error("nothing is printed")
	}
	for _, text := range []string{"two", "three"} {
		if _, cmd := m.Update(chatSaid{"bob", text}); cmd != nil {
			t.Error("printed at once: it may overtake")
		}
	}
	if _, cmd := m.Update(chatPrinted{}); cmd == nil || len(m.waiting) != 0 {
		t.Errorf("%q still waits", m.waiting)
	}
	if _, cmd := m.Update(chatPrinted{}); cmd != nil || m.printing {
		t.Error("printing for ever")
	}
}
