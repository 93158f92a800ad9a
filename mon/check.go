package mon

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
)

// FileError says that a file of the monitor is damaged.
type FileError struct {
	File   string
	Offset int64 // in bytes; negative: unknown
	Why    string
}

func (e *FileError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("monitor's file %s is damaged: %s", e.File, e.Why)
	}
	return fmt.Sprintf("monitor's file %s is damaged at offset %d: %s", e.File, e.Offset, e.Why)
}

// Unwrap makes errors.Is(err, objstore.Corrupt) hold.
func (e *FileError) Unwrap() error { return objstore.Corrupt }

// Check verifies the files of a monitor that is not open, and changes nothing.
// A directory without them is fine. Corrupt: a *FileError.
//
// Etcd believes its files: its database has no checksums below the first two
// pages and is read through a memory map, a log that is cut short is taken for
// one that a power cut tore, and a map it does not find would be made anew.
func Check(dir string) error {
	log, err := checkLog(filepath.Join(dir, "member", "wal"))
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "member", "snap", "db")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 && log.last == 0 {
		return nil // a first start that was cut short, or none yet
	}
	if err != nil {
		return fmt.Errorf("check the monitor's database: %w", err)
	}
	applied, at, err := checkDB(path, b)
	if err != nil {
		return err
	}
	// What the database holds had been synced to the log before.
	switch {
	case applied <= log.last:
		return nil
	case log.file == "":
		return &FileError{filepath.Join(dir, "member", "wal"), -1, fmt.Sprintf("there is no log, and %s holds changes up to %d", path, applied)}
	}
	return &FileError{log.file, log.end, fmt.Sprintf("it ends with change %d, and at offset %d of %s is written that change %d was made", log.last, at, path, applied)}
}

// logState is what a write-ahead log says in the end.
type logState struct {
	file         string // the last one
	end          int64  // of its last record
	crc          uint32
	metadata     []byte
	last         uint64            // entry
	term, commit uint64            // of the state: a monitor that joins is in its term before it gets changes of earlier ones
	terms        map[uint64]uint64 // of changes; of those that were replaced, the later
}

// checkLog reads etcd's log. The end of its last file may be torn.
func checkLog(dir string) (s logState, err error) {
	s.terms = map[uint64]uint64{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("list the log: %w", err)
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return filepath.Ext(e.Name()) != ".wal" })
	for i, e := range entries {
		path := filepath.Join(dir, e.Name())
		err := s.readFile(path)
		torn := errors.Is(err, io.ErrUnexpectedEOF) && i == len(entries)-1
		switch {
		case errors.As(err, new(*fs.PathError)):
			return s, fmt.Errorf("check the monitor's log: %w", err)
		case err != nil && !torn:
			return s, &FileError{path, s.end, err.Error()}
		case s.metadata == nil:
			return s, &FileError{path, 0, "its first records are missing"}
		}
	}
	if s.last > 0 && s.commit > s.last {
		return s, &FileError{s.file, s.end, fmt.Sprintf("it ends with change %d, and change %d was committed", s.last, s.commit)}
	}
	return s, nil
}

func (s *logState) readFile(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it does not decode (%.200v)", r)
		}
	}()
	s.file, s.end = path, 0
	dec := wal.NewDecoder(fileutil.NewFileReader(f))
	rec := &walpb.Record{}
	for n := 0; ; n++ {
		if err := dec.Decode(rec); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if want := []int64{wal.CrcType, wal.MetadataType}; n < len(want) && rec.GetType() != want[n] {
			return fmt.Errorf("record %d is of type %d", n, rec.GetType())
		}
		if rec.GetType() == wal.CrcType {
			if s.crc != 0 && rec.GetCrc() != s.crc {
				return errors.New("what is before it is not what it was written behind")
			}
			dec.UpdateCRC(rec.GetCrc())
		} else if err := s.take(rec); err != nil {
			return err
		}
		s.crc, s.end = dec.LastCRC(), dec.LastOffset()
	}
}

// take looks at a record whose checksum is right; its type is in no checksum.
func (s *logState) take(rec *walpb.Record) error {
	switch rec.GetType() {
	case wal.MetadataType:
		if s.metadata != nil && !bytes.Equal(s.metadata, rec.Data) {
			return errors.New("it is the log of another member")
		}
		s.metadata = slices.Clone(rec.Data)
	case wal.EntryType:
		var e raftpb.Entry
		if err := proto.Unmarshal(rec.Data, &e); err != nil {
			return err
		}
		i := e.GetIndex()
		switch {
		case s.last > 0 && (i > s.last+1 || i <= s.last && i <= s.commit) || e.GetTerm() < s.terms[i-1] || e.GetType() > raftpb.EntryConfChangeV2:
			return fmt.Errorf("change %d of term %d behind change %d of term %d, %d committed", i, e.GetTerm(), s.last, s.terms[s.last], s.commit)
		case len(e.ProtoReflect().GetUnknown()) > 0:
			return fmt.Errorf("change %d does not decode", i)
		}
		s.last, s.terms[i] = i, e.GetTerm()
	case wal.StateType:
		var h raftpb.HardState
		if err := proto.Unmarshal(rec.Data, &h); err != nil {
			return err
		}
		if h.GetTerm() < s.term || h.GetCommit() < s.commit || len(h.ProtoReflect().GetUnknown()) > 0 {
			return fmt.Errorf("state of term %d with %d committed behind term %d with %d", h.GetTerm(), h.GetCommit(), s.term, s.commit)
		}
		s.term, s.commit = h.GetTerm(), h.GetCommit()
	case wal.SnapshotType:
		var snap walpb.Snapshot
		if err := proto.Unmarshal(rec.Data, &snap); err != nil {
			return err
		}
		s.last = max(s.last, snap.GetIndex())
		s.terms[snap.GetIndex()] = snap.GetTerm()
	default:
		return fmt.Errorf("record of unknown type %d", rec.GetType())
	}
	return nil
}

// checkDB verifies etcd's database: the tree, and the few things the monitor
// keeps in it. It returns the last change made in it, and where that is written.
func checkDB(path string, b []byte) (applied uint64, at int64, err error) {
	t, err := newTree(path, b)
	if err != nil {
		return 0, 0, err
	}
	err = t.buckets(func(bucket string, key, value []byte, where int64) error {
		switch {
		case bucket == "key":
			return t.revision(key, value, where)
		case bucket == "meta" && string(key) == "consistent_index" && len(value) == 8:
			applied, at = binary.BigEndian.Uint64(value), where
		case !t.expected(bucket, string(key), value):
			return t.damage(where, "%s/%s is not as it was written", bucket, key)
		}
		return nil
	})
	if err == nil && applied > 0 && len(t.latest) > 0 && (t.latest[keyMap] == nil || t.latest[keySession] == nil) {
		err = t.damage(0, "a key is missing")
	}
	return applied, at, err
}

var version = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`)

// expected says whether what etcd keeps of its own is right.
func (t *tree) expected(bucket, key string, value []byte) bool {
	strict := json.NewDecoder(bytes.NewReader(value))
	strict.DisallowUnknownFields()
	switch bucket + "/" + key {
	case "meta/term":
		return len(value) == 8
	case "meta/storageVersion", "cluster/clusterVersion":
		return version.Match(value)
	case "meta/scheduledCompactRev", "meta/finishedCompactRev":
		return len(value) == 17 && value[8] == '_'
	case "meta/confState":
		var c struct {
			Voters    []uint64 `json:"voters"`
			Outgoing  []uint64 `json:"voters_outgoing"`
			Learners  []uint64 `json:"learners"`
			Next      []uint64 `json:"learners_next"`
			AutoLeave bool     `json:"auto_leave"`
		}
		return strict.Decode(&c) == nil && len(c.Voters) > 0
	case "auth/authRevision":
		return bytes.Equal(value, binary.BigEndian.AppendUint64(nil, 1))
	}
	switch bucket {
	case "lease":
		return len(key) == 8
	case "members_removed":
		return string(value) == "removed"
	case "members":
	default:
		return false // nothing else is in use
	}
	var m struct {
		ID      uint64   `json:"id"`
		URLs    []string `json:"peerURLs"`
		Learner bool     `json:"isLearner"`
		Name    string   `json:"name"`
		Clients []string `json:"clientURLs"`
	}
	return strict.Decode(&m) == nil && strconv.FormatUint(m.ID, 16) == key && len(m.URLs) == 1 && !slices.Contains(m.URLs, "")
}

// revision checks a value of the monitor's as etcd stores it: below the number
// of the transaction, with the key and its history.
func (t *tree) revision(key, value []byte, at int64) error {
	gone := len(key) == 18 && key[17] == 't' // the key was deleted
	if len(key) != 17 && !gone || key[8] != '_' || binary.BigEndian.Uint64(key[9:]) > 1<<32 {
		return t.damage(at, "key %q is no revision", key)
	}
	rev := int64(binary.BigEndian.Uint64(key))
	var kv mvccpb.KeyValue
	if err := proto.Unmarshal(value, &kv); err != nil {
		return t.damage(at, "revision %d: %v", rev, err)
	}
	name := string(kv.Key)
	fleeting := strings.HasPrefix(name, prefixToken) || strings.HasPrefix(name, prefixBeat) || strings.HasPrefix(name, prefixMon)
	if name != keyMap && name != keySession && name != keyCA && name != keyS3 && !fleeting || gone && !fleeting {
		return t.damage(at, "revision %d: unknown key %q", rev, name)
	}
	if gone {
		delete(t.latest, name)
		return nil
	}
	if _, err := unseal(name, kv.Value); err != nil {
		return t.damage(at, "revision %d: %v", rev, err)
	}
	if kv.ModRevision != rev || kv.CreateRevision < 1 || kv.CreateRevision > rev || kv.Version < 1 || (kv.Version == 1) != (kv.CreateRevision == rev) || (kv.Lease != 0) != fleeting || len(kv.ProtoReflect().GetUnknown()) > 0 {
		return t.damage(at, "revision %d says it is version %d of %s, of revision %d, made in %d", rev, kv.Version, name, kv.ModRevision, kv.CreateRevision)
	}
	if before := t.latest[name]; before != nil && (kv.Version != before.Version+1 || kv.CreateRevision != before.CreateRevision) {
		return t.damage(at, "revision %d: version %d of %s follows version %d", rev, kv.Version, name, before.Version)
	}
	t.latest[name] = &kv
	return nil
}

// tree is a bbolt file in memory. Pages are numbered; each begins with its
// number (8), kind (2), count of elements (2) and how many more pages it takes
// (4). Elements of 16 bytes follow, and behind them keys and values without a
// gap. Numbers are little-endian.
type tree struct {
	path     string
	b        []byte
	pageSize int64
	root     uint64
	pages    uint64 // in use; those beyond are not
	seen     map[uint64]bool
	latest   map[string]*mvccpb.KeyValue
}

const (
	pageHeader  = 16
	elementSize = 16
	metaSize    = 64
	branchPage  = 1
	leafPage    = 2
	bucketFlag  = 1
	bucketSize  = 16 // root and counter of a bucket; a small one's only page follows
)

// bucketNames are those etcd makes.
var bucketNames = []string{"alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"}

func (t *tree) damage(at int64, format string, args ...any) error {
	return &FileError{t.path, at, fmt.Sprintf(format, args...)}
}

// newTree finds the newest root. The first two pages hold one each, in turn;
// one that a power cut tore leaves the other.
func newTree(path string, b []byte) (*tree, error) {
	t := &tree{path: path, b: b, pageSize: int64(os.Getpagesize()), seen: map[uint64]bool{}, latest: map[string]*mvccpb.KeyValue{}}
	if int64(len(b)) < 2*t.pageSize {
		return nil, t.damage(int64(len(b)), "it is cut short")
	}
	var newest uint64
	found := false
	for _, at := range []int64{0, t.pageSize} {
		m := b[at+pageHeader:][:metaSize]
		h := fnv.New64a()
		h.Write(m[:metaSize-8])
		txn := binary.LittleEndian.Uint64(m[48:])
		if h.Sum64() != binary.LittleEndian.Uint64(m[metaSize-8:]) || found && txn < newest {
			continue
		}
		found, newest = true, txn
		t.root, t.pages = binary.LittleEndian.Uint64(m[16:]), binary.LittleEndian.Uint64(m[40:])
		if size := int64(binary.LittleEndian.Uint32(m[8:])); size != t.pageSize {
			return nil, t.damage(at, "it has pages of %d bytes, this machine's have %d", size, t.pageSize)
		}
	}
	if !found {
		return nil, t.damage(0, "checksums of both roots")
	}
	if t.pages > uint64(int64(len(b))/t.pageSize) {
		return nil, t.damage(int64(len(b)), "it is cut short: it has %d pages in use", t.pages)
	}
	return t, nil
}

// buckets calls fn for every key in every bucket.
func (t *tree) buckets(fn func(bucket string, key, value []byte, at int64) error) error {
	return t.walk(t.root, nil, nil, 0, func(name, value []byte, at int64, flags uint32) error {
		if flags != bucketFlag || len(value) < bucketSize || !slices.Contains(bucketNames, string(name)) {
			return t.damage(at, "%q is no bucket", name)
		}
		if binary.LittleEndian.Uint64(value[8:]) != 0 {
			return t.damage(at, "bucket %q has a counter, which nothing uses", name)
		}
		each := func(key, value []byte, at int64, flags uint32) error {
			if flags != 0 {
				return t.damage(at, "key %q is none", key)
			}
			return fn(string(name), key, value, at)
		}
		if root := binary.LittleEndian.Uint64(value); root != 0 {
			return t.walk(root, nil, nil, 0, each)
		}
		return t.inline(value[bucketSize:], at+int64(len(name)+bucketSize), each)
	})
}

// inline reads the only page of a small bucket, which lies in the value.
func (t *tree) inline(page []byte, at int64, fn leafFunc) error {
	if len(page) < pageHeader || binary.LittleEndian.Uint64(page) != 0 || binary.LittleEndian.Uint32(page[12:]) != 0 {
		return t.damage(at, "this is not the only page of a bucket")
	}
	end, err := t.leaf(page, at, nil, nil, fn)
	if err == nil && end != len(page) {
		return t.damage(at, "it has %d bytes, %d are used", len(page), end)
	}
	return err
}

// walk goes through the subtree of a page, whose keys are from low up to high
// (nil: no limit).
func (t *tree) walk(id uint64, low, high []byte, depth int, fn leafFunc) error {
	at := int64(id) * t.pageSize
	if id < 2 || id >= t.pages || depth > 32 {
		return t.damage(max(0, min(at, int64(len(t.b)))), "page %d is beyond the %d in use", id, t.pages)
	}
	more := uint64(binary.LittleEndian.Uint32(t.b[at+12:]))
	if id+more >= t.pages || binary.LittleEndian.Uint64(t.b[at:]) != id {
		return t.damage(at, "this is not page %d", id)
	}
	for i := id; i <= id+more; i++ {
		if t.seen[i] {
			return t.damage(at, "page %d is used twice", i)
		}
		t.seen[i] = true
	}
	page := t.b[at:][:int64(more+1)*t.pageSize]
	if binary.LittleEndian.Uint16(page[8:]) == leafPage {
		end, err := t.leaf(page, at, low, high, fn)
		if err != nil {
			return err
		}
		return t.filled(page, at, end)
	}
	return t.branch(page, at, low, high, depth, fn)
}

func (t *tree) branch(page []byte, at int64, low, high []byte, depth int, fn leafFunc) error {
	n := int(binary.LittleEndian.Uint16(page[10:]))
	end := pageHeader + n*elementSize
	if binary.LittleEndian.Uint16(page[8:]) != branchPage || n == 0 || end > len(page) {
		return t.damage(at, "this is no page of a tree")
	}
	keys := make([][]byte, n, n+1)
	for i := range keys {
		e := page[pageHeader+i*elementSize:]
		size := int(binary.LittleEndian.Uint32(e[4:]))
		if pageHeader+i*elementSize+int(binary.LittleEndian.Uint32(e)) != end || size > len(page)-end {
			return t.damage(at, "element %d is not where it belongs", i)
		}
		keys[i] = page[end:][:size]
		end += size
	}
	if err := t.filled(page, at, end); err != nil {
		return err
	}
	keys = append(keys, high)
	for i := range n {
		if i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0 || i == 0 && low != nil && bytes.Compare(low, keys[0]) > 0 || high != nil && bytes.Compare(keys[i], high) >= 0 {
			return t.damage(at, "key %d is out of order", i)
		}
	}
	for i := range n {
		child := binary.LittleEndian.Uint64(page[pageHeader+i*elementSize+8:])
		if err := t.walk(child, keys[i], keys[i+1], depth+1, fn); err != nil {
			return err
		}
	}
	return nil
}

// leafFunc gets a key, its value, where it lies in the file, and its flags.
type leafFunc func(key, value []byte, at int64, flags uint32) error

// leaf goes through the keys of a page and returns where they end in it.
func (t *tree) leaf(page []byte, at int64, low, high []byte, fn leafFunc) (end int, err error) {
	if len(page) < pageHeader || binary.LittleEndian.Uint16(page[8:]) != leafPage {
		return 0, t.damage(at, "this is no page of a tree")
	}
	n := int(binary.LittleEndian.Uint16(page[10:]))
	end = pageHeader + n*elementSize
	if end > len(page) {
		return 0, t.damage(at, "it has %d elements and no room for them", n)
	}
	before := low
	for i := range n {
		e := page[pageHeader+i*elementSize:]
		flags, pos := binary.LittleEndian.Uint32(e), int(binary.LittleEndian.Uint32(e[4:]))
		keySize, size := int(binary.LittleEndian.Uint32(e[8:])), int(binary.LittleEndian.Uint32(e[12:]))
		if pageHeader+i*elementSize+pos != end || keySize > len(page)-end || size > len(page)-end-keySize {
			return 0, t.damage(at, "element %d is not where it belongs", i)
		}
		key, value := page[end:][:keySize], page[end+keySize:][:size]
		if c := bytes.Compare(before, key); before != nil && (c > 0 || c == 0 && i > 0) || high != nil && bytes.Compare(key, high) >= 0 {
			return 0, t.damage(at, "key %d is out of order", i)
		}
		before = key
		if err := fn(key, value, at+int64(end), flags); err != nil {
			return 0, err
		}
		end += keySize + size
	}
	return end, nil
}

// filled makes sure that a page takes no more room than its end asks for.
func (t *tree) filled(page []byte, at int64, end int) error {
	if more := int64(binary.LittleEndian.Uint32(page[12:])); more > 0 && int64(end) <= more*t.pageSize {
		return t.damage(at, "%d more pages belong to it and are not used", more)
	}
	return nil
}

// The monitor's values are stored in an envelope: format (1), CRC-32C of format,
// key and value (4, big-endian), value.
const (
	valueFormat = 1
	sealSize    = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sealSum(format byte, key string, value []byte) uint32 {
	sum := crc32.Update(0, castagnoli, []byte{format})
	return crc32.Update(crc32.Update(sum, castagnoli, []byte(key)), castagnoli, value)
}

// seal puts a value of key into its envelope.
func seal(key string, value []byte) string {
	b := binary.BigEndian.AppendUint32([]byte{valueFormat}, sealSum(valueFormat, key, value))
	return string(append(b, value...))
}

// unseal takes a value of key out of its envelope. Corrupt; Unsupported for a
// newer format.
func unseal(key string, b []byte) ([]byte, error) {
	if len(b) < sealSize || sealSum(b[0], key, b[sealSize:]) != binary.BigEndian.Uint32(b[1:]) {
		if json.Valid(b) {
			return nil, fmt.Errorf("value of %s has no checksum, as before the first release: %w", key, objstore.Corrupt)
		}
		return nil, fmt.Errorf("checksum of the value of %s: %w", key, objstore.Corrupt)
	}
	if b[0] != valueFormat {
		return nil, fmt.Errorf("value of %s has format %d, this Pillarbox reads %d: %w", key, b[0], valueFormat, objstore.Unsupported)
	}
	return b[sealSize:], nil
}
