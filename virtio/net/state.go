package net

import (
	"encoding/json"
	"fmt"
)

// State is what a snapshot keeps of a Device. Address, MTU, offloads and rates come from the Config: who wakes is somebody else.
type State struct {
	LinkUp bool `json:"link_up"` // as the driver was told
}

// SaveState says what the driver knows of the link. There is nothing else: buffers that were not filled are the driver's again.
func (d *Device) SaveState() (json.RawMessage, error) { return json.Marshal(State{d.told}) }

// LoadState takes what SaveState returned. The driver is told where the link is another now.
func (d *Device) LoadState(raw json.RawMessage) error {
	var s State
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("load network state: %w", err)
	}
	d.told = s.LinkUp
	return nil
}
