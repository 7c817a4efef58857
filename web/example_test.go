// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/web"
)

// archive is a source of one measurement that is over.
type archive struct {
	measurement anycast.Measurement
	results     []anycast.Result
}

func (a *archive) Sites() []anycast.Site { return nil }

func (a *archive) Measurements(context.Context, anycast.Query) ([]anycast.Measurement, error) {
	return []anycast.Measurement{a.measurement}, nil
}

func (a *archive) Results(_ context.Context, _ anycast.Query, yield func(string, anycast.Result) bool) error {
	for _, r := range a.results {
		if !yield(a.measurement.ID, r) {
			break
		}
	}
	return nil
}

func (a *archive) Follow(_ context.Context, _ string, yield func(web.Event) error) error {
	if err := yield(web.Event{Results: a.results}); err != nil {
		return err
	}
	return yield(web.Event{Measurement: &a.measurement})
}

func Example() {
	source := &archive{
		measurement: anycast.Measurement{ID: "1", Definition: anycast.Definition{Program: anycast.KindCatchment}, State: anycast.Done},
		results: []anycast.Result{
			&anycast.Catch{Target: netip.MustParseAddr("203.0.113.7"), Sender: "fra", Receiver: "nyc", Status: probe.Replied},
		},
	}
	h, err := web.New(web.Options{Source: source, Token: "open sesame"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer h.Close()

	// In a program: an http.Server with this handler. Here: one request.
	r := httptest.NewRequest(http.MethodGet, "http://localhost/api/measurements/1/networks", nil)
	r.Header.Set("Authorization", "Bearer open sesame")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body, err := io.ReadAll(w.Result().Body)
	fmt.Println(w.Code, string(body), err)
	// Output: 200 {"networks":[{"network":"203.0.113.0/24","site":"nyc","seen":{"nyc":1},"probes":1}],"total":1,"offset":0} <nil>
}
