package guest

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// Where the image's root is for a rehearsal, and how long that may take: an image's shell may be anything.
const (
	rehearsalRoot  = "/dev/.rehearsal"
	rehearsalLimit = 10 * time.Second
)

// rehearsed is the program of a rehearsal: what most commands begin with, or are linked with the same libraries.
var rehearsed = []string{"/bin/sh", "-c", ":"}

// rehearse starts a program of the image as a command is started, and ends it: what the kernel, this agent and the C library do and
// read for the first time then is done and read in every copy of this machine. The program is nobody's, finds the root read-only
// and nothing mounted in it, and has gone with all that it started when this returns: a copy finds its files as the image
// has them. Whatever comes of it is no failure; w gets the frames of the process.
func (a *server) rehearse(root string, args []string, limit time.Duration, w *agent.Writer) {
	if err := os.Mkdir(root, 0o755); err != nil {
		return
	}
	defer os.Remove(root)
	if err := (mount{"/", root, "", unix.MS_BIND, ""}).do(); err != nil {
		return
	}
	defer unix.Unmount(root, unix.MNT_DETACH)
	if err := (mount{"", root, "", unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID, ""}).do(); err != nil {
		return
	}
	host, hangUp := io.Pipe() // which says nothing
	defer hangUp.Close()
	over := time.AfterFunc(limit, func() { hangUp.CloseWithError(errors.New("the rehearsal takes too long")) })
	defer over.Stop()
	e := agent.Exec{
		Args: args, Env: []string{"PATH=" + defaultPath},
		Dir: "/", UID: nobody, GID: nobody, Main: true,
	}
	// An image without a shell rehearses less.
	_ = a.exec(e, root, func() bool { return false }, agent.NewReader(host), w)
}

// nobody is who has no rights, as user and as group.
const nobody = 65534
