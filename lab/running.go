// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"net/netip"
	"os"
	"time"
)

// Status describes a running lab.
type Status struct {
	Name    string       `json:"name"`
	PID     int          `json:"pid"` // of the process that holds it
	Started time.Time    `json:"started"`
	Nodes   []NodeStatus `json:"nodes"` // by name
	Wires   []WireStatus `json:"wires"` // in the order of the topology
}

// NodeStatus describes a node of a running lab.
type NodeStatus struct {
	Name      string       `json:"name"`
	Kind      string       `json:"kind"`
	UserSpace bool         `json:"user_space,omitempty"` // forwards in user space
	Addresses []netip.Addr `json:"addresses"`
	// Announce are its prefixes that are withdrawn, or announced at a cost.
	Announce []AnnounceConfig `json:"announce,omitempty"`
}

// WireStatus describes a wire of a running lab.
type WireStatus struct {
	Ends     [2]string `json:"ends"`
	Plain    bool      `json:"plain"`              // a bare veth pair
	Forward  string    `json:"forward,omitempty"`  // impairment from the first end to the second, in words
	Backward string    `json:"backward,omitempty"` // and back
}

// ExecRequest says what [Client.Exec] runs.
type ExecRequest struct {
	Host string
	Path string   // of the program; nothing is searched for
	Args []string // the program's name first
	Env  []string
	Dir  string
	// Unprivileged runs the command without capabilities.
	Unprivileged bool
	// Stdin, Stdout and Stderr are handed to the command itself. If the first two are terminals the
	// command gets a terminal of its own, on which job control works.
	Stdin, Stdout, Stderr *os.File
}

// request is the first thing on a connection to a lab's control socket: one JSON value, with the
// command's three standard streams attached to it when Exec is set.
type request struct {
	Op    string       `json:"op"`
	Exec  *execMessage `json:"exec,omitempty"`
	Set   *setMessage  `json:"set,omitempty"`
	Graph string       `json:"graph,omitempty"` // format

	Announce *announceMessage `json:"announce,omitempty"`
}

// The operations of a request.
const (
	opStatus = "status"
	opExec   = "exec"
	opSet    = "set"
	opGraph  = "graph"
	opDown   = "down"

	opAnnounce = "announce"
)

type execMessage struct {
	Host         string   `json:"host"`
	Path         string   `json:"path"`
	Args         []string `json:"args"`
	Env          []string `json:"env"`
	Dir          string   `json:"dir"`
	Terminal     bool     `json:"terminal,omitempty"`
	Unprivileged bool     `json:"unprivileged,omitempty"`
}

type setMessage struct {
	From   string            `json:"from"`
	To     string            `json:"to"`
	OneWay bool              `json:"one_way,omitempty"`
	Fields map[string]string `json:"fields"`
}

type announceMessage struct {
	Node     string          `json:"node"`
	Withdraw bool            `json:"withdraw,omitempty"`
	Options  AnnounceOptions `json:"options"`
}

// signalMessage follows the request of a command, as often as there are signals to hand on.
type signalMessage struct {
	Signal int `json:"signal"`
}

// response is the one answer to a request.
type response struct {
	Error  string          `json:"error,omitempty"`
	Code   string          `json:"code,omitempty"` // of errorCodes
	Exit   int             `json:"exit,omitempty"`
	Text   string          `json:"text,omitempty"`
	Status json.RawMessage `json:"status,omitempty"`
}

// errorCodes carry sentinel errors over the control socket.
var errorCodes = map[string]error{
	"topology":      ErrTopology,
	"no-node":       ErrNoNode,
	"no-wire":       ErrNoWire,
	"not-held":      ErrNotHeld,
	"plain-wire":    ErrPlainWire,
	"kernel-router": ErrKernelRouter,
}

// remoteError is an error that a lab answered with.
type remoteError struct {
	text string
	is   error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }
