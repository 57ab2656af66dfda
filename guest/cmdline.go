// Package guest is what every guest boots with: the kernel and its command line. The initramfs is package
// guest/initramfs.
package guest

import "strings"

// parameters of the guest kernel's command line, each with its reason. What the kernel's configuration already
// settles is not repeated here.
var parameters = []struct{ text, why string }{
	{"quiet", "every line on a console is an exit"},
	{"console=hvc0", "what the kernel says when it dies goes to the virtio console"},
	{"panic=-1", "a panic resets at once, after telling pvpanic"},
	{"reboot=a", "through the ACPI reset register, the only one there is"},
	{"tsc=reliable", "the TSC is the host's: no watchdog over it, no timer for that"},
	{"mitigations=off", "all code in a guest is of one sandbox; between guests the host's mitigations stand"},
	{"noreplace-smp", "with one vCPU every lock prefix would be patched away: all of the text written for little"},
	{"swiotlb=noforce", "virtio needs no bounce buffers; from 4 GiB up they would take 64 MiB"},
	{"rcupdate.rcu_expedited=1", "unmounts, namespaces and cgroups do not wait for idle vCPUs' ticks"},
}

// Cmdline is the command line for a guest of ours. Later words win, so a caller may append to it:
// "console=ttyS0 8250.nr_uarts=1 loglevel=7" for a UART, for instance.
func Cmdline() string {
	words := make([]string, len(parameters))
	for i, p := range parameters {
		words[i] = p.text
	}
	return strings.Join(words, " ")
}
