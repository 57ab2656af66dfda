// Package rootfs turns container images and root file systems into read-only EROFS images in a store that all
// sandboxes of a user share, and makes the writable layers put over them.
//
// A source is a registry reference, an OCI layout, a Docker archive, a tar file or a directory ([Store.Pull],
// [Store.Import]). Its layers are flattened in memory (package layer) and written as one EROFS file (package
// erofs); nothing of an image is ever unpacked on the host. The same layers give the same bytes, and so the
// same file in the store.
//
// # Store
//
//	blobs/sha256/HEX   EROFS images, by the SHA-256 of their bytes; mode 0444
//	images/HEX.json    what is known of an image: its EROFS file, configuration, users; by its own SHA-256
//	names.json         name → image; replaced as a whole
//	writable/          ext4 templates, by size
//	lock               byte ranges of it are locked, see lock.go
//
// Every file appears under its name only when it is complete, so a process killed at any moment leaves the store
// as it was; unfinished data has no name at all and is freed by the kernel.
package rootfs
