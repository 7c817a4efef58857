// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/seed5728abee/fathom/lab"
)

// TestMain also fails when some goroutine outlives the tests.
func TestMain(m *testing.M) {
	if address := os.Getenv(processVariable); address != "" {
		os.Exit(process(address))
	}
	code := lab.Main(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
