// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed5728abee/fathom/relay/drop"
	"github.com/seed5728abee/fathom/relay/guard"
)

var sender = guard.MAC{2, 0, 0, 0, 0, 9}

var announcements = []struct {
	name string
	a    guard.Announcement
	hex  string
}{
	{
		name: "without addresses",
		a: guard.Announcement{
			Relay: guard.MAC{2, 0, 0, 0, 0, 7}, Token: [8]byte{0xa0, 1, 2, 3, 4, 5, 6, 7}, Sequence: 258,
		},
		hex: "ffffffffffff 020000000009 88b5 4654484d 01000000 020000000007 0000000000000000 a001020304050607 0000000000000102" +
			"0000000000000000",
	},
	{
		name: "ready, with addresses",
		a: guard.Announcement{
			Relay: guard.MAC{2, 0, 0, 0, 0, 7}, Mesh: [8]byte{0xb0, 1, 2, 3, 4, 5, 6, 7},
			Token: [8]byte{0xa0, 1, 2, 3, 4, 5, 6, 7}, Sequence: 1, Ready: true, Serving: true,
			MeshAddrs: []netip.AddrPort{
				netip.MustParseAddrPort("192.0.2.7:7124"), netip.MustParseAddrPort("[2001:db8::7]:7125"),
			},
		},
		hex: "ffffffffffff 020000000009 88b5 4654484d 01030200 020000000007 b001020304050607 a001020304050607 0000000000000001" +
			"04 c0000207 1bd4 10 20010db8000000000000000000000007 1bd5",
	},
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var compareAddrs = cmpopts.EquateComparable(netip.AddrPort{})

func TestAnnouncement(t *testing.T) {
	for _, test := range announcements {
		t.Run(test.name, func(t *testing.T) {
			frame := unhex(t, test.hex)
			if got := test.a.Append([]byte("before"), sender); !bytes.Equal(got, append([]byte("before"), frame...)) {
				t.Errorf("Append:\n%x, want\n%x", got[6:], frame)
			}
			got, from, err := guard.Parse(frame)
			if err != nil || from != sender {
				t.Errorf("Parse: from %x, %v", from, err)
			}
			if diff := cmp.Diff(test.a, got, compareAddrs); diff != "" {
				t.Errorf("Parse (-want +got):\n%s", diff)
			}
			// A later version may say more.
			longer := append(slices.Clone(frame), "and more"...)
			longer[18] = 2
			if got, _, err := guard.Parse(longer); err != nil || !cmp.Equal(test.a, got, compareAddrs) {
				t.Errorf("of a later version: %+v, %v", got, err)
			}
			// The padding of a short frame is no part of it.
			whole := 52
			for _, ap := range test.a.MeshAddrs {
				whole += 3 + len(ap.Addr().AsSlice())
			}
			for n := range frame {
				_, _, err := guard.Parse(frame[:n])
				if n < whole && !errors.Is(err, drop.Truncated) || n >= whole && err != nil {
					t.Errorf("the first %d bytes of %d: %v", n, whole, err)
				}
			}
		})
	}
}

func TestAnnouncementAddresses(t *testing.T) {
	a := announcements[1].a
	a.MeshAddrs = nil
	for i := range guard.MaxAddrs + 3 {
		a.MeshAddrs = append(a.MeshAddrs, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7124))
	}
	got, _, err := guard.Parse(a.Append(nil, sender))
	if err != nil || !slices.Equal(got.MeshAddrs, a.MeshAddrs[:guard.MaxAddrs]) {
		t.Errorf("of too many addresses: %v, %v", got.MeshAddrs, err)
	}
	// An address of a kind to come is skipped, and one without a port.
	frame := unhex(t, announcements[0].hex)[:52]
	frame[20] = 3
	frame = append(frame, unhex(t, "03 aabbcc 0001  04 c0000208 0000  04 c0000209 0001")...)
	got, _, err = guard.Parse(frame)
	if want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:1")}; err != nil || !slices.Equal(got.MeshAddrs, want) {
		t.Errorf("addresses %v, %v, want %v", got.MeshAddrs, err, want)
	}
}

func TestNotAnnouncements(t *testing.T) {
	for _, test := range []struct {
		name   string
		offset int
		bytes  string
		want   drop.Reason
	}{
		{"another EtherType", 12, "0800", drop.Invalid},
		{"another experiment", 14, "46544850", drop.Invalid},
		{"version 0", 18, "00", drop.Malformed},
		{"from a group", 6, "03", drop.Malformed},
		{"from nobody", 6, "000000000000", drop.Malformed},
		{"of nobody", 22, "000000000000", drop.Malformed},
		{"more addresses than there are", 20, "ff", drop.Truncated},
		{"an address that is too long", 52, "ff", drop.Truncated},
	} {
		frame := unhex(t, announcements[1].hex)
		copy(frame[test.offset:], unhex(t, test.bytes))
		if a, _, err := guard.Parse(frame); !errors.Is(err, test.want) {
			t.Errorf("%s: %+v, %v, want %v", test.name, a, err, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, test := range announcements {
		f.Add(unhex(f, test.hex))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		a, from, err := guard.Parse(frame)
		if err != nil {
			if _, ok := errors.AsType[drop.Reason](err); !ok {
				t.Fatalf("%v is no reason", err)
			}
			return
		}
		if len(a.MeshAddrs) > guard.MaxAddrs {
			t.Fatalf("%d addresses", len(a.MeshAddrs))
		}
		again, sender, err := guard.Parse(a.Append(nil, from))
		if err != nil || sender != from || !cmp.Equal(a, again, compareAddrs) {
			t.Fatalf("%+v from %x became %+v from %x, %v", a, from, again, sender, err)
		}
	})
}
