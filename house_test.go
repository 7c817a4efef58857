// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package fathom_test checks the habits of the whole repository: which way imports go, what every
// package and file must have, and that what the documents say about the repository is so.
package fathom_test

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/seed5728abee/fathom"

// house is the order of the folders, from the top of the page to its bottom. A folder imports only
// from lower rows: what two folders of one row both need moves down.
var house = [][]string{
	{"cmd/fathom", "cmd/mtr-packet", "internal/benchanycast", "internal/benchpeers", "internal/benchrelay", "internal/benchswarm", "internal/simswarm", "examples/anycast-program"},
	{"web"},
	{"store"},
	{"anycast", "relay", "swarm"},
	{"trace", "nat"},
	{"probe"},
	{"internal/labnet"},
	{"lab"},
	{"packet", "internal/rawio", "internal/figures"},
}

// A ban keeps an import out of some folders.
type ban struct {
	imports string   // an import path; it covers everything below it
	except  []string // folders where it is welcome
	only    []string // folders the ban is for; all when empty
	tests   bool     // the ban is for tests as well
	reason  string
}

var bans = []ban{
	{
		imports: "unsafe", except: []string{"internal/rawio", "lab", "flow", "anycast/volta/anycastpb", "anycast/measurepb"},
		reason: "memory is handled by hand only where the kernel or shared memory demands it",
	},
	{
		imports: "C", tests: true,
		reason: "one static binary that cross-compiles: no cgo",
	},
	{
		imports: "net", only: []string{"packet"},
		reason: "codecs do no I/O; their addresses are net/netip",
	},
	{
		imports: "os", only: []string{"packet"},
		reason: "codecs do no I/O",
	},
	{
		imports: module + "/lab", only: []string{"trace", "probe", "cmd/mtr-packet"},
		reason: "measuring needs no lab; only tests do",
	},
	{
		imports: module + "/packet", only: []string{"internal/rawio"},
		reason: "the engine room carries bytes and knows no protocol",
	},
	{
		imports: "github.com/spf13", except: []string{"cmd/fathom"},
		reason: "only the program has a command line; mtr-packet takes no options and stays small",
	},
	{
		imports: "charm.land", except: []string{"cmd/fathom"},
		reason: "only the program has a terminal",
	},
	{
		imports: "net/http", only: []string{"packet", "internal/rawio", "lab", "probe", "trace", "cmd/mtr-packet"},
		reason: "measuring serves no pages, and the privileged helper stays small",
	},
	{
		imports: "github.com/vishvananda", except: []string{"lab", "internal/benchpeers", "internal/rawio"},
		reason: "only the lab changes links, addresses and routes, and the comparison inside its lab; the engine room looks them up for those above",
	},
	{
		imports: "github.com/gopacket/gopacket", except: []string{"internal/benchpeers"},
		reason: "package packet decodes ten times faster and without allocation; gopacket is its oracle in tests",
	},
	{
		imports: "github.com/google/gopacket", tests: true,
		reason: "unmaintained since 2020; its successor is github.com/gopacket/gopacket",
	},
	{
		imports: "github.com/quic-go/quic-go", except: []string{"nat/punch"}, tests: true,
		reason: "QUIC is what makes a stream of a punched UDP path (docs/adr/0011); others use that stream",
	},
	{
		imports: "tailscale.com", tests: true,
		reason: "an overlay to learn from; it needs a newer Go than ours and brings hundreds of packages",
	},
	{
		imports: "github.com/stretchr/testify", tests: true,
		reason: "tests use the testing package and go-cmp, one habit everywhere",
	},
	{
		imports: "github.com/spf13/viper", tests: true,
		reason: "options read the environment in cmd/fathom/env.go; files are TOML decoded strictly",
	},
	{
		imports: "gopkg.in/yaml.v3", tests: true,
		reason: "unmaintained, and every file of Fathom is TOML",
	},
	{
		imports: "math/rand", tests: true,
		reason: "math/rand/v2 has better generators and explicit seeds",
	},
	{
		imports: "log",
		reason:  "logs are structured: log/slog",
	},
}

// allows tells whether an import of what the ban names is welcome in a file.
func (b ban) allows(f *file) bool {
	if f.test && !b.tests || slices.ContainsFunc(b.except, f.in) {
		return true
	}
	return len(b.only) > 0 && !slices.ContainsFunc(b.only, f.in)
}

func (b ban) covers(importPath string) bool {
	// Below a package of the standard library are different packages: net/netip is not net.
	if !strings.Contains(b.imports, ".") {
		return importPath == b.imports
	}
	return within(importPath, b.imports)
}

// file is one Go file of the module.
type file struct {
	name string // slash-separated, from the root of the repository
	dir  string
	test bool
	data []byte
	ast  *ast.File
	fset *token.FileSet
}

func (f *file) in(folder string) bool { return within(f.dir, folder) }

func (f *file) imports() []string {
	var paths []string
	for _, spec := range f.ast.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		paths = append(paths, p)
	}
	return paths
}

// within tells whether a slash-separated path is root or below it.
func within(p, root string) bool {
	rest, ok := strings.CutPrefix(p, root)
	return ok && (rest == "" || rest[0] == '/')
}

// tree gives every regular file of the repository, without what is built or belongs to git.
func tree(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (name == ".git" || name == "build") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			names = append(names, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// goFiles parses every Go file of the module, for whatever system it is meant.
func goFiles(t *testing.T) []*file {
	t.Helper()
	var files []*file
	for _, name := range tree(t) {
		if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f := &file{
			name: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"),
			data: data, fset: token.NewFileSet(),
		}
		if f.ast, err = parser.ParseFile(f.fset, name, data, parser.ParseComments|parser.SkipObjectResolution); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		t.Fatal("found no Go files")
	}
	return files
}

// row finds a folder on the page of the house, or gives -1.
func row(dir string) int {
	return slices.IndexFunc(house, func(folders []string) bool {
		return slices.ContainsFunc(folders, func(folder string) bool { return within(dir, folder) })
	})
}

// folder is the part of dir that stands on the page.
func folder(dir string) string {
	for _, folders := range house {
		for _, f := range folders {
			if within(dir, f) {
				return f
			}
		}
	}
	return ""
}

func TestImportsGoDown(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.dir == "." {
			continue
		}
		from := row(f.dir)
		if from < 0 {
			t.Errorf("%s: folder %s has no place in the house; give it one here and in docs/architecture.md", f.name, f.dir)
			continue
		}
		if f.test {
			continue // tests may use the lab and their own subject's users
		}
		for _, imported := range f.imports() {
			dir, ok := strings.CutPrefix(imported, module+"/")
			if !ok || folder(dir) == folder(f.dir) {
				continue
			}
			if row(dir) <= from {
				t.Errorf("%s imports %s: imports go down the page, never up or sideways; move what both need further down", f.name, dir)
			}
		}
	}
}

func TestBannedImports(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, imported := range f.imports() {
			for _, b := range bans {
				if b.covers(imported) && !b.allows(f) {
					t.Errorf("%s imports %s: %s", f.name, imported, b.reason)
				}
			}
		}
	}
}

// TestSystemCalls keeps calls into the kernel in the folders that are made for them. Constants and
// error numbers are welcome everywhere; so are conversions to the types of those packages.
func TestSystemCalls(t *testing.T) {
	// mtr-packet is a loop around a pipe and the dropping of privileges; benchpeers is the bare loop, and benchanycast sends signals.
	home := []string{"internal/rawio", "lab", "flow", "cmd/mtr-packet", "internal/benchanycast", "internal/benchpeers"}
	pure := []string{"Errno", "Signal", "ErrnoName", "SignalName", "ByteSliceToString", "Htons", "Ntohs"}
	for _, f := range goFiles(t) {
		if f.test || slices.ContainsFunc(home, f.in) {
			continue
		}
		names := map[string]bool{}
		for _, spec := range f.ast.Imports {
			p, _ := strconv.Unquote(spec.Path.Value)
			if p != "syscall" && !within(p, "golang.org/x/sys") {
				continue
			}
			name := path.Base(p)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			names[name] = true
		}
		if len(names) == 0 {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && names[pkg.Name] && !slices.Contains(pure, sel.Sel.Name) {
				t.Errorf("%s: %s.%s: system calls live in %s, behind an interface that other systems can share",
					f.fset.Position(call.Pos()), pkg.Name, sel.Sel.Name, strings.Join(home, ", "))
			}
			return true
		})
	}
}

func TestPackagesDocumented(t *testing.T) {
	type pkg struct {
		name string
		doc  *file
	}
	packages := map[string]*pkg{}
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		p := packages[f.dir]
		if p == nil {
			p = &pkg{name: f.ast.Name.Name}
			packages[f.dir] = p
		}
		if path.Base(f.name) == "doc.go" {
			p.doc = f
		} else if f.ast.Doc != nil {
			t.Errorf("%s: the package comment belongs in %s/doc.go", f.name, f.dir)
		}
	}
	for dir, p := range packages {
		if p.doc == nil {
			t.Errorf("%s has no doc.go: say what the package is, what it promises, and show the smallest use", dir)
			continue
		}
		want := "Package " + p.name + " "
		if p.name == "main" {
			want = "Command " + path.Base(dir) + " "
		}
		if text := p.doc.ast.Doc.Text(); !strings.HasPrefix(text, want) {
			t.Errorf("%s: the package comment starts %.30q, want %q", p.doc.name, text, want)
		}
	}
}

func TestPackageNames(t *testing.T) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "shared"}
	for _, f := range goFiles(t) {
		if slices.Contains(vague, f.ast.Name.Name) {
			t.Errorf("%s: package %s: name a package for what it is, not for being of use", f.name, f.ast.Name.Name)
		}
	}
}

// TestFuzzCoverage holds that every decoder, a function from bytes to a value or an error, is named
// in a test file of its package that has a fuzz target.
func TestFuzzCoverage(t *testing.T) {
	decoders := map[string][]string{} // by folder
	fuzzers := map[string][]byte{}
	for _, f := range goFiles(t) {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil {
				continue
			}
			switch name := fn.Name.Name; {
			case f.test && strings.HasPrefix(name, "Fuzz"):
				fuzzers[f.dir] = append(fuzzers[f.dir], f.data...)
			case !f.test && fn.Name.IsExported() && decodes(fn.Type):
				decoders[f.dir] = append(decoders[f.dir], name)
			}
		}
	}
	if len(decoders["packet"]) == 0 {
		t.Error("found no decoder in packet: this test no longer sees what it is for")
	}
	for dir, names := range decoders {
		for _, name := range names {
			if !bytes.Contains(fuzzers[dir], []byte(name+"(")) {
				t.Errorf("%s.%s decodes bytes from outside, but no fuzz target's file calls it", dir, name)
			}
		}
	}
}

// decodes recognizes func([]byte, ...) (..., error).
func decodes(fn *ast.FuncType) bool {
	if fn.Params.NumFields() == 0 || fn.Results.NumFields() < 2 {
		return false
	}
	array, ok := fn.Params.List[0].Type.(*ast.ArrayType)
	if !ok || array.Len != nil {
		return false
	}
	elem, ok := array.Elt.(*ast.Ident)
	last, isIdent := fn.Results.List[len(fn.Results.List)-1].Type.(*ast.Ident)
	// An append-style encoder has the same shape, but returns bytes.
	_, encodes := fn.Results.List[0].Type.(*ast.ArrayType)
	return ok && elem.Name == "byte" && isIdent && last.Name == "error" && !encodes
}

func TestLicenceHeaders(t *testing.T) {
	lines := []string{"Copyright The Fathom Authors", "SPDX-License-Identifier: Apache-2.0"}
	for _, name := range tree(t) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		mark := "# "
		switch path.Ext(name) {
		case ".go", ".proto":
			mark = "// "
		case ".yml", ".yaml", ".sh":
		default:
			if !bytes.HasPrefix(data, []byte("#!")) && path.Base(name) != "Makefile" {
				continue
			}
		}
		if bytes.HasPrefix(data, []byte("#!")) {
			_, data, _ = bytes.Cut(data, []byte("\n"))
		}
		want := mark + lines[0] + "\n" + mark + lines[1] + "\n"
		if !bytes.HasPrefix(data, []byte(want)) {
			t.Errorf("%s does not begin with\n%s", name, want)
		} else if rest := data[len(want):]; path.Ext(name) == ".go" && !bytes.HasPrefix(rest, []byte("\n")) {
			t.Errorf("%s: no empty line after the licence header, so that it becomes documentation", name)
		}
	}
}

// TestNoTraceOfMachines keeps the places where somebody happened to work out of the repository.
func TestNoTraceOfMachines(t *testing.T) {
	traces := regexp.MustCompile(`(?:^|[\s"'=(:` + "`" + `])/(?:root|home|work|Users)/[\w.]` +
		`|\b(?:proxy\.golang\.org|sum\.golang\.org|goproxy\.\w+|deb\.debian\.org|registry\.npmjs\.org|pypi\.org)\b`)
	for _, name := range tree(t) {
		if name == "house_test.go" {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(data, 0) >= 0 {
			continue // not text
		}
		line := 0
		for s := range bytes.Lines(data) {
			line++
			if m := traces.Find(s); m != nil {
				t.Errorf("%s:%d: names a machine's path or a registry: %q", name, line, m)
			}
		}
	}
}

// documents gives the Markdown files and their text.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, name := range tree(t) {
		if path.Ext(name) == ".md" && !strings.Contains(name, "testdata/") {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			docs[name] = string(data)
		}
	}
	return docs
}

// makeTargets gives the targets of the Makefile that help lists.
func makeTargets(t *testing.T) map[string]bool {
	t.Helper()
	data, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+):.*## `).FindAllSubmatch(data, -1) {
		targets[string(m[1])] = true
	}
	return targets
}

func TestMakeTargets(t *testing.T) {
	targets := makeTargets(t)
	for _, name := range []string{"build", "demo", "test", "race", "fuzz", "bench", "bench-peers", "lint", "cross"} {
		if !targets[name] {
			t.Errorf("make %s is not in the Makefile, or has no description", name)
		}
	}
	// In code: `make x` or a line of a block. In prose "make" is only a verb.
	mention := regexp.MustCompile("(?m)(?:`|^(?:\\$ )?)make ([a-z-]+)")
	for name, text := range documents(t) {
		for _, m := range mention.FindAllStringSubmatch(text, -1) {
			if !targets[m[1]] {
				t.Errorf("%s: the Makefile has no target %s", name, m[1])
			}
		}
	}
	ci, err := os.ReadFile(".ci/run")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^step .*\bmake ([a-z-]+)`).FindAllSubmatch(ci, -1) {
		if !targets[string(m[1])] {
			t.Errorf(".ci/run: the Makefile has no target %s", m[1])
		}
	}
	if !bytes.Contains(ci, []byte("make test\n")) {
		t.Error(".ci/run does not run the command that README gives for the tests")
	}
}

// TestLinks holds that every relative link of a document leads to something.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			at := name
			if target != "" {
				at = path.Join(path.Dir(name), target)
				if _, err := os.Stat(at); err != nil {
					t.Errorf("%s links to %s: %v", name, m[1], err)
					continue
				}
			}
			if anchor != "" && path.Ext(at) == ".md" && !slices.Contains(anchors(documents(t)[at]), anchor) {
				t.Errorf("%s links to %s, but %s has no such heading", name, m[1], at)
			}
		}
	}
}

// anchors gives the fragment names that renderers make of a document's headings.
func anchors(text string) []string {
	var names []string
	s := bufio.NewScanner(strings.NewReader(text))
	for s.Scan() {
		heading := strings.TrimLeft(s.Text(), "#")
		if len(heading) == len(s.Text()) || !strings.HasPrefix(heading, " ") {
			continue
		}
		heading = strings.ToLower(strings.TrimSpace(heading))
		heading = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(heading, "")
		names = append(names, strings.ReplaceAll(heading, " ", "-"))
	}
	return names
}

// TestIndexes holds that a reader of docs/README.md can reach every document.
func TestIndexes(t *testing.T) {
	docs := documents(t)
	reached := map[string]bool{}
	queue := []string{"docs/README.md"}
	link := regexp.MustCompile(`\]\(([^)#\s]+)`)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if reached[name] {
			continue
		}
		reached[name] = true
		for _, m := range link.FindAllStringSubmatch(docs[name], -1) {
			if to := path.Join(path.Dir(name), m[1]); docs[to] != "" && strings.HasPrefix(to, "docs/") {
				queue = append(queue, to)
			}
		}
	}
	for name := range docs {
		if strings.HasPrefix(name, "docs/") && !reached[name] {
			t.Errorf("%s cannot be reached from docs/README.md", name)
		}
	}
}

// TestArchitecture holds that the map in docs/architecture.md shows the folders that exist, in
// the order that the imports have.
func TestArchitecture(t *testing.T) {
	text := documents(t)["docs/architecture.md"]
	last := -1
	for _, folders := range house {
		for _, name := range folders {
			if _, err := os.Stat(name); err != nil {
				t.Errorf("the house has no folder %s: %v", name, err)
			}
			at := strings.Index(text, fmt.Sprintf("\n%s/ ", name))
			if at < 0 {
				t.Errorf("docs/architecture.md does not map %s/", name)
			} else if at < last {
				t.Errorf("docs/architecture.md: %s/ stands above a folder that may import it", name)
			}
			last = max(last, at)
		}
	}
}
