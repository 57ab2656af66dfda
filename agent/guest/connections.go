package guest

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Messages of the sock_diag family (linux/sock_diag.h, linux/inet_diag.h).
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	inetDiagRequest = 56 // struct inet_diag_req_v2
	inetDiagMessage = 72 // struct inet_diag_msg
	inetDiagID      = 48 // struct inet_diag_sockid, the last of the former and at offset 4 of the latter
)

// established is the set of TCP states (linux/tcp_states.h) of a connection that has, or waits for, a peer: neither listening, nor
// closed, nor a mere memory.
const established = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11

// maxConnections bounds what is reset in one go.
const maxConnections = 1 << 16

// resetConnections makes every TCP connection to another machine fail with "connection aborted" now, rather than after the quarter of an
// hour in which nobody would answer. A kernel without SOCK_DESTROY leaves them to that.
func resetConnections() error {
	c, err := openNetlink(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer c.close()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		var found [][]byte
		request := connectionRequest(family, established, nil)
		err := c.dump(sockDiagByFamily, request, func(body []byte) {
			if len(body) < inetDiagMessage || len(found) >= maxConnections {
				return
			}
			if id := body[4 : 4+inetDiagID]; !localOnly(family, id) {
				found = append(found, connectionRequest(family, established, id))
			}
		})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list connections: %w", err)
		}
		for len(found) > 0 {
			var t batch
			n := min(len(found), 128)
			for _, r := range found[:n] {
				// It may just have ended, or the kernel has no SOCK_DESTROY.
				t.add("reset a connection", sockDestroy, 0, r, unix.ENOENT, unix.EOPNOTSUPP)
			}
			if err := c.do(&t); err != nil {
				return err
			}
			found = found[n:]
		}
	}
	return nil
}

// connectionRequest is struct inet_diag_req_v2 for the connections of a family in these states, or for one of them.
func connectionRequest(family byte, states uint32, id []byte) []byte {
	b := append(make([]byte, 0, inetDiagRequest), family, unix.IPPROTO_TCP, 0, 0)
	b = native.AppendUint32(b, states)
	b = append(b, id...)
	return b[:inetDiagRequest]
}

// localOnly reports whether a connection of struct inet_diag_sockid does not leave the machine.
func localOnly(family byte, id []byte) bool {
	peer := id[20:36] // after the ports and the source
	if family == unix.AF_INET {
		peer = peer[:4]
	}
	a, _ := netip.AddrFromSlice(peer)
	return a.Unmap().IsLoopback()
}
