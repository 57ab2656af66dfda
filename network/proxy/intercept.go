package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"spore/network/policy"
)

// handshake bounds one of TLS, on either side.
const handshake = 30 * time.Second

// intercept opens a connection to the host of a secret: TLS ends here, and begins anew towards the host, which has to prove who it is
// before the guest hears anything.
func (p *Proxy) intercept(ctx context.Context, c Connection, head []byte, name string) error {
	host, err := policy.CanonicalName(name)
	if err != nil {
		panic("bug: a name that a secret covers is none: " + err.Error())
	}
	tcp, err := c.Dial(ctx)
	if err != nil {
		return err
	}
	outside := tls.Client(tcp, &tls.Config{ServerName: host, RootCAs: p.roots, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12, Time: p.cfg.Clock})
	defer outside.Close()
	limited, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	if err := outside.HandshakeContext(limited); err != nil {
		p.unproven(c, host, err)
		return nil
	}
	leaf, err := p.authority.leaf(host, p.cfg.Clock())
	if err != nil {
		return err
	}
	inside := tls.Server(&replay{c.Guest, head}, &tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12, Time: p.cfg.Clock})
	if err := inside.HandshakeContext(limited); err != nil {
		drain(c.Guest, farewell) // it has said why, or was told
		return nil
	}
	x := &exchange{proxy: p, flow: c.Flow, guest: inside, in: newReader(inside), out: bufio.NewWriterSize(inside, 16<<10), secure: host, outside: outside,
		first: Outcome{Verdict: policy.Verdict{Action: policy.Allow}}, served: true}
	x.dial = func() (net.Conn, error) { panic("bug: an opened connection is dialled") }
	x.back, x.forth = newReader(outside), bufio.NewWriterSize(outside, 16<<10)
	x.run()
	drain(c.Guest, farewell)
	return nil
}

// unproven tells the guest, and the audit, that a host is not what it says.
func (p *Proxy) unproven(c Connection, host string, err error) {
	p.cfg.Record(policy.Event{Action: policy.Deny, Protocol: policy.TCP, Destination: c.Flow.Destination, Name: host, Rule: "secret:tls",
		Reason: fmt.Sprintf("the host has not proven by TLS that it is %s: %v", host, err)})
	say(c.Guest, alertBadCertificate)
}
