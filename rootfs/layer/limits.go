package layer

import (
	"errors"
	"fmt"
)

// Limits bounds what an image may make us do. A zero field means its default.
type Limits struct {
	Entries  int   // inodes, implied directories included; default 2 Mi
	Size     int64 // bytes of all layers, unpacked, holes of sparse files counted; default 64 GiB
	Metadata int64 // bytes of memory for names, link targets, attributes and inodes; default 1 GiB
	Steps    int   // directory entries looked at to resolve names and for whiteouts; default 64 Mi, seconds of work
	Ratio    int64 // unpacked : compressed bytes of one layer, once it has unpacked RatioFrom bytes; default 200
}

// RatioFrom is how many bytes a layer may unpack to before its compression ratio is judged.
const RatioFrom = 1 << 30

// WithDefaults returns l with its zero fields filled in.
func (l Limits) WithDefaults() Limits {
	if l.Entries == 0 {
		l.Entries = 2 << 20
	}
	if l.Size == 0 {
		l.Size = 64 << 30
	}
	if l.Metadata == 0 {
		l.Metadata = 1 << 30
	}
	if l.Steps == 0 {
		l.Steps = 64 << 20
	}
	if l.Ratio == 0 {
		l.Ratio = 200
	}
	return l
}

// LimitError says that an image is larger than allowed. Name is the field of Limits, in lower case, or what is bounded
// by a constant: "layers", "manifest".
type LimitError struct {
	Name  string
	Limit int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("image exceeds the limit of %d for %s", e.Limit, e.Name)
}

// EntryError says which entry of a layer was refused, and why. errors.Is tells the reason.
type EntryError struct {
	Path string // as in the layer, at most 256 bytes of it
	Err  error
}

func (e *EntryError) Error() string { return fmt.Sprintf("entry %q: %v", e.Path, e.Err) }

// Unwrap returns the reason.
func (e *EntryError) Unwrap() error { return e.Err }

// Reasons for which an entry is refused.
var (
	ErrPath   = errors.New("name leaves the image or is malformed")
	ErrParent = errors.New("a parent is not a directory")
	ErrLink   = errors.New("link target is missing, a directory or malformed")
	ErrLoop   = errors.New("too many symbolic links")
	ErrHeader = errors.New("malformed header")
)
