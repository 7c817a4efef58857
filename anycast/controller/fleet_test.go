// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// open begins a session of ICMP probes whose events are recorded.
func (s *started) open(t testing.TB) (anycast.Session, *recorder) {
	t.Helper()
	r := new(recorder)
	session, err := s.fleet.Open(t.Context(), anycast.SessionConfig{Probes: stateless.Config{Kind: stateless.ICMP}, Handler: r})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	return session, r
}

// batch is n echo requests, numbered from first on, to as many targets.
func batch(id uint64, first, n int) anycast.Batch {
	b := anycast.Batch{ID: id, TTLs: []uint8{64}, Flows: []uint16{0}, Stamps: true}
	for i := range n {
		b.Targets = append(b.Targets, netip.AddrFrom4([4]byte{203, 0, 113, byte(first + i)}))
		b.Numbers = append(b.Numbers, uint16(first+i))
	}
	return b
}

func atSite(name string) func(int, netip.Addr) string {
	return func(int, netip.Addr) string { return name }
}

func TestSession(t *testing.T) {
	s := start(t, Options{})
	w := &world{hops: 3, receiver: atSite("b")}
	a, b := w.agent("a"), w.agent("b")
	a.attach(s)
	session, r := s.open(t)
	b.attach(s) // later than the session began
	s.connected("a", "b")
	if err := session.Send("a", batch(7, 0, 10)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "answers", func() bool { sent, answers := r.counts(); return sent == 1 && answers == 10 })
	sent := r.sent[0]
	if sent.Site != "a" || sent.Batch != 7 || sent.Count != 10 || sent.Err != nil || len(sent.Times) != 10 {
		t.Errorf("sent %+v", sent)
	}
	seen := map[uint16]bool{}
	for _, answer := range r.answers {
		if answer.Site != "b" || answer.Status != probe.Replied || !answer.Strong || answer.Target.As4()[3] != byte(answer.Number) {
			t.Errorf("answer %+v", answer)
		}
		if answer.Sent != sent.Times[answer.Number] {
			t.Errorf("answer %d left at %d by its payload, %d by the report", answer.Number, answer.Sent, sent.Times[answer.Number])
		}
		seen[answer.Number] = true
	}
	if len(seen) != 10 {
		t.Errorf("numbers %v", seen)
	}

	// Refusals.
	classic := s.origin("old", volta.Seed)
	_ = classic
	other := batch(9, 0, 1)
	other.Source = netip.MustParseAddr("198.51.100.1")
	six := anycast.Batch{Targets: []netip.Addr{netip.MustParseAddr("2001:db8::9")}, TTLs: []uint8{9}, Flows: []uint16{0}, Numbers: []uint16{0}}
	mixed := batch(9, 0, 3)
	mixed.Numbers = mixed.Numbers[:2]
	for _, c := range []struct {
		site  string
		batch anycast.Batch
		want  error
	}{
		{"nowhere", batch(8, 0, 1), anycast.ErrNoSite},
		{"old", batch(8, 0, 1), anycast.ErrCannotSend},
		{"a", other, anycast.ErrNoSource},
		{"a", six, anycast.ErrNoSource},
		{"a", mixed, errColumns},
	} {
		if err := session.Send(c.site, c.batch); !errors.Is(err, c.want) {
			t.Errorf("send from %s: %v, want %v", c.site, err, c.want)
		}
	}
	session.Close()
	session.Close()
	if err := session.Send("a", batch(10, 0, 1)); err == nil {
		t.Error("a closed session sends")
	}
	eventually(t, "agents forget the session", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.sessions) == 0
	})
}

// TestReconnect: a site's connection breaks again and again while it probes; every report and answer arrives once.
func TestReconnect(t *testing.T) {
	s := start(t, Options{})
	w := &world{hops: 3, receiver: atSite("a")}
	a := w.agent("a")
	a.attach(s)
	session, r := s.open(t)
	const rounds, each = 20, 5
	for round := range rounds {
		s.connected("a")
		a.mu.Lock()
		open := len(a.sessions)
		a.mu.Unlock()
		if round > 0 && open != 1 {
			t.Fatalf("round %d: the agent has %d sessions", round, open)
		}
		got := make(chan struct{}, 1)
		a.onSend = func(*measurepb.Send) { got <- struct{}{} }
		if err := session.Send("a", batch(uint64(round), round*each, each)); err != nil {
			t.Fatal(err)
		}
		<-got // the agent has it; now the connection breaks, before or after its reports
		a.detach()
		a.attach(s)
	}
	eventually(t, "all answers", func() bool { sent, answers := r.counts(); return sent == rounds && answers == rounds*each })
	time.Sleep(50 * time.Millisecond) // for what must not come
	if sent, answers := r.counts(); sent != rounds || answers != rounds*each {
		t.Errorf("%d reports and %d answers, want %d and %d", sent, answers, rounds, rounds*each)
	}
	for _, sent := range r.sent {
		if sent.Err != nil {
			t.Errorf("batch %d: %v", sent.Batch, sent.Err)
		}
	}
	eventually(t, "reports acknowledged", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.kept) == 0
	})
}

// TestAgentKilled: a process that is no more reports nothing; its successor says so.
func TestAgentKilled(t *testing.T) {
	s := start(t, Options{})
	w := &world{hops: 3, receiver: atSite("a")}
	a := w.agent("a")
	a.mute = true
	a.attach(s)
	s.connected("a")
	session, r := s.open(t)
	if err := session.Send("a", batch(1, 0, 5)); err != nil {
		t.Fatal(err)
	}
	a.detach()
	eventually(t, "loss noticed", func() bool { return len(s.fleet.Sites()) == 0 })
	if err := session.Send("a", batch(2, 0, 5)); !errors.Is(err, anycast.ErrNoSite) {
		t.Errorf("send to a lost site: %v", err)
	}
	again := w.agent("a")
	again.incarnation = 99
	again.attach(s)
	eventually(t, "the batch is given up", func() bool { sent, _ := r.counts(); return sent == 1 })
	if got := r.sent[0]; got.Batch != 1 || !errors.Is(got.Err, anycast.ErrSiteLost) || got.Count != 0 {
		t.Errorf("sent %+v", got)
	}
	s.connected("a")
	if err := session.Send("a", batch(3, 0, 5)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "answers of the new process", func() bool { sent, answers := r.counts(); return sent == 2 && answers == 5 })
}

// TestSiteLost: a site that stays away is given up after its grace, and forgotten.
func TestSiteLost(t *testing.T) {
	f := newFleet(blocks(t), quiet())
	l := &link{native: newOrders[*measurepb.ToAgent](), end: make(chan struct{})}
	site, err := f.attach(l, anycast.Site{Name: "a", Native: true, Anycast: []netip.Addr{shared}}, false, 1, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	r := new(recorder)
	session, err := f.Open(t.Context(), anycast.SessionConfig{Probes: stateless.Config{Kind: stateless.UDP}, Handler: r})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	now := time.Now()
	slow := batch(2, 0, 10)
	slow.Rate = 0.1 // takes 100 s
	for _, b := range []anycast.Batch{batch(1, 0, 10), slow} {
		if err := session.Send("a", b); err != nil {
			t.Fatal(err)
		}
	}
	if !site.detach(l, now) || site.detach(l, now) {
		t.Error("a connection ends once")
	}
	f.tick(now.Add(siteGrace - time.Second))
	if sent, _ := r.counts(); sent != 0 {
		t.Error("given up within the grace")
	}
	// It comes back in time, and says nothing of the first batch.
	l = &link{native: newOrders[*measurepb.ToAgent](), end: make(chan struct{})}
	if again, err := f.attach(l, anycast.Site{Name: "a", Native: true}, false, 1, nil, ""); err != nil || again != site {
		t.Fatalf("another site: %v", err)
	}
	f.tick(now.Add(siteGrace + time.Second))
	if sent, _ := r.counts(); sent != 1 || r.sent[0].Batch != 1 || !errors.Is(r.sent[0].Err, anycast.ErrSiteLost) {
		t.Errorf("sent %+v", r.sent)
	}
	site.detach(l, now.Add(20*time.Second))
	f.tick(now.Add(20*time.Second + siteGrace + time.Second))
	if sent, _ := r.counts(); sent != 2 || f.site("a") != nil {
		t.Errorf("sent %+v, site %v", r.sent, f.site("a"))
	}
}

func blocks(t testing.TB) *volta.Blocks {
	t.Helper()
	b, err := volta.NewBlocks(10000, 20000, 100)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDuplicateName: the newer registration wins, with a warning, and the older one's end does not unregister it.
func TestDuplicateName(t *testing.T) {
	s := start(t, Options{})
	w := &world{hops: 3, receiver: atSite("a")}
	older, newer := w.agent("a"), w.agent("a")
	newer.incarnation = 77
	older.attach(s)
	newer.attach(s)
	if err := <-older.ended; status.Code(err) != codes.Aborted {
		t.Errorf("the older one ended with %v", err)
	}
	code, output := s.request("volta a 203.0.113.10 -w 3")
	if code != 200 {
		t.Errorf("%d %s", code, output)
	}
	// The older one tries again: they do not take the name from each other for ever.
	if err := older.tryAttach(t, s.conn()); status.Code(err) != codes.Aborted {
		t.Errorf("the older one may attach: %v", err)
	}
	if at := s.fleet.site("a"); at.incarnation != newer.incarnation {
		t.Errorf("the older one has the name again")
	}

	first, second := s.origin("old", volta.Seed), s.origin("old", volta.Go)
	if _, err := first.stream.Recv(); err == nil {
		t.Error("the older one gets messages")
	}
	wait := second.run(func(volta.Job) {})
	if code, output := s.request("volta old 203.0.113.10 -w 0"); code != 200 {
		t.Errorf("%d %s", code, output)
	}
	wait()
	eventually(t, "unregistered", func() bool { return s.fleet.site("old") == nil })
	if code, output := s.request("volta old 203.0.113.10"); code != 500 || output != "Program execution failed: failed to send job to agent old: agent old not connected" {
		t.Errorf("%d %s", code, output)
	}
}

// TestForged: packets without a key, about other targets, with impossible lengths, or for nobody, count for nothing.
func TestForged(t *testing.T) {
	s := start(t, Options{})
	w := &world{hops: 3, receiver: atSite("a")}
	a := w.agent("a")
	a.attach(s)
	s.connected("a")
	session, r := s.open(t)
	datagrams, err := s.fleet.Open(t.Context(), anycast.SessionConfig{Probes: stateless.Config{Kind: stateless.UDP}, Handler: r})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	forged := timeExceeded(t, router(1), target, datagrams.FirstPort())
	stray := timeExceeded(t, router(1), target, 999)
	m := answersOf(time.Now(), forged, stray, forged[:10])
	m.GetAnswers().Lengths = append(m.GetAnswers().Lengths, 1<<30)
	m.GetAnswers().Times = append(m.GetAnswers().Times, 1)
	a.report(m)
	bad := answersOf(time.Now(), stray)
	bad.GetAnswers().Times = nil
	a.report(bad)
	a.report(&measurepb.FromAgent{Event: &measurepb.FromAgent_Sent{Sent: &measurepb.SentReport{Session: 5, Batch: 9, Count: 1 << 31}}})
	a.mu.Lock()
	a.stream.Send(&measurepb.FromAgent{})
	a.stream.Send(&measurepb.FromAgent{Event: &measurepb.FromAgent_Pong{Pong: &measurepb.Pong{Id: 1 << 60, T0: 1, T1: -1 << 63, T2: 1<<63 - 1}}})
	a.mu.Unlock()
	counts := func() [4]uint64 {
		return [4]uint64{s.fleet.forged.Load(), s.fleet.stray.Load(), s.fleet.malformed.Load(), s.fleet.duplicate.Load()}
	}
	for deadline := time.Now().Add(5 * time.Second); counts() != [4]uint64{1, 1, 4, 1}; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("forged, stray, malformed, duplicate: %v, want 1 1 4 1", counts())
		}
	}
	// The connection goes on.
	if err := session.Send("a", batch(1, 0, 3)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "answers", func() bool { _, answers := r.counts(); return answers == 3 })
}

func TestClock(t *testing.T) {
	const ms = int64(time.Millisecond)
	var c clock
	if _, err := c.estimate(0); err != 0 {
		t.Error("something is known of a clock that was never asked")
	}
	// The site is 5 s ahead. An exchange with 2 ms there and 18 ms back is wrong by 8 ms, and bounds it by 10.
	ahead := 5000 * ms
	c.add(0, 2*ms+ahead, 3*ms+ahead, 21*ms)
	offset, err := c.estimate(21 * ms)
	if d := int64(offset) - ahead; max(d, -d) > int64(err) || int64(err) < 10*ms || int64(err) > 11*ms {
		t.Errorf("offset %v, error %v", offset, err)
	}
	// A quicker one says more, a slower one nothing new.
	c.add(100*ms, 101*ms+ahead, 101*ms+ahead, 102*ms)
	c.add(200*ms, 290*ms+ahead, 290*ms+ahead, 300*ms)
	offset, err = c.estimate(300 * ms)
	if offset != time.Duration(ahead) || int64(err) > ms+ms/10 {
		t.Errorf("offset %v, error %v", offset, err)
	}
	// What was learnt long ago is worth less: 15 ppm of an hour are 54 ms.
	if _, err := c.estimate(300*ms + int64(time.Hour)); err < 54*time.Millisecond || err > 56*time.Millisecond {
		t.Errorf("after an hour the error is %v", err)
	}
	// The site's clock is set.
	ahead = -3000 * ms
	c.add(400*ms, 405*ms+ahead, 405*ms+ahead, 410*ms)
	if offset, err = c.estimate(410 * ms); offset != time.Duration(ahead) || int64(err) > 6*ms {
		t.Errorf("offset %v, error %v after the clock was set", offset, err)
	}
	before := c.n
	c.add(500*ms, 500*ms, 400*ms, 510*ms)
	c.add(500*ms, 500*ms, 600*ms, 510*ms)
	c.add(500*ms, 500*ms, 500*ms, 490*ms)
	if c.n != before {
		t.Error("impossible exchanges count")
	}
}

// TestRTT: clocks seconds apart give the right time between two sites, or none; never a wrong one.
func TestRTT(t *testing.T) {
	s := start(t, Options{})
	w := &world{hops: 3, receiver: atSite("b")}
	a, b := w.agent("a"), w.agent("b")
	a.offset, b.offset = 7*time.Second, -90*time.Second
	a.attach(s)
	b.attach(s)
	s.connected("a", "b")
	eventually(t, "clocks known", func() bool {
		for _, site := range s.fleet.Sites() {
			if site.Clock.Error == 0 || site.Clock.Error > 20*time.Millisecond {
				return false
			}
		}
		return true
	})
	for _, site := range s.fleet.Sites() {
		want := map[string]time.Duration{"a": a.offset, "b": b.offset}[site.Name]
		if d := site.Clock.Offset - want; d.Abs() > site.Clock.Error {
			t.Errorf("%s is ahead by %v ± %v, want %v", site.Name, site.Clock.Offset, site.Clock.Error, want)
		}
	}
	now := time.Now()
	at := func(f *fakeAgent, d time.Duration) int64 { return now.Add(f.offset + d).UnixNano() }
	rtt, uncertainty, ok := s.fleet.RTT("a", at(a, 0), "b", at(b, 80*time.Millisecond))
	if !ok || (rtt-80*time.Millisecond).Abs() > uncertainty || uncertainty > 40*time.Millisecond {
		t.Errorf("80 ms became %v ± %v, %v", rtt, uncertainty, ok)
	}
	if rtt, uncertainty, ok := s.fleet.RTT("a", at(a, 0), "b", at(b, 0)); ok {
		t.Errorf("no time became %v ± %v", rtt, uncertainty)
	}
	if rtt, uncertainty, ok := s.fleet.RTT("a", at(a, 0), "a", at(a, time.Microsecond)); !ok || rtt != time.Microsecond || uncertainty != 0 {
		t.Errorf("1 us at one site became %v ± %v, %v", rtt, uncertainty, ok)
	}
	for _, c := range []struct {
		from, to       string
		sent, received int64
	}{{"a", "b", 0, 1}, {"a", "b", 1, 0}, {"a", "c", 1, 2}, {"a", "a", 2, 1}} {
		if _, _, ok := s.fleet.RTT(c.from, c.sent, c.to, c.received); ok {
			t.Errorf("%+v gives a time", c)
		}
	}
}

func TestPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := volta.NewBlocks(1000, 1200, 100)
		if err != nil {
			t.Fatal(err)
		}
		f := newFleet(b, quiet())
		var sessions []anycast.Session
		open := func(timeout time.Duration) (anycast.Session, error) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			return f.Open(ctx, anycast.SessionConfig{Probes: stateless.Config{Kind: stateless.UDP, Ports: 100}, Handler: new(recorder)})
		}
		for range 2 {
			s, err := open(time.Second)
			if err != nil {
				t.Fatal(err)
			}
			sessions = append(sessions, s)
		}
		if _, err := open(time.Second); !errors.Is(err, anycast.ErrNoPorts) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without ports: %v", err)
		}
		begin := time.Now()
		go func() {
			time.Sleep(10 * time.Second)
			sessions[0].Close()
		}()
		third, err := open(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(begin); waited != 10*time.Second+defaultLinger || third.FirstPort() != sessions[0].FirstPort() {
			t.Errorf("waited %v for port %d", waited, third.FirstPort())
		}
		third.Close()
		sessions[1].Close()
		time.Sleep(time.Minute)
		if n := b.InUse(); n != 0 || len(f.ports.waiting) != 0 {
			t.Errorf("%d ports in use, %d wait", n, len(f.ports.waiting))
		}
	})
}

// TestAdmissionIsFair: a client with a thousand requests delays another's by one.
func TestAdmissionIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(3, 1000)
		var mu sync.Mutex
		var order []string
		enter := func(client string) {
			if err := a.enter(t.Context(), client); err != nil {
				t.Errorf("%s: %v", client, err)
				return
			}
			mu.Lock()
			order = append(order, client)
			mu.Unlock()
			time.Sleep(time.Second)
			a.leave(client)
		}
		for range 2 + 1000 {
			go enter("hog")
			synctest.Wait()
		}
		if err := a.enter(t.Context(), "hog"); !errors.Is(err, errBusy) {
			t.Errorf("one more than may wait: %v", err)
		}
		// Of three places one client has two: another is let in at once, and two of it as soon as there is room.
		for range 2 {
			go enter("other")
			synctest.Wait()
		}
		mu.Lock()
		if order[2] != "other" {
			t.Errorf("the hog has all places: %v", order[:3])
		}
		mu.Unlock()
		gone, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		if err := a.enter(gone, "third"); !errors.Is(err, context.Canceled) {
			t.Errorf("who leaves: %v", err)
		}
		time.Sleep(time.Hour)
		mu.Lock()
		defer mu.Unlock()
		if at := slices.Index(order[3:], "other"); at < 0 || at > 3 {
			t.Errorf("the other client's second request came as number %d", at+3)
		}
		if running, waiting := a.load(); running != 0 || waiting != 0 || len(order) != 1004 || len(a.clients) != 0 {
			t.Errorf("%d run, %d wait, %d ran, %d clients", running, waiting, len(order), len(a.clients))
		}
	})
}
