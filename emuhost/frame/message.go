package frame

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// Start asks for a process. Sent as JSON in TypePart frames and a TypeStart.
type Start struct {
	Args []string `json:"args"`          // program and its arguments; not empty
	Env  []string `json:"env,omitempty"` // "NAME=value"; empty means a minimal environment
	Dir  string   `json:"dir,omitempty"` // absolute; empty means "/"
	TTY  bool     `json:"tty,omitempty"` // run on a pseudo-terminal; output is all stdout
	Rows uint16   `json:"rows,omitempty"`
	Cols uint16   `json:"cols,omitempty"`
	// UnixNano is the client's wall clock. The guest steps its own when it is
	// more than half a second off. 0 leaves it alone.
	UnixNano int64 `json:"unixNano,omitempty"`
	// Kept are files that the guest may keep copies of in memory, as the client has just seen them: Args[0], and others below its
	// directory that it looks for beside itself.
	Kept []Kept `json:"kept,omitempty"`
}

// Kept is a file of the outer machine at one moment.
type Kept struct {
	Path    string `json:"path"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"modTime"` // in nanoseconds since 1970
}

// Configuration finishes a resumed or booted host: it is sent once, before the
// first Start, as JSON in TypePart frames and a TypeConfigure.
type Configuration struct {
	UnixNano int64   `json:"unixNano"` // wall clock to set
	Seed     []byte  `json:"seed"`     // entropy to credit, 32 to 512 bytes
	Hostname string  `json:"hostname"`
	Shares   []Mount `json:"shares,omitempty"`
	// Modules is a directory of the outer machine bound on /lib/modules/RELEASE.
	Modules string `json:"modules,omitempty"`
	// Files are written before the first command: path to content, mode 0644.
	Files map[string]string `json:"files,omitempty"`
}

// Mount is a writable 9p share of the outer machine, mounted at Path.
type Mount struct {
	Tag  string `json:"tag"`
	Path string `json:"path"`
}

// AppendRequest adds v as JSON, cut into TypePart frames and a last frame of
// type t.
func AppendRequest(dst []byte, tag uint32, t Type, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return dst, fmt.Errorf("encode request: %w", err)
	}
	if len(body) > MaxBody {
		return dst, fmt.Errorf("encode request: %d bytes of arguments and environment, more than %d", len(body), MaxBody)
	}
	for len(body) > MaxClientPayload {
		dst = Append(dst, tag, TypePart, body[:MaxClientPayload])
		body = body[MaxClientPayload:]
	}
	return Append(dst, tag, t, body), nil
}

// Exit is how a process ended.
type Exit struct {
	Signaled bool
	Value    uint8 // exit code, or signal number
}

// Code is the exit code a shell would report: 128+N for signal N.
func (e Exit) Code() int {
	if e.Signaled {
		return 128 + int(e.Value)
	}
	return int(e.Value)
}

// Append encodes e as the payload of a TypeExit frame.
func (e Exit) Append(dst []byte) []byte {
	kind := byte(0)
	if e.Signaled {
		kind = 1
	}
	return append(dst, kind, e.Value)
}

// ParseExit decodes the payload of a TypeExit frame.
func ParseExit(p []byte) (Exit, error) {
	if len(p) != 2 || p[0] > 1 {
		return Exit{}, fmt.Errorf("read exit: %w", ErrFrame)
	}
	return Exit{Signaled: p[0] == 1, Value: p[1]}, nil
}

// ParseUint32 decodes the payload of a TypeWindow or TypeStarted frame.
func ParseUint32(p []byte) (uint32, error) {
	if len(p) != 4 {
		return 0, fmt.Errorf("read number: %w", ErrFrame)
	}
	return binary.LittleEndian.Uint32(p), nil
}

// AppendResize encodes the payload of a TypeResize frame.
func AppendResize(dst []byte, rows, cols uint16) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, rows)
	return binary.LittleEndian.AppendUint16(dst, cols)
}

// ParseResize decodes the payload of a TypeResize frame.
func ParseResize(p []byte) (rows, cols uint16, err error) {
	if len(p) != 4 {
		return 0, 0, fmt.Errorf("read resize: %w", ErrFrame)
	}
	return binary.LittleEndian.Uint16(p), binary.LittleEndian.Uint16(p[2:]), nil
}
