//go:build rados

package harness

// tags are those that the program is built with: the test's.
const tags = "rados"
