package rootfs

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"

	"spore/rootfs/layer"
)

// Limits bounds what one image may take; see the fields' defaults. It is part of Config.
type Limits = layer.Limits

// LimitError says which limit an image exceeds; see Limits.
type LimitError = layer.LimitError

// EntryError says which entry of a layer was refused. errors.Is tells the reason: ErrPath, ErrParent, ErrLink,
// ErrLoop or ErrHeader.
type EntryError = layer.EntryError

// Reasons for which an entry of a layer is refused; see EntryError.
var (
	ErrPath   = layer.ErrPath
	ErrParent = layer.ErrParent
	ErrLink   = layer.ErrLink
	ErrLoop   = layer.ErrLoop
	ErrHeader = layer.ErrHeader
)

// Errors of the store.
var (
	// ErrNotFound means that no image has the name or digest.
	ErrNotFound = errors.New("no such image")
	// ErrAmbiguous means that several images have the digest prefix.
	ErrAmbiguous = errors.New("several images begin with this digest")
	// ErrInUse means that somebody holds the image open, or that it has other names.
	ErrInUse = errors.New("image is in use")
	// ErrSource means that a source is of no known kind, or is not what it should be.
	ErrSource = errors.New("not an image source")
	// ErrDigest means that bytes are not those that their digest announced.
	ErrDigest = errors.New("digest mismatch")
)

// Config says where a store is and how it gets images. The zero value is valid.
type Config struct {
	Dir       string            // created if missing; "" means DefaultDir()
	Limits    Limits            // zero fields mean their defaults
	Keychain  authn.Keychain    // registry credentials; nil means Docker's config file and its credential helpers
	Transport http.RoundTripper // to registries; nil means http.DefaultTransport with the proxy of the environment
	Log       *slog.Logger      // nil discards
}

// Store holds images. All methods may be called from several goroutines, and several processes may
// use the same directory at once. It keeps no descriptor open and needs no closing.
type Store struct {
	dir       string
	limits    Limits
	keychain  authn.Keychain
	transport http.RoundTripper
	log       *slog.Logger
}

// DefaultDir is $XDG_CACHE_HOME/spore/images, or the same under ~/.cache.
func DefaultDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	return filepath.Join(cache, "spore", "images"), nil
}

// Open opens the store in c.Dir, creating it if need be.
func Open(c Config) (*Store, error) {
	s := &Store{dir: c.Dir, limits: c.Limits.WithDefaults(), keychain: c.Keychain, transport: c.Transport, log: c.Log}
	if s.dir == "" {
		dir, err := DefaultDir()
		if err != nil {
			return nil, err
		}
		s.dir = dir
	}
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.dir = dir
	if s.keychain == nil {
		s.keychain = authn.DefaultKeychain
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, sub := range []string{"blobs/sha256", "images", "writable"} {
		if err := os.MkdirAll(filepath.Join(s.dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return s, nil
}

// Dir is the absolute path of the store.
func (s *Store) Dir() string { return s.dir }

func (s *Store) blobPath(hex string) string   { return filepath.Join(s.dir, "blobs/sha256", hex) }
func (s *Store) recordPath(hex string) string { return filepath.Join(s.dir, "images", hex+".json") }
func (s *Store) namesPath() string            { return filepath.Join(s.dir, "names.json") }
