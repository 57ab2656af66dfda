package vsock

import (
	"bytes"
	"testing"
)

func TestHeaderLayout(t *testing.T) {
	var b [headerSize]byte
	for i := range b {
		b[i] = byte(i)
	}
	h := parseHeader(&b)
	want := header{
		srcCID: 0x0706050403020100, dstCID: 0x0f0e0d0c0b0a0908, srcPort: 0x13121110, dstPort: 0x17161514,
		length: 0x1b1a1918, kind: 0x1d1c, op: 0x1f1e, flags: 0x23222120,
		credit: credit{bufAlloc: 0x27262524, fwdCnt: 0x2b2a2928},
	}
	if h != want {
		t.Fatalf("parsed %+v, want %+v", h, want)
	}
	var again [headerSize]byte
	h.put(&again)
	if again != b {
		t.Fatalf("put % x, want % x", again, b)
	}
}

// VS-01, VS-02: what a header alone is judged by.
func TestVS02Judge(t *testing.T) {
	const guest = 7
	good := header{srcCID: guest, dstCID: HostCID, kind: typeStream, op: opReadWrite, length: 10}
	tests := []struct {
		name   string
		change func(*header)
		want   verdict
	}{
		{"good", func(*header) {}, accept},
		{"source is another guest", func(h *header) { h.srcCID = 8 }, drop},
		{"source is the host", func(h *header) { h.srcCID = HostCID }, drop},
		{"source is any", func(h *header) { h.srcCID = 0xffff_ffff }, drop},
		{"source has upper bits", func(h *header) { h.srcCID |= 1 << 32 }, drop},
		{"to itself", func(h *header) { h.dstCID = guest }, reset},
		{"to the hypervisor", func(h *header) { h.dstCID = 0 }, reset},
		{"to the local address", func(h *header) { h.dstCID = 1 }, reset},
		{"to any", func(h *header) { h.dstCID = 0xffff_ffff }, reset},
		{"host with upper bits", func(h *header) { h.dstCID |= 1 << 32 }, reset},
		{"seqpacket", func(h *header) { h.kind = 2 }, reset},
		{"type 0", func(h *header) { h.kind = 0 }, reset},
		{"reset of an unknown type", func(h *header) { h.kind, h.op = 9, opReset }, drop},
		{"reset to another guest", func(h *header) { h.dstCID, h.op = 9, opReset }, drop},
		{"operation 0", func(h *header) { h.op = opInvalid }, reset},
		{"operation 8", func(h *header) { h.op = 8 }, reset},
		{"operation 65535", func(h *header) { h.op = 0xffff }, reset},
		{"length is all there is", func(h *header) { h.length = 100 }, accept},
		{"length is more", func(h *header) { h.length = 101 }, reset},
		{"length is 2³²-1", func(h *header) { h.length = 0xffff_ffff }, reset},
		{"length where there is no payload", func(h *header) { h.op, h.length = opCreditUpdate, 101 }, accept},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := good
			tt.change(&h)
			if got := h.judge(guest, 100); got != tt.want {
				t.Errorf("verdict %d, want %d", got, tt.want)
			}
		})
	}
}

// VS-01: a header cut into buffers at every place is the same header.
func TestVS01SplitHeader(t *testing.T) {
	whole := make([]byte, headerSize+20)
	for i := range whole {
		whole[i] = byte(i)
	}
	for i := range len(whole) + 1 {
		for j := i; j <= len(whole); j++ {
			cut := [][]byte{whole[:i:i], {}, whole[i:j:j], whole[j:]}
			var h [headerSize]byte
			if n := gather(cut, h[:]); n != headerSize || !bytes.Equal(h[:], whole[:headerSize]) {
				t.Fatalf("cut at %d and %d: header % x", i, j, h[:n])
			}
			rest, n := split(cut, headerSize, nil, 15, 10)
			if got := bytes.Join(rest, nil); n != 15 || !bytes.Equal(got, whole[headerSize:headerSize+15]) {
				t.Fatalf("cut at %d and %d: payload % x", i, j, got)
			}
			for k, p := range rest {
				if len(p) == 0 {
					t.Fatalf("cut at %d and %d: piece %d is empty", i, j, k)
				}
			}
			into := make([]byte, len(whole))
			scatter([][]byte{into[:i], into[i:j], into[j:]}, whole[:headerSize])
			if !bytes.Equal(into[:headerSize], whole[:headerSize]) || !bytes.Equal(into[headerSize:], make([]byte, 20)) {
				t.Fatalf("cut at %d and %d: scattered % x", i, j, into)
			}
		}
	}
}

func TestSplitIsBounded(t *testing.T) {
	many := make([][]byte, 100)
	for i := range many {
		many[i] = make([]byte, 10)
	}
	rest, n := split(many, 0, nil, 1<<40, 7)
	if len(rest) != 7 || n != 70 {
		t.Errorf("%d pieces of %d bytes, want 7 of 70", len(rest), n)
	}
	if rest, n = split(many, 0, nil, 0, 7); len(rest) != 0 || n != 0 {
		t.Errorf("%d pieces of %d bytes, want none", len(rest), n)
	}
	if rest, n = split([][]byte{make([]byte, 10)}, headerSize, nil, 100, 7); len(rest) != 0 || n != 0 {
		t.Errorf("a short chain: %d pieces of %d bytes, want none", len(rest), n)
	}
}

func TestAdvance(t *testing.T) {
	for n := range 7 {
		got := bytes.Join(advance([][]byte{{1}, {}, {2, 3}, {4, 5, 6}}, n), nil)
		if want := []byte{1, 2, 3, 4, 5, 6}[n:]; !bytes.Equal(got, want) {
			t.Errorf("after %d: %v, want %v", n, got, want)
		}
	}
}
