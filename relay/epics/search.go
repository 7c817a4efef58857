// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package epics

import "iter"

// A Search is a name that a client searches for.
type Search struct {
	ID   uint32 // the client's identifier
	Name []byte // not empty; a part of the datagram
}

// Searches goes through the names that the datagram of a client searches for. It does not
// allocate. It ends at the first message that is malformed; [Valid] tells beforehand that there is none.
func Searches(p Protocol, payload []byte) iter.Seq[Search] {
	return func(yield func(Search) bool) { eachSearch(p, payload, yield) }
}

func eachSearch(p Protocol, b []byte, yield func(Search) bool) {
	for len(b) > 0 {
		switch p {
		case ChannelAccess:
			m, rest, err := ParseCA(b)
			if err != nil || m.IsRequest() && !yield(Search{ID: m.ID(), Name: m.Name()}) {
				return
			}
			b = rest
		case PVAccess:
			m, rest, err := ParsePVA(b)
			if err != nil {
				return
			}
			if m.Command != PVACommandSearch {
				if m.valid() != nil {
					return
				}
				b = rest
				continue
			}
			s, err := m.Search()
			if err != nil {
				return
			}
			for id, name := range s.Names() {
				if !yield(Search{ID: id, Name: name}) {
					return
				}
			}
			b = rest
		default:
			return
		}
	}
}
