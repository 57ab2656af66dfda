package snapshot

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A sealed part is a sequence of chunks, each AES-256-GCM of 64 KiB of the plain part, or less for the last, under a key of
// the part's own (HKDF-SHA256 of the snapshot's). A chunk's nonce is its number and whether it is the last: what is cut off,
// repeated, or has changed its place or its part does not open. No key seals two parts, so no nonce is used twice.
const (
	chunkSize  = 64 << 10
	keySize    = 32
	cipherName = "aes-256-gcm-64k"
)

type chunks struct {
	aead  cipher.AEAD
	next  uint64
	nonce [12]byte
}

// newChunks begins at the first chunk of a part.
func newChunks(key []byte, part string) (*chunks, error) {
	own, err := hkdf.Key(sha256.New, key, nil, "spore snapshot part "+part, keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(own)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &chunks{aead: aead}, err
}

// at is the nonce of the next chunk.
func (c *chunks) at(last bool) []byte {
	binary.BigEndian.PutUint64(c.nonce[:], c.next)
	c.next++
	c.nonce[11] = 0
	if last {
		c.nonce[11] = 1
	}
	return c.nonce[:]
}

// sealWriter seals what is written to it. Close writes the last chunk, and not to what is below.
type sealWriter struct {
	*chunks
	to    io.Writer
	plain []byte // not sealed yet
	out   []byte
}

func newSealWriter(to io.Writer, key []byte, part string) (*sealWriter, error) {
	c, err := newChunks(key, part)
	return &sealWriter{chunks: c, to: to, plain: make([]byte, 0, chunkSize)}, err
}

func (s *sealWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if len(s.plain) == chunkSize { // there is more, so it is not the last
			if err := s.flush(false); err != nil {
				return n, err
			}
		}
		k := copy(s.plain[len(s.plain):chunkSize], p)
		s.plain = s.plain[:len(s.plain)+k]
		p, n = p[k:], n+k
	}
	return n, nil
}

func (s *sealWriter) Close() error { return s.flush(true) }

func (s *sealWriter) flush(last bool) error {
	s.out = s.aead.Seal(s.out[:0], s.at(last), s.plain, nil)
	s.plain = s.plain[:0]
	_, err := s.to.Write(s.out)
	return err
}

// openReader gives the plain bytes of a sealed part, and none that were not sealed.
type openReader struct {
	*chunks
	from  *bufio.Reader
	in    []byte
	plain []byte // opened, not read yet
	last  bool
}

func newOpenReader(from io.Reader, key []byte, part string) (*openReader, error) {
	c, err := newChunks(key, part)
	if err != nil {
		return nil, err
	}
	return &openReader{chunks: c, from: bufio.NewReader(from), in: make([]byte, chunkSize+c.aead.Overhead())}, nil
}

func (o *openReader) Read(p []byte) (int, error) {
	for len(o.plain) == 0 {
		if o.last {
			return 0, io.EOF
		}
		if err := o.open(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.plain)
	o.plain = o.plain[n:]
	return n, nil
}

// open opens the next chunk.
func (o *openReader) open() error {
	n, err := io.ReadFull(o.from, o.in)
	switch {
	case err == nil:
		_, err = o.from.Peek(1)
		o.last = err == io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF), err == io.EOF:
		o.last = true
	default:
		return err
	}
	if err != nil && !o.last {
		return err
	}
	if o.plain, err = o.aead.Open(o.in[:0], o.at(o.last), o.in[:n], nil); err != nil {
		return fmt.Errorf("%w: a sealed part does not open", ErrDamaged)
	}
	return nil
}
