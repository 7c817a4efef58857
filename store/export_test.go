// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"database/sql"
	"fmt"
	"path/filepath"
)

// SetDeleteStep sets how many results are deleted at once.
func SetDeleteStep(n int) { deleteStep = n }

// MakeVersion makes a file of a version.
func MakeVersion(dir string, version int) error {
	db, err := sql.Open("sqlite", dsn(filepath.Join(dir, FileName)))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.Exec(fmt.Sprintf("PRAGMA user_version = %d", version))
	return err
}
