// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Messages arrive once, in the order they were posted, and are acknowledged in that order with what the handler
// said.
func TestMessagesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const count = 20000
		next := uint64(0)
		a, b := net.Pipe()
		client, _ := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			message: func(_ *Session, payload []byte) error {
				if n := binary.BigEndian.Uint64(payload); n != next {
					t.Errorf("message %d arrived as number %d", n, next)
				}
				next++
				if next%7 == 0 {
					return errors.New("divisible")
				}
				return nil
			},
		}))
		var all sync.WaitGroup
		acked := uint64(0)
		for n := range uint64(count) {
			all.Add(1)
			err := client.Post(t.Context(), binary.BigEndian.AppendUint64(nil, n), func(err error) {
				if acked != n || errors.Is(err, ErrRefused) != ((n+1)%7 == 0) || (err != nil) != ((n+1)%7 == 0) {
					t.Errorf("message %d acknowledged as number %d: %v", n, acked, err)
				}
				acked++
				all.Done()
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		all.Wait()
		if next != count {
			t.Errorf("%d of %d messages", next, count)
		}
	})
}

// A handler that takes no messages stops the messages to it, in bounded memory, and nothing else.
func TestBlockedMessagesBlockNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		got := atomic.Int64{}
		a, b := net.Pipe()
		client, server := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			message: func(*Session, []byte) error { <-release; got.Add(1); return nil },
			stream:  func(_ *Session, _ []byte, c net.Conn) error { go io.Copy(c, c); return nil },
		}))
		posted, acked := 0, atomic.Int64{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for {
			err := client.Post(ctx, make([]byte, 1000), func(error) { acked.Add(1) })
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				break
			}
			posted++
		}
		if most := startMessagesWindow / 1000; posted > most || posted < most/2 || acked.Load() > 0 {
			t.Errorf("%d posted, %d acknowledged, while none was taken", posted, acked.Load())
		}
		if answer, err := client.Call(t.Context(), []byte("still there?")); err != nil || len(answer) != 12 {
			t.Error(err)
		}
		st, err := client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		st.Write([]byte("x"))
		if n, err := st.Read(make([]byte, 10)); n != 1 || err != nil {
			t.Error(n, err)
		}
		st.Close()
		if err := server.Send(t.Context(), []byte("the other way")); err != nil {
			t.Error(err)
		}
		close(release)
		synctest.Wait()
		if got.Load() != int64(posted) || acked.Load() != int64(posted) {
			t.Errorf("%d of %d taken, %d acknowledged", got.Load(), posted, acked.Load())
		}
	})
}

// A stream that nobody reads stops its writer and no other stream.
func TestBlockedStreamBlocksNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		client, _ := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			stream: func(_ *Session, header []byte, c net.Conn) error {
				if len(header) > 0 {
					go io.Copy(io.Discard, c)
				}
				return nil
			},
		}))
		stuck, err := client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		stuck.SetWriteDeadline(time.Now().Add(time.Minute))
		if n, err := stuck.Write(make([]byte, 1<<20)); n != startWindow || !isTimeout(err) {
			t.Errorf("%d written, %v", n, err)
		}
		good, err := client.Open(t.Context(), []byte("read"))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := good.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
			t.Error(n, err)
		}
		good.Close()
		stuck.Close()
	})
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// While a lot is on its way, requests and small messages overtake it, and streams get their turns.
func TestWhatIsUrgentGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		var order []string
		var mu sync.Mutex
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, what)
		}
		gate := &gatedConn{Conn: a, open: make(chan struct{})}
		client, _ := newLink(t, gate, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			request: func(_ *Session, body []byte, reply func([]byte)) {
				note(fmt.Sprintf("request of %d", len(body)))
				reply(nil)
			},
			message: func(_ *Session, payload []byte) error {
				note(fmt.Sprintf("message of %d", len(payload)))
				return nil
			},
		}))
		gate.closed.Store(true)
		var all sync.WaitGroup
		do := func(f func()) {
			all.Go(f)
			synctest.Wait() // it has queued what it can
		}
		do(func() { client.Send(t.Context(), make([]byte, 1<<20)) })
		do(func() { client.Call(t.Context(), make([]byte, 2<<20)) })
		do(func() { client.Send(t.Context(), make([]byte, 10)) })
		do(func() { client.Call(t.Context(), make([]byte, 20)) })
		close(gate.open)
		all.Wait()
		want := []string{"request of 20", "message of 10", "message of 1048576", "request of 2097152"}
		// Who runs first of the handlers of one batch is for the scheduler.
		slices.Sort(want[:2])
		slices.Sort(order[:2])
		if !slices.Equal(order, want) {
			t.Errorf("%q", order)
		}
	})
}

// A gatedConn holds up writing while it is closed, until it opens for good.
type gatedConn struct {
	net.Conn
	closed atomic.Bool
	open   chan struct{}
}

func (g *gatedConn) Write(p []byte) (int, error) {
	if g.closed.Load() {
		<-g.open
	}
	return g.Conn.Write(p)
}

// However many messages there are, streams go on.
func TestMessagesDoNotStarveStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		client, _ := newLink(t, pacedConn{a}, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			stream: func(_ *Session, _ []byte, c net.Conn) error { go io.Copy(io.Discard, c); return nil },
		}))
		ctx, cancel := context.WithCancel(t.Context())
		var posting sync.WaitGroup
		for range 4 {
			posting.Go(func() {
				for client.Post(ctx, make([]byte, 10<<10), func(error) {}) == nil {
				}
			})
		}
		st, err := client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := st.Write(make([]byte, 2<<20)); err != nil {
			t.Error(err)
		}
		// Ten megabytes in a second, of which a fifth is for streams.
		if took := time.Since(began); took < 300*time.Millisecond || took > 2*time.Second {
			t.Errorf("two megabytes took %v", took)
		}
		cancel()
		posting.Wait()
		st.Close()
	})
}

// Streams that have much to say share the link evenly.
func TestStreamsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 20
		got := [streams]atomic.Int64{}
		a, b := net.Pipe()
		client, _ := newLink(t, pacedConn{a}, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			stream: func(_ *Session, header []byte, c net.Conn) error {
				go func() {
					b := make([]byte, 64<<10)
					for {
						n, err := c.Read(b)
						got[header[0]].Add(int64(n))
						if err != nil {
							return
						}
					}
				}()
				return nil
			},
		}))
		stop := time.Now().Add(time.Second)
		var writers sync.WaitGroup
		for i := range byte(streams) {
			writers.Go(func() {
				st, err := client.Open(t.Context(), []byte{i})
				if err != nil {
					t.Error(err)
					return
				}
				defer st.Close()
				st.SetWriteDeadline(stop)
				for err == nil {
					_, err = st.Write(make([]byte, 16<<10))
				}
			})
		}
		writers.Wait()
		least, most := int64(1<<62), int64(0)
		for i := range got {
			n := got[i].Load()
			least, most = min(least, n), max(most, n)
		}
		if least < 100<<10 || most > least*3/2 {
			t.Errorf("from %d to %d bytes", least, most)
		}
	})
}

// A pacedConn takes ten bytes in a microsecond.
type pacedConn struct{ net.Conn }

func (p pacedConn) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(len(b)) * time.Microsecond / 10)
	return p.Conn.Write(b)
}

func (p pacedConn) SetWriteDeadline(time.Time) error { return nil }

// A window grows until it does not hold up the writer, and not beyond what was allowed.
func TestWindowGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cb := testConfig(2, testHandler{stream: func(_ *Session, _ []byte, c net.Conn) error {
			go io.Copy(io.Discard, c)
			return nil
		}})
		cb.MaxWindow = 1 << 20
		client, _, _ := slowLink(t, 50*time.Millisecond, testConfig(1, testHandler{}), cb)
		st, err := client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		rate := func(bytes int) float64 {
			began := time.Now()
			if _, err := st.Write(make([]byte, bytes)); err != nil {
				t.Fatal(err)
			}
			return float64(bytes) / time.Since(began).Seconds()
		}
		rate(16 << 20)
		// The window for each round trip.
		if got, most := rate(32<<20), 1<<20/0.1; got > 1.1*most || got < 0.5*most {
			t.Errorf("%.0f bytes/s of at most %.0f", got, most)
		}
	})
}

// So does that of messages.
func TestMessagesWindowGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := slowLink(t, 50*time.Millisecond, testConfig(1, testHandler{}), testConfig(2, testHandler{}))
		const count = 100000
		began := time.Now()
		var all sync.WaitGroup
		all.Add(count)
		for range count {
			if err := client.Post(t.Context(), make([]byte, 100), func(error) { all.Done() }); err != nil {
				t.Fatal(err)
			}
		}
		all.Wait()
		// With the window of the beginning it would be 1600 in each round trip of a tenth of a second.
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%d messages in %v", count, took)
		}
	})
}

func TestHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		streams := make(chan *Stream, 1)
		client, _ := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			stream: func(_ *Session, _ []byte, c net.Conn) error {
				streams <- c.(*Stream)
				return nil
			},
		}))
		one, err := client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		two := <-streams
		one.Write([]byte("question"))
		one.CloseWrite()
		if got, err := io.ReadAll(two); string(got) != "question" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := one.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		two.Write([]byte("answer"))
		two.Close()
		if got, err := io.ReadAll(one); string(got) != "answer" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		one.Close()

		// Whoever closes without reading stops the writer.
		one, err = client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		two = <-streams
		two.Close()
		synctest.Wait()
		if _, err := one.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
		if _, err := one.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		one.Close()
	})
}

func TestTooManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cb := testConfig(2, testHandler{stream: func(*Session, []byte, net.Conn) error { return nil }})
		cb.MaxStreams = 3
		a, b := net.Pipe()
		client, _ := newLink(t, a, b, testConfig(1, testHandler{}), cb)
		var open []*Stream
		for range 50 {
			st, err := client.Open(t.Context(), nil)
			if len(open) == 3 {
				if !errors.Is(err, ErrTooManyStreams) {
					t.Fatal(err)
				}
				open[0].Close()
				open = open[1:]
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, st)
		}
	})
}

func TestOpenGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		a, b := net.Pipe()
		client, server := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			stream: func(*Session, []byte, net.Conn) error { <-release; return nil },
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Open(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		close(release)
		synctest.Wait()
		if client.ownStreams != 0 || server.peerStreams != 0 || len(server.table) != 0 {
			t.Error("the stream is still there")
		}
	})
}

// Requests beyond what the other side takes at a time wait, also for those that were given up.
func TestRequestsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running, most := 0, 0
		var mu sync.Mutex
		cb := testConfig(2, testHandler{request: func(_ *Session, body []byte, reply func([]byte)) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			running--
			mu.Unlock()
			reply(body)
		}})
		cb.MaxRequests = 10
		a, b := net.Pipe()
		client, _ := newLink(t, a, b, testConfig(1, testHandler{}), cb)
		began := time.Now()
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				if i%2 == 0 {
					ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
				}
				defer cancel()
				size := 10
				if i%4 < 2 {
					size = 100 << 10
				}
				if answer, err := client.Call(ctx, make([]byte, size)); (err == nil) != (i%2 == 1) || err == nil && len(answer) != size {
					t.Errorf("call %d: %d bytes, %v", i, len(answer), err)
				}
			})
		}
		all.Wait()
		if took := time.Since(began); most != 10 || took < 5*time.Second || took > 11*time.Second {
			t.Errorf("%d at a time, in %v", most, took)
		}
	})
}

// Large messages and requests that are given up halfway leave nothing behind at the other side.
func TestLargeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		// 10 MB a second: a second is enough for half of it.
		client, server := newLink(t, pacedConn{a}, b, testConfig(1, testHandler{}), testConfig(2, testHandler{}))
		for i := range 8 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
			var err error
			if i%2 == 0 {
				err = client.Send(ctx, make([]byte, 8<<20))
			} else {
				_, err = client.Call(ctx, make([]byte, 8<<20))
			}
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		if err := client.Send(t.Context(), make([]byte, DefaultMaxBody)); err != nil {
			t.Error(err)
		}
		server.mu.Lock()
		defer server.mu.Unlock()
		if len(server.table) != 0 || server.serving != 0 || server.held != [purposes]int{} {
			t.Errorf("%d entries, %d requests, %v bytes", len(server.table), server.serving, server.held)
		}
	})
}

// Close sends what was queued before.
func TestCloseSendsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := make(chan []byte)
		client, server, _ := slowLink(t, 10*time.Millisecond, testConfig(1, testHandler{}), testConfig(2, testHandler{
			stream: func(_ *Session, _ []byte, c net.Conn) error {
				go func() {
					got, _ := io.ReadAll(c)
					read <- got
				}()
				return nil
			},
		}))
		st, err := client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		st.Write(make([]byte, 50<<10))
		st.Close()
		client.Bye(CodeDuplicate, "enough")
		client.Close()
		if got := <-read; len(got) != 50<<10 {
			t.Errorf("%d bytes", len(got))
		}
		<-server.Done()
		var bye *Goodbye
		if err := server.Err(); !errors.As(err, &bye) || *bye != (Goodbye{CodeDuplicate, "enough"}) {
			t.Error(err)
		}
	})
}

// A hastyConn reports the end of the connection with the last bytes, as some streams do.
type hastyConn struct{ net.Conn }

func (h hastyConn) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if err == nil {
		h.SetReadDeadline(time.Now().Add(time.Second))
		var m int
		if m, err = h.Conn.Read(p[n:]); err != io.EOF {
			err = nil
		}
		n += m
		h.SetReadDeadline(time.Time{})
	}
	return n, err
}

func TestEndWithLastBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s := newVillainOver(t, testConfig(2, testHandler{}), func(c net.Conn) net.Conn { return hastyConn{c} })
		v.say(frame{kind: kindGoodbye, code: uint8(CodeOverloaded)})
		v.conn.Close()
		<-s.Done()
		var bye *Goodbye
		if err := s.Err(); !errors.As(err, &bye) || bye.Code != CodeOverloaded {
			t.Error(err)
		}
	})
}

// Large messages wait for room at the other side, each for as long as it wants to.
func TestLargeMessagesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := atomic.Int32{}
		cb := testConfig(2, testHandler{message: func(*Session, []byte) error {
			if running.Add(1) > 1 {
				t.Error("two at a time")
			}
			time.Sleep(time.Second)
			running.Add(-1)
			return nil
		}})
		cb.MaxBody = 64 << 10 // room for one of these
		a, b := net.Pipe()
		client, server := newLink(t, a, b, testConfig(1, testHandler{}), cb)
		payload := make([]byte, 40<<10)
		began := time.Now()
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if err := client.Send(t.Context(), payload); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := client.Send(ctx, payload); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := client.Send(t.Context(), make([]byte, 65<<10)); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
		all.Wait()
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("took %v", took)
		}
		for range 5 {
			all.Go(func() {
				var bye *Goodbye
				if err := client.Send(t.Context(), payload); !errors.As(err, &bye) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		server.Bye(CodeOverloaded, "")
		all.Wait()
	})
}

// What handlers hand back that is too large is an error at the other side, not the end of the link.
func TestAnswerTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := testConfig(1, testHandler{})
		ca.MaxBody = 64 << 10
		a, b := net.Pipe()
		client, _ := newLink(t, a, b, ca, testConfig(2, testHandler{
			request: func(_ *Session, body []byte, reply func([]byte)) {
				reply(make([]byte, len(body)*1000))
				reply([]byte("and again")) // does not count
			},
		}))
		for size, want := range map[int]error{1: nil, 65: nil, 66: ErrRefused} {
			if answer, err := client.Call(t.Context(), make([]byte, size)); !errors.Is(err, want) || err == nil && len(answer) != size*1000 {
				t.Errorf("%d bytes: %v", len(answer), err)
			}
		}
	})
}

func TestClosedLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		streams := make(chan net.Conn, 1)
		a, b := net.Pipe()
		client, server := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			message: func(*Session, []byte) error { time.Sleep(time.Minute); return nil },
			stream:  func(_ *Session, _ []byte, c net.Conn) error { streams <- c; return nil },
		}))
		st, err := client.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		other := <-streams
		other.Write([]byte("the last words"))
		waiting := make(chan error)
		go func() {
			for {
				if err := client.Post(context.Background(), make([]byte, 1000), func(error) {}); err != nil {
					waiting <- err
					return
				}
			}
		}()
		synctest.Wait()
		began := time.Now()
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() { client.Close() })
		}
		if err := <-waiting; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		all.Wait()
		if took := time.Since(began); took != 0 {
			t.Errorf("closed in %v", took)
		}
		if err := client.Err(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		_, callErr := client.Call(t.Context(), nil)
		_, openErr := client.Open(t.Context(), nil)
		_, pingErr := client.Ping(t.Context())
		_, writeErr := st.Write([]byte("x"))
		for i, err := range []error{callErr, openErr, pingErr, writeErr, client.Send(t.Context(), nil), client.Send(t.Context(), make([]byte, 1<<20))} {
			if !errors.Is(err, net.ErrClosed) {
				t.Error(i, err)
			}
		}
		// What had come before is not lost.
		b1 := make([]byte, 100)
		if n, err := st.Read(b1); string(b1[:n]) != "the last words" || err != nil {
			t.Errorf("%q, %v", b1[:n], err)
		}
		if _, err := st.Read(b1); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		<-server.Done()
	})
}

// A stream of a link carries a link, as for members that only a third one can reach.
func TestLinkInLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		inner := make(chan *Session, 1)
		outer, _ := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{
			stream: func(_ *Session, _ []byte, c net.Conn) error {
				go func() {
					s, err := Server(context.Background(), c, testConfig(3, testHandler{}))
					if err != nil {
						t.Error(err)
					}
					inner <- s
				}()
				return nil
			},
		}))
		st, err := outer.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		client, err := Client(t.Context(), st, testConfig(4, testHandler{}), identity(3).Public().(ed25519.PublicKey))
		if err != nil {
			t.Fatal(err)
		}
		server := <-inner
		if err := client.Send(t.Context(), make([]byte, 5<<20)); err != nil {
			t.Error(err)
		}
		if answer, err := server.Call(t.Context(), []byte("who?")); string(answer) != "who?" || err != nil {
			t.Errorf("%q, %v", answer, err)
		}
		time.Sleep(time.Hour)
		if err := errors.Join(client.Err(), server.Err()); err != nil {
			t.Error(err)
		}
		outer.Close()
		<-client.Done()
		<-server.Done()
		if err := client.Err(); !errors.Is(err, ErrBroken) {
			t.Error(err)
		}
	})
}

// All at once, with other sizes each time, over a connection that cuts writes anywhere.
func TestEverythingAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	echo := testHandler{
		stream: func(_ *Session, _ []byte, c net.Conn) error {
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
			return nil
		},
		message: func(_ *Session, payload []byte) error {
			if len(payload)%5 == 4 {
				return errors.New("five")
			}
			return nil
		},
	}
	client, server := newTCPLink(t, testConfig(1, echo), testConfig(2, echo))
	var all sync.WaitGroup
	for i := range 16 {
		s := client
		if i%2 == 0 {
			s = server
		}
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 40 {
				body := make([]byte, 1<<random.IntN(20)+random.IntN(100))
				for j := range body {
					body[j] = byte(random.Uint32())
				}
				switch i / 2 % 4 {
				case 0:
					if answer, err := s.Call(t.Context(), body); err != nil || !bytes.Equal(answer, body) {
						t.Errorf("call: %d of %d bytes, %v", len(answer), len(body), err)
					}
				case 1:
					if err := s.Send(t.Context(), body); (err != nil) != (len(body)%5 == 4) {
						t.Errorf("message of %d bytes: %v", len(body), err)
					}
				case 2:
					st, err := s.Open(t.Context(), nil)
					if err != nil {
						t.Error(err)
						return
					}
					go func() {
						for rest := body; len(rest) > 0; {
							n, _ := st.Write(rest[:1+len(rest)/2])
							rest = rest[n:]
						}
						st.CloseWrite()
					}()
					if got, err := io.ReadAll(st); err != nil || !bytes.Equal(got, body) {
						t.Errorf("stream: %d of %d bytes, %v", len(got), len(body), err)
					}
					st.Close()
				case 3:
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(1000))*time.Microsecond)
					s.Cast(body)
					s.Call(ctx, body)
					s.Send(ctx, body)
					if st, err := s.Open(ctx, nil); err == nil {
						st.Write(body[:len(body)/2])
						st.Close()
					}
					cancel()
				}
			}
		})
	}
	all.Wait()
	for _, s := range []*Session{client, server} {
		eventually(t, "nothing left", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.table)+len(s.calls)+s.ownStreams+s.peerStreams+s.serving+s.casts+s.pending.count == 0 &&
				s.held == [purposes]int{}
		})
		if err := s.Err(); err != nil {
			t.Error(err)
		}
	}
}

// What is sent after a change of keys arrives like before.
func TestRekey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		client, server := newLink(t, a, b, testConfig(1, testHandler{}), testConfig(2, testHandler{}))
		before := client.send.key
		for range 5 {
			client.send.bytes = rekeyBytes
			if err := client.Send(t.Context(), []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if client.send.key == before || client.send.key != server.recv.key {
			t.Error("the keys have not changed, or not to the same")
		}
		if n := server.Stats().Rekeys; n != 5 {
			t.Errorf("%d times a new key", n)
		}
	})
}

func TestPostDoesNotAllocate(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector allocates")
	}
	client, _ := newTCPLink(t, testConfig(1, testHandler{}), testConfig(2, testHandler{}))
	payload := make([]byte, 100)
	var all sync.WaitGroup
	done := func(error) { all.Done() }
	post := func() {
		for range 1000 {
			all.Add(1)
			if err := client.Post(t.Context(), payload, done); err != nil {
				t.Fatal(err)
			}
		}
		all.Wait()
	}
	post()
	// Both ends are in this process: a goroutine now and then, and queues that grow anew after a pause.
	if n := testing.AllocsPerRun(100, post); n > 100 {
		t.Errorf("%.0f allocations for 1000 messages", n)
	}
}
