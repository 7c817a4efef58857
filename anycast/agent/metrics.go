// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import "github.com/prometheus/client_golang/prometheus"

// collector shows an agent's statistics as metrics.
type collector struct{ agent *Agent }

var _ prometheus.Collector = (*collector)(nil)

// metric is one of the agent's.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Stats) float64
}

// linkMetric is one of each connection.
type linkMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*LinkStats) float64
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fathom_anycast_agent_"+name, help, labels, nil)
}

const (
	counterValue = prometheus.CounterValue
	gaugeValue   = prometheus.GaugeValue
)

var metrics = []metric{
	{describe("probes_sent_total", "Probes handed to the network."), counterValue, func(s *Stats) float64 { return float64(s.Sent) }},
	{describe("probes_refused_total", "Probes that could not be sent."), counterValue, func(s *Stats) float64 { return float64(s.Refused) }},
	{describe("packets_received_total", "Packets that passed the kernel's filter."), counterValue, func(s *Stats) float64 { return float64(s.Received) }},
	{describe("answers_recognised_total", "Answers to probes of open sessions."), counterValue, func(s *Stats) float64 { return float64(s.Recognised) }},
	{describe("answers_forwarded_total", "Packets given to Voltadomar's controllers."), counterValue, func(s *Stats) float64 { return float64(s.Forwarded) }},
	{describe("answers_forged_total", "Packets with the port of a session but not its proof."), counterValue, func(s *Stats) float64 { return float64(s.Forged) }},
	{describe("packets_stray_total", "Packets that concern no session."), counterValue, func(s *Stats) float64 { return float64(s.Stray) }},
	{describe("packets_malformed_total", "Packets that are broken."), counterValue, func(s *Stats) float64 { return float64(s.Malformed) }},
	{describe("packets_overrun_total", "Packets that the kernel dropped because its queue was full."), counterValue, func(s *Stats) float64 { return float64(s.Overrun) }},
	{describe("sessions", "Sessions whose answers are recognised."), gaugeValue, func(s *Stats) float64 { return float64(s.Sessions) }},
	{describe("orders", "Orders with probes still to be sent."), gaugeValue, func(s *Stats) float64 { return float64(s.Orders) }},
}

var linkMetrics = []linkMetric{
	{describe("connected", "1 while the controller is there.", "controller"), gaugeValue, func(s *LinkStats) float64 {
		if s.Connected {
			return 1
		}
		return 0
	}},
	{describe("connects_total", "Connections made.", "controller"), counterValue, func(s *LinkStats) float64 { return float64(s.Connects) }},
	{describe("spool_bytes", "Answers kept until they are acknowledged.", "controller"), gaugeValue, func(s *LinkStats) float64 { return float64(s.Spooled) }},
	{describe("answers_dropped_total", "Answers that found no room in the spool.", "controller"), counterValue, func(s *LinkStats) float64 { return float64(s.Dropped) }},
	{describe("messages_invalid_total", "Messages of the controller that made no sense.", "controller"), counterValue, func(s *LinkStats) float64 { return float64(s.Invalid) }},
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
	for _, m := range linkMetrics {
		ch <- m.desc
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.agent.Stats()
	for _, m := range metrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s))
	}
	for i := range s.Links {
		for _, m := range linkMetrics {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s.Links[i]), s.Links[i].Address)
		}
	}
}
