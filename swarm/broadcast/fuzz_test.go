// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package broadcast

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/swarm/member"
	"github.com/seed5728abee/fathom/swarm/wire"
)

// FuzzHandle gives an engine any messages: nothing that does not prove itself may be delivered, and nothing twice.
func FuzzHandle(f *testing.F) {
	message := func(messages ...wire.Message) (b []byte) {
		for _, m := range messages {
			raw := wire.Append(nil, m)
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
		}
		return b
	}
	good := copyOf(9, time.Unix(1_900_000_000, 0), "hello")
	payload := []byte("of an original")
	foreign := wire.Push{Tag: ForeignTag(payload, 7), Limit: member.ID{5}, Payload: payload}
	f.Add(message(good, good))
	f.Add(message(wire.Have{News: []wire.News{{Tag: good.Tag, Age: 5, Size: 5}}}, wire.Want{Tags: []wire.Tag{good.Tag}}))
	f.Add(message(wire.Offer{Tag: good.Tag, Limit: member.ID{1}, Size: 5}, good))
	f.Add(message(foreign, foreign, wire.Want{Tags: []wire.Tag{foreign.Tag}}, wire.Ping{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := newBench(20, Options{Memory: 100 * 365 * 24 * time.Hour, Tags: 10, KeepBytes: 1000})
		defer func() {
			e.cancel()
			e.running.Wait()
			seen := make(map[wire.Tag]bool)
			for _, m := range e.delivered {
				if seen[m.Tag] {
					t.Errorf("%s was delivered twice", m.Tag)
				}
				seen[m.Tag] = true
			}
			for _, it := range e.items {
				if err := verify(it.push, member.ByAddress, false); err != nil {
					t.Errorf("%s: %v", it.push.Tag, err)
				}
			}
			if s := e.Stats(); s.Tags > 10 || s.Kept > 1 && s.KeptBytes > 1000 {
				t.Errorf("%+v", s)
			}
		}()
		for from := 1; len(b) > 2; from++ {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			m, err := wire.Decode(b[2 : 2+n])
			b = b[2+n:]
			if err != nil {
				continue
			}
			answer := e.Handle(t.Context(), e.members[from%len(e.members)], m)
			if want := m.Kind() != wire.KindHave; (answer != nil) != want {
				t.Errorf("%s was answered with %s", m.Kind(), fmt.Sprint(answer))
			}
			e.turn()
		}
	})
}
