// Command spore-agent is PID 1 of a guest. It takes no arguments; all it needs to know the host tells it.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"fmt"
	"os"

	"spore/agent/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "spore-agent is the init of a guest: it runs as PID 1 or not at all")
		os.Exit(1)
	}
	guest.Say("spore-agent: " + guest.Run().Error())
	guest.PowerOff()
}
