// Package resolvertest is a name server to test with: a zone of records in text, and an upstream that serves it over connections in
// memory and can be made to lie, to be silent or to be slow.
package resolvertest

import (
	"fmt"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// Zone is records by owner and type. The zero value has none and answers NXDOMAIN. It is safe for use by several goroutines.
type Zone struct {
	mu      sync.Mutex
	records map[string][]dns.RR // by owner in lower case
}

// Add adds records in master-file form, "example.org. 60 IN A 192.0.2.1".
func (z *Zone) Add(records ...string) error {
	for _, text := range records {
		r, err := dns.NewRR(text)
		if err != nil || r == nil {
			return fmt.Errorf("add record %q: %w", text, err)
		}
		z.Put(r)
	}
	return nil
}

// Put adds records that have been read, and only reads them.
func (z *Zone) Put(records ...dns.RR) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.records == nil {
		z.records = map[string][]dns.RR{}
	}
	for _, r := range records {
		name := strings.ToLower(r.Header().Name)
		z.records[name] = append(z.records[name], r)
	}
}

// Set replaces all records of an owner.
func (z *Zone) Set(owner string, records ...string) error {
	z.mu.Lock()
	delete(z.records, strings.ToLower(dns.Fqdn(owner)))
	z.mu.Unlock()
	return z.Add(records...)
}

// Respond answers a query as a recursive resolver would: aliases are followed, and their records come along. The question is repeated as
// it is.
func (z *Zone) Respond(query *dns.Msg) *dns.Msg {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(query)
	m.RecursionAvailable = true
	if len(query.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	q := query.Question[0]
	owner := q.Name
	for range 20 {
		records, ok := z.records[strings.ToLower(owner)]
		if !ok && len(m.Answer) == 0 {
			m.Rcode = dns.RcodeNameError
		}
		next := ""
		for _, r := range records {
			r = dns.Copy(r)
			if strings.EqualFold(owner, q.Name) {
				r.Header().Name = q.Name
			}
			switch c, alias := r.(*dns.CNAME); {
			case r.Header().Rrtype == q.Qtype:
				m.Answer = append(m.Answer, r)
			case alias:
				m.Answer = append(m.Answer, r)
				next = c.Target
			}
		}
		if next == "" {
			break
		}
		owner = next
	}
	return m
}
