// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A slowConn delays what is written to it, as a path does; cut swallows it.
type slowConn struct {
	net.Conn
	queue chan delayed
	done  chan struct{}
	delay time.Duration
	cut   chan struct{}
}

type delayed struct {
	at   time.Time
	data []byte
}

func newSlowConn(c net.Conn, delay time.Duration) *slowConn {
	s := &slowConn{Conn: c, queue: make(chan delayed, 1<<12), done: make(chan struct{}), delay: delay, cut: make(chan struct{})}
	go func() {
		defer close(s.done)
		for d := range s.queue {
			time.Sleep(time.Until(d.at))
			if closed(s.cut) {
				continue
			}
			if _, err := c.Write(d.data); err != nil {
				break
			}
		}
		for range s.queue { // until it is closed
		}
	}()
	return s
}

func (s *slowConn) Write(p []byte) (int, error) {
	s.queue <- delayed{time.Now().Add(s.delay), append([]byte(nil), p...)}
	return len(p), nil
}

func (s *slowConn) SetWriteDeadline(time.Time) error { return nil }

// slowLink is a link over a path with a round trip of twice delay. The returned function cuts it.
func slowLink(t *testing.T, delay time.Duration, ca, cb Config) (client, server *Session, cut func()) {
	t.Helper()
	a, b := net.Pipe()
	sa, sb := newSlowConn(a, delay), newSlowConn(b, delay)
	client, server, err1, err2 := handshake(sa, sb, ca, cb, nil)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
		a.Close()
		b.Close()
		close(sa.queue)
		close(sb.queue)
		<-sa.done
		<-sb.done
	})
	return client, server, func() { close(sa.cut); close(sb.cut) }
}

func TestRTT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := slowLink(t, 50*time.Millisecond, testConfig(1, testHandler{}), testConfig(2, testHandler{}))
		for _, s := range []*Session{client, server} {
			if rtt := s.RTT(); rtt != 100*time.Millisecond {
				t.Errorf("after the handshake %v", rtt)
			}
			if rtt, err := s.Ping(t.Context()); err != nil || rtt != 100*time.Millisecond {
				t.Error(rtt, err)
			}
		}
	})
}

// An idle link stays up, and says little.
func TestIdleLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, _ := slowLink(t, time.Millisecond, testConfig(1, testHandler{}), testConfig(2, testHandler{}))
		time.Sleep(time.Hour)
		if err := errors.Join(client.Err(), server.Err()); err != nil {
			t.Fatal(err)
		}
		stats := client.Stats()
		// A ping and its answer each 15 to 20 s, whoever begins: a record each way.
		least, most := uint64(time.Hour/DefaultKeepAlive), uint64(time.Hour/(DefaultKeepAlive*3/4))
		if stats.RecordsSent < least || stats.RecordsSent > 2*most {
			t.Errorf("%d records in an hour, not %d to %d", stats.RecordsSent, least, most)
		}
		if stats.BytesSent > 64*stats.RecordsSent {
			t.Errorf("%d bytes in an hour", stats.BytesSent)
		}
		if stats.Rekeys < 2*5 {
			t.Errorf("%d times a new key", stats.Rekeys)
		}
	})
}

func TestDeadLinkIsFound(t *testing.T) {
	for range 20 { // the moments are chosen by chance
		synctest.Test(t, func(t *testing.T) {
			client, server, cut := slowLink(t, time.Millisecond, testConfig(1, testHandler{}), testConfig(2, testHandler{}))
			time.Sleep(time.Minute)
			cut()
			began := time.Now()
			<-client.Done()
			<-server.Done()
			if took := time.Since(began); took > 2*DefaultKeepAlive {
				t.Errorf("found after %v", took)
			}
			// Who notices first closes the connection, which is not cut as well here.
			if err := errors.Join(client.Err(), server.Err()); !errors.Is(err, ErrTimeout) {
				t.Error(err)
			}
		})
	}
}

// Whoever does not take what is written is dead too, whatever it says itself.
func TestStuckLinkIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s := newVillain(t, testConfig(2, testHandler{}))
		began := time.Now()
		s.Cast([]byte("nobody reads this"))
		for s.Err() == nil {
			v.say(frame{kind: kindCast})
			time.Sleep(time.Second)
		}
		if err := s.Err(); !errors.Is(err, ErrTimeout) {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*DefaultKeepAlive+time.Second {
			t.Errorf("found after %v", took)
		}
	})
}

func TestBrokenLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		started := make(chan struct{}, 3)
		release := make(chan struct{})
		client, _ := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			request: func(_ *Session, _ []byte, reply func([]byte)) { started <- struct{}{}; <-release; reply(nil) },
			message: func(*Session, []byte) error { started <- struct{}{}; <-release; return nil },
			stream:  func(*Session, []byte, net.Conn) error { started <- struct{}{}; return nil },
		}))
		st, err := client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error, 4)
		go func() { _, err := client.Call(t.Context(), nil); results <- err }()
		go func() { results <- client.Send(t.Context(), nil) }()
		go func() { results <- client.Send(t.Context(), make([]byte, 1<<20)) }()
		go func() { _, err := st.Read(make([]byte, 1)); results <- err }()
		for range 3 {
			<-started
		}
		synctest.Wait()
		b.Close()
		for range 4 {
			if err := <-results; !errors.Is(err, ErrBroken) {
				t.Error(err)
			}
		}
		if err := client.Send(t.Context(), nil); !errors.Is(err, ErrBroken) {
			t.Error(err)
		}
		if _, err := client.Call(t.Context(), nil); !errors.Is(err, ErrBroken) {
			t.Error(err)
		}
		if _, err := client.Open(t.Context(), nil); !errors.Is(err, ErrBroken) {
			t.Error(err)
		}
		if _, err := client.Ping(t.Context()); !errors.Is(err, ErrBroken) {
			t.Error(err)
		}
		client.Cast(nil)
		if client.Stats().CastsDropped != 1 {
			t.Error("the cast was not counted")
		}
		close(release)
	})
}
