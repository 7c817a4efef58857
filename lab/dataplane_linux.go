// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import "errors"

// Wire is a running wire.
type Wire struct{ config *WireConfig }

func (w *Wire) close() error { return nil }

// Router is a running user-space router or NAT.
type Router struct{}

func (r *Router) close() error { return nil }

func (l *Lab) startWire(i int, inner [2]string) error { return errors.ErrUnsupported }

func (l *Lab) startRouter(h *Host) error { return errors.ErrUnsupported }
