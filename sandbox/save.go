package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"spore/snapshot"
	"spore/vmm/api"
)

// saved is how a snapshot came about.
type saved struct {
	api.Saved
	stopped time.Duration // for which the guest stood still
	goesOn  bool          // the guest runs on; false after an error that leaves it standing still
}

// save writes the running machine to a draft: its state, its memory, its writable layer, all of one moment. The guest
// stands still from that moment until the writable layer is copied.
func (v *supervisor) save(ctx context.Context, to *snapshot.Draft, live bool) (s saved, err error) {
	reply, err := v.machine.request(ctx, api.Request{Op: api.OpSave, Live: live}, to.State, to.Memory)
	if reply.Saved != nil {
		s.Saved = *reply.Saved
	}
	if err != nil { // then the VMM has not left it standing
		s.goesOn = ctx.Err() == nil
		return s, fmt.Errorf("save sandbox: %w", err)
	}
	err = v.saveDisk(ctx, to)
	resumed, resumeErr := v.machine.request(context.WithoutCancel(ctx), api.Request{Op: api.OpResume})
	s.goesOn, s.stopped = resumeErr == nil, time.Duration(resumed.Stopped)
	if err = errors.Join(err, resumeErr); err != nil {
		return s, fmt.Errorf("save sandbox: %w", err)
	}
	var base *os.File
	if s.Changes {
		if base = v.base; base == nil {
			return s, errors.New("save sandbox: the VMM saved changes to a memory that it did not wake with")
		}
	}
	return s, to.Rebase(ctx, base, v.sb.Config.Memory)
}

func (v *supervisor) saveDisk(ctx context.Context, to *snapshot.Draft) error {
	disk, err := os.Open(v.sb.path(writableFile))
	if err != nil {
		return err
	}
	defer disk.Close()
	return to.TakeDisk(ctx, disk, v.sb.Config.Disk)
}
