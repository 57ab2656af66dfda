package agent_test

import (
	"context"
	"fmt"
	"net"
	"os"

	"spore/agent"
)

// A process in a guest, and the guest: here a few lines that speak as its agent would.
func ExampleStart() {
	dial := func(context.Context, uint32) (agent.Conn, error) {
		host, guest := net.Pipe()
		go func() {
			r, w := agent.NewReader(guest), agent.NewWriter(guest)
			var req agent.Request
			if r.Expect(agent.FrameRequest, &req) != nil {
				return
			}
			w.SendJSON(agent.FrameStarted, agent.Started{ID: 1})
			fmt.Fprintln(w.Stream(agent.FrameStdout), "ran", req.Exec.Args)
			w.SendJSON(agent.FrameExit, agent.Exit{Code: 3})
		}()
		return host, nil
	}
	p, err := agent.Start(context.Background(), dial, agent.Exec{Args: []string{"make", "test"}, Dir: "/"}, agent.Streams{Stdout: os.Stdout})
	if err != nil {
		fmt.Println(err)
		return
	}
	exit, err := p.Wait()
	fmt.Println(exit.Code, err)
	// Output:
	// ran [make test]
	// 3 <nil>
}
