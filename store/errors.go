// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Errors of a [Store], beside [anycast.ErrNoMeasurement].
var (
	// ErrFull means that the disk is full, or that the file has reached Options.MaxBytes.
	ErrFull = errors.New("no room left for results")
	// ErrCorrupt means that the file is damaged, or is not a store.
	ErrCorrupt = errors.New("result store is damaged, or not one")
	// ErrNewer means that a later version of the program has written the file.
	ErrNewer = errors.New("result store was written by a later version")
	// ErrReadOnly means that the file or its directory may not be written.
	ErrReadOnly = errors.New("result store may not be written")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("result store is closed")
)

// explain wraps an error of the database with this package's, and with what was tried.
func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	kind := error(nil)
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff { // the upper bits tell details
		case sqlite3.SQLITE_FULL:
			kind = ErrFull
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			kind = ErrCorrupt
		case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
			kind = ErrReadOnly
		}
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = ErrFull
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		kind = ErrReadOnly
	}
	if kind != nil {
		return fmt.Errorf("%s: %w (%w)", what, kind, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
