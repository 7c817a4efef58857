// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

// A nameServer answers a resolver's questions from memory, over pipes, so that it works in a bubble of synctest.
type nameServer struct {
	t *testing.T

	mu      sync.Mutex
	records map[question][]dns.RR
	fail    map[question]int  // the code to answer with
	silent  map[question]bool // no answer at all
	asked   map[question]int
}

// A question is a name without a dot at its end, in lower case, and a type.
type question struct {
	name  string
	rtype uint16
}

func newNameServer(t *testing.T) *nameServer {
	s := &nameServer{t: t}
	s.reset()
	s.asked = map[question]int{}
	return s
}

func (s *nameServer) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records, s.fail, s.silent = map[question][]dns.RR{}, map[question]int{}, map[question]bool{}
}

// set makes records, in the form of a zone file, all there are; the server works again.
func (s *nameServer) set(records ...string) {
	s.t.Helper()
	s.reset()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			s.t.Fatal(err)
		}
		q := question{strings.TrimSuffix(rr.Header().Name, "."), rr.Header().Rrtype}
		s.records[q] = append(s.records[q], rr)
	}
}

// failWith makes the server answer questions about a name with a code.
func (s *nameServer) failWith(code int, name string, types ...uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rtype := range types {
		s.fail[question{name, rtype}] = code
	}
}

// silence makes the server leave questions about a name without an answer.
func (s *nameServer) silence(name string, types ...uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rtype := range types {
		s.silent[question{name, rtype}] = true
	}
}

func (s *nameServer) timesAsked(name string, rtype uint16) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[question{name, rtype}]
}

func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go s.serve(server)
			return client, nil
		},
	}
}

func (s *nameServer) serve(c net.Conn) {
	defer c.Close()
	conn := &dns.Conn{Conn: c}
	for {
		m, err := conn.ReadMsg()
		if err != nil {
			return
		}
		if reply := s.answer(m); reply != nil && conn.WriteMsg(reply) != nil {
			return
		}
	}
}

func (s *nameServer) answer(m *dns.Msg) *dns.Msg {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := question{strings.TrimSuffix(strings.ToLower(m.Question[0].Name), "."), m.Question[0].Qtype}
	s.asked[q]++
	if s.silent[q] {
		return nil
	}
	reply := new(dns.Msg)
	reply.SetReply(m)
	reply.RecursionAvailable = true
	if code, ok := s.fail[q]; ok {
		reply.Rcode = code
		return reply
	}
	reply.Answer = s.records[q]
	if len(reply.Answer) == 0 {
		reply.Rcode = dns.RcodeNameError
		for other := range s.records {
			if other.name == q.name { // there is the name, but nothing of the type
				reply.Rcode = dns.RcodeSuccess
			}
		}
	}
	return reply
}

func TestMain(m *testing.M) {
	// The resolver has channels of its own that belong to where it is used first, which must not be a bubble.
	r := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }}
	_, _ = r.LookupNetIP(context.Background(), "ip", "nobody.invalid.")
	goleak.VerifyTestMain(m)
}
