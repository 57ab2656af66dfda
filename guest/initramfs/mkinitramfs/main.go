// Command mkinitramfs writes the guest's initramfs from a built agent.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"

	"spore/guest/initramfs"
)

func main() {
	agent := flag.String("agent", "bin/spore-agent", "the `binary` that becomes /init")
	out := flag.String("o", "bin/initramfs.cpio", "`file` to write")
	flag.Parse()
	if err := run(*agent, *out); err != nil {
		fmt.Fprintln(os.Stderr, "mkinitramfs:", err)
		os.Exit(1)
	}
}

// run replaces the file in one step: a sandbox that starts meanwhile sees the old one or the new one.
func run(agent, out string) error {
	init, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := initramfs.Write(&b, init); err != nil {
		return err
	}
	if err := os.WriteFile(out+".tmp", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(out+".tmp", out)
}
