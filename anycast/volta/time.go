// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Time is a stamp as agents send it: with a zone, or an agent's local time without saying where that is.
// The zero Time is unknown.
type Time struct {
	at    time.Time // without a zone: what the clock on the wall showed, as if that were UTC
	zoned bool
}

// ErrTime reports text that is no time.
var ErrTime = errors.New("unreadable time")

const (
	layoutSeed = "2006-01-02T15:04:05.000000" // the decimals go when they are zero
	// maxTime is longer than every time that can be read: 35 bytes, a zone of ±hh:mm and 9 decimals.
	maxTime = 40
)

// timeLayouts are the forms that ParseTime reads. Where seconds stand, decimals may follow.
var timeLayouts = []struct {
	layout string
	zoned  bool
}{
	{"2006-01-02T15:04:05", false},
	{"2006-01-02T15:04:05Z07:00", true},
	{"2006-01-02T15:04:05Z0700", true},
	{"2006-01-02T15:04", false},
	{"2006-01-02T15:04Z07:00", true},
}

// At stamps an instant, to the nanosecond.
func At(t time.Time) Time {
	if t.IsZero() {
		return Time{}
	}
	return Time{at: t.Round(0).UTC(), zoned: true}
}

// ParseTime reads a time of either dialect: ISO 8601 with or without a zone, decimals of a second, a
// space for the T. Empty text is the zero Time; text that is no time is that with ErrTime.
func ParseTime(s string) (Time, error) {
	if s == "" {
		return Time{}, nil
	}
	if len(s) > maxTime {
		return Time{}, fmt.Errorf("%w: %.40q and more", ErrTime, s)
	}
	text := s
	if len(text) > 10 && text[10] == ' ' {
		text = text[:10] + "T" + text[11:]
	}
	for _, form := range timeLayouts {
		if at, err := time.Parse(form.layout, text); err == nil {
			// A year that no clock shows: written in another zone, it might not be one of four digits.
			if y := at.Year(); y < 1900 || y > 9000 {
				break
			}
			return Time{at: at, zoned: form.zoned}, nil
		}
	}
	return Time{}, fmt.Errorf("%w: %q", ErrTime, s)
}

// IsZero tells that the time is unknown.
func (t Time) IsZero() bool { return t.at.IsZero() }

// Zoned tells that the time says its zone, so that it can be compared with any other.
func (t Time) Zoned() bool { return t.zoned }

// Time gives the instant. A time without zone is taken for this host's local time.
func (t Time) Time() time.Time {
	if t.zoned || t.IsZero() {
		return t.at
	}
	return time.Date(t.at.Year(), t.at.Month(), t.at.Day(), t.at.Hour(), t.at.Minute(), t.at.Second(), t.at.Nanosecond(), time.Local)
}

// Format writes the time as the dialect does, and nothing for the zero Time. Seed has microseconds, in this
// host's local time unless t came without zone itself; Go has all decimals that are not zero.
func (t Time) Format(d Dialect) string {
	switch {
	case t.IsZero():
		return ""
	case d == Go:
		return t.Time().Format(time.RFC3339Nano)
	case t.zoned:
		return formatSeed(t.at.Local())
	default:
		return formatSeed(t.at)
	}
}

func formatSeed(at time.Time) string {
	return strings.TrimSuffix(at.Format(layoutSeed), ".000000")
}

// String is the time in its own dialect, with all its decimals.
func (t Time) String() string {
	if t.zoned || t.IsZero() {
		return t.Format(Go)
	}
	return t.at.Format("2006-01-02T15:04:05.999999999")
}

// MarshalText is String. An unknown time is no text.
func (t Time) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is ParseTime.
func (t *Time) UnmarshalText(b []byte) error {
	var err error
	*t, err = ParseTime(string(b))
	return err
}

// zoneStep divides the difference of any two zones.
const zoneStep = 15 * time.Minute

// Sub gives how much later than u the time t is; the two may come from different hosts. Where zones may be
// at fault, the difference is reduced by whole quarters of an hour, of which all zones are
// multiples, to the value nearest 0. That is so when one time has a zone and the other has none, and when
// the difference is beyond the limit, the longest that can be: agents in two zones may both say local time.
//
// It is false when either time is unknown. Clocks that differ are not corrected: the result may be
// below 0.
func (t Time) Sub(u Time, limit time.Duration) (time.Duration, bool) {
	if t.IsZero() || u.IsZero() {
		return 0, false
	}
	d := t.at.Sub(u.at)
	if t.zoned != u.zoned || d > limit || d < -limit {
		d %= zoneStep
		switch {
		case d > zoneStep/2:
			d -= zoneStep
		case d < -zoneStep/2:
			d += zoneStep
		}
	}
	return d, true
}
