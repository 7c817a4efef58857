// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package swarm

import "github.com/prometheus/client_golang/prometheus"

// collector shows a peer's counters as metrics.
type collector struct{ peer *Peer }

var _ prometheus.Collector = collector{}

// Collector returns the peer's counters for Prometheus: register it once.
func (p *Peer) Collector() prometheus.Collector { return collector{p} }

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(s *State) float64
}

func newMetric(name, help string, kind prometheus.ValueType, value func(s *State) float64) metric {
	return metric{prometheus.NewDesc("fathom_swarm_"+name, help, nil, nil), kind, value}
}

func counter(name, help string, value func(c *Counters) uint64) metric {
	return newMetric(name+"_total", help, prometheus.CounterValue, func(s *State) float64 { return float64(value(&s.Counters)) })
}

func gauge(name, help string, value func(s *State) int) metric {
	return newMetric(name, help, prometheus.GaugeValue, func(s *State) float64 { return float64(value(s)) })
}

var metrics = []metric{
	gauge("connected", "1 while the peer is in a swarm.", func(s *State) int {
		if s.Connected {
			return 1
		}
		return 0
	}),
	gauge("leaf", "1 while others cannot reach the peer.", func(s *State) int {
		if s.Self.Leaf {
			return 1
		}
		return 0
	}),
	gauge("neighbours", "Members known on both sides of the peer on the ring.", func(s *State) int { return len(s.Predecessors) + len(s.Successors) }),
	gauge("fingers", "Members known farther away on the ring.", func(s *State) int { return len(s.Forward) + len(s.Backward) }),
	gauge("leaves", "Members that the peer is a host of.", func(s *State) int { return len(s.Leaves) }),
	gauge("links", "Members that there is a link to.", func(s *State) int { return len(s.Peers) }),
	gauge("pending_messages", "Messages that wait for the application.", func(s *State) int { return s.Pending }),
	gauge("circuits", "Circuits being carried for others.", func(s *State) int { return int(s.Circuits) }),
	counter("sent_messages", "Messages sent.", func(c *Counters) uint64 { return c.Sent }),
	counter("received_messages", "Messages and broadcasts handed to the application.", func(c *Counters) uint64 { return c.Received }),
	counter("broadcasts", "Broadcasts begun.", func(c *Counters) uint64 { return c.Broadcasts }),
	counter("dropped_messages", "Messages for which there was no room.", func(c *Counters) uint64 { return c.Dropped }),
	counter("untrusted_messages", "Messages refused because they were not sealed as agreed.", func(c *Counters) uint64 { return c.Untrusted }),
	counter("malformed_messages", "Messages that could not be read.", func(c *Counters) uint64 { return c.Malformed }),
	counter("refused_connections", "Connections and circuits that proved nothing.", func(c *Counters) uint64 { return c.Refused }),
	counter("conflicts", "Copies or claims that disagreed.", func(c *Counters) uint64 { return c.Conflicts }),
	counter("circuits_carried", "Circuits carried for others so far.", func(c *Counters) uint64 { return c.CircuitsCarried }),
	counter("punched_holes", "Links that came about through holes in NATs.", func(c *Counters) uint64 { return c.Punched }),
	counter("failed_punches", "Attempts at that which failed.", func(c *Counters) uint64 { return c.PunchFailures }),
}

// Describe implements [prometheus.Collector].
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range metrics {
		out <- m.desc
	}
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.peer.State()
	for _, m := range metrics {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s))
	}
}
