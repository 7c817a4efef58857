// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package dataplane carries the traffic of a lab in user space: wires with
// delay, loss and the like, and routers that can be told to misbehave.
//
// An [Engine] owns the interfaces, opened as packet sockets in whatever network
// namespace they live in, and moves frames between them on one thread:
//
//	e, err := dataplane.NewEngine()
//	w, err := e.AddWire([2]*rawio.FrameConn{a, b}, dataplane.WireConfig{
//		Forward:  dataplane.Params{Delay: 5 * time.Millisecond},
//		Backward: dataplane.Params{Delay: 5 * time.Millisecond, Loss: 0.01},
//	})
//	go e.Run(ctx) // its owner waits for it
//	...
//	w.Set(dataplane.Forward, dataplane.Params{Delay: time.Millisecond})
//
// A wire holds each frame until the time at which the kernel took it from its
// sender plus the delay, so a late engine does not lengthen the wire.
//
// A wire joins two veth ends whose other ends are the hosts' interfaces; a
// router's ports are veth ends too:
//
//	host A                    engine                         host B
//	[eth0]----veth----[FrameConn]~~wire~~[FrameConn]----veth----[eth0]
//
//	host A                    engine                         host B
//	[eth0]----veth----[FrameConn] router [FrameConn]----veth----[eth0]
//
// The veth ends that the engine holds need no addresses and should have none,
// nor IPv6 autoconfiguration, or else the kernel answers beside the router.
// Open them promiscuous (wires) and call [rawio.DisableOffload] on both ends of
// the pair, or else what hosts send are not frames yet.
//
// The engine's thread takes part in Go's scheduling: when a program keeps all
// GOMAXPROCS processors busy with work of its own, the engine waits for one for
// milliseconds. A program that does both raises GOMAXPROCS by two or so; then
// the kernel decides, and it prefers the engine.
//
// What a wire or router does with a frame is a pure function of the frame, the
// time and its seed: the same traffic meets the same fate each time.
package dataplane
