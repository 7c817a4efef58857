// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

const (
	dirMode   fs.FileMode = 0o700
	fileMode  fs.FileMode = 0o600
	othersMay             = 0o077
)

// checkPrivate refuses a file or directory that other users may open.
func checkPrivate(name string, info fs.FileInfo) error {
	// Windows has lists of rights instead; a home directory's are right from the start.
	if runtime.GOOS == "windows" || info.Mode().Perm()&othersMay == 0 {
		return nil
	}
	want := fileMode
	if info.IsDir() {
		want = dirMode
	}
	return fmt.Errorf("%s has mode %#o: run `chmod %#o %s`: %w", name, info.Mode().Perm(), want, name, ErrMode)
}

// maxFile bounds what is read from a directory of ours, whatever somebody put there.
const maxFile = 256 << 10

// readPrivate reads a file that only its owner may open.
func readPrivate(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(name, info); err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s: not a regular file of at most %d bytes", name, maxFile)
	}
	b := make([]byte, info.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return nil, err
	}
	return b, nil
}

// makePrivateDir makes a directory, or takes one that only its owner may open.
func makePrivateDir(name string) error {
	if err := os.MkdirAll(name, dirMode); err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	return checkPrivate(name, info)
}

// writeFile replaces a file as a whole, so that a reader, or the next start after a crash, sees the old
// content or the new.
func writeFile(name string, data []byte) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	if err = fillFile(f, data, dir); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(dir)
}

// fillFile writes a new file, gives it to the owner of a directory, and closes it.
func fillFile(f *os.File, data []byte, dir string) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = giveToOwner(dir, f)
	}
	return errors.Join(err, f.Close())
}

// makeDir makes the directory name with the files that fill puts there, as a whole. It fails with fs.ErrExist if
// there is one already that is not empty.
func makeDir(name string, fill func(put func(name string, data []byte) error) error) (err error) {
	parent := filepath.Dir(name)
	// The parent may belong to somebody whom root must not trust: what is opened inside stays inside.
	root, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer root.Close()
	tmp := ".new-" + rand.Text()
	if err := root.Mkdir(tmp, dirMode); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.RemoveAll(tmp))
		}
	}()
	inside, err := root.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer inside.Close()
	put := func(name string, data []byte) error {
		f, err := inside.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
		if err != nil {
			return err
		}
		return fillFile(f, data, parent)
	}
	if err := fill(put); err != nil {
		return err
	}
	if err := giveDir(parent, inside); err != nil {
		return err
	}
	// Renaming onto a directory succeeds only if that one is empty. Systems disagree about the error.
	if err := root.Rename(tmp, filepath.Base(name)); err != nil {
		if occupied(name) {
			return fmt.Errorf("%s: %w", name, fs.ErrExist)
		}
		return err
	}
	return syncDir(parent)
}

// giveDir makes a directory's content last, and gives it to the owner of its parent.
func giveDir(parent string, dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && runtime.GOOS != "windows" {
		return err
	}
	return giveToOwner(parent, d)
}

// occupied tells whether name exists and is anything but an empty directory.
func occupied(name string) bool {
	entries, err := os.ReadDir(name)
	return err == nil && len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// giveToOwner gives what root made in somebody's directory to that somebody: the command that makes
// tokens may run as root while the controller does not. It takes an open file, since by its name that somebody could
// have put another in its place.
func giveToOwner(dir string, f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	uid, gid, ok := owner(info)
	if !ok || uid == 0 {
		return nil
	}
	return f.Chown(uid, gid)
}

// syncDir makes a rename last through a loss of power, where the system can.
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

func encodePEM(kind string, ders ...[]byte) []byte {
	var b []byte
	for _, der := range ders {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return b
}
