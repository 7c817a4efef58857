// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/seed5728abee/fathom/packet"
)

// TestFilterAnswersKernel has the kernel run the longest programs. A pair of Unix sockets carries the packets as they
// would be seen by a filter of a raw socket; package probe/stateless uses the filters on such.
func TestFilterAnswersKernel(t *testing.T) {
	var ranges []PortRange
	for i := range uint16(maxPortRanges) {
		ranges = append(ranges, PortRange{1000 + 2000*i, 1999 + 2000*i})
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 2))
	for version, prog := range map[int][]bpf.RawInstruction{4: FilterAnswersICMP4(ranges), 6: FilterAnswersICMP6(ranges)} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[0])
		defer unix.Close(fds[1])
		if err := AttachFilter(fds[1], prog); err != nil {
			t.Fatalf("%d instructions: %v", len(prog), err)
		}
		accepted := 0
		for range 500 {
			s := sent{proto: packet.ProtocolUDP, number: uint16(r.IntN(1 << 16)), options: r.IntN(11) * 4}
			in, plain := error4(t, 11, r.IntN(11)*4, s), message.accepts4
			if version == 6 {
				in, plain = error6(t, 3, s), message.accepts6
			}
			in = in[:len(in)-r.IntN(30)]
			if _, err := unix.Write(fds[0], in); err != nil {
				t.Fatal(err)
			}
			n, err := unix.Read(fds[1], make([]byte, 2048))
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				t.Fatal(err)
			}
			want := plain(message{in, ranges})
			if (err == nil) != want || want && n != len(in) {
				t.Fatalf("version %d, seed %d: the kernel lets %d bytes through, %v, of %x", version, seed, n, err, in)
			}
			if want {
				accepted++
			}
		}
		if accepted < 50 || accepted > 450 {
			t.Errorf("version %d, seed %d: %d of 500 accepted compare too little", version, seed, accepted)
		}
	}
}
