// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package enroll

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestRootGives holds that what root's commands leave in a controller's directory belongs to the controller's
// user, who could not read it otherwise.
func TestRootGives(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const nobody = 65534
	dir := filepath.Join(t.TempDir(), "authority")
	if err := os.Mkdir(dir, dirMode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	a, err := Open(dir, AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	newToken(t, a, fra1)
	if err := a.RotateCA(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Revoke("fra1"); err != nil {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files++
		if uid, gid, ok := owner(info); !ok || uid != nobody || gid != nobody {
			t.Errorf("%s belongs to %d:%d", name, uid, gid)
		}
		return nil
	})
	if err != nil || files < 9 {
		t.Errorf("%d files and directories, %v", files, err)
	}
}
