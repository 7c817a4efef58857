// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// TestRecorded takes the place of the original's controller in a recording of it: it makes the same
// jobs of the same commands, and of the same messages of the agents the same text, byte for byte.
func TestRecorded(t *testing.T) {
	data, err := os.ReadFile("testdata/recorded.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := map[netip.Addr]string{}
	for addr, name := range map[string]string{
		"10.0.1.2": "core-eu", "10.0.2.2": "core-us", "10.0.12.1": "isp-la", "10.0.13.1": "isp-mix", "198.18.11.1": "mix1",
	} {
		names[netip.MustParseAddr(addr)] = name
	}

	agents := map[string]string{} // stream to id
	var command volta.Command
	var tr *volta.Traceroute
	results, replies := 0, 0
	for line := range strings.Lines(string(data)) {
		if line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		stream, way, raw := f[0], f[1], unhex(t, f[2])

		if stream == "0" && way == ">" {
			var r anycastpb.Request
			if err := proto.Unmarshal(raw, &r); err != nil {
				t.Fatal(err)
			}
			if command, err = volta.ParseCommand(r.GetCommand()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if stream == "0" {
			var r anycastpb.Response
			if err := proto.Unmarshal(raw, &r); err != nil {
				t.Fatal(err)
			}
			result := tr.Result()
			setNames(result, names)
			if got := result.Text(); got != r.GetOutput() || r.GetCode() != 200 {
				t.Errorf("got\n%s\nwant\n%s", got, r.GetOutput())
			}
			results++
			continue
		}

		msg, dialect, err := decode(t, raw)
		if err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		again, err := volta.Encode(dialect, msg)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := proto.Marshal(again); err != nil || !bytes.Equal(b, raw) {
			t.Errorf("%s of %s encodes as\n%x, %v; want\n%x", msg.Kind(), agents[stream], b, err, raw)
		}
		switch msg := msg.(type) {
		case volta.Register:
			agents[stream] = msg.AgentID
		case volta.Job:
			if agents[stream] != command.Source {
				t.Errorf("a job for %s goes to %s", command.Source, agents[stream])
			}
			conf := volta.TracerouteConf{Command: command, Target: netip.MustParseAddr(msg.DstIP), SessionID: uint16(msg.SessionID)}
			if tr, err = volta.NewTraceroute(conf); err != nil {
				t.Fatal(err)
			}
			if tr.Job() != msg {
				t.Errorf("job %+v, want %+v", tr.Job(), msg)
			}
		case volta.Done:
			tr.HandleDone(dialect, msg)
		case volta.Reply:
			if tr.HandleReply(msg, agents[stream]) {
				replies++
			}
		default:
			t.Errorf("%s in the recording", msg.Kind())
		}
	}
	if results != 2 || replies != 22 {
		t.Errorf("%d results of %d replies, want 2 of 22", results, replies)
	}
}
