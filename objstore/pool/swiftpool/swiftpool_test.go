package swiftpool

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ncw/swift/v2"
	"github.com/ncw/swift/v2/swifttest"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// server starts the library's own server, with a container. It is not Swift in all
// things, such as ranges behind the end: test/outside runs the true one.
func server(t *testing.T) (settings map[string]string, c *swift.Connection) {
	t.Helper()
	srv, err := swifttest.NewSwiftServer("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	c = &swift.Connection{UserName: swifttest.TEST_ACCOUNT, ApiKey: swifttest.TEST_ACCOUNT, AuthUrl: srv.AuthURL}
	if err := c.ContainerCreate(t.Context(), "bodies", nil); err != nil {
		t.Fatal(err)
	}
	return map[string]string{"auth_url": srv.AuthURL, "auth_version": "1", "user": swifttest.TEST_ACCOUNT, "key": swifttest.TEST_ACCOUNT, "container": "bodies"}, c
}

func open(t *testing.T, settings map[string]string, more map[string]string) *Store {
	t.Helper()
	settings = maps.Clone(settings)
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

// TestKeystone: a token of Keystone's version 3, and where the store is, from its catalog.
func TestKeystone(t *testing.T) {
	settings, c := server(t)
	var asked struct {
		Auth struct {
			Identity struct {
				Password struct {
					User struct {
						Name, Password string
						Domain         struct{ Name string }
					}
				}
			}
			Scope struct{ Project struct{ Name string } }
		}
	}
	keystone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || r.URL.Path != "/v3/auth/tokens" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		w.Header().Set("X-Subject-Token", c.AuthToken)
		w.WriteHeader(http.StatusCreated)
		json.NewEncoder(w).Encode(map[string]any{"token": map[string]any{
			"expires_at": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
			"catalog": []any{map[string]any{"type": "object-store", "endpoints": []any{
				map[string]any{"interface": "public", "region": "north", "region_id": "north", "url": "http://127.0.0.1:1/"},
				map[string]any{"interface": "public", "region": "south", "region_id": "south", "url": c.StorageUrl},
			}}},
		}})
	}))
	defer keystone.Close()
	s := open(t, settings, map[string]string{"auth_url": keystone.URL + "/v3", "auth_version": "3", "user": "mail", "key": "secret", "domain": "Default", "tenant": "project", "region": "south"})
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), []string{"a/b"}); err != nil {
		t.Fatal(err)
	}
	if u := asked.Auth.Identity.Password.User; u.Name != "mail" || u.Password != "secret" || u.Domain.Name != "Default" || asked.Auth.Scope.Project.Name != "project" {
		t.Errorf("asked for a token: %+v", asked)
	}
}

// TestAnswers: what statuses mean, and that a store which wants no requests for a while is understood.
func TestAnswers(t *testing.T) {
	status := http.StatusOK
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/auth" {
			w.Header().Set("X-Storage-Url", srv.URL+"/v1/AUTH_x")
			w.Header().Set("X-Auth-Token", "token")
			return
		}
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(status)
	}))
	defer srv.Close()
	s := open(t, map[string]string{}, map[string]string{"auth_url": srv.URL + "/auth", "auth_version": "1", "user": "a", "key": "b", "container": "c"})
	for code, kind := range map[int]error{404: objstore.NotFound, 403: objstore.NotPermitted, 416: objstore.Corrupt, 500: objstore.Unavailable, 503: objstore.Unavailable, 498: objstore.Unavailable, 507: objstore.NoSpace} {
		status = code
		for _, request := range []func(context.Context) error{
			func(ctx context.Context) error { return s.Get(ctx, "x", 0, make([]byte, 1)) },
			func(ctx context.Context) error { return s.Put(ctx, "x", make([]byte, 1)) },
		} {
			err := request(t.Context())
			if !errors.Is(err, kind) {
				t.Errorf("%d: %v", code, err)
			}
			if after, ok := pool.IsThrottled(err); ok != (code == 503 || code == 498) || ok && after != 7*time.Second {
				t.Errorf("%d: throttled %v for %v", code, ok, after)
			}
		}
	}
}
