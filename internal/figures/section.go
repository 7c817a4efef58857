// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// A Section is a part of a benchmark.
type Section struct {
	Name string
	Run  func(context.Context) error
}

// RunSections runs those whose names match, one after the other, and says on standard error which it is.
func RunSections(ctx context.Context, only *regexp.Regexp, sections ...Section) error {
	for _, s := range sections {
		if !only.MatchString(s.Name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s …\n", s.Name)
		if err := s.Run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return nil
}

// BuildFathom builds the program as it is shipped into a directory, and returns its path.
func BuildFathom(ctx context.Context, dir string) (program string, err error) {
	program = filepath.Join(dir, "fathom")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/fathom")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build fathom (run this from the top of the repository): %w\n%s", err, out)
	}
	return program, nil
}
