// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package dataplane

import "time"

// Router forwards IPv4 and IPv6 packets between its ports.
type Router struct{}

func (*Router) release(time.Duration) time.Duration { return -1 }
