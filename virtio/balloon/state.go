package balloon

import (
	"encoding/json"
	"fmt"
)

// State is what a snapshot keeps of a Device.
type State struct {
	Target uint32 `json:"target"` // pages of 4096 bytes
	Actual uint32 `json:"actual"` // pages, as the driver last said
}

// SaveState keeps the target and the driver's answer.
func (d *Device) SaveState() (json.RawMessage, error) {
	return json.Marshal(State{d.target.Load(), d.actual.Load()})
}

// LoadState takes a state back. A target beyond RAM is refused.
func (d *Device) LoadState(raw json.RawMessage) error {
	var s State
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("load balloon state: %w", err)
	}
	if s.Target > d.ram {
		return fmt.Errorf("load balloon state: target of %d pages, RAM is %d", s.Target, d.ram)
	}
	d.target.Store(s.Target)
	d.actual.Store(s.Actual)
	return nil
}
