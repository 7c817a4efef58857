// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio_test

import (
	"net/netip"
	"testing"

	"github.com/seed5728abee/fathom/internal/rawio"
)

// TestSourceHint looks at what an IPv6 sender is bound to: the source that all messages of a call name, or nothing.
func TestSourceHint(t *testing.T) {
	l := pair(t)
	a, b := l.Host("a"), l.Host("b")
	if err := a.Do(func() error {
		h, err := rawio.NewHost()
		if err != nil {
			return err
		}
		defer h.Close()
		tx, err := h.Open(rawio.Spec{Version: 6, Kind: rawio.RawHeader})
		if err != nil {
			return err
		}
		// An IPv6 header that says that nothing follows it.
		data := []byte{0x60, 0, 0, 0, 0, 0, 59, 64}
		data = append(data, a.Addr6().AsSlice()...)
		data = append(data, b.Addr6().AsSlice()...)
		none := netip.IPv6Unspecified()
		for _, tt := range []struct {
			sources []netip.Addr
			want    netip.Addr
		}{
			{[]netip.Addr{{}}, none},
			{[]netip.Addr{a.Addr6(), a.Addr6()}, a.Addr6()},
			{[]netip.Addr{a.Addr6(), {}}, none},
			{[]netip.Addr{a.Addr6()}, a.Addr6()},
			{[]netip.Addr{b.Addr6()}, none}, // not the host's
			{[]netip.Addr{a.Addr6()}, a.Addr6()},
			{[]netip.Addr{{}, {}}, none},
		} {
			var msgs []rawio.Message
			for _, src := range tt.sources {
				msgs = append(msgs, rawio.Message{Data: data, Addr: netip.AddrPortFrom(b.Addr6(), 0), Source: src})
			}
			if n, err := tx.Send(msgs); n != len(msgs) || err != nil {
				t.Errorf("from %v: sent %d, %v", tt.sources, n, err)
			}
			if got := tx.LocalAddr().Addr(); got != tt.want {
				t.Errorf("from %v: bound to %v, want %v", tt.sources, got, tt.want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
