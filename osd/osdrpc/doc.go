// Package osdrpc is the RPC of an object storage daemon: gRPC over mutual TLS,
// the protobuf package pillarbox.osd.v1.
//
//	Server   offers a Backend, an *osd.OSD, to clients and to other OSDs
//	Conn     is one OSD, over the network: a client.OSD and an osd.Peer
//	Conns    are the connections to all OSDs of the cluster map: an osd.Peers
//	         and a client.Router
//
// Who calls is what the certificate says: its organizational unit is the role
// (mon, osd, client, admin) and its common name the name (osd.3, client.mx1).
// Other OSDs alone may call what concerns raft and the chunks of peers.
//
// Errors keep their objstore.Kind, and a LeaderError the leader. What comes
// back is the OSD's answer, unless it is a NoAnswer: then nobody knows whether
// the call was carried out. Whoever sees only that it is Unavailable, which a
// NoAnswer is and an answer can be, must assume that it may have been.
//
// Every length and number from the wire is checked before the backend sees it;
// what is wrong is refused as the volume itself would, else as Invalid.
//
// A Conn has two connections: one for short calls and raft's messages, one for
// chunks and groups' states, so that neither heartbeats nor metadata queue
// behind 4 MiB of data. All types may be used from any goroutine.
package osdrpc
