// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/trace"
)

// mtrTick is how often the screen is drawn.
const mtrTick = 200 * time.Millisecond

// mtrTickMsg tells the model to look at the trace.
type mtrTickMsg time.Time

// What the lines of hops show. Key d goes from one to the next.
const (
	mtrShowTable  = iota // statistics
	mtrShowLosses        // a mark for each probe
	mtrShowBars          // a bar for each probe, as high as its time is long
	mtrDisplays          // how many there are
)

// mtrJitterFields are the columns that key j changes to and from, as in mtr.
const mtrJitterFields = "DR AGJMXI"

// mtrModel is the live view.
type mtrModel struct {
	ctx     context.Context
	session *mtrSession
	target  string
	source  string

	labels         mtrLabels
	names          *trace.Annotator // what key n turns on; labels.names is nil while off
	mpls           bool
	fields, others []trace.Field // others is what key j changes to
	display        int

	width, height int
	scrolled      int // hops above the screen
	help          bool
	prompt        *mtrPrompt
	message       string // an answer to the last key
	hops          []trace.HopStats
	now           time.Time
	err           error // why the trace broke
}

// mtrPrompt asks for a value in the line of keys.
type mtrPrompt struct {
	question, value string
	edited          bool // a key has been typed: until then a character replaces the value
	accept          func(string) error
}

// mtrPromptLength is how many characters a value may have.
const mtrPromptLength = 40

func (m *mtrModel) Init() tea.Cmd { return m.tick() }

func (m *mtrModel) tick() tea.Cmd {
	return tea.Tick(mtrTick, func(t time.Time) tea.Msg { return mtrTickMsg(t) })
}

func (m *mtrModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case mtrTickMsg:
		m.now = time.Time(msg)
		m.hops = m.session.trace.Snapshot()
		if over, err := m.session.over(); over {
			m.err = err
			return m, tea.Quit
		}
		return m, m.tick()
	case tea.KeyPressMsg:
		switch {
		case msg.String() == "ctrl+c":
			return m, tea.Quit
		case m.prompt != nil:
			m.answer(msg)
			return m, nil
		case m.help:
			m.help = false
			return m, nil
		}
		return m, m.key(msg.String())
	}
	return m, nil
}

// key obeys a key as mtr does.
func (m *mtrModel) key(key string) tea.Cmd {
	m.message = ""
	req, opts := m.session.req, m.session.opts
	switch key {
	case "q":
		return tea.Quit
	case "?", "h":
		m.help = true
	case "p":
		m.session.pause(true)
	case "space", " ":
		m.session.pause(false)
	case "r":
		m.session.reset()
		m.hops = m.session.trace.Snapshot()
	case "d":
		m.display = (m.display + 1) % mtrDisplays
	case "n":
		if m.labels.names == nil {
			m.labels.names = m.names
		} else {
			m.labels.names = nil
		}
	case "e":
		m.mpls = !m.mpls
	case "j":
		m.fields, m.others = m.others, m.fields
	case "z":
		m.labels.toggleFact()
	case "y":
		m.labels.nextFact()
	case "u":
		m.toggleProtocol(probe.UDP)
	case "t":
		m.toggleProtocol(probe.TCP)
	case "+":
		m.scrolled += max(1, m.height/2)
	case "-":
		m.scrolled = max(0, m.scrolled-max(1, m.height/2))
	case "o":
		letters := make([]byte, len(m.fields))
		for i, f := range m.fields {
			letters[i] = byte(f)
		}
		m.ask("Columns ("+trace.AllFields+", space for a gap)", string(letters), func(s string) error {
			fields, err := trace.ParseFields(s)
			if err == nil {
				m.fields = fields
			}
			return err
		})
	case "i":
		m.ask("Interval", opts.Interval.String(), func(s string) error {
			d, err := parseDuration(s)
			if err != nil {
				return err
			}
			if err := checkMtrInterval(d); err != nil {
				return err
			}
			return m.change(func(_ *probe.Request, o *trace.ContinuousOptions) { o.Interval = d })
		})
	case "s":
		m.askNumber("Packet size in bytes", req.Size, 0, probe.MaxSize, func(n int) error {
			return m.change(func(r *probe.Request, _ *trace.ContinuousOptions) { r.Size = n })
		})
	case "b":
		m.askNumber("Byte that fills the packets", int(req.Pattern), 0, 255, func(n int) error {
			return m.change(func(r *probe.Request, _ *trace.ContinuousOptions) { r.Pattern = uint8(n) })
		})
	case "Q":
		m.askNumber("Type of service", int(req.TOS), 0, 255, func(n int) error {
			return m.change(func(r *probe.Request, _ *trace.ContinuousOptions) { r.TOS = uint8(n) })
		})
	case "m":
		m.askNumber("Last hop", opts.MaxHops, 1, 255, func(n int) error {
			return m.change(func(_ *probe.Request, o *trace.ContinuousOptions) { o.MaxHops = n })
		})
	case "f":
		m.askNumber("First hop", opts.FirstHop, 1, 255, func(n int) error {
			return m.change(func(_ *probe.Request, o *trace.ContinuousOptions) { o.FirstHop = n })
		})
	case "c":
		m.askNumber("Rounds, 0 for no end", opts.Rounds, 0, math.MaxInt32, func(n int) error {
			return m.change(func(_ *probe.Request, o *trace.ContinuousOptions) { o.Rounds = n })
		})
	}
	return nil
}

// toggleProtocol changes to a protocol, or from it to ICMP.
func (m *mtrModel) toggleProtocol(p probe.Protocol) {
	err := m.change(func(r *probe.Request, _ *trace.ContinuousOptions) {
		if r.Protocol == p {
			p = probe.ICMP
		}
		r.Protocol = p
	})
	if err != nil {
		m.message = err.Error()
	}
}

// change starts the measurement anew with other settings: figures of different probes do not mix.
func (m *mtrModel) change(set func(*probe.Request, *trace.ContinuousOptions)) error {
	if err := m.session.change(m.ctx, set); err != nil {
		return err
	}
	m.hops = m.session.trace.Snapshot()
	return nil
}

// ask opens a prompt. accept gets what the user enters; its error is shown.
func (m *mtrModel) ask(question, value string, accept func(string) error) {
	m.prompt = &mtrPrompt{question: question, value: value, accept: accept}
}

func (m *mtrModel) askNumber(question string, value, least, most int, accept func(int) error) {
	m.ask(question, strconv.Itoa(value), func(s string) error {
		n, err := strconv.ParseInt(strings.TrimSpace(s), 0, 64)
		if err != nil || n < int64(least) || n > int64(most) {
			return fmt.Errorf("want a number from %d to %d", least, most)
		}
		return accept(int(n))
	})
}

// answer gives a key to the prompt.
func (m *mtrModel) answer(key tea.KeyPressMsg) {
	p := m.prompt
	switch key.String() {
	case "esc":
		m.prompt = nil
	case "enter":
		m.prompt = nil
		if err := p.accept(p.value); err != nil {
			m.message = err.Error()
		}
	case "backspace":
		if n := len(p.value); n > 0 {
			p.value = p.value[:n-1]
		}
	case "ctrl+u":
		p.value = ""
	default:
		// Values are plain ASCII: numbers, durations, letters of columns.
		if key.Text != "" && !p.edited {
			p.value = ""
		}
		for _, r := range key.Text {
			if ' ' <= r && r <= '~' && len(p.value) < mtrPromptLength {
				p.value += string(r)
			}
		}
	}
	p.edited = true
}

// The colours are those of the terminal's own palette, so that they fit any background.
var (
	mtrTitle   = lipgloss.NewStyle().Bold(true)
	mtrFaint   = lipgloss.NewStyle().Faint(true)
	mtrKey     = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Color("6"))
	mtrHeading = lipgloss.NewStyle().Bold(true).Underline(true)
	mtrWarn    = lipgloss.NewStyle().Foreground(lipgloss.Color("3"))
	mtrBad     = lipgloss.NewStyle().Foreground(lipgloss.Color("1"))
	mtrGood    = lipgloss.NewStyle().Foreground(lipgloss.Color("2"))
)

// mtrBadLoss is the loss in percent from which a hop is marked as bad rather than suspicious.
const mtrBadLoss = 20

// mtrKeys is the line of keys, and mtrHelp the page that key h opens.
var (
	mtrKeys = [][2]string{
		{"h", "help"}, {"d", "display"}, {"r", "reset"}, {"p", "pause"}, {"n", "names"}, {"o", "columns"}, {"j", "jitter"}, {"q", "quit"},
	}
	mtrHelp = [][2]string{
		{"p", "pause"},
		{"space", "go on"},
		{"r", "reset the figures"},
		{"d", "next display: figures, losses, times"},
		{"n", "names or numbers"},
		{"e", "MPLS labels on or off"},
		{"z", "AS numbers on or off"},
		{"y", "next fact about an address: AS, prefix, country, registry, date"},
		{"j", "figures of jitter or of times"},
		{"o", "choose the columns"},
		{"+ -", "scroll"},
		{"u t", "change between ICMP and UDP, ICMP and TCP *"},
		{"i", "interval between rounds *"},
		{"c", "number of rounds *"},
		{"f m", "first and last hop *"},
		{"s", "packet size *"},
		{"b", "byte that fills the packets *"},
		{"Q", "type of service *"},
		{"q", "quit, and print the figures"},
	}
)

func (m *mtrModel) View() tea.View {
	lines := m.headLines()
	if m.help {
		lines = lines[:2]
		lines = append(lines, mtrFaint.Render("Any key goes back. * starts the figures anew."))
		for _, k := range mtrHelp {
			lines = append(lines, "  "+mtrKey.Render(fmt.Sprintf("%-6s", k[0]))+k[1])
		}
	} else {
		body := m.hopLines()
		heading, rows, foot := body[0], body[1:len(body)-1], body[len(body)-1]
		room := max(1, m.height-len(lines)-3)
		m.scrolled = min(m.scrolled, max(0, len(rows)-room))
		rows = rows[m.scrolled:min(len(rows), m.scrolled+room)]
		lines = append(lines, "", heading)
		lines = append(lines, rows...)
		if foot != "" {
			lines = append(lines, foot)
		}
	}
	if m.height > 0 {
		lines = lines[:min(len(lines), m.height)]
	}
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], m.width, "")
	}
	view := tea.NewView(strings.Join(lines, "\n"))
	view.AltScreen = true
	view.WindowTitle = "fathom mtr " + m.target
	return view
}

// headLines says what is measured, and how.
func (m *mtrModel) headLines() []string {
	req, opts := m.session.req, m.session.opts
	target := m.target
	if addr := req.Target.String(); addr != target {
		target = fmt.Sprintf("%s (%s)", target, addr)
	}
	clock := m.now.Format("2006-01-02 15:04:05")
	route := ansi.Truncate(fmt.Sprintf("%s → %s", m.source, target), max(0, m.width-len(clock)-1), "…")
	gap := max(1, m.width-ansi.StringWidth(route)-len(clock))
	how := []string{req.Protocol.String()}
	if req.Port != 0 && req.Protocol != probe.ICMP {
		how[0] += fmt.Sprintf(" port %d", req.Port)
	}
	if req.Protocol == probe.ICMP || req.Protocol == probe.UDP {
		how = append(how, fmt.Sprintf("%d bytes", req.Size))
	}
	how = append(how, "every "+opts.Interval.String())
	round := fmt.Sprintf("round %d", m.session.trace.Rounds())
	if opts.Rounds > 0 {
		round += fmt.Sprintf(" of %d", opts.Rounds)
	}
	second := mtrFaint.Render(strings.Join(append(how, round), " · "))
	if m.session.paused {
		second += "  " + mtrWarn.Render("paused: space goes on")
	}

	var third string
	switch {
	case m.prompt != nil:
		third = mtrKey.Render(m.prompt.question+": ") + m.prompt.value + "▏" +
			mtrFaint.Render("  enter: accept, esc: leave, backspace: edit")
	case m.message != "":
		third = mtrBad.Render(m.message)
	default:
		keys := make([]string, len(mtrKeys))
		for i, k := range mtrKeys {
			keys[i] = mtrKey.Render(k[0]) + " " + k[1]
		}
		third = strings.Join(keys, "  ")
	}
	return []string{mtrTitle.Render(route) + strings.Repeat(" ", gap) + clock, second, third}
}

// hopLines gives the heading, the lines of the hops, and a line below, which may be empty.
func (m *mtrModel) hopLines() []string {
	if m.display == mtrShowTable {
		return m.tableLines()
	}
	return m.chartLines()
}

// mtrNumberWidth is the width of a hop's number with what follows it.
const mtrNumberWidth = len("255. ")

func (m *mtrModel) tableLines() []string {
	columns := 0
	var titles strings.Builder
	for _, f := range m.fields {
		columns += f.Width()
		fmt.Fprintf(&titles, "%*s", f.Width(), f.Title())
	}
	width := max(len("255.255.255.255"), m.width-mtrNumberWidth-columns)
	decimals := mtrDecimals(m.hops)
	lines := []string{mtrHeading.Render(fmt.Sprintf("%*s%-*s%s", mtrNumberWidth, "", width, "Host", &titles))}
	for i := range m.hops {
		h := &m.hops[i]
		var figures strings.Builder
		for _, f := range m.fields {
			text := fmt.Sprintf("%*s", f.Width(), mtrText(f, h, decimals))
			if f == trace.FieldLoss || f == trace.FieldDropped {
				switch loss := h.Loss(); {
				case loss >= mtrBadLoss:
					text = mtrBad.Render(text)
				case loss > 0:
					text = mtrWarn.Render(text)
				}
			}
			figures.WriteString(text)
		}
		for n, text := range m.hostTexts(h) {
			number := strings.Repeat(" ", mtrNumberWidth)
			if n == 0 {
				number = fmt.Sprintf("%3d. ", h.TTL)
			}
			text = ansi.Truncate(text, width, "…")
			line := number + text
			if n == 0 {
				line += strings.Repeat(" ", width-ansi.StringWidth(text)) + figures.String()
			}
			lines = append(lines, line)
		}
	}
	return append(lines, "")
}

// hostTexts gives what is said about a hop, one line each: the latest responder first.
func (m *mtrModel) hostTexts(h *trace.HopStats) []string {
	if len(h.Responders) == 0 {
		return []string{mtrFaint.Render("(waiting for an answer)")}
	}
	var texts []string
	for n, p := range h.Responders {
		text := m.labels.host(p.Addr)
		if n == 0 {
			text += mtrMark(h)
		}
		texts = append(texts, text)
		if m.mpls && len(p.MPLS) > 0 {
			texts = append(texts, mtrFaint.Render("  "+describeLabels(p.MPLS)))
		}
	}
	return texts
}

// mtrBars are the heights of a bar.
var mtrBars = []rune("▁▂▃▄▅▆▇█")

func (m *mtrModel) chartLines() []string {
	width := len("255.255.255.255")
	texts := make([]string, len(m.hops))
	for i := range m.hops {
		texts[i] = m.hostTexts(&m.hops[i])[0]
		width = max(width, ansi.StringWidth(texts[i]))
	}
	width = min(width, max(len("255.255.255.255"), m.width/2))
	room := max(1, m.width-mtrNumberWidth-width-1)

	shown := make([][]mtrCell, len(m.hops))
	low, high := time.Duration(math.MaxInt64), time.Duration(0)
	for i := range m.hops {
		shown[i] = m.session.history.latest(m.hops[i].TTL, room)
		for _, c := range shown[i] {
			if c.rtt > 0 {
				low, high = min(low, c.rtt), max(high, c.rtt)
			}
		}
	}
	lines := []string{mtrHeading.Render(fmt.Sprintf("%*s%-*s %-*s", mtrNumberWidth, "", width, "Host",
		room, fmt.Sprintf("Last %d probes", room)))}
	for i := range m.hops {
		text := ansi.Truncate(texts[i], width, "…")
		var chart strings.Builder
		chart.WriteString(strings.Repeat(" ", room-len(shown[i])))
		for _, c := range shown[i] {
			chart.WriteString(m.chartCell(c, low, high))
		}
		lines = append(lines, fmt.Sprintf("%3d. %s%s %s", m.hops[i].TTL, text,
			strings.Repeat(" ", width-ansi.StringWidth(text)), &chart))
	}
	foot := "  · answered   ? lost   ! unreachable"
	if m.display == mtrShowBars && high > 0 {
		foot = fmt.Sprintf("  %c %s ms   %c %s ms   ? lost   ! unreachable",
			mtrBars[0], milliseconds(low), mtrBars[len(mtrBars)-1], milliseconds(high))
	}
	return append(lines, mtrFaint.Render(foot))
}

// chartCell draws one probe.
func (m *mtrModel) chartCell(c mtrCell, low, high time.Duration) string {
	switch c.status {
	case 0:
		return " "
	case probe.NoReply, probe.Failed:
		return mtrBad.Render("?")
	case probe.HostUnreachable, probe.NetUnreachable, probe.NetworkDown, probe.HostDown:
		return mtrWarn.Render("!")
	case probe.Replied, probe.TimeExceeded:
	}
	if m.display == mtrShowLosses {
		return mtrGood.Render("·")
	}
	level := 0
	if high > low {
		level = int(int64(len(mtrBars)-1) * int64(c.rtt-low) / int64(high-low))
	}
	return mtrGood.Render(string(mtrBars[min(max(level, 0), len(mtrBars)-1)]))
}
