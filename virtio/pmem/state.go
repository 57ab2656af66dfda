package pmem

import (
	"encoding/json"
	"fmt"

	"spore/guestmem"
)

// State is what a snapshot keeps of a Device: the range the guest knows, for the restored one to be checked against.
type State struct {
	Start guestmem.GPA `json:"start"`
	Size  uint64       `json:"size"`
}

// SaveState describes the device; a stopped one has nothing else to keep.
func (d *Device) SaveState() (json.RawMessage, error) { return json.Marshal(State(d.cfg)) }

// LoadState refuses a state saved of a device at another place.
func (d *Device) LoadState(raw json.RawMessage) error {
	var s State
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("load pmem state: %w", err)
	}
	if s != State(d.cfg) {
		return fmt.Errorf("load pmem state: saved of %+v, this is %+v", s, d.cfg)
	}
	return nil
}
