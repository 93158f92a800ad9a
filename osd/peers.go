package osd

import (
	"context"

	"go.etcd.io/raft/v3/raftpb"

	"pillarbox/objstore"
)

// RaftMessage is a message between two members of a placement group.
type RaftMessage struct {
	PG  uint32
	Msg *raftpb.Message
}

// GroupPiece is a part of a placement group's state on its way to another
// member: first one that has only a Head, then keys of volumes with their
// values, the bodies of resident chunks among them (volume.BodyKey).
type GroupPiece struct {
	Head  *GroupHead
	Key   []byte
	Value []byte
}

// GroupHead says as of which log entry a group's state is, and who the members
// are as of another.
type GroupHead struct {
	Index, Term  uint64
	Members      *raftpb.ConfState
	MembersIndex uint64
}

// Peers reaches the other OSDs of the cluster. Its methods may be called from
// any goroutine and under locks where they say that they never wait.
type Peers interface {
	// Send hands messages to another OSD, or drops them when it cannot be
	// reached or falls behind. It never waits.
	Send(to int, ms []RaftMessage)
	// PullGroup gets a group's state from another OSD, its leader.
	PullGroup(ctx context.Context, from int, pg uint32, take func(GroupPiece) error) error
	// Peer is another OSD as its peers see it.
	Peer(id int) (Peer, error)
}

// Peer is what OSDs ask of one another, outside of raft. Lists of chunks are at
// most MaxChunkList long.
type Peer interface {
	// HasChunks says which of some pooled chunks the OSD holds.
	HasChunks(ctx context.Context, ids []objstore.ChunkID) ([]bool, error)
	// HeldShards says which shard the OSD holds of each of some chunks of
	// erasure-coded pools; -1: none.
	HeldShards(ctx context.Context, ids []objstore.ChunkID) ([]int, error)
	// PutChunk stores a pooled chunk, or a shard of one, durable on return.
	PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error
	// FetchChunk returns a pooled chunk, what the OSD has of a coded one, or a resident one of a group that the OSD
	// has a replica of, whole, after checking it. NotFound, Corrupt.
	FetchChunk(ctx context.Context, id objstore.ChunkID) ([]byte, error)
	// DropChunks removes pooled chunks; unknown ones are passed over.
	DropChunks(ctx context.Context, ids []objstore.ChunkID) error
	// WantedChunks asks the leader of a meta placement group which chunks its
	// volumes still refer to.
	WantedChunks(ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error)
	// Leftovers asks the leader of a meta placement group which chunks its volumes
	// do not refer to, and no session that is left will.
	Leftovers(ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error)
	// Members asks the leader of a meta placement group for its term and the
	// OSDs that are members, learners too.
	Members(ctx context.Context, pg uint32) (term uint64, osds []int, err error)
}

// MaxChunkList bounds the lists of chunks between peers.
const MaxChunkList = 4096
