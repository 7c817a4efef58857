// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics

import (
	"strconv"
	"unicode/utf8"
)

const lowerHex = "0123456789abcdef"

// AppendPrintable appends bytes from the network as text that does a terminal no harm, at most
// limit bytes of it; it ends in "…" (three bytes) if that is not all. Control
// and invisible characters, and bytes that are not UTF-8, appear as in Go: \x1b, \u202e. A backslash is
// doubled, so that the text can be told from what it stands for.
func AppendPrintable[T []byte | string](dst []byte, text T, limit int) []byte {
	const more = "…"
	start, cut := len(dst), len(dst) // cut: where "…" still fits
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(string(text[:min(len(text), utf8.UTFMax)]))
		switch {
		case r == utf8.RuneError && n == 1:
			dst = append(dst, '\\', 'x', lowerHex[text[0]>>4], lowerHex[text[0]&15])
		case r == '\\':
			dst = append(dst, `\\`...)
		case strconv.IsPrint(r):
			dst = utf8.AppendRune(dst, r)
		case r < 0x80:
			dst = append(dst, '\\', 'x', lowerHex[r>>4], lowerHex[r&15])
		default:
			quoted := strconv.AppendQuoteRuneToASCII(nil, r) // '\u202e'
			dst = append(dst, quoted[1:len(quoted)-1]...)
		}
		text = text[n:]
		if len(dst)-start > limit {
			dst = dst[:cut]
			if limit >= len(more) {
				dst = append(dst, more...)
			}
			return dst
		}
		if len(dst)-start <= limit-len(more) {
			cut = len(dst)
		}
	}
	return dst
}
