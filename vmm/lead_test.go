package vmm

import (
	"context"
	"testing"

	"spore/vmm/api"
)

// TestLead runs a machine whose first vCPU is the caller's own goroutine, through a pause as well.
func TestLead(t *testing.T) {
	m, _ := newTestMachine(t, spin, func(cfg *api.Config, env *Env) { env.Lead = true })
	ctx := context.Background()
	led := make(chan struct{})
	go func() { m.Lead(); close(led) }()
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	m.Stop("enough")
	<-led
	if exit, err := m.Wait(ctx); err != nil || exit.Reason != api.ExitStopped {
		t.Errorf("%+v, %v", exit, err)
	}
}
