// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import "fmt"

func newUnprivileged(*engine) (backend, error) {
	return nil, fmt.Errorf("raw sockets need CAP_NET_RAW: %w", ErrPermission)
}
