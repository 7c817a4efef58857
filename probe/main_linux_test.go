// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/seed5728abee/fathom/lab"
)

// TestMain also fails when some goroutine outlives the tests.
func TestMain(m *testing.M) {
	switch os.Getenv(dropVariable) {
	case "drop":
		os.Exit(dropAndRun())
	case "show":
		os.Exit(showPrivileges())
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
