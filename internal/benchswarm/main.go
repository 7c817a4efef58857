// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/seed5728abee/fathom/internal/figures"
	"github.com/seed5728abee/fathom/swarm"
)

type bench struct {
	rounds  int
	churn   time.Duration
	figures figures.Table
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == workerFlag {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "benchswarm: worker:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{}
	flag.IntVar(&b.rounds, "rounds", 20, "broadcasts, and lookups per peer")
	flag.DurationVar(&b.churn, "churn", time.Minute, "how long peers die and join")
	only := flag.String("only", "", "regular expression: run only the sections whose names match")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := figures.RunSections(ctx, regexp.MustCompile(*only),
		figures.Section{Name: "ring-32", Run: func(ctx context.Context) error { return b.ring(ctx, 32) }},
		figures.Section{Name: "ring-100", Run: func(ctx context.Context) error { return b.ring(ctx, 100) }},
		figures.Section{Name: "churn", Run: b.deaths},
		figures.Section{Name: "throughput", Run: b.throughput},
		figures.Section{Name: "links", Run: b.links},
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchswarm:", err)
		os.Exit(1)
	}
	if !b.figures.Print(os.Stdout) {
		os.Exit(1)
	}
}

// A handle is one peer in one worker.
type handle struct {
	w     *process
	index int
	place
}

// A crowd is the peers of some workers.
type crowd struct {
	workers []*process
	peers   []handle
}

// start makes peers in workers: sizes says how many in each.
func start(ctx context.Context, sizes ...int) (*crowd, error) {
	c := &crowd{}
	for _, n := range sizes {
		w, err := newProcess(ctx, n)
		if err != nil {
			c.stop()
			return nil, err
		}
		c.workers = append(c.workers, w)
		for i, p := range w.peers {
			c.peers = append(c.peers, handle{w, i, p})
		}
	}
	return c, nil
}

func (c *crowd) stop() {
	for _, w := range c.workers {
		w.kill()
	}
}

// join connects all peers, one after the other, through the first, and returns how long each took.
func (c *crowd) join() ([]time.Duration, error) {
	var took []time.Duration
	for i, p := range c.peers {
		if i == 0 {
			continue
		}
		r, err := p.w.order(order{Op: "join", Peer: p.index, Address: c.peers[0].Address})
		if err != nil {
			return nil, fmt.Errorf("peer %d: %w", i, err)
		}
		took = append(took, r.Took)
	}
	return took, nil
}

// settled waits until the ring is right, and returns how long that took.
func (c *crowd) settled(ctx context.Context) (time.Duration, error) {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		right, err := c.right()
		if err != nil {
			return 0, err
		}
		if right {
			return time.Since(began), nil
		}
		if ctx.Err() != nil || time.Since(began) > time.Minute {
			return 0, errors.New("the ring is not right after a minute")
		}
	}
}

// right reports whether every peer's neighbours are those that the IDs say.
func (c *crowd) right() (bool, error) {
	var all []place
	for _, w := range c.workers {
		r, err := w.order(order{Op: "state"})
		if err != nil {
			return false, err
		}
		all = append(all, r.Peers...)
	}
	slices.SortFunc(all, func(a, b place) int { return a.ID.Compare(b.ID) })
	for i, p := range all {
		if p.Successor != all[(i+1)%len(all)].ID || p.Predecessor != all[(i+len(all)-1)%len(all)].ID {
			return false, nil
		}
	}
	return true, nil
}

// owner is who a key belongs to.
func owner(peers []handle, key swarm.Hash) swarm.Hash {
	return slices.MinFunc(peers, func(a, b handle) int {
		return key.Distance(a.ID).Compare(key.Distance(b.ID))
	}).ID
}

// kill ends one worker, and takes its peers out of the crowd.
func (c *crowd) kill(w *process) {
	w.kill()
	c.workers = slices.DeleteFunc(c.workers, func(o *process) bool { return o == w })
	c.peers = slices.DeleteFunc(c.peers, func(h handle) bool { return h.w == w })
}

// ring measures a ring of n peers: joining, lookups, broadcasts, and deaths.
func (b *bench) ring(ctx context.Context, n int) error {
	section := fmt.Sprintf("ring of %d", n)
	third := n * 3 / 10
	// Three workers: the last holds what dies first, at the moment of a broadcast, the second what dies then.
	c, err := start(ctx, n-third-n/4, n/4, third)
	if err != nil {
		return err
	}
	defer c.stop()
	joins, err := c.join()
	if err != nil {
		return err
	}
	converged, err := c.settled(ctx)
	if err != nil {
		return err
	}
	average := mean(joins)
	b.figures.Judge(section, "join, mean", ms(average), "100 ms", average <= 100*time.Millisecond)
	b.figures.Add(section, "join, slowest", ms(slices.Max(joins)))
	b.figures.Judge(section, "converged after the last join", ms(converged), "2 s", converged <= 2*time.Second)

	time.Sleep(2 * time.Second) // what is set up after a join is done
	var took []time.Duration
	wrong, hops := 0, 0
	for k := range b.rounds * n {
		p, key := c.peers[k%n], swarm.HashOf(strconv.Itoa(k))
		r, err := p.w.order(order{Op: "lookup", Peer: p.index, Key: key})
		if err != nil || r.Owner != owner(c.peers, key) {
			wrong++
			continue
		}
		took, hops = append(took, r.Took), hops+r.Hops
	}
	b.figures.Judge(section, "lookups right", share(len(took), len(took)+wrong), "all", wrong == 0)
	p50 := figures.Median(took)
	if n == 32 {
		b.figures.Judge(section, "lookup, median", ms(p50), "2 ms", p50 <= 2*time.Millisecond)
	} else {
		b.figures.Add(section, "lookup, median", ms(p50))
	}
	b.figures.Add(section, "lookup, p95", ms(figures.Quantile(took, 0.95)))
	b.figures.Add(section, "hops, mean", fmt.Sprintf("%.2f", float64(hops)/float64(max(len(took), 1))))

	goal := 10 * time.Millisecond
	if n > 32 {
		goal = 20 * time.Millisecond
	}
	var last []time.Duration
	for i := range b.rounds {
		d, got, want, err := c.broadcast(ctx, c.peers[i*7%n], strconv.Itoa(i), nil)
		if err != nil {
			return err
		}
		if got != want {
			b.figures.Judge(section, "broadcast reach", share(got, want), "all, once", false)
		}
		last = append(last, d)
	}
	b.figures.Judge(section, "broadcast, last delivery, median", ms(figures.Median(last)), ms(goal), figures.Median(last) <= goal)
	b.figures.Add(section, "broadcast, last delivery, slowest", ms(slices.Max(last)))

	// Nearly a third is killed while a broadcast is under way.
	dying := c.workers[2]
	d, got, want, err := c.broadcast(ctx, c.peers[0], "under fire", dying)
	if err != nil {
		return err
	}
	b.figures.Judge(section, fmt.Sprintf("broadcast while %d of %d are killed", third, n), share(got, want), "all who live, once", got == want)
	b.figures.Add(section, "  its last delivery", ms(d))
	if _, err := c.settled(ctx); err != nil {
		return err
	}

	c.kill(c.workers[1])
	healed, err := c.settled(ctx)
	if err != nil {
		return err
	}
	b.figures.Judge(section, fmt.Sprintf("ring right after %d more are killed", n/4), ms(healed), "3 s", healed <= 3*time.Second)
	return nil
}

// broadcast sends one text and returns when the last living peer had it, how many have it, and how many should. dying
// is killed right after it is sent.
func (c *crowd) broadcast(ctx context.Context, from handle, text string, dying *process) (last time.Duration, got, want int, err error) {
	r, err := from.w.order(order{Op: "broadcast", Peer: from.index, Text: text})
	if err != nil {
		return 0, 0, 0, err
	}
	if dying != nil {
		c.kill(dying)
	}
	want = len(c.peers) - 1
	seen := map[swarm.Hash]int{}
	twice := 0
	for began := time.Now(); len(seen) < want && time.Since(began) < 10*time.Second && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		for _, w := range c.workers {
			a, err := w.order(order{Op: "arrivals"})
			if err != nil {
				return 0, 0, 0, err
			}
			for _, a := range a.Arrivals {
				if a.Text != text {
					continue
				}
				if seen[a.Peer]++; seen[a.Peer] > 1 {
					twice++
				}
				last = max(last, a.At.Sub(r.Sent))
			}
		}
	}
	return last, len(seen) - twice, want, nil
}

// deaths measures lookups while peers die and join.
func (b *bench) deaths(ctx context.Context) error {
	const n = 32
	sizes := slices.Repeat([]int{1}, n)
	c, err := start(ctx, sizes...)
	if err != nil {
		return err
	}
	defer c.stop()
	if _, err := c.join(); err != nil {
		return err
	}
	if _, err := c.settled(ctx); err != nil {
		return err
	}
	right, asked := 0, 0
	end, change := time.Now().Add(b.churn), time.Now().Add(time.Second)
	for time.Now().Before(end) && ctx.Err() == nil {
		if time.Now().After(change) {
			change = change.Add(5 * time.Second)
			c.kill(c.peers[1+rand.N(len(c.peers)-1)].w)
			w, err := newProcess(ctx, 1)
			if err != nil {
				return err
			}
			if _, err := w.order(order{Op: "join", Address: c.peers[0].Address}); err != nil {
				return err
			}
			c.workers = append(c.workers, w)
			c.peers = append(c.peers, handle{w, 0, w.peers[0]})
		}
		p, key := c.peers[rand.N(len(c.peers))], swarm.HashOf(strconv.Itoa(asked))
		r, err := p.w.order(order{Op: "lookup", Peer: p.index, Key: key, Wait: 10 * time.Second})
		asked++
		if err == nil && r.Owner == owner(c.peers, key) {
			right++
		}
		time.Sleep(2 * time.Millisecond)
	}
	b.figures.Judge("churn", "lookups right, 32 peers, a death and a join every 5 s", fmt.Sprintf("%s of %d", share(right, asked), asked), "99.9 %", right*1000 >= asked*999)
	return nil
}

// throughput measures two peers in two processes.
func (b *bench) throughput(ctx context.Context) error {
	c, err := start(ctx, 1, 1)
	if err != nil {
		return err
	}
	defer c.stop()
	if _, err := c.join(); err != nil {
		return err
	}
	from, to := c.peers[1], c.peers[0]
	if _, err := to.w.order(order{Op: "drain", Peer: to.index}); err != nil {
		return err
	}
	for _, m := range []struct {
		name        string
		op          string
		count, size int
		goal        float64
	}{
		{"messages of 100 bytes", "flood", 300000, 100, 100000},
		{"messages of 1 MiB", "flood", 1000, 1 << 20, 400},
		{"a stream", "stream", 16000, 64 << 10, 400},
	} {
		var best []float64
		for range 3 {
			r, err := from.w.order(order{Op: m.op, Peer: from.index, Address: to.Address, Count: m.count, Size: m.size})
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			rate := float64(m.count) / r.Took.Seconds()
			if m.goal < 1000 {
				rate *= float64(m.size) / 1e6
			}
			best = append(best, rate)
		}
		unit := "per second"
		if m.goal < 1000 {
			unit = "MB/s"
		}
		rate := figures.Median(best)
		b.figures.Judge("throughput", m.name, fmt.Sprintf("%.0f %s", rate, unit), fmt.Sprintf("%.0f %s", m.goal, unit), rate >= m.goal)
	}
	return nil
}

// links measures what links cost that nothing happens on: one peer with as many leaves as it takes.
func (b *bench) links(ctx context.Context) error {
	const n = 1000
	c, err := start(ctx, 1)
	if err != nil {
		return err
	}
	defer c.stop()
	before, err := c.workers[0].order(order{Op: "memory"})
	if err != nil {
		return err
	}
	address := c.peers[0].Address
	l, err := openLinks(ctx, address, n)
	if err != nil {
		return err
	}
	defer l.close()
	time.Sleep(5 * time.Second)
	after, err := c.workers[0].order(order{Op: "memory"})
	if err != nil {
		return err
	}
	grown := after.Bytes - before.Bytes
	b.figures.Judge("links", fmt.Sprintf("memory of %d idle links", n), fmt.Sprintf("%.1f MB", float64(grown)/1e6), "20 MB", grown <= 20e6)
	b.figures.Add("links", "memory of the whole process", fmt.Sprintf("%.1f MB", float64(after.Bytes)/1e6))
	return nil
}

// leaves are peers of this process that hold links to one other.
type leaves []*swarm.Peer

func openLinks(ctx context.Context, address string, n int) (leaves, error) {
	list := make(leaves, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	errs := make(chan error, n)
	for i := range list {
		slots <- struct{}{}
		list[i] = swarm.New(swarm.Options{Unreachable: true})
		wg.Go(func() {
			defer func() { <-slots }()
			err := list[i].Bind(ctx, "127.0.0.1:0")
			if err == nil {
				err = list[i].Connect(ctx, address)
			}
			if err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		list.close()
		return nil, err
	default:
		return list, nil
	}
}

func (l leaves) close() {
	var wg sync.WaitGroup
	for _, p := range l {
		wg.Go(func() { p.Close() })
	}
	wg.Wait()
}

func ms(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1e3)
	default:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
}

func share(part, whole int) string {
	return fmt.Sprintf("%.2f %%", 100*float64(part)/float64(max(whole, 1)))
}

// mean is the average of what there is at least one of.
func mean(v []time.Duration) time.Duration {
	var sum time.Duration
	for _, x := range v {
		sum += x
	}
	return sum / time.Duration(len(v))
}
