// Package archtest holds the tests over the source tree itself: who imports whom, where unsafe may be, how
// long files and functions are, what may panic. The package has no code; its tests are the architecture's rules.
package archtest
