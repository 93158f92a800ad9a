package osd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// A client sends a change again when no answer came, maybe to another leader.
// So that it is made once, a group keeps the results of each session's changes,
// by sequence number, in its state, until the client says that it has them
// (Liskov and Cowling, Viewstamped Replication Revisited, 2012, section 4.1, has
// the client table; here a session has many changes under way).

// resultPrefix begins the keys of results; no volume's key does.
const resultPrefix = 0xfe

func resultKey(session, seq uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte{resultPrefix}, session)
	return binary.BigEndian.AppendUint64(b, seq)
}

// sessions is what a leader knows of results without looking.
type sessions map[uint64]*session

type session struct {
	seqs  map[uint64]struct{} // results kept
	acked uint64              // the client has the results of all before, which are not kept any more
	seen  int64               // when it last sent something, in ticks
}

// ackedSeq is where acked is kept: no request has the number.
const ackedSeq = 0

// expireAfter is how long a session's results are kept after its last change,
// in ticks. A client gives up on a change long before.
const expireAfter = 6000

// load finds what earlier leaders kept.
func (s *sessions) load(v volume.View) error {
	*s = sessions{}
	var err error
	serr := v.Scan([]byte{resultPrefix}, nil, func(key, val []byte) bool {
		if len(key) != 17 {
			return true
		}
		have := s.session(binary.BigEndian.Uint64(key[1:]))
		seq := binary.BigEndian.Uint64(key[9:])
		have.seqs[seq] = struct{}{}
		if seq == ackedSeq {
			if len(val) != 8 {
				err = fmt.Errorf("acknowledged requests in %d bytes: %w", len(val), objstore.Corrupt)
				return false
			}
			have.acked = binary.BigEndian.Uint64(val)
		}
		return true
	})
	return errors.Join(serr, err)
}

func (s *sessions) session(id uint64) *session {
	if *s == nil {
		*s = sessions{}
	}
	if (*s)[id] == nil {
		(*s)[id] = &session{seqs: map[uint64]struct{}{}}
	}
	return (*s)[id]
}

// result is the answer to a request that was carried out before. Fenced: nobody
// waits for the answer any more, and whether the request was carried out is not
// known; it was held up on its way.
func (s *sessions) result(v volume.View, r objstore.Request) (objstore.Result, bool, error) {
	have := s.session(r.Session)
	if r.Seq == ackedSeq {
		return objstore.Result{}, false, fmt.Errorf("request without a number: %w", objstore.Invalid)
	}
	if r.Seq < have.acked {
		return objstore.Result{}, false, fmt.Errorf("request %d of session %x is over: %w", r.Seq, r.Session, objstore.Fenced)
	}
	if _, ok := have.seqs[r.Seq]; !ok {
		return objstore.Result{}, false, nil
	}
	b, err := v.Get(resultKey(r.Session, r.Seq))
	if err != nil || b == nil {
		return objstore.Result{}, false, err
	}
	res, err := decodeResult(b)
	return res, err == nil, err
}

// keep adds to a delta that the request's result is kept, and that those the
// client has are not.
func (s *sessions) keep(delta volume.Delta, r objstore.Request, res objstore.Result, now int64) volume.Delta {
	have := s.session(r.Session)
	have.seen = now
	for seq := range have.seqs {
		if seq < r.Ack && seq != ackedSeq {
			delta = append(delta, volume.Write{Key: resultKey(r.Session, seq)})
			delete(have.seqs, seq)
		}
	}
	if r.Ack > have.acked {
		have.acked = r.Ack
		have.seqs[ackedSeq] = struct{}{}
		delta = append(delta, volume.Write{Key: resultKey(r.Session, ackedSeq), Value: binary.BigEndian.AppendUint64(nil, r.Ack)})
	}
	have.seqs[r.Seq] = struct{}{}
	return append(delta, volume.Write{Key: resultKey(r.Session, r.Seq), Value: encodeResult(res)})
}

// expire forgets sessions that have been silent for long and of which nothing is
// kept.
func (s *sessions) expire(now int64) {
	for id, have := range *s {
		if have.seen == 0 {
			have.seen = now
		}
		if len(have.seqs) == 0 && now-have.seen > expireAfter {
			delete(*s, id)
		}
	}
}

// silent lists results of sessions that have been silent for long, as writes
// that remove them.
func (s *sessions) silent(now int64) (delta volume.Delta) {
	for id, have := range *s {
		if have.seen == 0 || now-have.seen <= expireAfter {
			continue
		}
		for seq := range have.seqs {
			delta = append(delta, volume.Write{Key: resultKey(id, seq)})
			delete(have.seqs, seq)
			if len(delta) >= 1000 {
				return delta
			}
		}
	}
	return delta
}

// encodeResult: version (1), then 8 bytes each of inode, mode and nlink, uid
// and gid, rdev, size, blocks, times, parent, orphan; has-xattr (1).
func encodeResult(r objstore.Result) []byte {
	a := r.Attr
	b := []byte{1}
	for _, v := range []uint64{
		uint64(a.Ino), uint64(a.Mode)<<32 | uint64(a.Nlink), uint64(a.Uid)<<32 | uint64(a.Gid), uint64(a.Rdev), a.Size, a.Blocks,
		uint64(a.Atime), uint64(a.Mtime), uint64(a.Ctime), uint64(a.Parent), uint64(r.Orphan),
	} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	if a.HasXattr {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeResult(b []byte) (objstore.Result, error) {
	if len(b) != 90 || b[0] != 1 {
		return objstore.Result{}, fmt.Errorf("kept result of %d bytes: %w", len(b), objstore.Corrupt)
	}
	at := func(i int) uint64 { return binary.BigEndian.Uint64(b[1+8*i:]) }
	return objstore.Result{Orphan: objstore.Ino(at(10)), Attr: objstore.Attr{
		Ino: objstore.Ino(at(0)), Mode: uint32(at(1) >> 32), Nlink: uint32(at(1)), Uid: uint32(at(2) >> 32), Gid: uint32(at(2)), Rdev: uint32(at(3)),
		Size: at(4), Blocks: at(5), Atime: int64(at(6)), Mtime: int64(at(7)), Ctime: int64(at(8)), Parent: objstore.Ino(at(9)), HasXattr: b[89] == 1,
	}}, nil
}
