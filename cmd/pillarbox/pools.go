package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/objstore/pool/types"
	"pillarbox/osd/osdrpc"
)

func poolCommand() *cli.Command {
	return &cli.Command{Name: "pool", Usage: "look after pools, and choose them for directories", Subcommands: []*cli.Command{
		poolCreateCommand(),
		changing("pool rm", "remove a data pool that nothing is in", "POOL", forceFlag()),
		{Name: "ls", Usage: "list the pools, and the directories that one was chosen for", Flags: adminFlags(), Action: listPools},
		{Name: "get", Usage: "show a pool, or where the new bodies of a directory go", ArgsUsage: "POOL | /PATH", Flags: adminFlags(), Action: getPool},
		{
			Name: "set", Usage: "change size, min_size or failure_domain; or choose the pool of a directory's new bodies",
			ArgsUsage: "POOL WHAT VALUE | /PATH POOL", Flags: adminFlags(forceFlag()), Action: setPool,
		},
		poolMigrateCommand(),
		{Name: "unset", Usage: "let the directories above a directory choose its pool again", ArgsUsage: "/PATH", Flags: adminFlags(), Action: unsetPool},
	}}
}

// poolOptions are the flags of pool create, by the monitors' names for them.
var poolOptions = map[string]string{"size": "size", "min-size": "min_size", "failure-domain": "failure_domain", "pgs": "pgs", "k": "k", "m": "m"}

// The types of pools on OSDs; all others are outside.
const (
	replicatedType = "replicated"
	erasureType    = "erasure"
)

func poolCreateCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "make a data pool", ArgsUsage: "POOL",
		Flags: adminFlags(forceFlag(),
			&cli.IntFlag{Name: "size", Usage: "`N` replicas (default: 3)"},
			&cli.IntFlag{Name: "k", Usage: "with --type erasure: `N` data shards of each chunk"},
			&cli.IntFlag{Name: "m", Usage: "with --type erasure: `N` coding shards, as many as OSDs may be lost"},
			&cli.IntFlag{Name: "min-size", Usage: "`N` replicas or shards that a write must reach (default: more than half; k+1)"},
			&cli.StringFlag{Name: "failure-domain", Usage: "`KIND` that no two replicas or shards share: osd, host or rack (default: host)"},
			&cli.IntFlag{Name: "pgs", Usage: "`N` placement groups (default: 128)"},
			&cli.StringFlag{Name: "type", Value: replicatedType, Usage: "`TYPE` of pool: replicated or erasure; or, of an outside store instead of OSDs, one of " + strings.Join(slices.Sorted(maps.Keys(types.All())), ", ")},
			&cli.StringFlag{Name: "config", Usage: "`FILE` that says where an outside store is"},
		),
		Action: func(c *cli.Context) error {
			if _, err := operands(c, "POOL"); err != nil {
				return err
			}
			options := map[string]string{}
			for flag, name := range poolOptions {
				if c.IsSet(flag) {
					options[name] = fmt.Sprint(c.Value(flag))
				}
			}
			coded := c.String("type") == erasureType
			if coded != c.IsSet("k") || coded != c.IsSet("m") || coded && c.IsSet("size") {
				return usageError("--type erasure goes with --k and --m, and they with it; size is their sum")
			}
			if outside := c.String("type") != replicatedType && !coded; outside || c.IsSet("config") {
				var st mon.Status
				err := askMons(c, []string{"status"}, nil, &st)
				if err != nil {
					return err
				}
				if options["outside"], err = outsideOption(c.Context, c.String("type"), c.String("config"), st.FSID); err != nil {
					return err
				}
			}
			return giveChange(c, []string{"pool", "create", c.Args().First()}, options)
		},
	}
}

func setPool(c *cli.Context) error {
	args := c.Args().Slice()
	if !strings.HasPrefix(c.Args().First(), "/") {
		return giveChange(c, append([]string{"pool", "set"}, args...), nil)
	}
	if _, err := operands(c, "PATH", "POOL"); err != nil {
		return err
	}
	dir, err := lookUp(c, args[0])
	if err != nil {
		return err
	}
	return giveChange(c, dir.rule(args[1]), nil)
}

// rule is the monitors' command that chooses a pool for a directory.
func (d *directory) rule(pool string) []string {
	return []string{"pool", "rule", "set", strconv.FormatUint(uint64(d.chain[0]), 10), d.path, pool}
}

func unsetPool(c *cli.Context) error {
	args, err := operands(c, "PATH")
	if err != nil {
		return err
	}
	dir, err := lookUp(c, args[0])
	if errors.Is(err, objstore.NotFound) { // it was removed since
		return giveChange(c, []string{"pool", "rule", "rm", args[0]}, nil)
	}
	if err != nil {
		return err
	}
	return giveChange(c, []string{"pool", "rule", "rm", dir.path, strconv.FormatUint(uint64(dir.chain[0]), 10)}, nil)
}

// directory is one of the root volume's, or an account.
type directory struct {
	path  string
	chain []objstore.Ino // it, its parent and so on, up to the root
	cmap  *objstore.Map
}

// lookUp finds a directory of the store that pools can be chosen for.
func lookUp(c *cli.Context, path string) (*directory, error) {
	s, err := openStore(c)
	if err != nil {
		return nil, err
	}
	defer s.close()
	return findDirectory(c.Context, s.store, s.cmap, path)
}

func findDirectory(ctx context.Context, store objstore.Store, m *objstore.Map, path string) (*directory, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, usageError("%q: a directory of the store begins with /", path)
	}
	d := &directory{path: "/", chain: []objstore.Ino{objstore.VolumeRoot(objstore.RootVolume)}, cmap: m}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		a, err := store.Lookup(ctx, d.chain[0], name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !a.IsDir() || a.Ino.Volume() != objstore.RootVolume && !a.Ino.IsVolumeRoot() {
			return nil, usageError("%s: pools are chosen for accounts and the directories above them", path)
		}
		d.path = strings.TrimSuffix(d.path, "/") + "/" + name
		d.chain = append([]objstore.Ino{a.Ino}, d.chain...)
	}
	return d, nil
}

// adminStore is a cluster's store as an admin's command opens it.
type adminStore struct {
	self  *member
	cmap  *objstore.Map
	conns *osdrpc.Conns
	store *client.Client
}

func openStore(c *cli.Context) (_ *adminStore, err error) {
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelError}))
	s := &adminStore{}
	if s.self, err = openMember(c.String("conf"), log); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.cmap, err = s.self.mons.Map(c.Context); err != nil {
		return nil, err
	}
	s.conns = osdrpc.NewConns(osdrpc.Options{Self: -1, TLS: s.self.tls, Log: log})
	if err := s.conns.SetMap(s.cmap); err != nil {
		return nil, err
	}
	session, err := s.self.mons.NewSession(c.Context)
	if err != nil {
		return nil, err
	}
	s.store, err = client.New(c.Context, s.cmap, session, s.conns, client.Options{Log: log})
	return s, err
}

func (s *adminStore) close() {
	if s.store != nil {
		s.store.Close()
	}
	if s.conns != nil {
		s.conns.Close()
	}
	s.self.mons.Close()
}

// poolList is the answer of pool ls.
type poolList struct {
	Pools []objstore.Pool     `json:"pools"`
	Rules []objstore.PoolRule `json:"rules"`
}

func listPools(c *cli.Context) error {
	if _, err := operands(c); err != nil {
		return err
	}
	var st mon.Status
	return giveAs(c, []string{"status"}, nil, &st, func() any {
		return &poolList{st.Pools, append([]objstore.PoolRule{}, st.Rules...)}
	}, func(w io.Writer) error { return writePools(w, &st) })
}

func redundancy(p *objstore.Pool) string {
	if p.Outside != nil {
		return p.Outside.Type
	}
	if p.Coding != nil {
		return fmt.Sprintf("%d+%d", p.Coding.K, p.Coding.M)
	}
	return fmt.Sprint(p.Size)
}

func writePools(w io.Writer, st *mon.Status) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tNAME\tKIND\tSIZE\tMIN_SIZE\tPGS\tFAILURE DOMAIN")
	for i := range st.Pools {
		p := &st.Pools[i]
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%d\t%d\t%s\n", p.ID, p.Name, p.Kind, redundancy(p), p.MinSize, p.PGs, p.Domain())
	}
	if len(st.Rules) > 0 {
		fmt.Fprintln(tw, "\nDIRECTORY\tPOOL")
	}
	m := &objstore.Map{Pools: st.Pools}
	for _, r := range st.Rules {
		fmt.Fprintf(tw, "%s\t%s\n", r.Path, m.Pool(r.Pool).Name)
	}
	return tw.Flush()
}

// chosenPool is the answer of pool get for a directory.
type chosenPool struct {
	Path string `json:"path"`
	Pool string `json:"pool"`
	Rule string `json:"rule,omitempty"` // the directory that it was chosen for; empty: nowhere
}

func getPool(c *cli.Context) error {
	args, err := operands(c, "POOL or /PATH")
	if err != nil {
		return err
	}
	if strings.HasPrefix(args[0], "/") {
		return getChosen(c, args[0])
	}
	var st mon.Status
	if err := askMons(c, []string{"status"}, nil, &st); err != nil {
		return err
	}
	pool := (&objstore.Map{Pools: st.Pools}).PoolNamed(args[0])
	if pool == nil {
		return fmt.Errorf("pool %q: %w", args[0], objstore.NotFound)
	}
	return show(c, pool, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "id: %d\nkind: %s\nsize: %s\nmin_size: %d\npgs: %d\nfailure_domain: %s\n", pool.ID, pool.Kind, redundancy(pool), pool.MinSize, pool.PGs, pool.Domain())
		return err
	})
}

func getChosen(c *cli.Context, path string) error {
	dir, err := lookUp(c, path)
	if err != nil {
		return err
	}
	ans := chosenPool{Path: dir.path, Pool: dir.cmap.Data().Name}
	for _, ino := range dir.chain {
		if r := dir.cmap.Rule(ino); r != nil {
			ans.Pool, ans.Rule = dir.cmap.Pool(r.Pool).Name, r.Path
			break
		}
	}
	return show(c, ans, func(w io.Writer) error {
		rule := "by default"
		if ans.Rule != "" {
			rule = "as chosen for " + ans.Rule
		}
		_, err := fmt.Fprintf(w, "%s (%s)\n", ans.Pool, rule)
		return err
	})
}
