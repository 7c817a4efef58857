// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package describe makes one line for people of a broadcast or multicast
// datagram, for those who watch a relay at work:
//
//	PVA search #12 two:val (reply to 10.0.0.1:40000, tcp)
//	CA beacon 10.0.0.9:5064 #3
//	mDNS query _http._tcp.local. PTR
//	SSDP M-SEARCH * HTTP/1.1, ST: ssdp:all
//	wake-on-LAN 02:00:00:02:00:0b
//	udp 5 bytes "hello"
//
// It knows the discovery of EPICS (package epics), multicast DNS (RFC 6762) and
// link-local name resolution (RFC 4795), SSDP (UPnP Device Architecture 2.0,
// section 1) and wake-on-LAN (the "magic packet" of AMD, publication 20213).
//
// A line has at most [MaxLen] bytes, all of them harmless to a terminal whatever
// the datagram contains. It is for eyes, not for programs: its form may change.
package describe
