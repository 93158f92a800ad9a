// Package mon is the monitor: it keeps the cluster map and hands out session
// ids. Everybody reads the map, nobody passes data through a monitor.
//
// A monitor is an embedded etcd; what a majority of the monitors has stored is
// the truth. There is one member now, spoken to in the process: it opens no
// port and no socket. Two keys make up its state:
//
//	pillarbox/map      the cluster map, JSON (objstore.Map)
//	pillarbox/session  the last session id given out, decimal
//
// Each value carries a checksum. Open verifies all files before etcd opens
// them (check.go).
//
// Ownership and concurrency: every method of a Monitor may be called from any
// goroutine until Close. Maps that it returns belong to the caller. Close ends
// the watches and everything else that Open started, and waits for it; the
// channel of a watch closes when its context or the monitor ends.
//
// What etcd logs at warn and above goes to Options.Log. Its habit of ending the
// process over a damaged file becomes an error wrapping objstore.Corrupt while
// Open runs; the monitor's directory must then not be opened again by this
// process, for etcd leaves locks behind.
package mon
