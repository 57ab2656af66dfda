// Package policy is what a sandbox may reach: rules are parsed or refused, flows and names are judged by them, and every
// verdict says which rule it came from, why, and what would change it. It does no input or output and keeps no time
// of its own: clocks, addresses of the host and answers of name servers are handed in.
//
// A Policy is immutable and may be used by any number of goroutines at once. Names, Audit: see there.
package policy
