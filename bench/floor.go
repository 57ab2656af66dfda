package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"spore/vmm/policy"
)

// floor is the C program of bench/floor, which makes the calls of a fresh start without Go. It waits for a line between wakes.
type floor struct {
	process *exec.Cmd
	ask     io.WriteCloser
	answer  *bufio.Reader
}

// floorName is what a row calls it.
const floorName = "C, same calls"

// startFloor starts the floor for a snapshot, or returns nil when it has not been built.
func startFloor(s settings, d dormant) (*floor, error) {
	program, vmm := filepath.Join(s.bin, "floor"), filepath.Join(s.bin, "floor-vmm")
	if _, err := os.Stat(program); err != nil {
		fmt.Fprintf(os.Stderr, "bench: nothing to compare with: no %s, which scripts/bench-floor.sh builds\n", program)
		return nil, nil
	}
	args := []string{vmm, d.state, d.memory}
	for name, filter := range map[string][]byte{"building": policy.BuildingProgram, "running": policy.RunningProgram, "vcpu": policy.VCPUProgram} {
		if err := os.WriteFile(filepath.Join(s.scratch, name), filter, 0o644); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"building", "running", "vcpu"} {
		args = append(args, filepath.Join(s.scratch, name))
	}
	f := &floor{process: exec.Command(program, args...)}
	f.process.Stderr = os.Stderr
	ask, err := f.process.StdinPipe()
	if err != nil {
		return nil, err
	}
	answer, err := f.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	f.ask, f.answer = ask, bufio.NewReader(answer)
	return f, f.process.Start()
}

// wake wakes the guest once. A nil floor does nothing.
func (f *floor) wake() (s stamps, err error) {
	if f == nil {
		return s, nil
	}
	if _, err := f.ask.Write([]byte("\n")); err != nil {
		return s, fmt.Errorf("floor: %w", err)
	}
	line, err := f.answer.ReadString('\n')
	if err != nil {
		return s, fmt.Errorf("floor: %w", err)
	}
	var ns [4]float64
	if _, err := fmt.Sscan(line, &ns[0], &ns[1], &ns[2], &ns[3]); err != nil {
		return s, fmt.Errorf("floor says %q: %w", line, err)
	}
	return stamps{process: ns[0] / 1e6, running: ns[1] / 1e6, first: ns[2] / 1e6, returned: ns[3] / 1e6}, nil
}

func (f *floor) stop() error {
	if f == nil {
		return nil
	}
	return errors.Join(f.ask.Close(), f.process.Wait())
}
