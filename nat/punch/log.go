// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package punch

import "log/slog"

// levelAttempt is that of the line for each attempt: the caller tells its users what came of it.
const levelAttempt = slog.LevelDebug

func logError(err error) slog.Attr { return slog.Any("error", err) }

func logResult(r Result) []slog.Attr {
	return []slog.Attr{slog.String("protocol", r.How.String()), slog.String("remote", r.Remote.String()), slog.Duration("took", r.Took)}
}
