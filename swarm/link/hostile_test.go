// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A villain is the dialling end of a link that says what it likes, with the right keys.
type villain struct {
	*Session
	t testing.TB
}

// newVillain links one to a member.
func newVillain(t testing.TB, victim Config) (villain, *Session) {
	t.Helper()
	return newVillainOver(t, victim, func(c net.Conn) net.Conn { return c })
}

// newVillainOver lets the member's end of the connection be another one once the link is up.
func newVillainOver(t testing.TB, victim Config, wrap func(net.Conn) net.Conn) (villain, *Session) {
	t.Helper()
	a, b := net.Pipe()
	lazy := &lazyConn{Conn: b, wrapped: wrap(b)}
	type result struct {
		s   *Session
		err error
	}
	done := make(chan result)
	go func() {
		s, err := Server(context.Background(), lazy, victim)
		done <- result{s, err}
	}()
	c, err := testConfig(1, testHandler{}).withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	evil, err := shakeHands(a, c, true, nil)
	r := <-done
	if err != nil || r.err != nil {
		t.Fatal(err, r.err)
	}
	t.Cleanup(func() { a.Close(); r.s.Close() })
	return villain{evil, t}, r.s
}

// A lazyConn reads from another connection after the handshake, which has two messages to read.
type lazyConn struct {
	net.Conn
	wrapped net.Conn
	reads   int
}

func (l *lazyConn) Read(p []byte) (int, error) {
	if l.reads++; l.reads <= 4 { // two lengths and two messages
		return l.Conn.Read(p)
	}
	return l.wrapped.Read(p)
}

func (v villain) record(frames ...frame) []byte {
	var text []byte
	for _, f := range frames {
		text = appendFrame(text, &f)
	}
	return v.send.seal(nil, text)
}

// say writes frames while it reads and drops what comes back.
func (v villain) say(frames ...frame) { v.write(v.record(frames...)) }

func (v villain) write(b []byte) {
	_, _ = v.conn.Write(b) // the other side may have had enough
}

func TestWhatBreaksTheRulesEndsTheLink(t *testing.T) {
	open := frame{kind: kindOpen, id: 1, code: forApplication}
	many := func(n int, f func(i uint64) frame) (frames []frame) {
		for i := range n {
			frames = append(frames, f(uint64(i)))
		}
		return frames
	}
	for _, test := range []struct {
		name string
		say  func(v villain)
		want string // part of the error
	}{
		{"a record that is changed", func(v villain) {
			b := v.record(frame{kind: kindCast})
			b[len(b)-1] ^= 1
			v.write(b)
		}, "record 0 is not authentic"},
		{"a length that is changed", func(v villain) {
			b := v.record(frame{kind: kindCast, body: make([]byte, 20)})
			b[1]--
			v.write(b)
		}, "record 0 is not authentic"},
		{"a record twice", func(v villain) {
			b := v.record(frame{kind: kindCast})
			v.write(bytes.Repeat(b, 2))
		}, "record 1 is not authentic"},
		{"records out of order", func(v villain) {
			one, two := v.record(frame{kind: kindCast}), v.record(frame{kind: kindCast})
			v.write(append(two, one...))
		}, "record 0 is not authentic"},
		{"a record left out", func(v villain) {
			v.record(frame{kind: kindCast})
			v.say(frame{kind: kindCast})
		}, "record 0 is not authentic"},
		{"an empty record", func(v villain) { v.write(v.send.seal(nil, nil)) }, "record of 16 bytes"},
		{"an old key", func(v villain) {
			v.say(frame{kind: kindRekey})
			v.say(frame{kind: kindCast})
		}, "record 1 is not authentic"},
		{"more after a rekey", func(v villain) { v.say(frame{kind: kindRekey}, frame{kind: kindCast}) }, "after a rekey"},
		{"a frame that is none", func(v villain) { v.write(v.send.seal(nil, []byte{0xee})) }, "no frame"},
		{"a frame cut short", func(v villain) { v.write(v.send.seal(nil, []byte{byte(kindData), 1, 200})) }, "cut short"},
		{"a second welcome", func(v villain) { v.say(frame{kind: kindWelcome}) }, "welcome at this time"},
		{"an answer to nothing", func(v villain) { v.say(frame{kind: kindAnswer, id: 1}) }, "answer to no request"},
		{"a failure of nothing", func(v villain) { v.say(frame{kind: kindFailed, id: 1}) }, "answer to no request"},
		{"a large answer to nothing", func(v villain) {
			v.say(frame{kind: kindOpen, id: 1, code: forAnswer, number: 1, total: 100})
		}, "answer to no request"},
		{"messages acknowledged that were not sent", func(v villain) { v.say(frame{kind: kindAcked, number: 1 << 63}) }, "acknowledged, of 0"},
		{"a message refused that was not sent", func(v villain) { v.say(frame{kind: kindNacked}) }, "refused that was not sent"},
		{"a pong to nothing", func(v villain) { v.say(frame{kind: kindPong, number: 1}) }, "pong without a ping"},
		{"messages beyond the window", func(v villain) {
			for range startMessagesWindow/(messageOverhead+16<<10) + 1 {
				v.say(frame{kind: kindMessage, body: make([]byte, 16<<10)})
			}
		}, "messages beyond the window"},
		{"endless empty messages", func(v villain) {
			for range 10 {
				v.say(many(1000, func(uint64) frame { return frame{kind: kindMessage} })...)
			}
		}, "messages beyond the window"},
		{"more requests than agreed on", func(v villain) {
			v.say(many(5, func(i uint64) frame { return frame{kind: kindRequest, id: i} })...)
		}, "more requests"},
		{"more large requests than agreed on", func(v villain) {
			v.say(many(5, func(i uint64) frame {
				return frame{kind: kindOpen, id: 2*i + 1, code: forRequest, number: i, total: 1}
			})...)
		}, "large bodies than agreed on"},
		{"a stream of the other side", func(v villain) { v.say(frame{kind: kindOpen, id: 2}) }, "stream 2 opened, not 1"},
		{"a stream twice", func(v villain) { v.say(open, open) }, "stream 1 opened, not 3"},
		{"more streams than agreed on", func(v villain) {
			v.say(many(5, func(i uint64) frame { return frame{kind: kindOpen, id: 2*i + 1} })...)
		}, "more streams"},
		{"a header that is too long", func(v villain) {
			v.say(frame{kind: kindOpen, id: 1, body: make([]byte, MaxHeader+1)})
		}, "a header of"},
		{"data for no stream", func(v villain) { v.say(frame{kind: kindData, id: 1}) }, "nobody opened"},
		{"data beyond the window", func(v villain) {
			v.say(open)
			for range 5 {
				v.say(frame{kind: kindData, id: 1, body: make([]byte, 16<<10)})
			}
		}, "beyond the window of stream 1"},
		{"data after the end", func(v villain) {
			v.say(open, frame{kind: kindEnd, id: 1}, frame{kind: kindData, id: 1, body: []byte("x")})
		}, "after the end"},
		{"an end twice", func(v villain) { v.say(open, frame{kind: kindEnd, id: 1}, frame{kind: kindEnd, id: 1}) }, "ended twice"},
		{"an end of an unknown kind", func(v villain) { v.say(open, frame{kind: kindEnd, id: 1, code: 9}) }, "an end of kind 9"},
		{"its own stream accepted", func(v villain) { v.say(open, frame{kind: kindAccept, id: 1}) }, "accepted by who opened it"},
		{"endless credit", func(v villain) { v.say(frame{kind: kindCredit, number: 1 << 62}) }, "a credit of"},
		{"credit for a body", func(v villain) {
			v.say(frame{kind: kindOpen, id: 1, code: forMessage, total: 100}, frame{kind: kindCredit, id: 1, number: 1})
		}, "credit for a body"},
		{"a body longer than said", func(v villain) {
			v.say(frame{kind: kindOpen, id: 1, code: forMessage, total: 10}, frame{kind: kindData, id: 1, body: make([]byte, 11)})
		}, "more than 10 bytes"},
		{"a body longer than accepted", func(v villain) {
			v.say(frame{kind: kindOpen, id: 1, code: forMessage, total: 1 << 60})
		}, "a body of 1152921504606846976 bytes"},
		{"a body of nothing", func(v villain) { v.say(frame{kind: kindOpen, id: 1, code: forMessage}) }, "a body of 0 bytes"},
		{"a body for an unknown purpose", func(v villain) { v.say(frame{kind: kindOpen, id: 1, code: purposes, total: 1}) }, "purpose 5"},
		{"more bodies than agreed on", func(v villain) {
			v.say(many(3, func(i uint64) frame {
				return frame{kind: kindOpen, id: 2*i + 1, code: forMessage, total: 40 << 10}
			})...)
		}, "large bodies than agreed on"},
		{"a body ended like a stream", func(v villain) {
			v.say(frame{kind: kindOpen, id: 1, code: forMessage, total: 10}, frame{kind: kindEnd, id: 1})
		}, "ended too early"},
		{"a body accepted by who sends it", func(v villain) {
			v.say(frame{kind: kindOpen, id: 1, code: forMessage, total: 10}, frame{kind: kindAccept, id: 1})
		}, "accepted too early"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				victim := testConfig(2, testHandler{
					request: func(_ *Session, _ []byte, reply func([]byte)) { <-release; reply(nil) },
					message: func(*Session, []byte) error { <-release; return nil },
					stream:  func(*Session, []byte, net.Conn) error { <-release; return nil },
				})
				victim.MaxRequests, victim.MaxStreams, victim.MaxBody, victim.MaxWindow = 4, 4, 64<<10, 64<<10
				v, s := newVillain(t, victim)
				told := make(chan error)
				go func() {
					told <- v.goodbye()
				}()
				test.say(v)
				<-s.Done()
				if err := s.Err(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("ended by %v, not by %q", err, test.want)
				}
				var bye *Goodbye
				if err := <-told; !errors.As(err, &bye) || bye.Code != CodeViolation {
					t.Errorf("the villain was told %v", err)
				}
				close(release)
			})
		})
	}
}

// goodbye reads until one comes, and hangs up.
func (v villain) goodbye() error {
	defer v.conn.Close()
	for {
		b := make([]byte, lengthSize, lengthSize+maxRecord)
		if _, err := io.ReadFull(v.conn, b); err != nil {
			return err
		}
		n, err := recordLength(b)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(v.conn, b[lengthSize:n]); err != nil {
			return err
		}
		text, err := v.recv.open(b[:n])
		for err == nil && len(text) > 0 {
			var f frame
			if text, err = decodeFrame(&f, text); err == nil && f.kind == kindGoodbye {
				err = goodbyeOf(&f)
			}
		}
		if err != nil {
			return err
		}
	}
}

// Frames for streams that this side has just closed are no fault of the other side.
func TestLateFramesAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s := newVillain(t, testConfig(2, testHandler{}))
		go v.goodbye()
		v.say(frame{kind: kindOpen, id: 1}) // refused by the handler
		synctest.Wait()
		v.say(frame{kind: kindData, id: 1, body: []byte("x")}, frame{kind: kindCredit, id: 1, number: 1}, frame{kind: kindEnd, id: 1})
		synctest.Wait()
		if err := s.Err(); err != nil {
			t.Error(err)
		}
	})
}

// Who asks for ever and reads nothing costs a bounded amount of memory, and then the link.
func TestAskingWithoutListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s := newVillain(t, testConfig(2, testHandler{}))
		pings := make([]frame, 3000)
		for i := range pings {
			pings[i] = frame{kind: kindPing, number: 1 << 60}
		}
		go func() {
			for s.Err() == nil {
				v.say(pings...)
			}
		}()
		<-s.Done()
		if err := s.Err(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "does not listen") {
			t.Error(err)
		}
	})
}

// The same for streams that are refused, each of which is told so.
func TestOpeningWithoutListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := errors.New(strings.Repeat("no", maxReason))
		v, s := newVillain(t, testConfig(2, testHandler{stream: func(*Session, []byte, net.Conn) error { return long }}))
		go func() {
			for id := uint64(1); s.Err() == nil; {
				var opens []frame
				for range 200 {
					opens = append(opens, frame{kind: kindOpen, id: id})
					id += 2
				}
				v.say(opens...)
				synctest.Wait() // all of them are refused: so there are never too many at a time
			}
		}()
		<-s.Done()
		if err := s.Err(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "does not listen") {
			t.Error(err)
		}
	})
}

// Streams that are given up as soon as they are opened do not make more work than those that stay.
func TestOpeningAndGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int32
		release := make(chan struct{})
		victim := testConfig(2, testHandler{stream: func(*Session, []byte, net.Conn) error {
			most.Store(max(running.Add(1), most.Load()))
			<-release
			running.Add(-1)
			return errors.New("refused")
		}})
		victim.MaxStreams = 4
		v, s := newVillain(t, victim)
		go v.goodbye()
		churn := func(from, n uint64) {
			for i := range n {
				id := 2*(from+i) + 1
				v.say(frame{kind: kindOpen, id: id}, frame{kind: kindEnd, id: id, code: endAborted})
			}
			synctest.Wait()
		}
		churn(0, 100)
		if n := most.Load(); n != 4 {
			t.Errorf("%d handlers at a time, of at most 4", n)
		}
		close(release)
		synctest.Wait()
		churn(100, 3) // there is room again
		if err := s.Err(); err != nil || running.Load() != 0 {
			t.Errorf("%d handlers, %v", running.Load(), err)
		}
	})
}

// A record that comes byte by byte does not keep a link alive.
func TestSlowRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s := newVillain(t, testConfig(2, testHandler{}))
		go v.goodbye()
		began := time.Now()
		var feeding sync.WaitGroup
		defer feeding.Wait()
		feeding.Go(func() {
			for _, c := range v.record(frame{kind: kindCast, body: make([]byte, 1000)}) {
				if _, err := v.conn.Write([]byte{c}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		<-s.Done()
		if err := s.Err(); !errors.Is(err, ErrTimeout) {
			t.Error(err)
		}
		if took := time.Since(began); took != 2*DefaultKeepAlive {
			t.Error(took)
		}
	})
}
