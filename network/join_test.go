package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// BenchmarkPath carries frames from one tap to another: over a bridge that both are on, as QEMU's plain tap is; over two attachments of ours; and
// over two that are joined by tc's redirect instead, without any filter.
func BenchmarkPath(b *testing.B) {
	for _, size := range []int{60, 1500, 64000} {
		for _, path := range []string{"plain", "nft", "tc"} {
			b.Run(fmt.Sprintf("%d/%s", size, path), func(b *testing.B) {
				from, to, frame := benchPath(b, path, size)
				b.SetBytes(int64(size))
				received := make(chan int)
				go func() {
					buf, n := make([]byte, 70<<10), 0
					for {
						got, err := to.Read(buf)
						if err != nil {
							received <- n
							return
						}
						if got == len(frame) {
							n++
						}
					}
				}()
				b.ResetTimer()
				for range b.N {
					if _, err := from.Write(frame); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				to.Close()
				b.ReportMetric(100*float64(<-received)/float64(b.N), "%arrived")
			})
		}
	}
}

// benchPath returns two taps that are joined, and a frame from one to the other, of TCP if it has to be cut up on the way out.
func benchPath(b *testing.B, path string, size int) (from, to *os.File, frame []byte) {
	n := testNetworks(b)
	src, dst := MAC(randomMAC()), MAC(randomMAC())
	src4, dst4 := "192.0.2.1", "192.0.2.2"
	if path == "plain" {
		ns := scratchNetNS(b)
		err := inNetNS(ns, func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "br"
			bridge := &netlink.Bridge{LinkAttrs: attrs}
			err := netlink.LinkAdd(bridge)
			for i, to := range []**os.File{&from, &to} {
				name := fmt.Sprint("tap", i)
				f, tapErr := makeTap(name)
				*to = f
				link, linkErr := netlink.LinkByName(name)
				err = errors.Join(err, tapErr, linkErr, netlink.LinkSetMaster(link, bridge), netlink.LinkSetUp(link))
			}
			return errors.Join(err, netlink.LinkSetUp(bridge))
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { from.Close(); to.Close() })
	} else {
		x := mustAttach(b, n, Request{Choice: Choice{KindInternal, "bench"}})
		y := mustAttach(b, n, Request{Choice: Choice{KindInternal, "bench"}})
		from, to, src, dst, src4, dst4 = x.Tap, y.Tap, x.MAC, y.MAC, own(x, true), own(y, true)
		if path == "tc" {
			for _, a := range []*Attachment{x, y} {
				if err := inNetNS(a.NetNS, redirect); err != nil {
					b.Skip(err)
				}
			}
		}
	}
	header := make([]byte, vnetHeader)
	if size <= 1500 {
		return from, to, join(header, ether(dst, src, 0x0800, ipv4(src4, dst4, 17, nil, udp(1, 2, string(make([]byte, size-42))))))
	}
	tcp := join(be16(1000), be16(2000), make([]byte, 8), []byte{5 << 4, 0x10}, be16(1000), make([]byte, 4), make([]byte, size-54))
	header[0], header[1] = 1, 1
	for i, v := range []uint16{14 + 20 + 20, 1448, 14 + 20, 16} {
		binary.LittleEndian.PutUint16(header[2+2*i:], v)
	}
	return from, to, join(header, ether(dst, src, 0x0800, ipv4(src4, dst4, 6, nil, tcp)))
}

// redirect joins the tap and eth0 by tc, in place of our rules.
func redirect() error {
	if err := deleteTable(context.Background(), "netdev", "spore"); err != nil {
		return err
	}
	for _, pair := range [][2]string{{tapInterface, guestInterface}, {guestInterface, tapInterface}} {
		from, err := netlink.LinkByName(pair[0])
		if err != nil {
			return err
		}
		to, err := netlink.LinkByName(pair[1])
		if err != nil {
			return err
		}
		ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
		if err := netlink.QdiscAdd(ingress); err != nil {
			return err
		}
		filter := &netlink.U32{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
			Actions:     []netlink.Action{&netlink.MirredAction{ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: to.Attrs().Index}},
		}
		if err := netlink.FilterAdd(filter); err != nil {
			return err
		}
	}
	return nil
}
