// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"
)

// benchPeer is the environment variable that makes the test program the other side of a benchmark: the links of
// this process end in another one, as in life. Its value says what the other side does.
const benchPeer = "FATHOM_LINK_BENCH_PEER"

// runBenchPeer accepts links until its input ends. It takes everything and keeps nothing.
func runBenchPeer(string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	h := testHandler{stream: func(_ *Session, _ []byte, c net.Conn) error {
		go func() {
			b := make([]byte, 256<<10)
			for {
				if _, err := c.Read(b); err != nil {
					c.Close()
					return
				}
			}
		}()
		return nil
	}}
	for {
		conn, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go Server(context.Background(), conn, testConfig(2, h))
	}
}

// startBenchPeer starts the other side and returns where it listens.
func startBenchPeer(b testing.TB) string {
	b.Helper()
	program, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	command := exec.Command(program)
	command.Env = append(os.Environ(), benchPeer+"=1")
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		command.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return line[:len(line)-1]
}

// benchLink makes a link to another process.
func benchLink(b testing.TB, addr string) *Session {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	s, err := Client(b.Context(), conn, testConfig(1, testHandler{}), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// One goroutine posts messages of 100 bytes, which the other process acknowledges.
func BenchmarkPost(b *testing.B) {
	s := benchLink(b, startBenchPeer(b))
	payload := make([]byte, 100)
	var group sync.WaitGroup
	done := func(err error) {
		if err != nil {
			b.Error(err)
		}
		group.Done()
	}
	b.ReportAllocs()
	for b.Loop() {
		group.Add(1)
		if err := s.Post(context.Background(), payload, done); err != nil {
			b.Fatal(err)
		}
	}
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

// Each message waits for its acknowledgement before the next.
func BenchmarkSend(b *testing.B) {
	s := benchLink(b, startBenchPeer(b))
	payload := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Send(context.Background(), payload); err != nil {
			b.Fatal(err)
		}
	}
}

// 64 goroutines send messages of 100 bytes, each one after the other.
func BenchmarkSendParallel(b *testing.B) {
	s := benchLink(b, startBenchPeer(b))
	payload := make([]byte, 100)
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Send(context.Background(), payload); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func BenchmarkCall(b *testing.B) {
	s := benchLink(b, startBenchPeer(b))
	body := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Call(context.Background(), body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	s := benchLink(b, startBenchPeer(b))
	st, err := s.Open(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := st.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}

// Messages of 1 and 16 MiB, two at a time.
func BenchmarkLargeMessages(b *testing.B) {
	for _, size := range []int{1 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("MiB=%d", size>>20), func(b *testing.B) {
			s := benchLink(b, startBenchPeer(b))
			payload := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.SetParallelism(1)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := s.Send(context.Background(), payload); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkIdle measures what a thousand links cost that nothing happens on: memory of this process, whose links end in
// another one.
func BenchmarkIdle(b *testing.B) {
	const links = 1000
	addr := startBenchPeer(b)
	resident := func() float64 {
		debug.FreeOSMemory()
		text, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			b.Skip(err)
		}
		var size, pages int
		fmt.Sscan(string(text), &size, &pages)
		return float64(pages*os.Getpagesize()) / (1 << 20)
	}
	before := resident()
	config := testConfig(1, testHandler{})
	sessions := make([]*Session, links)
	for i := range sessions {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		if sessions[i], err = Client(b.Context(), conn, config, nil); err != nil {
			b.Fatal(err)
		}
		if err := sessions[i].Send(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond) // writers end
	for b.Loop() {
	}
	after := resident()
	for _, s := range sessions {
		s.Close()
	}
	b.ReportMetric(before, "MiB-before")
	b.ReportMetric(after, "MiB-resident")
	b.ReportMetric((after-before)*1024/links, "KiB/link")
}

// Requests while a stream and messages of 1 MiB take what the link has: what a member has to wait for a lookup
// while somebody sends a film.
func BenchmarkCallUnderLoad(b *testing.B) {
	s := benchLink(b, startBenchPeer(b))
	st, err := s.Open(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var load sync.WaitGroup
	load.Go(func() {
		for p := make([]byte, 256<<10); err == nil; {
			_, err = st.Write(p)
		}
	})
	load.Go(func() {
		for p := make([]byte, 1<<20); s.Send(ctx, p) == nil; {
		}
	})
	body := make([]byte, 100)
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if _, err := s.Call(b.Context(), body); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	cancel()
	st.Close()
	load.Wait()
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds()*1e6, "p50-µs")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1e6, "p99-µs")
}

// Both sides of a handshake, without the network.
func BenchmarkHandshake(b *testing.B) {
	ca, cb := testConfig(1, testHandler{}), testConfig(2, testHandler{})
	ca.SwarmKeys, cb.SwarmKeys = [][32]byte{{1}}, [][32]byte{{2}, {1}}
	b.ReportAllocs()
	for b.Loop() {
		one, two := net.Pipe()
		client, server, err1, err2 := handshake(one, two, ca, cb, nil)
		if err1 != nil || err2 != nil {
			b.Fatal(err1, err2)
		}
		client.Close()
		server.Close()
	}
}
