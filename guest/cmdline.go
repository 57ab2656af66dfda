// Package guest is what every guest boots with: the kernel and its command line. The initramfs is package
// guest/initramfs.
package guest

import "strings"

// parameters of the guest kernel's command line, each with its reason.
var parameters = []struct{ text, why string }{
	{"quiet", "every character on a console is an exit"},
	{"console=hvc0", "what the kernel says when it dies goes to the virtio console"},
	{"panic=-1", "a panic resets at once, after telling pvpanic"},
	{"reboot=a", "through the ACPI reset register, the only one there is"},
	{"random.trust_cpu=on", "the generator starts from RDRAND instead of waiting for jitter"},
	{"nomodule", "there are none"},
	{"cryptomgr.notests", "no self-tests of ciphers at boot"},
	{"8250.nr_uarts=0", "there is no UART unless asked for"},
	{"tsc=reliable", "the TSC is the host's: no watchdog"},
	{"no_timer_check", "the timer works"},
	{"rcupdate.rcu_expedited=1", "grace periods at boot end quickly"},
	{"rdinit=/init", "the agent"},
}

// Cmdline is the command line for a guest of ours.
func Cmdline() string {
	var words []string
	for _, p := range parameters {
		words = append(words, p.text)
	}
	return strings.Join(words, " ")
}
