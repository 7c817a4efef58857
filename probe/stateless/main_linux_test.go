// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package stateless

import (
	"os"
	"testing"

	"github.com/seed5728abee/fathom/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
