package proxy

import "golang.org/x/crypto/cryptobyte"

// Numbers of TLS 1.3 (RFC 8446 §4 and §5.1, RFC 6066 §3, RFC 9849 §11.1).
const (
	recordHandshake = 22
	clientHello     = 1

	extServerName = 0
	extECH        = 0xfe0d
	nameHost      = 0

	maxRecord = 1 << 14 // bytes of a plaintext record
)

// hello is what is read of a ClientHello.
type hello struct {
	name      string // "" if none was asked for, or what was is nonsense
	encrypted bool   // the name that is meant is another one
}

// readHello reads the ClientHello at the beginning of a connection, over as many records as it lies in. more says that it is not all
// there yet. What is no ClientHello has no name.
func readHello(b []byte) (h hello, more bool) {
	var message []byte
	for {
		if len(b) < 5 {
			return h, true
		}
		kind, major, size := b[0], b[1], int(b[3])<<8|int(b[4])
		if kind != recordHandshake || major != 3 || size == 0 || size > maxRecord {
			return h, false
		}
		whole := len(b) >= 5+size
		message = append(message, b[5:min(len(b), 5+size)]...)
		if len(message) > 0 && message[0] != clientHello {
			return h, false
		}
		if len(message) >= 4 {
			if n := 4 + (int(message[1])<<16 | int(message[2])<<8 | int(message[3])); n > maxHead {
				return h, false
			} else if len(message) >= n {
				return parseHello(message[4:n]), false
			}
		}
		if !whole {
			return h, true
		}
		b = b[5+size:]
	}
}

// parseHello reads the body of a ClientHello (RFC 8446 §4.1.2).
func parseHello(b []byte) (h hello) {
	s := cryptobyte.String(b)
	var skip, extensions cryptobyte.String
	if !s.Skip(2+32) || !s.ReadUint8LengthPrefixed(&skip) || !s.ReadUint16LengthPrefixed(&skip) || !s.ReadUint8LengthPrefixed(&skip) ||
		!s.ReadUint16LengthPrefixed(&extensions) {
		return hello{}
	}
	seen := false
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) {
			return hello{encrypted: h.encrypted}
		}
		switch kind {
		case extECH:
			h.encrypted = true
		case extServerName:
			if seen { // whichever the server takes, it may be the other
				return hello{encrypted: h.encrypted}
			}
			seen = true
			h.name = serverName(data)
		}
	}
	return h
}

// serverName reads the only host name of the extension; more than one is none.
func serverName(s cryptobyte.String) string {
	var list, name cryptobyte.String
	var kind uint8
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || !list.ReadUint8(&kind) || kind != nameHost ||
		!list.ReadUint16LengthPrefixed(&name) || !list.Empty() {
		return ""
	}
	return string(name)
}
