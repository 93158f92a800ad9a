// Package monrpc is the monitors' service: gRPC over mutual TLS, the protobuf
// package pillarbox.mon.v1.
//
//	Server  offers a Monitor
//	Client  is the monitors as an OSD, a mount or an admin sees them: it goes to
//	        another one when one does not answer
//	Join    trades a token for credentials; the only call without a certificate
//
// Roles, from the caller's certificate: everybody may watch the map; osd may boot
// and beat as itself; client and admin may begin sessions; admin may give
// commands. Errors keep their objstore.Kind.
package monrpc
