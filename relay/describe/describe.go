// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package describe

import (
	"bytes"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/epics"
)

// MaxLen is the greatest length of a line, in bytes.
const MaxLen = 200

const (
	maxName    = 60  // bytes shown of one name
	maxNames   = 110 // bytes shown of all names of a datagram
	maxPreview = 100 // bytes shown of what is not known
)

// Ports of protocols that are known here but not to package epics.
const (
	ssdpPort  = 1900
	mdnsPort  = 5353
	llmnrPort = 5355
)

// Datagram describes the payload of a UDP datagram that was sent to a port.
func Datagram(port uint16, payload []byte) string {
	return string(Append(make([]byte, 0, MaxLen), port, payload))
}

// Append is [Datagram], appended to dst.
func Append(dst []byte, port uint16, payload []byte) []byte {
	l := line{b: dst, start: len(dst)}
	switch {
	case wakeOnLAN(&l, payload):
	case port == ssdpPort && ssdp(&l, payload):
	case port == mdnsPort && dns(&l, "mDNS", payload):
	case port == llmnrPort && dns(&l, "LLMNR", payload):
	case epics.ProtocolOf(port) == epics.ChannelAccess:
		channelAccess(&l, payload)
	case epics.ProtocolOf(port) == epics.PVAccess:
		pvAccess(&l, payload)
	case len(payload) > 0 && payload[0] == 0xca && epics.Valid(epics.PVAccess, payload) == drop.None:
		pvAccess(&l, payload) // a site's own port: it cannot be mistaken, as Channel Access could
	default:
		unknown(&l, payload)
	}
	return l.done()
}

// A line grows as long as it may. What is added beyond is cut by done.
type line struct {
	b     []byte
	start int // of the line within b
}

func (l *line) len() int { return len(l.b) - l.start }

func (l *line) add(s string) { l.b = append(l.b, s...) }

func (l *line) num(n uint64) { l.b = strconv.AppendUint(l.b, n, 10) }

func (l *line) text(b []byte, limit int) { l.b = epics.AppendPrintable(l.b, b, limit) }

// reset takes back everything.
func (l *line) reset() { l.b = l.b[:l.start] }

func (l *line) done() []byte {
	if l.len() <= MaxLen {
		return l.b
	}
	const more = "…"
	end := l.start + MaxLen - len(more)
	for end > l.start && l.b[end]&0xc0 == 0x80 { // within a character
		end--
	}
	return append(l.b[:end], more...)
}

// names adds a list as long as there is room, and counts the others.
type names struct {
	*line
	start, n, others int
}

func (l *line) names() names { return names{line: l, start: l.len()} }

// next makes ready for a name, and tells whether there is room for it.
func (n *names) next() bool {
	if n.len()-n.start > maxNames {
		n.others++
		return false
	}
	if n.n > 0 {
		n.add(", ")
	}
	n.n++
	return true
}

func (n *names) end() {
	if n.others > 0 {
		n.add(" and ")
		n.num(uint64(n.others))
		n.add(" more")
	}
}

func unknown(l *line, payload []byte) {
	l.add("udp ")
	l.num(uint64(len(payload)))
	l.add(" bytes")
	if len(payload) > 0 {
		l.add(` "`)
		l.text(payload, maxPreview)
		l.add(`"`)
	}
}

// wakeOnLAN is six bytes of ones, sixteen times the address of the machine to wake, and perhaps a
// password, which is nobody's business.
func wakeOnLAN(l *line, payload []byte) bool {
	const sync, addr, times = 6, 6, 16
	if len(payload) < sync+times*addr || string(payload[:sync]) != "\xff\xff\xff\xff\xff\xff" {
		return false
	}
	body := payload[sync : sync+times*addr]
	if !bytes.Equal(body, bytes.Repeat(body[:addr], times)) {
		return false
	}
	l.add("wake-on-LAN ")
	l.add(net.HardwareAddr(body[:addr]).String())
	return true
}

// ssdp is a request or an answer of HTTP; what it is about is in a header.
func ssdp(l *line, payload []byte) bool {
	first, rest, _ := bytes.Cut(payload, []byte("\n"))
	if first = bytes.TrimSpace(first); !bytes.Contains(first, []byte("HTTP/")) {
		return false
	}
	l.add("SSDP ")
	l.text(first, maxName)
	for len(rest) > 0 {
		var header []byte
		header, rest, _ = bytes.Cut(rest, []byte("\n"))
		name, value, _ := bytes.Cut(header, []byte(":"))
		name = bytes.TrimSpace(name)
		switch {
		case bytes.EqualFold(name, []byte("ST")):
			l.add(", ST: ")
		case bytes.EqualFold(name, []byte("NT")):
			l.add(", NT: ")
		default:
			continue
		}
		l.text(bytes.TrimSpace(value), maxNames)
		break
	}
	return true
}

// dns shows what a query asks for, or what an answer is about.
func dns(l *line, protocol string, payload []byte) bool {
	var p dnsmessage.Parser
	header, err := p.Start(payload)
	if err != nil {
		return false
	}
	l.add(protocol)
	n := l.names()
	if !header.Response {
		l.add(" query ")
		for {
			q, err := p.Question()
			if err != nil {
				if err != dnsmessage.ErrSectionDone {
					l.reset()
				}
				break
			}
			if n.next() {
				dnsName(l, q.Name, q.Type)
			}
		}
	} else if l.add(" answer "); p.SkipAllQuestions() != nil {
		l.reset()
	} else {
		for {
			a, err := p.AnswerHeader()
			if err == nil {
				err = p.SkipAnswer()
			}
			if err != nil {
				if err != dnsmessage.ErrSectionDone {
					l.reset()
				}
				break
			}
			if n.next() {
				dnsName(l, a.Name, a.Type)
			}
		}
	}
	if l.len() == 0 {
		return false
	}
	if n.n == 0 {
		l.add("without names")
	}
	n.end()
	return true
}

func dnsName(l *line, name dnsmessage.Name, t dnsmessage.Type) {
	l.text(name.Data[:name.Length], maxName)
	l.add(" ")
	if s, known := dnsTypes[t]; known {
		l.add(s)
		return
	}
	l.add("TYPE") // as in RFC 3597
	l.num(uint64(t))
}

// dnsTypes are those of service discovery.
var dnsTypes = map[dnsmessage.Type]string{
	dnsmessage.TypeA: "A", dnsmessage.TypeAAAA: "AAAA", dnsmessage.TypePTR: "PTR", dnsmessage.TypeSRV: "SRV",
	dnsmessage.TypeTXT: "TXT", dnsmessage.TypeCNAME: "CNAME", dnsmessage.TypeHINFO: "HINFO", dnsmessage.TypeALL: "ANY",
	47: "NSEC", // RFC 4034
	65: "HTTPS",
}

func channelAccess(l *line, payload []byte) {
	if epics.Valid(epics.ChannelAccess, payload) != drop.None {
		l.add("not Channel Access: ")
		unknown(l, payload)
		return
	}
	l.add("CA ")
	var sequence uint32
	numbered, searches, others := false, 0, 0
	for b := payload; len(b) > 0; {
		m, rest, err := epics.ParseCA(b)
		if err != nil {
			break // it is valid
		}
		b = rest
		switch {
		case m.IsRequest():
			searches++
		case m.Command != epics.CACommandVersion:
			others++
		}
		if n, ok := m.Sequence(); ok {
			sequence, numbered = n, true
		}
	}
	if searches > 0 {
		l.add("search ")
		if numbered {
			l.add("#")
			l.num(uint64(sequence))
			l.add(" ")
		}
		n := l.names()
		for s := range epics.Searches(epics.ChannelAccess, payload) {
			if n.next() {
				l.text(s.Name, maxName)
			}
		}
		n.end()
		if others > 0 {
			l.add(" and ")
		}
	}
	n := l.names()
	for b := payload; len(b) > 0; {
		m, rest, err := epics.ParseCA(b)
		if err != nil {
			break // it is valid
		}
		b = rest
		if m.IsRequest() || m.Command == epics.CACommandVersion && searches+others > 0 {
			continue
		}
		if n.next() {
			caMessage(l, m)
		}
	}
	n.end()
}

func caMessage(l *line, m epics.CAMessage) {
	server, isServer := m.Server()
	switch {
	case m.Command == epics.CACommandBeacon:
		l.add("beacon ")
		addrPort(l, server)
		l.add(" #")
		l.num(uint64(m.Param1))
	case isServer:
		l.add("answer from ")
		addrPort(l, server)
		l.add(" to search ")
		l.num(uint64(m.ID()))
	case m.Command == epics.CACommandNotFound:
		l.add("not found: search ")
		l.num(uint64(m.ID()))
	case m.Command == epics.CACommandVersion:
		l.add("version 4.")
		l.num(uint64(m.Count))
	case m.Command == epics.CACommandRegister:
		l.add("register with the repeater")
	case m.Command == epics.CACommandConfirm:
		l.add("confirm from the repeater")
	default:
		l.add("command ")
		l.num(uint64(m.Command))
	}
}

func pvAccess(l *line, payload []byte) {
	if epics.Valid(epics.PVAccess, payload) != drop.None {
		l.add("not PVAccess: ")
		unknown(l, payload)
		return
	}
	l.add("PVA ")
	n := l.names()
	for b := payload; len(b) > 0; {
		m, rest, err := epics.ParsePVA(b)
		if err != nil {
			break // it is valid
		}
		b = rest
		if n.next() {
			pvaMessage(l, m)
		}
	}
	n.end()
}

// pvaMessage adds a message that is valid, so that no decoder fails.
func pvaMessage(l *line, m epics.PVAMessage) {
	switch m.Command {
	case epics.PVACommandSearch:
		s, _ := m.Search()
		pvaSearch(l, s)
	case epics.PVACommandSearchResponse:
		s, _ := m.SearchResponse()
		if s.Found {
			l.add("answer #")
		} else {
			l.add("not found #")
		}
		l.num(uint64(s.Sequence))
		l.add(" from ")
		addrPort(l, s.Server)
		l.add(" ")
		l.text(s.Protocol, maxName)
		n := l.names()
		for id := range s.IDs() {
			if n.n == 0 {
				l.add(" to search ")
			}
			if n.next() {
				l.num(uint64(id))
			}
		}
		n.end()
	case epics.PVACommandBeacon:
		s, _ := m.Beacon()
		l.add("beacon ")
		addrPort(l, s.Server)
		l.add(" ")
		l.text(s.Protocol, maxName)
		l.add(" #")
		l.num(uint64(s.Sequence))
		l.add(", change ")
		l.num(uint64(s.Changes))
	case epics.PVACommandOrigin:
		a, _ := m.Origin()
		l.add("origin ")
		l.b = a.AppendTo(l.b)
	default:
		l.add("command ")
		l.num(uint64(m.Command))
	}
}

func pvaSearch(l *line, s epics.PVASearch) {
	l.add("search #")
	l.num(uint64(s.Sequence))
	l.add(" ")
	n := l.names()
	for _, name := range s.Names() {
		if n.next() {
			l.text(name, maxName)
		}
	}
	n.end()
	if s.Len() == 0 {
		l.add("for servers")
	}
	l.add(" (reply to ")
	addrPort(l, s.ReplyTo)
	p := l.names()
	for protocol := range s.Protocols() {
		if p.n == 0 {
			l.add(", ")
		}
		if p.next() {
			l.text(protocol, maxName)
		}
	}
	p.end()
	l.add(")")
}

// addrPort adds an address; one that is left open is the sender's.
func addrPort(l *line, a netip.AddrPort) {
	if !a.Addr().IsUnspecified() {
		l.b = a.AppendTo(l.b)
		return
	}
	l.add("sender:")
	l.num(uint64(a.Port()))
}
