package dropboxpool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/layer"
	"pillarbox/objstore/pool/pooltest"
)

// double is a Dropbox as its published API tells of it: what is used of it here.
type double struct {
	*httptest.Server
	mu      sync.Mutex
	files   map[string][]byte
	token   int                         // the number of the one that is good
	jobs    map[string][]map[string]any // results by their id
	refuse  int                         // so many requests are too many
	refused int
}

func newDouble(t *testing.T) *double {
	d := &double{files: map[string][]byte{}, jobs: map[string][]map[string]any{}}
	d.Server = httptest.NewServer(d)
	t.Cleanup(d.Close)
	return d
}

func (d *double) open(t *testing.T, more map[string]string) *Store {
	t.Helper()
	settings := map[string]string{"endpoint": d.URL, "refresh_token": "refresh", "app_key": "key", "app_secret": "secret"}
	maps.Copy(settings, more)
	if err := Type().Check(settings); err != nil {
		t.Fatal(err)
	}
	s, err := Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func conflict(w http.ResponseWriter, summary string) {
	answer(w, http.StatusConflict, map[string]string{"error_summary": summary + "/.."})
}

func (d *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		return
	}
	if r.URL.Path == "/oauth2/token" {
		if !strings.Contains(string(body), "refresh_token=refresh") || !strings.Contains(string(body), "client_secret=secret") {
			answer(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant"})
			return
		}
		answer(w, http.StatusOK, map[string]any{"access_token": fmt.Sprint("token-", d.token), "expires_in": 14400})
		return
	}
	if r.Header.Get("Authorization") != fmt.Sprint("Bearer token-", d.token) {
		answer(w, http.StatusUnauthorized, map[string]string{"error_summary": "expired_access_token/"})
		return
	}
	if d.refused < d.refuse {
		d.refused++
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusTooManyRequests, map[string]string{"error_summary": "too_many_requests/"})
		return
	}
	var arg struct {
		Path, Cursor, Mode string
		Limit              int
		Job                string `json:"async_job_id"`
		Entries            []struct{ Path string }
	}
	text := []byte(r.Header.Get("Dropbox-API-Arg"))
	if len(text) == 0 {
		text = body
	}
	if err := json.Unmarshal(text, &arg); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch r.URL.Path {
	case "/2/files/upload":
		d.files[arg.Path] = body
		answer(w, http.StatusOK, map[string]any{"size": len(body)})
	case "/2/files/download":
		b, ok := d.files[arg.Path]
		if !ok {
			conflict(w, "path/not_found")
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	case "/2/files/list_folder":
		d.list(w, arg.Path, "", arg.Limit)
	case "/2/files/list_folder/continue":
		root, after, _ := strings.Cut(arg.Cursor, " ")
		d.list(w, root, after, 100)
	case "/2/files/delete_batch":
		var results []map[string]any
		for _, e := range arg.Entries {
			if _, ok := d.files[e.Path]; ok {
				results = append(results, map[string]any{".tag": "success"})
			} else {
				results = append(results, map[string]any{".tag": "failure", "failure": map[string]any{".tag": "path_lookup", "path_lookup": map[string]string{".tag": "not_found"}}})
			}
			delete(d.files, e.Path)
		}
		id := fmt.Sprint("job-", len(d.jobs))
		d.jobs[id] = results
		answer(w, http.StatusOK, map[string]string{".tag": "async_job_id", "async_job_id": id})
	case "/2/files/delete_batch/check":
		answer(w, http.StatusOK, map[string]any{".tag": "complete", "entries": d.jobs[arg.Job]})
	default:
		http.NotFound(w, r)
	}
}

func (d *double) list(w http.ResponseWriter, root, after string, limit int) {
	entries := []map[string]any{}
	for _, path := range slices.Sorted(maps.Keys(d.files)) {
		if !strings.HasPrefix(path, root+"/") || path <= after {
			continue
		}
		if len(entries) == limit {
			answer(w, http.StatusOK, map[string]any{"entries": entries, "cursor": root + " " + after, "has_more": true})
			return
		}
		after = path
		entries = append(entries, map[string]any{".tag": "file", "path_lower": path, "size": len(d.files[path]), "server_modified": "2026-01-02T03:04:05Z"})
	}
	if len(entries) == 0 && after == "" {
		conflict(w, "path/not_found")
		return
	}
	answer(w, http.StatusOK, map[string]any{"entries": entries, "cursor": root + " " + after, "has_more": false})
}

func TestConformance(t *testing.T) {
	d := newDouble(t)
	pooltest.Run(t, d.open(t, map[string]string{"prefix": "one"}), d.open(t, map[string]string{"prefix": "one-more"}))
}

// TestTokens: an access token that has ended is replaced by another.
func TestTokens(t *testing.T) {
	d := newDouble(t)
	s := d.open(t, nil)
	for range 3 {
		if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
			t.Error(err)
		}
		d.mu.Lock()
		d.token++
		d.mu.Unlock()
	}
	once := d.open(t, map[string]string{"access_token": "token-1", "refresh_token": ""})
	if err := once.Put(t.Context(), "a/b", []byte("x")); !errors.Is(err, objstore.NotPermitted) {
		t.Errorf("with an access token that has ended: %v", err)
	}
	if err := d.open(t, map[string]string{"refresh_token": "another"}).Put(t.Context(), "a/b", []byte("x")); !errors.Is(err, objstore.NotPermitted) {
		t.Errorf("with a wrong refresh token: %v", err)
	}
}

// TestPace: when Dropbox says that requests are too many, none are made until it
// wants them again.
func TestPace(t *testing.T) {
	d := newDouble(t)
	d.refuse = 1
	s := d.open(t, nil)
	if after, ok := pool.IsThrottled(s.Put(t.Context(), "a/b", []byte("x"))); !ok || after != time.Second {
		t.Errorf("throttled: %v, for %v", ok, after)
	}
	d.refused = 0
	begun := time.Now()
	if err := layer.Over(s, "dropbox", layer.NewMetrics()).Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Error(err)
	}
	if d := time.Since(begun); d < time.Second {
		t.Errorf("asked again after %v", d)
	}
}

func TestSummaries(t *testing.T) {
	for summary, kind := range map[string]error{
		"path/not_found/..": objstore.NotFound, "path/insufficient_space/.": objstore.NoSpace, "path/no_write_permission/": objstore.NotPermitted,
		"too_many_write_operations/...": objstore.Unavailable, "other/": objstore.Unavailable,
	} {
		err := failed(&http.Response{StatusCode: http.StatusConflict}, []byte(`{"error_summary": "`+summary+`"}`))
		if _, throttled := pool.IsThrottled(err); !errors.Is(err, kind) || throttled != strings.HasPrefix(summary, "too_many") {
			t.Errorf("%s: %v", summary, err)
		}
	}
}

func FuzzFailed(f *testing.F) {
	f.Add(409, "1", []byte(`{"error_summary": "path/not_found/.."}`))
	f.Add(429, "x", []byte(`{"error_summary": 7}`))
	f.Fuzz(func(t *testing.T, status int, after string, said []byte) {
		err := failed(&http.Response{StatusCode: status, Header: http.Header{"Retry-After": {after}}}, said)
		var kind objstore.Kind
		if !errors.As(err, &kind) {
			t.Errorf("an error of no kind: %v", err)
		}
		if wait, _ := pool.IsThrottled(err); wait < 0 || wait > time.Hour {
			t.Errorf("none for %v", wait)
		}
	})
}
