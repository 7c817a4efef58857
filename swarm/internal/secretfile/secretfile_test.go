// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package secretfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "secret")
	if err := Create(name, []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := Create(name, []byte("second")); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), name) {
		t.Errorf("a second time: %v", err)
	}
	if text, err := Read(name); err != nil || string(text) != "first" {
		t.Errorf("%q, %v", text, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := Create(filepath.Join(dir, "none", "secret"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
}

func TestReadModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes")
	}
	name := filepath.Join(t.TempDir(), "secret")
	if err := Create(name, []byte("text")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mode os.FileMode
		ok   bool
	}{{0o600, true}, {0o400, true}, {0o440, true}, {0o640, true}, {0o644, false}, {0o604, false}, {0o660, false}, {0o601, false}, {0o602, false}} {
		if err := os.Chmod(name, c.mode); err != nil {
			t.Fatal(err)
		}
		text, err := Read(name)
		switch {
		case c.ok && (err != nil || string(text) != "text"):
			t.Errorf("mode %o: %q, %v", c.mode, text, err)
		case !c.ok && (!errors.Is(err, ErrMode) || !strings.Contains(err.Error(), "run `chmod 0600 "+name+"`")):
			t.Errorf("mode %o: %v", c.mode, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Read(dir); err == nil {
		t.Error("a directory was read")
	}
	large := filepath.Join(dir, "large")
	if err := Create(large, make([]byte, MaxSize+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(large); err == nil {
		t.Error("a file without end was read")
	}
}
