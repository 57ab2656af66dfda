package api

// Op is the verb of a control request.
type Op string

// The verbs the VMM answers. Each request gets exactly one Reply, in order.
const (
	OpPause   Op = "pause"   // vCPUs parked, devices quiet
	OpResume  Op = "resume"  //
	OpStop    Op = "stop"    // end the machine now; the Exit event follows
	OpStats   Op = "stats"   // Reply.Counters
	OpBalloon Op = "balloon" // Request.Bytes is the new balloon size
	OpWake    Op = "wake"    // to a shell: continue from the snapshot of Request.Config, whose files come with the request
	OpHot     Op = "hot"     // which pages were written since the machine woke, into the first of the HotFiles descriptors that come with the request
	OpTrack   Op = "track"   // from now on, what is written to the disks is for the next OpSave to say
	OpSave    Op = "save"    // pause, and a snapshot into the SaveFiles descriptors that come with the request; Reply.Saved

	// SaveFiles is how many descriptors come with OpSave: the state file and the memory file, both empty and open for
	// writing, and /proc/PID/pagemap of the VMM, which says what was written to its memory. They are attached to the first byte
	// of the request (SCM_RIGHTS).
	SaveFiles = 3
	// HotFiles is how many come with OpHot: a file that is empty and open for writing, and the same pagemap.
	HotFiles = 2
)

// Request is one message from the supervisor.
type Request struct {
	ID    uint64
	Op    Op
	Bytes int64
	// Config is OpWake's: File 1 is the first descriptor that comes with the request, attached as SaveFiles are; Control is
	// NoFile, for the control socket stays.
	Config *Config

	Live bool // OpSave: copy memory while the guest runs, where that is possible
	GoOn bool // OpSave: run on at once if nothing was written to a disk since OpTrack
}

// Message is what the VMM sends: either a Reply or an Event, exactly one of them.
type Message struct {
	Reply *Reply
	Event *Event
}

// Reply answers the Request of the same ID. Error is empty on success.
type Reply struct {
	ID       uint64
	Error    string
	Counters map[string]map[string]uint64 // device → counter → value
	Saved    *Saved                       // OpSave
	Stopped  int64                        // OpResume: how long the guest stood still
}

// Saved is what a snapshot is made of, and what it cost.
type Saved struct {
	Changes bool   // memory holds only what differs from the memory file that the machine woke from
	Before  int64  // of memory, copied while the guest ran
	During  int64  // copied while it stood still
	Steps   []Step // what it stood still for, up to the reply
	GoesOn  bool   // it runs again, as GoOn asked
	Stopped int64  // with GoesOn: how long it stood still
	// Disks is what was written to each writable disk, by its ID, since OpTrack or the last OpSave: in order, at most MaxExtents.
	Disks map[string][]Extent
}

// MaxExtents bounds the list of each disk in Saved; more are told as fewer and longer ones.
const MaxExtents = 4096

// Extent is a stretch of a disk, in bytes.
type Extent struct {
	Offset int64
	Length int64
}

// EventKind says what happened.
type EventKind string

// The events. Started comes once, when the guest begins to run; Exit comes once and is the last message.
const (
	EventWaiting EventKind = "waiting" // instead, of a shell that is ready for OpWake; EventStarted follows that
	EventStarted EventKind = "started"
	EventExit    EventKind = "exit"
)

// Event is something the VMM reports by itself.
type Event struct {
	Kind   EventKind
	Steps  []Step     // with EventStarted: where the start-up time went
	First  int64      // by CLOCK_MONOTONIC; with EventStarted: when the vCPUs were let run; with EventExit: the guest's first exit
	Reason ExitReason // with EventExit
	Detail string     // one line for a person
}

// Step is one named part of start-up.
type Step struct {
	Name  string
	Nanos int64 // duration
}

// ExitReason is why a machine ended.
type ExitReason string

// The reasons, from the guest's own doing to ours.
const (
	ExitPowerOff    ExitReason = "power-off"    // ACPI S5
	ExitReset       ExitReason = "reset"        // ACPI reset register
	ExitPanic       ExitReason = "panic"        // the guest kernel said so (pvpanic)
	ExitTripleFault ExitReason = "triple-fault" // KVM_EXIT_SHUTDOWN
	ExitStopped     ExitReason = "stopped"      // OpStop, or the control socket closed
	ExitInternal    ExitReason = "internal"     // KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY or an error of ours
)
