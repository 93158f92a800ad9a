// Package s3 is the gateway by which S3 clients see the store: buckets are the
// top-level directories, keys are paths, and an object is a file. It works
// against a Namespace, the same that a mount serves, and keeps no state of its
// own: any number of gateways serve one store.
//
// # Where things are
//
// What S3 knows of an object beyond its bytes (record.go) is an extended
// attribute of its file, what it knows of a bucket one of its directory. Below a
// bucket's directory, in sysDir, lie what has no place among the paths:
//
//	.s3/odd/...       objects whose keys are no paths: "a//b", "..", "a" beside "a/b" (keys.go)
//	.s3/versions/...  versions that are not the latest, and delete markers (versions.go)
//	.s3/uploads/ID/   parts of multipart uploads (multipart.go)
//
// # Atomicity
//
// An object is written as a file without a name and gets its name in one step,
// by a link over the one that the gateway looked at (objstore.Link.Over). Whoever
// was faster makes the link fail, and the gateway looks again.
//
// # The way of a request
//
// gateway.go parses it, auth.go finds out whose it is, ops.go has the table of
// operations, access.go decides whether this user may, and a handler in the file
// of its group answers.
package s3
