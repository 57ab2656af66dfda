package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/net/idna"
)

// The bounds of names, RFC 1035 §2.3.4.
const (
	maxName  = 253
	maxLabel = 63
)

// ErrName says that something is no host name.
var ErrName = errors.New("not a host name")

// CanonicalName is a name as a guest says it, in the one form that names are compared in: lower-case ASCII without a trailing
// dot. It refuses what is no host name: an address in any notation, bytes that are not letters, digits, "-", "_" or ".", labels
// of 0 or more than 63 bytes, names of more than 253. Its errors are ErrName.
func CanonicalName(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > maxName {
		return "", fmt.Errorf("%w: of %d bytes", ErrName, len(s))
	}
	label, upper := 0, false
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.':
			if label == 0 {
				return "", fmt.Errorf("%w: an empty label", ErrName)
			}
			label = -1
		case c >= 'A' && c <= 'Z':
			upper = true
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return "", fmt.Errorf("%w: the byte %#02x", ErrName, c)
		}
		if label++; label > maxLabel {
			return "", fmt.Errorf("%w: a label longer than %d", ErrName, maxLabel)
		}
	}
	if label == 0 {
		return "", fmt.Errorf("%w: an empty label", ErrName)
	}
	if upper {
		s = strings.ToLower(s)
	}
	if numeric(s[strings.LastIndexByte(s, '.')+1:]) {
		return "", fmt.Errorf("%w: it ends in a number, and programs differ in what address that is", ErrName)
	}
	return s, nil
}

// numeric reports whether a last label makes an address of the whole, as programs that use inet_aton or the WHATWG's URL
// standard read it: 127.1, 2130706433, 0x7f.1, 0177.0.0.1. No top-level domain is such.
func numeric(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// international maps what users write to what is looked up (UTS 46, non-transitional). Names like r3---sn.googlevideo.com are in use,
// so hyphens may be anywhere; which ASCII bytes may be is CanonicalName's to say.
var international = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.CheckJoiners(true),
	idna.CheckHyphens(false), idna.StrictDomainName(false))

// ruleName is a name as a user writes it in a rule, in canonical form. More is refused than of a guest's names: a rule that does not
// mean what it looks like must not be taken.
func ruleName(s string) (string, error) {
	if !isASCII(s) {
		mapped, err := international.ToUnicode(s)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrName, err)
		}
		if i := strings.IndexFunc(s, unseen); i >= 0 {
			return "", fmt.Errorf("%w: %+q cannot be seen", ErrName, []rune(s[i:])[0])
		}
		if i := strings.IndexFunc(mapped, notLetter); i >= 0 {
			return "", fmt.Errorf("%w: %q is no letter", ErrName, []rune(mapped[i:])[0])
		}
		for label := range strings.SplitSeq(mapped, ".") {
			if a, b := mixed(label); a != "" {
				ascii, _ := international.ToASCII(s)
				return "", fmt.Errorf("%w: %q has %s and %s letters, which look alike; write %s if it is meant", ErrName, label, a, b, ascii)
			}
		}
		if s, err = international.ToASCII(mapped); err != nil {
			return "", fmt.Errorf("%w: %w", ErrName, err)
		}
	}
	name, err := CanonicalName(s)
	if err != nil {
		return "", err
	}
	for label := range strings.SplitSeq(name, ".") {
		if strings.HasPrefix(label, "xn--") {
			// It must be the form of the Unicode that it stands for, or nothing else would ever be equal to it.
			u, err := international.ToUnicode(label)
			if back, err2 := international.ToASCII(u); err != nil || err2 != nil || back != label {
				return "", fmt.Errorf("%w: %s stands for no international name", ErrName, label)
			}
		}
		if strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return "", fmt.Errorf("%w: %q begins or ends with a hyphen", ErrName, label)
		}
	}
	return name, nil
}

// unseen are characters that are mapped away or move others about.
func unseen(r rune) bool {
	return unicode.Is(unicode.Cf, r) && r != '\u200c' && r != '\u200d' // joiners: where they may be is checked
}

// notLetter is what looks like the end of a name and is not: a fraction slash, for one.
func notLetter(r rune) bool {
	return r >= 0x80 && !unicode.IsLetter(r) && !unicode.IsMark(r) && !unicode.IsDigit(r) && r != '\u200c' && r != '\u200d' && r != '\u00b7' && r != '\u30fb'
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

// mixed returns two scripts that are in label and have no business together, or "". Latin goes with those of Chinese, Japanese and
// Korean, and they with one another (UTS 39 §5.2, "highly restrictive").
func mixed(label string) (string, string) {
	first := ""
	for _, r := range label {
		script := scriptOf(r)
		switch {
		case script == "" || script == first:
		case first == "" || eastAsian(first) && (script == "Latin" || eastAsian(script)):
			first = script
		case first == "Latin" && eastAsian(script):
		default:
			return first, script
		}
	}
	return "", ""
}

func scriptOf(r rune) string {
	for name, table := range unicode.Scripts {
		if unicode.Is(table, r) {
			if name == "Common" || name == "Inherited" {
				return ""
			}
			return name
		}
	}
	return ""
}

func eastAsian(script string) bool {
	switch script {
	case "Han", "Hiragana", "Katakana", "Hangul", "Bopomofo":
		return true
	}
	return false
}

// isService reports whether name is a service of owner as RFC 2782 writes it: _http._tcp.example.org of example.org. One or two
// labels with an underscore.
func isService(name string) (owner string, ok bool) {
	for range 2 {
		label, rest, more := strings.Cut(name, ".")
		if !more || !strings.HasPrefix(label, "_") {
			break
		}
		name, ok = rest, true
	}
	return name, ok
}
