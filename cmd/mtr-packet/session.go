// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/seed5728abee/fathom/probe"
)

// prober is what a session needs of [probe.Prober].
type prober interface {
	Features() probe.Features
	Start(probe.Request, func(probe.Result)) (probe.Handle, error)
}

// session carries out commands. It does no input or output and all its methods, with the prober's
// callbacks, are called on one goroutine.
type session struct {
	prober   prober
	features probe.Features
	dialect  *dialect
	// settle is called once, before the first probe or mark is promised: it drops the privileges, all of
	// them unless keepMark says that what SO_MARK needs must stay. It tells whether that stays.
	settle  func(keepMark bool) (kept bool)
	settled bool
	mark    bool // probes may carry a mark

	lines    lines
	replies  replies
	inFlight int

	done    func(probe.Result) // finish, bound once
	command command
	devices map[string]string // names of interfaces seen, so that each is allocated once
}

func newSession(p prober, d *dialect, settle func(keepMark bool) (kept bool)) *session {
	s := &session{prober: p, features: p.Features(), dialect: d, settle: settle, devices: map[string]string{}}
	s.mark = s.features.Mark
	s.done = s.finish
	return s
}

// run carries out the complete lines that are in s.lines.
func (s *session) run() {
	for {
		line, overflow, ok := s.lines.next()
		switch {
		case !ok:
			return
		case overflow:
			s.answer(0, wordOverflow)
		default:
			s.execute(line)
		}
	}
}

func (s *session) answer(token int64, word string) {
	s.replies.buf = appendWord(s.replies.buf, token, word)
}

// execute carries out one line.
func (s *session) execute(line []byte) {
	c := &s.command
	if refusal := c.parse(line); refusal != "" {
		s.answer(c.token, refusal)
		return
	}
	switch c.verb {
	case checkSupport:
		s.replies.buf = appendSupport(s.replies.buf, c.token, s.support(c.feature))
	case sendProbe:
		if refusal := s.start(c); refusal != "" {
			s.answer(c.token, refusal)
		}
	}
}

// support is the value of check-support.
func (s *session) support(feature []byte) string {
	f := &s.features
	ok := false
	switch string(feature) {
	case "version":
		return s.dialect.version
	case "send-probe":
		ok = true
	case "ip-4":
		ok = f.IPv4
	case "ip-6":
		ok = f.IPv6
	case "icmp":
		ok = f.ICMP
	case "udp":
		ok = f.UDP
	case "tcp":
		ok = f.TCP
	case "sctp":
		ok = f.SCTP
	case "local-device":
		ok = f.Interface
	case "mark":
		s.decide(true)
		ok = s.mark
	}
	if ok {
		return "ok"
	}
	return "no"
}

// decide settles the privileges, the first time it is called.
func (s *session) decide(keepMark bool) {
	if s.settled {
		return
	}
	s.settled = true
	s.mark = s.settle(keepMark && s.features.Mark) && s.mark
}

// start sends the probe of a command, or says why not.
func (s *session) start(c *command) (refusal string) {
	r := &c.request
	f := &s.features
	version := 6
	if r.Target.Is4() {
		version = 4
	}
	switch {
	case version == 4 && !f.IPv4 || version == 6 && !f.IPv6:
		return wordNoIPVersion
	case !f.Supports(r.Protocol, version):
		return wordNoProtocol
	}
	s.decide(r.Mark != 0)
	switch {
	case r.Mark != 0 && !s.mark:
		return wordPermissionDenied
	case c.device != nil && !f.Interface:
		return wordInvalidArgument
	}
	r.Tag = uint64(c.token)
	if c.device != nil {
		r.Interface = s.device(c.device)
		if linkLocal(r.Target) {
			r.Target = r.Target.WithZone(r.Interface)
		}
	}
	s.inFlight++
	if _, err := s.prober.Start(*r, s.done); err != nil {
		s.inFlight--
		s.replies.buf = s.dialect.appendError(s.replies.buf, c.token, err)
	}
	return ""
}

// maxDevices bounds the names remembered.
const maxDevices = 64

// device gives the name of an interface as a string.
func (s *session) device(name []byte) string {
	if known, ok := s.devices[string(name)]; ok {
		return known
	}
	if len(s.devices) == maxDevices {
		clear(s.devices)
	}
	known := string(name)
	s.devices[known] = known
	return known
}

// finish answers a probe that has ended.
func (s *session) finish(r probe.Result) {
	s.inFlight--
	s.replies.buf = s.dialect.appendResult(s.replies.buf, &r)
}
