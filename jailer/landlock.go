package jailer

import "golang.org/x/sys/unix"

// landlockABI is what each version of Landlock's interface added (linux/landlock.h). All that a version knows is
// handled, so everything is refused that no rule allows.
var landlockABI = []struct{ fs, net, scope uint64 }{
	1: {fs: 1<<13 - 1},
	2: {fs: unix.LANDLOCK_ACCESS_FS_REFER},
	3: {fs: unix.LANDLOCK_ACCESS_FS_TRUNCATE},
	4: {net: unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP},
	5: {fs: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
	6: {scope: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL},
}

// landlock confines the process to its own binary, which exec(2) opens a moment later and which no path in the empty
// root leads to. ruleset is the descriptor that the kernel gives next. With connect it may connect by TCP, and bind no port still.
func (p *plan) landlock(abi, ruleset, exe int, connect bool) {
	const (
		why  = "no file, no TCP port, no abstract socket and no process outside, even where the filters would let a call through"
		file = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE
	)
	var attr unix.LandlockRulesetAttr
	for i, a := range landlockABI {
		if i <= abi {
			attr.Handled_access_fs |= a.fs
			attr.Handled_access_net |= a.net
			attr.Scoped |= a.scope
		}
	}
	if connect {
		attr.Handled_access_net &^= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	size := uintptr(8)
	if abi >= 4 {
		size = 16
	}
	if abi >= 6 {
		size = 24
	}
	p.add("landlock", why, unix.SYS_LANDLOCK_CREATE_RULESET, address(hold(p, attr)), size, 0)
	p.add("landlock", "", unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH,
		address(hold(p, unix.LandlockPathBeneathAttr{Allowed_access: file, Parent_fd: int32(exe)})), 0)
	p.add("landlock", "", unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0)
	p.add("landlock", "", unix.SYS_CLOSE, uintptr(ruleset))
}
