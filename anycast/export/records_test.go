// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/export"
	"github.com/seed5728abee/fathom/store"
)

func TestRecordsOfAStore(t *testing.T) {
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	trace, catchment := measurement("a-trace", anycast.KindTrace), measurement("a-catchment", anycast.KindCatchment)
	text := measurement("a-text", anycast.KindVolta)
	text.Definition.Protocol = 0 // a text has none
	_, r := scampers()
	for m, results := range map[*anycast.Measurement][]anycast.Result{
		trace: {r, &anycast.Summary{}}, catchment: {everything()[1], everything()[2], &anycast.Summary{}}, text: {&anycast.TextResult{Code: 200}},
	} {
		if err := s.Begin(t.Context(), *m, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Append(t.Context(), m.ID, results); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		f    export.Format
		k    export.Kind
		q    anycast.Query
		same []byte
	}{
		{"warts", export.Warts, "", anycast.Query{Program: anycast.KindTrace}, write(t, export.Warts, "", all(trace, r))},
		{"a kind", export.ScamperJSON, export.Trace, anycast.Query{}, write(t, export.ScamperJSON, "", all(trace, r))},
		{"a measurement", export.CSV, "", anycast.Query{Measurement: "a-catchment"}, write(t, export.CSV, export.Catch, all(catchment, everything()[1:3]...))},
		{
			"a later time", export.CSV, export.Catch,
			anycast.Query{From: start.Add(1)},
			write(t, export.CSV, export.Catch, all(catchment, everything()[2])),
		},
		{"a limit", export.CSV, export.Catch, anycast.Query{Measurement: "a-catchment", Limit: 1}, write(t, export.CSV, export.Catch, all(catchment, everything()[1]))},
		{"text", export.CSV, "", anycast.Query{Program: anycast.KindVolta}, write(t, export.CSV, export.Text, all(text, &anycast.TextResult{Code: 200}))},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := write(t, test.f, test.k, export.Records(t.Context(), s, test.q))
			if diff := cmp.Diff(string(test.same), string(got)); diff != "" {
				t.Errorf("-given +kept:\n%s", diff)
			}
		})
	}
	if got := write(t, export.JSONLines, "", export.Records(t.Context(), s, anycast.Query{})); bytes.Count(got, []byte("\n")) != 3+6 {
		t.Errorf("got\n%s\nwant 3 measurements and 6 results", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := export.Write(&bytes.Buffer{}, export.CSV, export.Catch, export.Records(ctx, s, anycast.Query{})); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	err = export.Write(&bytes.Buffer{}, export.CSV, export.Catch, export.Records(t.Context(), s, anycast.Query{Measurement: "none"}))
	if !errors.Is(err, anycast.ErrNoMeasurement) {
		t.Errorf("got %v, want ErrNoMeasurement", err)
	}
	n := 0
	for range export.Records(t.Context(), s, anycast.Query{}) {
		if n++; n == 2 {
			break
		}
	}
}
