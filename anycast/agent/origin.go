// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// jobs are those of Voltadomar's controllers that are not reported yet, by a number of ours: theirs may come twice.
type jobs struct {
	mu    sync.Mutex // guards what follows
	open  map[uint64]volta.Job
	count uint64
	seen  bool // on this connection
}

func (j *jobs) add(job volta.Job) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open == nil {
		j.open = make(map[uint64]volta.Job)
	}
	j.count++
	j.open[j.count] = job
	return j.count
}

func (j *jobs) find(n uint64) (volta.Job, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	job, ok := j.open[n]
	return job, ok
}

// reported drops a job.
func (j *jobs) reported(n uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.open, n)
}

// forget drops all of them: their controller is gone.
func (j *jobs) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	clear(j.open)
}

func (j *jobs) saw(any bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen = any
}

// none tells that no job came by the last connection.
func (j *jobs) none() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.seen
}

// origin serves a connection to one of Voltadomar's controllers.
func (l *link) origin(ctx context.Context, d Dialect, cc *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.jobs.saw(false)
	stream, err := anycastpb.NewAnycastServiceClient(cc).ControlStream(ctx)
	if err != nil {
		return fmt.Errorf("open control stream: %w", err)
	}
	register, err := volta.Encode(voltaDialect(d), volta.Register{AgentID: l.agent.opts.ID})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if err := stream.Send(register); err != nil {
		_, err = stream.Recv() // says why
		return fmt.Errorf("register: %w", err)
	}
	l.begin(d)
	l.forward(true)
	defer l.forward(false)
	l.spool.restart(0)
	l.up(true)
	l.log.Info("registered at controller", "dialect", d)

	var group sync.WaitGroup
	group.Go(func() {
		l.writeOrigin(ctx, d, stream)
		cancel()
	})
	err = l.readOrigin(d, stream)
	cancel()
	group.Wait()
	return err
}

// forward has the plane give the controller all ICMP errors about UDP, or no more. While there is no
// connection they are dropped: its requests do not wait so long.
func (l *link) forward(on bool) {
	l.spool.setAway(!on)
	l.plane.ask(func() { l.plane.setForward(l, on) })
}

func (p *plane) setForward(l *link, on bool) {
	if l.forwards == on {
		return
	}
	l.forwards = on
	if on {
		p.forwarding++
	} else {
		p.forwarding--
	}
	if rx := &p.receivers[0]; rx.conn != nil {
		p.setFilter(rx)
	}
}

type controlStream = grpc.BidiStreamingClient[anycastpb.Message, anycastpb.Message]

// readOrigin does the jobs that come until the stream ends.
func (l *link) readOrigin(d Dialect, stream controlStream) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if l.spool.overfull() {
			return errDeaf
		}
		msg, err := volta.DecodeAs(voltaDialect(d), m)
		if err != nil {
			l.invalid("message", err)
			l.refuse(&report{err: fault{400, err}})
			continue
		}
		job, ok := msg.(volta.Job)
		if !ok {
			l.invalid("message", fmt.Errorf("unexpected %s", msg.Kind()))
			continue
		}
		l.jobs.saw(true)
		o, err := l.newJob(job)
		if err != nil {
			l.invalid("job", err)
			l.refuse(&report{err: fault{400, fmt.Errorf("job %d: %w", job.SessionID, err)}})
			continue
		}
		l.plane.do(func() { l.plane.accept(o) })
	}
}

// fault is an error with one of Voltadomar's codes.
type fault struct {
	code int32
	error
}

// newJob makes an order of a job, as its original would send it (see package stateless about the classic scheme).
func (l *link) newJob(job volta.Job) (*order, error) {
	dst, err := job.Check()
	if err != nil {
		return nil, err
	}
	n := int(job.MaxTTL) * int(job.ProbeNum)
	o := &order{link: l, id: uint32(job.SessionID), batch: l.jobs.add(job), n: n, stamps: true, strict: true, targets: dst.AsSlice()}
	conf := stateless.Config{Classic: true, Kind: stateless.UDP, FirstPort: uint16(max(job.BasePort, 1)), Ports: uint16(max(n, 1)), Target: dst}
	if n == 0 {
		conf.FirstPort = 1
	}
	if o.codec, err = stateless.New(conf); err != nil {
		return nil, err
	}
	o.ttls, o.numbers, o.flows = make([]uint32, n), make([]uint32, n), zero
	for i := range n {
		o.ttls[i], o.numbers[i] = uint32(i/int(job.ProbeNum)+1), uint32(i)
	}
	return o, nil
}

// writeOrigin sends what there is until the stream breaks or ctx ends.
func (l *link) writeOrigin(ctx context.Context, d Dialect, stream controlStream) {
	var items []item
	for {
		if items = l.spool.next(items[:0], 0); len(items) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-l.spool.ready:
				continue
			}
		}
		it := items[0]
		var err error
		if it.answers != nil {
			err = sendReplies(voltaDialect(d), stream, it.answers)
		} else {
			err = l.sendReport(voltaDialect(d), stream, it.report)
		}
		if err != nil {
			return // the reader gets the reason
		}
		// It says nothing, so that to have sent must do.
		l.spool.acknowledge(it.seq)
	}
}

func sendReplies(d volta.Dialect, stream controlStream, a *measurepb.Answers) error {
	rest := a.GetPackets()
	for i, n := range a.GetLengths() {
		m, err := volta.Encode(d, volta.Reply{Packet: rest[:n], Time: volta.At(time.Unix(0, a.GetTimes()[i]))})
		if err != nil {
			return err
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// sendReport sends DONE, or ERROR if some probe could not be sent.
func (l *link) sendReport(d volta.Dialect, stream controlStream, r *report) error {
	var msg volta.Message
	job, known := l.jobs.find(r.batch)
	switch {
	case r.err != nil:
		code := int32(500)
		if f, ok := r.err.(fault); ok {
			code = f.code
		}
		text := r.err.Error()
		if known {
			text = fmt.Sprintf("job %d: %s", job.SessionID, text)
		}
		msg = volta.Error{Code: code, Message: text}
	case !known:
		return nil
	default:
		done := volta.Done{SessionID: job.SessionID, Acks: make([]volta.Ack, len(r.times))}
		for i, t := range r.times {
			done.Acks[i] = volta.Ack{Seq: d.AckSeq(job.BasePort, i), Sent: volta.At(time.Unix(0, t))}
		}
		msg = done
	}
	m, err := volta.Encode(d, msg)
	if err != nil {
		return err
	}
	if err := stream.Send(m); err != nil {
		return err // the next connection tries again
	}
	l.jobs.reported(r.batch)
	return nil
}
