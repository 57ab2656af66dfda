package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/jailer/cgroup"
)

// qemuMachine is QEMU's microvm with KVM.
type qemuMachine struct {
	cmd    *exec.Cmd
	cid    uint32
	listen int // AF_VSOCK socket that the agent calls
	log    strings.Builder
	group  *cgroup.Group // as a VMM of ours has one; nil is none
}

// nextCID gives every guest an address of its own: the kernel keeps a dead one's for a while.
var nextCID atomic.Uint32

// tuned is QEMU's microvm with everything off that a guest of ours does not need: the fastest start we found.
var tuned = []string{"-M", "microvm,x-option-roms=off,pit=off,pic=off,isa-serial=off,rtc=off", "-no-user-config", "-nodefaults"}

// plain is what a user would write.
var plain = []string{"-M", "microvm", "-nodefaults", "-serial", "file:/dev/null"}

// ofOurs are the devices that every guest of ours has beside vsock: a console, and a source of randomness and a balloon, which ours takes up when it has booted.
var ofOurs = []string{
	"-device", "virtio-serial-device", "-chardev", "null,id=console", "-device", "virtconsole,chardev=console",
	"-device", "virtio-rng-device", "-device", "virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on",
}

// startQEMU starts a machine with one vCPU.
func startQEMU(f files, memory int64, machineArgs []string, kernelArgs string) (*qemuMachine, error) {
	m := &qemuMachine{cid: 100 + nextCID.Add(1) + uint32(os.Getpid())<<8&0xffffff}
	if f.cid != 0 {
		m.cid = f.cid
	}
	var err error
	if m.listen, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	if err := unix.Bind(m.listen, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: agent.ControlPort}); err != nil {
		return nil, fmt.Errorf("bind vsock: %w", err)
	}
	if err := unix.Listen(m.listen, 16); err != nil {
		return nil, err
	}
	args := append([]string{}, machineArgs...)
	args = append(args, "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", fmt.Sprint(memory>>20), "-display", "none", "-no-reboot",
		"-kernel", f.kernel, "-initrd", f.initramfs, "-append", kernelArgs,
		"-device", fmt.Sprintf("vhost-vsock-device,guest-cid=%d", m.cid))
	if f.console != "" {
		args = append(args, "-device", "virtio-serial-device", "-chardev", "file,id=console,path="+f.console, "-device", "virtconsole,chardev=console")
	}
	for i, d := range []struct {
		path, options string
	}{{f.image, ",readonly=on"}, {f.writable, ""}, {f.scratch, ""}} {
		if d.path != "" {
			args = append(args, "-drive", fmt.Sprintf("id=d%d,file=%s,format=raw,if=none%s", i, d.path, d.options), "-device", fmt.Sprintf("virtio-blk-device,drive=d%d", i))
		}
	}
	if f.cable != nil { // as descriptor 3
		args = append(args, "-netdev", "tap,id=net,fd=3,vhost=off", "-device", "virtio-net-device,netdev=net,mac="+guestMAC)
	}
	m.cmd = exec.Command("qemu-system-x86_64", args...)
	if f.cable != nil {
		m.cmd.ExtraFiles = []*os.File{f.cable.file}
		// What competes with it for processors is to do so as it does with ours.
		if m.group, err = cgroup.Create(fmt.Sprintf("bench-qemu-%d", os.Getpid()), cgroup.Limits{Memory: 2 * memory, Pids: 64, CPUs: 2}); err != nil {
			return nil, err
		}
		m.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(m.group.Dir().Fd())}
	}
	m.cmd.Stderr, m.cmd.Stdout = &m.log, &m.log
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	return m, nil
}

// agentReady waits for the call from this machine's guest.
func (m *qemuMachine) agentReady(ctx context.Context) (net.Conn, error) {
	limit, _ := ctx.Deadline()
	for {
		left := time.Until(limit)
		if left <= 0 {
			return nil, fmt.Errorf("QEMU: no call from the agent: %w\n%s", agent.ErrLost, m.log.String())
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(m.listen), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err == unix.EINTR || n == 0 {
			continue
		}
		fd, from, err := unix.Accept4(m.listen, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			return nil, err
		}
		if vm, ok := from.(*unix.SockaddrVM); ok && vm.CID == m.cid {
			return vsockConn{os.NewFile(uintptr(fd), "vsock")}, nil
		}
		unix.Close(fd)
	}
}

func (m *qemuMachine) dial(_ context.Context, port uint32) (agent.Conn, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: m.cid, Port: port}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	return vsockConn{os.NewFile(uintptr(fd), "vsock")}, nil
}

// ended waits for QEMU's end; what it has said so far tells why.
func (m *qemuMachine) ended(limit time.Duration) (string, error) {
	p, err := os.FindProcess(m.pid())
	if err != nil {
		return "", err
	}
	timer := time.AfterFunc(limit, func() { p.Kill() })
	defer timer.Stop()
	m.cmd.Wait()
	return m.cmd.ProcessState.String() + "\n" + m.log.String(), nil
}

func (m *qemuMachine) pid() int { return m.cmd.Process.Pid }

func (m *qemuMachine) stop() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
	unix.Close(m.listen)
	if m.group != nil {
		ctx, cancel := context.WithTimeout(context.Background(), runLimit)
		defer cancel()
		if err := m.group.Remove(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
}

// vsockConn is a vsock socket as a net.Conn, which the net package does not know.
type vsockConn struct{ *os.File }

func (vsockConn) LocalAddr() net.Addr  { return nil }
func (vsockConn) RemoteAddr() net.Addr { return nil }
