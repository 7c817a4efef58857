// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// Errors to branch on with [errors.Is].
var (
	// ErrOptions: an option makes no sense; the text says which and why.
	ErrOptions = errors.New("invalid agent options")
	// ErrPermission: the kernel refused raw sockets.
	ErrPermission = errors.New("raw sockets need CAP_NET_RAW: run as root, or give it with `setcap cap_net_raw,cap_net_admin+ep PROGRAM`")
)

// Dialect is what is spoken with a controller.
type Dialect uint8

// Dialects. The zero value finds out by itself.
const (
	// Auto tries Native; where the controller does not know that it goes on with Seed, and with Go
	// if the controller ends that as one of the dialect Go does.
	Auto Dialect = iota
	// Native is fathom.measure.v1.
	Native
	// Seed and Go are those of Voltadomar's two generations of controllers; see package volta.
	Seed
	Go
)

var dialectNames = [...]string{Auto: "auto", Native: "native", Seed: "seed", Go: "go"}

// String gives the lower-case name that ParseDialect reads.
func (d Dialect) String() string {
	if int(d) < len(dialectNames) {
		return dialectNames[d]
	}
	return fmt.Sprintf("Dialect(%d)", uint8(d))
}

// ParseDialect is the inverse of String. Another word is ErrOptions.
func ParseDialect(s string) (Dialect, error) {
	for d, name := range dialectNames {
		if name == s {
			return Dialect(d), nil
		}
	}
	return 0, fmt.Errorf("%w: dialect %.40q, want auto, native, seed or go", ErrOptions, s)
}

// Link is a controller to attach to.
type Link struct {
	// Address is its host and port.
	Address string
	// TLS is how to prove who one is and to whom one talks; nil is cleartext, which Voltadomar's controllers need.
	TLS *tls.Config
	// Dialect is Auto unless set.
	Dialect Dialect
}

// Options configure an [Agent]. ID and Links are needed, the rest has defaults.
type Options struct {
	// ID is the site's name, unique at each controller.
	ID string
	// Links are the controllers, each with an address of its own. None of them knows of the others.
	Links []Link
	// Anycast are the shared addresses to send from, first the default of each IP version. Where there are none at all, it
	// is the source that the host's default route prefers.
	Anycast []netip.Addr
	// Unicast are the site's own addresses, first the default of each IP version. Where there is none of a version, it is the one
	// that the connection to the controller has, or the source that the host's default route prefers, if that is not
	// an anycast one.
	Unicast []netip.Addr
	// Rate is how many probes per second are sent at most, for all controllers together; 0 is no limit. The least is
	// one in two hours.
	Rate float64
	// SendFrames lets the probes of traces leave as Ethernet frames, where they can, past the host's IP output: cheaper by some
	// 15 %, but its firewall, connection tracking, NAT, and routing rules that look at more than addresses do not see them.
	SendFrames bool
	// Spool is how many bytes of answers are kept for each controller until it has acknowledged them. Default 16 MiB, which is
	// some 150,000 answers. What comes when it is full is dropped, and counted: the start of what was missed is
	// more use than the end, for it is what running measurements wait for.
	Spool int
	// Version is told to controllers.
	Version string
	// Log takes what the operator should know; nil discards it.
	Log *slog.Logger
	// Metrics gets the agent's metrics while it is open; nil for none.
	Metrics prometheus.Registerer
	// Dial makes the connections to controllers, for tests and proxies; nil is TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Host gives the network that probes are sent to, for tests; nil is the kernel's.
	Host func() (rawio.Host, error)
}

// DefaultSpool is the default of [Options].Spool in bytes.
const DefaultSpool = 16 << 20

// maxID is how long an ID may be, in bytes: it is in every result.
const maxID = 255

func (o *Options) check() error {
	switch {
	case o.ID == "" || len(o.ID) > maxID:
		return fmt.Errorf("%w: id of %d bytes, want 1 to %d", ErrOptions, len(o.ID), maxID)
	case !utf8.ValidString(o.ID):
		return fmt.Errorf("%w: id %q is not UTF-8", ErrOptions, o.ID)
	case len(o.Links) == 0:
		return fmt.Errorf("%w: no controller", ErrOptions)
	case o.Rate < 0 || o.Rate > 0 && o.Rate < slowest || math.IsNaN(o.Rate) || math.IsInf(o.Rate, 0):
		return fmt.Errorf("%w: rate %v", ErrOptions, o.Rate)
	case o.Spool < 0:
		return fmt.Errorf("%w: spool of %d bytes", ErrOptions, o.Spool)
	}
	for i, l := range o.Links {
		if slices.ContainsFunc(o.Links[:i], func(before Link) bool { return before.Address == l.Address }) {
			return fmt.Errorf("%w: controller %q twice", ErrOptions, l.Address)
		}
		if _, _, err := net.SplitHostPort(l.Address); err != nil {
			return fmt.Errorf("%w: controller %q: want HOST:PORT", ErrOptions, l.Address)
		}
		if l.Dialect > Go {
			return fmt.Errorf("%w: dialect %d", ErrOptions, uint8(l.Dialect))
		}
	}
	for _, a := range o.Anycast {
		if !usable(a) {
			return fmt.Errorf("%w: anycast address %v", ErrOptions, a)
		}
	}
	for _, a := range o.Unicast {
		if !usable(a) {
			return fmt.Errorf("%w: unicast address %v", ErrOptions, a)
		}
	}
	return nil
}

// usable tells whether packets can be sent from, or to, an address.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == "" && !a.Is4In6() && a != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
