package proxy

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"spore/network/policy"
)

// Secret is a value that the guest never sees. The guest has the placeholder, which is replaced in requests to the secret's hosts, over
// TLS that the host has proven to be its end of: in the values of headers, the user and password of basic authentication among them, in
// the path and query of the target, and in small bodies of HTML forms. It is not replaced in other bodies: what is in these is content,
// which servers keep and show to others.
//
// What comes back is searched for the value, which is overwritten in headers and in bodies that are not encoded. A host that gives the
// value back in some other form gives it away: a secret is as safe as the hosts that it is for.
type Secret struct {
	policy.Secret
	Placeholder string
	Value       string
}

// String hides the value.
func (s Secret) String() string { return s.Name }

// GoString hides the value too.
func (s Secret) GoString() string { return s.Name }

// Bounds of a secret, in bytes.
const (
	minPlaceholder = 16
	maxPlaceholder = 256
	maxValue       = 16 << 10
	maxForm        = 64 << 10 // the body of a form that is searched
)

// validate reports what is wrong with s beside the others.
func (s *Secret) validate(others []Secret) error {
	if len(s.Placeholder) < minPlaceholder || len(s.Placeholder) > maxPlaceholder || strings.Trim(s.Placeholder, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return fmt.Errorf("secret %s: a placeholder has %d to %d letters, digits, '_' and '-'", s.Name, minPlaceholder, maxPlaceholder)
	}
	if s.Value == "" || len(s.Value) > maxValue {
		return fmt.Errorf("secret %s: a value has 1 to %d bytes", s.Name, maxValue)
	}
	for _, c := range []byte(s.Value) {
		if c < ' ' || c == 0x7f {
			return fmt.Errorf("secret %s: the value has a control character, a line's end perhaps, which no header can carry: take it away", s.Name)
		}
	}
	for _, o := range others {
		if strings.Contains(o.Placeholder, s.Placeholder) || strings.Contains(s.Placeholder, o.Placeholder) {
			return fmt.Errorf("secrets %s and %s: one's placeholder is in the other's", o.Name, s.Name)
		}
	}
	return nil
}

// replacement is bytes that others take the place of, as many.
type replacement struct{ from, to []byte }

// scrubs are the forms of the value that are looked for in what comes back: as it is, and as it is in a target.
func (s *Secret) scrubs() []replacement {
	const tooShort = 6 // bytes: it would be found where it is not
	var out []replacement
	seen := map[string]bool{}
	for _, form := range []string{s.Value, url.QueryEscape(s.Value), base64.StdEncoding.EncodeToString([]byte(s.Value))} {
		if seen[form] || len(form) < tooShort {
			continue
		}
		seen[form] = true
		to := []byte(strings.Repeat(s.Placeholder, len(form)/len(s.Placeholder)+1))[:len(form)]
		out = append(out, replacement{[]byte(form), to})
	}
	return out
}

// substitute puts secrets into a request to the host that the connection is to.
func (x *exchange) substitute(r *http.Request) {
	for i := range x.proxy.cfg.Secrets {
		s := &x.proxy.cfg.Secrets[i]
		if !s.Covers(x.secure) {
			continue
		}
		n := 0
		for _, values := range r.Header {
			for j := range values {
				values[j] = replace(values[j], s.Placeholder, s.Value, &n)
				values[j] = basic(values[j], s, &n)
			}
		}
		r.URL.RawQuery = replace(r.URL.RawQuery, s.Placeholder, url.QueryEscape(s.Value), &n)
		if path := r.URL.EscapedPath(); strings.Contains(path, s.Placeholder) {
			escaped := replace(path, s.Placeholder, url.PathEscape(s.Value), &n)
			if plain, err := url.PathUnescape(escaped); err == nil {
				r.URL.Path, r.URL.RawPath = plain, escaped
			}
		}
		form(r, s, &n)
		x.proxy.substitutions.Add(uint64(n))
	}
}

func replace(in, old, with string, n *int) string {
	if c := strings.Count(in, old); c > 0 {
		*n += c
		return strings.ReplaceAll(in, old, with)
	}
	return in
}

// basic puts a secret into the user and password of a header's value (RFC 7617).
func basic(value string, s *Secret, n *int) string {
	const scheme = "basic "
	if len(value) <= len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return value
	}
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value[len(scheme):]))
	if err != nil || !bytes.Contains(plain, []byte(s.Placeholder)) {
		return value
	}
	return value[:len(scheme)] + base64.StdEncoding.EncodeToString([]byte(replace(string(plain), s.Placeholder, s.Value, n)))
}

// form puts a secret into the body of a form, if that is small and its length is known: a grant of OAuth 2.0, for example.
func form(r *http.Request, s *Secret, n *int) {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "application/x-www-form-urlencoded") || r.ContentLength <= 0 || r.ContentLength > maxForm {
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxForm))
	if err != nil {
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), failing{err}))
		return
	}
	text := replace(string(body), s.Placeholder, url.QueryEscape(s.Value), n)
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
}

// failing is a reader that fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// stray notes a placeholder on its way to a host that its secret is not for. It stays what it is.
func (x *exchange) stray(r *http.Request, host string) {
	for i := range x.proxy.cfg.Secrets {
		s := &x.proxy.cfg.Secrets[i]
		if x.secure != "" && s.Covers(host) || !mentions(r, s.Placeholder) {
			continue
		}
		why := "the placeholder of " + s.Name + " was sent to a host that the secret is not for"
		if s.Covers(host) {
			why = "the placeholder of " + s.Name + " was sent without TLS"
		}
		x.proxy.cfg.Record(policy.Event{Action: policy.Deny, Protocol: policy.TCP, Destination: x.flow.Destination, Name: host,
			Rule: "secret:" + s.Name, Reason: why + ", and was not replaced"})
	}
}

// mentions reports whether a placeholder is anywhere in the head of a request.
func mentions(r *http.Request, placeholder string) bool {
	if strings.Contains(r.RequestURI, placeholder) {
		return true
	}
	probe := &Secret{Placeholder: placeholder}
	for _, values := range r.Header {
		for _, v := range values {
			n := 0
			if basic(v, probe, &n); n > 0 || strings.Contains(v, placeholder) {
				return true
			}
		}
	}
	return false
}

// conceal overwrites the values of secrets in a response.
func (x *exchange) conceal(resp *http.Response) {
	for _, values := range resp.Header {
		for i := range values {
			for _, s := range x.proxy.scrub {
				values[i] = strings.ReplaceAll(values[i], string(s.from), string(s.to))
			}
		}
	}
	resp.Trailer = nil
	if enc := resp.Header.Get("Content-Encoding"); resp.Body != nil && (enc == "" || strings.EqualFold(enc, "identity")) {
		resp.Body = &concealing{ReadCloser: resp.Body, scrub: x.proxy.scrub}
	}
}

// concealing is a body in which values are overwritten, wherever the pieces end that it comes in.
type concealing struct {
	io.ReadCloser
	scrub []replacement
	held  []byte // clean but for its end, which may be the beginning of a value
	ready int    // bytes of held that can be given
	err   error
}

func (c *concealing) Read(p []byte) (int, error) {
	for c.ready == 0 {
		if c.err != nil {
			return 0, c.err
		}
		at := len(c.held)
		c.held = append(c.held, make([]byte, max(len(p), 512))...)
		n, err := c.ReadCloser.Read(c.held[at:])
		c.held, c.err = c.held[:at+n], err
		for _, s := range c.scrub {
			overwrite(c.held, s)
		}
		c.ready = len(c.held)
		if c.err == nil {
			c.ready -= c.begun()
		}
		if n == 0 && c.err == nil {
			return 0, nil
		}
	}
	n := copy(p, c.held[:c.ready])
	c.held = c.held[:copy(c.held, c.held[n:])]
	c.ready -= n
	return n, nil
}

func overwrite(b []byte, s replacement) {
	for at := bytes.Index(b, s.from); at >= 0; {
		copy(b[at:], s.to)
		next := bytes.Index(b[at+len(s.to):], s.from)
		if next < 0 {
			return
		}
		at += len(s.to) + next
	}
}

// begun is the length of the longest end of held that a value begins with.
func (c *concealing) begun() int {
	longest := 0
	for _, s := range c.scrub {
		for n := min(len(s.from)-1, len(c.held)); n > longest; n-- {
			if bytes.HasSuffix(c.held, s.from[:n]) {
				longest = n
			}
		}
	}
	return longest
}
