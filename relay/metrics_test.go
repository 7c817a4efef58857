// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/seed5728abee/fathom/relay/mesh"
)

var update = flag.Bool("update", false, "write the golden files of testdata anew")

func TestMetrics(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		hosts, relays := three(w, nil)
		wait(settle)
		hosts[0].send("one")
		hosts[1].send("two")
		w.post(meshAddress(8), relays[0].addr, []byte("noise")) // a stranger: no series for such
		wait(time.Second)
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(&collector{func() Status { return relays[0].e.status(time.Now()) }})
		problems, err := testutil.GatherAndLint(registry)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
		want := `
# HELP fathom_relay_emitted_broadcasts_total Broadcasts of others that were put on the segment.
# TYPE fathom_relay_emitted_broadcasts_total counter
fathom_relay_emitted_broadcasts_total{interface="eth0"} 1
# HELP fathom_relay_mesh_dropped_total Datagrams of the mesh, or broadcasts in them, that went no further.
# TYPE fathom_relay_mesh_dropped_total counter
fathom_relay_mesh_dropped_total{reason="unframed"} 1
# HELP fathom_relay_peer_received_broadcasts_total Broadcasts received from the peer.
# TYPE fathom_relay_peer_received_broadcasts_total counter
fathom_relay_peer_received_broadcasts_total{kind="ours",peer="192.0.2.2:7124"} 1
# HELP fathom_relay_peer_up 1 while the peer answers; relays of SnowSignal never do.
# TYPE fathom_relay_peer_up gauge
fathom_relay_peer_up{kind="ours",peer="192.0.2.2:7124"} 1
# HELP fathom_relay_ready 1 while the mesh socket and all segments are up.
# TYPE fathom_relay_ready gauge
fathom_relay_ready 1
# HELP fathom_relay_relayed_broadcasts_total Broadcasts of the segment that went on.
# TYPE fathom_relay_relayed_broadcasts_total counter
fathom_relay_relayed_broadcasts_total{interface="eth0"} 1
`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "fathom_relay_emitted_broadcasts_total", "fathom_relay_mesh_dropped_total",
			"fathom_relay_peer_received_broadcasts_total", "fathom_relay_peer_up", "fathom_relay_ready", "fathom_relay_relayed_broadcasts_total"); err != nil {
			t.Error(err)
		}
		// What an interface that went away does to them.
		p := relays[0].ports[0]
		p.s.set(link{}, "interface eth0 is down")
		hosts[1].send("nowhere to go")
		wait(time.Second)
		s := relays[0].e.status(time.Now())
		if s.Ready || s.Segments[0].Up || s.Segments[0].Problem != "interface eth0 is down" || s.Segments[0].NotEmitted["no-interface"] != 1 {
			t.Errorf("%+v", s)
		}
		if relays[0].log.count("the segment is down") != 1 || relays[0].log.count("the segment is up") != 1 {
			t.Errorf("%q", relays[0].log.lines)
		}
	})
}

// The JSON of a status is read by other programs: what it looks like is on record.
func TestStatusJSON(t *testing.T) {
	const golden = "testdata/status.json"
	inWorld(t, 3, func(t *testing.T, w *world) {
		hosts, relays := three(w, func(o *Options) {
			o.Version = "1.2.3"
			groups, err := ParseGroups([]string{"224.0.0.128", "[ff02::fb]:5353"})
			if err != nil {
				t.Fatal(err)
			}
			o.Groups = groups
		})
		second := w.relay(4, w.wires[:1], nil, nil)
		wait(settle)
		hosts[0].send("hello")
		hosts[0].sendTo(hosts[0].broadcastTo(5077), "another port")
		hosts[1].send("hello")
		w.post(meshAddress(2), relays[0].addr, nil)
		wait(500 * time.Millisecond)
		if second.e.status(time.Now()).Segments[0].Serving {
			t.Error("the second relay serves as well")
		}
		s := relays[0].e.status(time.Now())
		// What differs from run to run:
		for i := range s.Peers {
			p := &s.Peers[i]
			p.Sent.Datagrams, p.Sent.Bytes, p.Received.Datagrams, p.Received.Bytes = 1, 2, 3, 4
			p.LastHeard = s.Started
		}
		s.Mesh.Received, s.Mesh.ReceivedBytes, s.Segments[0].Captured, s.Segments[0].CapturedBytes = 5, 6, 7, 8
		got, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("got %s\nwant %s\ngo test -run StatusJSON -update writes it anew", got, want)
		}
		var back Status
		if err := json.Unmarshal(got, &back); err != nil || back.Peers[0].Kind != mesh.Ours || back.Peers[0].RTT != s.Peers[0].RTT {
			t.Errorf("read back: %v, %+v", err, back.Peers)
		}
	})
}
