// Package api is what crosses the line between the supervisor (spore) and the jailed VMM (spore-vmm):
// the configuration of a machine, the requests and events of its control socket, and the messages of
// its vsock broker. It holds plain data only and links nothing but the standard library and
// internal/wire, so that both sides may import it.
package api

// Version is the version of Config. A VMM refuses any other.
const Version = 1

// File is a position in the list of descriptors that the VMM inherits after the configuration: the configuration
// itself arrives on descriptor 3, and 0 is descriptor 4. A negative value means "none".
type File int

// KVMFile is /dev/kvm, open read-write. It is always the first file, so that the VM can be made before the
// configuration has been read. The VMM closes it once the VM exists.
const KVMFile File = 0

// NoFile is the File that names no descriptor.
const NoFile File = -1

// Limits of a machine. Both sides check them: the supervisor for a clear message, the VMM because it trusts nobody.
const (
	MaxVCPUs  = 16
	MinMemory = 32 << 20 // bytes
	MaxMemory = 64 << 30 // bytes
	MaxDisks  = 8
	MaxPmem   = 4
	MaxFiles  = 32
)

// Config is everything the VMM is told. It holds no path: files are descriptors, by index.
type Config struct {
	Version int    // Version
	ID      string // of the sandbox; for logs only
	VCPUs   int    // 1 to MaxVCPUs
	Memory  int64  // bytes of guest RAM, a multiple of 2 MiB, MinMemory to MaxMemory

	Control File // SOCK_STREAM socket: requests in, replies and events out
	Log     File // JSON log lines, or NoFile

	Boot    Boot     // ignored with Restore
	Restore *Restore // the machine continues from a snapshot
	Disks   []Disk
	Pmem    []Pmem
	Vsock   *Vsock
	Net     *Net // the only network interface; nil is none at all
	Console Console
	Entropy File // /dev/urandom for the entropy device, or NoFile for none
	Balloon bool // virtio balloon: inflate, deflate on OOM, statistics, free page reporting

	// Processor is what KVM can virtualise here (KVM_GET_SUPPORTED_CPUID), in the form of kvm.ParseCPUID, from a supervisor that has
	// asked before. Empty, the VMM asks: that takes a third of a millisecond and more.
	Processor []byte

	// Wait marks a shell: an empty machine of this shape that waits for OpWake to bring it a snapshot and the files that are
	// NoFile here. Boot and Restore are ignored.
	Wait bool

	// Test marks a bare-metal guest: Boot.Kernel is a flat image loaded and entered at 1 MiB in 64-bit mode,
	// and no ACPI tables are written.
	Test bool
}

// Boot says what the first vCPU runs.
type Boot struct {
	Kernel  File   // ELF vmlinux or bzImage
	Initrd  File   // initramfs, or NoFile
	Cmdline string // at most 2047 bytes; the VMM appends nothing

	// Late is the ACPI hardware identifier, such as "SPOR0001", that the entropy device and the balloon are announced by, in place of the one that the
	// kernel's driver knows: a guest that boots does without them until its agent gives them to the driver. Empty, they are like the others.
	Late string
}

// Restore is the snapshot that a machine continues from. Everything else of the Config must be as it was for the machine
// that was saved: the policy comes from here, never from a snapshot (SNAP-08).
type Restore struct {
	State  File // as OpSnapshot wrote it; a regular file or memfd
	Memory File // Config.Memory bytes, sparse; mapped privately, so it may be read-only and shared
	Hot    File // as OpHot wrote it: pages to copy at once, because a guest that wakes writes to them; or NoFile, or 0
}

// Disk is one virtio-blk device, in the order of /dev/vda, /dev/vdb, …
type Disk struct {
	File     File   // raw image; a regular file
	ID       string // VIRTIO_BLK_T_GET_ID, at most 20 bytes
	ReadOnly bool   // the descriptor must then be open O_RDONLY
	Rate     Rate
}

// Rate bounds a device with token buckets. The zero value is no bound.
type Rate struct {
	BytesPerSecond int64
	BytesBurst     int64 // 0 means one second's worth
	OpsPerSecond   int64
	OpsBurst       int64
}

// Pmem is one virtio-pmem device, /dev/pmem0, …: a file mapped into guest physical memory above RAM.
// It is always read-only: the descriptor must be open O_RDONLY and the memory slot is KVM_MEM_READONLY.
type Pmem struct {
	File File
	Size int64 // bytes of the file; the mapping is rounded up to 16 MiB, with zeros
}

// Vsock is the virtio-vsock device.
type Vsock struct {
	CID    uint32 // the guest's, 3 or more
	Broker File   // SOCK_SEQPACKET socket speaking BrokerMessage
}

// Limits of Net.MTU.
const (
	MinMTU = 68    // what IPv4 asks of every link (RFC 791)
	MaxMTU = 65535 // bytes
)

// Net is the virtio-net device.
type Net struct {
	// File is read and written one whole Ethernet frame at a time, each behind a virtio_net_hdr of 12 bytes, little endian (virtio
	// 1.2 §5.1.6): a tap with IFF_TAP, IFF_NO_PI, IFF_VNET_HDR and TUNSETVNETHDRSZ 12, or one end of a SOCK_SEQPACKET pair.
	File File

	MAC MAC    // of the guest's interface; an individual address, not all zeros
	MTU uint16 // bytes, MinMTU to MaxMTU; 0 leaves it to the guest (1500)

	// Offload says that File's other side takes frames whose checksums are missing and TCP segments of up to 64 KiB, and may
	// send such: for a tap, that TUNSETOFFLOAD was called with TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 and TUN_F_TSO_ECN.
	Offload bool

	RateIn  Rate // to the guest; what exceeds it waits in File's queue, and is dropped there
	RateOut Rate // from the guest; what exceeds it waits in the guest's
}

// Console is where the guest's virtio console (hvc0) and the optional UART go.
type Console struct {
	Output File // guest output is written here, rate-limited and dropped when it would block; or NoFile
	Input  File // host input, or NoFile
	UART   bool // adds a 16550A at port 0x3f8 (ttyS0), written to Output too: --debug-console
}

// Files lists every File that c names, NoFile included and KVMFile not, in no particular order.
func (c *Config) Files() []File {
	out := []File{c.Control, c.Log, c.Entropy, c.Boot.Kernel, c.Boot.Initrd, c.Console.Output, c.Console.Input}
	if c.Restore != nil {
		out = append(out, c.Restore.State, c.Restore.Memory, c.Restore.Hot)
	}
	for _, d := range c.Disks {
		out = append(out, d.File)
	}
	for _, p := range c.Pmem {
		out = append(out, p.File)
	}
	if c.Vsock != nil {
		out = append(out, c.Vsock.Broker)
	}
	if c.Net != nil {
		out = append(out, c.Net.File)
	}
	return out
}
