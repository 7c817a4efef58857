// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/probe/stateless"
)

// Errors of a [Fleet].
var (
	// ErrNoSite means that no site of that name is connected.
	ErrNoSite = errors.New("site not connected")
	// ErrSiteLost means that a site's connection ended before it reported what it was to send.
	ErrSiteLost = errors.New("connection to the site was lost")
	// ErrNoSource means that a site holds no address to send from as asked: none of the target's IP version, say.
	ErrNoSource = errors.New("site has no such source address")
	// ErrCannotSend means that a site, such as one of Voltadomar's agents, hears answers but does not send probes of this kind.
	ErrCannotSend = errors.New("site cannot send such probes")
	// ErrNoPorts means that all source ports of the fleet's range are in use.
	ErrNoPorts = errors.New("no free source ports")
)

// Site is a place where the anycast address is held.
type Site struct {
	// Name is unique in the fleet.
	Name string
	// Anycast are the shared addresses that the site may send from; the first of each IP version is its default.
	Anycast []netip.Addr
	// Unicast are addresses of the site's own, first its default of each IP version.
	Unicast []netip.Addr
	// Native tells that the site runs package agent, so that it can send probes of every kind. One of Voltadomar's
	// agents hears answers over IPv4 and ICMP, and sends only for [volta.Traceroute].
	Native bool
	// Rate is how many probes per second the site agrees to send, 0 if it does not say.
	Rate float64
	// Clock is how the site's clock stands to the controller's.
	Clock Clock
	// Since is when the site connected.
	Since time.Time
	// Version is the software that the site runs.
	Version string
}

// Clock is an estimate of how far a clock is ahead of the controller's (negative: behind).
type Clock struct {
	Offset time.Duration
	// Error bounds the offset's error, either way. 0 means that nothing is known.
	Error time.Duration
}

// Fleet is the sites, as a program sees them. Its methods may be called from several goroutines.
type Fleet interface {
	// Sites gives the connected sites, by name.
	Sites() []Site
	// Open begins a session: probes that are recognised at every site. It waits for source ports to become free, until ctx
	// ends, and then fails with ErrNoPorts; and for the sites to listen, until ctx ends or for 2 s.
	Open(ctx context.Context, conf SessionConfig) (Session, error)
	// RTT is the round-trip time of a probe that left site from at sent and whose answer reached site to at
	// received, each by the clock of its site in nanoseconds since 1970, and how far that may be off. ok is false
	// if the clocks are not known well enough for a time that means something, such as one above 0.
	RTT(from string, sent int64, to string, received int64) (rtt, uncertainty time.Duration, ok bool)
}

// SessionConfig describes a session.
type SessionConfig struct {
	// Probes is what probes look like. The fleet chooses Key, and FirstPort unless it is set.
	Probes stateless.Config
	// Handler gets what happens. Its methods are called by the goroutines of the connections, several at once,
	// and must not block.
	Handler Handler
	// Numbers is how many numbers the probes have, from 0 on; 0 is as many as there are. Small sessions that say so, have
	// one port and the default Linger may share ports and a key with others, which makes them cheap to open by the thousand.
	Numbers int
	// Linger is how long answers are still recognised (and their ports not used again) after Close. Default 2 s.
	Linger time.Duration
}

// Handler gets the events of a session.
type Handler interface {
	// HandleSent tells that a batch has been sent.
	HandleSent(Sent)
	// HandleAnswers gives answers that reached one site. The slice, and the memory its elements refer to, are the caller's again after the return.
	HandleAnswers([]Answer)
}

// Session sends probes from sites.
type Session interface {
	// Send has a site send a batch. It returns as soon as the batch is on its way there; HandleSent follows
	// in any case. ErrNoSite, ErrNoSource and ErrCannotSend tell that it can not be, and then HandleSent does not follow.
	// The batch's slices are the fleet's until HandleSent.
	Send(site string, b Batch) error
	// FirstPort is the source port, or for ICMP the identifier, of flow 0.
	FirstPort() uint16
	// Close ends the session; answers to what is on the way are no longer delivered.
	Close()
}

// Batch is probes for one site to send, in order. Each of Targets, TTLs, Flows and Numbers has
// either one element, which then counts for all probes, or one per probe.
type Batch struct {
	// ID is the caller's number; Sent carries it back.
	ID uint64
	// Source is the address to send from, one of the site's; the zero Addr means its default anycast address of the targets' IP version.
	Source netip.Addr
	// Targets are all of one IP version.
	Targets []netip.Addr
	TTLs    []uint8
	Flows   []uint16
	Numbers []uint16
	// Rate spreads the probes over time, in probes per second; 0 sends as fast as the site may.
	Rate float64
	// Stamps asks for the departure time of every probe.
	Stamps bool
}

// Len is how many probes the batch has.
func (b *Batch) Len() int {
	return max(len(b.Targets), len(b.TTLs), len(b.Flows), len(b.Numbers))
}

// Sent tells what became of a batch.
type Sent struct {
	Site  string
	Batch uint64
	// Count is how many probes were handed to the network.
	Count int
	// Times are the departures by the site's clock, in nanoseconds since 1970, one per probe if the batch asked for
	// stamps, else nil. 0 is a probe that was not sent.
	Times []int64
	// Kernel tells that Times were taken by the kernel.
	Kernel bool
	// Err says why Count is not the batch's length: ErrSiteLost, or the reason that the site gave.
	Err error
}

// Answer is one answer at one site.
type Answer struct {
	// Site is where it came home.
	Site string
	// Time is when, by that site's clock, in nanoseconds since 1970.
	Time int64
	stateless.Answer
}
