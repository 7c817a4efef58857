// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/nat/pcp"
)

// Errors to branch on. Everything that this package returns wraps one of them, an error of a context, net.ErrClosed or an error of
// the system.
var (
	// ErrNoGateway: nothing that maps ports answered. The network has none, or it is turned off there.
	ErrNoGateway = errors.New("no gateway here maps ports")

	// ErrDoubleNAT: the gateway has no public address to map ports of: it is behind another NAT, its
	// provider's or a second router, or not connected.
	ErrDoubleNAT = errors.New("the gateway has no public address")

	// ErrRefused: the gateway understood and refused.
	ErrRefused = errors.New("the gateway refuses")

	// ErrPortTaken: the external port, and those tried after it, belong to others.
	ErrPortTaken = errors.New("external port is taken")

	// ErrMapped: this process maps this local port already.
	ErrMapped = errors.New("local port is mapped already")

	// ErrNoAnswer: the gateway, or its part for one method, did not answer.
	ErrNoAnswer = errors.New("no answer from the gateway")
)

// Method is a protocol for asking a gateway for a mapping.
type Method uint8

// The methods. Auto takes PCP, NAT-PMP or UPnP, in this order, from those that answer; Off maps nothing.
const (
	Auto Method = iota
	Off
	UPnP
	NATPMP
	PCP
)

// preference is the order in which methods are tried. PCP is first because it says the least that can be
// misunderstood, and nobody else can change what it has mapped; UPnP is last because it takes several requests,
// some of them over TCP, for what takes others one datagram.
var preference = []Method{PCP, NATPMP, UPnP}

var methodNames = [...]string{Auto: "auto", Off: "off", UPnP: "upnp", NATPMP: "natpmp", PCP: "pcp"}

// String is the word for it on the command line.
func (m Method) String() string {
	if int(m) < len(methodNames) {
		return methodNames[m]
	}
	return fmt.Sprintf("Method(%d)", uint8(m))
}

// ParseMethod reads auto, off, upnp, natpmp or pcp.
func ParseMethod(s string) (Method, error) {
	for m, name := range methodNames {
		if strings.EqualFold(s, name) {
			return Method(m), nil
		}
	}
	return 0, fmt.Errorf("port mapping method %q: want auto, off, upnp, natpmp or pcp", s)
}

// MarshalText implements [encoding.TextMarshaler].
func (m Method) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (m *Method) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMethod(string(b))
	return err
}

// Protocol is a transport protocol, or a set of them.
type Protocol uint8

// The protocols. TCP|UDP maps both on one external port.
const (
	TCP Protocol = 1 << iota
	UDP
)

// String is "tcp", "udp" or "tcp+udp".
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case TCP | UDP:
		return "tcp+udp"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

// ParseProtocol reads tcp, udp, tcp+udp, or both.
func ParseProtocol(s string) (Protocol, error) {
	switch strings.ToLower(s) {
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	case "tcp+udp", "udp+tcp", "both":
		return TCP | UDP, nil
	}
	return 0, fmt.Errorf("protocol %q: want tcp, udp or both", s)
}

// MarshalText implements [encoding.TextMarshaler].
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *Protocol) UnmarshalText(b []byte) (err error) {
	*p, err = ParseProtocol(string(b))
	return err
}

// each gives the single protocols of a set.
func (p Protocol) each() []Protocol {
	var all []Protocol
	for _, one := range []Protocol{TCP, UDP} {
		if p&one != 0 {
			all = append(all, one)
		}
	}
	return all
}

const (
	// DefaultLifetime of a mapping: long enough to cost nothing, short enough for what a killed program leaves.
	DefaultLifetime = time.Hour
	// DefaultTimeout of a discovery. A gateway is one hop away and answers in milliseconds, but for UPnP's, which wait for up to
	// a second by design.
	DefaultTimeout = 2 * time.Second
	// DefaultCheckInterval finds a gateway that has restarted well within a minute, for a datagram or three small requests over TCP.
	DefaultCheckInterval = 20 * time.Second
)

// Options of a [Mapper]. The zero value finds the default gateway and tries every method.
type Options struct {
	// Method to use. Default [Auto].
	Method Method
	// Gateway to ask, an IPv4 address. Default: that of the default route; where the system does not tell it, whoever answers
	// the search for UPnP gateways.
	Gateway netip.Addr
	// AllowPrivate takes a gateway whose external address is a private one for what it is, as inside a site or a lab, where
	// [ErrDoubleNAT] would say that nobody outside can reach it.
	AllowPrivate bool
	// Timeout of a discovery. Default [DefaultTimeout].
	Timeout time.Duration

	// CheckInterval is how often mappings are looked after between renewals, for gateways that restart without a word. Default
	// [DefaultCheckInterval].
	CheckInterval time.Duration

	// ControlPort is the gateway's port for PCP and NAT-PMP. Default 5351. With another one, announcements of restarts
	// are not listened for.
	ControlPort uint16
	// SearchAddr is where UPnP gateways are searched. Default 239.255.255.250:1900, and the gateway itself.
	SearchAddr netip.AddrPort

	// Do, if not nil, is called to run what opens sockets or looks at the host's routes, so that a host of a lab can be the
	// one that maps: it is lab.Host.Do.
	Do func(func() error) error
	// Log takes what the operator should know; nil discards it.
	Log *slog.Logger
}

// searchAddr is SSDP's multicast address (UPnP Device Architecture 1.1, section 1.3).
var searchAddr = netip.MustParseAddrPort("239.255.255.250:1900")

func (o *Options) complete() error {
	if o.Gateway.IsValid() && !o.Gateway.Unmap().Is4() {
		return fmt.Errorf("gateway %v: want an IPv4 address: %w", o.Gateway, errors.ErrUnsupported)
	}
	o.Gateway = o.Gateway.Unmap()
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.CheckInterval <= 0 {
		o.CheckInterval = DefaultCheckInterval
	}
	if o.ControlPort == 0 {
		o.ControlPort = pcp.Port
	}
	if !o.SearchAddr.IsValid() {
		o.SearchAddr = searchAddr
	}
	if o.Do == nil {
		o.Do = func(f func() error) error { return f() }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// methods gives those to try, the preferred one first.
func (o *Options) methods() []Method {
	switch o.Method {
	case Auto:
		return preference
	case Off:
		return nil
	default:
		return []Method{o.Method}
	}
}

// Request says what to map.
type Request struct {
	// Protocol is TCP, UDP, or TCP|UDP for both on one external port. Default TCP.
	Protocol Protocol
	// InternalPort is the local port. Required.
	InternalPort uint16
	// ExternalPort to ask for. If it is taken, the next ones are tried. Default: InternalPort.
	ExternalPort uint16
	// Lifetime to ask for; the gateway may grant another one. The mapping is renewed when half of it has passed. Default
	// [DefaultLifetime]; at least a second.
	Lifetime time.Duration
	// Description is shown by gateways with UPnP, cut to 64 bytes. Default "fathom".
	Description string
	// Notify, if not nil, is called for everything that happens to the mapping after Map has returned it, one call at a time,
	// by the goroutine that renews it: it should return soon, and must not call Close.
	Notify func(Event)
}

// maxDescription is shorter than what any gateway is known to choke on.
const maxDescription = 64

func (r *Request) complete() error {
	if r.Protocol == 0 {
		r.Protocol = TCP
	}
	if r.Protocol&^(TCP|UDP) != 0 {
		return fmt.Errorf("map %v: %w", r.Protocol, errors.ErrUnsupported)
	}
	if r.InternalPort == 0 {
		return errors.New("map a port: no internal port is given")
	}
	if r.ExternalPort == 0 {
		r.ExternalPort = r.InternalPort
	}
	if r.Lifetime == 0 {
		r.Lifetime = DefaultLifetime
	}
	r.Lifetime = min(max(r.Lifetime, time.Second), (1<<32-1)*time.Second)
	if r.Description == "" {
		r.Description = "fathom"
	}
	r.Description = r.Description[:min(len(r.Description), maxDescription)]
	return nil
}

// EventKind is what happened to a mapping.
type EventKind uint8

// The kinds of event.
const (
	_ EventKind = iota
	// Mapped: the mapping is there again, after it was lost. External may be another one.
	Mapped
	// Renewed: the lease is extended, or was made anew after a restart of the gateway; External is as it was.
	Renewed
	// Changed: as Renewed, but External is another one.
	Changed
	// Lost: the gateway has forgotten the mapping or is gone, and it could not be made anew yet. It is tried again
	// until the mapping is closed.
	Lost
)

// String is the word for logs.
func (k EventKind) String() string {
	switch k {
	case Mapped:
		return "mapped"
	case Renewed:
		return "renewed"
	case Changed:
		return "changed"
	case Lost:
		return "lost"
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// Event is something that happened to a mapping.
type Event struct {
	Kind  EventKind
	State State
	// Err says why a mapping is lost; nil otherwise.
	Err error
}

// State is what a mapping is at some time.
type State struct {
	Method   Method
	Protocol Protocol
	// Gateway is the address that was asked, Internal what it forwards to, External what it forwards from.
	Gateway            netip.Addr
	Internal, External netip.AddrPort
	// Lifetime is what was granted, and Expires the end of it, unless it is renewed. Both are zero if the
	// gateway forwards until it is told otherwise.
	Lifetime time.Duration
	Expires  time.Time
}

// notPublic are addresses that no packet from the Internet comes to, beyond those that netip knows as private. The networks
// for documentation are not among them: they stand for public ones, in labs too.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // between customers and a provider's NAT (RFC 6598)
	netip.MustParsePrefix("192.0.0.0/24"),  // DS-Lite (RFC 6333), and others that stay local
	netip.MustParsePrefix("240.0.0.0/4"),
}

// IsPublic tells whether an address can be reached from the Internet, as far as the address tells.
func IsPublic(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// doubleNAT is the error about a gateway with this external address, which may be unknown.
func doubleNAT(gateway, external netip.Addr) error {
	switch {
	case !external.IsValid() || external.IsUnspecified():
		return fmt.Errorf("%v: %w: it is not connected, or behind another NAT", gateway, ErrDoubleNAT)
	case netip.MustParsePrefix("100.64.0.0/10").Contains(external):
		return fmt.Errorf("%v: %w, but %v, behind its provider's NAT", gateway, ErrDoubleNAT, external)
	}
	return fmt.Errorf("%v: %w, but %v, behind another NAT", gateway, ErrDoubleNAT, external)
}
