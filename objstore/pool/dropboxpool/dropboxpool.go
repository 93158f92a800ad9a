// Package dropboxpool keeps a pool's objects as files below a folder of a Dropbox.
// It speaks the published HTTP API itself: the SDK's requests cannot be canceled.
package dropboxpool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	deleteBatch = 1000 // files in a request, as many as Dropbox takes
	deletePoll  = 200 * time.Millisecond
	listPage    = 250
	maxAnswer   = 16 << 20 // bytes, of what is not a body
)

// Store is what is below a folder.
type Store struct {
	client       *http.Client
	api, content string // where requests go
	root         string // of the pool: "", or a path with a slash in front
	tokens       tokens
}

var _ pool.Store = (*Store)(nil)

// Type is the driver. An access_token ends after hours: refresh_token, app_key and
// app_secret get new ones.
func Type() pool.Type {
	return pool.Type{
		Settings: map[string]pool.Setting{
			"prefix": {Check: pool.Prefix}, "ca_file": {}, "endpoint": {}, "app_key": {},
			"app_secret": {Secret: true}, "refresh_token": {Secret: true}, "access_token": {Secret: true},
		},
		Open: func(_ context.Context, settings map[string]string) (pool.Store, error) { return Open(settings) },
	}
}

// Open makes a Store of settings, which are those of Type; endpoint is for tests.
func Open(settings map[string]string) (*Store, error) {
	if settings["access_token"] == "" && settings["refresh_token"] == "" {
		return nil, fmt.Errorf("neither refresh_token nor access_token: %w", objstore.NotPermitted)
	}
	client, err := pool.HTTPClient(settings["ca_file"])
	if err != nil {
		return nil, err
	}
	s := &Store{client: client, api: "https://api.dropboxapi.com", content: "https://content.dropboxapi.com"}
	if e := settings["endpoint"]; e != "" {
		s.api, s.content = e, e
	}
	if p := settings["prefix"]; p != "" {
		s.root = "/" + p
	}
	s.tokens = tokens{
		client: client, url: s.api + "/oauth2/token", now: settings["access_token"],
		refresh: settings["refresh_token"], key: settings["app_key"], secret: settings["app_secret"],
	}
	return s, nil
}

func (s *Store) path(name string) string { return s.root + "/" + name }

// do makes a request with a token; with a new one, if that has ended. The caller
// closes the body of a good answer.
func (s *Store) do(ctx context.Context, url string, header http.Header, body []byte) (*http.Response, error) {
	for again := false; ; again = true {
		token, err := s.tokens.get(ctx)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", objstore.Invalid, err)
		}
		req.Header = header.Clone()
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := s.client.Do(req)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", objstore.Unavailable, err)
		}
		if res.StatusCode < 300 {
			return res, nil
		}
		said, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		res.Body.Close()
		if res.StatusCode == http.StatusUnauthorized && !again && s.tokens.drop(token) {
			continue
		}
		return nil, failed(res, said)
	}
}

// failed is what an answer that is no success means. 409 is of one operation, and
// its summary says what is the matter.
func failed(res *http.Response, said []byte) error {
	var answer struct {
		Summary string `json:"error_summary"`
	}
	if err := json.Unmarshal(said, &answer); err != nil || answer.Summary == "" {
		return pool.StatusError(res.StatusCode, res.Header, errors.New(res.Status))
	}
	err := fmt.Errorf("status %d, %q", res.StatusCode, answer.Summary)
	if res.StatusCode != http.StatusConflict {
		return pool.StatusError(res.StatusCode, res.Header, err)
	}
	switch has := func(part string) bool { return strings.Contains(answer.Summary, part) }; {
	case has("not_found"), has("not_file"):
		return fmt.Errorf("%w: %w", objstore.NotFound, err)
	case has("too_many_write_operations"), has("too_many_requests"):
		return &pool.Throttled{After: pool.RetryAfter(res.Header), Err: err}
	case has("insufficient_space"):
		return fmt.Errorf("%w: %w", objstore.NoSpace, err)
	case has("no_write_permission"), has("restricted_content"), has("disallowed_name"), has("malformed_path"):
		return fmt.Errorf("%w: %w", objstore.NotPermitted, err)
	}
	return fmt.Errorf("%w: %w", objstore.Unavailable, err)
}

// body makes a request for or with a file's bytes.
func (s *Store) body(ctx context.Context, route string, arg any, header http.Header, data []byte) (*http.Response, error) {
	text, err := json.Marshal(arg)
	if err != nil {
		return nil, err
	}
	header.Set("Dropbox-API-Arg", string(text))
	header.Set("Content-Type", "application/octet-stream")
	return s.do(ctx, s.content+"/2/files/"+route, header, data)
}

// call makes a request whose question and answer are JSON.
func (s *Store) call(ctx context.Context, route string, arg, answer any) error {
	text, err := json.Marshal(arg)
	if err != nil {
		return err
	}
	res, err := s.do(ctx, s.api+"/2/files/"+route, http.Header{"Content-Type": {"application/json"}}, text)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("read the answer: %w: %w", objstore.Unavailable, err)
	}
	return nil
}

// Put implements pool.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	arg := map[string]any{"path": s.path(name), "mode": "overwrite", "mute": true}
	res, err := s.body(ctx, "upload", arg, http.Header{}, data)
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	defer res.Body.Close()
	var file entry
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&file); err != nil || file.Size != int64(len(data)) {
		return fmt.Errorf("put %s: the store says that it has %d bytes of %d: %w", name, file.Size, len(data), objstore.Unavailable)
	}
	return nil
}

// Get implements pool.Store.
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	part := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1)}}
	res, err := s.body(ctx, "download", map[string]string{"path": s.path(name)}, part, nil)
	if err != nil {
		return fmt.Errorf("get %s: %w", name, err)
	}
	defer res.Body.Close()
	if res.ContentLength != int64(len(p)) || off > 0 && res.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("get %s: other than the %d bytes at %d that were asked for: %w", name, len(p), off, objstore.Corrupt)
	}
	if _, err := io.ReadFull(res.Body, p); err != nil {
		return fmt.Errorf("get %s: the body was cut on its way: %w: %w", name, objstore.Unavailable, err)
	}
	return nil
}

// entry is a file or folder, or what became of one that was to be removed.
type entry struct {
	Tag      string    `json:".tag"`
	Path     string    `json:"path_lower"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"server_modified"`
	Failure  struct {
		Tag    string `json:".tag"`
		Lookup struct {
			Tag string `json:".tag"`
		} `json:"path_lookup"`
	} `json:"failure"`
}

// List implements pool.Store.
func (s *Store) List(ctx context.Context, from string) (list []pool.Object, next string, err error) {
	var page struct {
		Entries []entry `json:"entries"`
		Cursor  string  `json:"cursor"`
		More    bool    `json:"has_more"`
	}
	if from == "" {
		err = s.call(ctx, "list_folder", map[string]any{"path": s.root, "recursive": true, "limit": listPage}, &page)
	} else {
		err = s.call(ctx, "list_folder/continue", map[string]string{"cursor": from}, &page)
	}
	if from == "" && errors.Is(err, objstore.NotFound) { // nothing was put there yet
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("list: %w", err)
	}
	for _, e := range page.Entries {
		if name, ok := strings.CutPrefix(e.Path, strings.ToLower(s.root)+"/"); ok && e.Tag == "file" {
			list = append(list, pool.Object{Name: name, Size: e.Size, Modified: e.Modified})
		}
	}
	if page.More {
		next = page.Cursor
	}
	return list, next, nil
}

// Delete implements pool.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	for batch := range slices.Chunk(names, deleteBatch) {
		if err := s.deleteBatch(ctx, batch); err != nil {
			return fmt.Errorf("delete %d objects: %w", len(batch), err)
		}
	}
	return nil
}

// deleteBatch gives Dropbox a job, and waits until it is done.
func (s *Store) deleteBatch(ctx context.Context, names []string) error {
	files := make([]map[string]string, len(names))
	for i, name := range names {
		files[i] = map[string]string{"path": s.path(name)}
	}
	var job struct {
		Tag     string  `json:".tag"`
		ID      string  `json:"async_job_id"`
		Entries []entry `json:"entries"`
	}
	err := s.call(ctx, "delete_batch", map[string]any{"entries": files}, &job)
	for id := job.ID; err == nil && (job.Tag == "async_job_id" || job.Tag == "in_progress"); {
		select {
		case <-time.After(deletePoll):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", objstore.Unavailable, context.Cause(ctx))
		}
		err = s.call(ctx, "delete_batch/check", map[string]string{"async_job_id": id}, &job)
	}
	if err != nil {
		return err
	}
	if job.Tag != "complete" || len(job.Entries) != len(names) {
		return fmt.Errorf("the job ended as %q, with %d results: %w", job.Tag, len(job.Entries), objstore.Unavailable)
	}
	for i, e := range job.Entries {
		if e.Tag == "success" || e.Failure.Tag == "path_lookup" && e.Failure.Lookup.Tag == "not_found" {
			continue
		}
		err := fmt.Errorf("%s: %q, %q", names[i], e.Failure.Tag, e.Failure.Lookup.Tag)
		if e.Failure.Tag == "too_many_write_operations" {
			return &pool.Throttled{Err: err}
		}
		return fmt.Errorf("%w: %w", objstore.Unavailable, err)
	}
	return nil
}
