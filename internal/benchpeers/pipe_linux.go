// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

// pipe drives an mtr-packet over its pipes with window probes in flight, for a time.
func (b *bench) pipe(ctx context.Context, program string, window int, d time.Duration) (outcome, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return outcome{}, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return outcome{}, err
	}
	defer inW.Close()
	defer outR.Close()
	c := b.lab.Host("a").Command(ctx, program)
	c.Args[0] = "mtr-packet"
	c.Stdin, c.Stdout, c.Stderr = inR, outW, os.Stderr
	c.Env = append(os.Environ(), "FATHOM_MTR_PROBES=16384")
	err = c.Start()
	inR.Close()
	outW.Close()
	if err != nil {
		return outcome{}, err
	}
	tail := []byte(" send-probe ip-4 " + b.lab.Host("b").Addr().String() + " timeout 5\n")
	token := 0
	var cmds []byte
	commands := func(n int) error {
		cmds = cmds[:0]
		for range n {
			token = token%1000000 + 1
			cmds = append(strconv.AppendInt(cmds, int64(token), 10), tail...)
		}
		_, err := inW.Write(cmds)
		return err
	}
	// A first probe by itself: start-up and the neighbour table do not count.
	buf := make([]byte, 1<<16)
	if err := commands(1); err != nil {
		return outcome{}, err
	}
	if _, err := outR.Read(buf); err != nil {
		return outcome{}, err
	}
	var o outcome
	start := time.Now()
	// Writing and reading take turns in the prober; a driver that did both in one
	// goroutine would wait for it while it waits for us, both pipes full.
	wanted := make(chan int, 1<<16)
	writeErr := make(chan error, 1)
	go func() {
		var err error
		for n := range wanted {
			for more := true; more; { // what has come together goes out together
				select {
				case k, ok := <-wanted:
					n += k
					more = ok
				default:
					more = false
				}
			}
			for ; n > 0 && err == nil; n -= 500 {
				err = commands(min(n, 500))
			}
		}
		writeErr <- err
	}()
	wanted <- window
	closed := false
	flying := window
	reply := []byte(" reply ")
	var rest []byte
	for flying > 0 {
		n, err := outR.Read(buf)
		if err != nil {
			return o, fmt.Errorf("%s: read replies: %w", program, err)
		}
		data := buf[:n]
		if len(rest) > 0 {
			data = append(rest, data...)
		}
		end := bytes.LastIndexByte(data, '\n') + 1
		lines := bytes.Count(data[:end], []byte{'\n'})
		good := bytes.Count(data[:end], reply)
		rest = append([]byte(nil), data[end:]...)
		o.Answered += good
		o.Failed += lines - good
		if time.Since(start) < d {
			wanted <- lines
			continue
		}
		if !closed {
			closed = true
			close(wanted)
		}
		flying -= lines
	}
	o.Elapsed = time.Since(start)
	if err := <-writeErr; err != nil {
		return o, fmt.Errorf("%s: write commands: %w", program, err)
	}
	inW.Close()
	if err := c.Wait(); err != nil {
		return o, fmt.Errorf("%s: %w", program, err)
	}
	o.CPU = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	if o.Failed > o.Answered/1000 {
		return o, fmt.Errorf("%s with %d in flight: %d of %d probes failed", program, window, o.Failed, o.Answered+o.Failed)
	}
	return o, nil
}
