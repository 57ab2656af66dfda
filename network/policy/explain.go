package policy

// Explanation is a verdict and how it came about.
type Explanation struct {
	Asked   string  `json:"asked"`
	Verdict Verdict `json:"verdict"`
	Steps   []Step  `json:"steps"`
}

// Step is one question that the policy asked itself, in words.
type Step struct {
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// ExplainAddress says what would become of a flow to address: [tcp://|udp://|icmp://] and an IP address or a name, with or without
// a port. names may be nil: a name's addresses are then not known. An error means that address cannot be read.
func (p *Policy) ExplainAddress(names *Names, address string) (Explanation, error) {
	return Explanation{}, nil
}

// String is the explanation as lines of text.
func (e Explanation) String() string { return "" }
