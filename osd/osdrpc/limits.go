package osdrpc

// What crosses the wire at most. An encoded message has up to maxMessage bytes.
const (
	maxMessage  = 16 << 20
	maxChange   = 8 << 20   // bytes of a change: its log entry must fit a batch of raft's
	maxList     = 1 << 16   // inodes or chunks in a change, or extents in a list
	maxHeld     = 1 << 21   // volumes of a group that a client says it knows
	maxEntries  = 4096      // directory entries in an answer; a Conn asks again for more
	maxKey      = 4 << 10   // bytes in a key of a group's state
	maxMembers  = 1 << 10   // members of a group
	maxOSD      = 1<<31 - 1 // OSD ids
	maxErrText  = 2 << 10   // bytes of an error's text
	extentBytes = 8 << 20   // bytes of extents in an answer; a Conn asks again for more
	batchBytes  = 4 << 20   // bytes of raft's messages in a batch, unless one alone has more
	pieceBytes  = 256 << 10 // bytes of a group's pieces in a message, likewise
)
