// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// TestMain has every test somewhere else than in UTC, so that none can take a local time for that.
func TestMain(m *testing.M) {
	time.Local = time.FixedZone("", 5*3600+45*60)
	goleak.VerifyTestMain(m)
}

// Packets that agents of the original forwarded: a router's time exceeded about source port 10000, and
// the target's port unreachable about source port 10003; the probes went from 192.0.2.1 to
// 203.0.113.10.
const (
	timeExceeded = "45000038000000003e01a7ba0a090901c00002010b004b4d000000004500001c000000000111bbc5c0000201cb00710a2710829a00080000"
	unreachable  = "45000038000000003e017eb9cb00710ac000020103035347000000004500001c000000000111bbc5c0000201cb00710a2713829a00080000"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func stamp(t testing.TB, s string) volta.Time {
	t.Helper()
	at, err := volta.ParseTime(s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func decode(t testing.TB, b []byte) (volta.Message, volta.Dialect, error) {
	t.Helper()
	var m anycastpb.Message
	if err := proto.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return volta.Decode(&m)
}

// compareTimes tells times apart by what they show, for their inside is nobody's business.
var compareTimes = cmp.Comparer(func(a, b volta.Time) bool { return a.String() == b.String() })

type vector struct {
	name    string
	dialect volta.Dialect
	message volta.Message
	hex     string
}

// vectors were made or accepted by the originals; one was captured from an agent at work.
func vectors(t testing.TB) []vector {
	at := func(s string) volta.Time { return stamp(t, s) }
	job := volta.Job{SessionID: 10000, DstIP: "203.0.113.10", MaxTTL: 2, ProbeNum: 2, BasePort: 10000}
	return []vector{
		{
			"REGISTER", volta.Seed,
			volta.Register{AgentID: "agent1"},
			"0a085245474953544552122f0a23747970652e676f6f676c65617069732e636f6d2f52656769737465725061796c6f616412080a066167656e7431",
		},
		{
			"REGISTER", volta.Go,
			volta.Register{AgentID: "agent1"},
			"0a280a1c747970652e676f6f676c65617069732e636f6d2f526567697374657212080a066167656e7431",
		},
		{
			"JOB", volta.Seed, job,
			"0a034a4f42123a0a1e747970652e676f6f676c65617069732e636f6d2f4a6f625061796c6f6164121808904e120c3230332e302e3131332e31301802200228904e",
		},
		{
			"JOB", volta.Go, job,
			"0a330a17747970652e676f6f676c65617069732e636f6d2f4a6f62121808904e120c3230332e302e3131332e31301802200228904e",
		},
		{
			"DONE", volta.Seed,
			volta.Done{SessionID: 10000, Acks: []volta.Ack{
				{Seq: 10000, Sent: at("2026-01-02T03:04:05")}, {Seq: 10001, Sent: at("2026-01-02T03:04:05.001000")},
			}},
			"0a04444f4e4512610a1f747970652e676f6f676c65617069732e636f6d2f446f6e655061796c6f6164123e08904e121808904e1213323032362d30312d30325430333a30343a3035121f08914e121a323032362d30312d30325430333a30343a30352e303031303030",
		},
		{
			"DONE", volta.Go,
			volta.Done{SessionID: 10000, Acks: []volta.Ack{
				{Seq: 0, Sent: at("2026-01-02T03:04:05Z")}, {Seq: 1, Sent: at("2026-01-02T03:04:05.001Z")},
			}},
			"0a550a18747970652e676f6f676c65617069732e636f6d2f446f6e65123908904e12161214323032362d30312d30325430333a30343a30355a121c08011218323032362d30312d30325430333a30343a30352e3030315a",
		},
		{
			"REPLY", volta.Seed,
			volta.Reply{Packet: unhex(t, timeExceeded), Time: at("2026-01-02T03:04:05.010500")},
			"0a055245504c59127a0a20747970652e676f6f676c65617069732e636f6d2f5265706c795061796c6f616412560a38" + timeExceeded +
				"121a323032362d30312d30325430333a30343a30352e303130353030",
		},
		{
			"REPLY", volta.Go,
			volta.Reply{Packet: unhex(t, timeExceeded), Time: at("2026-01-02T03:04:05.0105Z")},
			"0a720a19747970652e676f6f676c65617069732e636f6d2f5265706c7912550a38" + timeExceeded +
				"1219323032362d30312d30325430333a30343a30352e303130355a",
		},
		{
			"captured REPLY", volta.Seed,
			volta.Reply{
				Packet: unhex(t, "45c00038bfdb00004001ecd60a500102c00002010b004b4d000000004500001c03e200000111b7e3c0000201cb00710a2710829a00080000"),
				Time:   at("2026-11-20T11:51:42.137598"),
			},
			"0a055245504c59127a0a20747970652e676f6f676c65617069732e636f6d2f5265706c795061796c6f616412560a3845c00038bfdb00004001ecd60a500102c00002010b004b4d000000004500001c03e200000111b7e3c0000201cb00710a2710829a00080000121a323032362d31312d32305431313a35313a34322e313337353938",
		},
		{
			"ERROR", volta.Seed,
			volta.Error{Code: 500, Message: "boom"},
			"0a054552524f52122d0a20747970652e676f6f676c65617069732e636f6d2f4572726f725061796c6f6164120908f4031204626f6f6d",
		},
		{
			"ERROR", volta.Go,
			volta.Error{Code: 500, Message: "boom"},
			"0a260a19747970652e676f6f676c65617069732e636f6d2f4572726f72120908f4031204626f6f6d",
		},
		{
			"DONE without acks", volta.Seed,
			volta.Done{SessionID: 7},
			"0a04444f4e4512250a1f747970652e676f6f676c65617069732e636f6d2f446f6e655061796c6f616412020807",
		},
		{
			"DONE without acks", volta.Go,
			volta.Done{SessionID: 7},
			"0a1e0a18747970652e676f6f676c65617069732e636f6d2f446f6e6512020807",
		},
	}
}

func TestVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.name+" "+v.dialect.String(), func(t *testing.T) {
			got, dialect, err := decode(t, unhex(t, v.hex))
			if err != nil {
				t.Fatal(err)
			}
			if dialect != v.dialect {
				t.Errorf("dialect %v, want %v", dialect, v.dialect)
			}
			if diff := cmp.Diff(v.message, got, compareTimes); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			m, err := volta.Encode(v.dialect, v.message)
			if err != nil {
				t.Fatal(err)
			}
			b, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, unhex(t, v.hex)) {
				t.Errorf("encoded\n%x, want\n%s", b, v.hex)
			}
			other := volta.Seed + volta.Go - v.dialect
			if _, err := volta.DecodeAs(other, m); !errors.Is(err, volta.ErrMalformed) {
				t.Errorf("as the other dialect: %v, want ErrMalformed", err)
			}
			if _, err := volta.DecodeAs(v.dialect, m); err != nil {
				t.Errorf("as its own dialect: %v", err)
			}
		})
	}
}

// TestRequestVectors holds what clients exchange with a controller, which is the same in both dialects.
func TestRequestVectors(t *testing.T) {
	for _, v := range []struct {
		message proto.Message
		hex     string
	}{
		{
			&anycastpb.Request{Command: "volta agent-a 203.0.113.10"},
			"0a1a766f6c7461206167656e742d61203230332e302e3131332e3130",
		},
		{
			&anycastpb.Response{Code: 400, Output: "Max hops * probe num (51 * 2) exceeds block size (100)"},
			"08900312364d617820686f7073202a2070726f6265206e756d20283531202a203229206578636565647320626c6f636b2073697a65202831303029",
		},
	} {
		b, err := proto.Marshal(v.message)
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(b) != v.hex {
			t.Errorf("%v: %x, want %s", v.message, b, v.hex)
		}
	}
	var r anycastpb.Request
	if err := proto.Unmarshal([]byte("\x0a\x05volta\x12\x03\xff\xfe\xfd"), &r); err != nil || r.GetCommand() != "volta" {
		t.Errorf("a request with settings: %q, %v", r.GetCommand(), err)
	}
}

// TestServiceNames holds the paths that peers call: they have no package.
func TestServiceNames(t *testing.T) {
	if got := anycastpb.AnycastService_ControlStream_FullMethodName; got != "/AnycastService/ControlStream" {
		t.Error(got)
	}
	if got := anycastpb.AnycastService_UserRequest_FullMethodName; got != "/AnycastService/UserRequest" {
		t.Error(got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	word := func(kind, url, value string) *anycastpb.Message {
		return &anycastpb.Message{
			Head:    []byte(kind),
			Payload: []byte("\x0a" + string(rune(len(url))) + url + "\x12" + string(rune(len(value))) + value),
		}
	}
	const prefix = "type.googleapis.com/"
	for _, tt := range []struct {
		name    string
		message *anycastpb.Message
		dialect volta.Dialect
		want    error
	}{
		{"nil", nil, 0, volta.ErrMalformed},
		{"nothing", &anycastpb.Message{}, 0, volta.ErrMalformed},
		{"noise", &anycastpb.Message{Head: []byte{0xff, 0, 1}}, 0, volta.ErrMalformed},
		{"a word that nobody says", &anycastpb.Message{Head: []byte("HELLO")}, volta.Seed, volta.ErrKind},
		{"a word that was never used", word("START", prefix+"JobPayload", ""), volta.Seed, volta.ErrKind},
		{"a word without payload", &anycastpb.Message{Head: []byte("DONE")}, volta.Seed, volta.ErrMalformed},
		{"another payload", word("DONE", prefix+"ReplyPayload", ""), volta.Seed, volta.ErrMalformed},
		{"the other dialect's payload", word("DONE", prefix+"Done", ""), volta.Seed, volta.ErrMalformed},
		{"a payload that is no Any", &anycastpb.Message{Head: []byte("DONE"), Payload: []byte{0x0a, 0xff}}, volta.Seed, volta.ErrMalformed},
		{"a broken payload", word("DONE", prefix+"DonePayload", "\x08"), volta.Seed, volta.ErrMalformed},
		{"an unknown type", &anycastpb.Message{Head: []byte("\x0a\x1c" + prefix + "Teapots!")}, volta.Go, volta.ErrKind},
		{"a foreign type", &anycastpb.Message{Head: []byte("\x0a\x0cexample/Done")}, 0, volta.ErrMalformed},
		{"a broken Go payload", &anycastpb.Message{Head: []byte("\x0a\x18" + prefix + "Done\x12\x01\x08")}, volta.Go, volta.ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, dialect, err := volta.Decode(tt.message)
			if !errors.Is(err, tt.want) || m != nil || dialect != tt.dialect {
				t.Errorf("got %v, %v, %v; want dialect %v, %v", m, dialect, err, tt.dialect, tt.want)
			}
		})
	}
}

// TestDecodeBadTime: who sends an unreadable time may still have the answer of a router.
func TestDecodeBadTime(t *testing.T) {
	b := unhex(t, "0a055245504c5912350a20747970652e676f6f676c65617069732e636f6d2f5265706c795061796c6f616412110a024500120b"+hex.EncodeToString([]byte("yesterday!!")))
	m, _, err := decode(t, b)
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := m.(volta.Reply); !ok || !r.Time.IsZero() || !bytes.Equal(r.Packet, []byte{0x45, 0}) {
		t.Errorf("got %#v", m)
	}
}

func TestEncodeRefuses(t *testing.T) {
	if _, err := volta.Encode(3, volta.Cancel{}); !errors.Is(err, volta.ErrDialect) {
		t.Errorf("dialect 3: %v", err)
	}
	if _, err := volta.Encode(volta.Seed, nil); !errors.Is(err, volta.ErrKind) {
		t.Errorf("nil: %v", err)
	}
	if _, err := volta.Encode(volta.Go, volta.Register{AgentID: "\xff"}); !errors.Is(err, volta.ErrMalformed) {
		t.Errorf("not UTF-8: %v", err)
	}
}

// TestEveryTruncation feeds every beginning of every vector to the decoder: it may refuse, but not with an
// error that nobody can branch on.
func TestEveryTruncation(t *testing.T) {
	for _, v := range vectors(t) {
		b := unhex(t, v.hex)
		for n := range b {
			var m anycastpb.Message
			if proto.Unmarshal(b[:n], &m) != nil {
				continue
			}
			if _, _, err := volta.Decode(&m); err != nil && !errors.Is(err, volta.ErrMalformed) && !errors.Is(err, volta.ErrKind) {
				t.Errorf("%s in %v, %d bytes: %v", v.name, v.dialect, n, err)
			}
		}
	}
}

func TestDialect(t *testing.T) {
	for _, d := range []volta.Dialect{volta.Seed, volta.Go} {
		if got, err := volta.ParseDialect(d.String()); got != d || err != nil {
			t.Errorf("%v: %v, %v", d, got, err)
		}
		for i := range 3 {
			if got := d.AckIndex(10000, d.AckSeq(10000, i)); got != i {
				t.Errorf("%v: index %d comes back as %d", d, i, got)
			}
		}
	}
	if got := volta.Seed.AckSeq(10000, 3); got != 10003 {
		t.Errorf("seed acknowledges by port: %d", got)
	}
	if got := volta.Go.AckSeq(10000, 3); got != 3 {
		t.Errorf("go acknowledges by index: %d", got)
	}
	if got := volta.Seed.AckIndex(65535, -1<<31); got != -1<<31-65535 {
		t.Errorf("a hostile number became index %d", got)
	}
	if _, err := volta.ParseDialect("auto"); !errors.Is(err, volta.ErrDialect) {
		t.Error(err)
	}
	if got := volta.Dialect(7).String(); got != "Dialect(7)" {
		t.Error(got)
	}
}

func TestJobCheck(t *testing.T) {
	good := volta.Job{SessionID: 1, DstIP: "203.0.113.10", MaxTTL: 20, ProbeNum: 3, BasePort: 65476}
	if dst, err := good.Check(); err != nil || dst.String() != good.DstIP {
		t.Errorf("got %v, %v", dst, err)
	}
	for _, tt := range []struct {
		job  volta.Job
		want string // in the error; empty: none
	}{
		{volta.Job{DstIP: "203.0.113.10"}, ""},
		{volta.Job{DstIP: "203.0.113.10", MaxTTL: 255, ProbeNum: 257, BasePort: 1}, ""},
		{volta.Job{MaxTTL: 1, ProbeNum: 1, BasePort: 1}, "not an IPv4 address"},
		{volta.Job{DstIP: "2001:db8::1"}, "not an IPv4 address"},
		{volta.Job{DstIP: "203.0.113.10", MaxTTL: 256}, "256 hops"},
		{volta.Job{DstIP: "203.0.113.10", MaxTTL: -1}, "-1 hops"},
		{volta.Job{DstIP: "203.0.113.10", ProbeNum: -1}, "-1 probes"},
		{volta.Job{DstIP: "203.0.113.10", MaxTTL: 1, ProbeNum: 1}, "ports outside"},
		{volta.Job{DstIP: "203.0.113.10", MaxTTL: 20, ProbeNum: 3, BasePort: 65477}, "ports outside"},
		{volta.Job{DstIP: "203.0.113.10", MaxTTL: 255, ProbeNum: 1<<31 - 1, BasePort: 1}, "ports outside"},
	} {
		_, err := tt.job.Check()
		if tt.want == "" {
			if err != nil {
				t.Errorf("%+v: %v", tt.job, err)
			}
		} else if !errors.Is(err, volta.ErrJob) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s", tt.job, err, tt.want)
		}
	}
}

// TestErrorJobID reads reports as the original's agents word them.
func TestErrorJobID(t *testing.T) {
	for text, want := range map[string]int32{
		"Unexpected error during sending for job 10000: 'H' format requires 0 <= number <= 65535": 10000,
		"Socket error during sending for job 8: [Errno 13] Permission denied":                     8,
		volta.NewError(400, 7, volta.ErrJob).Message:                                              7,
		"Error processing controller message: Error parsing message with type 'JobPayload'":       0,
		"for job 99999999999": 0,
		"for job 9999999999":  0,
	} {
		got, ok := volta.Error{Message: text}.JobID()
		if ok != (want != 0) || ok && got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, ok, want)
		}
	}
}

func TestTime(t *testing.T) {
	for _, tt := range []struct{ in, seed, goes string }{ // goes: as the Go dialect has it, for times with a zone
		{"2026-01-02T03:04:05.010500", "2026-01-02T03:04:05.010500", ""},
		{"2026-01-02T03:04:05", "2026-01-02T03:04:05", ""},
		{"2026-01-02 03:04:05.5", "2026-01-02T03:04:05.500000", ""},
		{"2026-01-02T03:04:05.000000999", "2026-01-02T03:04:05", ""},
		{"2026-01-02T03:04", "2026-01-02T03:04:00", ""},
		{"2026-01-02T03:04:05.0105Z", "", "2026-01-02T03:04:05.0105Z"},
		{"2026-01-02T03:04:05.123456789+05:45", "", "2026-01-02T03:04:05.123456789+05:45"},
		{"2026-01-02T03:04:05.000001+00:00", "", "2026-01-02T03:04:05.000001Z"},
		{"2026-01-02T03:04:05-0930", "", "2026-01-02T03:04:05-09:30"},
	} {
		at, err := volta.ParseTime(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if at.IsZero() || at.Zoned() != (tt.goes != "") {
			t.Errorf("%s: zero %v, zoned %v", tt.in, at.IsZero(), at.Zoned())
		}
		if got := at.Format(volta.Seed); tt.seed != "" && got != tt.seed {
			t.Errorf("%s in seed: %s, want %s", tt.in, got, tt.seed)
		}
		if got := at.Format(volta.Go); tt.goes != "" && got != tt.goes {
			t.Errorf("%s in go: %s, want %s", tt.in, got, tt.goes)
		}
		text, err := at.MarshalText()
		var back volta.Time
		if err != nil || back.UnmarshalText(text) != nil || back.String() != at.String() {
			t.Errorf("%s as text: %s, %v, %v", tt.in, text, err, back)
		}
	}
	for _, s := range []string{
		"yesterday", "2026-13-01T00:00:00", "2026-01-02", "12:00", "0001-01-01T00:00:00", "9999-01-01T00:00:00",
		"2026-01-02T03:04:05Z trailing", strings.Repeat("2", 41), "\xff",
	} {
		if at, err := volta.ParseTime(s); !errors.Is(err, volta.ErrTime) || !at.IsZero() {
			t.Errorf("%q: %v, %v", s, at, err)
		}
	}
	if at, err := volta.ParseTime(""); err != nil || !at.IsZero() || at.Format(volta.Seed) != "" || at.Format(volta.Go) != "" {
		t.Errorf("an unknown time: %v, %v", at, err)
	}
}

// TestTimeOfAgent: an agent of ours that speaks Seed says its own local time, with exactly 6 decimals
// or none.
func TestTimeOfAgent(t *testing.T) {
	at := volta.At(time.Date(2026, 1, 2, 3, 4, 5, 10500999, time.UTC))
	for dialect, want := range map[volta.Dialect]string{
		volta.Seed: "2026-01-02T08:49:05.010500",
		volta.Go:   "2026-01-02T03:04:05.010500999Z",
	} {
		if got := at.Format(dialect); got != want {
			t.Errorf("%v: %s, want %s", dialect, got, want)
		}
	}
	if got := volta.At(time.Date(2026, 1, 2, 3, 4, 5, 999, time.UTC)).Format(volta.Seed); got != "2026-01-02T08:49:05" {
		t.Errorf("on the second: %s", got)
	}
	naive := stamp(t, "2026-01-02T08:49:05")
	if got := naive.Time().UTC().Format(time.RFC3339); got != "2026-01-02T03:04:05Z" {
		t.Errorf("local time without a zone is %s", got)
	}
	if got := naive.Format(volta.Go); got != "2026-01-02T08:49:05+05:45" {
		t.Errorf("in go: %s", got)
	}
	if !volta.At(time.Time{}).IsZero() {
		t.Error("the zero instant is a known time")
	}
}

func TestTimeSub(t *testing.T) {
	for _, tt := range []struct {
		to, from string
		want     time.Duration
	}{
		{"2026-01-02T03:04:05.010500", "2026-01-02T03:04:05", 10500 * time.Microsecond},
		{"2026-01-02T03:04:05", "2026-01-02T03:04:05.010000", -10 * time.Millisecond},
		{"2026-01-02T03:04:05.0105Z", "2026-01-02T04:04:05.01+01:00", 500 * time.Microsecond},
		// One local time without a zone, the other agent somewhere else.
		{"2026-01-02T08:49:05.250000", "2026-01-02T03:04:05Z", 250 * time.Millisecond},
		{"2026-01-02T03:04:05Z", "2026-01-02T08:49:05.250000", -250 * time.Millisecond},
		// One without and one with zone, where subtracting gives something plausible that is not.
		{"2026-01-02T03:04:05.001000", "2026-01-02T03:04:05Z", time.Millisecond},
		// Two local times of different zones.
		{"2026-01-02T00:04:05.003000", "2026-01-02T03:04:05", 3 * time.Millisecond},
		{"2026-01-02T00:04:04.997000", "2026-01-02T03:04:05", -3 * time.Millisecond},
		// Two clocks that are just wrong.
		{"2026-01-02T03:05:05", "2026-01-02T03:04:05", time.Minute},
		{"2026-01-02T03:04:05", "2026-01-02T03:05:05", -time.Minute},
	} {
		got, ok := stamp(t, tt.to).Sub(stamp(t, tt.from), 5*time.Second)
		if !ok || got != tt.want {
			t.Errorf("%s - %s = %v, %v; want %v", tt.to, tt.from, got, ok, tt.want)
		}
	}
	known := stamp(t, "2026-01-02T03:04:05")
	if _, ok := known.Sub(volta.Time{}, time.Second); ok {
		t.Error("a time since nobody knows when")
	}
	if _, ok := (volta.Time{}).Sub(known, time.Second); ok {
		t.Error("an unknown time since something")
	}
}
