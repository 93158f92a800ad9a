package mon

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

// Changed answers a command that changes the map.
type Changed struct {
	Epoch uint64 `json:"epoch"`          // of the map with the change
	Note  string `json:"note,omitempty"` // what an admin should know
}

// Command carries out an admin's command: words as typed, options by name. The
// answer is encoded as JSON for the admin's program. Doing a command again
// changes nothing. Invalid: no such command, or not so. NotPermitted: it could
// lose data, and option force is not set.
func (m *Monitor) Command(ctx context.Context, words []string, options map[string]string) (any, error) {
	for _, c := range commands {
		n := len(c.words)
		if len(words) >= n && slices.Equal(words[:n], c.words) {
			if got := len(words) - n; got < c.min || c.max >= 0 && got > c.max {
				return nil, fmt.Errorf("%s: %d arguments: %w", strings.Join(c.words, " "), got, objstore.Invalid)
			}
			return c.do(m, ctx, words[n:], options)
		}
	}
	return nil, fmt.Errorf("no command %q: %w", strings.Join(words, " "), objstore.Invalid)
}

// S3KeysCommand is what a gateway, which is a client, may ask for.
var S3KeysCommand = []string{"s3", "keys"}

type command struct {
	words    []string
	min, max int // arguments
	do       func(m *Monitor, ctx context.Context, args []string, options map[string]string) (any, error)
}

var commands = []command{
	{[]string{"status"}, 0, 0, (*Monitor).cmdStatus},
	{[]string{"map"}, 0, 0, func(m *Monitor, ctx context.Context, _ []string, _ map[string]string) (any, error) { return m.Map(ctx) }},
	{[]string{"token", "create"}, 1, 2, (*Monitor).cmdToken},
	{[]string{"osd", "in"}, 1, -1, onOSDs(func(o *objstore.OSDInfo) { o.In, o.AutoOut = true, false })},
	{[]string{"osd", "out"}, 1, -1, onOSDs(func(o *objstore.OSDInfo) { o.In, o.AutoOut = false, false })},
	{[]string{"osd", "down"}, 1, -1, onOSDs(markDown)},
	{[]string{"osd", "reweight"}, 2, 2, (*Monitor).cmdReweight},
	{[]string{"osd", "crush", "reweight"}, 2, 2, (*Monitor).cmdCrushReweight},
	{[]string{"osd", "crush", "move"}, 2, -1, (*Monitor).cmdMove},
	{[]string{"osd", "set-nearfull-ratio"}, 1, 1, ratio(func(r *objstore.Ratios) *float64 { return &r.NearFull })},
	{[]string{"osd", "set-backfillfull-ratio"}, 1, 1, ratio(func(r *objstore.Ratios) *float64 { return &r.BackfillFull })},
	{[]string{"osd", "set-full-ratio"}, 1, 1, ratio(func(r *objstore.Ratios) *float64 { return &r.Full })},
	{[]string{"osd", "rm"}, 1, 1, (*Monitor).cmdRemove},
	{[]string{"mon", "rm"}, 1, 1, (*Monitor).cmdMonRemove},
	{[]string{"set"}, 1, 1, flag(true)},
	{[]string{"unset"}, 1, 1, flag(false)},
	{[]string{"pool", "create"}, 1, 1, (*Monitor).cmdPoolCreate},
	{[]string{"pool", "rm"}, 1, 1, (*Monitor).cmdPoolRemove},
	{[]string{"pool", "set"}, 3, 3, (*Monitor).cmdPoolSet},
	{[]string{"pool", "rule", "set"}, 3, 3, (*Monitor).cmdRuleSet},
	{[]string{"pool", "rule", "rm"}, 1, 2, (*Monitor).cmdRuleRemove},
	{[]string{"s3", "user", "create"}, 1, 1, (*Monitor).cmdS3UserCreate},
	{[]string{"s3", "user", "ls"}, 0, 0, (*Monitor).cmdS3UserList},
	{[]string{"s3", "user", "rm"}, 1, 1, (*Monitor).cmdS3UserRemove},
	{[]string{"s3", "user", "suspend"}, 1, 1, onS3User(func(_ map[string]*S3User, u *S3User, _ []string) error { u.Suspended = true; return nil })},
	{[]string{"s3", "user", "enable"}, 1, 1, onS3User(func(_ map[string]*S3User, u *S3User, _ []string) error { u.Suspended = false; return nil })},
	{[]string{"s3", "key", "create"}, 1, 1, (*Monitor).cmdS3KeyCreate},
	{[]string{"s3", "key", "rm"}, 1, 1, (*Monitor).cmdS3KeyRemove},
	{[]string{"s3", "quota", "set"}, 2, 2, (*Monitor).cmdS3Quota},
	{[]string{"s3", "grant"}, 3, 3, (*Monitor).cmdS3Grant},
	{S3KeysCommand, 0, 0, func(m *Monitor, ctx context.Context, _ []string, _ map[string]string) (any, error) {
		return m.S3Keys(ctx)
	}},
}

// osdArg reads osd.3 or 3.
func osdArg(s string) (int, error) {
	id, err := strconv.ParseUint(strings.TrimPrefix(s, "osd."), 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q is no OSD: %w", s, objstore.Invalid)
	}
	return int(id), nil
}

func findOSD(cm *objstore.Map, arg string) (*objstore.OSDInfo, error) {
	id, err := osdArg(arg)
	if err != nil {
		return nil, err
	}
	o := cm.OSD(id)
	if o == nil {
		return nil, fmt.Errorf("osd.%d: %w", id, objstore.NotFound)
	}
	return o, nil
}

// change updates the map and answers with its epoch.
func (m *Monitor) change(ctx context.Context, fn func(*objstore.Map) error) (any, error) {
	cm, err := m.Update(ctx, fn)
	if err != nil {
		return nil, err
	}
	return Changed{Epoch: cm.Epoch}, nil
}

func onOSDs(fn func(*objstore.OSDInfo)) func(*Monitor, context.Context, []string, map[string]string) (any, error) {
	return func(m *Monitor, ctx context.Context, args []string, _ map[string]string) (any, error) {
		return m.change(ctx, func(cm *objstore.Map) error {
			for _, arg := range args {
				o, err := findOSD(cm, arg)
				if err != nil {
					return err
				}
				fn(o)
			}
			return nil
		})
	}
}

func markDown(o *objstore.OSDInfo) {
	if o.Up {
		o.Up, o.DownAt = false, time.Now().Unix()
	}
}

func number(s string, low, high float64) (float64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= low && f <= high) {
		return 0, fmt.Errorf("%q: must be a number from %g to %g: %w", s, low, high, objstore.Invalid)
	}
	return f, nil
}

func (m *Monitor) cmdReweight(ctx context.Context, args []string, _ map[string]string) (any, error) {
	w, err := number(args[1], 0, 1)
	if err != nil {
		return nil, err
	}
	return m.change(ctx, func(cm *objstore.Map) error {
		o, err := findOSD(cm, args[0])
		if err != nil {
			return err
		}
		if w == 0 {
			o.In = false
			return nil
		}
		o.Reweight, o.In = w, true
		return nil
	})
}

// ratio sets one of the ratios of full disks.
func ratio(of func(*objstore.Ratios) *float64) func(*Monitor, context.Context, []string, map[string]string) (any, error) {
	return func(m *Monitor, ctx context.Context, args []string, _ map[string]string) (any, error) {
		n, err := number(args[0], 0.01, 1)
		if err != nil {
			return nil, err
		}
		return m.change(ctx, func(cm *objstore.Map) error {
			*of(&cm.Ratios) = n
			return nil
		})
	}
}

const maxWeight = 1 << 20

func (m *Monitor) cmdCrushReweight(ctx context.Context, args []string, _ map[string]string) (any, error) {
	w, err := number(args[1], 0, maxWeight)
	if err != nil {
		return nil, err
	}
	return m.change(ctx, func(cm *objstore.Map) error {
		o, err := findOSD(cm, args[0])
		if err == nil {
			o.Weight = w
		}
		return err
	})
}

// cmdMove: osd crush move osd.3 host=h2 rack=r1
func (m *Monitor) cmdMove(ctx context.Context, args []string, _ map[string]string) (any, error) {
	return m.change(ctx, func(cm *objstore.Map) error {
		o, err := findOSD(cm, args[0])
		if err != nil {
			return err
		}
		for _, arg := range args[1:] {
			key, value, ok := strings.Cut(arg, "=")
			switch {
			case !ok || checkPlace(value) != nil:
				return fmt.Errorf("%q: must be host=NAME or rack=NAME: %w", arg, objstore.Invalid)
			case key == "host":
				o.Host = value
			case key == "rack":
				o.Rack = value
			case key == "root" && value == "default":
			default:
				return fmt.Errorf("%q: must be host=NAME or rack=NAME: %w", arg, objstore.Invalid)
			}
		}
		return nil
	})
}

// checkPlace refuses names of hosts and racks that would garble what is printed.
func checkPlace(name string) error {
	if len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("host or rack %q: up to 255 bytes without blanks: %w", name, objstore.Invalid)
	}
	return nil
}

func (m *Monitor) cmdRemove(ctx context.Context, args []string, options map[string]string) (any, error) {
	return m.change(ctx, func(cm *objstore.Map) error {
		id, err := osdArg(args[0])
		if err != nil {
			return err
		}
		o := cm.OSD(id)
		switch {
		case o == nil:
			return nil
		case o.Up:
			return fmt.Errorf("osd.%d is up; stop it first: %w", id, objstore.NotPermitted)
		case o.In && options["force"] != "true":
			return fmt.Errorf("osd.%d is in: take it out and wait until its data are elsewhere, or give --force: %w", id, objstore.NotPermitted)
		}
		cm.OSDs = slices.DeleteFunc(cm.OSDs, func(o objstore.OSDInfo) bool { return o.ID == id })
		return nil
	})
}

func flag(on bool) func(*Monitor, context.Context, []string, map[string]string) (any, error) {
	return func(m *Monitor, ctx context.Context, args []string, _ map[string]string) (any, error) {
		known := []string{objstore.FlagNoOut, objstore.FlagNoDown, objstore.FlagNoScrub, objstore.FlagNoRecover, objstore.FlagNoRebalance}
		if !slices.Contains(known, args[0]) {
			return nil, fmt.Errorf("flag %q: must be one of %s: %w", args[0], strings.Join(known, ", "), objstore.Invalid)
		}
		return m.change(ctx, func(cm *objstore.Map) error {
			cm.Flags = slices.DeleteFunc(cm.Flags, func(f string) bool { return f == args[0] })
			if on {
				cm.Flags = append(cm.Flags, args[0])
			}
			return nil
		})
	}
}

// cmdToken: token create ROLE [NAME]
func (m *Monitor) cmdToken(ctx context.Context, args []string, options map[string]string) (any, error) {
	ttl := time.Hour
	if s := options["ttl"]; s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 || d > 30*24*time.Hour {
			return nil, fmt.Errorf("ttl %q: must be a time of up to 720h: %w", s, objstore.Invalid)
		}
		ttl = d
	}
	name := ""
	if len(args) > 1 {
		name = args[1]
	}
	t, err := m.NewToken(ctx, pki.Role(args[0]), name, ttl)
	if err != nil {
		return nil, err
	}
	return map[string]string{"token": t.String(), "expires": time.Now().Add(ttl).UTC().Format(time.RFC3339)}, nil
}
