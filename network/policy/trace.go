package policy

import (
	"net/netip"
	"strconv"
	"strings"
)

// trace notes what a judgement went through. The judgement itself writes it, so that an explanation cannot differ from what is
// done. A nil trace notes nothing and costs nothing.
type trace struct {
	steps []Step
}

func (t *trace) say(question, answer string) {
	if t != nil {
		t.steps = append(t.steps, Step{question, answer})
	}
}

// address says what there is to know of a destination.
func (t *trace) address(at *address) {
	if t == nil {
		return
	}
	answer := "public"
	if at.count > 0 && !at.ranges[0].inner.IsValid() {
		answer = words[at.ranges[0].class]
	}
	for _, inner := range at.within[:at.forms] {
		answer += "; " + inner.String() + " is within it"
	}
	for i, s := range at.ranges[:at.count] {
		answer += [...]string{"; only a rule about ", ", and "}[min(i, 1)]
		if s.class == classMetadata {
			answer += "this one address"
		} else {
			answer += "an address or range inside " + s.prefix.String()
		}
		answer += " (" + string(s.class) + ")"
	}
	if at.count > 0 {
		answer += " allows it"
	}
	t.say("What is "+at.addr.String()+"?", answer)
}

func (t *trace) public() {
	if t != nil {
		t.say("Are there rules?", "none: what is public is allowed")
	}
}

func (t *trace) denied(r *Rule) {
	if t != nil {
		t.say("Does a rule deny the address?", "yes: "+r.String())
	}
}

func (t *trace) allowed(r *Rule) {
	if t != nil {
		t.say("Does a rule allow the address?", "yes: "+r.String())
	}
}

// tooWide says why a rule that holds the address does not name it.
func (t *trace) tooWide(r *Rule, at *address) {
	if t != nil {
		t.say("Does "+r.String()+" allow the address?", "no: it does not lie inside "+at.worst().prefix.String())
	}
}

func (t *trace) noAddressRule(p *Policy) {
	if t != nil {
		t.say("Does a rule allow the address?", "none of "+strconv.Itoa(len(p.addresses))+" about addresses")
	}
}

func (t *trace) known(names []string) {
	if t == nil {
		return
	}
	answer := "none that the sandbox's name server has given"
	if len(names) > 0 {
		answer = strings.Join(names[:min(len(names), maxExplained)], ", ")
	}
	t.say("Which names stand for the address?", answer)
}

func (t *trace) judged(name string, j *judgement) {
	if t == nil {
		return
	}
	answer := "no rule allows it"
	switch {
	case j.deny != nil:
		answer = "denied: " + j.deny.String()
	case j.allow != nil:
		answer = "allowed: " + j.allow.String()
	case j.elsewhere != nil:
		answer = "at public addresses only: " + j.elsewhere.String()
	}
	t.say("What do the rules say of "+name+" there?", answer)
}

func (t *trace) stands(name string, addr netip.Addr, yes bool) {
	if t == nil {
		return
	}
	answer := "no, or too long ago"
	if yes {
		answer = "yes"
	}
	t.say("Has the sandbox's name server given "+addr.String()+" for "+name+"?", answer)
}

func (t *trace) lookedUp(name string, allow, deny *Rule) {
	if t == nil {
		return
	}
	answer := "no rule allows the name"
	switch {
	case deny != nil:
		answer = "no: " + deny.String()
	case allow != nil:
		answer = "yes: " + allow.String()
	}
	t.say("May "+name+" be resolved?", answer)
}
