// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package natpmp_test

import (
	"fmt"
	"time"

	"github.com/seed5728abee/fathom/nat/natpmp"
)

func Example() {
	ask := natpmp.Request{Op: natpmp.MapUDP, InternalPort: 49610, ExternalPort: 49610, Lifetime: time.Hour}
	fmt.Printf("%x\n", ask.Append(nil))

	answer := []byte{0, 129, 0, 0, 0, 0, 1, 7, 0xc1, 0xca, 0xc1, 0xcb, 0, 0, 0x0e, 0x10}
	r, err := natpmp.ParseResponse(answer)
	fmt.Println(r.Op, r.Result, r.InternalPort, r.ExternalPort, r.Lifetime, err)
	// Output:
	// 00010000c1cac1ca00000e10
	// map udp success 49610 49611 1h0m0s <nil>
}
