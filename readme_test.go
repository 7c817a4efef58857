// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package fathom_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// blocks gives the code blocks of a document that are in the given language.
func blocks(text, language string) []string {
	var out []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```").FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// buildProgram builds cmd/fathom and gives the folder that it is in.
func buildProgram(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "fathom"), "./cmd/fathom").CombinedOutput()
	if err != nil {
		t.Fatalf("go build ./cmd/fathom: %v\n%s", err, out)
	}
	return dir
}

// commandLines gives the calls of fathom in a document's shell blocks, one of several in a line included:
// fathom lab exec HOST fathom trace is two.
func commandLines(text string) [][]string {
	var calls [][]string
	for _, block := range blocks(text, "sh") {
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(line, " #")
			words := strings.Fields(line)
			for len(words) > 0 {
				at := slices.Index(words, "fathom")
				if at < 0 {
					break
				}
				words = words[at+1:]
				end := slices.Index(words, "fathom")
				if end < 0 {
					end = len(words)
				}
				calls = append(calls, words[:end])
			}
		}
	}
	return calls
}

// TestDocumentedCommands holds that the commands and options that documents use exist.
func TestDocumentedCommands(t *testing.T) {
	program := filepath.Join(buildProgram(t), "fathom")
	found := 0
	for name, text := range documents(t) {
		for _, call := range commandLines(text) {
			found++
			line := "fathom " + strings.Join(call, " ")
			topic := append([]string{"help"}, call...)
			if i := slices.IndexFunc(topic, func(w string) bool { return strings.HasPrefix(w, "-") }); i >= 0 {
				topic = topic[:i]
			}
			out, err := exec.Command(program, topic...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "Usage:\n  fathom "+call[0]) {
				t.Errorf("%s: %q: no such command (%v)", name, line, err)
				continue
			}
			for _, word := range call {
				option, _, _ := strings.Cut(word, "=")
				if strings.HasPrefix(option, "--") && !regexp.MustCompile(regexp.QuoteMeta(option)+`\b`).Match(out) {
					t.Errorf("%s: %q: no such option %s", name, line, option)
				}
			}
		}
	}
	if found == 0 {
		t.Error("found no command in any document")
	}
}

// TestDocumentedPrograms compiles the programs of the documents, as a stranger would who pastes them.
func TestDocumentedPrograms(t *testing.T) {
	var names, programs []string
	for name, text := range documents(t) {
		for _, block := range blocks(text, "go") {
			if strings.HasPrefix(block, "package main\n") {
				names, programs = append(names, name), append(programs, block)
			}
		}
	}
	if !slices.Contains(names, "README.md") {
		t.Fatal("README.md shows no program")
	}
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for i, program := range programs {
		// The overlay makes a folder of the module that is not there.
		dir := t.TempDir()
		source, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json")
		data, err := json.Marshal(map[string]any{
			"Replace": map[string]string{filepath.Join(root, "readme_program", "main.go"): source},
		})
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{source: []byte(program), overlay: data} {
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("go", "build", "-overlay", overlay, "-o", os.DevNull, "./readme_program").CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s\n%s", names[i], err, out, program)
		}
	}
}

// TestReadmeTour runs the tour of the README, word for word, in the lab that it builds:
//
//	                     +-- north 10.0.2.2 --+
//	home ---- gateway ---+                     +---- core ---- silent ---- mast ~~~~ server 192.0.2.1
//	                     +-- south 10.0.3.2 --+
func TestReadmeTour(t *testing.T) {
	if out, err := exec.Command("unshare", "--user", "--map-root-user", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("needs user and network namespaces: %v: %s", err, out)
	}
	i := slices.IndexFunc(blocks(documents(t)["README.md"], "sh"), func(b string) bool { return strings.HasPrefix(b, "fathom lab up") })
	if i < 0 {
		t.Fatal("README.md has no tour that starts with fathom lab up")
	}
	tour := blocks(documents(t)["README.md"], "sh")[i]
	bin := buildProgram(t)
	// Where labs keep what names them: not among those of the user who runs the tests.
	env := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "XDG_RUNTIME_DIR="+t.TempDir())
	run := func(line string) (string, error) {
		cmd := exec.Command("sh", "-c", line)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() { _, _ = run("fathom lab down") })
	for line := range strings.Lines(tour) {
		// A multipath trace misses a way with the probability it states: once in 200 here, but not thrice.
		for try := 1; ; try++ {
			out, err := run(line)
			t.Logf("$ %s%s", line, out)
			if err != nil {
				t.Fatalf("%s: %v", strings.TrimSpace(line), err)
			}
			missed := ""
			for _, hop := range []string{`north|10\.0\.2\.2`, `south|10\.0\.3\.2`, `192\.0\.2\.1`} {
				if strings.Contains(line, "--multipath") && !regexp.MustCompile(hop).MatchString(out) {
					missed = hop
				}
			}
			if missed == "" {
				break
			}
			if try == 3 {
				t.Fatalf("the multipath trace did not find %s", missed)
			}
		}
	}
}
