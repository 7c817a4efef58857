// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/seed5728abee/fathom/internal/rawio"
	"github.com/seed5728abee/fathom/packet"
)

// accuracy compares the round-trip times that the prober reports with those between the
// capture stamps of request and reply on the prober's own interface.
func (b *bench) accuracy(ctx context.Context) error {
	for _, c := range []struct {
		name        string
		args        []string
		count       int
		median, p99 time.Duration
	}{
		{"1,000 probes/s", []string{"-count", "3000", "-interval", "1ms"}, 3000, 2 * time.Microsecond, 10 * time.Microsecond},
		{"10,000 in flight", []string{"-count", "60000", "-window", "10000"}, 60000, 20 * time.Microsecond, math.MaxInt64},
	} {
		added, err := b.addedTime(ctx, c.count, c.args)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		m, p99 := added[len(added)/2], added[len(added)*99/100]
		goal := fmt.Sprintf("median ≤ %v", c.median)
		if c.p99 != math.MaxInt64 {
			goal += fmt.Sprintf(", p99 ≤ %v", c.p99)
		}
		b.figures.Judge("accuracy", c.name+": added to the wire's time", fmt.Sprintf("median %v, p99 %v (of %d)", m, p99, len(added)), goal, m <= c.median && p99 <= c.p99)
	}
	return nil
}

// addedTime gives reported less captured time for each probe, in ascending order.
func (b *bench) addedTime(ctx context.Context, count int, args []string) ([]time.Duration, error) {
	a := b.lab.Host("a")
	var conn *rawio.FrameConn
	if err := a.Do(func() (err error) {
		conn, err = rawio.OpenFrameConn("b", rawio.FrameOptions{Outgoing: true, RingFrames: 1 << 16, SnapLen: 128})
		return err
	}); err != nil {
		return nil, err
	}
	defer conn.Close()
	type times struct{ request, reply int64 }
	seen := make([]times, 65536) // by sequence number
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- capture(conn, stop, func(typ uint8, seq uint16, at int64) {
			switch typ {
			case packet.ICMPv4Echo:
				seen[seq].request = at
			case packet.ICMPv4EchoReply:
				seen[seq].reply = at
			}
		})
	}()
	o, err := b.on(ctx, "a", "paced", append([]string{"-target", b.lab.Host("b").Addr().String()}, args...)...)
	close(stop)
	if e := <-ended; err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	var added []time.Duration
	for k, rtt := range o.RTTs {
		t := seen[o.Numbers[k]]
		if rtt == 0 || t.request == 0 || t.reply == 0 {
			continue
		}
		added = append(added, rtt-time.Duration(t.reply-t.request))
	}
	if len(added) < count*9/10 {
		return nil, fmt.Errorf("only %d of %d probes were captured and answered", len(added), count)
	}
	slices.Sort(added)
	return added, nil
}

// capture hands the ICMP messages of the prober to f, until stop is closed and the ring is empty.
func capture(conn *rawio.FrameConn, stop <-chan struct{}, f func(typ uint8, seq uint16, at int64)) error {
	poller, err := rawio.NewPoller()
	if err != nil {
		return err
	}
	defer poller.Close()
	poller.Add(conn.FD(), rawio.Readable)
	var frames [256]rawio.Frame
	for {
		n, err := conn.Receive(frames[:])
		if err != nil {
			return err
		}
		for i := range frames[:n] {
			if len(frames[i].Data) < 14 {
				continue
			}
			ip, err := packet.ParseQuotedIPv4(frames[i].Data[14:])
			if err != nil || ip.Protocol() != packet.ProtocolICMP {
				continue
			}
			if m, err := packet.ParseICMP(ip.Payload()); err == nil && m.ID() == pacedID {
				f(m.Type(), m.Seq(), frames[i].Time)
			}
		}
		conn.Release()
		if n > 0 {
			continue
		}
		select {
		case <-stop:
			if st, err := conn.Stats(); err == nil && st.Dropped > 0 {
				return fmt.Errorf("the capture lost %d frames", st.Dropped)
			}
			return nil
		default:
		}
		if err := poller.Wait(10 * time.Millisecond); err != nil {
			return err
		}
	}
}
