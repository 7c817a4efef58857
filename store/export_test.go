// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
)

// SetDeleteStep sets how many results are deleted at once.
func SetDeleteStep(n int) { deleteStep = n }

// MakeVersion makes a file of a version, with what its first migrations and further statements put into it.
func MakeVersion(dir string, version int, statements ...string) error {
	db, err := sql.Open("sqlite", dsn(filepath.Join(dir, FileName)))
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, s := range slices.Concat(migrations[:min(version, len(migrations))], statements) {
		if _, err := db.Exec(s); err != nil {
			return err
		}
	}
	_, err = db.Exec(fmt.Sprintf("PRAGMA user_version = %d", version))
	return err
}
