package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// Commands ask the process of a running mount by its admin socket (admin.go).

// commandAt gives a monitor's command to the Pillarbox that runs on a data
// directory.
func commandAt(ctx context.Context, data string, words []string, options map[string]string, answer any) error {
	var out adminAnswer
	if err := askAdmin(ctx, data, http.MethodPost, "/command", adminCommand{words, options}, &out); err != nil {
		return err
	}
	if out.Error != "" {
		if out.Kind != 0 {
			return &answered{out.Error, out.Kind}
		}
		return errors.New(out.Error)
	}
	return json.Unmarshal(out.Answer, answer)
}

// answered is an error that another process answered with.
type answered struct {
	text string
	kind objstore.Kind
}

func (e *answered) Error() string { return e.text }
func (e *answered) Unwrap() error { return e.kind }

// maxAnswer is how long an answer of the admin API may be, in bytes.
const maxAnswer = 16 << 20

// askAdmin makes a request to the admin API of a data directory.
func askAdmin(ctx context.Context, data, method, what string, request, answer any) error {
	data, err := absolute(data)
	if err != nil {
		return err
	}
	d, err := findDataDir(data)
	if err != nil {
		return err
	}
	if d.info == nil {
		return failure(exitNotRunning, "there is no store in %s", data)
	}
	return askSocket(ctx, data, method, what, request, answer)
}

// askMount makes a request to the process behind a mount point.
func askMount(ctx context.Context, point, method, what string, request, answer any) error {
	dir, err := adminOf(point)
	if err != nil {
		return err
	}
	return askSocket(ctx, dir, method, what, request, answer)
}

// adminOf is the directory with the admin socket of a mount point. The mount itself
// is not asked for anything: its store may be away.
func adminOf(point string) (string, error) {
	abs, err := filepath.Abs(point)
	if err != nil {
		return "", failure(exitInUse, "%w", err)
	}
	mnt, err := mountAt(abs)
	if err == nil && mnt == nil { // by way of a symbolic link, or there is none
		var dir string
		if dir, err = absolute(filepath.Dir(abs)); err == nil {
			mnt, err = mountAt(filepath.Join(dir, filepath.Base(abs)))
		}
	}
	if err == nil && mnt == nil {
		if abs, err = absolute(abs); err == nil {
			mnt, err = mountAt(abs)
		}
	}
	if err != nil {
		return "", failure(exitInUse, "%w", err)
	}
	dir, ok := mnt.dataDir()
	if !ok {
		return "", failure(exitInUse, "%s is not the mount point of a Pillarbox", point)
	}
	return dir, nil
}

// askSocket asks whoever serves the admin socket in dir.
func askSocket(ctx context.Context, dir, method, what string, request, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	body, err := openAdmin(ctx, dir, method, what, request)
	if err != nil {
		return err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the Pillarbox on %s: %w", dir, err)
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("answer of the Pillarbox on %s: %w", dir, err)
	}
	return nil
}

// openAdmin makes a request and returns the answer, to be closed, as it comes.
func openAdmin(ctx context.Context, dir, method, what string, request any) (io.ReadCloser, error) {
	path, held, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	if held != nil {
		defer held.Close() // the connection is made when Do returns
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("encode a request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://pillarbox"+what, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, failure(exitNotRunning, "no Pillarbox runs on %s", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the Pillarbox on %s: %w", dir, err)
	}
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		res.Body.Close()
		return nil, fmt.Errorf("ask the Pillarbox on %s: %s: %s", dir, res.Status, strings.TrimSpace(string(b)))
	}
	return res.Body, nil
}
