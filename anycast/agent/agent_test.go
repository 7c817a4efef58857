// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed5728abee/fathom/anycast/measurepb"
)

var oneLink = []Link{{Address: "control.test:50051", Dialect: Native}}

func TestProbesAndAnswers(t *testing.T) {
	for v := range 2 {
		for _, proto := range []measurepb.Protocol{measurepb.Protocol_PROTOCOL_ICMP, measurepb.Protocol_PROTOCOL_UDP} {
			t.Run([2]string{"IPv4", "IPv6"}[v]+proto.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newController(t)
					start(t, Options{Links: oneLink, Dial: c.dial, Rate: 5000, Version: "1.2"})
					a := c.accept(0)
					if h := a.hello; h.GetAgentId() != "ams" || h.GetRate() != 5000 || h.GetVersion() != "1.2" || len(h.GetAnycast()) != 2 || h.GetIncarnation() == 0 {
						t.Errorf("hello %v", h)
					}
					began := time.Now().UnixNano()
					o := open(1, proto)
					a.order(o)
					s := send(1, 7, v, 3, 100)
					s.Ttls = []uint32{1, 2, 3}
					s.Flows = []uint32{5}
					a.order(s)
					rs, as := a.collect(1, 3)
					r := rs[0]
					if r.GetSession() != 1 || r.GetBatch() != 7 || r.GetCount() != 3 || r.GetError() != "" || !r.GetKernel() || r.GetSeq() != 1 {
						t.Errorf("report %v", r)
					}
					times := absolute(r.GetTimes())
					tab := table(t, o)
					for i, got := range as {
						ans := parse(t, tab, got)
						responder := target[v]
						if i == 0 {
							responder = router[v]
						}
						if ans.Number != uint16(100+i) || ans.Flow != 5 || ans.Target != target[v] || ans.Responder != responder || ans.Local != shared[v] || ans.ReplyTTL != 60 || ans.ReplyTOS != 0xc0 || !ans.Strong {
							t.Errorf("answer %d: %+v", i, ans)
						}
						if times[i] < began || got.time-times[i] != int64(10*time.Millisecond) {
							t.Errorf("answer %d: sent at %d, received at %d; want 10 ms apart", i, times[i], got.time)
						}
					}
				})
			})
		}
	}
}
