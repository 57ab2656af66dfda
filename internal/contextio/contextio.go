// Package contextio ends copies with a context.
package contextio

import (
	"context"
	"io"
)

// Reader reads from r until ctx ends; then it returns why that did. A Read that has begun is not interrupted.
func Reader(ctx context.Context, r io.Reader) io.Reader { return reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (c reader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
