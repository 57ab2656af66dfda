package guest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Files of certificates to trust: those that the host adds, and those together with the image's.
const (
	caFile   = runDir + "/ca.pem"
	caBundle = runDir + "/ca-bundle.pem"
)

// bundles are where images have their certificates: Debian and Alpine, Fedora, openSUSE, and others.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
}

// maxBundle bounds what is read of one, in bytes.
const maxBundle = 8 << 20

// trusting are the variables by which programs are told of certificates: each of OpenSSL's and Go's, Python's, curl, git and Node.js.
var trusting = []struct{ name, file string }{
	{"SSL_CERT_FILE", caBundle}, {"REQUESTS_CA_BUNDLE", caBundle}, {"CURL_CA_BUNDLE", caBundle}, {"GIT_SSL_CAINFO", caBundle}, {"NODE_EXTRA_CA_CERTS", caFile},
}

// setTrust makes programs that are started from now on trust ca beside what the image trusts. Those that run already read the same files.
func (a *server) setTrust(ca []byte) error {
	a.mu.Lock()
	same := bytes.Equal(a.ca, ca)
	a.ca = ca
	a.mu.Unlock()
	if same {
		return nil
	}
	if len(ca) == 0 {
		return errors.Join(remove(caFile), remove(caBundle))
	}
	text := strings.TrimRight(string(ca), "\n") + "\n"
	return errors.Join(writeOwn(caFile, text), writeOwn(caBundle, imageBundle()+text))
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// imageBundle is what the image trusts; nothing if it has none that can be read.
func imageBundle() string {
	for _, path := range bundles {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(f, maxBundle))
		f.Close()
		if err == nil && len(b) > 0 {
			return strings.TrimRight(string(b), "\n") + "\n"
		}
	}
	return ""
}

// withTrust adds the variables to an environment that does not name them.
func (a *server) withTrust(env []string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.ca) == 0 {
		return env
	}
	env = env[:len(env):len(env)]
next:
	for _, v := range trusting {
		for _, e := range env {
			if strings.HasPrefix(e, v.name+"=") {
				continue next
			}
		}
		env = append(env, v.name+"="+v.file)
	}
	return env
}
