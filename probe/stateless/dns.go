// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/seed5728abee/fathom/packet"
)

// A DNS probe asks for a name that begins with a label of hexadecimal digits:
//
//	4 digits   number
//	16 digits  time of sending, nanoseconds since 1970
//	16 digits  long check
//
// A response repeats the question, so it brings all of them back. The identifier of the message balances the UDP
// checksum, which carries the number for short quotes; as it depends on the long check it cannot be guessed either.
const (
	labelLen    = 4 + 16 + 16
	labelOffset = dnsHeaderLen + 1 // in the message, behind the label's length
)

const dnsHeaderLen = 12

// What a CHAOS probe asks: RFC 4892 section 3, RFC 5001 (NSID), RFC 7873 (cookies).
const (
	chaosName     = "hostname.bind."
	optionNSID    = 3
	optionCookie  = 10
	cookieLen     = 8 // the client's part
	ednsSize      = 1232
	maxResponse   = 4096 // bytes of a response that are looked at: no server sends more to ednsSize
	maxChaosTexts = 8    // records of a response that are looked at
)

// prepareDNS makes the template of DNS queries. Recursion is not desired: a probe shall load nobody
// but its target, and a resolver's refusal is an answer as well.
func (c *Codec) prepareDNS() error {
	c.suffix = []byte(".")
	if name := strings.TrimSuffix(c.cfg.Name, "."); name != "" {
		c.suffix = []byte("." + name + ".")
	}
	name, err := dnsmessage.NewName(strings.Repeat("0", labelLen) + string(c.suffix))
	if err != nil {
		return err
	}
	m := dnsmessage.Message{
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	c.query, err = m.Pack()
	return err
}

// prepareCHAOS makes the template of CHAOS queries. The cookie ends it.
func (c *Codec) prepareCHAOS() error {
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(ednsSize, dnsmessage.RCodeSuccess, false); err != nil {
		return err
	}
	m := dnsmessage.Message{
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(chaosName), Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassCHAOS,
		}},
		Additionals: []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{Options: []dnsmessage.Option{
			{Code: optionNSID}, {Code: optionCookie, Data: make([]byte, cookieLen)},
		}}}},
	}
	var err error
	c.query, err = m.Pack()
	return err
}

func (c *Codec) appendDNS(b []byte, id *identity, long uint64, time int64) ([]byte, error) {
	at := len(b)
	b, err := packet.AppendUDPHeader(b, id.port, c.cfg.DstPort, len(c.query))
	if err != nil {
		return b, err
	}
	b = append(b, c.query...)
	label := b[at+packet.UDPHeaderLen+labelOffset:]
	var raw [labelLen / 2]byte
	binary.BigEndian.PutUint16(raw[0:], id.number)
	binary.BigEndian.PutUint64(raw[2:], uint64(time))
	binary.BigEndian.PutUint64(raw[10:], long)
	hex.Encode(label, raw[:])
	return b, packet.BalanceUDP(b[at:], id.src, id.dst, numberChecksum(id.number))
}

func (c *Codec) appendCHAOS(b []byte, id *identity, short shortCheck, long uint64) ([]byte, error) {
	at := len(b)
	b, err := packet.AppendUDPHeader(b, id.port, c.cfg.DstPort, len(c.query))
	if err != nil {
		return b, err
	}
	b = append(b, c.query...)
	binary.BigEndian.PutUint16(b[at+packet.UDPHeaderLen:], short.dnsID())
	binary.BigEndian.PutUint64(b[len(b)-cookieLen:], long)
	packet.SetUDPChecksum(b[at:], id.src, id.dst)
	return b, nil
}

// label is the decoded first label of a DNS probe's question.
type label struct {
	number uint16
	time   int64
	long   uint64
}

// parseLabel decodes labelLen digits of either case.
func parseLabel(digits []byte) (l label, ok bool) {
	var raw [labelLen / 2]byte
	if _, err := hex.Decode(raw[:], digits); err != nil {
		return l, false
	}
	return label{
		number: binary.BigEndian.Uint16(raw[0:]),
		time:   int64(binary.BigEndian.Uint64(raw[2:])),
		long:   binary.BigEndian.Uint64(raw[10:]),
	}, true
}

// responseDNS recognises the response to a DNS probe by the question in it.
func (c *Codec) responseDNS(msg []byte, id *identity, a *Answer) error {
	var p dnsmessage.Parser
	h, err := p.Start(msg[:min(len(msg), maxResponse)])
	if err != nil {
		return ErrMalformed
	}
	q, err := p.Question()
	if err != nil || !h.Response || q.Type != dnsmessage.TypeA || q.Class != dnsmessage.ClassINET {
		return errForgedReply
	}
	name := q.Name.Data[:q.Name.Length]
	if len(name) != labelLen+len(c.suffix) || !bytes.EqualFold(name[labelLen:], c.suffix) {
		return errForgedReply
	}
	l, ok := parseLabel(name[:labelLen])
	if !ok || l.number > c.maxNumber {
		return errForgedReply
	}
	id.number = l.number
	proof := c.prove(id)
	if c.long(&proof, l.time) != l.long {
		return errForgedReply
	}
	a.Number, a.Sent, a.Strong = l.number, l.time, true
	return nil
}

// responseCHAOS recognises the response to a CHAOS probe by its identifier, and by the cookie if the server has sent it back.
func (c *Codec) responseCHAOS(msg []byte, id *identity, a *Answer) error {
	var p dnsmessage.Parser
	h, err := p.Start(msg[:min(len(msg), maxResponse)])
	if err != nil {
		return ErrMalformed
	}
	proof := c.prove(id)
	if !h.Response || h.ID != c.short(&proof).dnsID() {
		return errForgedReply
	}
	q, err := p.Question()
	if err != nil || q.Type != dnsmessage.TypeTXT || q.Class != dnsmessage.ClassCHAOS || !strings.EqualFold(q.Name.String(), chaosName) {
		return errForgedReply
	}
	// From here on what cannot be read is missing: it spoils the text at most.
	texts, nsid, cookie := readCHAOS(&p)
	if cookie != nil {
		if len(cookie) < cookieLen || binary.BigEndian.Uint64(cookie) != c.long(&proof, 0) {
			return errForgedReply
		}
		a.Strong = true
	}
	if a.Text = texts; a.Text == "" {
		a.Text = printable(nsid)
	}
	a.Number = id.number
	return nil
}

// readCHAOS reads what follows the question of a response: the first server's name, and the options of EDNS.
func readCHAOS(p *dnsmessage.Parser) (text string, nsid, cookie []byte) {
	if p.SkipAllQuestions() != nil {
		return text, nil, nil
	}
	for range maxChaosTexts {
		h, err := p.AnswerHeader()
		if err != nil {
			break
		}
		if text == "" && h.Type == dnsmessage.TypeTXT && h.Class == dnsmessage.ClassCHAOS {
			r, err := p.TXTResource()
			if err != nil {
				return text, nil, nil
			}
			text = printable([]byte(strings.Join(r.TXT, "")))
			continue
		}
		if p.SkipAnswer() != nil {
			return text, nil, nil
		}
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return text, nil, nil
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return text, nsid, cookie
		}
		if h.Type != dnsmessage.TypeOPT {
			if p.SkipAdditional() != nil {
				return text, nsid, cookie
			}
			continue
		}
		r, err := p.OPTResource()
		if err != nil {
			return text, nsid, cookie
		}
		for _, o := range r.Options {
			switch o.Code {
			case optionNSID:
				nsid = o.Data
			case optionCookie:
				cookie = o.Data
			}
		}
		return text, nsid, cookie
	}
}

// maxText bounds Answer.Text, in bytes before a conversion to hexadecimal.
const maxText = 255

// printable makes bytes from outside fit for terminals and files: as they are if they are printable ASCII, else in hexadecimal.
func printable(b []byte) string {
	b = b[:min(len(b), maxText)]
	for _, c := range b {
		if c < ' ' || c > '~' {
			return hex.EncodeToString(b)
		}
	}
	return string(b)
}

// quotedLabel finds the label in a quoted DNS message, which is as the probe had it.
func (c *Codec) quotedLabel(msg []byte) (l label, ok bool) {
	if len(msg) < labelOffset+labelLen {
		return l, false
	}
	return parseLabel(msg[labelOffset : labelOffset+labelLen])
}
