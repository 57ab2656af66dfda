package initramfs_test

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"spore/guest/initramfs"
)

func TestWrite(t *testing.T) {
	var one, two bytes.Buffer
	for _, b := range []*bytes.Buffer{&one, &two} {
		if err := initramfs.Write(b, []byte("#!init")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the same input gives different archives")
	}
	if one.Len()%4 != 0 {
		t.Errorf("%d bytes are not padded", one.Len())
	}
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Fatalf("cpio reads the archive back: apt-get install cpio: %v", err)
	}
	cmd := exec.Command(cpio, "--list", "--quiet")
	cmd.Stdin = &one
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	for _, name := range []string{"init", "dev/console", "newroot"} {
		if !strings.Contains("\n"+string(out), "\n"+name+"\n") {
			t.Errorf("cpio does not see %s in:\n%s", name, out)
		}
	}
}

// failing is a full disk.
type failing struct{ left int }

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, bytes.ErrTooLarge
	}
	return len(p), nil
}

func TestWriteReportsErrors(t *testing.T) {
	for limit := range 600 {
		if initramfs.Write(&failing{limit}, []byte("x")) == nil {
			t.Fatalf("an archive fits in %d bytes", limit)
		}
	}
}
