package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/s3pool"
)

// driver is how to get to one type of outside store.
type driver struct {
	check  func(settings map[string]string) error
	secret func(setting string) bool // it stays in the file
	open   func(ctx context.Context, settings map[string]string) (pool.Store, error)
}

func drivers() map[string]driver {
	return map[string]driver{
		"s3": {s3pool.Check, s3pool.Secret, func(ctx context.Context, settings map[string]string) (pool.Store, error) {
			return s3pool.Open(ctx, settings)
		}},
	}
}

func driverOf(kind string) (driver, error) {
	d, ok := drivers()[kind]
	if !ok {
		return d, usageError("pools of type %q are not known; those known are: %s", kind, strings.Join(slices.Sorted(maps.Keys(drivers())), ", "))
	}
	return d, nil
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
	d, err := driverOf(kind)
	if err != nil {
		return nil, err
	}
	if err := d.check(settings); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	maps.DeleteFunc(settings, func(name, _ string) bool { return d.secret(name) })
	return &objstore.Outside{Type: kind, Settings: settings}, nil
}

// outsideOption is the option of pool create for the monitors.
func outsideOption(kind, path string) (string, error) {
	if path == "" {
		return "", usageError("an outside pool needs --config FILE")
	}
	o, err := outsideOf(kind, path)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(o)
	return string(b), err
}

// open opens an outside pool: what the map says of it, and what this host's file adds.
func (f poolFiles) open(ctx context.Context, p *objstore.Pool) (pool.Store, error) {
	d, err := driverOf(p.Outside.Type)
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
	return d.open(ctx, settings)
}

// register makes the pools that a store of one host does not have yet; the last
// one takes what is written from now on.
func (f poolFiles) register(ctx context.Context, m *mon.Monitor, cm *objstore.Map) (*objstore.Map, error) {
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if cm.PoolNamed(name) != nil {
			continue
		}
		out, err := outsideOption("", f[name])
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
