package rootfs

import "io"

// Phase is what is being done for an image.
type Phase string

// Phases, in the order in which an image goes through them. Downloads of several layers overlap with unpacking.
const (
	PhaseResolve  Phase = "resolve"  // asking the registry; ID is the reference
	PhaseDownload Phase = "download" // one layer; bytes compressed
	PhaseUnpack   Phase = "unpack"   // one layer into the image; bytes compressed, as far as they are known
	PhaseWrite    Phase = "write"    // metadata, digest and flush of the finished image; bytes of it
)

// Step is how far one piece of work is.
type Step struct {
	ID    string // layer digest shortened to 12 digits, or the source's name
	Phase Phase
	Done  int64 // bytes
	Total int64 // bytes; 0 if unknown. The piece is finished when Finished is set, not before.

	Finished bool
}

// Progress is told how a pull or an import goes on. Methods may be called from several goroutines at once and
// must return quickly. A step is reported at its start, about every MiB, and when it is finished.
type Progress interface {
	// Update reports a step.
	Update(Step)
	// Warn reports something that was left out of the image, such as a device node. At most 32 per image.
	Warn(message string)
}

// silent is the Progress of those who want none.
type silent struct{}

func (silent) Update(Step) {}
func (silent) Warn(string) {}

// reportEvery is the number of bytes between two reports of a step.
const reportEvery = 1 << 20

// countingReader reports what is read through it.
type countingReader struct {
	io.ReadCloser
	step     Step
	reported int64
	progress Progress
}

func newCountingReader(r io.ReadCloser, step Step, p Progress) *countingReader {
	p.Update(step)
	return &countingReader{ReadCloser: r, step: step, progress: p}
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.step.Done += int64(n)
	if c.step.Done-c.reported >= reportEvery {
		c.reported = c.step.Done
		c.progress.Update(c.step)
	}
	return n, err
}

// finish reports the step as done.
func (c *countingReader) finish() {
	c.step.Finished = true
	c.progress.Update(c.step)
}
