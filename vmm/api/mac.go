package api

import (
	"encoding/hex"
	"fmt"
)

// MAC is the address of an Ethernet interface (EUI-48). Its text is six octets in hexadecimal with colons between them.
type MAC [6]byte

// ParseMAC reads the text of an address, in digits of either case.
func ParseMAC(s string) (m MAC, err error) {
	if len(s) == 3*len(m)-1 {
		for i := range m {
			if i > 0 && s[3*i-1] != ':' {
				break
			}
			if _, err := hex.Decode(m[i:i+1], []byte(s[3*i:3*i+2])); err != nil {
				break
			}
			if i == len(m)-1 {
				return m, nil
			}
		}
	}
	return MAC{}, fmt.Errorf("parse MAC address %.32q: want six octets, as 02:00:00:00:00:01", s)
}

// Individual reports whether m can be an interface's own address: not that of a group, and not nobody's.
func (m MAC) Individual() bool { return m[0]&1 == 0 && m != MAC{} }

func (m MAC) String() string {
	b := make([]byte, 0, 3*len(m)-1)
	for i, o := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = hex.AppendEncode(b, []byte{o})
	}
	return string(b)
}

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMAC(string(text))
	return err
}
