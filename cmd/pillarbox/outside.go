package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/layer"
	"pillarbox/objstore/pool/types"
)

// poolType is a type of outside stores by its name.
func poolType(kind string) (pool.Type, error) {
	known := types.All()
	t, ok := known[kind]
	if !ok {
		return t, usageError("pools of type %q are not known; those known are: %s", kind, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	return t, nil
}

// poolFiles are files with settings of outside pools, by the pool's name.
type poolFiles map[string]string

func poolFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "pool", Usage: "`NAME=FILE`: credentials of an outside pool, mode 0600; may be repeated. In a store of one host that has no such pool, it is made, and takes what is written from now on"}
}

func parsePools(list []string) (poolFiles, error) {
	files := poolFiles{}
	for _, s := range list {
		name, path, ok := strings.Cut(s, "=")
		if !ok || name == "" || path == "" {
			return nil, usageError("--pool %q: must be NAME=FILE", s)
		}
		path, err := absolute(path)
		if err != nil {
			return nil, failure(exitFailure, "--pool %s: %w", name, err)
		}
		files[name] = path
	}
	return files, nil
}

func (f poolFiles) args() (args []string) {
	for _, name := range slices.Sorted(maps.Keys(f)) {
		args = append(args, "--pool", name+"="+f[name])
	}
	return args
}

// readPoolFile reads settings: a JSON object of texts, of which "type" is the
// pool's type. Nobody but the owner may be able to read it.
func readPoolFile(path string) (kind string, settings map[string]string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", nil, fmt.Errorf("settings of a pool: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && st.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("mode %v: others than its owner must not be able to read it (chmod 600)", st.Mode())
	}
	if err != nil {
		return "", nil, fmt.Errorf("settings of a pool: %s: %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(b)).Decode(&settings)
	}
	if err != nil {
		return "", nil, fmt.Errorf("settings of a pool: %s is not a JSON object of texts", path) // the error could show a secret
	}
	kind = settings["type"]
	delete(settings, "type")
	return kind, settings, nil
}

// outsideOf is what the cluster map keeps of a pool's settings: no secrets.
func outsideOf(kind, path string) (*objstore.Outside, error) {
	inFile, settings, err := readPoolFile(path)
	if err != nil {
		return nil, err
	}
	if kind == "" {
		kind = inFile
	}
	if inFile != "" && inFile != kind {
		return nil, usageError("%s is of a pool of type %s, not %s", path, inFile, kind)
	}
	t, err := poolType(kind)
	if err != nil {
		return nil, err
	}
	if err := t.Check(settings); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	maps.DeleteFunc(settings, func(name, _ string) bool { return t.Settings[name].Secret })
	return &objstore.Outside{Type: kind, Settings: settings}, nil
}

// outsideOption is the option of pool create for the monitors. The pool's place is
// marked as the store's before: what is wrong with it or the credentials shows now.
func outsideOption(ctx context.Context, kind, path, fsid string) (string, error) {
	if path == "" {
		return "", usageError("an outside pool needs --config FILE")
	}
	o, err := outsideOf(kind, path)
	if err != nil {
		return "", err
	}
	p := &objstore.Pool{Name: filepath.Base(path), Outside: o}
	s, err := poolFiles{p.Name: path}.open(ctx, p, layer.NewMetrics())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	if err := pool.Claim(ctx, s, fsid); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	b, err := json.Marshal(o)
	return string(b), err
}

// claimTime is how long an outside store may take to answer when a pool is made.
const claimTime = 20 * time.Second

// open opens an outside pool: what the map says of it, and what this host's file adds.
func (f poolFiles) open(ctx context.Context, p *objstore.Pool, m *layer.Metrics) (pool.Store, error) {
	t, err := poolType(p.Outside.Type)
	if err != nil {
		return nil, err
	}
	settings := maps.Clone(p.Outside.Settings)
	if settings == nil {
		settings = map[string]string{}
	}
	if path := f[p.Name]; path != "" {
		_, own, err := readPoolFile(path)
		if err != nil {
			return nil, err
		}
		maps.Copy(settings, own)
	}
	if err := t.Check(settings); err != nil {
		return nil, err
	}
	s, err := t.Open(ctx, settings)
	if err != nil {
		return nil, err
	}
	return layer.Over(s, p.Name, m), nil
}

// openPool opens an outside pool of the store.
func (s *stack) openPool(files poolFiles) func(context.Context, *objstore.Pool) (pool.Store, error) {
	return func(ctx context.Context, p *objstore.Pool) (pool.Store, error) {
		out, err := files.open(ctx, p, s.pools)
		if err != nil {
			return nil, err
		}
		return pool.Owned(out, s.cmap.FSID), nil
	}
}

// register makes the pools that a store of one host does not have yet; the last
// one takes what is written from now on.
func (f poolFiles) register(ctx context.Context, m *mon.Monitor, cm *objstore.Map) (*objstore.Map, error) {
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if cm.PoolNamed(name) != nil {
			continue
		}
		out, err := outsideOption(ctx, "", f[name], cm.FSID)
		if err != nil {
			return nil, err
		}
		if _, err := m.Command(ctx, []string{"pool", "create", name}, map[string]string{"outside": out}); err != nil {
			return nil, fmt.Errorf("make pool %q: %w", name, err)
		}
		root := fmt.Sprint(uint64(objstore.VolumeRoot(objstore.RootVolume)))
		if _, err := m.Command(ctx, []string{"pool", "rule", "set", root, "/", name}, nil); err != nil {
			return nil, fmt.Errorf("choose pool %q: %w", name, err)
		}
	}
	return m.Map(ctx)
}
