package osd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
)

// DatabaseError says that a file of the database is damaged.
type DatabaseError struct {
	File   string
	Offset int64 // negative: unknown
	Why    string
}

func (e *DatabaseError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("database file %s is damaged: %s", e.File, e.Why)
	}
	return fmt.Sprintf("database file %s is damaged at offset %d: %s", e.File, e.Offset, e.Why)
}

// Unwrap makes errors.Is(err, objstore.Corrupt) hold.
func (e *DatabaseError) Unwrap() error { return objstore.Corrupt }

// dbFiles is a look at a database's files before badger opens them. Badger
// leaves out tables that it cannot read, ends an iteration at a broken block
// without a word, removes tables that a cut MANIFEST does not list, cuts a
// memtable's log at the first broken record, and panics in goroutines of its
// own. So every checksum is verified first, and that no transaction is missing:
// they are numbered without gaps.
type dbFiles struct {
	dir    string
	newest uint64 // the last transaction found
	// torn is the newest memtable log and where its last whole transaction
	// ends; what follows may be what a power cut tore.
	torn    string
	tornEnd int64
	// manifestEnd is where the MANIFEST's last record is cut short, as a power
	// cut may have done; negative: it is whole.
	manifestEnd int64
	// orphan is a table that the MANIFEST does not list, orphanLast the last
	// transaction in it.
	orphan     string
	orphanLast uint64
}

// checkDB verifies the database in dir, which may not exist yet.
func checkDB(dir string) (*dbFiles, error) {
	d := &dbFiles{dir: dir}
	manifest, err := d.manifest()
	if errors.Is(err, fs.ErrNotExist) {
		return d, d.isNew()
	}
	if err != nil {
		return nil, err
	}
	if err := d.keyRegistry(); err != nil {
		return nil, err
	}
	for id, t := range manifest.Tables {
		last, err := d.table(id, t.Compression)
		if err != nil {
			return nil, err
		}
		d.newest = max(d.newest, last)
	}
	if err := d.unlisted(manifest); err != nil {
		return nil, err
	}
	if err := d.logs(); err != nil {
		return nil, err
	}
	// Badger is about to remove tables that are not listed: a crash leaves such
	// a one, but never as the only place of a transaction.
	if d.orphanLast > d.newest {
		return nil, d.notListed()
	}
	return d, nil
}

// isNew makes sure that a database without a MANIFEST has never held anything:
// badger would begin anew and remove what is there. The write-ahead log is made
// when the database is.
func (d *dbFiles) isNew() error {
	for _, in := range [][2]string{{d.dir, ".sst"}, {d.dir, ".mem"}, {filepath.Join(filepath.Dir(d.dir), "wal"), ".log"}} {
		found, err := filesIn(in[0], in[1])
		if err != nil {
			return err
		}
		if len(found) > 0 {
			return &DatabaseError{filepath.Join(d.dir, badger.ManifestFilename), -1, "it is missing, and there is " + found[0]}
		}
	}
	return nil
}

func (d *dbFiles) notListed() error {
	why := fmt.Sprintf("it does not list %s, which holds transactions up to %d", filepath.Base(d.orphan), d.orphanLast)
	return &DatabaseError{filepath.Join(d.dir, badger.ManifestFilename), d.manifestEnd, why}
}

func (d *dbFiles) manifest() (m badger.Manifest, err error) {
	path := filepath.Join(d.dir, badger.ManifestFilename)
	f, err := os.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	defer recovered(&err, path)
	m, end, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(d.dir).WithLogger(nil))
	if err != nil {
		return m, &DatabaseError{path, -1, err.Error()}
	}
	st, err := f.Stat()
	if err != nil {
		return m, fmt.Errorf("check the database: %w", err)
	}
	if d.manifestEnd = end; st.Size() == end {
		d.manifestEnd = -1
	}
	return m, nil
}

// recovered makes damage of a panic in badger's decoding.
func recovered(err *error, path string) {
	if r := recover(); r != nil {
		*err = &DatabaseError{path, -1, fmt.Sprintf("it does not decode (%.200v)", r)}
	}
}

// keyRegistry checks the file that would hold encryption keys: an
// initialization vector and, as nothing is encrypted, a known text.
func (d *dbFiles) keyRegistry() error {
	path := filepath.Join(d.dir, badger.KeyRegistryFileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // made again
	}
	if err != nil {
		return fmt.Errorf("check the database: %w", err)
	}
	if len(b) != 28 || string(b[16:]) != "Hello Badger" {
		return &DatabaseError{path, 16, "it is not as it was made"}
	}
	return nil
}

// table verifies a table whole and returns its last transaction.
func (d *dbFiles) table(id uint64, compression options.CompressionType) (last uint64, err error) {
	path := table.NewFilename(id, d.dir)
	data, err := mapFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, &DatabaseError{path, -1, "it is missing, and " + badger.ManifestFilename + " lists it"}
	}
	if err != nil {
		return 0, fmt.Errorf("check the database: %w", err)
	}
	defer unix.Munmap(data)
	defer recovered(&err, path)
	if err := checkIndex(path, data); err != nil {
		return 0, err
	}
	t, err := table.OpenInMemoryTable(data, id, &table.Options{BlockSize: 4096, Compression: compression, ChkMode: options.OnTableAndBlockRead})
	if err == nil {
		err = t.VerifyChecksum()
	}
	if err != nil {
		return 0, &DatabaseError{path, -1, err.Error()}
	}
	return t.MaxVersion(), nil
}

// checkIndex verifies a table's index, which lies at its end: index, its
// length (4), its checksum, the checksum's length (4). Badger ends the process
// over a broken one.
func checkIndex(path string, data []byte) error {
	cut := func(n int) (tail []byte, ok bool) {
		if n < 0 || n > len(data) {
			return nil, false
		}
		tail, data = data[len(data)-n:], data[:len(data)-n]
		return tail, true
	}
	field := func() ([]byte, bool) {
		n, ok := cut(4)
		if !ok {
			return nil, false
		}
		return cut(int(binary.BigEndian.Uint32(n)))
	}
	sum, ok := field()
	at := int64(len(data))
	var want pb.Checksum
	if !ok || len(sum) > 64 || proto.Unmarshal(sum, &want) != nil {
		return &DatabaseError{path, at, "the index's checksum does not decode; the file may be cut short"}
	}
	index, ok := field()
	if !ok || y.VerifyChecksum(index, &want) != nil {
		return &DatabaseError{path, int64(len(data)), "checksum of the index"}
	}
	return nil
}

// mapFile maps a file to read it once; empty files are empty slices.
func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
}

// logs checks the memtable logs that a crash left: those that were full are
// whole, and each goes on where what is before it ends.
func (d *dbFiles) logs() error {
	paths, err := filesIn(d.dir, ".mem")
	if err != nil {
		return err
	}
	slices.Sort(paths)
	for i, path := range paths {
		l, err := readTableLog(path)
		if err != nil {
			return err
		}
		switch {
		case l.first <= d.newest+1:
		case d.orphanLast+1 >= l.first:
			return d.notListed()
		case d.manifestEnd >= 0:
			why := fmt.Sprintf("its last record is cut short, and the transactions between %d and %d of %s are nowhere", d.newest, l.first, filepath.Base(path))
			return &DatabaseError{filepath.Join(d.dir, badger.ManifestFilename), d.manifestEnd, why}
		default:
			return &DatabaseError{path, tableLogHeader, fmt.Sprintf("it begins with transaction %d, the last one before it is %d", l.first, d.newest)}
		}
		d.newest = max(d.newest, l.last)
		d.torn, d.tornEnd = path, l.end
		if i < len(paths)-1 && l.more {
			return &DatabaseError{path, l.end, "checksum mismatch"}
		}
	}
	return nil
}

const tableLogHeader = 20

// tableLog is what a memtable's log holds: transactions without gaps.
type tableLog struct {
	first, last uint64 // 0: none
	end         int64  // behind the last whole transaction
	more        bool   // something that is no whole transaction follows
}

func readTableLog(path string) (l tableLog, err error) {
	data, err := mapFile(path)
	if err != nil {
		return l, fmt.Errorf("check the database: %w", err)
	}
	defer unix.Munmap(data)
	at := min(tableLogHeader, len(data))
	l.end = int64(at)
	for {
		size, meta, key, value := tableLogRecord(data[at:])
		if size == 0 {
			break
		}
		at += size
		if meta&metaEndTxn == 0 {
			continue
		}
		ts, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil || y.ParseTs(key) != ts || l.last != 0 && ts != l.last+1 {
			break
		}
		if l.first == 0 {
			l.first = ts
		}
		l.last, l.end = ts, int64(at)
	}
	rest := data[l.end:]
	l.more = len(bytes.TrimLeft(rest[:min(len(rest), 4096)], "\x00")) > 0
	return l, nil
}

// metaEndTxn marks the record that ends a transaction and holds its number.
const metaEndTxn = 1 << 7

// tableLogRecord reads a record: meta (1), user meta (1), lengths of key and
// value and the expiry as uvarints, key, value, checksum (4). size is 0 when
// there is no whole one.
func tableLogRecord(b []byte) (size int, meta byte, key, value []byte) {
	if len(b) < 2 {
		return 0, 0, nil, nil
	}
	at := 2
	var n [3]uint64
	for i := range n {
		v, used := binary.Uvarint(b[at:])
		if used <= 0 {
			return 0, 0, nil, nil
		}
		n[i], at = v, at+used
	}
	if n[0] < 8 || n[0] > 1<<16 || n[1] > uint64(len(b)) || uint64(at)+n[0]+n[1]+4 > uint64(len(b)) {
		return 0, 0, nil, nil
	}
	key, value = b[at:at+int(n[0])], b[at+int(n[0]):at+int(n[0]+n[1])]
	at += int(n[0] + n[1])
	if crc32.Checksum(b[:at], y.CastagnoliCrcTable) != binary.BigEndian.Uint32(b[at:]) {
		return 0, 0, nil, nil
	}
	return at + 4, b[0], key, value
}

// unlisted finds the newest table that the MANIFEST does not list.
func (d *dbFiles) unlisted(m badger.Manifest) error {
	paths, err := filesIn(d.dir, ".sst")
	if err != nil {
		return err
	}
	for _, path := range paths {
		id, ok := table.ParseFileID(path)
		if _, listed := m.Tables[id]; listed || !ok {
			continue
		}
		last, err := d.table(id, options.Snappy)
		if errors.Is(err, objstore.Corrupt) {
			continue // not finished
		}
		if err != nil {
			return err
		}
		if last > d.orphanLast {
			d.orphan, d.orphanLast = path, last
		}
	}
	return nil
}

// lost is the error for a database that ends at transaction have where the
// write-ahead log knows of want.
func (d *dbFiles) lost(have, want uint64) error {
	why := fmt.Sprintf("it has lost what was flushed to it: it ends at transaction %d, the write-ahead log knows of %d", have, want)
	if d.torn != "" {
		return &DatabaseError{d.torn, d.tornEnd, why}
	}
	return &DatabaseError{d.dir, -1, why}
}

// filesIn lists the files of a directory, which may be missing, whose names end
// in suffix, in order. Unlike filepath.Glob it takes any directory's name.
func filesIn(dir, suffix string) (paths []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}
