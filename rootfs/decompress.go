package rootfs

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"spore/rootfs/layer"
)

// zstdWindow is the largest zstd window accepted, in bytes; it bounds the memory of the decoder.
const zstdWindow = 128 << 20

// decompress undoes the compression that r begins with, if any, and watches the ratio.
func decompress(r io.Reader, ratio int64) (io.ReadCloser, error) {
	packed := &byteCounter{r: r}
	in := bufio.NewReaderSize(packed, 256<<10)
	magic, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var out io.ReadCloser
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		out, err = gzip.NewReader(in)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippableFrame(magic):
		var d *zstd.Decoder
		d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdWindow))
		if err == nil {
			out = d.IOReadCloser()
		}
	case bytes.HasPrefix(magic, []byte("BZh")):
		out = io.NopCloser(bzip2.NewReader(in))
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return nil, fmt.Errorf("xz compression is not supported, unpack it with xz -d: %w", ErrSource)
	default:
		return io.NopCloser(in), nil
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return &ratioReader{ReadCloser: out, packed: packed, ratio: ratio}, nil
}

// isSkippableFrame recognizes the frames that seekable zstd variants begin with (RFC 8878 3.1.2).
func isSkippableFrame(magic []byte) bool {
	return len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18})
}

type byteCounter struct {
	r io.Reader
	n int64
}

func (c *byteCounter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// ratioReader ends a stream that unpacks to far more than it was.
type ratioReader struct {
	io.ReadCloser
	packed *byteCounter
	n      int64
	ratio  int64
}

func (r *ratioReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.n += int64(n); r.n > layer.RatioFrom && r.n/r.ratio > r.packed.n {
		return 0, &LimitError{Name: "ratio", Limit: r.ratio}
	}
	return n, err
}
