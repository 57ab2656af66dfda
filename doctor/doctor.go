// Package doctor finds out what this machine can do by doing it: a test guest goes through long mode, an
// interrupt, ring 3 and a system call; namespaces, Landlock and seccomp are really entered. It says what is
// missing, why that matters and how to mend it.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Finding is the result of one probe.
type Finding struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"`           // a plain "spore run" does not work natively without it
	Detail string `json:"detail,omitempty"` // what was seen
	Why    string `json:"why"`              // what it is for
	Remedy string `json:"remedy,omitempty"` // what to do when it is missing
}

// Report is all findings, in the order of the probes.
type Report struct {
	Native   bool      `json:"native"` // guests run on this machine itself
	Findings []Finding `json:"findings"`
}

// Examine runs every probe. It takes some ten milliseconds where all works.
func Examine(ctx context.Context) Report {
	r := Report{Native: true}
	for _, f := range append(examineKVM(), examineHost()...) {
		r.Findings = append(r.Findings, f)
		if f.Needed && !f.OK {
			r.Native = false
		}
		if ctx.Err() != nil {
			r.Native = false
			break
		}
	}
	return r
}

// kvmSteps are the findings of the test guest.
var kvmSteps = []struct {
	name   string
	stage  stage
	why    string
	remedy string
}{
	{"kvm", stageLongMode, "a guest enters 64-bit mode", "enable VT-x or AMD-V in the firmware (or nested virtualisation in the cloud), load kvm_intel or kvm_amd, and be in the group that owns /dev/kvm"},
	{"interrupts", stageInterrupt, "the in-kernel interrupt controller delivers", "use a kernel whose KVM has an in-kernel irqchip"},
	{"ring 3", stageRing3, "a guest runs user programs", "use a host with hardware virtualisation, or the emulated host (it is used by itself)"},
	{"syscall", stageSyscall, "a guest's programs call their kernel", "use a host with hardware virtualisation, or the emulated host (it is used by itself)"},
}

func examineKVM() []Finding {
	reached, err := runGuest()
	var all []Finding
	for _, s := range kvmSteps {
		f := Finding{Name: s.name, OK: reached >= s.stage, Needed: true, Why: s.why}
		if !f.OK {
			f.Remedy = s.remedy
			if reached+1 == s.stage && err != nil {
				f.Detail = err.Error()
			} else {
				f.Detail = "not reached"
			}
		}
		all = append(all, f)
	}
	return all
}

// verdictFile remembers, for one boot of this machine, that guests run here. Only a good verdict is kept: a
// bad one costs a few milliseconds each time and may be mended meanwhile.
const verdictFile = "guests-run-here"

// GuestsRunHere returns nil when an ordinary guest can run on this machine's KVM, and otherwise why not, in
// a few words. cacheDir may be missing or read-only.
func GuestsRunHere(ctx context.Context, cacheDir string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	path := filepath.Join(cacheDir, verdictFile)
	if err == nil {
		if kept, err := os.ReadFile(path); err == nil && string(kept) == string(boot) && canOpenKVM() {
			return nil
		}
	}
	type result struct {
		reached stage
		err     error
	}
	c := make(chan result, 1)
	go func() {
		reached, err := runGuest()
		c <- result{reached, err}
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case r := <-c:
		if r.reached != stageSyscall {
			return refusal(r.reached, r.err)
		}
	}
	if len(boot) > 0 && os.MkdirAll(cacheDir, 0o700) == nil {
		// Best effort: without the file the probe is made again.
		_ = os.WriteFile(path, boot, 0o600)
	}
	return nil
}

func canOpenKVM() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err == nil
}

func refusal(reached stage, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("there is no /dev/kvm")
	case errors.Is(err, os.ErrPermission):
		return errors.New("/dev/kvm may not be opened by this user")
	case reached == stageRing3:
		return errors.New("its KVM breaks a guest's system calls")
	case err != nil:
		return fmt.Errorf("its KVM fails the test guest: %s", strings.TrimSuffix(err.Error(), "."))
	}
	return errors.New("its KVM fails the test guest")
}
