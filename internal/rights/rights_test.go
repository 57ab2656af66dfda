package rights

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// open is how many descriptors of this process are open.
func open(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestWriterAndTake(t *testing.T) {
	ours, theirs := pair(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	for _, most := range []int{0, 1, 2, 3} {
		before := open(t)
		w := &Writer{Socket: ours, Files: []*os.File{read, write}}
		for _, text := range []string{"with", "without"} {
			if n, err := w.Write([]byte(text)); err != nil || n != len(text) {
				t.Fatalf("%d, %v", n, err)
			}
		}
		p, oob := make([]byte, 4), make([]byte, Space(2))
		n, oobn, _, _, err := unix.Recvmsg(int(theirs.Fd()), p, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil || string(p[:n]) != "with" {
			t.Fatalf("%q, %v", p[:n], err)
		}
		fds := Take(oob[:oobn], most)
		if want := min(most, 2); len(fds) != want || open(t) != before+want {
			t.Errorf("at most %d: took %d, %d more are open", most, len(fds), open(t)-before)
		}
		if most == 2 {
			f := os.NewFile(uintptr(fds[1]), "copy")
			if _, err := f.Write([]byte{7}); err != nil {
				t.Error(err)
			}
			b := make([]byte, 1)
			if _, err := io.ReadFull(read, b); err != nil || b[0] != 7 {
				t.Errorf("the second is not the pipe's end: %v, %v", b, err)
			}
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		p = make([]byte, len("without"))
		if n, oobn, _, _, err = unix.Recvmsg(int(theirs.Fd()), p, oob, 0); err != nil || string(p[:n]) != "without" || Take(oob[:oobn], 2) != nil {
			t.Errorf("%q, %v", p[:n], err)
		}
	}
	if fds := Take([]byte{1, 2, 3}, 9); fds != nil {
		t.Errorf("no control message: %v", fds)
	}
}
