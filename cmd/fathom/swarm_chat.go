// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"

	"github.com/seed5728abee/fathom/nat"
	"github.com/seed5728abee/fathom/swarm"
)

func newSwarmChatCommand(a *app) *cobra.Command {
	o := swarmOptions{listen: ":0"}
	var username string
	var resilience int
	cmd := &cobra.Command{
		Use:   "chat",
		Short: "Talk with the others in a swarm",
		Long: `Talk with the others in a swarm. What you enter is said to everybody, or to the
channel that you joined last; /msg says something to one user alone, over a link
that is encrypted from you to her. Cicada's messenger understands what is said to
everybody and in channels; what comes to or from it is not encrypted, and marked
so. /help lists the commands.

Channels keep a room tidy, not secret: what is said in one reaches everybody in
the swarm. Names are what users call themselves: when two have the same, /msg asks
which of them is meant.`,
		Example: `  fathom swarm chat --join 192.0.2.1:49610 -u alice`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if username == "" {
				username = defaultUsername()
			}
			if err := checkChatName(username); err != nil {
				return usagef("--username: %w", err)
			}
			if resilience < 0 || resilience > swarmMaxDuplicates {
				return usagef("--resilience %d: want 0 to %d", resilience, swarmMaxDuplicates)
			}
			return a.runSwarmChat(cmd, &o, username, resilience)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&username, "username", "u", "", "`name` to be called (default: yours on this host)")
	f.IntVarP(&resilience, "resilience", "r", 0, "send private messages by so many more `ways` that have no member in common")
	f.Var(&o.join, "join", "join the swarm that the member at this address is in; several are tried in turn")
	f.Var(&o.listen, "listen", "address to be reached at; no host means all addresses, port 0 any free port")
	f.Var(&o.identity, "identity", "address that others know this member by, where it is another one: a port forwarded by hand")
	o.registerMapping(f, nat.Off)
	o.registerTrust(f)
	return cmd
}

// defaultUsername gives the user's name on this host as far as it can be one here.
func defaultUsername() string {
	if u, err := user.Current(); err == nil && checkChatName(u.Username) == nil {
		return u.Username
	}
	return "anonymous"
}

func (a *app) runSwarmChat(cmd *cobra.Command, o *swarmOptions, username string, resilience int) error {
	ctx := cmd.Context()
	o.name = username
	options, err := o.finish(ctx, cmd, a.log)
	if err != nil {
		return err
	}
	peer, err := bindSwarmPeer(ctx, options, string(o.listen))
	if err != nil {
		return err
	}
	defer peer.Close()
	c := newChat(peer, username, resilience)
	if a.stdinTerminal && a.stdoutTerminal {
		err = a.chatOnTerminal(ctx, c, o.join)
	} else {
		err = a.chatOnPipes(ctx, c, o.join)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, peer.Close())
}

// chatOnPipes takes lines from standard input and writes what is said to standard output.
func (a *app) chatOnPipes(ctx context.Context, c *chat, entries []string) error {
	w := bufio.NewWriter(a.stdout)
	var mu sync.Mutex // guards w and failed
	var failed error
	c.print = func(name, text string) {
		mu.Lock()
		defer mu.Unlock()
		for _, line := range chatLines(name, text, 0) {
			fmt.Fprintln(w, line)
		}
		if err := w.Flush(); failed == nil {
			failed = err
		}
	}
	if len(entries) > 0 {
		if err := c.connect(ctx, entries...); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { c.receive(ctx) })
	lines, ended := make(chan []byte), make(chan error, 1)
	go func() { ended <- scanLines(ctx, a.stdin, chatMaxMessage, lines) }() // a read cannot be interrupted: it may outlive us
	for {
		select {
		case line := <-lines:
			if c.obey(ctx, string(line)) {
				return failed
			}
		case err := <-ended:
			return errors.Join(err, failed)
		case <-ctx.Done():
			return nil
		}
	}
}

// A chat is the messenger, whatever it shows itself on.
type chat struct {
	peer       swarmPeer
	user       string
	duplicates int
	print      func(name, text string) // may be called by several goroutines

	// mu guards all that follows.
	mu       sync.Mutex
	channels []string // those joined; the last is where lines go
	known    map[string][]chatUser
}

// A chatUser is a member that has called itself by some name.
type chatUser struct {
	member swarm.Member
	heard  time.Time
}

// Bounds of what is remembered of others, who can call themselves whatever they like.
const (
	chatMaxUsers     = 4096
	chatMaxNamesakes = 8
	chatMaxChannels  = 64
)

func newChat(peer swarmPeer, username string, duplicates int) *chat {
	return &chat{peer: peer, user: username, duplicates: duplicates, known: make(map[string][]chatUser)}
}

// systemName is whom lines of the messenger itself are from.
const systemName = "***"

func (c *chat) tell(format string, args ...any) { c.print(systemName, fmt.Sprintf(format, args...)) }

// receive shows what others say until ctx ends or the peer is closed.
func (c *chat) receive(ctx context.Context) {
	for {
		m, err := c.peer.Recv(ctx)
		if err != nil {
			return
		}
		c.show(m)
	}
}

// show shows one message.
func (c *chat) show(m swarm.Message) {
	said, err := decodeChatMessage(m.Data)
	if err != nil {
		c.tell("%s sent something else than a message: %s", memberName(m.From), count(len(m.Data), "byte"))
		return
	}
	name := said.Sender
	if checkChatName(name) != nil { // of Cicada's users, or a hostile one
		name = printable(name)
	} else {
		c.learn(name, m.From)
	}
	text := printable(said.Text)
	channel := m.Broadcast && strings.HasPrefix(said.To, "#")
	switch {
	case channel && !c.inChannel(said.To):
		return
	case channel:
		text = said.To + " " + text
	case !m.Broadcast && m.From.Original:
		text = "(to you, not encrypted) " + text
	case !m.Broadcast:
		text = "(to you) " + text
	case said.To != "":
		text = "(to " + printable(said.To) + ", said to everybody) " + text
	}
	c.print(name, text)
}

// learn remembers who calls himself what.
func (c *chat) learn(name string, from swarm.Member) {
	c.mu.Lock()
	users := c.known[name]
	i := slices.IndexFunc(users, func(u chatUser) bool { return u.member.ID == from.ID })
	isNew := i < 0
	switch {
	case !isNew:
		users[i] = chatUser{from, time.Now()}
	case len(users) >= chatMaxNamesakes || users == nil && len(c.known) >= chatMaxUsers:
		isNew = false
	default:
		c.known[name] = append(users, chatUser{from, time.Now()})
	}
	namesakes := len(users) > 0 || name == c.user
	c.mu.Unlock()
	if isNew && namesakes && from.ID != c.peer.Self().ID {
		c.tell("another one calls himself %s: %s~%s", name, name, from.ID.Short())
	}
}

func (c *chat) inChannel(channel string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.channels, channel)
}

// obey does what a line says, and reports whether that was to quit.
func (c *chat) obey(ctx context.Context, line string) (quit bool) {
	cmd := parseChatLine(line)
	var err error
	switch cmd.name {
	case "":
	case "say":
		err = c.say(ctx, cmd.args)
	case "msg":
		err = c.whisper(ctx, cmd.args)
	case "connect":
		err = c.connect(ctx, strings.Fields(cmd.args)...)
	case "join":
		err = c.join(cmd.args)
	case "part":
		err = c.part(cmd.args)
	case "stats":
		c.stats()
	case "help":
		for _, line := range chatHelp {
			c.tell("%s", line)
		}
	case "quit":
		c.tell("Quitting.")
		return true
	default:
		err = fmt.Errorf("there is no /%s: /help lists the commands", printable(cmd.name))
	}
	if err != nil {
		c.tell("%v", err)
	}
	return false
}

var chatHelp = []string{
	"/connect host:port    join the swarm of the member there",
	"/join channel         hear a channel, and speak there",
	"/part [channel]       leave the channel, or the one you speak in",
	"/msg user text        say something to one user alone: user is a name, name~id, an ID, or host:port",
	"/stats                show where you are in the swarm",
	"/quit                 leave",
	"anything else         is said to everybody, or in the channel you joined last",
}

// chatSendTime is how long saying something may take.
const chatSendTime = 15 * time.Second

func (c *chat) say(ctx context.Context, text string) error {
	c.mu.Lock()
	to := ""
	if n := len(c.channels); n > 0 {
		to = c.channels[n-1]
	}
	c.mu.Unlock()
	if len(text) > chatMaxText {
		return fmt.Errorf("that is longer than %d bytes", chatMaxText)
	}
	ctx, cancel := context.WithTimeout(ctx, chatSendTime)
	defer cancel()
	if err := c.peer.Broadcast(ctx, chatMessage{Text: text, Sender: c.user, To: to}.encode()); err != nil {
		return err
	}
	if to != "" {
		text = to + " " + text
	}
	c.print(c.user, printable(text))
	return nil
}

// whisper sends a private message.
func (c *chat) whisper(ctx context.Context, args string) error {
	name, text, _ := strings.Cut(args, " ")
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return errors.New("/msg takes a user and a text")
	case len(text) > chatMaxText:
		return fmt.Errorf("that is longer than %d bytes", chatMaxText)
	}
	to, original, err := c.find(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, chatSendTime)
	defer cancel()
	data := chatMessage{Text: text, Sender: c.user, To: name}.encode()
	if c.duplicates > 0 {
		err = c.peer.SendDisjoint(ctx, to, data, c.duplicates)
	} else {
		err = c.peer.Send(ctx, to, data)
	}
	if err != nil {
		return err
	}
	how := ""
	if original {
		how = ", not encrypted"
	}
	c.print(c.user, fmt.Sprintf("(to %s%s) %s", printable(name), how, printable(text)))
	return nil
}

// find gives the member that a user is, and whether it is one of Cicada's.
func (c *chat) find(user string) (to swarm.Target, original bool, err error) {
	name, id, _ := strings.Cut(user, "~")
	c.mu.Lock()
	var found []chatUser
	for _, u := range c.known[name] {
		if strings.HasPrefix(u.member.ID.String(), strings.ToLower(id)) {
			found = append(found, u)
		}
	}
	c.mu.Unlock()
	switch {
	case len(found) == 1:
		return swarm.ToMember(found[0].member), found[0].member.Original, nil
	case len(found) > 1:
		var which []string
		for _, u := range found {
			which = append(which, fmt.Sprintf("%s~%s (heard %s ago)", name, u.member.ID.Short(), time.Since(u.heard).Round(time.Second)))
		}
		return to, false, fmt.Errorf("several call themselves %s: say which one, %s", name, strings.Join(which, " or "))
	case id != "":
		return to, false, fmt.Errorf("nobody known is %s", printable(user))
	}
	to, err = swarm.ParseTarget(user)
	return to, false, err
}

// connect joins a swarm, and leaves the one before.
func (c *chat) connect(ctx context.Context, entries ...string) error {
	if len(entries) == 0 {
		return errors.New("/connect takes host:port")
	}
	for _, e := range entries {
		if err := checkSwarmAddress(e, false); err != nil {
			return fmt.Errorf("%s: %w", printable(e), err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, swarmTimeout)
	defer cancel()
	if c.peer.State().Connected {
		if err := c.peer.Disconnect(ctx); err != nil {
			return err
		}
	}
	c.tell("Joining %s ...", strings.Join(entries, ", "))
	if err := c.peer.Connect(ctx, entries...); err != nil {
		return err
	}
	c.tell("Connected as %s.", memberName(c.peer.Self()))
	return nil
}

// channelName gives the name of a channel as messages have it.
func channelName(s string) (string, error) {
	name := strings.TrimPrefix(s, "#")
	if err := checkChatName(name); err != nil {
		return "", fmt.Errorf("channel: %w", err)
	}
	return "#" + name, nil
}

func (c *chat) join(args string) error {
	channel, err := channelName(args)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.channels = append(slices.DeleteFunc(c.channels, func(s string) bool { return s == channel }), channel)
	if len(c.channels) > chatMaxChannels {
		c.channels = c.channels[1:]
	}
	c.mu.Unlock()
	c.tell("You speak in %s now.", channel)
	return nil
}

func (c *chat) part(args string) error {
	c.mu.Lock()
	channel := ""
	if n := len(c.channels); n > 0 {
		channel = c.channels[n-1]
	}
	c.mu.Unlock()
	if args != "" {
		var err error
		if channel, err = channelName(args); err != nil {
			return err
		}
	}
	c.mu.Lock()
	n := len(c.channels)
	c.channels = slices.DeleteFunc(c.channels, func(s string) bool { return s == channel })
	where := "to everybody"
	if left := len(c.channels); left > 0 {
		where = "in " + c.channels[left-1]
	}
	parted := len(c.channels) < n
	c.mu.Unlock()
	if !parted {
		return errors.New("you are in no such channel")
	}
	c.tell("You have left %s, and speak %s now.", channel, where)
	return nil
}

func (c *chat) stats() {
	s := c.peer.State()
	c.tell("Listening on %s, at %s of the ring.", memberAddress(s.Self), s.Self.ID.Short())
	if s.Self.Leaf {
		c.tell("Others cannot reach you directly: you are met through %s.", count(len(s.Hosts), "host"))
	}
	c.tell("Connected to %s in the swarm.", count(len(s.Peers), "peer"))
	c.mu.Lock()
	channels, users := strings.Join(c.channels, " "), len(c.known)
	c.mu.Unlock()
	if channels != "" {
		c.tell("Channels: %s", channels)
	}
	c.tell("Heard of %s; sent %s, received %s.", count(users, "user"), count(s.Sent+s.Broadcasts, "message"), count(s.Received, "message"))
}

// chatNameWidth is how wide the column of names is.
const chatNameWidth = 16

// chatLines lays out a message: the name to the right of its column, and the text wrapped to so many columns in all, or not at
// all for 0.
func chatLines(name, text string, width int) []string {
	name = ansi.Truncate(name, chatNameWidth, "…")
	head := strings.Repeat(" ", chatNameWidth-ansi.StringWidth(name)) + name + " | "
	if width > 0 {
		// On a screen as narrow as that no layout is a good one.
		text = ansi.Wrap(text, max(width-ansi.StringWidth(head), 16), "")
	}
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = head + lines[i]
		head = strings.Repeat(" ", chatNameWidth) + " | "
	}
	return lines
}

// chatOnTerminal shows what is said above a line to write in.
func (a *app) chatOnTerminal(ctx context.Context, c *chat, entries []string) error {
	screen := a.stdout
	if w, ok := screen.(*checkedWriter); ok {
		screen = w.Writer // bubbletea asks whether it is a terminal
	}
	ctx, cancel := context.WithCancel(ctx)
	m := &chatModel{prompt: c.user, lines: make(chan string, 64)}
	program := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(a.stdin), tea.WithOutput(screen), tea.WithoutSignalHandler())
	c.print = func(name, text string) { program.Send(chatSaid{name, text}) }
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { c.receive(ctx) })
	wg.Go(func() {
		if len(entries) > 0 {
			if err := c.connect(ctx, entries...); err != nil {
				c.tell("%v", err)
			}
		}
		for {
			select {
			case line := <-m.lines:
				if c.obey(ctx, line) {
					program.Quit()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	if _, err := program.Run(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// chatSaid is a message to the model: something to show.
type chatSaid struct{ name, text string }

// chatPrinted is a message to the model: what it printed last is on the terminal.
type chatPrinted struct{}

// chatModel is the line to write in. What is said goes above it, and stays on the terminal.
type chatModel struct {
	prompt string
	lines  chan string // what was entered
	input  []rune
	cursor int
	past   []string // what was entered before
	recall int      // how far back of it we are
	width  int

	waiting  []string // lines to print
	printing bool     // others are being printed
}

func (m *chatModel) Init() tea.Cmd { return nil }

func (m *chatModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width = msg.Width
	case chatSaid:
		m.waiting = append(m.waiting, chatLines(msg.name, msg.text, m.width)...)
		if !m.printing {
			return m, m.printWaiting()
		}
	case chatPrinted:
		return m, m.printWaiting()
	case tea.PasteMsg:
		m.insert(msg.Content)
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

// printWaiting prints what waits for that: one thing after the other, as commands of their own would overtake each other.
func (m *chatModel) printWaiting() tea.Cmd {
	m.printing = len(m.waiting) > 0
	if !m.printing {
		return nil
	}
	text := strings.Join(m.waiting, "\n")
	m.waiting = nil
	return tea.Sequence(tea.Println(text), func() tea.Msg { return chatPrinted{} })
}

// chatPast is how many lines can be recalled.
const chatPast = 100

func (m *chatModel) key(msg tea.KeyPressMsg) tea.Cmd {
	switch msg.String() {
	case "ctrl+c":
		return tea.Quit
	case "ctrl+d":
		if len(m.input) == 0 {
			return tea.Quit
		}
	case "enter":
		line := string(m.input)
		if strings.TrimSpace(line) == "" {
			return nil
		}
		select {
		case m.lines <- line:
		default:
			return nil // so much is under way that it has to wait: the line stays
		}
		m.past = append(m.past, line)
		m.past = m.past[max(0, len(m.past)-chatPast):]
		m.set("")
		m.recall = 0
	case "up", "down":
		if msg.String() == "up" {
			m.recall = min(m.recall+1, len(m.past))
		} else {
			m.recall = max(m.recall-1, 0)
		}
		if m.recall > 0 {
			m.set(m.past[len(m.past)-m.recall])
		} else {
			m.set("")
		}
	case "left":
		m.cursor = max(m.cursor-1, 0)
	case "right":
		m.cursor = min(m.cursor+1, len(m.input))
	case "home", "ctrl+a":
		m.cursor = 0
	case "end", "ctrl+e":
		m.cursor = len(m.input)
	case "backspace":
		if m.cursor > 0 {
			m.input = slices.Delete(m.input, m.cursor-1, m.cursor)
			m.cursor--
		}
	case "delete":
		if m.cursor < len(m.input) {
			m.input = slices.Delete(m.input, m.cursor, m.cursor+1)
		}
	case "ctrl+u":
		m.input, m.cursor = m.input[m.cursor:], 0
	case "ctrl+w":
		head := strings.TrimRight(string(m.input[:m.cursor]), " ")
		head = head[:strings.LastIndexByte(head, ' ')+1]
		rest := m.input[m.cursor:]
		m.set(head + string(rest))
		m.cursor -= len(rest)
	default:
		m.insert(msg.Text)
	}
	return nil
}

func (m *chatModel) set(s string) {
	m.input = []rune(s)
	m.cursor = len(m.input)
}

// insert puts text at the cursor; ends of lines in it become spaces.
func (m *chatModel) insert(s string) {
	room := chatMaxText - len(string(m.input))
	for _, r := range s {
		if r == '\n' || r == '\r' || r == '\t' {
			r = ' '
		}
		if room -= len(string(r)); room < 0 {
			return
		}
		if r >= ' ' && r != 0x7f {
			m.input = slices.Insert(m.input, m.cursor, r)
			m.cursor++
		}
	}
}

func (m *chatModel) View() tea.View {
	name := ansi.Truncate(m.prompt, chatNameWidth, "…")
	head := strings.Repeat(" ", chatNameWidth-ansi.StringWidth(name)) + mtrKey.Render(name) + " > "
	before := string(m.input[:m.cursor])
	room := max(m.width-chatNameWidth-4, 8)
	if over := ansi.StringWidth(before) - room; over > 0 {
		before = ansi.TruncateLeft(before, over+1, "…")
	}
	view := tea.NewView(ansi.Truncate(head+before+string(m.input[m.cursor:]), max(m.width, 1), ""))
	view.Cursor = tea.NewCursor(chatNameWidth+3+ansi.StringWidth(before), 0)
	return view
}
