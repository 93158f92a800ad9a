package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pillarbox/mon"
	"pillarbox/mon/pki"
)

// grown is a one-host store that becomes the first OSD of a cluster. Its mail
// stays where it is: the OSD's directory gets another name, and the new monitor
// begins with the map of the old one.
type grown struct {
	dir  *dataDir
	addr string // of the OSD
	uuid string
	seed *mon.Seed
}

// openGrown locks a stopped store and reads its map.
func openGrown(ctx context.Context, from, addr string, log *slog.Logger) (g *grown, err error) {
	if err := checkAddr(addr); err != nil {
		return nil, usageError("--osd-addr %q: must be HOST:PORT, as others reach it", addr)
	}
	path, err := filepath.Abs(from)
	if err != nil {
		return nil, err
	}
	d, err := findDataDir(path)
	if err != nil {
		return nil, err
	}
	if d.info == nil || !d.info.Complete {
		return nil, failure(exitForeign, "%s holds no store", path)
	}
	if err := unusedConf(path); err != nil {
		return nil, err
	}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	g = &grown{dir: d, addr: addr, uuid: mon.NewFSID()}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	m, err := mon.Open(ctx, mon.Options{Dir: d.file(monDir), FSID: d.info.FSID, VolumeDepth: d.info.VolumeDepth, Log: log})
	if err != nil {
		return nil, withCode(err)
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	cm, err := m.Map(ctx)
	if err != nil {
		return nil, err
	}
	if cm.FSID != d.info.FSID || len(cm.OSDs) != 1 {
		return nil, failure(exitForeign, "%s is not the store of one host", path)
	}
	session, err := m.NewSession(ctx)
	if err != nil {
		return nil, err
	}
	cm = cm.Clone()
	if cm.OSDs[0].Weight, err = weightOf(d.path); err != nil {
		return nil, err
	}
	o := &cm.OSDs[0]
	o.UUID, o.Up, o.In = g.uuid, false, true
	cm.Epoch, cm.Founder = cm.Epoch+1, g.uuid
	users, err := m.S3Keys(ctx)
	if err != nil {
		return nil, err
	}
	g.seed = &mon.Seed{Map: cm, Session: session, S3: users}
	return g, nil
}

// finish makes the store's directory the OSD's.
func (g *grown) finish(ctx context.Context, m *mon.Monitor, monAddr string) error {
	id := g.seed.Map.OSDs[0].ID
	creds, err := m.Issue(ctx, pki.Identity{Role: pki.OSD, Name: fmt.Sprint("osd.", id)})
	if err != nil {
		return err
	}
	if err := creds.Save(g.dir.path); err != nil {
		return err
	}
	if err := os.Rename(g.dir.file(osdDir), g.dir.file(osdData)); err != nil {
		return err
	}
	cc := &clusterConf{FSID: g.seed.Map.FSID, Name: fmt.Sprint("osd.", id), Mons: []string{monAddr}, Addr: g.addr, OSD: &id, UUID: g.uuid, Founded: true}
	if err := cc.save(g.dir.path); err != nil {
		return err
	}
	// From here on it is the cluster's: `up` must not open it any more.
	return errors.Join(os.Rename(g.dir.file(storeFile), g.dir.file(storeFile+".before")), os.RemoveAll(g.dir.file(monDir)))
}

func (g *grown) close() error { return g.dir.release() }

// weightOf is the weight of an OSD by convention: the size of its disk in TiB.
func weightOf(dir string) (float64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("size of the disk of %s: %w", dir, err)
	}
	return max(float64(st.Blocks)*float64(st.Bsize)/(1<<40), 0.001), nil
}
