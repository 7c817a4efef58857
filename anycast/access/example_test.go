// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"errors"
	"fmt"

	"github.com/seed5728abee/fathom/anycast/access"
	"github.com/seed5728abee/fathom/anycast/enroll"
)

func ExampleQuotas() {
	quotas := access.NewQuotas(func(who enroll.Identity) access.Limits {
		return access.Limits{Requests: 120, Measurements: 1, Targets: 1_000_000, ProbeRate: 10_000}
	})
	alice := enroll.Identity{Role: enroll.Operator, Name: "alice"}
	lease, err := quotas.Start(alice, access.Demand{Targets: 500_000, ProbeRate: 10_000})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lease.Release()
	_, err = quotas.Start(alice, access.Demand{Targets: 1})
	fmt.Println(err)
	fmt.Println(errors.Is(err, access.ErrQuota))
	// Output:
	// quota exceeded: operator/alice: measurements at once: 1 allowed, 1 in use, 1 more asked for; try again when a measurement has ended
	// true
}
