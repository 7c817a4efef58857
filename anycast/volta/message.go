// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// Errors of Decode and Encode to branch on. None of them is a reason to end a stream.
var (
	// ErrMalformed: the bytes are not a message of either dialect, or its payload is not what its kind
	// says.
	ErrMalformed = errors.New("malformed message")
	// ErrKind: a well-formed message of a kind that nobody sends.
	ErrKind = errors.New("unknown kind of message")
	// ErrJob: a Job that no agent can do.
	ErrJob = errors.New("impossible job")
)

// Message is one of Register, Job, Done, Reply, Error and Cancel.
type Message interface {
	// Kind is the message's name in the Seed dialect, for logs and counters: "REGISTER".
	Kind() string
}

// Register is an agent's first message. It is not answered.
type Register struct {
	AgentID string // as sent: any text, also none
}

// Job asks an agent for MaxTTL*ProbeNum probes: for every hop limit from 1 on ProbeNum of them, each
// from the next source port, the first from BasePort. An agent calls Check before it believes a word.
type Job struct {
	SessionID int32 // echoed in Done; not otherwise related to BasePort
	DstIP     string
	MaxTTL    int32
	ProbeNum  int32
	BasePort  int32
}

// Done says that all probes of a Job were sent, and when.
type Done struct {
	SessionID int32
	Acks      []Ack
}

// Ack says when a probe was sent. Seq names it as the dialect has it: see Dialect.AckIndex.
type Ack struct {
	Seq  int32
	Sent Time
}

// Reply is an ICMP packet that an agent received, from the IP header on, about a probe of any agent's.
type Reply struct {
	Packet []byte
	Time   Time
}

// Error says that a job failed. Which one, only its text may say: see JobID.
type Error struct {
	Code    int32 // 400: the job makes no sense; 500: it could not be done
	Message string
}

// Cancel is defined by both dialects and sent by nobody.
type Cancel struct{}

func (Register) Kind() string { return "REGISTER" }
func (Job) Kind() string      { return "JOB" }
func (Done) Kind() string     { return "DONE" }
func (Reply) Kind() string    { return "REPLY" }
func (Error) Kind() string    { return "ERROR" }
func (Cancel) Kind() string   { return "CANCEL" }

// NewError is an agent's report about a job, in words of which JobID finds the job.
func NewError(code int32, sessionID int32, err error) Error {
	return Error{Code: code, Message: fmt.Sprintf("cannot do job %d: %v", sessionID, err)}
}

// jobInError is how the originals' reports name the job.
var jobInError = regexp.MustCompile(`\bjob (\d{1,10})\b`)

// JobID finds the session id of the job that failed in the text of the report. A report about a job
// that could not be read names none.
func (e Error) JobID() (int32, bool) {
	m := jobInError.FindStringSubmatch(e.Message)
	if m == nil {
		return 0, false
	}
	id, err := strconv.ParseInt(m[1], 10, 32)
	return int32(id), err == nil
}

// Error makes the agent's report an error.
func (e Error) Error() string { return fmt.Sprintf("agent: %.500q (code %d)", e.Message, e.Code) }

// Check gives the destination of a job that can be done: an IPv4 address, 0 to 255 hops, and source
// ports that exist. Anything else is ErrJob, with a text for the Error that answers it.
func (j Job) Check() (netip.Addr, error) {
	dst, err := netip.ParseAddr(j.DstIP)
	switch {
	case err != nil || !dst.Is4():
		return netip.Addr{}, fmt.Errorf("%w: destination %.64q is not an IPv4 address", ErrJob, j.DstIP)
	case j.MaxTTL < 0 || j.MaxTTL > 255:
		return netip.Addr{}, fmt.Errorf("%w: %d hops are not in 0 to 255", ErrJob, j.MaxTTL)
	case j.ProbeNum < 0:
		return netip.Addr{}, fmt.Errorf("%w: %d probes for a hop", ErrJob, j.ProbeNum)
	}
	probes := int64(j.MaxTTL) * int64(j.ProbeNum)
	if probes > 0 && (j.BasePort < 1 || int64(j.BasePort)+probes > 65536) {
		return netip.Addr{}, fmt.Errorf("%w: %d probes from port %d on need ports outside 1 to 65535", ErrJob, probes, j.BasePort)
	}
	return dst, nil
}

// typePrefix begins the type URL of every payload.
const typePrefix = "type.googleapis.com/"

// Decode reads a message of either dialect and says which it was. With an error the dialect is still
// told where the form shows it, and 0 otherwise.
//
// The two are told apart at the level of the wire: Seed has a kind in words in field 1 and, for all
// kinds that anybody sends, a payload in field 2; Go has only a payload, in field 1. A time that
// cannot be read is a zero Time, not an error: the rest of the message is worth having.
//
// Errors: ErrMalformed, ErrKind.
func Decode(m *anycastpb.Message) (Message, Dialect, error) {
	if m.GetPayload() == nil {
		var payload anypb.Any
		// An Any begins with the tag of its first field, which no word does.
		if head := m.GetHead(); len(head) > 0 && head[0] == 0x0a &&
			proto.Unmarshal(head, &payload) == nil && strings.HasPrefix(payload.GetTypeUrl(), typePrefix) {
			msg, err := decodeGo(&payload)
			return msg, Go, err
		}
		if !isWord(m.GetHead()) {
			return nil, 0, fmt.Errorf("%w: neither a word nor a payload in %d bytes", ErrMalformed, len(m.GetHead()))
		}
	}
	msg, err := decodeSeed(m)
	return msg, Seed, err
}

// DecodeAs is Decode for a stream whose dialect is known: a message of the other one is ErrMalformed.
func DecodeAs(d Dialect, m *anycastpb.Message) (Message, error) {
	msg, got, err := Decode(m)
	if err == nil && got != d {
		return nil, fmt.Errorf("%w: dialect %v on a stream of dialect %v", ErrMalformed, got, d)
	}
	return msg, err
}

// isWord tells whether b looks like a kind of the Seed dialect.
func isWord(b []byte) bool {
	for _, c := range b {
		if (c < 'A' || c > 'Z') && c != '_' {
			return false
		}
	}
	return len(b) > 0
}

func decodeSeed(m *anycastpb.Message) (Message, error) {
	kind := string(m.GetHead())
	var payload anypb.Any
	if err := proto.Unmarshal(m.GetPayload(), &payload); err != nil {
		return nil, fmt.Errorf("%w: payload of %.20q: %w", ErrMalformed, kind, err)
	}
	_, name, _ := cutLast(payload.GetTypeUrl(), "/")
	for _, k := range kinds {
		if k.word != kind {
			continue
		}
		if name != k.name+"Payload" {
			return nil, fmt.Errorf("%w: %s with a payload of type %.60q", ErrMalformed, kind, payload.GetTypeUrl())
		}
		return k.decode(payload.GetValue())
	}
	return nil, fmt.Errorf("%w: %.20q", ErrKind, kind)
}

func decodeGo(payload *anypb.Any) (Message, error) {
	_, name, _ := cutLast(payload.GetTypeUrl(), "/")
	for _, k := range kinds {
		if k.name == name {
			return k.decode(payload.GetValue())
		}
	}
	return nil, fmt.Errorf("%w: %.60q", ErrKind, payload.GetTypeUrl())
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// kinds lists what a payload may be: the word and, without "Payload", the type's name in Seed; the
// type's name in Go.
var kinds = []struct {
	word, name string
	decode     func([]byte) (Message, error)
}{
	{"REGISTER", "Register", func(b []byte) (Message, error) {
		var p anycastpb.Register
		if err := unmarshal(b, &p); err != nil {
			return nil, err
		}
		return Register{AgentID: p.GetAgentId()}, nil
	}},
	{"JOB", "Job", func(b []byte) (Message, error) {
		var p anycastpb.Job
		if err := unmarshal(b, &p); err != nil {
			return nil, err
		}
		return Job{
			SessionID: p.GetSessionId(), DstIP: p.GetDstIp(), MaxTTL: p.GetMaxTtl(),
			ProbeNum: p.GetProbeNum(), BasePort: p.GetBasePort(),
		}, nil
	}},
	{"DONE", "Done", func(b []byte) (Message, error) {
		var p anycastpb.Done
		if err := unmarshal(b, &p); err != nil {
			return nil, err
		}
		done := Done{SessionID: p.GetSessionId()}
		if len(p.GetUdpAcks()) > 0 {
			done.Acks = make([]Ack, len(p.GetUdpAcks()))
		}
		for i, ack := range p.GetUdpAcks() {
			sent, _ := ParseTime(ack.GetSentTime()) // zero when it cannot be read
			done.Acks[i] = Ack{Seq: ack.GetSeq(), Sent: sent}
		}
		return done, nil
	}},
	{"REPLY", "Reply", func(b []byte) (Message, error) {
		var p anycastpb.Reply
		if err := unmarshal(b, &p); err != nil {
			return nil, err
		}
		received, _ := ParseTime(p.GetTime()) // zero when it cannot be read
		return Reply{Packet: p.GetRawPacket(), Time: received}, nil
	}},
	{"ERROR", "Error", func(b []byte) (Message, error) {
		var p anycastpb.Error
		if err := unmarshal(b, &p); err != nil {
			return nil, err
		}
		return Error{Code: p.GetCode(), Message: p.GetMessage()}, nil
	}},
	{"CANCEL", "Cancel", func(b []byte) (Message, error) {
		var p anycastpb.Cancel
		if err := unmarshal(b, &p); err != nil {
			return nil, err
		}
		return Cancel{}, nil
	}},
}

func unmarshal(b []byte, p proto.Message) error {
	if err := proto.Unmarshal(b, p); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, p.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}

// Encode makes the message that an original of this dialect would, byte for byte. Errors: ErrDialect;
// ErrKind for a Message that is not of this package; ErrMalformed for text that is not UTF-8.
func Encode(d Dialect, msg Message) (*anycastpb.Message, error) {
	var name string
	var p proto.Message
	switch m := msg.(type) {
	case Register:
		name, p = "Register", &anycastpb.Register{AgentId: m.AgentID}
	case Job:
		name, p = "Job", &anycastpb.Job{
			SessionId: m.SessionID, DstIp: m.DstIP, MaxTtl: m.MaxTTL, ProbeNum: m.ProbeNum, BasePort: m.BasePort,
		}
	case Done:
		done := &anycastpb.Done{SessionId: m.SessionID, UdpAcks: make([]*anycastpb.UdpAck, len(m.Acks))}
		for i, ack := range m.Acks {
			done.UdpAcks[i] = &anycastpb.UdpAck{Seq: ack.Seq, SentTime: ack.Sent.Format(d)}
		}
		name, p = "Done", done
	case Reply:
		name, p = "Reply", &anycastpb.Reply{RawPacket: m.Packet, Time: m.Time.Format(d)}
	case Error:
		name, p = "Error", &anycastpb.Error{Code: m.Code, Message: m.Message}
	case Cancel:
		name, p = "Cancel", &anycastpb.Cancel{}
	default:
		return nil, fmt.Errorf("%w: %T", ErrKind, msg)
	}
	url := typePrefix + name
	if d == Seed {
		url += "Payload"
	}
	value, err := proto.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMalformed, msg.Kind(), err)
	}
	payload, err := proto.Marshal(&anypb.Any{TypeUrl: url, Value: value})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMalformed, msg.Kind(), err)
	}
	switch d {
	case Seed:
		return &anycastpb.Message{Head: []byte(msg.Kind()), Payload: payload}, nil
	case Go:
		return &anycastpb.Message{Head: payload}, nil
	default:
		return nil, fmt.Errorf("%w: %v", ErrDialect, d)
	}
}
