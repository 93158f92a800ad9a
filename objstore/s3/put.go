package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"pillarbox/objstore"
)

func (q *request) putObject() error {
	if err := q.mayWrite("s3:PutObject", q.key, q.tagExtras()); err != nil {
		return err
	}
	o, err := q.newObject()
	if err != nil {
		return err
	}
	body, err := q.openBody()
	if err != nil {
		return err
	}
	switch {
	case body.size < 0 && body.chunked == nil && len(q.r.TransferEncoding) == 0:
		return fail("MissingContentLength")
	case body.size > maxPut:
		return fail("EntityTooLarge")
	}
	cond, err := q.putConditions()
	if err != nil {
		return err
	}
	v, err := q.write(q.key, o, body, cond)
	if err != nil {
		return err
	}
	q.putHeaders(v)
	return q.done(http.StatusOK)
}

// putHeaders tells what was made.
func (q *request) putHeaders(v *version) {
	h := q.w.Header()
	h.Set("ETag", `"`+v.ETag+`"`)
	q.madeHeader(v)
	if v.Sum != nil {
		h.Set(sumHeader(v.Sum.Algorithm), v.Sum.Value)
		h.Set("X-Amz-Checksum-Type", v.Sum.kind())
	}
	if s := q.b.expiration(v); s != "" {
		h.Set("X-Amz-Expiration", s)
	}
	q.size = int64(v.attr.Size)
}

func (q *request) versionHeader(v *version) {
	if q.b.versioned() {
		q.w.Header().Set("X-Amz-Version-Id", v.id())
	}
}

// madeHeader tells the version of an object just made.
func (q *request) madeHeader(v *version) {
	if q.b.rec.Versioning == "Enabled" {
		q.w.Header().Set("X-Amz-Version-Id", v.id())
	}
}

// pending is a file without a name that becomes an object.
type pending struct {
	ino  objstore.Ino
	f    File
	off  uint64
	dgst *digest
}

// begin makes the file of an object that key will name.
func (b *bucket) begin(ctx context.Context, key, algorithm string) (*pending, error) {
	for try := 0; ; try++ {
		p, err := b.locate(ctx, key)
		if err != nil {
			return nil, err
		}
		a, f, err := b.create(ctx, p.dir)
		if isGone(err) && try < maxTries {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("begin object %s/%s: %w", b.name, key, err)
		}
		return &pending{ino: a.Ino, f: f, dgst: newDigest(algorithm)}, nil
	}
}

func (p *pending) add(ctx context.Context, b []byte) error {
	p.dgst.Write(b)
	for len(b) > 0 {
		n, err := p.f.Write(ctx, b, p.off)
		if err != nil {
			return err
		}
		p.off += uint64(n)
		b = b[n:]
	}
	return nil
}

// fill takes a body to its end.
func (p *pending) fill(ctx context.Context, body io.Reader, most uint64) error {
	buf := make([]byte, copyBuffer)
	for {
		n, err := io.ReadFull(body, buf)
		if p.off+uint64(n) > most {
			return fail("EntityTooLarge")
		}
		if werr := p.add(ctx, buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n > 0 {
			return nil // whether it was all, finish tells
		}
		if err != nil {
			return err
		}
	}
}

// borrow adds n bytes of a file by sharing them, and says whether that was
// possible: volumes share nothing. The digest does not hear of them.
func (p *pending) borrow(ctx context.Context, ns Namespace, src objstore.Ino, from, n uint64) (bool, error) {
	if n == 0 {
		return true, nil
	}
	err := ns.Share(ctx, objstore.Share{Ino: p.ino, Off: p.off, Src: src, SrcOff: from, Len: n})
	if errors.Is(err, objstore.CrossVolume) || errors.Is(err, objstore.Unsupported) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.off += n
	return true, nil
}

// copyRange adds n bytes of a file: shared, or copied. With sum set the digest
// hears of them either way.
func (q *request) copyRange(p *pending, src objstore.Ino, from, n uint64, sum bool) error {
	begin := p.off
	shared, err := p.borrow(q.ctx, q.b.ns, src, from, n)
	switch {
	case err != nil:
		return err
	case shared && !sum:
		return nil
	case shared:
		return readFile(q.ctx, p.f, begin, n, func(b []byte) error {
			q.patience()
			_, err := p.dgst.Write(b)
			return err
		})
	}
	f, err := q.b.ns.Open(q.ctx, src)
	if err != nil {
		return err
	}
	defer f.Release()
	return readFile(q.ctx, f, from, n, func(b []byte) error { q.patience(); return p.add(q.ctx, b) })
}

// write makes an object of a body.
func (q *request) write(key string, o *object, body *body, cond conditions) (*version, error) {
	if _, dir, ok := nicePath(key); ok && dir && body.size == 0 && !q.b.versioned() {
		return q.writeDir(key, o, body, cond)
	}
	p, err := q.b.begin(q.ctx, key, "")
	if err != nil {
		return nil, err
	}
	defer p.f.Release()
	if body.size > 0 { // refused before it is sent, if the client says how much it is
		if err := q.checkQuota(uint64(body.size)); err != nil {
			return nil, err
		}
	}
	if err := p.fill(q.ctx, body, maxPut); err != nil {
		return nil, err
	}
	if err := body.finish(); err != nil {
		return nil, err
	}
	if body.size < 0 {
		if err := q.checkQuota(p.off); err != nil {
			return nil, err
		}
	}
	o.ETag = p.dgst.etag()
	if body.sum != nil {
		o.Sum = &checksum{Algorithm: body.algorithm, Value: body.checksum()}
	}
	return q.commit(key, o, p, cond)
}

// writeDir puts an empty object whose key is a directory's.
func (q *request) writeDir(key string, o *object, body *body, cond conditions) (*version, error) {
	if _, err := io.Copy(io.Discard, body); err != nil {
		return nil, readFailure(err)
	}
	if err := body.finish(); err != nil {
		return nil, err
	}
	cur, err := q.b.current(q.ctx, key)
	if err == nil {
		err = cond.check(q.b, q.ctx, cur)
	}
	if err != nil {
		return nil, err
	}
	parts, _, _ := nicePath(key)
	o.ETag, o.Mtime = emptyMD5, moment()
	for try := 0; ; try++ {
		dir, ok, err := makePath(q.ctx, q.b.ns, q.b.dir, parts, true)
		if err == nil && !ok {
			p, err := q.b.begin(q.ctx, key, "")
			if err != nil {
				return nil, err
			}
			defer p.f.Release()
			return q.commit(key, o, p, cond)
		}
		if err == nil {
			err = writeRecord(q.ctx, q.b.ns, dir, objectAttr, o)
		}
		if err == nil {
			err = q.b.ns.RemoveXattr(q.ctx, objstore.RemoveXattr{Ino: dir, Name: implicitAttr})
			if errors.Is(err, objstore.NoAttr) {
				err = nil
			}
		}
		if err == nil {
			err = q.b.ns.Sync(q.ctx, dir)
		}
		if isGone(err) && try < maxTries {
			continue
		}
		return &version{key: key, object: *o, latest: true}, err
	}
}

// commit names a file that is complete. See the package comment.
func (q *request) commit(key string, o *object, p *pending, cond conditions) (*version, error) {
	b, ctx := q.b, q.ctx
	switch b.rec.Versioning {
	case "Enabled":
		o.Version = newVersion()
	case "Suspended":
		o.Version = versionAt(moment()) + nullName
	}
	a, err := b.ns.GetAttr(ctx, p.ino)
	if err != nil {
		return nil, err
	}
	o.Size, o.Mtime = a.Size, a.Mtime
	o.fit()
	if err := writeRecord(ctx, b.ns, p.ino, objectAttr, o); err != nil {
		return nil, err
	}
	for range maxTries {
		at, err := b.locate(ctx, key)
		if err != nil {
			return nil, err
		}
		var cur *version
		if at.exists() {
			if cur, err = b.load(ctx, key, at); isGone(err) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		if err := cond.check(b, ctx, cur); err != nil {
			return nil, err
		}
		if cur != nil && (b.rec.Versioning == "Enabled" || b.rec.Versioning == "Suspended" && !isNull(cur.Version)) {
			if err := b.archive(ctx, cur); isGone(err) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		if b.rec.Versioning == "Suspended" {
			if err := b.dropNull(ctx, key); err != nil {
				return nil, err
			}
		}
		a, err := b.ns.Link(ctx, objstore.Link{Ino: p.ino, Parent: at.dir, Name: at.name, Over: at.attr.Ino})
		if errors.Is(err, objstore.Exist) || isGone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("name object %s/%s: %w", b.name, key, err)
		}
		at.attr = a
		return &version{key: key, place: at, object: *o, latest: true}, nil
	}
	return nil, errBusy(b, key)
}

// saveObject keeps what was changed about a version.
func (b *bucket) saveObject(ctx context.Context, v *version) error {
	o := v.object
	if isFile(&v.attr) {
		o.Size, o.Mtime = v.attr.Size, v.attr.Mtime
	}
	if v.Version == "" || strings.HasSuffix(v.Version, nullName) && !b.versioned() {
		o.Version = ""
	}
	o.fit()
	return writeRecord(ctx, b.ns, v.attr.Ino, objectAttr, &o)
}
