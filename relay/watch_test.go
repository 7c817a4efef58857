// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/relay/describe"
)

// A watcher that does not keep up misses events, is told how many, and holds nobody up.
func TestSlowWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var w watchers
		slow, quick := w.add(ctx), w.add(ctx)
		const extra = 100
		for i := range watchQueue + extra {
			w.tell(Event{Length: i})
			if e := <-quick; e.Length != i || e.Missed != 0 {
				t.Fatalf("event %d: %+v", i, e)
			}
		}
		for i := range watchQueue {
			if e := <-slow; e.Length != i || e.Missed != 0 {
				t.Fatalf("event %d: %+v", i, e)
			}
		}
		w.tell(Event{Length: -1})
		w.tell(Event{Length: -2})
		if e := <-slow; e.Length != -1 || e.Missed != extra {
			t.Errorf("the first after those that were missed: %+v", e)
		}
		if e := <-slow; e.Length != -2 || e.Missed != 0 {
			t.Errorf("the next: %+v", e)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w watchers
		if w.watched() {
			t.Fatal("watched by nobody")
		}
		ctx, cancel := context.WithCancel(t.Context())
		events := w.add(ctx)
		other := w.add(t.Context())
		if !w.watched() {
			t.Fatal("not watched")
		}
		cancel()
		if _, open := <-events; open {
			t.Fatal("an event out of nowhere")
		}
		synctest.Wait()
		w.tell(Event{Length: 1})
		if e := <-other; e.Length != 1 || !w.watched() {
			t.Errorf("%+v", e)
		}
	})
}

// What watchers are told of a broadcast on its way through two relays, and of one that goes no further.
func TestWatch(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		hosts, relays := three(w, nil)
		wait(settle)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		here, there := relays[0].e.Watch(ctx), relays[1].e.Watch(ctx)
		hosts[0].send("hello")
		wait(time.Second)
		sent := time.Now().Add(-time.Second)
		check := func(name string, events <-chan Event, want string) {
			t.Helper()
			e := <-events
			if d := e.Time.Sub(sent); d < 0 || d > 10*time.Millisecond {
				t.Errorf("%s: %v after it was sent", name, d)
			}
			e.Time = time.Time{}
			text, err := json.Marshal(e)
			if err != nil || string(text) != want {
				t.Errorf("%s: %s, %v, want %s", name, text, err, want)
			}
		}
		check("here", here, `{"time":"0001-01-01T00:00:00Z","action":"relayed","interface":"eth0","source":"10.77.0.1:40000",`+
			`"destination":"255.255.255.255:5076","mac":"02:00:00:00:00:01","length":5,"text":`+quote(t, "hello")+`}`)
		check("there", there, `{"time":"0001-01-01T00:00:00Z","action":"emitted","interface":"eth0","peer":"192.0.2.1:7124","source":"10.77.0.1:40000",`+
			`"destination":"255.255.255.255:5076","mac":"02:00:00:00:00:01","length":5,"text":`+quote(t, "hello")+`}`)
		w.post(meshAddress(1), relays[1].addr, []byte("SS too short to be looked into, but an SS datagram"))
		sent = time.Now()
		wait(time.Second)
		check("damaged", there, `{"time":"0001-01-01T00:00:00Z","action":"dropped","reason":"not-udp","peer":"192.0.2.1:7124","length":34}`)
	})
}

// quote is a text as it is described, in JSON.
func quote(t *testing.T, payload string) string {
	t.Helper()
	text, err := json.Marshal(describe.Datagram(testPort, []byte(payload)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
