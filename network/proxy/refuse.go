package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"spore/network/policy"
)

// errRefused has the guest see a reset: there is no other way to say no in what it speaks.
var errRefused = errors.New("refused")

// farewell is how long a guest may take to read why it is refused.
const farewell = 2 * time.Second

// alerts of TLS (RFC 8446 §6.2), as fatal records.
var (
	alertAccessDenied   = []byte{21, 3, 1, 0, 2, 2, 49}
	alertBadCertificate = []byte{21, 3, 1, 0, 2, 2, 42}
)

// refuse says no in what the guest speaks.
func (p *Proxy) refuse(c Connection, head []byte, what speech, v policy.Verdict) Outcome {
	v.Action = policy.Deny
	out := Outcome{Verdict: v, Name: what.name}
	switch {
	case what.spoken == policy.SpokenTLS || what.spoken == policy.SpokenTLSEncrypted:
		say(c.Guest, alertAccessDenied)
	case what.spoken == policy.SpokenHTTP && !what.http2:
		in := newReader(&replay{c.Guest, head})
		host := ""
		if r, err := in.request(c.Guest, time.Now().Add(p.cfg.Sniff)); err == nil {
			host = r.Host
		}
		out.Name = host
		p.answer(c.Guest, http.StatusForbidden, denial(c.Flow, v, host))
		drain(c.Guest, farewell)
	default:
		out.Err = errRefused
	}
	return out
}

// say writes a few last bytes.
func say(c Conn, b []byte) {
	if c.SetWriteDeadline(time.Now().Add(farewell)) == nil {
		_, _ = c.Write(b) // a guest that does not listen misses it
	}
	drain(c, farewell)
}

// Denial is the body of an answer that the proxy gives in a server's place, as JSON.
type Denial struct {
	Code        string `json:"code"` // DenialCode, or UnreachableCode
	Rule        string `json:"rule,omitempty"`
	Host        string `json:"host,omitempty"` // as the guest said it
	Destination string `json:"destination"`
	Reason      string `json:"reason"`
	Remedy      string `json:"remedy,omitempty"`
}

// Codes of a Denial.
const (
	DenialCode      = "denied"
	UnreachableCode = "unreachable"
	RequestCode     = "bad-request"
)

func denial(f policy.Flow, v policy.Verdict, host string) Denial {
	return Denial{Code: DenialCode, Rule: v.Rule, Host: host, Destination: f.Destination.String(), Reason: v.Reason, Remedy: v.Remedy}
}

// answer answers a request in the server's place, and ends the connection.
func (p *Proxy) answer(w io.Writer, status int, d Denial) {
	if len(d.Host) > 255 {
		d.Host = d.Host[:255]
	}
	body, err := json.Marshal(d)
	if err != nil {
		panic("bug: a denial cannot be encoded: " + err.Error())
	}
	body = append(body, '\n')
	// One write, and an error is a guest that does not listen.
	_, _ = fmt.Fprintf(w, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\nX-Spore: %s\r\n\r\n%s",
		status, http.StatusText(status), len(body), d.Code, body)
}
