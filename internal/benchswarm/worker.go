// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed5728abee/fathom/swarm"
)

// workerFlag is the first argument of a worker process.
const workerFlag = "worker"

// An order is a line from the bench to a worker, about one of its peers unless it says otherwise.
type order struct {
	Op      string        `json:"op"`
	Peer    int           `json:"peer,omitempty"`
	Count   int           `json:"count,omitempty"`
	Size    int           `json:"size,omitempty"`
	Address string        `json:"address,omitempty"`
	Key     swarm.Hash    `json:"key,omitzero"`
	Text    string        `json:"text,omitempty"`
	Wait    time.Duration `json:"wait,omitempty"`
}

// A report is the worker's answer, a line as well.
type report struct {
	Error    string        `json:"error,omitempty"`
	Took     time.Duration `json:"took,omitempty"`
	Peers    []place       `json:"peers,omitempty"`
	Owner    swarm.Hash    `json:"owner,omitzero"`
	Hops     int           `json:"hops,omitempty"`
	Arrivals []arrival     `json:"arrivals,omitempty"`
	Bytes    int           `json:"bytes,omitempty"`
	Sent     time.Time     `json:"sent,omitzero"`
}

// A place is what a peer knows of its neighbours.
type place struct {
	ID          swarm.Hash `json:"id"`
	Address     string     `json:"address"`
	Predecessor swarm.Hash `json:"predecessor,omitzero"`
	Successor   swarm.Hash `json:"successor,omitzero"`
}

// An arrival is one broadcast at one peer.
type arrival struct {
	Peer swarm.Hash `json:"peer"`
	Text string     `json:"text"`
	At   time.Time  `json:"at"`
}

// worker holds peers and does what the bench says.
type worker struct {
	peers []*swarm.Peer

	mu       sync.Mutex
	arrivals []arrival
	received map[*swarm.Peer]int
}

// serve works until standard input ends.
func serve(in io.Reader, out io.Writer) error {
	w := &worker{received: make(map[*swarm.Peer]int)}
	orders, reports := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var o order
		if err := orders.Decode(&o); err != nil {
			for _, p := range w.peers {
				p.Close()
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		r, err := w.do(o)
		if err != nil {
			r.Error = err.Error()
		}
		if err := reports.Encode(r); err != nil {
			return err
		}
	}
}

func (w *worker) do(o order) (r report, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(o.Wait, time.Minute))
	defer cancel()
	switch o.Op {
	case "start":
		for range o.Count {
			p := swarm.New(swarm.Options{})
			if err := p.Bind(ctx, "127.0.0.1:0"); err != nil {
				return r, err
			}
			w.peers = append(w.peers, p)
			go w.receive(p)
		}
		return w.state(), nil
	case "state":
		return w.state(), nil
	case "arrivals":
		w.mu.Lock()
		defer w.mu.Unlock()
		r.Arrivals, w.arrivals = w.arrivals, nil
		return r, nil
	case "memory":
		runtime.GC()
		debug.FreeOSMemory()
		r.Bytes, err = resident()
		return r, err
	}
	if o.Peer >= len(w.peers) {
		return r, fmt.Errorf("%s: no peer %d", o.Op, o.Peer)
	}
	p := w.peers[o.Peer]
	began := time.Now()
	r.Sent = began
	switch o.Op {
	case "join":
		err = p.Connect(ctx, o.Address)
	case "leave":
		err = p.Close()
	case "lookup":
		var found swarm.Result
		if found, err = p.Lookup(ctx, o.Key, swarm.LookupOptions{}); err == nil {
			r.Owner, r.Hops = found.Owner.ID, found.Hops
		}
	case "broadcast":
		err = p.Broadcast(ctx, []byte(o.Text))
	case "flood":
		err = flood(ctx, p, swarm.ToAddr(o.Address), o.Count, o.Size)
	case "stream":
		err = stream(ctx, p, swarm.ToAddr(o.Address), o.Count, o.Size)
	case "drain":
		err = drain(p)
	default:
		err = fmt.Errorf("no order %q", o.Op)
	}
	r.Took = time.Since(began)
	return r, err
}

// receive notes when broadcasts arrive, and counts all else.
func (w *worker) receive(p *swarm.Peer) {
	for {
		m, err := p.Recv(context.Background())
		if err != nil {
			return
		}
		if m.Broadcast {
			w.mu.Lock()
			w.arrivals = append(w.arrivals, arrival{p.ID(), string(m.Data), m.Time})
			w.mu.Unlock()
		}
	}
}

func (w *worker) state() (r report) {
	for _, p := range w.peers {
		s := p.State()
		if s.Self.ID == (swarm.Hash{}) {
			continue // closed
		}
		at := place{ID: s.Self.ID, Address: s.Self.Addr.String()}
		if len(s.Predecessors) > 0 {
			at.Predecessor = s.Predecessors[0].ID
		}
		if len(s.Successors) > 0 {
			at.Successor = s.Successors[0].ID
		}
		r.Peers = append(r.Peers, at)
	}
	return r
}

// flood sends messages as fast as acknowledgements allow, and waits for the last.
func flood(ctx context.Context, p *swarm.Peer, to swarm.Target, count, size int) error {
	data := make([]byte, size)
	results := make(chan error, count)
	for range count {
		if err := p.SendAsync(ctx, to, data, func(err error) { results <- err }); err != nil {
			return err
		}
	}
	for range count {
		if err := <-results; err != nil {
			return err
		}
	}
	return nil
}

// service is what stream and drain meet at.
const service = "bench"

// stream writes count pieces of a size to a stream, and waits until the other side has read them.
func stream(ctx context.Context, p *swarm.Peer, to swarm.Target, count, size int) error {
	s, err := p.Dial(ctx, to, service)
	if err != nil {
		return err
	}
	defer s.Close()
	data := make([]byte, size)
	for range count {
		if _, err := s.Write(data); err != nil {
			return err
		}
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	n, err := io.ReadAll(s)
	if err == nil && string(n) != strconv.Itoa(count*size) {
		err = fmt.Errorf("%d bytes sent, %s read", count*size, n)
	}
	return err
}

// drain reads what comes in by streams.
func drain(p *swarm.Peer) error {
	l, err := p.Listen(service)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				n, err := io.Copy(io.Discard, c)
				if err == nil {
					fmt.Fprint(c, n)
				}
			}()
		}
	}()
	return nil
}

// resident returns the resident memory of the process, in bytes.
func resident() (int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kB, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return kB << 10, err
		}
	}
	return 0, errors.New("no VmRSS in /proc/self/status")
}

// A process is a worker as the bench sees it.
type process struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	mu      sync.Mutex
	orders  *json.Encoder
	reports *json.Decoder
	peers   []place
}

// newProcess starts a worker with peers.
func newProcess(ctx context.Context, peers int) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &process{cmd: exec.CommandContext(ctx, self, workerFlag)}
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	w.orders, w.reports = json.NewEncoder(w.in), json.NewDecoder(bufio.NewReader(out))
	r, err := w.order(order{Op: "start", Count: peers})
	w.peers = r.Peers
	return w, err
}

// order has the worker do something.
func (w *process) order(o order) (r report, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.orders.Encode(o); err != nil {
		return r, err
	}
	if err := w.reports.Decode(&r); err != nil {
		return r, fmt.Errorf("worker: %w", err)
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// kill ends the worker without a word to anybody.
func (w *process) kill() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}
