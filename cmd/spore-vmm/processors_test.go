package main

import (
	"runtime"
	"testing"
)

func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(2)
	defer runtime.GOMAXPROCS(before)
	p := newProcessors()
	for i, step := range []struct{ change, want int }{
		{1, 4}, {1, 6}, {1, 6}, {1, 10}, {-4, 10}, {4, 10}, {1, 10}, {4, 18}, {-9, 18},
	} {
		p.change(step.change)
		if got := runtime.GOMAXPROCS(0); got != step.want {
			t.Errorf("step %d: %d processors, want %d", i, got, step.want)
		}
	}
}
