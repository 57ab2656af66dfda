package rootfs

import "context"

// LockStore takes the store's lock as another process would.
func LockStore(s *Store) (release func(), err error) {
	l, err := s.lockStore(context.Background())
	if err != nil {
		return nil, err
	}
	return l.release, nil
}

// NormalizeName is how names are kept.
var NormalizeName = normalizeName
