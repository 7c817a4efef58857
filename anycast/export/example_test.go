// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/export"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

func ExampleWriter() {
	m := &anycast.Measurement{ID: "20261120-1", Definition: anycast.Definition{Program: anycast.KindCatchment}}
	w, err := export.NewWriter(os.Stdout, export.CSV, export.Catch)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, receiver := range []string{"ams", "fra"} {
		err := w.Write(m, &anycast.Catch{
			Target: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), Sender: "ams", Receiver: receiver, Protocol: stateless.ICMP, Status: probe.Replied,
			RTT: 12345 * time.Microsecond, ReplyTTL: 55, Time: time.Date(2026, 11, 20, 12, 33, 2, 0, time.UTC),
		})
		if err != nil {
			fmt.Println(err)
		}
	}
	if err := w.Close(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// measurement,target,network,sender,receiver,origin,source,responder,protocol,status,flow,round,rtt_ms,clock_error_ms,reply_ttl,text,duplicates,time
	// 20261120-1,203.0.113.0,203.0.113.0/24,ams,ams,,,203.0.113.0,icmp,reply,0,0,12.345,,55,,0,2026-11-20T12:33:02Z
	// 20261120-1,203.0.113.1,203.0.113.0/24,ams,fra,,,203.0.113.1,icmp,reply,0,0,12.345,,55,,0,2026-11-20T12:33:02Z
}
