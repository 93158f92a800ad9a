package s3

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"pillarbox/objstore"
)

// Listings go through a bucket in the order of keys, which is not that of names:
// below the directory "a" keys begin with "a/", which comes after "a-b". Two
// walks are merged, that of the paths and that of the odd keys; a listing of
// versions merges a third.

// walker yields what is in a tree, in the order of keys. A part that cannot
// matter is not read.
type walker struct {
	ctx    context.Context
	b      *bucket
	prefix string
	after  string // keys up to this one are not wanted
	skip   string // nor those that begin with this; empty: none
	err    error
}

// wanted says whether any key that begins with p can be.
func (w *walker) wanted(p string) bool {
	if !strings.HasPrefix(p, w.prefix) && !strings.HasPrefix(w.prefix, p) {
		return false
	}
	if p <= w.after && !strings.HasPrefix(w.after, p) {
		return false
	}
	return w.skip == "" || !strings.HasPrefix(p, w.skip)
}

// hit says whether a key is.
func (w *walker) hit(key string) bool {
	return strings.HasPrefix(key, w.prefix) && key > w.after && (w.skip == "" || !strings.HasPrefix(key, w.skip))
}

// found is one key and what has it.
type found struct {
	key   string
	place place
}

type named struct {
	sort string // with a slash, if it is a directory's
	e    objstore.DirEntry
}

// listings remembers large directories in the order of keys, so that the pages of
// a listing do not each read and sort them again. A directory is what it was as
// long as its mtime is, which every change of a name moves.
type listings struct {
	mu    sync.Mutex // a leaf
	dirs  map[objstore.Ino]listing
	names int
}

type listing struct {
	mtime int64
	list  []named // without attributes, which change without the directory
}

const (
	largeDir  = 1000    // entries from which on a directory is remembered
	keepNames = 1 << 20 // how many are, in all
)

func (l *listings) get(dir objstore.Ino, mtime int64) ([]named, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok := l.dirs[dir]
	return d.list, ok && d.mtime == mtime
}

func (l *listings) put(dir objstore.Ino, mtime int64, list []named) {
	if len(list) < largeDir || len(list) > keepNames {
		return
	}
	bare := make([]named, len(list))
	for i, n := range list {
		n.e.Attr = nil
		bare[i] = n
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names+len(bare) > keepNames || l.dirs == nil {
		l.dirs, l.names = map[objstore.Ino]listing{}, 0
	}
	l.names += len(bare) - len(l.dirs[dir].list)
	l.dirs[dir] = listing{mtime, bare}
}

// entries reads a directory, in the order of keys.
func (w *walker) entries(dir objstore.Ino) []named {
	a, err := w.b.ns.GetAttr(w.ctx, dir)
	if err != nil {
		if !isGone(err) {
			w.err = err
		}
		return nil
	}
	if list, ok := w.b.listings.get(dir, a.Mtime); ok {
		return list
	}
	list := w.read(dir)
	w.b.listings.put(dir, a.Mtime, list)
	return list
}

func (w *walker) read(dir objstore.Ino) []named {
	var list []named
	err := readDir(w.ctx, w.b.ns, dir, true, func(e objstore.DirEntry) bool {
		n := named{e.Name, e}
		switch e.Type {
		case objstore.ModeDir:
			n.sort += "/"
		case objstore.ModeRegular:
		default:
			return true
		}
		list = append(list, n)
		return true
	})
	if err != nil && !isGone(err) {
		w.err = err
		return nil
	}
	slices.SortFunc(list, func(a, b named) int { return strings.Compare(a.sort, b.sort) })
	return list
}

// paths yields the objects that have paths.
func (w *walker) paths() iter.Seq[found] {
	return func(yield func(found) bool) { w.walkPaths(w.b.dir, "", yield) }
}

func (w *walker) walkPaths(dir objstore.Ino, path string, yield func(found) bool) bool {
	for _, n := range w.entries(dir) {
		key := path + n.sort
		if path == "" && n.e.Name == sysDir || !utf8.ValidString(n.e.Name) || len(key) > maxKey || !w.wanted(key) {
			continue
		}
		if n.e.Type == objstore.ModeRegular {
			if w.hit(key) && !yield(found{key, place{dir, n.e.Name, w.attr(n.e)}}) {
				return false
			}
			continue
		}
		if w.hit(key) && (n.e.Attr == nil || n.e.Attr.HasXattr) {
			_, err := w.b.ns.GetXattr(w.ctx, n.e.Ino, objectAttr)
			if err == nil && !yield(found{key, place{dir, n.e.Name, w.attr(n.e)}}) {
				return false
			}
			if err != nil && !errors.Is(err, objstore.NoAttr) && !isGone(err) {
				w.err = err
				return false
			}
		}
		if w.wanted(key) && !w.walkPaths(n.e.Ino, key, yield) {
			return false
		}
		if w.err != nil {
			return false
		}
	}
	return w.err == nil
}

// attr is an entry's; one of another volume is asked for when it is loaded.
func (w *walker) attr(e objstore.DirEntry) objstore.Attr {
	if e.Attr != nil {
		return *e.Attr
	}
	a, err := w.b.ns.GetAttr(w.ctx, e.Ino)
	if err != nil && !isGone(err) {
		w.err = err
	}
	return a
}

// odd yields what is below a directory of sysDir that is laid out as oddPath
// has it: files, or with dirs set the directories that end a path.
func (w *walker) odd(top string, dirs bool) iter.Seq[found] {
	return func(yield func(found) bool) {
		p, _, err := walk(w.ctx, w.b.ns, w.b.dir, []string{sysDir, top})
		if err != nil {
			w.err = err
		}
		if err == nil && p.exists() && p.attr.IsDir() {
			w.walkOdd(p.attr.Ino, "", dirs, yield)
		}
	}
}

func (w *walker) walkOdd(dir objstore.Ino, path string, dirs bool, yield func(found) bool) bool {
	list := slices.Clone(w.entries(dir))
	slices.SortFunc(list, func(a, b named) int { return strings.Compare(a.e.Name, b.e.Name) })
	for _, n := range list {
		name, more := strings.CutSuffix(n.e.Name, "+")
		piece, err := hex.DecodeString(name)
		if err != nil {
			continue
		}
		key := path + string(piece)
		if more {
			if w.wanted(key) && !w.walkOdd(n.e.Ino, key, dirs, yield) {
				return false
			}
			continue
		}
		if (n.e.Type == objstore.ModeDir) == dirs && w.hit(key) && !yield(found{key, place{dir, n.e.Name, w.attr(n.e)}}) {
			return false
		}
	}
	return w.err == nil
}

// merge yields two sequences in the order of keys; where both have a key, the
// first's.
func merge(a, b iter.Seq[found]) iter.Seq[found] {
	return func(yield func(found) bool) {
		next, stop := iter.Pull(b)
		defer stop()
		o, more := next()
		for f := range a {
			for more && o.key < f.key {
				if !yield(o) {
					return
				}
				o, more = next()
			}
			if more && o.key == f.key {
				o, more = next()
			}
			if !yield(f) {
				return
			}
		}
		for ; more; o, more = next() {
			if !yield(o) {
				return
			}
		}
	}
}

// keys yields all current objects.
func (w *walker) keys() iter.Seq[found] { return merge(w.paths(), w.odd(oddDir, false)) }

// isEmpty says whether a bucket has no object and no version.
func (b *bucket) isEmpty(ctx context.Context) (bool, error) {
	w := &walker{ctx: ctx, b: b}
	for range w.keys() {
		return false, nil
	}
	for f := range w.odd(versionsDir, true) {
		list, err := b.earlier(ctx, f.key)
		if err != nil || len(list) > 0 {
			return false, err
		}
	}
	return true, w.err
}

// removeTree removes all that is in a directory, but skip. In the bucket's own
// tree only directories go; anything else makes it fail.
func (b *bucket) removeTree(ctx context.Context, dir objstore.Ino, depth int, skip string) error {
	var list []objstore.DirEntry
	if err := readDir(ctx, b.ns, dir, false, func(e objstore.DirEntry) bool { list = append(list, e); return true }); err != nil {
		return err
	}
	for _, e := range list {
		if depth == 0 && e.Name == skip {
			continue
		}
		isDir := e.Type == objstore.ModeDir
		if !isDir && skip != "" {
			return fail("BucketNotEmpty")
		}
		if isDir {
			if err := b.removeTree(ctx, e.Ino, depth+1, skip); err != nil {
				return err
			}
		}
		if err := b.ns.Remove(ctx, objstore.Remove{Parent: dir, Name: e.Name, Dir: isDir, Only: e.Ino}); err != nil && !isGone(err) {
			return notEmpty(err)
		}
	}
	return nil
}

type contentsXML struct {
	Key               string
	LastModified      string
	ETag              string
	ChecksumAlgorithm string `xml:",omitempty"`
	ChecksumType      string `xml:",omitempty"`
	Size              uint64
	StorageClass      string
	Owner             *ownerXML `xml:",omitempty"`
}

type prefixXML struct{ Prefix string }

type listXML struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Xmlns                 string   `xml:"xmlns,attr"`
	Name                  string
	Prefix                string
	Marker                *string `xml:",omitempty"`
	NextMarker            string  `xml:",omitempty"`
	StartAfter            *string `xml:",omitempty"`
	ContinuationToken     *string `xml:",omitempty"`
	NextContinuationToken string  `xml:",omitempty"`
	KeyCount              *int    `xml:",omitempty"`
	MaxKeys               int
	Delimiter             string        `xml:",omitempty"`
	EncodingType          string        `xml:",omitempty"`
	IsTruncated           bool          `xml:"IsTruncated"`
	Contents              []contentsXML `xml:"Contents"`
	CommonPrefixes        []prefixXML   `xml:"CommonPrefixes"`
}

const maxKeys = 1000

// page is what a listing asks for.
type page struct {
	prefix, delimiter, encoding string
	max                         int
}

func (q *request) page(maxName string) (p page, err error) {
	p = page{q.query.Get("prefix"), q.query.Get("delimiter"), q.query.Get("encoding-type"), maxKeys}
	if p.encoding != "" && p.encoding != "url" {
		return p, failWith("InvalidArgument", "Invalid Encoding Method specified in Request.")
	}
	if s := q.query.Get(maxName); s != "" {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return p, failWith("InvalidArgument", "Argument "+maxName+" must be an integer between 0 and 2147483647.")
		}
		p.max = min(int(n), maxKeys)
	}
	return p, nil
}

func (p page) encode(s string) string {
	if p.encoding == "" {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(s), "%2F", "/"), "+", "%20")
}

// group is the common prefix that a key belongs to, if any.
func (p page) group(key string) (string, bool) {
	if p.delimiter == "" || len(key) < len(p.prefix) {
		return "", false
	}
	i := strings.Index(key[len(p.prefix):], p.delimiter)
	if i < 0 {
		return "", false
	}
	return key[:len(p.prefix)+i+len(p.delimiter)], true
}

func (q *request) listObjects() error {
	p, err := q.page("max-keys")
	if err != nil {
		return err
	}
	if q.query.Get("allow-unordered") != "" && p.delimiter != "" {
		return fail("InvalidArgument")
	}
	v2 := q.query.Get("list-type") == "2"
	doc := listXML{Xmlns: xmlns, Name: q.b.name, Prefix: p.prefix, Delimiter: p.encode(p.delimiter), EncodingType: p.encoding, MaxKeys: p.max}
	after := ""
	if v2 {
		doc.Prefix = p.encode(p.prefix) // clients of version 1 take it as it is
		if s := q.query.Get("start-after"); s != "" {
			e := p.encode(s)
			after, doc.StartAfter = s, &e
		}
		if q.query.Has("continuation-token") {
			s := q.query.Get("continuation-token")
			doc.ContinuationToken = &s
			if s == "" {
				doc.ContinuationToken = &s
			} else if b, err := base64.RawURLEncoding.DecodeString(s); err != nil {
				return failWith("InvalidArgument", "The continuation token provided is incorrect.")
			} else {
				after = string(b)
			}
		}
	} else {
		after = q.query.Get("marker")
		e := p.encode(after)
		doc.Marker = &e
	}
	owners := !v2 || q.query.Get("fetch-owner") == "true"
	last := ""
	w := &walker{ctx: q.ctx, b: q.b, prefix: p.prefix, after: after}
	if cp, ok := p.group(after); ok && strings.HasPrefix(after, p.prefix) && after >= cp {
		w.skip = cp // a page that ended with a common prefix goes on behind it
	}
	n := 0
	for f := range w.keys() {
		if !w.hit(f.key) { // skipped since the merge looked ahead
			continue
		}
		if n == p.max {
			doc.IsTruncated = p.max > 0
			break
		}
		if cp, ok := p.group(f.key); ok {
			doc.CommonPrefixes = append(doc.CommonPrefixes, prefixXML{p.encode(cp)})
			w.skip, last = cp, cp
			n++
			continue
		}
		c, ok, err := q.contents(f, p, owners)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		doc.Contents = append(doc.Contents, c)
		last = f.key
		n++
	}
	if w.err != nil {
		return w.err
	}
	if doc.IsTruncated {
		if v2 {
			doc.NextContinuationToken = base64.RawURLEncoding.EncodeToString([]byte(last))
		} else if p.delimiter != "" {
			doc.NextMarker = p.encode(last)
		}
	}
	if v2 {
		doc.KeyCount = &n
	}
	return q.answerXML(http.StatusOK, &doc)
}

// contents tells about one key; ok is false if it is gone.
func (q *request) contents(f found, p page, owner bool) (c contentsXML, ok bool, err error) {
	v, err := q.b.load(q.ctx, f.key, f.place)
	if err == nil {
		_, err = q.b.etag(q.ctx, v)
	}
	if isGone(err) {
		return c, false, nil
	}
	if err != nil {
		return c, false, err
	}
	c = contentsXML{Key: p.encode(f.key), LastModified: v.modified().Format(xmlTime), ETag: `"` + v.etagOrEmpty() + `"`, Size: v.attr.Size, StorageClass: "STANDARD"}
	if v.Sum != nil {
		c.ChecksumAlgorithm, c.ChecksumType = v.Sum.Algorithm, v.Sum.kind()
	}
	if owner {
		o := q.ownerXML(v.Owner)
		c.Owner = &o
	}
	return c, true, nil
}

func (v *version) etagOrEmpty() string {
	if v.ETag == "" {
		return emptyMD5
	}
	return v.ETag
}

type versionXML struct {
	XMLName      xml.Name
	Key          string
	VersionId    string
	IsLatest     bool
	LastModified string
	ETag         string   `xml:",omitempty"`
	Size         *uint64  `xml:",omitempty"`
	StorageClass string   `xml:",omitempty"`
	Owner        ownerXML `xml:"Owner"`
}

type versionsXML struct {
	XMLName             xml.Name `xml:"ListVersionsResult"`
	Xmlns               string   `xml:"xmlns,attr"`
	Name                string
	Prefix              string
	KeyMarker           string
	VersionIdMarker     string
	NextKeyMarker       string `xml:",omitempty"`
	NextVersionIdMarker string `xml:",omitempty"`
	MaxKeys             int
	Delimiter           string `xml:",omitempty"`
	EncodingType        string `xml:",omitempty"`
	IsTruncated         bool
	Versions            []versionXML
	CommonPrefixes      []prefixXML `xml:"CommonPrefixes"`
}

// versions yields every key with all its versions, newest first.
func (b *bucket) versions(w *walker) iter.Seq2[string, []*version] {
	return func(yield func(string, []*version) bool) {
		for f := range merge(w.keys(), w.odd(versionsDir, true)) {
			if !w.hit(f.key) {
				continue
			}
			cur, err := b.current(w.ctx, f.key)
			if err == nil {
				var list []*version
				if list, err = b.earlier(w.ctx, f.key); err == nil {
					if cur != nil {
						list = slices.DeleteFunc(list, func(v *version) bool { return v.attr.Ino == cur.attr.Ino })
						list = slices.Insert(list, 0, cur)
					}
					if len(list) > 0 {
						list[0].latest = true
						if !yield(f.key, list) {
							return
						}
					}
				}
			}
			if err != nil {
				w.err = err
				return
			}
		}
	}
}

func (q *request) listVersions() error {
	p, err := q.page("max-keys")
	if err != nil {
		return err
	}
	keyMarker, idMarker := q.query.Get("key-marker"), q.query.Get("version-id-marker")
	if idMarker != "" && keyMarker == "" {
		return failWith("InvalidArgument", "A version-id marker cannot be specified without a key marker.")
	}
	doc := versionsXML{
		Xmlns: xmlns, Name: q.b.name, Prefix: p.encode(p.prefix), KeyMarker: p.encode(keyMarker), VersionIdMarker: idMarker,
		Delimiter: p.encode(p.delimiter), EncodingType: p.encoding, MaxKeys: p.max,
	}
	w := &walker{ctx: q.ctx, b: q.b, prefix: p.prefix, after: keyMarker}
	if idMarker != "" && keyMarker != "" {
		w.after = keyMarker[:len(keyMarker)-1] + string([]byte{keyMarker[len(keyMarker)-1] - 1}) // the key itself is wanted, too
	}
	if cp, ok := p.group(keyMarker); ok && strings.HasPrefix(keyMarker, p.prefix) {
		w.skip = cp
	}
	n := 0
	lastKey, lastID := "", ""
pages:
	for key, list := range q.b.versions(w) {
		if idMarker != "" && key <= keyMarker {
			if key < keyMarker {
				continue
			}
			i := slices.IndexFunc(list, func(v *version) bool { return v.id() == idMarker })
			list = list[i+1:]
		}
		if len(list) == 0 {
			continue
		}
		if n == p.max {
			doc.IsTruncated = p.max > 0
			break
		}
		if cp, ok := p.group(key); ok {
			doc.CommonPrefixes = append(doc.CommonPrefixes, prefixXML{p.encode(cp)})
			w.skip, lastKey, lastID = cp, cp, ""
			n++
			continue
		}
		for _, v := range list {
			if n == p.max {
				doc.IsTruncated = p.max > 0
				break pages
			}
			x := versionXML{
				XMLName: xml.Name{Local: "Version"}, Key: p.encode(key), VersionId: v.id(), IsLatest: v.latest,
				LastModified: v.modified().Format(xmlTime), Owner: q.ownerXML(v.Owner),
			}
			if v.Marker {
				x.XMLName.Local = "DeleteMarker"
			} else {
				etag, err := q.b.etag(q.ctx, v)
				if isGone(err) {
					continue
				}
				if err != nil {
					return err
				}
				x.ETag, x.Size, x.StorageClass = `"`+etag+`"`, &v.attr.Size, "STANDARD"
			}
			doc.Versions = append(doc.Versions, x)
			lastKey, lastID = key, v.id()
			n++
		}
	}
	if w.err != nil {
		return w.err
	}
	if doc.IsTruncated {
		doc.NextKeyMarker, doc.NextVersionIdMarker = p.encode(lastKey), lastID
	}
	return q.answerXML(http.StatusOK, &doc)
}
