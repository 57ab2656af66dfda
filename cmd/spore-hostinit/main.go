// Command spore-hostinit is the first process of the emulated host. It stands
// alone in the initramfs, statically linked.
//
// Process 1 mounts the kernel's file systems, loads the modules and then only
// reaps. Its child ("serve") serves the command ports; the first thing it is
// told, after a boot or a resume, is the configuration: clock, entropy and the
// outer machine's file system, which becomes the root. If the child ends, the
// machine powers off and with it every session.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	// The console is /dev/kmsg once devtmpfs is there; before that, nothing.
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		log := kernelLog()
		err := serve(log)
		log.Error("spore-hostinit ends", "err", err)
		os.Exit(1)
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "spore-hostinit: runs only as the first process of the emulated host")
		os.Exit(2)
	}
	err := run()
	kernelLog().Error("the emulated host goes down", "err", err)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // a first process that returns panics the kernel
}

// run boots and reaps until the serving process ends.
func run() error {
	if err := mountKernel("/"); err != nil {
		return err
	}
	log := kernelLog()
	loadModules(log, "/modules.list")
	if err := settle(log); err != nil {
		return err
	}
	if err := holdVM(); err != nil {
		log.Warn("the emulated host may stop answering", "err", err)
	}
	server, err := os.StartProcess("/init", []string{"spore-hostinit", "serve"}, &os.ProcAttr{
		// Memory is cheaper here than the emulated processor's time.
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "GOGC=800"},
		Files: []*os.File{nil, nil, nil},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == nil && pid == server.Pid {
			return fmt.Errorf("server ended: %v", status)
		}
		if err != nil && err != syscall.EINTR {
			return fmt.Errorf("wait for children: %w", err)
		}
	}
}

// kernelLog writes to the kernel's log, which dmesg shows.
func kernelLog() *slog.Logger {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.String("from", "spore-hostinit")
			}
			return a
		}}))
}

// setClock sets the wall clock.
func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// maxClockError is how far the clock may be off before a session steps it.
const maxClockError = 500 * time.Millisecond

// correctClock steps the clock when it is clearly wrong, as it is when the
// outer machine has been suspended.
func correctClock(t time.Time) {
	if d := time.Since(t); d > maxClockError || d < -maxClockError {
		_ = setClock(t) // a wrong clock is no reason to refuse the command
	}
}
