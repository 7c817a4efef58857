// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// job is what one of the originals' agents was asked to send.
type job struct {
	site  *site
	trace *volta.Traceroute
}

// maxBadMessages is how many messages of one stream are logged because they make no sense; all are counted.
const maxBadMessages = 3

// controlStream serves an agent of the originals, in the dialect of its first message. It is the handler of
// AnycastService.ControlStream.
func (c *Controller) controlStream(stream anycastpb.AnycastService_ControlStreamServer) error {
	o := &originLink{
		controller: c, stream: stream, registered: make(chan struct{}),
		link: &link{origin: newOrders[*anycastpb.Message](), end: make(chan struct{})},
	}
	defer o.link.origin.close()
	// The goroutines end with the stream, which ends when this handler returns.
	c.streams.Go(o.read)
	registered := o.registered
	check := time.NewTicker(revocationInterval)
	defer check.Stop()
	for {
		select {
		case <-registered:
			registered = nil
			c.streams.Go(o.write)
			continue
		case <-check.C:
			if err := c.stillGood(callerOf(stream.Context())); err != nil {
				o.link.stop(err)
			}
			continue
		case <-c.stopping:
			o.link.stop(errStopping)
		case <-o.link.end:
		}
		break
	}
	<-o.link.end
	select {
	case <-o.registered:
	default:
		return statusOf(o.link.cause) // it never said who it was
	}
	if o.site.detach(o.link, time.Now()) {
		c.fleet.lose(o.site)
		c.log.Info("agent lost", "agent", o.site.name, "error", o.link.cause)
	}
	return statusOf(o.link.cause)
}

// originLink is the connection of an original's agent.
type originLink struct {
	controller *Controller
	stream     anycastpb.AnycastService_ControlStreamServer
	link       *link
	bad        int
	registered chan struct{} // closed when site is set
	site       *site
}

func (o *originLink) read() {
	d := new(delivery)
	for {
		m, err := o.stream.Recv()
		if err != nil {
			o.link.stop(err)
			return
		}
		if err := o.handle(m, d); err != nil {
			o.link.stop(err)
			return
		}
	}
}

// handle does what a message says. A bad one is dropped and counted, and the stream stays: an error is a refused name.
func (o *originLink) handle(m *anycastpb.Message, d *delivery) error {
	f := o.controller.fleet
	if o.site == nil {
		msg, dialect, err := volta.Decode(m)
		if err != nil {
			o.drop(err)
			return nil
		}
		if r, ok := msg.(volta.Register); ok {
			return o.register(r.AgentID, dialect)
		}
		f.malformed.Add(1) // DONE and REPLY before REGISTER are nobody's
		return nil
	}
	msg, err := volta.DecodeAs(o.site.dialect, m)
	if err != nil {
		o.drop(err)
		return nil
	}
	switch msg := msg.(type) {
	case volta.Reply:
		var ns int64
		if !msg.Time.IsZero() {
			ns = msg.Time.Time().UnixNano()
		}
		f.receive(d, o.site, msg.Packet, msg.Time, ns)
		d.deliver()
	case volta.Done:
		if j := f.job(o.site, msg.SessionID); j != nil {
			o.site.probes.Add(uint64(min(len(msg.Acks), j.trace.Conf().Probes())))
			j.trace.HandleDone(o.site.dialect, msg)
		}
	case volta.Error:
		o.controller.log.Warn("agent reports an error", "agent", o.site.name, "code", msg.Code, "error", printable(msg.Message, 200))
		if j := f.failed(o.site, msg.Message); j != nil {
			j.trace.HandleError(volta.Error{Code: msg.Code, Message: printable(msg.Message, 200)})
		}
	default:
		o.drop(fmt.Errorf("%s after REGISTER", msg.Kind()))
	}
	return nil
}

func (o *originLink) drop(err error) {
	o.controller.fleet.malformed.Add(1)
	if o.bad++; o.bad <= maxBadMessages {
		o.controller.log.Warn("message of an agent dropped", "peer", callerOf(o.stream.Context()).String(), "error", err)
	}
}

func (o *originLink) register(name string, dialect volta.Dialect) error {
	c := o.controller
	who := callerOf(o.stream.Context())
	if err := who.checkAgent(name); err != nil {
		c.log.Warn("agent refused", "agent", printable(name, 64), "peer", who.String(), "error", err)
		return err
	}
	s, err := c.fleet.attachOrigin(o.link, name, dialect, who.secure())
	if err != nil {
		c.log.Warn("agent refused", "agent", name, "peer", who.String(), "error", err)
		return err
	}
	c.log.Info("agent connected", "agent", name, "peer", who.String(), "dialect", dialect.String())
	o.site = s
	close(o.registered)
	return nil
}

func (o *originLink) write() {
	queue := o.link.origin
	for {
		select {
		case <-queue.wake:
		case <-o.link.end:
			return
		}
		for _, m := range queue.take() {
			if err := o.stream.Send(m); err != nil {
				o.link.stop(err)
				return
			}
		}
	}
}

// attachOrigin makes a connection that of a new site.
func (f *fleet) attachOrigin(l *link, name string, dialect volta.Dialect, secure bool) (*site, error) {
	s := &site{
		name: name, dialect: dialect, secure: secure, pending: map[uint64]*pendingBatch{}, link: l,
		info: anycast.Site{Name: name, Since: time.Now(), Version: "voltadomar (" + dialect.String() + ")"},
	}
	f.mu.Lock()
	old := f.sites[name]
	if err := f.mayReplaceLocked(old, name, secure); err != nil {
		f.mu.Unlock()
		return nil, err
	}
	f.sites[name] = s
	lost := f.replacedLocked(old)
	f.mu.Unlock()
	for _, p := range lost {
		p.fail(name, anycast.ErrSiteLost)
	}
	return s, nil
}

// lose forgets an original's agent: it does not come back to what it was doing.
func (f *fleet) lose(s *site) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sites[s.name] == s {
		delete(f.sites, s.name)
	}
	f.failJobsLocked(s)
}

// failJobsLocked ends the requests that wait for an agent which is gone.
func (f *fleet) failJobsLocked(s *site) {
	for _, j := range f.jobs {
		if j.site == s {
			j.trace.HandleError(volta.Error{Code: 500, Message: "connection to agent " + s.name + " lost"})
		}
	}
}

// job finds what a site was asked to do under a session id.
func (f *fleet) job(s *site, id int32) *job {
	f.mu.RLock()
	defer f.mu.RUnlock()
	j := f.jobs[uint16(id)]
	if j == nil || int32(uint16(id)) != id || j.site != s {
		return nil
	}
	return j
}

var jobInText = regexp.MustCompile(`\bjob (\d{1,5})\b`)

// failed finds the job that an agent reports an error about. The message has no field for it: the text may
// name it, or it is the only one.
func (f *fleet) failed(s *site, text string) *job {
	if m := jobInText.FindStringSubmatch(text); m != nil {
		if id, err := strconv.ParseInt(m[1], 10, 32); err == nil {
			return f.job(s, int32(id))
		}
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	var found *job
	for _, j := range f.jobs {
		if j.site != s {
			continue
		}
		if found != nil {
			return nil
		}
		found = j
	}
	return found
}
