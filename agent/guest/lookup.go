package guest

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultPath is where programs are looked for without a PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// resolve says which file argv[0] names, by the PATH of env and from dir, as execvp does.
func resolve(name, dir string, env []string) (string, error) {
	if strings.ContainsRune(name, '/') {
		path := name
		if !strings.HasPrefix(path, "/") {
			path = dir + "/" + path
		}
		return path, executable(path)
	}
	if name == "" {
		return "", &os.PathError{Op: "exec", Path: name, Err: unix.ENOENT}
	}
	search := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	var denied error
	for _, d := range strings.Split(search, ":") {
		if d == "" {
			d = dir
		}
		path := d + "/" + name
		err := executable(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, os.ErrNotExist) && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &os.PathError{Op: "exec", Path: name, Err: unix.ENOENT}
}

func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.IsDir():
		return &os.PathError{Op: "exec", Path: path, Err: unix.EISDIR}
	case st.Mode()&0o111 == 0:
		return &os.PathError{Op: "exec", Path: path, Err: unix.EACCES}
	}
	return nil
}
