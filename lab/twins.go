package lab

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"spore/agent"
)

// Twin is one thing that two guests of the same memory must not have in common.
type Twin struct {
	What   string `json:"what"`
	First  string `json:"first"`
	Second string `json:"second"`
	Absent bool   `json:"absent,omitempty"` // the image has no such thing
}

// OK reports whether the two differ, as they must.
func (t Twin) OK() bool { return t.Absent || t.First != t.Second }

// twinProbes are shell commands whose output must differ. What an image lacks it need not differ in: the command then
// prints nothing. What is made from the time alone is not asked for: it differs whatever the guests have in common.
var twinProbes = []struct{ what, command string }{
	{"getrandom(2), by the kernel's uuid", "cat /proc/sys/kernel/random/uuid"},
	{"/dev/urandom", "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'"},
	{"/dev/random", "head -c 16 /dev/random | od -An -tx1 | tr -d ' \\n'"},
	{"host name", "cat /proc/sys/kernel/hostname"},
	{"/etc/machine-id", "test -s /etc/machine-id && cat /etc/machine-id"},
	{"a new temporary file", "mktemp -u 2>/dev/null"},
	{"python3 random", "command -v python3 >/dev/null && python3 -c 'import random; print(random.getrandbits(64))'"},
	{"python3 secrets", "command -v python3 >/dev/null && python3 -c 'import secrets; print(secrets.token_hex(16))'"},
	{"python3 uuid", "command -v python3 >/dev/null && python3 -c 'import uuid; print(uuid.uuid4())'"},
	{"openssl rand", "command -v openssl >/dev/null && openssl rand -hex 16"},
	{"perl rand", "command -v perl >/dev/null && perl -e 'print rand()'"},
	{"bash RANDOM", "command -v bash >/dev/null && bash -c 'echo $RANDOM$RANDOM$RANDOM'"},
}

// Twins asks two running guests the same and returns what they say. Each question is asked of both before the next.
func Twins(ctx context.Context, first, second agent.Dial) ([]Twin, error) {
	var twins []Twin
	for _, p := range twinProbes {
		t := Twin{What: p.what}
		for dial, answer := range map[*agent.Dial]*string{&first: &t.First, &second: &t.Second} {
			said, err := ask(ctx, *dial, p.command)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.what, err)
			}
			*answer = said
		}
		t.Absent = t.First == "" && t.Second == ""
		twins = append(twins, t)
	}
	return twins, nil
}

// ask runs a shell command in a guest, as its root: what it asks must not depend on who may read what.
func ask(ctx context.Context, dial agent.Dial, command string) (string, error) {
	var out bytes.Buffer
	p, err := agent.Start(ctx, dial, agent.Exec{
		Args: []string{"/bin/sh", "-c", command}, Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin"}, Dir: "/",
	}, agent.Streams{Stdout: &out})
	if err != nil {
		return "", err
	}
	if _, err := p.Wait(); err != nil { // a command that fails has nothing to say
		return "", err
	}
	return strings.TrimSpace(out.String()), nil
}
