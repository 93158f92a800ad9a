// Package e2e holds no code, only tests: real mail servers and shell tools, of
// the Debian packages that `make test-deps` brings, work on a mounted store.
//
// Each test makes its own store, users' directories and servers, in a directory
// of its own and on free ports of 127.0.0.1, and ends them in t.Cleanup. A
// server's configuration is built in the file named after it; docs/mail-servers.md
// shows the same settings. With PILLARBOX_TEST_PLAIN=1 a plain directory takes
// the mount's place: what fails there too is not the store's fault.
//
// The real mail (package mailset) is delivered under envelope senders that name
// each message, so that the stored file, which servers put Return-Path in front
// of, can be compared with what was injected byte for byte.
package e2e
