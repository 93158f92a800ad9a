package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"pillarbox/mon/monrpc"
	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

// A configuration directory is what a member of a cluster knows to begin with:
// its credentials (package pki) and cluster.json.
const (
	clusterFile = "cluster.json"
	defaultConf = "/etc/pillarbox"
)

// clusterConf is cluster.json.
type clusterConf struct {
	Format int      `json:"format"`
	FSID   string   `json:"fsid"`
	Name   string   `json:"name"` // as the certificate has it
	Mons   []string `json:"mons"` // addresses to begin with; the map has them all
	// Of an OSD:
	OSD  *int   `json:"osd,omitempty"`
	UUID string `json:"uuid,omitempty"`
	// Founded says that the placement groups were made here, so that an empty
	// database is a loss and not the first start.
	Founded bool `json:"founded,omitempty"`
	// Of a monitor and an OSD:
	Addr string `json:"addr,omitempty"` // where it serves
	// Of a monitor:
	PeerAddr string `json:"peer_addr,omitempty"` // where it hears the others
	Initial  string `json:"initial,omitempty"`   // the members when it joined
}

const confFormat = 1

func readConf(dir string) (*clusterConf, error) {
	name := filepath.Join(dir, clusterFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failure(exitForeign, "%s belongs to no cluster: it has no %s; 'pillarbox join' or 'pillarbox init' make one", dir, clusterFile)
	}
	if err != nil {
		return nil, err
	}
	c := &clusterConf{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, failure(exitDamaged, "%s is damaged: %w", name, err)
	}
	if c.Format > confFormat {
		return nil, failure(exitNewer, "%s has format %d, this pillarbox reads up to %d: use a newer one", name, c.Format, confFormat)
	}
	return c, nil
}

// save writes cluster.json, whole or not at all.
func (c *clusterConf) save(dir string) error {
	c.Format = confFormat
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, clusterFile), append(b, '\n'))
}

// replaceFile puts a file in place, durably.
func replaceFile(name string, b []byte) error {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// member is somebody of a cluster with what it needs to speak to the others.
type member struct {
	dir  string
	conf *clusterConf
	tls  *tls.Config
	mons *monrpc.Client
}

// openMember reads a configuration directory.
func openMember(dir string, log *slog.Logger) (*member, error) {
	conf, err := readConf(dir)
	if err != nil {
		return nil, err
	}
	creds, err := pki.Load(dir)
	if err != nil {
		return nil, err
	}
	cfg, err := creds.TLS()
	if err != nil {
		return nil, err
	}
	mons, err := monrpc.NewClient(conf.Mons, cfg, log)
	if err != nil {
		return nil, failure(exitDamaged, "%s: %w", filepath.Join(dir, clusterFile), err)
	}
	return &member{dir: dir, conf: conf, tls: cfg, mons: mons}, nil
}

// learn keeps the monitors' addresses for the next start.
func (mem *member) learn(m *objstore.Map, log *slog.Logger) {
	addrs := monAddrs(m)
	if len(addrs) == 0 || slices.Equal(addrs, mem.conf.Mons) {
		return
	}
	mem.conf.Mons = addrs
	if err := mem.conf.save(mem.dir); err != nil {
		log.Warn("keep the monitors' addresses", "dir", mem.dir, "err", err)
	}
}

func confFlag() cli.Flag {
	return &cli.StringFlag{Name: "conf", Value: defaultConf, EnvVars: []string{"PILLARBOX_CONF"}, Usage: "`DIR` with the credentials of a client or admin of the cluster"}
}

// monAddrs are the addresses of the monitors that have one.
func monAddrs(m *objstore.Map) (addrs []string) {
	for _, mon := range m.Mons {
		if mon.Addr != "" {
			addrs = append(addrs, mon.Addr)
		}
	}
	return addrs
}
