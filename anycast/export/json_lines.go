// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"encoding/json"
	"io"

	"github.com/seed5728abee/fathom/anycast"
)

// newJSON gives an encoder that writes a line per value.
func newJSON(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc
}

// jsonLines is the format with everything in it.
type jsonLines struct {
	enc *json.Encoder
}

func newJSONLines(w io.Writer) *jsonLines { return &jsonLines{newJSON(w)} }

// head begins every line.
type head struct {
	Kind        Kind   `json:"kind"`
	Measurement string `json:"measurement"`
}

func (j *jsonLines) begin(m *anycast.Measurement) error {
	return j.enc.Encode(struct {
		head
		*anycast.Measurement
	}{head{Measurement, m.ID}, m})
}

func (j *jsonLines) write(m *anycast.Measurement, r anycast.Result) error {
	h := head{KindOf(r), m.ID}
	switch r := r.(type) {
	case *anycast.TraceResult:
		return j.enc.Encode(struct {
			head
			*anycast.TraceResult
		}{h, r})
	case *anycast.Catch:
		return j.enc.Encode(struct {
			head
			*anycast.Catch
		}{h, r})
	case *anycast.LatencyResult:
		return j.enc.Encode(struct {
			head
			*anycast.LatencyResult
		}{h, r})
	case *anycast.FlipResult:
		return j.enc.Encode(struct {
			head
			*anycast.FlipResult
		}{h, r})
	case *anycast.Move:
		return j.enc.Encode(struct {
			head
			*anycast.Move
		}{h, r})
	case *anycast.WatchResult:
		return j.enc.Encode(struct {
			head
			*anycast.WatchResult
		}{h, r})
	case *anycast.Summary:
		return j.enc.Encode(struct {
			head
			*anycast.Summary
		}{h, r})
	case *anycast.Alarm:
		return j.enc.Encode(struct {
			head
			*anycast.Alarm
		}{h, r})
	case *anycast.TextResult:
		return j.enc.Encode(struct {
			head
			*anycast.TextResult
		}{h, r})
	}
	return nil
}

func (j *jsonLines) end() error { return nil }
