package sandbox

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Limits of the output log.
const (
	maxLogFile  = 16 << 20 // bytes; the log is turned over once, so twice this is kept
	maxLogEntry = 16 << 10 // bytes of output in one entry
)

// LogEntry is one line of the output log, as JSON: a piece of what the command wrote.
type LogEntry struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"` // stdout or stderr
	Data   []byte    `json:"data"`
}

// outputLog keeps what the command wrote, in two files of bounded size.
type outputLog struct {
	mu   sync.Mutex
	path string
	file *os.File
	size int64
}

func openOutputLog(path string) (*outputLog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open output log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open output log: %w", err)
	}
	return &outputLog{path: path, file: f, size: st.Size()}, nil
}

// stream returns a writer whose bytes become entries of that stream. It never fails: a full disk costs the
// log, not the command.
func (l *outputLog) stream(name string) io.Writer { return logStream{l, name} }

type logStream struct {
	log  *outputLog
	name string
}

func (s logStream) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), maxLogEntry)
		s.log.append(LogEntry{Time: time.Now().UTC(), Stream: s.name, Data: rest[:n]})
		rest = rest[n:]
	}
	return len(p), nil
}

func (l *outputLog) append(e LogEntry) {
	body, err := json.Marshal(e)
	if err != nil {
		panic("bug: a log entry does not encode: " + err.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > maxLogFile {
		l.turnOver()
	}
	n, _ := l.file.Write(append(body, '\n'))
	l.size += int64(n)
}

// turnOver makes the current file the old one and starts a new one. If that is impossible the file is emptied,
// since the bound matters more than the text.
func (l *outputLog) turnOver() {
	l.size = 0
	if os.Rename(l.path, l.path+".1") == nil {
		if f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err == nil {
			l.file.Close()
			l.file = f
			return
		}
	}
	l.file.Truncate(0)
}

func (l *outputLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

// Logs returns the kept output of the sandbox's command, oldest first.
func (sb *Sandbox) Logs() ([]LogEntry, error) {
	var all []LogEntry
	for _, name := range []string{logFile + ".1", logFile} {
		f, err := os.Open(sb.path(name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read logs of sandbox %s: %w", sb.Ref(), err)
		}
		all = append(all, decodeEntries(f)...)
		f.Close()
	}
	return all, nil
}

// decodeEntries reads up to the first entry that is not whole: the last one may be half written.
func decodeEntries(r io.Reader) []LogEntry {
	var all []LogEntry
	for d := json.NewDecoder(r); ; {
		var e LogEntry
		if err := d.Decode(&e); err != nil {
			return all
		}
		all = append(all, e)
	}
}

// tail keeps the last bytes of what is written to it: the guest's console, for the day it panics.
type tail struct {
	mu    sync.Mutex
	bytes []byte
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes = append(t.bytes, p...)
	if over := len(t.bytes) - t.limit; over > 0 {
		t.bytes = append(t.bytes[:0], t.bytes[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.bytes)
}
