// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A chatMessage is one of Cicada's messenger: a JSON object with three strings.
//
// To is empty for everybody, a user's name in a private message, and in a broadcast that is for a channel its name with a #
// before it. Cicada's messenger reads all three: it shows the text and its sender, whoever it is to.
type chatMessage struct {
	Text   string `json:"message"`
	Sender string `json:"sender"`
	To     string `json:"to"`
}

// Bounds of the messenger.
const (
	chatMaxMessage = 64 << 10 // bytes of an encoded message
	chatMaxText    = 8 << 10  // bytes of a text that a user enters: escaped, it still fits
	chatMaxName    = 64       // bytes of a name, of a user or a channel
)

var errChatMessage = errors.New("not a message of the messenger")

// decodeChatMessage reads a message. Members of the object that it does not know are ignored.
func decodeChatMessage(data []byte) (chatMessage, error) {
	if len(data) > chatMaxMessage {
		return chatMessage{}, fmt.Errorf("%w: %d bytes, at most %d", errChatMessage, len(data), chatMaxMessage)
	}
	var m struct {
		Text   *string `json:"message"`
		Sender *string `json:"sender"`
		To     string  `json:"to"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return chatMessage{}, fmt.Errorf("%w: %w", errChatMessage, err)
	}
	if m.Text == nil || m.Sender == nil {
		return chatMessage{}, fmt.Errorf("%w: no text or no sender", errChatMessage)
	}
	return chatMessage{Text: *m.Text, Sender: *m.Sender, To: m.To}, nil
}

// encode gives the message as it is sent.
func (m chatMessage) encode() []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		panic(err) // strings can be encoded
	}
	return bytes.TrimSpace(b.Bytes())
}

// checkChatName refuses what cannot be a user's or a channel's name: it has to be one word that shows.
func checkChatName(s string) error {
	switch {
	case s == "":
		return errors.New("the name is empty")
	case len(s) > chatMaxName:
		return fmt.Errorf("the name is longer than %d bytes", chatMaxName)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' }):
		return fmt.Errorf("the name %q is not one word", s)
	case strings.ContainsAny(s, "#~:/"):
		return fmt.Errorf("the name %q has one of # ~ : /", s)
	}
	return nil
}

// chatCommand is what a user enters.
type chatCommand struct {
	name string // without the slash; "say" for what has none
	args string
}

// parseChatLine reads a line that a user has entered; an empty name means that there is nothing to do.
func parseChatLine(line string) chatCommand {
	line = strings.TrimSpace(line)
	if line == "" {
		return chatCommand{}
	}
	if line[0] != '/' {
		return chatCommand{"say", line}
	}
	name, args, _ := strings.Cut(line[1:], " ")
	return chatCommand{strings.ToLower(name), strings.TrimSpace(args)}
}
