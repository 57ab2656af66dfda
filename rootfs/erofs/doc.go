// Package erofs writes EROFS images: uncompressed, 4 KiB blocks, byte-identical for identical input.
//
// File contents go straight to the image, block-aligned and contiguous, as they arrive ([Writer.Append]);
// the tree of inodes stays in memory until [Writer.Finish] writes directories, inodes and the super block
// behind them. Contents whose inode did not make it into the tree are squeezed out. Such images can be
// mounted with DAX: every file of more than [InlineMax] bytes lies in whole blocks of its own.
//
// Nothing here opens a path: the image is a file the caller has opened, and names are only bytes in it.
//
// Source of the format: Linux fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst (6.1).
package erofs
