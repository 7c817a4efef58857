// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed5728abee/fathom/relay/mesh"
)

// collector shows a relay's counters as metrics.
type collector struct{ status func() Status }

var _ prometheus.Collector = (*collector)(nil)

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fathom_relay_"+name, help, labels, nil)
}

type segmentMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*SegmentStatus) float64
}

type meshMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*MeshStatus) float64
}

type peerMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*mesh.PeerStatus) float64
}

const (
	counterValue = prometheus.CounterValue
	gaugeValue   = prometheus.GaugeValue
)

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

var (
	readyMetric = metric("ready", "1 while the mesh socket and all segments are up.")

	segmentMetrics = []segmentMetric{
		{metric("segment_up", "1 while the interface is up.", "interface"), gaugeValue, func(s *SegmentStatus) float64 { return oneIf(s.Up) }},
		{metric("segment_serving", "1 while this relay, and no other, serves the segment.", "interface"), gaugeValue, func(s *SegmentStatus) float64 { return oneIf(s.Serving) }},
		{metric("captured_frames_total", "Frames that came up to be relayed.", "interface"), counterValue, func(s *SegmentStatus) float64 { return float64(s.Captured) }},
		{metric("captured_bytes_total", "Bytes of those frames.", "interface"), counterValue, func(s *SegmentStatus) float64 { return float64(s.CapturedBytes) }},
		{metric("relayed_broadcasts_total", "Broadcasts of the segment that went on.", "interface"), counterValue, func(s *SegmentStatus) float64 { return float64(s.Relayed) }},
		{metric("emitted_broadcasts_total", "Broadcasts of others that were put on the segment.", "interface"), counterValue, func(s *SegmentStatus) float64 { return float64(s.Emitted) }},
		{metric("emitted_bytes_total", "Bytes of those broadcasts.", "interface"), counterValue, func(s *SegmentStatus) float64 { return float64(s.EmittedBytes) }},
		{metric("kernel_dropped_frames_total", "Frames for which the capture ring had no room.", "interface"), counterValue, func(s *SegmentStatus) float64 { return float64(s.KernelDropped) }},
	}
	segmentDropped    = metric("dropped_frames_total", "Frames of the segment that went no further.", "interface", "reason")
	segmentNotEmitted = metric("not_emitted_broadcasts_total", "Broadcasts of others that were not put on the segment.", "interface", "reason")

	meshMetrics = []meshMetric{
		{metric("mesh_received_datagrams_total", "Datagrams that came to the mesh port."), counterValue, func(s *MeshStatus) float64 { return float64(s.Received) }},
		{metric("mesh_received_bytes_total", "Bytes of those datagrams."), counterValue, func(s *MeshStatus) float64 { return float64(s.ReceivedBytes) }},
		{metric("mesh_sent_datagrams_total", "Datagrams sent to peers."), counterValue, func(s *MeshStatus) float64 { return float64(s.Sent) }},
		{metric("mesh_sent_bytes_total", "Bytes of those datagrams."), counterValue, func(s *MeshStatus) float64 { return float64(s.SentBytes) }},
		{metric("mesh_send_errors_total", "Datagrams that could not be sent."), counterValue, func(s *MeshStatus) float64 { return float64(s.SendErrors) }},
		{metric("mesh_kernel_dropped_datagrams_total", "Datagrams for which the mesh socket had no room."), counterValue, func(s *MeshStatus) float64 { return float64(s.KernelDropped) }},
	}
	meshDropped = metric("mesh_dropped_total", "Datagrams of the mesh, or broadcasts in them, that went no further.", "reason")

	peerMetrics = []peerMetric{
		{metric("peer_up", "1 while the peer answers; relays of SnowSignal never do.", "peer", "kind"), gaugeValue, func(p *mesh.PeerStatus) float64 { return oneIf(p.State == mesh.Up) }},
		{metric("peer_rtt_seconds", "Time that a datagram takes to the peer and back, smoothed; 0 while it is not known.", "peer", "kind"), gaugeValue, func(p *mesh.PeerStatus) float64 { return p.RTT.Seconds() }},
		{metric("peer_sent_broadcasts_total", "Broadcasts sent to the peer.", "peer", "kind"), counterValue, func(p *mesh.PeerStatus) float64 { return float64(p.Sent.Broadcasts) }},
		{metric("peer_received_broadcasts_total", "Broadcasts received from the peer.", "peer", "kind"), counterValue, func(p *mesh.PeerStatus) float64 { return float64(p.Received.Broadcasts) }},
		{metric("peer_queue_dropped_broadcasts_total", "Broadcasts for the peer that no sealed link was ready for.", "peer", "kind"), counterValue, func(p *mesh.PeerStatus) float64 { return float64(p.QueueDrops) }},
	}
)

func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	descs <- readyMetric
	for _, m := range segmentMetrics {
		descs <- m.desc
	}
	for _, m := range meshMetrics {
		descs <- m.desc
	}
	for _, m := range peerMetrics {
		descs <- m.desc
	}
	for _, d := range []*prometheus.Desc{segmentDropped, segmentNotEmitted, meshDropped} {
		descs <- d
	}
}

func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	s := c.status()
	metrics <- prometheus.MustNewConstMetric(readyMetric, gaugeValue, oneIf(s.Ready))
	for i := range s.Segments {
		g := &s.Segments[i]
		for _, m := range segmentMetrics {
			metrics <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(g), g.Interface)
		}
		for reason, n := range g.Dropped {
			metrics <- prometheus.MustNewConstMetric(segmentDropped, counterValue, float64(n), g.Interface, reason)
		}
		for reason, n := range g.NotEmitted {
			metrics <- prometheus.MustNewConstMetric(segmentNotEmitted, counterValue, float64(n), g.Interface, reason)
		}
	}
	for _, m := range meshMetrics {
		metrics <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s.Mesh))
	}
	for reason, n := range s.Mesh.Dropped {
		metrics <- prometheus.MustNewConstMetric(meshDropped, counterValue, float64(n), reason)
	}
	for i := range s.Peers {
		p := &s.Peers[i]
		if p.Origin == "heard" { // anybody can make us know of them
			continue
		}
		for _, m := range peerMetrics {
			metrics <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(p), p.Address.String(), p.Kind.String())
		}
	}
}
