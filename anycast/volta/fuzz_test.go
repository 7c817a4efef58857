// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
	"github.com/seed5728abee/fathom/packet"
)

// FuzzDecode: whatever a peer sends is a message or an error, and a message can be sent on in its dialect.
func FuzzDecode(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(unhex(f, v.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m anycastpb.Message
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		msg, dialect, err := volta.Decode(&m)
		if err != nil {
			if msg != nil || !errors.Is(err, volta.ErrMalformed) && !errors.Is(err, volta.ErrKind) {
				t.Fatalf("%v with %v", err, msg)
			}
			return
		}
		again, err := volta.Encode(dialect, msg)
		if err != nil {
			t.Fatal(err)
		}
		back, err := volta.DecodeAs(dialect, again)
		if err != nil || back.Kind() != msg.Kind() {
			t.Fatalf("%#v comes back as %#v, %v", msg, back, err)
		}
		switch msg := msg.(type) {
		case volta.Job:
			if back != volta.Message(msg) {
				t.Fatalf("%#v comes back as %#v", msg, back)
			}
			if _, err := msg.Check(); err != nil && !errors.Is(err, volta.ErrJob) {
				t.Fatal(err)
			}
		case volta.Error:
			msg.JobID()
		case volta.Done:
			tr := newTraceroute(t, "volta x 203.0.113.10")
			tr.HandleDone(dialect, msg)
			tr.Result().Text()
		}
	})
}

// FuzzParseCommand: a command is a Command within its bounds or a *CommandError.
func FuzzParseCommand(f *testing.F) {
	for _, text := range []string{
		"", "volta a b", "volta a b -m 2 -w 1 -q 4 -t 2 -I", "volta -m=2 --max 3 -- a -b", "volta a b -Iq1", "volta a b --=1", "v a -h",
		"volta -1 -.5 -m -1", "volta a b -m 1_000",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := volta.ParseCommand(text)
		if err != nil {
			if _, ok := errors.AsType[*volta.CommandError](err); !ok || c != (volta.Command{}) {
				t.Fatalf("%+v, %v", c, err)
			}
			return
		}
		if c.Source == "" || c.Destination == "" || c.MaxTTL < 0 || c.MaxTTL > 255 || c.Queries < 0 || c.TOS < 0 || c.TOS > 255 ||
			c.Wait < 0 || c.Wait > time.Hour || c.Wait%time.Second != 0 {
			t.Fatalf("%+v", c)
		}
		if !strings.Contains(text, c.Source) || !strings.Contains(text, c.Destination) {
			t.Fatalf("%+v from nowhere", c)
		}
	})
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"2026-01-02T03:04:05.010500", "2026-01-02T03:04:05Z", "2026-01-02 03:04:05.5+05:45", "1900-01-01T00:00", "yesterday"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := volta.ParseTime(s)
		if err != nil {
			if !errors.Is(err, volta.ErrTime) || !at.IsZero() {
				t.Fatalf("%v, %v", at, err)
			}
			return
		}
		for _, text := range []string{at.Format(volta.Seed), at.Format(volta.Go), at.String()} {
			if back, err := volta.ParseTime(text); err != nil && at.Time().Year() > 1900 || back.IsZero() != at.IsZero() && err == nil {
				t.Fatalf("%q is written %q: %v, %v", s, text, back, err)
			}
		}
		if d, ok := at.Sub(stamp(t, "2026-01-02T03:04:05"), time.Second); ok && (d > 450*time.Second || d < -450*time.Second) {
			t.Fatalf("%q is %v away", s, d)
		}
	})
}

// FuzzParseAnswer: any packet of any host is an answer to a probe, or an error; nothing a traceroute is
// fed makes it count wrongly.
func FuzzParseAnswer(f *testing.F) {
	for _, s := range []string{timeExceeded, unreachable, "45c00038", ""} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		answer, err := volta.ParseAnswer(b)
		tr := newTraceroute(t, "volta x 203.0.113.10")
		took := tr.HandleReply(volta.Reply{Packet: b}, "x")
		if err != nil {
			if took || !errors.Is(err, volta.ErrMalformed) && !errors.Is(err, volta.ErrForeign) {
				t.Fatalf("%v, took %v", err, took)
			}
			return
		}
		if answer.Type != packet.ICMPv4TimeExceeded && answer.Type != packet.ICMPv4Unreachable || !answer.Gateway.Is4() || !answer.Destination.Is4() {
			t.Fatalf("%+v", answer)
		}
		if want := answer.Destination == target && answer.SourcePort >= session && answer.SourcePort < session+60; took != want {
			t.Fatalf("%+v: took %v, want %v", answer, took, want)
		}
		answered := 0
		for _, hop := range tr.Result().Hops {
			for _, probe := range hop.Probes {
				if !probe.Timeout {
					answered++
				}
			}
		}
		if took != (answered == 1) {
			t.Fatalf("%d answers after %+v", answered, answer)
		}
	})
}
