// Package agent is how the supervisor and the guest's PID 1 speak: the messages, and the host's side of them.
// The guest's side is package agent/guest.
//
//	guest                              host
//	  │ connects to ControlPort          │   the machine is up
//	  │──────────── Hello ──────────────►│
//	  │◄─────────── Setup ───────────────│   hostname, clock, entropy, disks, limits
//	  │──────────── Ready ──────────────►│   file systems are mounted, RequestPort listens
//	  │                                  │
//	  │◄── one connection per Request ───│   to RequestPort
//
// Both sides bound every frame. The host believes nothing the guest says: any program in the guest with enough
// privilege can speak as the agent.
package agent

import "time"

// Version of the protocol. The host refuses any other.
const Version = 1

// Ports of the guest's vsock: the host's that the agent calls when it is up, and the guest's that it serves.
const (
	ControlPort = 1024
	RequestPort = 1025
)

// LateHID is the ACPI identifier of virtio-mmio transports that the agent, and not the kernel, gives to their driver, when the guest has booted
// (vmm/api, Boot.Late). No driver has it: a kernel's drivers know such a transport as LNRO0005.
const LateHID = "SPOR0001"

// Hello is the agent's first word.
type Hello struct {
	Version int           `json:"version"`
	Kernel  string        `json:"kernel"`    // release
	Uptime  time.Duration `json:"uptime_ns"` // of the guest's kernel
}

// Setup tells the agent what the guest is to be.
type Setup struct {
	Hostname string `json:"hostname"`
	Now      int64  `json:"now"`       // nanoseconds since 1970; the clock is set to it
	Entropy  []byte `json:"entropy"`   // from the host's generator, credited in full
	Lower    string `json:"lower"`     // device of the image: vda, pmem0
	DAX      bool   `json:"dax"`       // mount it without a page cache
	Upper    string `json:"upper"`     // device of the writable layer: vdb; "" is a tmpfs
	ReadOnly bool   `json:"read_only"` // the root file system; /tmp, /run and /var/tmp become tmpfs
	Pids     int    `json:"pids"`      // limit on processes and threads of all requests together

	Network *Network `json:"network,omitempty"` // nil: there is no interface but the loopback
}

// Network is what the guest's only network interface, eth0, is to be. The zero value of each part leaves that out.
type Network struct {
	MAC       string   `json:"mac"`                 // EUI-48, as 02:00:00:00:00:01
	MTU       int      `json:"mtu,omitempty"`       // bytes, 68 to 65535; 0 leaves it
	Addresses []string `json:"addresses,omitempty"` // with prefix lengths: 10.1.2.3/24, fd00::3/64
	Gateways  []string `json:"gateways,omitempty"`  // default routes, at most one of each family; reached directly if no address's prefix covers it
	DNS       []string `json:"dns,omitempty"`       // addresses of name servers, for resolv.conf
	Search    []string `json:"search,omitempty"`    // domains, for resolv.conf
	Hosts     []string `json:"hosts,omitempty"`     // further lines of /etc/hosts: an address and names
	CA        []byte   `json:"ca,omitempty"`        // certificates to trust beside the image's, PEM
}

// Failure is why something was not done.
type Failure struct {
	Text string `json:"error"`
	Code int    `json:"code,omitempty"` // 126 or 127 when a process could not be started, else 0
}

func (f *Failure) Error() string { return f.Text }

// Op is what a Request asks for.
type Op string

// The operations.
const (
	OpExec     Op = "exec"     // Request.Exec; answered by FrameStarted with Started, streams, FrameExit
	OpRun      Op = "run"      // as OpExec, of a program that comes with the request: FrameData follows, Exec.Program bytes in all
	OpSignal   Op = "signal"   // Request.Signal to the group of process Request.ID; answered by FrameDone
	OpResize   Op = "resize"   // Request.Size for the terminal of process Request.ID; answered by FrameDone
	OpPut      Op = "put"      // a tar stream to Request.Path; answered by FrameDone
	OpGet      Op = "get"      // a tar stream of Request.Path; ends with FrameEOF
	OpStats    Op = "stats"    // answered by FrameDone with Stats
	OpPowerOff Op = "poweroff" // end all processes, write everything back, switch off; answered by FrameDone before
	OpPing     Op = "ping"     // answered by FrameDone
	OpAttach   Op = "attach"   // to process Request.ID, which lost its connection to a copy of the machine; answered as OpExec is
	OpRehearse Op = "rehearse" // lay the agent's own file together, do once what the start of a command does, and leave nothing of it but warm caches; answered by FrameDone
	OpSync     Op = "sync"     // write everything back; answered by FrameDone
	OpHold     Op = "hold"     // the machine is about to be saved: processes outlive connections; answered by FrameDone
	OpRelease  Op = "release"  // it was saved, and goes on as what it was; answered by FrameDone
	OpResumed  Op = "resumed"  // Request.Resumed: the machine continues from a snapshot; answered by FrameDone
)

// Request is the first frame on a request connection.
type Request struct {
	Op     Op       `json:"op"`
	Exec   *Exec    `json:"exec,omitempty"`
	ID     uint64   `json:"id,omitempty"` // of a process, as in Started
	Signal int      `json:"signal,omitempty"`
	Size   *Winsize `json:"size,omitempty"`
	Path   string   `json:"path,omitempty"` // absolute, in the guest
	UID    uint32   `json:"uid,omitempty"`  // owner of what OpPut makes
	GID    uint32   `json:"gid,omitempty"`

	Resumed *Resumed `json:"resumed,omitempty"`
}

// Resumed tells a guest that it continues from a snapshot, and who it is from now on: its clock stood still, and other
// machines may have been made of the same memory.
type Resumed struct {
	Now      int64  `json:"now"`                // nanoseconds since 1970; the clock is set to it
	Entropy  []byte `json:"entropy"`            // not given to any other machine; the kernel's generator starts anew from it
	Hostname string `json:"hostname,omitempty"` // "" leaves it
	Pids     int    `json:"pids,omitempty"`     // as in Setup; 0 leaves it

	// Network is what eth0 is from now on, whatever it was; connections that it had are reset. nil leaves it.
	Network *Network `json:"network,omitempty"`
}

// Exec is a process to start.
type Exec struct {
	Args   []string `json:"args"`
	Env    []string `json:"env"`
	Dir    string   `json:"dir"`
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	Stdin  bool     `json:"stdin"` // FrameStdin frames will come; otherwise it is empty
	TTY    *Winsize `json:"tty,omitempty"`
	Main   bool     `json:"main,omitempty"` // the sandbox's command: all that it started ends with it

	// Program is the size in bytes of the file that is made at Args[0], an absolute path, before it is run: the process's user owns it,
	// its mode is 0755, and it replaces what was there. 0 makes none; at most MaxProgram. Only OpRun takes it.
	Program int64 `json:"program,omitempty"`
}

// MaxProgram bounds Exec.Program, in bytes.
const MaxProgram = 256 << 20

// Winsize is the size of a terminal in characters.
type Winsize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Started says that a process runs. Signals and sizes for it come as requests of their own: on its own
// connection they would wait behind input that it does not read.
type Started struct {
	ID uint64 `json:"id"`
}

// Exit is how a process ended, and what may explain it.
type Exit struct {
	Code     int           `json:"code"`             // if Signal is 0
	Signal   int           `json:"signal,omitempty"` // that ended it
	OOMKills uint64        `json:"oom_kills,omitempty"`
	PidsMax  uint64        `json:"pids_max,omitempty"`  // times a fork was refused
	DiskFull bool          `json:"disk_full,omitempty"` // the writable layer has no room
	Duration time.Duration `json:"duration_ns"`
	User     time.Duration `json:"user_ns"`
	System   time.Duration `json:"system_ns"`
	MaxRSS   int64         `json:"max_rss"` // bytes
}

// Stats are the guest's figures.
type Stats struct {
	Uptime          time.Duration `json:"uptime_ns"`
	CPU             time.Duration `json:"cpu_ns"` // used by all requests
	MemoryTotal     int64         `json:"memory_total"`
	MemoryAvailable int64         `json:"memory_available"`
	MemoryUsed      int64         `json:"memory_used"` // by all requests, page cache included
	Pids            int64         `json:"pids"`
	DiskTotal       int64         `json:"disk_total"`
	DiskFree        int64         `json:"disk_free"`
	Load            string        `json:"load"` // averages over 1, 5 and 15 minutes
}
