// Package swiftpool keeps a pool's objects in a container of OpenStack Swift.
package swiftpool

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ncw/swift/v2"
	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	deleteBatch = 1000 // objects in a request
	deleteAtOne = 8    // requests at a time, of a store that removes singly only
	listPage    = 250
	rateLimited = 498 // the status of Swift's ratelimit
)

// Store is a container, or what is below a prefix of it.
type Store struct {
	conn      *swift.Connection
	container string
	prefix    string
}

var _ pool.Store = (*Store)(nil)

// Type is the driver. user and key are those of TempAuth (auth_version 1, where
// user is ACCOUNT:USER) or of Keystone (2 and 3), which knows application
// credentials, too.
func Type() pool.Type {
	return pool.Type{
		Settings: map[string]pool.Setting{
			"auth_url": {Needed: true}, "auth_version": {Check: pool.OneOf("1", "2", "3")}, "container": {Needed: true}, "prefix": {Check: pool.Prefix},
			"user": {}, "domain": {}, "tenant": {}, "tenant_domain": {}, "region": {}, "ca_file": {}, "application_credential_id": {},
			"key": {Secret: true}, "application_credential_secret": {Secret: true},
		},
		Open: func(_ context.Context, settings map[string]string) (pool.Store, error) { return Open(settings) },
	}
}

// Open makes a Store of settings, which are those of Type.
func Open(settings map[string]string) (*Store, error) {
	client, err := pool.HTTPClient(settings["ca_file"])
	if err != nil {
		return nil, err
	}
	version := 0
	if v := settings["auth_version"]; v != "" {
		if version, err = strconv.Atoi(v); err != nil {
			return nil, fmt.Errorf("auth_version: %w: %w", objstore.Invalid, err)
		}
	}
	return &Store{container: settings["container"], prefix: pool.Below(settings["prefix"]), conn: &swift.Connection{
		AuthUrl: settings["auth_url"], AuthVersion: version, UserName: settings["user"], ApiKey: settings["key"],
		Domain: settings["domain"], Tenant: settings["tenant"], TenantDomain: settings["tenant_domain"], Region: settings["region"],
		ApplicationCredentialId: settings["application_credential_id"], ApplicationCredentialSecret: settings["application_credential_secret"],
		Retries:   1, // with a new token, that is
		Transport: noting{client.Transport},
	}}, nil
}

// noting is a transport that notes how long an answer says that no request is to be
// made: the library's errors do not tell.
type noting struct{ http.RoundTripper }

type noteKey struct{}

func (n noting) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := n.RoundTripper.RoundTrip(req)
	if note, ok := req.Context().Value(noteKey{}).(*http.Header); ok && err == nil && res.StatusCode >= 400 {
		*note = res.Header
	}
	return res, err
}

// request makes one request, and gives an error its kind.
func request(ctx context.Context, what, name string, fn func(ctx context.Context) error) error {
	var header http.Header
	err := fn(context.WithValue(ctx, noteKey{}, &header))
	var answer *swift.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, objstore.Corrupt):
	case errors.Is(err, swift.ObjectCorrupted): // on its way
		err = fmt.Errorf("%w: %w", objstore.Unavailable, err)
	case errors.As(err, &answer) && answer.StatusCode == rateLimited:
		err = &pool.Throttled{After: pool.RetryAfter(header), Err: err}
	case errors.As(err, &answer):
		err = pool.StatusError(answer.StatusCode, header, err)
	default:
		err = fmt.Errorf("%w: %w", objstore.Unavailable, pool.Discreet(err))
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}

// Put implements pool.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	sum := md5.Sum(data)
	length := swift.Headers{"Content-Length": strconv.Itoa(len(data))}
	return request(ctx, "put", name, func(ctx context.Context) error {
		_, err := s.conn.ObjectPut(ctx, s.container, s.prefix+name, bytes.NewReader(data), true, hex.EncodeToString(sum[:]), "application/octet-stream", length)
		return err
	})
}

// Get implements pool.Store.
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	part := swift.Headers{"Range": fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1)}
	return request(ctx, "get", name, func(ctx context.Context) error {
		f, _, err := s.conn.ObjectOpen(ctx, s.container, s.prefix+name, false, part)
		if err != nil {
			return err
		}
		defer f.Close()
		if n, err := f.Length(ctx); err != nil || n != int64(len(p)) {
			return fmt.Errorf("other than the %d bytes at %d that were asked for: %w", len(p), off, objstore.Corrupt)
		}
		if _, err := io.ReadFull(f, p); err != nil {
			return fmt.Errorf("the body was cut on its way: %w", err)
		}
		return nil
	})
}

// Delete implements pool.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	for batch := range slices.Chunk(names, deleteBatch) {
		if err := s.deleteBatch(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// deleteBatch removes objects by one request, or singly where the store does not
// know such requests.
func (s *Store) deleteBatch(ctx context.Context, names []string) error {
	full := make([]string, len(names))
	for i, name := range names {
		full[i] = s.prefix + name
	}
	bulk := true
	err := request(ctx, "delete", fmt.Sprint(len(names), " objects"), func(ctx context.Context) error {
		out, err := s.conn.BulkDelete(ctx, s.container, full)
		var answer *swift.Error
		if errors.As(err, &answer) && (answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusMethodNotAllowed || answer.StatusCode == http.StatusNotImplemented) {
			bulk = false
			return nil
		}
		for _, of := range out.Errors {
			if of != nil && !errors.Is(of, swift.ObjectNotFound) {
				return of
			}
		}
		if errors.Is(err, swift.ObjectNotFound) {
			return nil
		}
		return err
	})
	if bulk || err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(deleteAtOne)
	for _, name := range full {
		g.Go(func() error {
			err := request(ctx, "delete", name, func(ctx context.Context) error { return s.conn.ObjectDelete(ctx, s.container, name) })
			if errors.Is(err, objstore.NotFound) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// List implements pool.Store.
func (s *Store) List(ctx context.Context, from string) (list []pool.Object, next string, err error) {
	var page []swift.Object
	err = request(ctx, "list", s.container, func(ctx context.Context) (err error) {
		page, err = s.conn.Objects(ctx, s.container, &swift.ObjectsOpts{Limit: listPage, Prefix: s.prefix, Marker: from})
		return err
	})
	if err != nil {
		return nil, "", err
	}
	for _, o := range page {
		list = append(list, pool.Object{Name: strings.TrimPrefix(o.Name, s.prefix), Size: o.Bytes, Modified: o.LastModified.In(time.UTC)})
	}
	if len(page) == listPage {
		next = page[len(page)-1].Name
	}
	return list, next, nil
}
