package block

import (
	"encoding/json"
	"fmt"
)

// State is what a snapshot keeps of a Device: its shape, for the restored device to be checked against. The policy
// (read-only, rate, the file itself) always comes from the Config, never from here.
type State struct {
	Sectors  uint64 `json:"sectors"`
	ReadOnly bool   `json:"read_only"`
	Queues   int    `json:"queues"`
}

// SaveState describes the device. There is nothing to save of a stopped device: no chain is in flight.
func (d *Device) SaveState() (json.RawMessage, error) {
	return json.Marshal(State{d.sectors, d.readOnly, d.queues})
}

// LoadState refuses a state that was saved of a device of another shape: the guest knows the old one's.
func (d *Device) LoadState(raw json.RawMessage) error {
	var s State
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("load block state: %w", err)
	}
	if have := (State{d.sectors, d.readOnly, d.queues}); s != have {
		return fmt.Errorf("load block state: saved of %+v, this is %+v", s, have)
	}
	return nil
}
