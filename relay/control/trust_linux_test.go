// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Another user, who can reach the socket as well, is not answered.
func TestAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	name, _ := serve(t, new(relayed))
	ask := func(uid uintptr) (n int, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and with it who it is
			// The call itself, because unix.Setresuid is for all threads of the process.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
				err = errno
				return
			}
			var fd int
			if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return
			}
			defer unix.Close(fd)
			if err = unix.Connect(fd, &unix.SockaddrUnix{Name: address(name)}); err != nil {
				return
			}
			// The server may have hung up already.
			if _, err = unix.SendmsgN(fd, []byte("GET /status HTTP/1.0\r\n\r\n"), nil, nil, unix.MSG_NOSIGNAL); err == nil {
				n, err = unix.Read(fd, make([]byte, 100))
			}
		}()
		<-done
		return n, err
	}
	if n, err := ask(0); n == 0 || err != nil {
		t.Errorf("root got %d bytes, %v", n, err)
	}
	if n, err := ask(65534); n > 0 || err != nil && err != unix.EPIPE && err != unix.ECONNRESET {
		t.Errorf("nobody got %d bytes, %v", n, err)
	}
	// And those who may are still answered.
	if _, err := dial(t, name).Status(t.Context()); err != nil {
		t.Error(err)
	}
}
