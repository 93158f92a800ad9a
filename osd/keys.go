package osd

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/osd/chunkstore"
	"pillarbox/osd/wal"
)

// Keys of the OSD's badger database, by their first byte.
const (
	keyState   = 'S' // group(2) volume key: a volume's state
	keyGroup   = 'A' // group(2): what of the group's log is in the state
	keyChunk   = 'C' // chunk id(20): where a chunk lies, and which shard it is
	keyGarbage = 'G' // location(12): a forgotten chunk whose space is not given back yet
	keyMark    = 'L' // the flush mark
	keyStore   = 'M' // whose store this is
)

func stateKey(group uint32, key []byte) []byte {
	b := make([]byte, 3, 3+len(key))
	b[0] = keyState
	binary.BigEndian.PutUint16(b[1:], uint16(group))
	return append(b, key...)
}

func groupKey(group uint32) []byte {
	return binary.BigEndian.AppendUint16([]byte{keyGroup}, uint16(group))
}

func chunkKey(id objstore.ChunkID) []byte {
	b := make([]byte, 1, 21)
	b[0] = keyChunk
	b = binary.BigEndian.AppendUint64(b, uint64(id.Ino))
	b = binary.BigEndian.AppendUint32(b, id.Index)
	return binary.BigEndian.AppendUint64(b, id.Version)
}

func parseChunkKey(key []byte) (objstore.ChunkID, bool) {
	if len(key) != 21 || key[0] != keyChunk {
		return objstore.ChunkID{}, false
	}
	return objstore.ChunkID{
		Ino:     objstore.Ino(binary.BigEndian.Uint64(key[1:])),
		Index:   binary.BigEndian.Uint32(key[9:]),
		Version: binary.BigEndian.Uint64(key[13:]),
	}, true
}

// encodeLoc leaves out a tag of 0, as it is of all but shards.
func encodeLoc(b []byte, l chunkstore.Loc) []byte {
	b = binary.BigEndian.AppendUint32(b, l.Seg)
	b = binary.BigEndian.AppendUint32(b, l.Off)
	b = binary.BigEndian.AppendUint32(b, l.Len)
	if l.Tag != 0 {
		b = append(b, l.Tag)
	}
	return b
}

func decodeLoc(b []byte) (chunkstore.Loc, error) {
	if len(b) != 12 && len(b) != 13 {
		return chunkstore.Loc{}, fmt.Errorf("chunk location of %d bytes: %w", len(b), objstore.Corrupt)
	}
	l := chunkstore.Loc{
		Seg: binary.BigEndian.Uint32(b),
		Off: binary.BigEndian.Uint32(b[4:]),
		Len: binary.BigEndian.Uint32(b[8:]),
	}
	if len(b) == 13 {
		l.Tag = b[12]
	}
	return l, nil
}

func garbageKey(l chunkstore.Loc) []byte {
	l.Tag = 0
	return encodeLoc([]byte{keyGarbage}, l)
}

// storeRecord is the value of keyStore: whose the directory is, and the cluster
// map as the OSD saw it last.
type storeRecord struct {
	Format int           `json:"format"`
	OSD    int           `json:"osd"`
	Map    *objstore.Map `json:"map"`
}

// diskFormat is the version of everything an OSD writes; see docs/format.md.
const diskFormat = 1

// ErrNewer says that a directory was written by a newer program.
var ErrNewer = errors.New("written by a newer version")

func encodeStoreRecord(m *objstore.Map, id int) ([]byte, error) {
	return json.Marshal(storeRecord{diskFormat, id, m})
}

func decodeStoreRecord(b []byte) (*objstore.Map, int, error) {
	var r storeRecord
	if err := json.Unmarshal(b, &r); err != nil || r.Map == nil {
		return nil, 0, fmt.Errorf("store record: %w: %w", objstore.Corrupt, err)
	}
	if r.Format > diskFormat {
		return nil, 0, fmt.Errorf("the OSD's format is %d, this program knows %d: %w", r.Format, diskFormat, ErrNewer)
	}
	return r.Map, r.OSD, r.Map.Validate()
}

// groupRecord is the value of keyGroup: how far the log is in the state, and
// what raft must not forget when the log before that is gone.
type groupRecord struct {
	applied, appliedTerm uint64
	term, vote           uint64
	members              *raftpb.ConfState
	membersIndex         uint64  // the entry that made them so
	since                wal.LSN // what the log says of the group before this is void
	state                groupState
}

// groupState says whether a group's keys are a state.
type groupState uint8

const (
	groupWhole      groupState = iota
	groupInstalling            // being replaced by the leader's; only term counts
	groupLeft                  // removed from this OSD; only term counts
)

// encode: version (1), state (1), 8 bytes each of applied, its term, term, vote,
// since, entry of the members, then the members as raft's protobuf message.
func (r groupRecord) encode() []byte {
	b := []byte{2, byte(r.state)}
	for _, v := range []uint64{r.applied, r.appliedTerm, r.term, r.vote, uint64(r.since), r.membersIndex} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	members, err := proto.MarshalOptions{}.MarshalAppend(b, r.members)
	if err != nil {
		panic(err) // a message of numbers always encodes
	}
	return members
}

func decodeGroupRecord(b []byte) (r groupRecord, err error) {
	if len(b) < 50 || b[0] != 2 || b[1] > byte(groupLeft) {
		return r, fmt.Errorf("group record of %d bytes: %w", len(b), objstore.Corrupt)
	}
	r.state = groupState(b[1])
	for i, p := range []*uint64{&r.applied, &r.appliedTerm, &r.term, &r.vote, (*uint64)(&r.since), &r.membersIndex} {
		*p = binary.BigEndian.Uint64(b[2+8*i:])
	}
	r.members = &raftpb.ConfState{}
	if err := proto.Unmarshal(b[50:], r.members); err != nil {
		return r, fmt.Errorf("members in a group record: %w: %w", objstore.Corrupt, err)
	}
	return r, nil
}

// mark is the value of keyMark: everything before these positions is in the
// database and the synced segments.
type mark struct {
	lsn              wal.LSN
	resident, pooled chunkstore.Position
}

func (m mark) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte{1}, uint64(m.lsn))
	for _, v := range []uint32{m.resident.Seg, m.resident.Off, m.pooled.Seg, m.pooled.Off} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func decodeMark(b []byte) (m mark, err error) {
	if len(b) != 25 || b[0] != 1 {
		return m, fmt.Errorf("flush mark of %d bytes: %w", len(b), objstore.Corrupt)
	}
	m.lsn = wal.LSN(binary.BigEndian.Uint64(b[1:]))
	for i, p := range []*uint32{&m.resident.Seg, &m.resident.Off, &m.pooled.Seg, &m.pooled.Off} {
		*p = binary.BigEndian.Uint32(b[9+4*i:])
	}
	return m, nil
}

// Records of the write-ahead log.
const (
	recEntry     uint8 = 1 // term(8) index(8) raft entry type(1) data
	recHardState uint8 = 2 // term(8) vote(8)
	recFlush     uint8 = 3 // transaction(8) of the database that ended a flush
	recMembers   uint8 = 4 // index(8) of the entry, members as raft's protobuf message
)

func encodeMembers(m *raftpb.ConfState, index uint64) []byte {
	b, err := proto.MarshalOptions{}.MarshalAppend(binary.BigEndian.AppendUint64(nil, index), m)
	if err != nil {
		panic(err) // a message of numbers always encodes
	}
	return b
}

func decodeMembers(b []byte) (*raftpb.ConfState, uint64, error) {
	if len(b) < 8 {
		return nil, 0, fmt.Errorf("members of %d bytes: %w", len(b), objstore.Corrupt)
	}
	m := &raftpb.ConfState{}
	if err := proto.Unmarshal(b[8:], m); err != nil {
		return nil, 0, fmt.Errorf("members: %w: %w", objstore.Corrupt, err)
	}
	return m, binary.BigEndian.Uint64(b), nil
}
