// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed5728abee/fathom/anycast"
)

// metrics is what a controller tells Prometheus. What belongs to a site is told for as long as the site is there, so that
// names that agents give themselves do not pile up.
type metrics struct {
	c *Controller

	requests     *prometheus.HistogramVec
	measurements *prometheus.CounterVec
	storeErrors  prometheus.Counter
	alarms       prometheus.Counter

	agents, probes, answers, forged, dropped, overrun, clockOffset, clockError *prometheus.Desc
	discarded, running, waiting, ports, runs, sessions, unkept                 *prometheus.Desc
}

func newMetrics(c *Controller) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("fathom_anycast_"+name, help, labels, nil)
	}
	return &metrics{
		c: c,
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fathom_anycast_request_duration_seconds", Help: "Time that text requests took, waiting included, by response code.",
			Buckets: []float64{0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10},
		}, []string{"code"}),
		measurements: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fathom_anycast_measurements_ended_total", Help: "Measurements that ended, by state.",
		}, []string{"state"}),
		storeErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fathom_anycast_store_errors_total", Help: "Failures of the store of results.",
		}),
		alarms: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fathom_anycast_alarms_total", Help: "Alarms about catchments that moved between two runs of a schedule.",
		}),
		agents:      desc("agents_connected", "Connected agents, by the dialect they speak.", "dialect"),
		probes:      desc("site_probes_total", "Probes that a site reported as sent.", "site"),
		answers:     desc("site_answers_total", "Answers to probes that came home at a site.", "site"),
		forged:      desc("site_forged_total", "Packets from a site that came to a session's port and did not prove their probe.", "site"),
		dropped:     desc("site_dropped_total", "Answers that a site gave up because the controller was away for too long.", "site"),
		overrun:     desc("site_overrun_total", "Packets that a site's kernel dropped because the agent was not fast enough.", "site"),
		clockOffset: desc("site_clock_offset_seconds", "How far a site's clock is ahead of the controller's.", "site"),
		clockError:  desc("site_clock_error_seconds", "Bound of the error of the clock offset.", "site"),
		discarded:   desc("discarded_total", "What agents delivered and nobody could use, by reason.", "reason"),
		running:     desc("requests_running", "Text requests that run."),
		waiting:     desc("requests_waiting", "Text requests that wait for their turn."),
		ports:       desc("ports_in_use", "Source ports that are in use, or rest."),
		runs:        desc("measurements", "Measurements that run or wait, by state.", "state"),
		sessions:    desc("sessions", "Open sessions: what is being probed for."),
		unkept:      desc("measurements_unkept", "Measurements that the store did not take."),
	}
}

// ended counts a measurement.
func (m *metrics) ended(s anycast.State) { m.measurements.WithLabelValues(s.String()).Inc() }

// request counts a text request.
func (m *metrics) request(code int32, seconds float64) {
	m.requests.WithLabelValues(strconv.Itoa(int(code))).Observe(seconds)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.requests.Describe(ch)
	m.measurements.Describe(ch)
	m.storeErrors.Describe(ch)
	m.alarms.Describe(ch)
	for _, d := range []*prometheus.Desc{
		m.agents, m.probes, m.answers, m.forged, m.dropped, m.overrun, m.clockOffset, m.clockError,
		m.discarded, m.running, m.waiting, m.ports, m.runs, m.sessions, m.unkept,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.requests.Collect(ch)
	m.measurements.Collect(ch)
	m.storeErrors.Collect(ch)
	m.alarms.Collect(ch)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	f := m.c.fleet
	now := f.now()
	agents := map[string]int{"native": 0, "seed": 0, "go": 0}
	for _, s := range f.all() {
		if info, ok := s.describe(now); ok {
			if s.native {
				agents["native"]++
			} else {
				agents[s.dialect.String()]++
			}
			if info.Clock.Error > 0 {
				gauge(m.clockOffset, info.Clock.Offset.Seconds(), s.name)
				gauge(m.clockError, info.Clock.Error.Seconds(), s.name)
			}
		}
		counter(m.probes, s.probes.Load(), s.name)
		counter(m.answers, s.answers.Load(), s.name)
		counter(m.forged, s.forged.Load(), s.name)
		if stats := s.reported(); stats != nil {
			counter(m.dropped, stats.GetDropped(), s.name)
			counter(m.overrun, stats.GetOverrun(), s.name)
		}
	}
	for dialect, n := range agents {
		gauge(m.agents, float64(n), dialect)
	}
	counter(m.discarded, f.stray.Load(), "stray")
	counter(m.discarded, f.forged.Load(), "forged")
	counter(m.discarded, f.malformed.Load(), "malformed")
	counter(m.discarded, f.duplicate.Load(), "duplicate")
	running, waiting := m.c.requests.load()
	gauge(m.running, float64(running))
	gauge(m.waiting, float64(waiting))
	gauge(m.ports, float64(f.ports.blocks.InUse()))
	f.mu.RLock()
	sessions := len(f.sessions)
	f.mu.RUnlock()
	gauge(m.sessions, float64(sessions))

	states := map[anycast.State]int{anycast.Running: 0, anycast.Waiting: 0}
	m.c.mu.Lock()
	for id, r := range m.c.runs {
		if m.c.unkept[id] == nil {
			states[r.snapshot().State]++
		}
	}
	unkept := len(m.c.unkept)
	m.c.mu.Unlock()
	for state, n := range states {
		if state == anycast.Running || state == anycast.Waiting {
			gauge(m.runs, float64(n), state.String())
		}
	}
	gauge(m.unkept, float64(unkept))
}
