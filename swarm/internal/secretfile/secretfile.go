// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package secretfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// ErrMode is a secret in a file that others can read or change.
var ErrMode = errors.New("a secret must be its owner's")

// MaxSize is the most that Read reads: far more than keys and comments need.
const MaxSize = 1 << 20

// Read reads a file that nobody but its owner can change, and nobody but its owner and group can read: that is how
// orchestrators hand secrets to processes that are not root. Any other file is refused with [ErrMode].
func Read(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Windows has lists of rights instead of modes; those of a home directory are right from the start.
	if mode := info.Mode().Perm(); mode&0o027 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s has mode %#o: run `chmod 0600 %s`: %w", name, mode, name, ErrMode)
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%s has more than %d bytes", name, MaxSize)
	}
	return text, nil
}

// Create makes a new file of mode 0600, as a whole: after a crash it is there with all its content or not at all. It
// fails with [fs.ErrExist] if there is a file of that name, so that no secret is ever overwritten.
func Create(name string, text []byte) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// Unlike a rename, a link never replaces anything.
	switch err := os.Link(f.Name(), name); {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s: %w; move it away first", name, fs.ErrExist)
	case err != nil:
		return err
	}
	return syncDir(dir)
}

// syncDir makes a new name last through a loss of power, where the system can.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && runtime.GOOS != "windows" {
		return err
	}
	return nil
}
