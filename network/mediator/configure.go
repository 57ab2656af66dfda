package mediator

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/cleanup"
	"spore/internal/rights"
	"spore/internal/wire"
	"spore/network/api"
)

// framesBuffer is how much may be on the way to and from the guest, in bytes, where we may say so. Others have what the system gives.
const framesBuffer = 4 << 20

// configure sends the configuration through config and waits until it has taken effect. network's version and all its File
// fields are set here; zero addresses, MACs and MTU become the defaults of package api. An error that the user can mend (a rule, a secret)
// says so.
func (p *Process) configure(ctx context.Context, config, logIn *os.File, network api.Config, f Files) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var undo, theirs cleanup.Stack
	defer func() {
		err = errors.Join(err, theirs.Run())
		if err != nil {
			err = errors.Join(err, undo.Run())
		}
	}()
	theirs.Push(logIn.Close)
	if f.Frames == nil {
		return errors.New("no frames")
	}
	if len(f.Published) != len(network.Published) {
		return fmt.Errorf("%d sockets for %d published ports", len(f.Published), len(network.Published))
	}
	fill(&network)
	var files []*os.File
	add := func(f *os.File) api.File {
		files = append(files, f)
		return api.File(len(files) - 1)
	}
	control, end, err := rights.Pair(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	undo.Push(control.Close)
	theirs.Push(end.Close)
	network.Frames, network.Control = add(f.Frames), add(end)
	network.Log, network.Audit = add(logIn), api.NoFile
	if f.Audit != nil {
		network.Audit = add(f.Audit)
	}
	for i, file := range f.Published {
		network.Published[i].File = add(file)
	}
	if err := hand(ctx, config, network, files); err != nil {
		return err
	}
	if p.ca, err = ready(ctx, control); err != nil {
		return err
	}
	undo.Release()
	p.control = control
	return nil
}

// fill sets what the caller left to us.
func fill(c *api.Config) {
	c.Version = api.Version
	if c.GuestMAC == nil {
		c.GuestMAC = api.GuestMAC()
	}
	if c.GatewayMAC == nil {
		c.GatewayMAC = api.GatewayMAC()
	}
	if len(c.Guest) == 0 {
		c.Guest, c.Gateways = api.GuestAddresses(), api.GatewayAddresses()
	}
	if c.MTU == 0 {
		c.MTU = api.MaxMTU
	}
	c.Published = append([]api.Published(nil), c.Published...) // the caller's keeps its File fields
}

// Frames makes the pair that frames go through, which the caller closes: the machine's end is what api.Net.File of a VMM is, with Offload
// set; the other is for Files. Either may be handed on before anybody reads from the other.
func Frames() (machine, forwarder *os.File, err error) {
	machine, forwarder, err = rights.Pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, nil, err
	}
	enlarge(machine, forwarder)
	return machine, forwarder, nil
}

// enlarge gives both ends of the frames' pair room for more than three of the largest frames, if we may.
func enlarge(ends ...*os.File) {
	for _, f := range ends {
		raw, err := f.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, framesBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, framesBuffer) // as much as anybody gets
			}
		})
	}
}

// hand sends a configuration, whose first byte brings the descriptors.
func hand(ctx context.Context, to *os.File, c api.Config, files []*os.File) error {
	if err := limit(ctx, to); err != nil {
		return err
	}
	// The files are blocking from here on, for those that are to be.
	if err := wire.Write(&rights.Writer{Socket: to, Files: files}, c); err != nil {
		if errors.Is(err, wire.ErrTooLong) {
			return fmt.Errorf("rules, secrets and the certificates to trust are too much in all: %w", err)
		}
		return err
	}
	return nil
}

// limit has all that is read from and written to f end with ctx.
func limit(ctx context.Context, f *os.File) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline() // none: the zero value is none
	return f.SetDeadline(deadline)
}

// within runs f, which reads from or writes to file, and ends it when ctx ends.
func within(ctx context.Context, file *os.File, f func() error) error {
	if err := limit(ctx, file); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = file.SetDeadline(time.Unix(1, 0)) }) // closed already if it fails
	err := f()
	if !stop() && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// ready waits for the first event.
func ready(ctx context.Context, control *os.File) (ca []byte, err error) {
	var m api.Message
	err = within(ctx, control, func() error { return wire.Read(control, &m) })
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("it ended without saying why")
	case err != nil:
		return nil, err
	case m.Event == nil:
		return nil, errors.New("its first message is no event")
	case m.Event.Kind == api.EventFailed:
		return nil, errors.New(m.Event.Detail)
	case m.Event.Kind != api.EventReady:
		return nil, fmt.Errorf("its first event is %.20q", m.Event.Kind)
	}
	return m.Event.CA, nil
}

// ask sends a request and waits for its reply.
func (p *Process) ask(ctx context.Context, r api.Request) (*api.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.control == nil {
		return nil, errors.New("ask spore-net: it is not running")
	}
	p.next++
	r.ID = p.next
	var m api.Message
	err := within(ctx, p.control, func() error {
		if err := wire.Write(p.control, r); err != nil {
			return err
		}
		for m.Reply == nil || m.Reply.ID != r.ID { // one that somebody did not wait for may come first
			m = api.Message{}
			if err := wire.Read(p.control, &m); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ask spore-net: %s: %w", r.Op, err)
	}
	if m.Reply.Error != "" {
		return nil, errors.New(m.Reply.Error)
	}
	return m.Reply, nil
}

// maxLine bounds a line of the log, in bytes.
const maxLine = 16 << 10

// relay passes on what spore-net logs, line by line. What is no line of a log ends it.
func relay(log *slog.Logger, f *os.File) {
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var line struct {
			Level slog.Level `json:"level"`
			Msg   string     `json:"msg"`
			Err   string     `json:"err"`
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			break
		}
		log.Log(context.Background(), line.Level, "spore-net: "+line.Msg, "err", line.Err)
	}
	_, _ = io.Copy(io.Discard, f) // it is not to wait for us; an error is its end
}
