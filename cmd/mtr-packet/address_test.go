// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"
)

var addressTexts = []string{
	"", "0.0.0.0", "255.255.255.255", "192.0.2.1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.00", "1..2.3",
	".1.2.3.4", "1.2.3.4.", "127.1", "1.2.3.4 ", "0x7f.0.0.1", "-1.2.3.4", "99999999999.1.1.1",
	"::", "::1", "1::", ":::", ":", "1:", ":1", "1:::2", "1::2::3", "2001:db8::7", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7",
	"1:2:3:4:5:6:7:8:9", "::2:3:4:5:6:7:8", "1::3:4:5:6:7:8", "1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8",
	"12345::", "g::", "ABCD::abcd", "::ffff:192.0.2.1", "::192.0.2.1", "1:2:3:4:5:6:192.0.2.1", "1:2:3:4:5:192.0.2.1",
	"1:2:3:4:5:6:7:192.0.2.1", "::192.0.2.1:1", "::1.2.3", "fe80::1%eth0", "fe80::1%", "0:0:0:0:0:0:0:0", "00000::", "::00001",
}

// checkAddress compares with netip, which accepts the same but for zones.
func checkAddress(t *testing.T, text string) {
	t.Helper()
	want, err := netip.ParseAddr(text)
	if err != nil || want.Zone() != "" {
		want = netip.Addr{}
	}
	want4, want6 := netip.Addr{}, netip.Addr{}
	if want.Is4() {
		want4 = want
	} else {
		want6 = want
	}
	if got, ok := parseIPv4([]byte(text)); got != want4 || ok != want4.IsValid() {
		t.Errorf("parseIPv4(%q) = %v, %v, want %v", text, got, ok, want4)
	}
	if got, ok := parseIPv6([]byte(text)); got != want6 || ok != want6.IsValid() {
		t.Errorf("parseIPv6(%q) = %v, %v, want %v", text, got, ok, want6)
	}
}

func TestParseAddress(t *testing.T) {
	for _, text := range addressTexts {
		checkAddress(t, text)
	}
}

func FuzzAddress(f *testing.F) {
	for _, text := range addressTexts {
		f.Add(text)
	}
	f.Fuzz(checkAddress)
}
