package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// programMode is the mode of a program that came with its request.
const programMode = 0o755

// takeProgram makes the file e.Args[0] of the FrameData that follows a request. What was there is replaced, never written to: an
// earlier program may have left a link. Whatever goes wrong, the program cannot be invoked.
func takeProgram(e agent.Exec, r *agent.Reader) error {
	path := filepath.Clean(e.Args[0])
	if err := placeProgram(path, e, r); err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return &agent.Failure{Text: fmt.Sprintf("put the program at %s: %v", path, err), Code: codeCannotInvoke}
	}
	return nil
}

func placeProgram(path string, e agent.Exec, r *agent.Reader) (err error) {
	if e.Program < 0 || e.Program > agent.MaxProgram || !filepath.IsAbs(path) || path == "/" {
		return fmt.Errorf("%d bytes: no such program", e.Program)
	}
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	name := filepath.Base(path)
	if st, err := dir.Lstat(name); err == nil && st.IsDir() {
		return unix.EISDIR
	}
	if err := dir.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, &tarStream{r: r}, e.Program)
	if err == nil {
		err = errors.Join(f.Chown(int(e.UID), int(e.GID)), f.Chmod(programMode))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = dir.Remove(name) // half a program is none
	}
	return err
}

// whyNot says what is behind a refusal to run the file at path, where the kernel's word for it misleads. The file may be anything.
func whyNot(path string, err error) error {
	if !errors.Is(err, unix.ENOEXEC) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	f, openErr := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if openErr != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 256) // BINPRM_BUF_SIZE: the kernel looks no further
	n, _ := io.ReadFull(f, head)
	head = head[:n]
	elf := bytes.HasPrefix(head, []byte("\x7fELF"))
	interpreter, script := interpreterOf(head)
	switch {
	case errors.Is(err, unix.ENOEXEC) && elf:
		return fmt.Errorf("%w: it is for another kind of machine, or not whole", err)
	case errors.Is(err, unix.ENOEXEC) && !script:
		return fmt.Errorf("%w: it has no #! line and is no ELF file", err)
	case errors.Is(err, unix.ENOENT) && script:
		return fmt.Errorf("its interpreter %q is not there", interpreter)
	case errors.Is(err, unix.ENOENT) && elf:
		return errors.New("the dynamic linker that it asks for is not there")
	}
	return err
}

// interpreterOf reads the #! line of a script.
func interpreterOf(head []byte) (interpreter string, ok bool) {
	line, ok := bytes.CutPrefix(head, []byte("#!"))
	if !ok {
		return "", false
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	interpreter, _, _ = strings.Cut(strings.Trim(string(line), " \t"), " ")
	interpreter, _, _ = strings.Cut(interpreter, "\t")
	return interpreter, true
}
