// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package anycast

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// ErrNoMeasurement means that there is no measurement of that id.
var ErrNoMeasurement = errors.New("no such measurement")

// State is how far a measurement has come.
type State uint8

// The states of a measurement.
const (
	_           State = iota
	Waiting           // for its schedule, or for a free place
	Running           //
	Done              // to its end
	Cancelled         // by a user
	Failed            // Measurement.Error says why
	Interrupted       // cut by a restart of the controller, and not of a kind that goes on
)

var stateNames = [...]string{Waiting: "waiting", Running: "running", Done: "done", Cancelled: "cancelled", Failed: "failed", Interrupted: "interrupted"}

// String gives a lower-case name.
func (s State) String() string {
	if s > 0 && int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText gives String.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *State) UnmarshalText(text []byte) error {
	for i := Waiting; i <= Interrupted; i++ {
		if i.String() == string(text) {
			*s = i
			return nil
		}
	}
	return fmt.Errorf("unknown state %q", text)
}

// Measurement is one run of a program, as a controller knows it.
type Measurement struct {
	// ID is unique, sorts by start, and is safe in file names.
	ID         string     `json:"id"`
	Definition Definition `json:"definition"`
	// Owner is who asked for it.
	Owner string `json:"owner,omitempty"`
	// Parent is the id of the scheduled measurement that this is a run of.
	Parent string    `json:"parent,omitempty"`
	State  State     `json:"state"`
	Error  string    `json:"error,omitempty"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end,omitzero"`
	// Targets is how many there are.
	Targets  int      `json:"targets"`
	Progress Progress `json:"progress"`
}

// Query chooses measurements or results. The zero value chooses all.
type Query struct {
	Measurement string       // id
	Program     ProgramKind  //
	Name        string       // of the measurement
	Target      netip.Prefix // results about targets inside it
	Site        string       // results heard, or sent, there
	From, Until time.Time    //
	Limit       int          // at most so many, the newest measurements or the first results; 0 is no limit
}

// Store keeps measurements and their results. Its methods may be called from several goroutines.
type Store interface {
	// Begin keeps a new measurement and its targets.
	Begin(ctx context.Context, m Measurement, targets []Target) error
	// Append keeps results. They may be written a moment later; Update and Flush write them first.
	Append(ctx context.Context, id string, results []Result) error
	// Update keeps a change of state, error, end and progress.
	Update(ctx context.Context, m Measurement) error
	// Flush writes what is not on the disk yet.
	Flush(ctx context.Context) error
	// Measurements gives those that match, newest first.
	Measurements(ctx context.Context, q Query) ([]Measurement, error)
	// Targets gives those of a measurement, in the order given to Begin.
	Targets(ctx context.Context, id string) ([]Target, error)
	// Results gives those that match, in the order found, until yield returns false.
	Results(ctx context.Context, q Query, yield func(id string, r Result) bool) error
	// Delete forgets a measurement and its results.
	Delete(ctx context.Context, id string) error
}
