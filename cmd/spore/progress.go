package main

import (
	"fmt"
	"io"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"spore/rootfs"
)

// progress shows the steps of an image on its way: bars on a terminal, a line per finished step elsewhere.
type progress struct {
	mu    sync.Mutex
	out   io.Writer // nil is silence
	bars  *mpb.Progress
	known map[string]*mpb.Bar
}

func newProgress(out io.Writer, quiet bool) *progress {
	p := &progress{out: out, known: map[string]*mpb.Bar{}}
	if quiet {
		p.out = nil
	} else if isTerminal(out) {
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(40))
	}
	return p
}

// Update is called from several goroutines.
func (p *progress) Update(s rootfs.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.out == nil:
	case p.bars != nil:
		p.draw(s)
	case s.Finished:
		fmt.Fprintf(p.out, "%s: %s done (%s)\n", printable(s.ID), s.Phase, formatSize(s.Done))
	}
}

// draw moves the bar of a step.
func (p *progress) draw(s rootfs.Step) {
	key := string(s.Phase) + " " + printable(s.ID)
	bar := p.known[key]
	if bar == nil {
		bar = p.bars.AddBar(max(s.Total, 0),
			mpb.PrependDecorators(decor.Name(key, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
		p.known[key] = bar
	}
	bar.SetTotal(max(s.Total, s.Done), false)
	bar.SetCurrent(s.Done)
	if s.Finished {
		bar.SetTotal(s.Done, true)
	}
}

// Warn says what was left out of an image.
func (p *progress) Warn(message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil {
		return
	}
	line := "warning: " + printable(message) + "\n"
	if p.bars != nil {
		p.bars.Write([]byte(line))
		return
	}
	io.WriteString(p.out, line)
}

// finish leaves the bars as they stand, those of a failed step too.
func (p *progress) finish() {
	if p.bars == nil {
		return
	}
	for _, bar := range p.known {
		if !bar.Completed() {
			bar.Abort(false)
		}
	}
	p.bars.Wait()
}
