package mon

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"pillarbox/objstore"
)

// Of a new pool, unless its options say otherwise.
const (
	defaultSize = 3
	defaultPGs  = 128
)

// PoolUse is what an OSD holds of a data pool.
type PoolUse struct {
	Chunks uint64 `json:"chunks"`
	Bytes  uint64 `json:"bytes"` // as they are on disk: copies and coding included
}

func findPool(cm *objstore.Map, name string) (*objstore.Pool, error) {
	if p := cm.PoolNamed(name); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("pool %q: %w", name, objstore.NotFound)
}

func checkPoolName(name string) error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("pool %q: a name is up to 64 letters, digits, '.', '_' and '-': %w", name, objstore.Invalid)
	}
	return nil
}

// cmdPoolCreate: pool create NAME, with options size, min_size, failure_domain and
// pgs; of an erasure-coded pool k and m instead of size.
func (m *Monitor) cmdPoolCreate(ctx context.Context, args []string, options map[string]string) (any, error) {
	if err := checkPoolName(args[0]); err != nil {
		return nil, err
	}
	p, err := newPool(args[0], options)
	if err != nil {
		return nil, err
	}
	return m.change(ctx, func(cm *objstore.Map) error {
		if was, err := findPool(cm, p.Name); err == nil {
			if !samePool(*was, *p) {
				return fmt.Errorf("pool %q is there, made otherwise: %w", p.Name, objstore.Exist)
			}
			return nil
		}
		if have := cm.Domains(p.Domain()); p.Coding != nil && have < p.Size && options["force"] != "true" {
			return fmt.Errorf("pool %q: %d+%d needs %d failure domains (%s), the map has %d; give --force: %w",
				p.Name, p.Coding.K, p.Coding.M, p.Size, p.Domain(), have, objstore.NotPermitted)
		}
		for p.ID = 1; cm.Pool(p.ID) != nil; p.ID++ {
		}
		if p.ID > objstore.MaxDataPool {
			return fmt.Errorf("pool %q: there are %d data pools already: %w", p.Name, objstore.MaxDataPool, objstore.NoSpace)
		}
		cm.Pools = append(cm.Pools, *p)
		return nil
	})
}

func newPool(name string, options map[string]string) (*objstore.Pool, error) {
	p := &objstore.Pool{Name: name, Kind: objstore.DataPool, Size: defaultSize, PGs: defaultPGs, ChunkSize: objstore.ChunkSize, FailureDomain: options["failure_domain"]}
	var code objstore.Coding
	for key, to := range map[string]*int{"size": &p.Size, "min_size": &p.MinSize, "pgs": &p.PGs, "k": &code.K, "m": &code.M} {
		s := options[key]
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, fmt.Errorf("%s %q: must be a number: %w", key, s, objstore.Invalid)
		}
		*to = n
	}
	if text := options["outside"]; text != "" {
		return p, moveOut(p, text)
	}
	if code != (objstore.Coding{}) {
		return p, codePool(p, code, options["size"] != "")
	}
	p.MinSize = cmp.Or(p.MinSize, p.Size/2+1)
	if p.Size < 2 && options["force"] != "true" {
		return nil, fmt.Errorf("pool %q with one replica loses data with a disk; give --force: %w", name, objstore.NotPermitted)
	}
	return p, nil
}

// codePool makes a new pool an erasure-coded one. Unless said otherwise a write
// must reach one shard more than are needed to read: then none is lost with the
// next disk.
func codePool(p *objstore.Pool, code objstore.Coding, sized bool) error {
	if code.K < 2 || code.M < 1 || sized {
		return fmt.Errorf("pool %q: an erasure-coded pool has k of 2 or more, m of 1 or more, and no size: %w", p.Name, objstore.Invalid)
	}
	p.Coding, p.Size = &code, code.K+code.M
	p.MinSize = cmp.Or(p.MinSize, code.K+1)
	return nil
}

// moveOut makes a new pool one outside: redundancy is the other store's affair.
func moveOut(p *objstore.Pool, outside string) error {
	p.Size, p.MinSize, p.PGs, p.Outside = 1, 1, 1, &objstore.Outside{}
	if err := json.Unmarshal([]byte(outside), p.Outside); err != nil {
		return fmt.Errorf("pool %q: %w: %w", p.Name, objstore.Invalid, err)
	}
	return nil
}

// samePool says whether a pool is what another one was asked to be.
func samePool(a, b objstore.Pool) bool {
	if !reflect.DeepEqual(a.Outside, b.Outside) {
		return false
	}
	coding := a.Coding == b.Coding || a.Coding != nil && b.Coding != nil && *a.Coding == *b.Coding
	return coding && a.Kind == b.Kind && a.Size == b.Size && a.MinSize == b.MinSize && a.PGs == b.PGs && a.ChunkSize == b.ChunkSize && a.Domain() == b.Domain()
}

// cmdPoolRemove: pool rm NAME. A pool that may still hold something of worth is
// kept, unless option force is set.
func (m *Monitor) cmdPoolRemove(ctx context.Context, args []string, options map[string]string) (any, error) {
	reports, err := m.reports(ctx)
	if err != nil {
		return nil, err
	}
	return m.change(ctx, func(cm *objstore.Map) error {
		p, err := findPool(cm, args[0])
		if err != nil {
			return nil // it is gone
		}
		if p.Kind != objstore.DataPool {
			return fmt.Errorf("pool %q holds the volumes themselves: %w", p.Name, objstore.NotPermitted)
		}
		if options["force"] != "true" {
			if err := unused(cm, p, reports); err != nil {
				return fmt.Errorf("pool %q is not removed: %w; --force removes it with all that is in it", p.Name, err)
			}
		}
		id := p.ID
		cm.Rules = slices.DeleteFunc(cm.Rules, func(r objstore.PoolRule) bool { return r.Pool == id })
		cm.Pools = slices.DeleteFunc(cm.Pools, func(p objstore.Pool) bool { return p.ID == id })
		if cm.Data() == nil {
			return fmt.Errorf("pool %q is the last data pool: %w", args[0], objstore.NotPermitted)
		}
		return nil
	})
}

// unused is nil when nothing is in a pool and nothing new goes there.
func unused(cm *objstore.Map, p *objstore.Pool, reports map[int]Report) error {
	if cm.Data().ID == p.ID {
		return fmt.Errorf("new bodies go there; 'pool set / OTHER' chooses another: %w", objstore.NotPermitted)
	}
	for _, r := range cm.Rules {
		if r.Pool == p.ID {
			return fmt.Errorf("new bodies below %s go there: %w", r.Path, objstore.NotPermitted)
		}
	}
	if p.Outside != nil {
		return fmt.Errorf("it is outside, where nobody counts what is in it: %w", objstore.NotPermitted)
	}
	for _, o := range cm.OSDs {
		r, there := reports[o.ID]
		switch {
		case !there || r.Epoch < cm.Epoch:
			return fmt.Errorf("osd.%d has not said yet what it holds of it: %w", o.ID, objstore.NotPermitted)
		case r.Pools[p.ID].Chunks > 0:
			return fmt.Errorf("osd.%d holds %d chunks of it: %w", o.ID, r.Pools[p.ID].Chunks, objstore.NotPermitted)
		}
	}
	return nil
}

// cmdPoolSet: pool set NAME size|min_size|failure_domain VALUE
func (m *Monitor) cmdPoolSet(ctx context.Context, args []string, options map[string]string) (any, error) {
	return m.change(ctx, func(cm *objstore.Map) error {
		p, err := findPool(cm, args[0])
		if err != nil {
			return err
		}
		if args[1] == "failure_domain" {
			p.FailureDomain = args[2]
			return nil
		}
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return fmt.Errorf("%s %q: must be a number: %w", args[1], args[2], objstore.Invalid)
		}
		switch args[1] {
		case "size":
			if p.Coding != nil {
				return fmt.Errorf("pool %q is erasure-coded; its size follows from k and m: %w", p.Name, objstore.Invalid)
			}
			if n < 2 && n < p.Size && options["force"] != "true" {
				return fmt.Errorf("pool %q with one replica loses data with a disk; give --force: %w", p.Name, objstore.NotPermitted)
			}
			p.Size = n
			p.MinSize = min(p.MinSize, n)
		case "min_size":
			p.MinSize = n
		default:
			return fmt.Errorf("%q: must be size, min_size or failure_domain: %w", args[1], objstore.Invalid)
		}
		return nil
	})
}

// cmdRuleSet: pool rule set INODE PATH POOL. Who asks has looked the path up.
func (m *Monitor) cmdRuleSet(ctx context.Context, args []string, _ map[string]string) (any, error) {
	ino, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil || ino == 0 || !strings.HasPrefix(args[1], "/") {
		return nil, fmt.Errorf("inode %q of directory %q: %w", args[0], args[1], objstore.Invalid)
	}
	return m.change(ctx, func(cm *objstore.Map) error {
		p, err := findPool(cm, args[2])
		if err != nil {
			return err
		}
		if r := cm.Rule(objstore.Ino(ino)); r != nil {
			r.Path, r.Pool = args[1], p.ID
			return nil
		}
		cm.Rules = append(cm.Rules, objstore.PoolRule{Dir: objstore.Ino(ino), Path: args[1], Pool: p.ID})
		return nil
	})
}

// cmdRuleRemove: pool rule rm PATH [INODE]. A directory that is gone is known by
// its path alone.
func (m *Monitor) cmdRuleRemove(ctx context.Context, args []string, _ map[string]string) (any, error) {
	var ino uint64
	if len(args) > 1 {
		var err error
		if ino, err = strconv.ParseUint(args[1], 10, 64); err != nil {
			return nil, fmt.Errorf("inode %q: %w", args[1], objstore.Invalid)
		}
	}
	return m.change(ctx, func(cm *objstore.Map) error {
		cm.Rules = slices.DeleteFunc(cm.Rules, func(r objstore.PoolRule) bool {
			if ino != 0 {
				return r.Dir == objstore.Ino(ino)
			}
			return r.Path == args[0]
		})
		return nil
	})
}
