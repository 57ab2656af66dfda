package rootfs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// User is an account inside an image.
type User struct {
	Name   string   `json:"name"` // "" if the image does not list the uid
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"` // supplementary, sorted, without GID; none if the spec names a group
	Home   string   `json:"home"`             // "/" if unknown
	Shell  string   `json:"shell,omitempty"`
}

// LookupUser resolves "NAME", "UID", "NAME:GROUP" or any mix with numbers against /etc/passwd and /etc/group as
// they were in the image when it was made. "" means Config.User, and root if that is empty too. As with Docker,
// a uid that the image does not list is allowed and gets gid 0; a name that it does not list is an error.
func (i Image) LookupUser(spec string) (User, error) {
	if spec == "" {
		spec = i.Config.User
	}
	if spec == "" {
		spec = "0"
	}
	who, group, hasGroup := strings.Cut(spec, ":")
	u, err := i.account(who)
	if err != nil {
		return User{}, fmt.Errorf("look up user %q in image %s: %w", spec, i.title(), err)
	}
	if hasGroup {
		if u.GID, err = i.groupID(group); err != nil {
			return User{}, fmt.Errorf("look up user %q in image %s: %w", spec, i.title(), err)
		}
		return u, nil
	}
	u.Groups = i.memberships(u)
	return u, nil
}

// account finds a passwd line by name, then by number.
func (i Image) account(who string) (User, error) {
	if who == "" {
		return User{}, fmt.Errorf("empty user name")
	}
	uid, numErr := strconv.ParseUint(who, 10, 32)
	var byID *User
	for line := range strings.Lines(i.passwd) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 7 {
			continue
		}
		lineUID, err1 := strconv.ParseUint(f[2], 10, 32)
		lineGID, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		u := User{Name: f[0], UID: uint32(lineUID), GID: uint32(lineGID), Home: f[5], Shell: f[6]}
		if !strings.HasPrefix(u.Home, "/") {
			u.Home = "/"
		}
		if f[0] == who {
			return u, nil
		}
		if byID == nil && numErr == nil && lineUID == uid {
			byID = &u
		}
	}
	switch {
	case byID != nil:
		return *byID, nil
	case numErr == nil && uid < 1<<32-1:
		return User{UID: uint32(uid), Home: "/"}, nil
	}
	return User{}, fmt.Errorf("no user %q", who)
}

func (i Image) groupID(group string) (uint32, error) {
	gid, numErr := strconv.ParseUint(group, 10, 32)
	for line := range strings.Lines(i.group) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 3 || f[0] != group {
			continue
		}
		if id, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			return uint32(id), nil
		}
	}
	if numErr == nil && gid < 1<<32-1 {
		return uint32(gid), nil
	}
	return 0, fmt.Errorf("no group %q", group)
}

// memberships lists the supplementary groups of u.
func (i Image) memberships(u User) []uint32 {
	const most = 65536 // NGROUPS_MAX
	var ids []uint32
	if u.Name == "" {
		return nil
	}
	for line := range strings.Lines(i.group) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), u.Name) {
			continue
		}
		if id, err := strconv.ParseUint(f[2], 10, 32); err == nil && uint32(id) != u.GID && len(ids) < most {
			ids = append(ids, uint32(id))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
