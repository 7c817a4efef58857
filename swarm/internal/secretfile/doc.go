// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package secretfile reads and makes the files of a swarm that hold secrets: identities, swarm keys, keys of trusted
// hosts. They are nobody else's business, and one that others may read is refused with the command that mends it.
package secretfile
