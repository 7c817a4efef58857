// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"fmt"
)

// migrations bring a file from the version that is their index to the next one. Those that were released are never changed.
var migrations = []string{
	// Times are nanoseconds since 1970, durations nanoseconds, addresses 4 or 16 bytes. Enumerations have the
	// numbers of the protocol fathom.measure.v1.
	`
CREATE TABLE measurement (
	m          INTEGER PRIMARY KEY,
	id         TEXT NOT NULL UNIQUE,
	program    TEXT NOT NULL,
	name       TEXT NOT NULL,
	owner      TEXT NOT NULL,
	parent     TEXT NOT NULL,
	state      TEXT NOT NULL,
	error      TEXT NOT NULL,
	start      INTEGER NOT NULL,
	end        INTEGER NOT NULL, -- 0: not over
	targets    INTEGER NOT NULL,
	definition TEXT NOT NULL,    -- JSON
	progress   TEXT NOT NULL     -- JSON
);
CREATE INDEX measurement_start ON measurement (start);

CREATE TABLE target ( -- the targets of a measurement, many in a row
	m     INTEGER NOT NULL,
	chunk INTEGER NOT NULL,
	size  INTEGER NOT NULL, -- bytes per address
	data  BLOB NOT NULL,
	PRIMARY KEY (m, chunk)
) WITHOUT ROWID;

CREATE TABLE site (
	site INTEGER PRIMARY KEY, -- 0: none
	name TEXT NOT NULL UNIQUE
);
INSERT INTO site VALUES (0, '');

CREATE TABLE catch ( -- one row per probe of a catchment
	m           INTEGER NOT NULL,
	seq         INTEGER NOT NULL, -- of all results
	target      BLOB NOT NULL,
	sender      INTEGER NOT NULL,
	receiver    INTEGER NOT NULL,
	responder   BLOB,
	protocol    INTEGER NOT NULL,
	status      INTEGER NOT NULL,
	flow        INTEGER NOT NULL,
	round       INTEGER NOT NULL,
	rtt         INTEGER NOT NULL,
	clock_error INTEGER NOT NULL,
	reply_ttl   INTEGER NOT NULL,
	text        TEXT,
	duplicates  INTEGER NOT NULL,
	time        INTEGER NOT NULL,
	PRIMARY KEY (m, seq)
) WITHOUT ROWID;
CREATE INDEX catch_target ON catch (target);

CREATE TABLE result ( -- everything else
	m      INTEGER NOT NULL,
	seq    INTEGER NOT NULL,
	target BLOB,
	time   INTEGER NOT NULL, -- 0: of no moment
	sites  TEXT NOT NULL,    -- '/fra1/ams2/'
	body   BLOB NOT NULL,    -- fathom.measure.v1.Result
	PRIMARY KEY (m, seq)
) WITHOUT ROWID;
CREATE INDEX result_target ON result (target);

CREATE TABLE counter (seq INTEGER NOT NULL); -- the last one given away
INSERT INTO counter VALUES (0);
`,
	// Measurements with several origins, and the names of targets.
	`
CREATE TABLE origin (
	origin INTEGER PRIMARY KEY, -- 0: the only one
	name   TEXT NOT NULL UNIQUE
);
INSERT INTO origin VALUES (0, '');

CREATE TABLE target_name ( -- of the few targets that have one
	m    INTEGER NOT NULL,
	at   INTEGER NOT NULL, -- position among the measurement's targets
	name TEXT NOT NULL,
	PRIMARY KEY (m, at)
) WITHOUT ROWID;

ALTER TABLE catch ADD COLUMN origin INTEGER NOT NULL DEFAULT 0;
`,
}

// migrate brings the file to the present version.
func migrate(ctx context.Context, db *sql.DB) error {
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return explain("read version", err)
	}
	if version > len(migrations) {
		return fmt.Errorf("%w: it has version %d, this program knows %d", ErrNewer, version, len(migrations))
	}
	for ; version < len(migrations); version++ {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return explain("migrate", err)
		}
		_, err = tx.ExecContext(ctx, migrations[version]+fmt.Sprintf("PRAGMA user_version = %d;", version+1))
		if err != nil {
			_ = tx.Rollback()
			return explain(fmt.Sprintf("migrate to version %d", version+1), err)
		}
		if err := tx.Commit(); err != nil {
			return explain(fmt.Sprintf("migrate to version %d", version+1), err)
		}
	}
	return nil
}
