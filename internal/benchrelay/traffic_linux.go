// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/bpf"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/lab"
	"github.com/seed5728abee/fathom/packet"
)

const (
	payloadLen = 100
	ssLen      = 2 + 14 // what an SS datagram has before its IP packet
	ssPayload  = ssLen + packet.IPv4HeaderLen + packet.UDPHeaderLen
	// tick is how often a sender wakes: at 100,000/s it then sends 50 at a time, as programs that have much to say do.
	tick = 500 * time.Microsecond
	// queue is how much those who count let wait, in bytes of the kernel.
	queue = 64 << 20
)

// sender sends numbered payloads from one socket.
type sender struct {
	host    *rawio.KernelHost
	conn    rawio.Conn
	msgs    [rawio.BatchSize]rawio.Message
	payload int // where it begins in a message
	// finish makes a message whole once its payload is; nil: nothing is to be done.
	finish func(b []byte)
}

// broadcaster sends from a host to all on the wire to a neighbour, which is the name of the interface.
func broadcaster(host *lab.Host, neighbour string, port uint16) (*sender, error) {
	s := &sender{}
	return s, host.Do(func() error {
		if err := s.open(host.AddrTowards(neighbour, 4)); err != nil {
			return err
		}
		index, err := s.host.IfIndex(neighbour)
		if err != nil {
			return errors.Join(err, s.close())
		}
		for i := range s.msgs {
			s.msgs[i] = rawio.Message{
				Data: make([]byte, payloadLen), IfIndex: index,
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), port),
			}
		}
		return nil
	})
}

// relayed sends from a host what a relay there would send to the one at an address, about broadcasts of another host.
func relayed(host *lab.Host, to netip.AddrPort, port uint16) (*sender, error) {
	s := &sender{payload: ssPayload}
	src, dst := netip.AddrFrom4([4]byte{192, 0, 2, 7}), netip.AddrFrom4([4]byte{255, 255, 255, 255})
	s.finish = func(b []byte) { packet.SetUDPChecksum(b[ssLen+packet.IPv4HeaderLen:], src, dst) }
	datagram := []byte("SS\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x07\x08\x00")
	datagram, err := packet.AppendUDPProbe(datagram, netip.AddrPortFrom(src, 40000), netip.AddrPortFrom(dst, port), 64, make([]byte, payloadLen))
	if err != nil {
		return nil, err
	}
	for i := range s.msgs {
		s.msgs[i] = rawio.Message{Data: append([]byte(nil), datagram...), Addr: to}
	}
	return s, host.Do(func() error { return s.open(netip.Addr{}) })
}

func (s *sender) open(local netip.Addr) (err error) {
	if s.host, err = rawio.NewHost(); err != nil {
		return err
	}
	spec := rawio.Spec{Version: 4, Kind: rawio.Datagram}
	if local.IsValid() {
		spec.Local = netip.AddrPortFrom(local, 0)
	}
	if s.conn, err = s.host.Open(spec); err != nil {
		return errors.Join(err, s.host.Close())
	}
	return nil
}

func (s *sender) close() error { return s.host.Close() }

// send sends count payloads of a run, rate per second or (0) as fast as it goes, and tells at what rate it did.
func (s *sender) send(ctx context.Context, run uint32, count int, rate float64) (reached float64, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks it: the slack is for this alone
		if err = rawio.SetTimerSlack(time.Nanosecond); err == nil {
			reached, err = s.pace(ctx, run, count, rate)
		}
	}()
	<-done
	return reached, err
}

func (s *sender) pace(ctx context.Context, run uint32, count int, rate float64) (float64, error) {
	start := time.Now()
	for sent := 0; ; {
		due := count
		if rate > 0 {
			due = min(count, 1+int(time.Since(start).Seconds()*rate))
		}
		for sent < due {
			n := min(due-sent, len(s.msgs))
			now := time.Now().UnixNano()
			for i := range n {
				b := s.msgs[i].Data
				putHeader(b[s.payload:], run, uint32(sent+i), now)
				if s.finish != nil {
					s.finish(b)
				}
			}
			k, err := s.conn.Send(s.msgs[:n])
			sent += k
			if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOBUFS) {
				err = s.host.Wait(50 * time.Microsecond)
			}
			if err != nil {
				return 0, fmt.Errorf("send broadcast %d: %w", sent, err)
			}
		}
		if sent == count {
			return float64(count) / time.Since(start).Seconds(), nil
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		wait := time.Until(start.Add(time.Duration(float64(sent) / rate * float64(time.Second))))
		if wait < tick && rate > float64(time.Second/tick) {
			wait = tick
		}
		if wait > 0 {
			if err := s.host.Wait(wait); err != nil {
				return 0, err
			}
		}
	}
}

// receiver counts what arrives at some sockets of a host.
type receiver struct {
	host    *rawio.KernelHost
	conns   []rawio.Conn
	payload int
	prompt  bool // wakes for each, to measure latency; otherwise looks every millisecond, which costs less
	stopped chan struct{}
	err     error // of the goroutine, for after stopped

	mu      sync.Mutex // guards all below
	tallies []tally    // per socket
	times   *hdrhistogram.Histogram
	stop    bool
}

// receive counts what arrives at a port of each of a host's addresses (at all of them, if none is given). The
// numbers begin at payload.
func receive(host *lab.Host, port uint16, payload int, prompt bool, addrs ...netip.Addr) (*receiver, error) {
	if len(addrs) == 0 {
		addrs = []netip.Addr{netip.IPv4Unspecified()}
	}
	r := &receiver{
		payload: payload, prompt: prompt, stopped: make(chan struct{}),
		tallies: make([]tally, len(addrs)), times: hdrhistogram.New(1, int64(10*time.Second), 3),
	}
	err := host.Do(func() (err error) {
		if r.host, err = rawio.NewHost(); err != nil {
			return err
		}
		for _, a := range addrs {
			c, err := r.host.Open(rawio.Spec{
				Version: 4, Kind: rawio.Datagram, Local: netip.AddrPortFrom(a, port), ReceiveBuffer: queue,
			})
			if err != nil {
				return errors.Join(err, r.host.Close())
			}
			r.conns = append(r.conns, c)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(r.stopped)
		runtime.LockOSThread()
		r.err = r.loop()
	}()
	return r, nil
}

func (r *receiver) loop() error {
	msgs := make([]rawio.Message, rawio.BatchSize)
	for i := range msgs {
		msgs[i].Data = make([]byte, ssPayload+payloadLen)
	}
	for {
		if r.prompt {
			if err := r.host.Wait(-1); err != nil {
				return err
			}
		} else {
			time.Sleep(time.Millisecond)
		}
		for i, c := range r.conns {
			for {
				n, err := c.Receive(msgs)
				if err != nil {
					return err
				}
				r.take(i, msgs[:n])
				if n < len(msgs) {
					break
				}
			}
		}
		r.mu.Lock()
		stop := r.stop
		r.mu.Unlock()
		if stop {
			return nil
		}
	}
}

func (r *receiver) take(conn int, msgs []rawio.Message) {
	if len(msgs) == 0 {
		return
	}
	now := time.Now().UnixNano()
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &r.tallies[conn]
	for i := range msgs {
		m := &msgs[i]
		if m.N < r.payload {
			continue
		}
		arrived := m.Time // by the kernel's clock
		if r.prompt {
			arrived = now
		}
		if sent := t.take(m.Data[r.payload:m.N], arrived); sent != 0 && r.prompt {
			_ = r.times.RecordValue(arrived - sent) // beyond the histogram's 10 s there is nothing to tell
		}
	}
}

// begin forgets what was, and awaits want payloads of a run at each socket.
func (r *receiver) begin(run uint32, want int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.tallies {
		r.tallies[i].begin(run, want)
	}
	r.times.Reset()
}

// settle waits until everything has arrived, or nothing has for a while, and gives what did: the sockets' sum, and when
// the last one came.
func (r *receiver) settle(ctx context.Context) (sum tally, err error) {
	const patience = 300 * time.Millisecond
	quiet := time.Now()
	for before := -1; ; time.Sleep(5 * time.Millisecond) {
		select {
		case <-r.stopped:
			return sum, fmt.Errorf("receive broadcasts: %w", r.err)
		case <-ctx.Done():
			return sum, ctx.Err()
		default:
		}
		sum = r.sum()
		if n := sum.received + sum.copies; n != before {
			before, quiet = n, time.Now()
		}
		// A copy comes soon after; one later than that is the next run's, and not counted there.
		if sum.lost() == 0 && time.Since(quiet) > 30*time.Millisecond || time.Since(quiet) > patience {
			return sum, nil
		}
	}
}

func (r *receiver) sum() (sum tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.tallies {
		t := &r.tallies[i]
		sum.want += t.want
		sum.received += t.received
		sum.copies += t.copies
		sum.disorder += t.disorder
		sum.last = max(sum.last, t.last)
	}
	return sum
}

// latencies are those of the run so far.
func (r *receiver) latencies() *hdrhistogram.Histogram {
	r.mu.Lock()
	defer r.mu.Unlock()
	return hdrhistogram.Import(r.times.Export())
}

// close ends the counting. It is for the goroutine that began it.
func (r *receiver) close() error {
	r.mu.Lock()
	r.stop = true
	r.mu.Unlock()
	r.host.Wake()
	<-r.stopped
	return errors.Join(r.err, r.host.Close())
}

// bare is what a relay cannot do without, and nothing else: from the ring to a socket that merges what goes to one
// place. It is the limit of the machine, not a relay.
type bare struct {
	in     *rawio.FrameConn
	out    *rawio.UDPConn
	poller *rawio.Poller
	ended  chan error
	quit   chan struct{}
	thread string // of the loop: its directory in /proc
}

// cpu is what the loop has used so far.
func (b *bare) cpu() (time.Duration, error) {
	return cpuOf("/proc/" + b.thread)
}

// runBare carries broadcasts from an interface of a host to some addresses.
func runBare(host *lab.Host, ifname string, peers []netip.AddrPort) (*bare, error) {
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 14 + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 17, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 14 + 20 + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: broadcastPort, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, err
	}
	b := &bare{ended: make(chan error, 1), quit: make(chan struct{})}
	if err := host.Do(func() (err error) {
		if b.poller, err = rawio.NewPoller(); err != nil {
			return err
		}
		if b.out, err = rawio.OpenUDP(rawio.UDPOptions{SendBuffer: 8 << 20}); err != nil {
			return errors.Join(err, b.poller.Close())
		}
		if b.in, err = rawio.OpenFrameConn(ifname, rawio.FrameOptions{RingFrames: 4096, EtherType: 0x0800, Filter: filter}); err != nil {
			return errors.Join(err, b.out.Close(), b.poller.Close())
		}
		return nil
	}); err != nil {
		return nil, err
	}
	b.poller.Add(b.in.FD(), rawio.Readable)
	if err := b.poller.SetLinger(3 * time.Millisecond); err != nil {
		return nil, errors.Join(err, b.in.Close(), b.out.Close(), b.poller.Close())
	}
	started := make(chan struct{})
	defer func() { <-started }()
	go func() {
		runtime.LockOSThread()
		b.thread, _ = os.Readlink("/proc/thread-self") // without it cpu says so
		close(started)
		b.ended <- b.loop(peers)
	}()
	return b, nil
}

func (b *bare) loop(peers []netip.AddrPort) error {
	frames := make([]rawio.Frame, rawio.BatchSize)
	items := make([]rawio.Outgoing, 0, len(frames)*len(peers))
	head := []byte("SS")
	for {
		n, err := b.in.Receive(frames)
		if err != nil {
			return err
		}
		if n == 0 {
			select {
			case <-b.quit:
				return nil
			default:
			}
			if err := b.poller.Wait(-1); err != nil {
				return err
			}
			continue
		}
		items = items[:0]
		for _, p := range peers {
			for i := range n {
				items = append(items, rawio.Outgoing{To: p, Head: head, Data: frames[i].Data})
			}
		}
		if _, _, err := b.out.Send(items); err != nil { // what does not go is lost, as it would be in a relay
			return err
		}
	}
}

func (b *bare) close() error {
	close(b.quit)
	b.poller.Wake()
	err := <-b.ended
	return errors.Join(err, b.in.Close(), b.out.Close(), b.poller.Close())
}

// runs counts them. Those that follow each other differ, so that a late copy is not taken for the next one's.
var runs atomic.Uint32

func nextRun() uint32 { return runs.Add(1) }
