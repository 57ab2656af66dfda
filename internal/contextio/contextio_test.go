package contextio

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReader(t *testing.T) {
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(context.Background())
	r := Reader(ctx, strings.NewReader("ab"))
	var b [1]byte
	if n, err := r.Read(b[:]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	cancel(why)
	if _, err := io.ReadAll(r); err != why {
		t.Errorf("%v, want the cause", err)
	}
}
