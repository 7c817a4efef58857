// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"net/netip"
	"time"

	"github.com/seed5728abee/fathom/relay/discovery"
	"github.com/seed5728abee/fathom/relay/guard"
	"github.com/seed5728abee/fathom/relay/mesh"
)

// Status is what a relay is doing. Durations are in nanoseconds and counts since the start, unless
// their names say otherwise.
type Status struct {
	Version string    `json:"version"`
	ID      string    `json:"id"` // the lowest Ethernet address of its interfaces
	Started time.Time `json:"started"`
	// Ready tells whether the mesh socket and every segment are up.
	Ready     bool              `json:"ready"`
	Ports     string            `json:"ports"`
	Groups    []string          `json:"groups,omitempty"`
	Direction string            `json:"direction"` // both, read-only or emit-only
	Segments  []SegmentStatus   `json:"segments"`
	Mesh      MeshStatus        `json:"mesh"`
	Peers     []mesh.PeerStatus `json:"peers"`
	// Sources is where peers come from.
	Sources []discovery.SourceStatus `json:"sources,omitempty"`
}

// SegmentStatus is what a relay does on one of its interfaces.
type SegmentStatus struct {
	Interface string         `json:"interface"`
	Up        bool           `json:"up"`
	Problem   string         `json:"problem,omitempty"` // why it is not up
	MAC       string         `json:"mac,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
	Prefixes  []netip.Prefix `json:"prefixes,omitempty"`
	// Serving is false while another relay serves the segment: this one stands by.
	Serving bool     `json:"serving"`
	Relays  []string `json:"relays,omitempty"` // the others that are heard on the segment

	Captured      uint64            `json:"captured"` // frames that came up to be relayed
	CapturedBytes uint64            `json:"captured_bytes"`
	Relayed       uint64            `json:"relayed"` // broadcasts of the segment that went on
	Emitted       uint64            `json:"emitted"` // broadcasts of others that were put on the segment
	EmittedBytes  uint64            `json:"emitted_bytes"`
	KernelDropped uint64            `json:"kernel_dropped"` // frames for which the ring had no room
	Dropped       map[string]uint64 `json:"dropped,omitempty"`
	NotEmitted    map[string]uint64 `json:"not_emitted,omitempty"`

	// Talkers are the sources with most broadcasts in the last minute.
	Talkers []guard.Talker `json:"talkers,omitempty"`
}

// MeshStatus is what a relay hears from and says to all others.
type MeshStatus struct {
	Listen netip.AddrPort `json:"listen"`
	// Mode is open, sealed, or sealed+compat.
	Mode          string            `json:"mode"`
	Received      uint64            `json:"received"` // datagrams
	ReceivedBytes uint64            `json:"received_bytes"`
	Sent          uint64            `json:"sent"`
	SentBytes     uint64            `json:"sent_bytes"`
	SendErrors    uint64            `json:"send_errors"`
	KernelDropped uint64            `json:"kernel_dropped"` // datagrams for which the socket had no room
	Dropped       map[string]uint64 `json:"dropped,omitempty"`
}
