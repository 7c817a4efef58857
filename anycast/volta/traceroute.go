// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// ErrForeign reports a packet that answers nothing of ours.
var ErrForeign = errors.New("not about a probe of ours")

// DefaultHopTimeout is how long a Traceroute waits for routers before the end of the path, unless told.
const DefaultHopTimeout = time.Second

// answerMargin is how long before the caller's deadline Run returns, so that what was found still gets
// there.
const answerMargin = 200 * time.Millisecond

// TracerouteConf is what a Traceroute needs to know.
type TracerouteConf struct {
	// Command is what was asked for.
	Command
	// Target is the IPv4 address that Destination resolved to.
	Target netip.Addr
	// SessionID is the first of Probes() ports that are this traceroute's own: see Blocks.
	SessionID uint16
	// HopTimeout is how long, once the end of the path has answered and all probes are sent, routers
	// before it may still answer. 0 means DefaultHopTimeout. Until the end of the path is known, only
	// Wait counts.
	HopTimeout time.Duration
}

// Traceroute is the state of one traceroute by an agent of the originals, which sends all probes at
// once, each from its own port; any agent may receive the answers. Whoever holds the agents' streams
// calls Run, and the Handle methods with what arrives meanwhile, from any number of goroutines.
type Traceroute struct {
	conf    TracerouteConf
	changed chan struct{} // holds an element when something happened since Run last looked

	mu       sync.Mutex
	probes   []TracerouteResult
	waiting  int       // probes without an answer
	final    int       // lowest hop limit of a final answer; 0 if there is none
	gaps     int       // unanswered probes with a hop limit up to final
	done     time.Time // when all probes were known to be sent
	failure  error     // why there will be no answers
	finished bool      // Run has returned: nothing changes any more
}

// NewTraceroute begins a traceroute. A target that is not IPv4, or a port above 65535, is ErrJob; a command
// for echo requests, which agents of the originals cannot send, is a *CommandError.
func NewTraceroute(conf TracerouteConf) (*Traceroute, error) {
	if conf.ICMP {
		return nil, wrong("argument -I: agent %s sends UDP only", conf.Source)
	}
	if conf.HopTimeout == 0 {
		conf.HopTimeout = DefaultHopTimeout
	}
	t := &Traceroute{conf: conf, changed: make(chan struct{}, 1)}
	if _, err := t.Job().Check(); err != nil {
		return nil, err
	}
	t.waiting = conf.Probes()
	t.probes = make([]TracerouteResult, t.waiting)
	for i := range t.probes {
		t.probes[i] = TracerouteResult{Seq: i, Timeout: true}
	}
	return t, nil
}

// Conf is what the traceroute was made with.
func (t *Traceroute) Conf() TracerouteConf { return t.conf }

// Job is what to send to the agent that probes.
func (t *Traceroute) Job() Job {
	return Job{
		SessionID: int32(t.conf.SessionID), DstIP: t.conf.Target.String(),
		MaxTTL: int32(t.conf.MaxTTL), ProbeNum: int32(t.conf.Queries), BasePort: int32(t.conf.SessionID),
	}
}

// Run sends the job and waits for the result: until every probe is answered; or every probe up to the
// end of the path is, or HopTimeout has passed for it; or the agent reports that it failed; or the
// command's Wait has passed since the job was sent; or ctx's deadline is 200 ms away. What was found
// until then is the result, also if that is nothing.
//
// The error is that of send; the agent's Error, if nothing was answered; or that of ctx when it was
// cancelled. Run is called once.
func (t *Traceroute) Run(ctx context.Context, send func(Job) error) (*Result, error) {
	defer t.finish()
	if err := send(t.Job()); err != nil {
		return nil, err
	}
	end := time.Now().Add(t.conf.Wait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Add(-answerMargin).Before(end) {
		end = deadline.Add(-answerMargin)
	}
	for {
		enough, at, err := t.progress(time.Now(), end)
		if err != nil {
			return nil, err
		}
		if enough {
			return t.Result(), nil
		}
		timer := time.NewTimer(time.Until(at))
		select {
		case <-t.changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
		timer.Stop()
	}
}

// progress tells whether it makes sense to wait any longer, and if it does until when, if nothing
// happens before.
func (t *Traceroute) progress(now, end time.Time) (enough bool, at time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	sent := !t.done.IsZero()
	at = end
	if sent && t.final > 0 {
		if quiet := t.done.Add(t.conf.HopTimeout); quiet.Before(at) {
			at = quiet
		}
	}
	enough = len(t.probes) == 0 || !now.Before(at) ||
		sent && (t.waiting == 0 || t.final > 0 && t.gaps == 0)
	if !enough && t.failure != nil {
		// The originals stop in the middle of a job: answers to what they sent before are worth showing.
		if t.waiting == len(t.probes) {
			return false, at, t.failure
		}
		enough = true
	}
	return enough, at, nil
}

func (t *Traceroute) finish() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finished = true
}

func (t *Traceroute) wake() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// HandleDone takes the agent's word that all probes are sent, in the dialect of its stream. Of several
// times for one probe the first counts; acknowledgements of probes that there are not are ignored.
func (t *Traceroute) HandleDone(d Dialect, done Done) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.finished {
		return
	}
	for _, ack := range done.Acks {
		if i := d.AckIndex(int32(t.conf.SessionID), ack.Seq); i >= 0 && i < len(t.probes) && t.probes[i].Sent.IsZero() {
			t.probes[i].Sent = ack.Sent
		}
	}
	if t.done.IsZero() {
		t.done = time.Now()
	}
	t.wake()
}

// HandleReply takes an ICMP packet that an agent received, and tells whether it is about a probe of
// this traceroute. It is HandleAnswer for whom ParseAnswer is no use of its own.
func (t *Traceroute) HandleReply(r Reply, agentID string) bool {
	answer, err := ParseAnswer(r.Packet)
	return err == nil && t.HandleAnswer(answer, r.Time, agentID)
}

// HandleAnswer takes an answer that an agent received, and tells whether it is about a probe of this
// traceroute: the quoted destination is the target, the quoted source port is one of its own. The first
// answer to a probe counts; later ones are ours as well, but change nothing, nor does one that comes
// too late.
func (t *Traceroute) HandleAnswer(a Answer, received Time, agentID string) bool {
	i := int(a.SourcePort) - int(t.conf.SessionID)
	if i < 0 || i >= len(t.probes) || a.Destination != t.conf.Target {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	probe := &t.probes[i]
	if t.finished || !probe.Timeout {
		return true
	}
	probe.Timeout = false
	probe.Gateway, probe.Receiver, probe.Received, probe.Final = a.Gateway, agentID, received, a.Final()
	t.waiting--
	ttl := i/t.conf.Queries + 1
	switch {
	case probe.Final && (t.final == 0 || ttl < t.final):
		t.final, t.gaps = ttl, 0
		for j := range t.probes[:ttl*t.conf.Queries] {
			if t.probes[j].Timeout {
				t.gaps++
			}
		}
	case ttl <= t.final:
		t.gaps--
	}
	t.wake()
	return true
}

// HandleError takes the agent's report that it could not do the job.
func (t *Traceroute) HandleError(e Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failure == nil {
		t.failure = fmt.Errorf("job %d: %w", t.conf.SessionID, e)
	}
	t.wake()
}

// Result is what is known so far, without names: see Resolver.NameResult. Behind the first hop limit
// with a final answer there are no hops.
func (t *Traceroute) Result() *Result {
	t.mu.Lock()
	probes := slices.Clone(t.probes)
	t.mu.Unlock()

	r := &Result{
		Source: t.conf.Source, Destination: t.conf.Destination, Target: t.conf.Target,
		Queries: t.conf.Queries, MaxTTL: t.conf.MaxTTL,
	}
	for ttl := 1; ttl <= t.conf.MaxTTL; ttl++ {
		hop := Hop{TTL: ttl, Probes: probes[(ttl-1)*t.conf.Queries : ttl*t.conf.Queries : ttl*t.conf.Queries]}
		final := false
		for i := range hop.Probes {
			probe := &hop.Probes[i]
			probe.RTT, probe.HasRTT = probe.Received.Sub(probe.Sent, t.conf.Wait)
			final = final || probe.Final
		}
		r.Hops = append(r.Hops, hop)
		if final {
			break
		}
	}
	return r
}
