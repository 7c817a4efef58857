// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package store keeps measurements and their results in one SQLite file, inside the process.
//
// A [Store] implements [anycast.Store]. Results are written in batches a moment after they are given to it; Flush waits until
// everything is on the disk, and what Flush has confirmed survives the death of the process. The file is in WAL mode: reading and
// writing do not wait for each other, and other programs may read it with any SQLite tool while it is in use.
//
// A full disk, or a file that has reached its bound, is [ErrFull]: the measurement whose results could not be kept is
// told with its next call, nothing that was kept before is lost, and writing works again as soon as there is room.
package store
