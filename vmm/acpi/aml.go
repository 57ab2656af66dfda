package acpi

import "encoding/binary"

// A small encoder for the ACPI machine language (ACPI 6.5 §20.2): only the terms that the DSDT needs. Terms are
// byte strings that nest by concatenation.

// AML opcodes.
const (
	opZero       = 0x00
	opOne        = 0x01
	opName       = 0x08
	opByte       = 0x0a
	opWord       = 0x0b
	opDWord      = 0x0c
	opString     = 0x0d
	opQWord      = 0x0e
	opScope      = 0x10
	opBuffer     = 0x11
	opPackage    = 0x12
	opMethod     = 0x14
	opExt        = 0x5b
	opExtDevice  = 0x82
	opArg0       = 0x68
	opNotify     = 0x86
	opLogicEqual = 0x93
	opIf         = 0xa0
)

// join concatenates terms.
func join(terms ...[]byte) []byte {
	var out []byte
	for _, t := range terms {
		out = append(out, t...)
	}
	return out
}

// pkgLength prefixes body with its length, which counts the prefix itself (§20.2.4).
func pkgLength(body []byte) []byte {
	n := len(body)
	switch {
	case n+1 < 1<<6:
		return append([]byte{byte(n + 1)}, body...)
	case n+2 < 1<<12:
		n += 2
		return append([]byte{1<<6 | byte(n&0xf), byte(n >> 4)}, body...)
	case n+3 < 1<<20:
		n += 3
		return append([]byte{2<<6 | byte(n&0xf), byte(n >> 4), byte(n >> 12)}, body...)
	}
	panic("bug: AML package of a megabyte")
}

// integer encodes v in its shortest form.
func integer(v uint64) []byte {
	le := binary.LittleEndian
	switch {
	case v == 0:
		return []byte{opZero}
	case v == 1:
		return []byte{opOne}
	case v <= 0xff:
		return []byte{opByte, byte(v)}
	case v <= 0xffff:
		return le.AppendUint16([]byte{opWord}, uint16(v))
	case v <= 0xffffffff:
		return le.AppendUint32([]byte{opDWord}, uint32(v))
	}
	return le.AppendUint64([]byte{opQWord}, v)
}

// text encodes an ASCII string.
func text(s string) []byte { return append(append([]byte{opString}, s...), 0) }

// segment encodes one name of at most four characters, padded with underscores.
func segment(s string) []byte {
	if len(s) == 0 || len(s) > 4 {
		panic("bug: AML name " + s)
	}
	return []byte((s + "___")[:4])
}

// rooted encodes an absolute name of one segment.
func rooted(s string) []byte { return append([]byte{'\\'}, segment(s)...) }

func name(s string, value []byte) []byte { return join([]byte{opName}, segment(s), value) }

func scope(path []byte, terms ...[]byte) []byte {
	return append([]byte{opScope}, pkgLength(join(path, join(terms...)))...)
}

func device(s string, terms ...[]byte) []byte {
	return append([]byte{opExt, opExtDevice}, pkgLength(join(segment(s), join(terms...)))...)
}

// method is a serialised method with the given number of arguments.
func method(s string, args int, terms ...[]byte) []byte {
	const serialized = 1 << 3
	return append([]byte{opMethod}, pkgLength(join(segment(s), []byte{byte(args) | serialized}, join(terms...)))...)
}

// packageOf is a Package of the given elements.
func packageOf(elements ...[]byte) []byte {
	return append([]byte{opPackage}, pkgLength(append([]byte{byte(len(elements))}, join(elements...)...))...)
}

func buffer(b []byte) []byte {
	return append([]byte{opBuffer}, pkgLength(append(integer(uint64(len(b))), b...))...)
}

// ifArg0 runs then when the method's first argument equals v.
func ifArg0(v uint64, then ...[]byte) []byte {
	return append([]byte{opIf}, pkgLength(join([]byte{opLogicEqual, opArg0}, integer(v), join(then...)))...)
}

func notify(s string, v uint64) []byte { return join([]byte{opNotify}, segment(s), integer(v)) }

// resources is a resource template (§6.4) made of descriptors.
func resources(descriptors ...[]byte) []byte {
	const endTag, noChecksum = 0x79, 0
	return buffer(append(join(descriptors...), endTag, noChecksum))
}

// memory32 is a writable 32-bit fixed memory range (§6.4.3.4).
func memory32(base, size uint32) []byte {
	le := binary.LittleEndian
	return le.AppendUint32(le.AppendUint32([]byte{0x86, 9, 0, 1}, base), size)
}

// interrupt is one edge-triggered, active-high, exclusive interrupt of a consumer (§6.4.3.6).
func interrupt(gsi uint32) []byte {
	const consumer, edge = 1 << 0, 1 << 1
	return binary.LittleEndian.AppendUint32([]byte{0x89, 6, 0, consumer | edge, 1}, gsi)
}

// port is a fixed range of I/O ports (§6.4.2.5).
func port(base uint16, count byte) []byte {
	const decode16, alignment = 1, 1
	return []byte{0x47, decode16, byte(base), byte(base >> 8), byte(base), byte(base >> 8), alignment, count}
}

// eisaID packs a seven-character identifier such as PNP0A03 (§19.3.4).
func eisaID(s string) []byte {
	hex := func(c byte) uint32 {
		if c <= '9' {
			return uint32(c - '0')
		}
		return uint32(c-'A') + 10
	}
	v := uint32(s[0]-'@')<<26 | uint32(s[1]-'@')<<21 | uint32(s[2]-'@')<<16 |
		hex(s[3])<<12 | hex(s[4])<<8 | hex(s[5])<<4 | hex(s[6])
	return binary.BigEndian.AppendUint32([]byte{opDWord}, v)
}
