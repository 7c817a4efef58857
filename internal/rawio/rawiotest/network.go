// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawiotest

import (
	"math/rand/v2"
	"time"
)

// Network says what comes back for a packet that a [Host] has sent: a whole IP packet with its
// header, which is valid only during the call. It is called on the sender's goroutine, one call at a time, and
// must not call the Host.
type Network func(packet []byte) []Delivery

// Delivery is a packet on its way to the host.
type Delivery struct {
	// After is when it arrives, counted from now. What arrives at once is there when Send returns.
	After time.Duration
	// Packet is a whole IP packet with its header. The Host keeps it.
	Packet []byte
}

// Impairment is what a bad path does to the packets of a [Network]. The zero value does nothing.
type Impairment struct {
	// Loss is the share of packets that vanish, from 0 to 1, in each direction.
	Loss float64
	// Duplicate is the share of answers that come twice.
	Duplicate float64
	// Reorder is the share of answers that overtake those before them: Delay and Jitter spare them.
	Reorder float64
	// Delay is added to each answer, and Jitter times a number below 1, evenly distributed.
	Delay, Jitter time.Duration
	// Seed makes the choices: the same seed gives the same ones.
	Seed uint64
}

// Wrap gives a network with the impairment before n. The packets that n sees are the survivors.
func (i Impairment) Wrap(n Network) Network {
	rng := rand.New(rand.NewPCG(i.Seed, 0x6661746f6d)) // any constant will do
	happens := func(share float64) bool { return share > 0 && rng.Float64() < share }
	return func(packet []byte) []Delivery {
		if happens(i.Loss) {
			return nil
		}
		var out []Delivery
		for _, d := range n(packet) {
			if happens(i.Loss) {
				continue
			}
			copies := 1
			if happens(i.Duplicate) {
				copies = 2
			}
			for range copies {
				c := d
				if !happens(i.Reorder) {
					c.After += i.Delay
					if i.Jitter > 0 {
						c.After += time.Duration(rng.Int64N(int64(i.Jitter)))
					}
				}
				out = append(out, c)
			}
		}
		return out
	}
}
