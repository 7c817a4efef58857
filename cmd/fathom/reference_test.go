// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every option of a command that has a page in docs/reference stands on that page, and every
// option on the page exists. A group's commands share its page.
func TestReferenceNamesEveryOption(t *testing.T) {
	option := regexp.MustCompile("`--([a-z0-9-]+)`")
	pages := 0
	for _, cmd := range newRootCommand(newTestApp(nil).app).Commands() {
		page := filepath.Join("..", "..", "docs", "reference", cmd.Name()+".md")
		text, err := os.ReadFile(page)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		pages++
		written := make(map[string]bool)
		for _, match := range option.FindAllStringSubmatch(string(text), -1) {
			written[match[1]] = true
		}
		exists := map[string]bool{"help": true, "verbose": true}
		walkCommands(cmd, func(c *cobra.Command) {
			c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
				exists[f.Name] = true
				if f.Name != "help" && !f.Hidden && !written[f.Name] {
					t.Errorf("%s does not tell of the option `--%s` of %q", page, f.Name, c.CommandPath())
				}
			})
		})
		for name := range written {
			if !exists[name] && name != "gtk" && name != "xml" && name != "raw" && name != "split" { // mtr's
				t.Errorf("%s tells of an option `--%s` that does not exist", page, name)
			}
		}
	}
	if pages < 2 {
		t.Errorf("found %d pages only: has docs/reference moved?", pages)
	}
}

// Every option has its own variable, and says what it is for.
func TestOptionsAreWellFormed(t *testing.T) {
	name := regexp.MustCompile("^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
	walkCommands(newRootCommand(newTestApp(nil).app), func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%q has no short help", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !name.MatchString(f.Name) {
				t.Errorf("%q: option --%s makes a bad variable %s", c.CommandPath(), f.Name, envName(f.Name))
			}
			if f.Usage == "" {
				t.Errorf("%q: option --%s has no help", c.CommandPath(), f.Name)
			}
		})
	})
}

func walkCommands(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		walkCommands(sub, visit)
	}
}
