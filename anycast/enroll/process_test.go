// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Some tests need other processes: the test program itself, told by a variable to be one.
const childVariable = "FATHOM_ENROLL_TEST_CHILD"

// childMain opens the authority in the directory that the variable names, makes a token, and prints the
// pin. Then it claims every member that it reads, and says which ones it won.
func childMain() int {
	a, err := Open(os.Getenv(childVariable), AuthorityOptions{})
	if err != nil {
		fmt.Println("open:", err)
		return 1
	}
	t, err := a.Token(Identity{Agent, fmt.Sprintf("agent-%d", os.Getpid())}, time.Hour, testController)
	if err != nil {
		fmt.Println("token:", err)
		return 1
	}
	fmt.Println("pin", t.Pin)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		id, err := parseMemberID(in.Text())
		if err != nil {
			fmt.Println("member:", err)
			return 1
		}
		switch err := a.members.claim(id); {
		case err == nil:
			fmt.Println("won", id)
		case !errors.Is(err, ErrTokenUsed):
			fmt.Println("claim:", err)
			return 1
		}
	}
	return 0
}

// TestProcesses starts several processes on one empty directory at once. There must be one CA, every token must be
// there, and every token must be claimed once.
func TestProcesses(t *testing.T) {
	const processes, tokens = 3, 40
	dir := filepath.Join(t.TempDir(), "authority")
	type child struct {
		cmd *exec.Cmd
		in  *os.File
		out *bufio.Scanner
	}
	var children []child
	for range processes {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+dir)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = r
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r.Close()
		children = append(children, child{cmd, w, bufio.NewScanner(out)})
	}
	pins := map[string]bool{}
	for _, c := range children {
		c.out.Scan()
		pin, ok := strings.CutPrefix(c.out.Text(), "pin ")
		if !ok {
			t.Errorf("a process says: %s", c.out.Text())
		}
		pins[pin] = true
	}
	if len(pins) != 1 {
		t.Errorf("%d CAs were made: %v", len(pins), pins)
	}
	a, err := Open(dir, AuthorityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := a.Members(); err != nil || len(list) != processes {
		t.Errorf("%d tokens, want %d: %v", len(list), processes, err)
	}
	var ids strings.Builder
	for i := range tokens {
		fmt.Fprintln(&ids, newToken(t, a, Identity{Agent, fmt.Sprintf("site%d", i)}).id)
	}
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		won = map[string]int{}
	)
	for _, c := range children {
		wg.Go(func() {
			c.in.WriteString(ids.String())
			c.in.Close()
			for c.out.Scan() {
				mu.Lock()
				won[c.out.Text()]++
				mu.Unlock()
			}
			if err := c.cmd.Wait(); err != nil {
				t.Errorf("a process: %v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != tokens {
		t.Errorf("%d tokens were claimed, want %d: %v", len(won), tokens, won)
	}
	for what, n := range won {
		if n != 1 || !strings.HasPrefix(what, "won ") {
			t.Errorf("%s: %d times", what, n)
		}
	}
}
