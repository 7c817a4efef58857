// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/seed5728abee/fathom/swarm"
	"github.com/seed5728abee/fathom/swarm/view"
)

// ringTick is how often the screen is drawn: dots should move.
const ringTick = 80 * time.Millisecond

// ringMode is what the next choice of a member means.
type ringMode uint8

const (
	ringSelect ringMode = iota
	ringJoin            // the selected one joins it
	ringLookup          // the selected one looks it up
)

// ringPanel is what stands beside the picture.
type ringPanel uint8

const (
	panelNone ringPanel = iota
	panelFingers
	panelPeers
)

// Messages to the model.
type (
	ringTicked time.Time
	ringLooked struct {
		ring view.Ring
		err  error
	}
	ringLookNow struct{}
	ringDone    struct{ text string } // an action has ended
)

// ringModel is the live view.
type ringModel struct {
	ctx      context.Context
	scene    *swarmScene
	interval time.Duration

	ring          view.Ring
	looking       bool
	now           time.Time
	width, height int
	canvas        *view.Canvas // as drawn last, for clicks
	mode          ringMode
	panel         ringPanel
	help          bool
	status        string
	hover         string
}

func newRingModel(ctx context.Context, s *swarmScene, interval time.Duration) *ringModel {
	return &ringModel{ctx: ctx, scene: s, interval: interval, now: time.Now(), looking: true, status: "arrows or the mouse select a member"}
}

func (m *ringModel) Init() tea.Cmd { return tea.Batch(m.tick(), m.look) }

func (m *ringModel) tick() tea.Cmd {
	return tea.Tick(ringTick, func(t time.Time) tea.Msg { return ringTicked(t) })
}

// look walks around the ring.
func (m *ringModel) look() tea.Msg {
	r, err := m.scene.look(m.ctx)
	return ringLooked{r, err}
}

// act does something in the background, and shows what came of it.
func (m *ringModel) act(what string, do func() (string, error)) tea.Cmd {
	m.status = what + " ..."
	return func() tea.Msg {
		text, err := do()
		if err != nil {
			text = what + ": " + err.Error()
		}
		return ringDone{text}
	}
}

func (m *ringModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case ringTicked:
		m.now = time.Time(msg)
		return m, m.tick()
	case ringLooked:
		m.looking = false
		if msg.err != nil {
			m.status = msg.err.Error()
		} else {
			m.take(msg.ring)
		}
		return m, tea.Tick(m.interval, func(time.Time) tea.Msg { return ringLookNow{} })
	case ringLookNow:
		if !m.looking {
			m.looking = true
			return m, m.look
		}
	case ringDone:
		m.status = msg.text
	case tea.MouseMotionMsg:
		m.hover = ""
		if id, ok := m.memberAt(msg.X, msg.Y); ok {
			m.hover = m.describe(id)
		}
	case tea.MouseClickMsg:
		if id, ok := m.memberAt(msg.X, msg.Y); ok {
			return m, m.choose(id)
		}
	case tea.KeyPressMsg:
		if m.help {
			m.help = false
			return m, nil
		}
		return m, m.key(msg.String())
	}
	return m, nil
}

// take shows a new look at the ring, with what was chosen in the old one.
func (m *ringModel) take(r view.Ring) {
	slices.SortFunc(r.Members, func(a, b view.Member) int { return a.ID.Compare(b.ID) })
	keep := func(id *swarm.Hash) *swarm.Hash {
		if id == nil || !slices.ContainsFunc(r.Members, func(o view.Member) bool { return o.ID == *id }) {
			return nil
		}
		return id
	}
	r.Selected, r.Cursor = keep(m.ring.Selected), keep(m.ring.Cursor)
	if r.Selected == nil {
		m.mode = ringSelect
	}
	m.ring = r
}

// memberAt gives the member at a place on the screen.
func (m *ringModel) memberAt(x, y int) (swarm.Hash, bool) {
	if m.canvas == nil {
		return swarm.Hash{}, false
	}
	return m.canvas.MemberAt(x, y-ringHeadLines)
}

func (m *ringModel) member(id swarm.Hash) *view.Member {
	for i := range m.ring.Members {
		if m.ring.Members[i].ID == id {
			return &m.ring.Members[i]
		}
	}
	return nil
}

func (m *ringModel) label(id swarm.Hash) string {
	if o := m.member(id); o != nil {
		return o.Label
	}
	return id.Short()
}

func (m *ringModel) describe(id swarm.Hash) string {
	o := m.member(id)
	if o == nil {
		return ""
	}
	return o.Label + ": " + o.Note
}

// choose selects a member, or does with it what the mode says.
func (m *ringModel) choose(id swarm.Hash) tea.Cmd {
	selected := m.ring.Selected
	mode := m.mode
	m.mode, m.ring.Cursor = ringSelect, nil
	switch mode {
	case ringJoin:
		from, to := *selected, m.label(id)
		return m.act("join", func() (string, error) { return m.scene.join(m.ctx, from, to) })
	case ringLookup:
		from := *selected
		return m.act("look up", func() (string, error) { return m.scene.lookup(m.ctx, &from, id) })
	default:
		m.ring.Selected = &id
		m.status = m.describe(id)
		return nil
	}
}

// step moves the selection, or the cursor where a member is being chosen for something.
func (m *ringModel) step(by int) {
	n := len(m.ring.Members)
	if n == 0 {
		return
	}
	from := m.ring.Selected
	if m.mode != ringSelect && m.ring.Cursor != nil {
		from = m.ring.Cursor
	}
	i := -1
	if from != nil {
		i = slices.IndexFunc(m.ring.Members, func(o view.Member) bool { return o.ID == *from })
	}
	if i < 0 && by < 0 {
		i = 0
	}
	id := m.ring.Members[((i+by)%n+n)%n].ID
	if m.mode == ringSelect {
		m.choose(id)
	} else {
		m.ring.Cursor = &id
	}
}

func (m *ringModel) key(key string) tea.Cmd {
	ring := m.ring
	selected := ring.Selected
	switch strings.ToLower(key) {
	case "q", "ctrl+c":
		return tea.Quit
	case "h", "?":
		m.help = true
	case "s", "esc":
		m.mode, m.ring.Cursor, m.panel = ringSelect, nil, panelNone
		m.status = "arrows or the mouse select a member"
	case "right", "down", "tab":
		m.step(1)
	case "left", "up", "shift+tab":
		m.step(-1)
	case "enter":
		if m.mode != ringSelect && m.ring.Cursor != nil {
			return m.choose(*m.ring.Cursor)
		}
	case "a":
		return m.act("add a member", func() (string, error) { return m.scene.add(m.ctx, ring) })
	case "r":
		return m.act("join all", func() (string, error) { return m.scene.joinAll(m.ctx, ring) })
	case "j", "l":
		if selected == nil {
			m.status = "select a member first"
			return nil
		}
		m.mode, m.status = ringJoin, m.label(*selected)+" joins: choose whom, with arrows and enter, or a click"
		if strings.ToLower(key) == "l" {
			m.mode, m.status = ringLookup, m.label(*selected)+" looks up: choose whom, with arrows and enter, or a click"
		}
	case "f":
		m.toggle(panelFingers)
	case "p":
		m.toggle(panelPeers)
	case "b":
		return m.act("broadcast", func() (string, error) { return m.scene.broadcast(m.ctx, selected) })
	case "d":
		if selected == nil {
			m.status = "select a member first"
			return nil
		}
		return m.act("leave", func() (string, error) { return m.scene.leave(m.ctx, *selected) })
	}
	return nil
}

func (m *ringModel) toggle(p ringPanel) {
	if m.panel == p {
		p = panelNone
	}
	m.panel = p
}

// ringKeys is the line of keys, and ringHelp the page that key h opens.
var (
	ringKeys = [][2]string{
		{"h", "help"}, {"a", "add"}, {"r", "join all"}, {"j", "join"}, {"l", "look up"}, {"b", "broadcast"}, {"d", "leave"}, {"f", "fingers"}, {"p", "peers"}, {"q", "quit"},
	}
	ringHelp = [][2]string{
		{"arrows", "select a member; a click does too"},
		{"a", "add a member here; it joins one of the others"},
		{"r", "all members here that are alone join others, at random"},
		{"j", "the selected member joins the one chosen next"},
		{"l", "the selected member looks up the one chosen next"},
		{"b", "the selected member broadcasts"},
		{"d", "the selected member leaves"},
		{"f", "the selected member's fingers"},
		{"p", "the selected member's peers"},
		{"s esc", "back to selecting"},
		{"q", "quit"},
		{"", ""},
		{"◉", "runs here: only those can be made to join and leave"},
		{"●", "runs elsewhere; ■ is one of Cicada's peers, ✗ does not answer"},
		{"", "Yellow is alone, green in a ring, blue selected. Its links: blue to its successor,"},
		{"", "red to its predecessor, magenta where they are one, ochre to others that it knows."},
		{"", "Letters that move are messages: L a lookup, P a push of a broadcast, D data, ..."},
	}
)

// ringHeadLines is how many lines stand above the picture, and ringFootLines below.
const (
	ringHeadLines = 1
	ringFootLines = 2
	// ringPanelWidth is how wide the panel beside it is, in columns.
	ringPanelWidth = 44
)

func (m *ringModel) View() tea.View {
	head := fmt.Sprintf("%s, %d here", count(len(m.ring.Members), "member"), len(m.scene.peers()))
	if m.scene.watcher != nil {
		head = "the ring of " + m.scene.entries[0] + ": " + head
	}
	clock := m.now.Format("15:04:05")
	lines := []string{mtrTitle.Render(head) + strings.Repeat(" ", max(1, m.width-ansi.StringWidth(head)-len(clock))) + clock}
	room := max(m.height-ringHeadLines-ringFootLines, 0)
	if m.help {
		lines = append(lines, mtrFaint.Render("Any key goes back."))
		for _, k := range ringHelp {
			lines = append(lines, "  "+mtrKey.Render(fmt.Sprintf("%-8s", k[0]))+k[1])
		}
	} else {
		lines = append(lines, m.picture(room)...)
		status := m.status
		if m.hover != "" {
			status = m.hover
		}
		keys := make([]string, len(ringKeys))
		for i, k := range ringKeys {
			keys[i] = mtrKey.Render(k[0]) + " " + k[1]
		}
		lines = append(lines, printable(status), strings.Join(keys, "  "))
	}
	lines = lines[:min(len(lines), max(m.height, 0))]
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], m.width, "")
	}
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	v.MouseMode = tea.MouseModeAllMotion
	v.WindowTitle = "fathom swarm view"
	return v
}

// picture gives the lines of the ring, and of the panel beside it.
func (m *ringModel) picture(height int) []string {
	width := m.width
	var panel []string
	if m.panel != panelNone && width >= 2*ringPanelWidth {
		width -= ringPanelWidth
		panel = m.panelLines(height)
	}
	r := m.ring
	r.Dots = m.scene.onTheirWay(m.now)
	m.canvas = r.Draw(width, height)
	if height == 0 {
		return nil
	}
	lines := strings.Split(m.canvas.ANSI(), "\n")
	for i := range panel {
		if i < len(lines) {
			lines[i] += panel[i]
		}
	}
	return lines
}

// panelLines lists the fingers or peers of the selected member.
func (m *ringModel) panelLines(height int) []string {
	id := m.ring.Selected
	if id == nil {
		return []string{mtrFaint.Render("select a member")}
	}
	title, rows := "Fingers of "+m.label(*id), []string(nil)
	if m.panel == panelPeers {
		title = "Peers of " + m.label(*id)
	}
	p := m.scene.local(*id)
	switch {
	case p == nil: // it tells its neighbours only
		if o := m.member(*id); o != nil {
			for _, list := range []struct {
				name string
				ids  []swarm.Hash
			}{{"before", o.Predecessors}, {"after", o.Successors}} {
				for _, other := range list.ids {
					rows = append(rows, fmt.Sprintf("%-7s %s", list.name, m.label(other)))
				}
			}
		}
		title = "Neighbours of " + m.label(*id)
	case m.panel == panelFingers:
		s := p.State()
		for _, list := range []struct {
			name    string
			members []swarm.Member
		}{{"before", s.Predecessors}, {"after", s.Successors}, {"ahead", s.Forward}, {"back", s.Backward}, {"host", s.Hosts}} {
			for _, o := range list.members {
				rows = append(rows, fmt.Sprintf("%-7s %-21s %s", list.name, memberName(o), o.ID.Short()))
			}
		}
	default:
		for _, l := range p.State().Peers {
			rows = append(rows, fmt.Sprintf("%-21s %-8s %s", memberName(l.Member), l.How, l.RTT.Round(10*time.Microsecond)))
		}
	}
	lines := []string{mtrHeading.Render(title)}
	for _, row := range rows {
		lines = append(lines, printable(row))
	}
	if len(rows) == 0 {
		lines = append(lines, mtrFaint.Render("none"))
	}
	if len(lines) > height {
		lines = append(lines[:max(height-1, 0)], mtrFaint.Render("and more"))
	}
	return lines
}
