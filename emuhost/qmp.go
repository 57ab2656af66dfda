package emuhost

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// monitor is a connection to QEMU's control socket (QEMU Machine Protocol).
type monitor struct {
	conn net.Conn
	in   *bufio.Reader
}

// dialMonitor connects to the control socket and leaves its negotiation mode.
func dialMonitor(ctx context.Context, dir string) (*monitor, error) {
	conn, err := dialIn(ctx, dir, monitorSocket)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, in: bufio.NewReader(conn)}
	if err := m.setDeadline(ctx); err != nil {
		m.Close()
		return nil, err
	}
	if _, err := m.in.ReadBytes('\n'); err != nil { // the greeting
		m.Close()
		return nil, fmt.Errorf("greet monitor: %w", err)
	}
	if _, err := m.execute(ctx, "qmp_capabilities", nil); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) Close() { _ = m.conn.Close() }

func (m *monitor) setDeadline(ctx context.Context) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Minute)
	}
	return m.conn.SetDeadline(deadline)
}

// execute runs a command and returns what it answers.
func (m *monitor) execute(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	if err := m.setDeadline(ctx); err != nil {
		return nil, err
	}
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	b, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("monitor command %s: %w", command, err)
	}
	for {
		line, err := m.in.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("monitor command %s: %w", command, err)
		}
		var answer struct {
			Event  string
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &answer); err != nil {
			return nil, fmt.Errorf("monitor command %s: %w", command, err)
		}
		switch {
		case answer.Error != nil:
			return nil, fmt.Errorf("monitor command %s: %s", command, answer.Error.Desc)
		case answer.Event == "":
			return answer.Return, nil
		}
	}
}

// ignoreShared leaves the memory file out of migration streams.
func (m *monitor) ignoreShared(ctx context.Context) error {
	_, err := m.execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}},
	})
	return err
}

// waitMigrated waits until an outgoing migration is complete.
func (m *monitor) waitMigrated(ctx context.Context) error {
	for {
		b, err := m.execute(ctx, "query-migrate", nil)
		if err != nil {
			return err
		}
		var info struct {
			Status string
			Desc   string `json:"error-desc"`
		}
		if err := json.Unmarshal(b, &info); err != nil {
			return fmt.Errorf("read migration state: %w", err)
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return errors.New("save machine: " + info.Status + " " + info.Desc)
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

// waitIncoming waits until an incoming migration has been loaded.
func (m *monitor) waitIncoming(ctx context.Context) error {
	for {
		b, err := m.execute(ctx, "query-status", nil)
		if err != nil {
			return err
		}
		var info struct{ Status string }
		if err := json.Unmarshal(b, &info); err != nil {
			return fmt.Errorf("read machine state: %w", err)
		}
		if info.Status != "inmigrate" {
			return nil
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// pause waits for d or the context's end.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
