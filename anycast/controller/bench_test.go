// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed5728abee/fathom/anycast/client"
)

// threeSites is a controller and three native agents, with a path of 20 hops whose answers come home by thirds.
func threeSites(t testing.TB, hops int) (*started, *world) {
	s := start(t, Options{})
	w := &world{hops: hops, receiver: func(hop int, _ netip.Addr) string { return [...]string{"a", "b", "c"}[hop%3] }}
	for _, name := range []string{"a", "b", "c"} {
		w.agent(name)
	}
	for _, name := range []string{"a", "b", "c"} {
		w.agents[name].attach(s)
	}
	s.connected("a", "b", "c")
	return s, w
}

// BenchmarkRequests is the controller's own cost of traceroutes over 20 hops with 60 probes: the agents, in this process as
// well, answer at once. traces/s counts both; controller-us is what remains of the CPU time per trace.
func BenchmarkRequests(b *testing.B) {
	for _, atOnce := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(atOnce), func(b *testing.B) {
			s, _ := threeSites(b, 20)
			c := s.client()
			b.ReportAllocs()
			begin, cpu := time.Now(), cpuTime()
			b.ResetTimer()
			var next atomic.Int64
			var stars atomic.Int64
			var group sync.WaitGroup
			for range atOnce {
				group.Go(func() {
					for next.Add(1) <= int64(b.N) {
						n, err := request(b, c, "volta a 203.0.113.10 -w 30")
						if err != nil {
							b.Error(err)
							return
						}
						stars.Add(int64(n))
					}
				})
			}
			group.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "traces/s")
			b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N), "cpu-us/trace")
			if n := stars.Load(); n > 0 {
				b.Errorf("%d probes shown as lost", n)
			}
		})
	}
}

func request(t testing.TB, c *client.Client, command string) (stars int, err error) {
	code, output, err := c.Request(t.Context(), command)
	if err == nil && code != 200 {
		err = fmt.Errorf("code %d: %s", code, output)
	}
	if err == nil && strings.Count(output, "\n") != 20 {
		err = fmt.Errorf("not 20 hops:\n%s", output)
	}
	return strings.Count(output, "*"), err
}
