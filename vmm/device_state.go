package vmm

import (
	"bytes"
	"encoding/json"
	"fmt"

	"spore/internal/wire"
	"spore/virtio/mmio"
)

// The forms that a device's state has in a snapshot, by their first byte. To take the state of seven devices as JSON cost a tenth of a
// wake, and more of the time that a guest stands still while it is saved.
const (
	deviceJSON  = '{' // up to version 1 of the file
	deviceValue = 2   // a value of mmio.State in the layout of deviceLayout
)

// deviceLayout is that of mmio.State. When the type changes, the old one and its number stay, to be read.
const deviceLayout = 0xd4f10bc0

func encodeDevice(s mmio.State) ([]byte, error) {
	return wire.AppendValue([]byte{deviceValue}, deviceLayout, &s)
}

// decodeDevice reads what any build wrote. What it says is for the device to judge.
func decodeDevice(b []byte) (s mmio.State, err error) {
	switch {
	case len(b) == 0:
		return s, fmt.Errorf("%w: there is none", mmio.ErrState)
	case b[0] == deviceValue:
		err = wire.ParseValue(b[1:], deviceLayout, &s)
	case b[0] == deviceJSON:
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		err = dec.Decode(&s)
	default:
		err = fmt.Errorf("it is of form %d", b[0])
	}
	if err != nil {
		return s, fmt.Errorf("%w: %w", mmio.ErrState, err)
	}
	return s, nil
}
