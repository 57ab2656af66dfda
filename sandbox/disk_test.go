package sandbox

import (
	"errors"
	"math"
	"slices"
	"testing"

	"spore/internal/sparse"
	"spore/vmm/api"
)

// A VMM that its guest has taken over says what it likes of its disk.
func TestHostileExtents(t *testing.T) {
	const size = 1 << 20
	many := make([]api.Extent, api.MaxExtents+1)
	for i := range many {
		many[i] = api.Extent{Offset: int64(i), Length: 1}
	}
	for name, list := range map[string][]api.Extent{
		"before the beginning": {{Offset: -1, Length: 2}},
		"beyond the end":       {{Offset: size, Length: 1}},
		"across the end":       {{Offset: size - 1, Length: 2}},
		"no length":            {{Offset: 5, Length: 0}},
		"negative length":      {{Offset: 5, Length: -1}},
		"overflow":             {{Offset: 5, Length: math.MaxInt64}},
		"twice":                {{Offset: 5, Length: 5}, {Offset: 9, Length: 5}},
		"out of order":         {{Offset: 50, Length: 5}, {Offset: 9, Length: 5}},
		"too many":             many,
	} {
		if got, err := writtenTo(&api.Saved{Disks: map[string][]api.Extent{writableID: list}}, size); !errors.Is(err, errExtents) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	good := []api.Extent{{Offset: 0, Length: 5}, {Offset: 5, Length: 5}, {Offset: size - 1, Length: 1}}
	want := []sparse.Extent{{Offset: 0, Length: 5}, {Offset: 5, Length: 5}, {Offset: size - 1, Length: 1}}
	got, err := writtenTo(&api.Saved{Disks: map[string][]api.Extent{writableID: good, "another": many}}, size)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := writtenTo(nil, size); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
}
