// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flynn/noise"
)

// Options say what a [Mesh] is. The zero value, with an ID, is an open mesh.
type Options struct {
	// ID names the relay: the lowest Ethernet address of its interfaces.
	ID [6]byte
	// Version is the program's, for peers to show; at most 32 printable bytes.
	Version string
	// Payload is the most bytes of UDP payload in a datagram of our own, from 576 to 8192; 0 means
	// 1400, which passes the tunnels that are in common use. SS datagrams are as long as their frames.
	Payload int

	// Keys, at most [MaxKeys], seal the mesh: the first is what a relay starts with, all are accepted.
	Keys []Key
	// Identity seals the mesh with certificates, instead of Keys.
	Identity *Identity
	// Compat, in a sealed mesh, accepts SS datagrams from those that have not shown to be ours, and sends
	// them to such peers. They are not authenticated.
	Compat bool

	// OnlyPeers refuses what is in clear, unless its source address is a peer's or in one of Allow.
	OnlyPeers bool
	Allow     []netip.Prefix
}

// Bounds and defaults of [Options].
const (
	DefaultPayload = 1400
	minPayload     = 576
	maxPayload     = 8192
	// MaxPeers is the most addresses that a mesh sends to.
	MaxPeers = 1024
	// maxNeighbours keeps somebody who announces relays that are not there from taking the room of others.
	maxNeighbours = 64
	// maxLearned keeps a member of a sealed mesh that shows up as one relay after the other from taking the room of those that
	// are configured.
	maxLearned = 256
)

// Errors of options.
var (
	// ErrOptions is a set of options that makes no mesh.
	ErrOptions = errors.New("mesh options")
	// ErrMode is keys for a mesh that has none, or certificates.
	ErrMode = errors.New("the mesh is sealed in another way")
)

// A Mesh is one relay's end of the links to all others. It is a state machine: datagrams go in and out as
// bytes, time comes with each call. All methods may be called from any goroutine; each
// takes one lock, once for a whole batch.
type Mesh struct {
	id       [6]byte
	version  []byte
	payload  int
	sealed   bool
	compat   bool
	only     bool
	allow    []netip.Prefix
	meshID   [8]byte
	instance [8]byte
	random   io.Reader
	static   noise.DHKey

	mu       sync.Mutex // guards all that follows
	keys     []Key
	keyIDs   [][4]byte
	identity *Identity
	proof    []byte // of identity, for static
	epoch    int    // counts identities
	segments []byte // tokens, each of 8 bytes

	peers    []*peer // in the order in which they were added
	byAddr   map[netip.AddrPort]*peer
	number   uint32
	stale    bool                 // what rebuild makes must be made anew
	targets  []*peer              // what Send sends to: one address of each relay
	bySource map[netip.Addr]*peer // nil for an address that several peers share
	lastFrom netip.AddrPort       // of an SS datagram, and whose it was
	lastPeer *peer
	deadline time.Time // when Tick has something to do; zero means at once

	strangers     *strangers
	strangerParts assemblies
	answers       limit // hellos of strangers
	resets        limit
	reports       limit

	indexes       map[uint32]entry
	responses     []*response // oldest first
	perSource     *sourceLimits
	fromPeers     limit // handshakes
	fromStrangers limit
	proofs        limit // of strangers, that are checked
}

// entry is what an index in a datagram stands for: one of the three.
type entry struct {
	session    *session
	initiation *initiation
	response   *response
}

// What strangers can make a relay do, per second, and who says to be a peer.
const (
	peerAnswerRate = 20 // hellos of one peer: an answer may be many times as long as the question
	answerRate     = 100
	resetRate      = 20
	reportRate     = 50
	sourceRate     = 10 // handshakes from one address
	peersRate      = 200
	strangerRate   = 50
	proofRate      = 10 // certificates of strangers: each may take some milliseconds
	proofBurst     = 4
)

// New makes a mesh without peers.
func New(o Options) (*Mesh, error) {
	return newMesh(o, rand.Reader)
}

func newMesh(o Options, random io.Reader) (*Mesh, error) {
	switch {
	case len(o.Version) > maxVersion || !printable([]byte(o.Version)):
		return nil, fmt.Errorf("version %q: more than %d bytes, or not printable: %w", o.Version, maxVersion, ErrOptions)
	case o.Payload != 0 && (o.Payload < minPayload || o.Payload > maxPayload):
		return nil, fmt.Errorf("payload of %d bytes: not from %d to %d: %w", o.Payload, minPayload, maxPayload, ErrOptions)
	case len(o.Keys) > 0 && o.Identity != nil:
		return nil, fmt.Errorf("keys and a certificate: one of them: %w", ErrOptions)
	case len(o.Keys) > MaxKeys:
		return nil, fmt.Errorf("%d keys: at most %d: %w", len(o.Keys), MaxKeys, ErrOptions)
	case o.Compat && len(o.Keys) == 0 && o.Identity == nil:
		return nil, fmt.Errorf("compat without keys or a certificate: an open mesh is: %w", ErrOptions)
	}
	m := &Mesh{
		id: o.ID, version: []byte(o.Version), payload: cmp.Or(o.Payload, DefaultPayload),
		sealed: len(o.Keys) > 0 || o.Identity != nil, compat: o.Compat, only: o.OnlyPeers, allow: slices.Clone(o.Allow),
		random: random, byAddr: make(map[netip.AddrPort]*peer), strangers: newStrangers(),
		answers: newLimit(answerRate, answerRate), resets: newLimit(resetRate, resetRate), reports: newLimit(reportRate, reportRate),
		indexes: make(map[uint32]entry), perSource: newSourceLimits(sourceRate, 2*sourceRate),
		fromPeers: newLimit(peersRate, peersRate), fromStrangers: newLimit(strangerRate, strangerRate),
		proofs: newLimit(proofRate, proofBurst),
	}
	if _, err := io.ReadFull(random, m.instance[:]); err != nil {
		return nil, err
	}
	if !m.sealed {
		return m, nil
	}
	var err error
	if m.static, err = suite.GenerateKeypair(random); err != nil {
		return nil, err
	}
	m.instance = instanceOf(m.static.Public)
	if o.Identity != nil {
		m.meshID = labelID("fathom relay mesh with certificates")
		err = m.SetIdentity(o.Identity)
	} else {
		m.meshID = labelID("fathom relay mesh with keys")
		err = m.SetKeys(o.Keys)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

func labelID(label string) [8]byte {
	h := sha256.Sum256([]byte(label))
	return [8]byte(h[:])
}

// MeshID tells relays of meshes that cannot talk to each other apart: zero when the mesh is open, and one value
// each for meshes with keys and with certificates.
//
// It does not depend on the keys. While keys are replaced, relays have different sets of them, the first ones
// none of the new, the last ones none of the old; no value made of the sets would be the same for all, and the
// election on a segment would split in the middle of a rotation. Two relays with keys that are strangers to each
// other have the same MeshID and yet no link, so that neither is [Mesh.Confirmed] to the other and neither yields.
func (m *Mesh) MeshID() [8]byte { return m.meshID }

// Sealed tells whether what is said to other relays of ours is encrypted.
func (m *Mesh) Sealed() bool { return m.sealed }

// SetSegments says which segments the relay serves, by the tokens that it announces on them; at most 32. Peers learn them
// with the next hello.
func (m *Mesh) SetSegments(tokens [][8]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.segments = nil // a hello under way may still refer to the old ones
	for _, t := range tokens[:min(len(tokens), maxSegments)] {
		m.segments = append(m.segments, t[:]...)
	}
}

// Confirmed tells whether a relay with this ID, which announces itself on a segment with a token, is at the
// other end of a link that is up: it has said so itself, where only a member of the mesh can say it.
func (m *Mesh) Confirmed(id [6]byte, token [8]byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.ours() && p.id == id && slices.Contains(p.segments, token) {
			return true
		}
	}
	return false
}

// SetPeers says who the peers are, as far as they do not come by other ways: the whole list. Those that
// were on the list before keep their state. Addresses that no relay can have (no port, unspecified, multicast,
// broadcast) and those above [MaxPeers] are left out and counted. [Mesh.Tick] greets the new ones.
func (m *Mesh) SetPeers(addrs []netip.AddrPort) (ignored int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		p.origin &^= configured
	}
	for _, addr := range addrs {
		if p := m.byAddr[unmapped(addr)]; p != nil {
			p.origin |= configured
		}
	}
	m.removeOrphans() // makes room
	m.stale = true
	for _, addr := range addrs {
		if !m.addPeer(addr, configured) {
			ignored++
		}
	}
	return ignored
}

// AddNeighbour adds the addresses of a relay that announced itself on a segment. It stays a peer until it has
// not been added again for ten seconds; there can be 64 of them. Nothing is broadcast to it before it has shown itself to
// be ours.
func (m *Mesh) AddNeighbour(addrs []netip.AddrPort, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, addr := range addrs[:min(len(addrs), 8)] {
		if addr = unmapped(addr); m.addPeer(addr, neighbour) {
			m.byAddr[addr].neighbourUntil = now.Add(neighbourTime)
		}
	}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4In6() {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return a
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (m *Mesh) addPeer(addr netip.AddrPort, o origin) bool {
	addr = unmapped(addr)
	a := addr.Addr()
	if !a.IsValid() || addr.Port() == 0 || a.IsUnspecified() || a.IsMulticast() || a == broadcast {
		return false
	}
	p := m.byAddr[addr]
	if p == nil {
		if len(m.peers) == MaxPeers || o == neighbour && m.count(neighbour) >= maxNeighbours || o == learned && m.count(learned) >= maxLearned {
			return false
		}
		m.number++
		p = &peer{
			number: m.number, addr: addr, frameTurn: mathrand.Uint32(),
			answers: newLimit(peerAnswerRate, peerAnswerRate), handshakes: newLimit(sourceRate, 2*sourceRate),
		}
		m.peers = append(m.peers, p)
		m.byAddr[addr] = p
		m.deadline = time.Time{}
		m.stale = true
	}
	if p.origin|o != p.origin {
		p.origin |= o
		m.stale = true
	}
	return true
}

// count tells how many peers are of one origin and no other.
func (m *Mesh) count(o origin) (n int) {
	for _, p := range m.peers {
		if p.origin == o {
			n++
		}
	}
	return n
}

// removeOrphans removes the peers that have no reason to be there any more.
func (m *Mesh) removeOrphans() {
	kept := m.peers[:0]
	for _, p := range m.peers {
		if p.origin != 0 {
			kept = append(kept, p)
			continue
		}
		delete(m.byAddr, p.addr)
		m.dropLink(p)
		m.stale = true
	}
	clear(m.peers[len(kept):])
	m.peers = kept
}

// rebuild makes what is derived from the peers and their states.
func (m *Mesh) rebuild() {
	m.stale = false
	m.lastFrom, m.lastPeer = netip.AddrPort{}, nil
	m.targets = m.targets[:0]
	m.bySource = make(map[netip.Addr]*peer, len(m.peers))
	reached := make(map[[8]byte]bool, len(m.peers))
	for _, p := range m.peers {
		// What comes in clear from an address, whatever its port, is its only peer's; if there are several, that of the
		// one that may use any port, because the others are ours.
		if q, known := m.bySource[p.addr.Addr()]; !known || q != nil && q.kind == Ours && p.kind != Ours {
			m.bySource[p.addr.Addr()] = p
		} else if q != nil && (q.kind == Ours) == (p.kind == Ours) {
			m.bySource[p.addr.Addr()] = nil
		}
		switch {
		case p.kind == Self:
		case p.ours() && reached[p.instance]: // by another address
		default:
			m.targets = append(m.targets, p)
			if p.ours() {
				reached[p.instance] = true
			}
		}
	}
}

// setInstance notes which relay a peer is.
func (m *Mesh) setInstance(p *peer, id [6]byte, instance [8]byte) {
	p.id = id
	if p.instance == instance {
		return
	}
	p.instance = instance
	m.stale = true
	shared := false
	for _, q := range m.peers {
		if q != p && q.instance == instance {
			p.number = q.number
			return
		}
		shared = shared || q != p && q.number == p.number
	}
	if shared {
		m.number++
		p.number = m.number
	}
}

func (m *Mesh) setUp(p *peer, now time.Time) {
	p.unanswered = 0
	if p.ours() {
		return
	}
	p.kind, p.state = Ours, Up
	p.probes = 0
	m.stale = true
	p.helloNext = now.Add(helloInterval)
	m.wake(p, p.helloNext)
}

func (m *Mesh) setDown(p *peer, now time.Time) {
	if p.state == Up {
		p.state, p.downSince = Down, now
		p.probes = 0
		m.stale = true
	}
}

// setSelf notes that an address is this relay's own.
func (m *Mesh) setSelf(p *peer) {
	if p.kind != Self {
		p.kind, p.state = Self, Connecting
		m.dropLink(p)
		m.stale = true
	}
}

// wake makes Tick look at a peer then, if not before.
func (m *Mesh) wake(p *peer, at time.Time) {
	if p.next.After(at) {
		p.next = at
	}
	if m.deadline.After(p.next) {
		m.deadline = p.next
	}
}

// Deadline is when [Mesh.Tick] has something to do next. It may move forward with every other call.
func (m *Mesh) Deadline() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.deadline
}

// Peers tells what is known of all peers, and of others that were heard in clear in the last minute, in the order
// of their addresses.
func (m *Mesh) Peers(now time.Time) []PeerStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale {
		m.rebuild()
	}
	all := make([]PeerStatus, 0, len(m.peers))
	for _, p := range m.peers {
		s := PeerStatus{
			Number: p.number, Address: p.addr, Name: p.name, Version: p.version, Kind: p.kind, State: p.state,
			Sealed: m.sealed && p.ours(), Origin: p.origin.String(), RTT: p.rtt, LastRTT: p.lastRTT, LastHeard: p.lastHeard,
			Sent: p.sent, Received: p.received, QueueDrops: p.queueDrops, PartDrops: p.partDrops,
		}
		if p.instance != ([8]byte{}) {
			s.ID = fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", p.id[0], p.id[1], p.id[2], p.id[3], p.id[4], p.id[5])
		}
		if p.ours() {
			for _, q := range m.targets {
				if q != p && q.ours() && q.instance == p.instance {
					s.Through = q.addr
				}
			}
		}
		all = append(all, s)
	}
	for i := range m.strangers.sets {
		for _, s := range m.strangers.sets[i] {
			if s.number != 0 && now.Sub(s.last) < strangerTime {
				all = append(all, PeerStatus{
					Number: s.number, Address: s.addr, Origin: "heard", LastHeard: s.last,
					Received: Traffic{Datagrams: s.datagrams, Broadcasts: s.broadcasts, Bytes: s.bytes},
				})
			}
		}
	}
	slices.SortFunc(all, func(a, b PeerStatus) int { return a.Address.Compare(b.Address) })
	return all
}

// token is a number that nobody can guess.
func (m *Mesh) token() uint64 {
	var b [8]byte
	if _, err := io.ReadFull(m.random, b[:]); err != nil {
		panic(err) // the system's source of random bytes never fails (crypto/rand)
	}
	return binary.BigEndian.Uint64(b[:])
}

// jitter spreads what would otherwise happen at all relays at once: d, a tenth more or less.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + mathrand.N(d/5)
}
