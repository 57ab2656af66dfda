package api

import "spore/network/policy"

// Op is the verb of a control request.
type Op string

// The verbs that spore-net answers. Each request gets exactly one Reply, in order. The end of the stream ends the process.
const (
	OpStats   Op = "stats"   // Reply.Stats
	OpExplain Op = "explain" // Request.Address; Reply.Explanation
	OpReset   Op = "reset"   // drop every flow and all that the resolver has learnt: the guest is another one from now on
)

// Request is one message from the supervisor.
type Request struct {
	ID      uint64 `json:"id"`
	Op      Op     `json:"op"`
	Address string `json:"address,omitempty"` // OpExplain: as policy.ExplainAddress takes it
}

// Message is what spore-net sends: either a Reply or an Event, exactly one of them.
type Message struct {
	Reply *Reply `json:"reply,omitempty"`
	Event *Event `json:"event,omitempty"`
}

// Reply answers the Request of the same ID. Error is empty on success.
type Reply struct {
	ID          uint64              `json:"id"`
	Error       string              `json:"error,omitempty"`
	Stats       *Stats              `json:"stats,omitempty"`
	Explanation *policy.Explanation `json:"explanation,omitempty"`
}

// EventKind says what happened.
type EventKind string

// The events. Ready comes once and first; Failed comes instead when the configuration cannot be carried out, and is the last message.
const (
	EventReady  EventKind = "ready"
	EventFailed EventKind = "failed"
)

// Event is something that spore-net reports by itself.
type Event struct {
	Kind   EventKind `json:"kind"`
	CA     []byte    `json:"ca,omitempty"`     // Ready, with Secrets: PEM of the certificate that the guest must trust
	Detail string    `json:"detail,omitempty"` // Failed: one line for a person
}

// Stats are the figures of one mediated guest since its spore-net began.
type Stats struct {
	FromGuest Traffic `json:"from_guest"` // frames that the guest sent
	ToGuest   Traffic `json:"to_guest"`
	Sent      uint64  `json:"sent_bytes"`     // payload that left for destinations
	Received  uint64  `json:"received_bytes"` // payload that came from there

	// Frames from the guest that went nowhere: not a frame, from another address than its own, something that is never forwarded,
	// more than can be held.
	Malformed uint64 `json:"malformed"`
	Spoofed   uint64 `json:"spoofed"`
	Unwanted  uint64 `json:"unwanted"`
	Overload  uint64 `json:"overload"`
	// Frames for the guest that it was too slow for.
	Dropped uint64 `json:"dropped"`

	Denied        uint64 `json:"denied"`        // flows and names
	Failed        uint64 `json:"failed"`        // connections that were allowed and could not be made
	Open          int    `json:"open"`          // flows at this moment
	Flows         uint64 `json:"flows"`         // allowed, in all
	Queries       uint64 `json:"queries"`       // of the resolver
	Substitutions uint64 `json:"substitutions"` // placeholders that were replaced by their secrets
	AuditLost     uint64 `json:"audit_lost"`    // lines that Audit had no room for
	Memory        uint64 `json:"memory_bytes"`  // that the process has of the system
	Goroutines    int    `json:"goroutines"`    // of the process
}

// Traffic counts frames and their bytes.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}
