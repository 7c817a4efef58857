// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Package ringtest runs whole rings on a simulated network, and knows what is right: who owns a key, and whether every
// member knows its neighbours. Tests and the simulation use it in a bubble of testing/synctest.
package ringtest
