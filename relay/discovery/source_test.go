// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestParseEndpoint(t *testing.T) {
	tests := []struct{ text, want string }{
		{"192.0.2.7", "192.0.2.7:7124"},
		{"192.0.2.7:7125", "192.0.2.7:7125"},
		{"2001:db8::7", "[2001:db8::7]:7124"},
		{"[2001:db8::7]", "[2001:db8::7]:7124"},
		{"[2001:db8::7]:7125", "[2001:db8::7]:7125"},
		{"::ffff:192.0.2.7", "192.0.2.7:7124"},
		{"[::ffff:192.0.2.7]:1", "192.0.2.7:1"},
		{"fe80::1%eth0", "[fe80::1%eth0]:7124"},
		{"[fe80::1%eth0]:7125", "[fe80::1%eth0]:7125"},
		{"relay", "relay:7124"},
		{"relay:65535", "relay:65535"},
		{"tasks.stack_relay", "tasks.stack_relay:7124"},
		{"Relay-1.example.net.", "Relay-1.example.net.:7124"},
		{"1.example.net", "1.example.net:7124"},
	}
	for _, test := range tests {
		e, err := parseEndpoint(test.text, 7124)
		if err != nil || e.String() != test.want {
			t.Errorf("%q is %v, %v; want %s", test.text, e, err, test.want)
		}
		if err := Check(test.text); err != nil {
			t.Errorf("Check: %v", err)
		}
	}
	for _, text := range []string{
		"", " ", ".", "a b", "192.0.2", "192.0.2.300", "192.0.2.7:0", "192.0.2.7:65536", "192.0.2.7:", ":7124", "relay:http", "relay:+1",
		"[192.0.2.7]", "[192.0.2.7]:1", "[2001:db8::7", "2001:db8::7]", "[2001:db8::7]7124", "[2001:db8::7]:", "[relay]:1", "2001:db8::g",
		"0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1", "-relay", "a..b", "relay\x00", "rélay", "a:1:2",
		strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a",
	} {
		if err := Check(text); !errors.Is(err, ErrName) {
			t.Errorf("%q: got error %v, want ErrName", text, err)
		}
	}
}

func TestParseFile(t *testing.T) {
	list, err := parseFile([]byte("\ufeff# relays\r\n192.0.2.7 # the first\r\n\n  relay:7125\t\n2001:db8::7"), 7124, "peers")
	if got, want := fmt.Sprint(list), "[192.0.2.7:7124 relay:7125 [2001:db8::7]:7124]"; got != want || err != nil {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	list, err = parseFile([]byte("192.0.2.7\na b\n\nc d\n"), 7124, "peers")
	if len(list) != 1 || err == nil || !strings.HasPrefix(err.Error(), `peers:2: "a b"`) {
		t.Errorf("got %v, %v; want one peer and an error about line 2", list, err)
	}
	if list, err = parseFile([]byte("\n# nobody\n"), 7124, "peers"); list == nil || len(list) > 0 || err != nil {
		t.Errorf("got %v, %v; want an empty list", list, err)
	}
	if list, err = parseFile([]byte("<html>\n"), 7124, "peers"); list != nil || err == nil {
		t.Errorf("got %v, %v; want nothing but an error", list, err)
	}
	list, err = parseFile(bytes.Repeat([]byte("192.0.2.7\n"), maxEndpoints+1), 7124, "peers")
	if len(list) != maxEndpoints || err == nil {
		t.Errorf("got %d peers, %v; want %d and an error", len(list), err, maxEndpoints)
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte("192.0.2.7 # comment\n[2001:db8::7]:1\nrelay:2\n"))
	f.Add([]byte("[::ffff:1.2.3.4%x]:1\n]:1\n[\n:\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseFile(data, 7124, "peers")
		if list == nil && err == nil {
			t.Error("neither a list nor an error")
		}
		for _, e := range list {
			// What is understood is understood the same when it is written out.
			again, err := parseEndpoint(e.String(), 1)
			if err != nil || again != e {
				t.Errorf("%v again is %v, %v", e, again, err)
			}
			if e.addr.IsValid() && (!usable(e.addr) || e.addr.Is4In6()) {
				t.Errorf("%v is no address of a peer", e)
			}
		}
	})
}

func TestFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "peers")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := start(t, nil, File(7124, path))
		r.wantProblem("no such file")

		const period = filePeriod + fileSettle
		write("192.0.2.2\n192.0.2.1\n[2001:db8::2]:7125\n")
		time.Sleep(period)
		r.want("192.0.2.2:7124 [2001:db8::2]:7125")
		r.wantProblem("")

		write("192.0.2.3\n192.0.2.4\noops oops\n")
		time.Sleep(period)
		r.want("192.0.2.3:7124 192.0.2.4:7124")
		r.wantProblem(":3:")

		for _, spoil := range []func(){
			func() { write("oops oops\n") },
			func() { write(strings.Repeat("#", maxFile+1)) },
			func() { _ = os.Remove(path) },
			func() { _ = os.Mkdir(path, 0o700) },
		} {
			spoil()
			time.Sleep(time.Minute)
			r.want("192.0.2.3:7124 192.0.2.4:7124")
			if r.Status()[0].Problem == "" {
				t.Error("a file that cannot be used is no problem")
			}
		}

		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		write("")
		time.Sleep(period)
		r.want("")
		r.wantProblem("")
	})
}

// A name is looked up while it is in the file.
func TestNamesOfFile(t *testing.T) {
	bubble(t, func(t *testing.T, s *nameServer) {
		s.set("a.example.net. A 192.0.2.2", "b.example.net. A 192.0.2.3")
		path := filepath.Join(t.TempDir(), "peers")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(filePeriod + fileSettle)
		}
		write("a.example.net\nb.example.net\n")
		r := start(t, s, File(7124, path))
		time.Sleep(fileSettle)
		r.want("192.0.2.2:7124 192.0.2.3:7124")

		write("b.example.net\n")
		r.want("192.0.2.3:7124")
		asked := s.timesAsked("a.example.net", dns.TypeA)
		time.Sleep(time.Minute)
		if n := s.timesAsked("a.example.net", dns.TypeA) - asked; n > 0 {
			t.Errorf("asked %d times for a name that is in the file no more", n)
		}

		s.set("a.example.net. A 192.0.2.4", "b.example.net. A 192.0.2.3")
		write("b.example.net\na.example.net:7125\na.example.net\n")
		r.want("192.0.2.3:7124 192.0.2.4:7125 192.0.2.4:7124")
		time.Sleep(time.Minute)
		if n := s.timesAsked("b.example.net", dns.TypeA); n > 20 {
			t.Errorf("asked %d times in two minutes for a name that stayed in the file", n)
		}
	})
}

// While somebody writes, what is there already is not all.
func TestFileBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "peers")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 5 {
				if _, err := f.WriteString("192.0.2.2\n"); err != nil {
					t.Error(err)
				}
				time.Sleep(fileSettle * 9 / 10)
			}
		}()
		data, err := readSettled(t.Context(), path)
		if want := strings.Repeat("192.0.2.2\n", 5); string(data) != want || err != nil {
			t.Errorf("read %q, %v; want %q", data, err, want)
		}
		<-done

		ctx, cancel := context.WithCancel(t.Context())
		done = make(chan struct{})
		go func() {
			defer close(done)
			for ctx.Err() == nil {
				_, _ = f.WriteString("#")
				time.Sleep(fileSettle / 2)
			}
		}()
		if _, err := readSettled(ctx, path); err == nil {
			t.Error("read a file that changes all the time")
		}
		cancel()
		<-done
	})
}
