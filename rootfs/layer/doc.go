// Package layer flattens the tar layers of a container image into one tree of inodes.
//
// Nothing of an image is created on the host: names, links and owners stay in memory and contents go to one
// file ([erofs.Writer]), so no path in a layer, however hostile, is ever resolved by the host's kernel.
//
// Layers are applied bottom first ([Tree.Apply]). The rules are those of the OCI image specification, "Image
// Layer Filesystem Changeset": ".wh.NAME" removes NAME of the layers below, ".wh..wh..opq" hides everything
// below its directory. A symbolic link among the parents of an entry is followed within the tree, as
// if the tree were the root; ".." in a name is refused.
package layer
