// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package rawio

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func testPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	for _, f := range []*os.File{r, w} {
		// As an inherited pipe is: a read or write that is not ready would hang the test.
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
			t.Fatal(err)
		}
	}
	return r, w
}

func TestDescriptorRead(t *testing.T) {
	r, w := testPipe(t)
	d := NewDescriptor(int(r.Fd()))
	b := make([]byte, 100)
	w.WriteString("abc")
	w.Close()
	if n, ended := d.Read(b); string(b[:n]) != "abc" || ended {
		t.Errorf("read %q, ended %v", b[:n], ended)
	}
	for range 2 {
		if n, ended := d.Read(b); n != 0 || !ended {
			t.Errorf("closed pipe: %d bytes, ended %v", n, ended)
		}
	}
}

func TestDescriptorWrite(t *testing.T) {
	r, w := testPipe(t)
	d := NewDescriptor(int(w.Fd()))
	b := bytes.Repeat([]byte("x"), 2*PipeBuf)
	total := 0
	for {
		n, broken := d.Write(b)
		if broken || n > PipeBuf {
			t.Fatalf("wrote %d bytes, broken %v", n, broken)
		}
		if n == 0 {
			break // it is full, and we are not stuck
		}
		total += n
	}
	if total < PipeBuf {
		t.Errorf("%d bytes fit, want at least %d", total, PipeBuf)
	}
	if _, err := r.Read(make([]byte, PipeBuf)); err != nil {
		t.Fatal(err)
	}
	if n, broken := d.Write(b[:10]); n != 10 || broken {
		t.Errorf("after a read: wrote %d bytes, broken %v", n, broken)
	}
	r.Close()
	if n, broken := d.Write(b); n != 0 || !broken {
		t.Errorf("without a reader: wrote %d bytes, broken %v", n, broken)
	}
	if n := testing.AllocsPerRun(10, func() { d.Write(b) }); n != 0 {
		t.Errorf("%v allocations per write", n)
	}
}

func TestDescriptorFlags(t *testing.T) {
	r, w := testPipe(t)
	for _, f := range []*os.File{r, w} {
		NewDescriptor(int(f.Fd())).Write([]byte("x"))
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("flags %#x, %v: O_NONBLOCK is set", flags, err)
		}
	}
}
