package emuhost_test

import (
	"context"
	"fmt"
	"os"

	"spore/emuhost"
)

// Start the emulated host, unless it runs already, and look at its /dev/kvm.
func ExampleHost_Run() {
	ctx := context.Background()
	host, err := emuhost.Open(emuhost.Config{InitBinary: "bin/spore-hostinit"})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := host.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	code, err := host.Run(ctx, emuhost.Command{
		Args: []string{"ls", "-l", "/dev/kvm"}, Env: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr,
	})
	fmt.Println(code, err)
}
