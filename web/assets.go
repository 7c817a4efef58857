// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

// page is all that a browser loads.
//
//go:embed page
var page embed.FS

//go:embed openapi.yaml
var openAPI []byte

func (h *Handler) servePage(w http.ResponseWriter, r *http.Request) {
	serveFile(w, r, "page/index.html")
}

func (h *Handler) serveAsset(w http.ResponseWriter, r *http.Request) {
	serveFile(w, r, strings.TrimPrefix(path.Clean(r.URL.Path), "/"))
}

func (h *Handler) serveOpenAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/yaml; charset=utf-8")
	writeTagged(w, r, openAPI)
}

// types are those of the page's files. The system's own table may differ, and scripts of the wrong type do not run.
var types = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

func serveFile(w http.ResponseWriter, r *http.Request, name string) {
	data, err := fs.ReadFile(page, name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	kind := types[path.Ext(name)]
	if kind == "" {
		kind = mime.TypeByExtension(path.Ext(name))
	}
	w.Header().Set("Content-Type", kind)
	writeTagged(w, r, data)
}

// writeTagged lets browsers keep what has not changed: they ask each time, and a new version shows at once.
func writeTagged(w http.ResponseWriter, r *http.Request, data []byte) {
	sum := sha256.Sum256(data)
	tag := `"` + hex.EncodeToString(sum[:12]) + `"`
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(data)
}
