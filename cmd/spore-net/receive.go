package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"spore/internal/rights"
	"spore/internal/wire"
	"spore/network/api"
)

// configFile is the descriptor that the configuration comes from.
const configFile = 3

// receive waits for the configuration and the files that it names. It returns io.EOF when there is none.
func receive() (api.Config, []*os.File, error) {
	var cfg api.Config
	defer unix.Close(configFile)
	head, fds, err := firstBytes()
	if err != nil {
		return cfg, nil, err
	}
	n := binary.LittleEndian.Uint32(head)
	if n > wire.MaxFrame {
		return cfg, nil, fmt.Errorf("read configuration: %w", wire.ErrTooLong)
	}
	body := make([]byte, n)
	if err := fill(body); err != nil {
		return cfg, nil, err
	}
	if err := json.Unmarshal(body, &cfg); err != nil {
		return cfg, nil, fmt.Errorf("read configuration: %w", err)
	}
	clear(body) // there are secrets in it
	files, err := gather(&cfg, fds)
	return cfg, files, err
}

// fill reads all of b.
func fill(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(configFile, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read configuration: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		b = b[n:]
	}
	return nil
}

// firstBytes receives the length of the frame, and the descriptors that come with it.
func firstBytes() (head []byte, fds []int, err error) {
	head = make([]byte, 4)
	oob := make([]byte, rights.Space(api.MaxFiles))
	var n, oobn int
	for {
		n, oobn, _, _, err = unix.Recvmsg(configFile, head, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("read configuration: %w", os.NewSyscallError("recvmsg", err))
	case n == 0:
		return nil, nil, io.EOF
	}
	// What comes with descriptors comes by itself, however much was asked for (unix(7)).
	if err := fill(head[n:]); err != nil {
		return nil, nil, err
	}
	return head, rights.Take(oob[:oobn], api.MaxFiles), nil
}

// gather makes files of the descriptors. All but the audit file are the poller's.
func gather(cfg *api.Config, fds []int) ([]*os.File, error) {
	if cfg.Version != api.Version {
		return nil, fmt.Errorf("configuration is of version %d, not %d", cfg.Version, api.Version)
	}
	for _, f := range cfg.Files() {
		if int(f) >= len(fds) {
			return nil, fmt.Errorf("configuration names file %d of %d", f, len(fds))
		}
	}
	if cfg.Frames < 0 || cfg.Control < 0 {
		return nil, errors.New("configuration names no frames, or no control socket")
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		if f := api.File(i); f != cfg.Audit {
			// Before os.NewFile, which then gives the descriptor to the poller.
			if err := unix.SetNonblock(fd, true); err != nil {
				return nil, fmt.Errorf("file %d of the configuration: %w", i, os.NewSyscallError("fcntl", err))
			}
		}
		files[i] = os.NewFile(uintptr(fd), fmt.Sprintf("file %d", i))
	}
	return files, nil
}
