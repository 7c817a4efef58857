// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/seed5728abee/fathom/internal/figures"
	"github.com/seed5728abee/fathom/lab"
)

// firstRate is where the search for a highest rate begins.
const firstRate = 10_000

// ingress: how many broadcasts of a segment reach the mesh. The peers only count.
func (b *bench) ingress(ctx context.Context) error {
	l, err := lab.Start(ctx, fan(), lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	goals := map[int]float64{1: 100_000, 3: 55_000, 10: 22_000}
	for _, n := range []int{1, 3, 10} {
		rates := map[string][]float64{}
		peers := fanPeers(n)
		sink, err := receive(l.Host("peers"), meshPort, ssPayload, false, peers...)
		if err != nil {
			return err
		}
		sender, err := broadcaster(l.Host("s1"), "seg1", broadcastPort)
		if err != nil {
			return errors.Join(err, sink.close())
		}
		measure := func(name string) error {
			if err := b.await(ctx, sender, sink); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			rate, err := b.sustained(ctx, firstRate, sender, sink)
			rates[name] = append(rates[name], rate)
			return err
		}
		turns := func() error {
			for range b.rounds {
				for _, s := range b.subjects() {
					r, err := b.start(ctx, s, l.Host("r1"), place{ifname: "seg1", peers: peers})
					if err != nil {
						return err
					}
					err = measure(s.name)
					r.stop()
					if err != nil {
						return err
					}
				}
				var to []netip.AddrPort
				for _, a := range peers {
					to = append(to, netip.AddrPortFrom(a, meshPort))
				}
				loop, err := runBare(l.Host("r1"), "seg1", to)
				if err != nil {
					return err
				}
				if err := errors.Join(measure("bare loop"), loop.close()); err != nil {
					return err
				}
			}
			return nil
		}
		if err := errors.Join(turns(), sender.close(), sink.close()); err != nil {
			return err
		}
		what := "loss-free broadcasts/s to " + strconv.Itoa(n) + " peers"
		if n == 1 {
			what = "loss-free broadcasts/s to a peer"
		}
		b.rates("ingress", what, goals[n], rates)
		b.figures.Add("ingress", what+", bare loop", rate(figures.Median(rates["bare loop"])))
	}
	return nil
}

// rates records what the subjects reached, and how often the other one fits into ours.
func (b *bench) rates(section, what string, goal float64, rates map[string][]float64) {
	ours := b.ours().name
	for _, s := range b.subjects() {
		m := figures.Median(rates[s.name])
		if s.ours && goal > 0 {
			b.figures.Judge(section, what+", "+s.name, rate(m), "≥ "+rate(goal), m >= goal)
			continue
		}
		b.figures.Add(section, what+", "+s.name, rate(m))
		if !s.ours {
			b.figures.Add(section, what+", "+ours+" : "+s.name, fmt.Sprintf("%.1f", ratio(rates[ours], rates[s.name])))
		}
	}
}

func rate(r float64) string { return fmt.Sprintf("%.0f/s", r) }

// ratio divides pair by pair and gives the median.
func ratio(a, b []float64) float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / max(b[i], 1)
	}
	return figures.Median(r)
}

// egress: how many datagrams of the mesh reach a segment.
func (b *bench) egress(ctx context.Context) error {
	l, err := lab.Start(ctx, segments(2), lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	peer := l.Host("r1").AddrTowards("seg1", 4)
	sink, err := receive(l.Host("s2"), broadcastPort, 0, false)
	if err != nil {
		return err
	}
	defer func() { _ = sink.close() }() // what was counted has been read
	sender, err := relayed(l.Host("r1"), netip.AddrPortFrom(l.Host("r2").AddrTowards("seg2", 4), meshPort), broadcastPort)
	if err != nil {
		return err
	}
	defer func() { _ = sender.close() }()
	rates := map[string][]float64{}
	for range b.rounds {
		for _, s := range b.subjects() {
			r, err := b.start(ctx, s, l.Host("r2"), place{ifname: "seg2", peers: []netip.Addr{peer}})
			if err != nil {
				return err
			}
			err = b.await(ctx, sender, sink)
			if err == nil {
				var found float64
				found, err = b.sustained(ctx, firstRate, sender, sink)
				rates[s.name] = append(rates[s.name], found)
			}
			r.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	b.rates("egress", "loss-free broadcasts/s out of the mesh", 80_000, rates)
	return nil
}

// keyFile is that of the sealed mesh.
func (b *bench) keyFile() (string, error) {
	if b.key != "" {
		return b.key, nil
	}
	b.key = filepath.Join(b.dir, "mesh.key")
	var k [32]byte
	_, _ = rand.Read(k[:]) // it never fails
	return b.key, os.WriteFile(b.key, []byte(base64.StdEncoding.EncodeToString(k[:])+"\n"), 0o600)
}

// through: how many broadcasts get from one segment to another, in clear and sealed.
func (b *bench) through(ctx context.Context) error {
	key, err := b.keyFile()
	if err != nil {
		return err
	}
	l, err := lab.Start(ctx, segments(2), lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	sealed := b.ours()
	sealed.name = "fathom, sealed"
	rates := map[string][]float64{}
	for range b.rounds {
		for _, s := range append(b.subjects(), sealed) {
			var more []string
			if s.name == sealed.name {
				more = []string{"--key", key}
			}
			if err := b.withMesh(ctx, l, s, 2, false, more, func(m *mesh) error {
				found, err := b.sustained(ctx, firstRate, m.sender, m.receivers...)
				rates[s.name] = append(rates[s.name], found)
				return err
			}); err != nil {
				return err
			}
		}
	}
	const what = "loss-free broadcasts/s through two relays"
	b.rates("through", what, 0, rates)
	b.figures.Add("through", what+", "+sealed.name, rate(figures.Median(rates[sealed.name])))
	share := ratio(rates[sealed.name], rates[b.ours().name])
	b.figures.Judge("through", "sealed : in clear", fmt.Sprintf("%.2f", share), "≥ 0.75", share >= 0.75)
	return nil
}

// withMesh runs f with relays of a subject on the segments of a lab.
func (b *bench) withMesh(ctx context.Context, l *lab.Lab, s subject, n int, prompt bool, more []string, f func(*mesh) error) error {
	m, err := b.startMesh(ctx, l, s, n, prompt, more...)
	if err == nil {
		err = f(m)
		m.close()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// latency: what relays add to the way of a broadcast, and what they use of the processors for it.
func (b *bench) latency(ctx context.Context) error {
	l, err := lab.Start(ctx, segments(2), lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	times := map[string]*hdrhistogram.Histogram{}
	add := func(name string, r *receiver) {
		if times[name] == nil {
			times[name] = hdrhistogram.New(1, int64(10*time.Second), 3)
		}
		times[name].Merge(r.latencies())
	}
	alone, err := receive(l.Host("near"), broadcastPort, 0, true)
	if err != nil {
		return err
	}
	sender, err := broadcaster(l.Host("s1"), "seg1", broadcastPort)
	if err != nil {
		return errors.Join(err, alone.close())
	}
	const one = "one segment, no relay"
	for range b.rounds {
		if _, err = flow(ctx, sender, int(5000*b.seconds.Seconds()), 1000, alone); err != nil {
			break
		}
		add(one, alone)
	}
	if err := errors.Join(err, sender.close(), alone.close()); err != nil {
		return err
	}
	const load = 2000
	used := map[string][2][]float64{}
	for range b.rounds {
		for _, s := range b.subjects() {
			if err := b.withMesh(ctx, l, s, 2, true, nil, func(m *mesh) error {
				if _, err := flow(ctx, m.sender, int(5000*b.seconds.Seconds()), 1000, m.receivers...); err != nil {
					return err
				}
				add(s.name, m.receivers[0])
				before, err := m.cpu()
				if err != nil {
					return err
				}
				count := int(5 * load * b.seconds.Seconds())
				if _, err := flow(ctx, m.sender, count, load, m.receivers...); err != nil {
					return err
				}
				after, err := m.cpu()
				if err != nil {
					return err
				}
				sides := used[s.name]
				for i := range sides {
					sides[i] = append(sides[i], (after[i]-before[i]).Seconds()*1e5/float64(count))
				}
				used[s.name] = sides
				return nil
			}); err != nil {
				return err
			}
		}
	}
	least, err := b.bareCPU(ctx, l, load)
	if err != nil {
		return err
	}
	b.figures.Add("cpu", "s per 100,000 at 2,000/s, into the mesh, bare loop", fmt.Sprintf("%.2f", least))
	quantiles := func(name string) (p50, p99 time.Duration) {
		return time.Duration(times[name].ValueAtQuantile(50)), time.Duration(times[name].ValueAtQuantile(99))
	}
	show := func(d time.Duration) string { return fmt.Sprintf("%d µs", d.Microseconds()) }
	p50, p99 := quantiles(one)
	b.figures.Add("latency", one+", 1,000/s, median", show(p50))
	b.figures.Add("latency", one+", 1,000/s, 99 %", show(p99))
	for _, s := range b.subjects() {
		what := "two relays, 1,000/s, " + s.name
		p50, p99 := quantiles(s.name)
		sides := used[s.name]
		into, out := figures.Median(sides[0]), figures.Median(sides[1])
		if !s.ours {
			b.figures.Add("latency", what+", median", show(p50))
			b.figures.Add("latency", what+", 99 %", show(p99))
			b.figures.Add("cpu", "s per 100,000 at 2,000/s, into + out of the mesh, "+s.name, fmt.Sprintf("%.2f + %.2f", into, out))
			continue
		}
		b.figures.Judge("latency", what+", median", show(p50), "≤ 100 µs", p50 <= 100*time.Microsecond)
		b.figures.Judge("latency", what+", 99 %", show(p99), "≤ 500 µs", p99 <= 500*time.Microsecond)
		b.figures.Judge("cpu", "s per 100,000 at 2,000/s, into + out of the mesh, "+s.name,
			fmt.Sprintf("%.2f + %.2f", into, out), "≤ 3 each", max(into, out) <= 3)
	}
	return nil
}

// bareCPU is the processor time, in seconds, that a bare loop takes for 100,000 broadcasts into the mesh, at a rate.
func (b *bench) bareCPU(ctx context.Context, l *lab.Lab, load float64) (seconds float64, err error) {
	peer := l.Host("r2").AddrTowards("seg2", 4)
	sink, err := receive(l.Host("r2"), meshPort, ssPayload, false, peer)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sink.close()) }()
	sender, err := broadcaster(l.Host("s1"), "seg1", broadcastPort)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sender.close()) }()
	loop, err := runBare(l.Host("r1"), "seg1", []netip.AddrPort{netip.AddrPortFrom(peer, meshPort)})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, loop.close()) }()
	if err := b.await(ctx, sender, sink); err != nil {
		return 0, err
	}
	before, err := loop.cpu()
	if err != nil {
		return 0, err
	}
	count := int(5 * load * b.seconds.Seconds())
	if _, err := flow(ctx, sender, count, load, sink); err != nil {
		return 0, err
	}
	after, err := loop.cpu()
	return (after - before).Seconds() * 1e5 / float64(count), err
}

// exact: among three relays nothing is lost, comes twice or out of order, at a rate and in a burst that must be no effort.
func (b *bench) exact(ctx context.Context) error {
	l, err := lab.Start(ctx, segments(3), lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	loads := []struct {
		name  string
		count int
		rate  float64
	}{{"20,000 at 10,000/s", 20_000, 10_000}, {"1,000 at once", 1000, 0}}
	for _, s := range b.subjects() {
		sums := make([]tally, len(loads))
		if err := b.withMesh(ctx, l, s, 3, false, nil, func(m *mesh) error {
			for range b.rounds {
				for i, load := range loads {
					o, err := flow(ctx, m.sender, load.count, load.rate, m.receivers...)
					if err != nil {
						return err
					}
					sums[i].want += o.sum.want
					sums[i].received += o.sum.received
					sums[i].copies += o.sum.copies
					sums[i].disorder += o.sum.disorder
				}
			}
			return nil
		}); err != nil {
			return err
		}
		for i, load := range loads {
			what := load.name + " through three relays, " + s.name
			if s.ours {
				b.figures.Judge("exact", what, sums[i].String(), "each once, in order", sums[i].exact())
			} else {
				b.figures.Add("exact", what, sums[i].String())
			}
		}
	}
	return nil
}

// burst: how many broadcasts may come back to back without a loss behind two relays.
func (b *bench) burst(ctx context.Context) error {
	const most, goal = 25_600, 12_800
	l, err := lab.Start(ctx, segments(2), lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	for _, s := range b.subjects() {
		var found []int
		if err := b.withMesh(ctx, l, s, 2, false, nil, func(m *mesh) error {
			for range b.rounds {
				best := 0
				for n := 100; n <= most; n *= 2 {
					o, err := flow(ctx, m.sender, n, 0, m.receivers...)
					if err != nil {
						return err
					}
					b.logf("%d at once (%.0f/s): %v, the last after %v", n, o.reached, &o.sum, o.late.Round(time.Millisecond/10))
					if o.sum.lost() > 0 {
						break
					}
					best = n
				}
				found = append(found, best)
			}
			return nil
		}); err != nil {
			return err
		}
		median := figures.Median(found)
		if s.ours {
			b.figures.Judge("burst", "back to back without loss, "+s.name, strconv.Itoa(median), "≥ "+strconv.Itoa(goal), median >= goal)
		} else {
			b.figures.Add("burst", "back to back without loss, "+s.name, strconv.Itoa(median))
		}
	}
	return nil
}

// memory: what two relays have resident at each load, the larger of them, and what they use when there is nothing to do.
func (b *bench) memory(ctx context.Context) error {
	const goal = 20e6
	idle := 20 * b.seconds
	l, err := lab.Start(ctx, segments(2), lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	for _, s := range b.subjects() {
		if err := b.withMesh(ctx, l, s, 2, false, nil, func(m *mesh) error {
			loads := []struct {
				name  string
				count int
				rate  float64
			}{
				{"at first", 0, 0},
				{"after 10,000/s", int(20_000 * b.seconds.Seconds()), 10_000},
				{"after 50,000/s", int(100_000 * b.seconds.Seconds()), 50_000},
				{"after 12,800 at once", 12_800, 0},
				{"after 100,000 at once", 100_000, 0},
			}
			for _, load := range loads {
				if load.count > 0 {
					if _, err := flow(ctx, m.sender, load.count, load.rate, m.receivers...); err != nil {
						return err
					}
				}
				var most memory
				for _, r := range m.relays {
					now, err := r.memory()
					if err != nil {
						return err
					}
					if now.all > most.all {
						most = now
					}
				}
				what := "resident " + load.name + ", " + s.name
				if s.ours {
					b.figures.Judge("memory", what, most.String(), "≤ 20 MB", float64(most.all) <= goal)
				} else {
					b.figures.Add("memory", what, most.String())
				}
			}
			before, err := m.cpu()
			if err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(idle):
			}
			after, err := m.cpu()
			if err != nil {
				return err
			}
			share := 0.0
			for i := range before {
				share = max(share, (after[i]-before[i]).Seconds()/idle.Seconds())
			}
			what, value := "of a processor when idle, "+s.name, fmt.Sprintf("%.2f %%", share*100)
			if s.ours {
				b.figures.Judge("memory", what, value, "≤ 0.2 %", share <= 0.002)
			} else {
				b.figures.Add("memory", what, value)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// cost: that of a broadcast does not depend on how many ports are relayed, on how many interfaces, and on how much is remembered.
func (b *bench) cost(ctx context.Context) error {
	const load = 10_000
	count := int(5 * load * b.seconds.Seconds())
	l, err := lab.Start(ctx, fan(), lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	peers := fanPeers(1)
	sink, err := receive(l.Host("peers"), meshPort, ssPayload, false, peers...)
	if err != nil {
		return err
	}
	defer func() { _ = sink.close() }() // what was counted has been read
	sender, err := broadcaster(l.Host("s1"), "seg1", broadcastPort)
	if err != nil {
		return err
	}
	defer func() { _ = sender.close() }()
	s := b.ours()
	used := map[string][]float64{}
	measure := func(name string, p place, first int) error {
		r, err := b.start(ctx, s, l.Host("r1"), p)
		if err != nil {
			return err
		}
		defer r.stop()
		if err := b.await(ctx, sender, sink); err != nil {
			return err
		}
		if first > 0 {
			if _, err := flow(ctx, sender, first, 4*load, sink); err != nil {
				return err
			}
		}
		before, err := r.cpu()
		if err != nil {
			return err
		}
		o, err := flow(ctx, sender, count, load, sink)
		if err != nil {
			return err
		}
		after, err := r.cpu()
		if err != nil {
			return err
		}
		b.logf("%s: %v", name, &o.sum)
		used[name] = append(used[name], (after-before).Seconds()*1e5/float64(count))
		return nil
	}
	var names []string
	for round := range b.rounds {
		turn := func(name string, p place, first int) error {
			if round == 0 {
				names = append(names, name)
			}
			p.ifname, p.peers = "seg1", peers
			if err := measure(name, p, first); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		}
		for _, n := range []int{1, 16, 256} {
			if err := turn(fmt.Sprintf("%d ports", n), place{ports: fmt.Sprintf("%d-%d", broadcastPort, broadcastPort+n-1)}, 0); err != nil {
				return err
			}
		}
		// What goes out to the second interface, besides to the peer, is a cost of its own.
		if err := turn("2 interfaces", place{more: []string{"-t", "peers"}}, 0); err != nil {
			return err
		}
		if err := turn("100,000 remembered", place{}, 100_000); err != nil {
			return err
		}
	}
	base := figures.Median(used[names[0]])
	for _, name := range names {
		m := figures.Median(used[name])
		value := fmt.Sprintf("%.2f", m)
		if name == names[0] || name == "2 interfaces" {
			b.figures.Add("cost", "s per 100,000 to 1 peer at 10,000/s, "+name, value)
		} else {
			b.figures.Judge("cost", "s per 100,000 to 1 peer at 10,000/s, "+name, value, "≤ 1.25 × 1 port", m <= base*1.25)
		}
	}
	return nil
}
