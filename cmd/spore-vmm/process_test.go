package main

import (
	"errors"
	"os"
	"testing"

	"spore/internal/testenv"
	"spore/jailer"
	"spore/vmm/policy"
)

// vmmProcess is a spore-vmm under test, in a jail or not.
type vmmProcess struct {
	Process      *os.Process
	ProcessState *os.ProcessState // once Wait has returned
}

// Wait waits for the end, which must be exit code 0.
func (p *vmmProcess) Wait() error {
	if p.ProcessState != nil {
		return nil
	}
	st, err := p.Process.Wait()
	p.ProcessState = st
	if err == nil && !st.Success() {
		err = errors.New(st.String())
	}
	return err
}

// said is a file with what a process wrote to standard error.
type said struct{ path string }

func (s said) String() string {
	b, err := os.ReadFile(s.path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// launch starts the binary with those files from descriptor 3 on.
func launch(t *testing.T, jailed bool, files []*os.File) (*vmmProcess, said) {
	t.Helper()
	path := binary(t)
	stderr, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	p := &vmmProcess{}
	if jailed {
		testenv.Require(t, testenv.Root)
		exe, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer exe.Close()
		uid, gid := jailer.Identity(1)
		inmate, err := jailer.Start(jailer.Config{Exe: exe, Env: []string{"GODEBUG=disablethp=1"}, UID: uid, GID: gid, Files: files, Stderr: stderr,
			Filter: policy.BuildingProgram, FileSize: 1 << 20, Without: jailer.Optional()})
		if err != nil {
			t.Fatal(err)
		}
		p.Process = inmate.Process
	} else {
		p.Process, err = os.StartProcess(path, []string{path, "-unjailed"}, &os.ProcAttr{Files: append([]*os.File{nil, nil, stderr}, files...)})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { p.Process.Kill(); p.Wait() })
	return p, said{stderr.Name()}
}
