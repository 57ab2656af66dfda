package network_test

import (
	"testing"

	"spore/network"
)

func TestParsePublished(t *testing.T) {
	for in, want := range map[string]string{
		"8080:80":                "127.0.0.1:8080:80",
		"0:80":                   "127.0.0.1:0:80",
		"8080:80/tcp":            "127.0.0.1:8080:80",
		"5353:53/udp":            "127.0.0.1:5353:53/udp",
		"0.0.0.0:8080:80":        "0.0.0.0:8080:80",
		"[::1]:8080:80":          "[::1]:8080:80",
		"[fe80::1%eth0]:80:8080": "[fe80::1%eth0]:80:8080",
	} {
		got, err := network.ParsePublished(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got.String() != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
		if again, err := network.ParsePublished(got.String()); err != nil || again != got {
			t.Errorf("%s read again is %v, %v", got, again, err)
		}
	}
	for _, in := range []string{"", "80", ":", "80:", ":80", "80:0", "80:65536", "65536:80", "x:80", "80:80/sctp", "1.2.3:80:80", "[::1]80:80", "80:80/", "localhost:80:80"} {
		if got, err := network.ParsePublished(in); err == nil {
			t.Errorf("%q is %v, want an error", in, got)
		}
	}
}
