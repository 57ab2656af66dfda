package frame_test

import (
	"bytes"
	"fmt"

	"spore/emuhost/frame"
)

// A client greets and sends a line; the other end reads it, whatever a client
// before it left half sent.
func Example() {
	nonce := frame.Nonce{1, 2, 3, 4}
	var wire bytes.Buffer
	wire.Write(frame.Append(nil, 77, frame.TypeStdin, []byte("cut off"))[:6])
	wire.Write(frame.AppendHello(frame.Padding(), nonce))
	wire.Write(frame.Append(nil, nonce.Tag(), frame.TypeStdin, []byte("hello")))

	r := frame.NewReader(&wire)
	r.SetTag(77)
	_, err := r.Next()
	fmt.Println("fragment:", err)
	n, err := r.Hunt(nil)
	fmt.Println("greeted:", n == nonce, err)
	r.SetTag(n.Tag())
	f, err := r.Next()
	fmt.Printf("%s %v\n", f.Payload, err)
	// Output:
	// fragment: trailer of type 6 frame: malformed frame
	// greeted: true <nil>
	// hello <nil>
}
