package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"pillarbox/mon"
)

const (
	s3Addr        = "127.0.0.1:7480" // the port of Ceph's gateway
	s3Off         = "off"
	s3Drain       = 30 * time.Second // how long requests may go on when a gateway ends
	s3UsersFresh  = 5 * time.Second  // how old the users known may be
	s3HealthTime  = 3 * time.Second
	s3HeaderTime  = 20 * time.Second
	s3IdleTime    = 2 * time.Minute
	s3HeaderBytes = 64 << 10

	// A request that streams a body costs less than 64 MiB of a gateway's memory:
	// what is buffered of it, the same again on its way, and what waits for the
	// garbage collector, which therefore runs earlier than usual.
	s3PerRequest = 8 << 20
	s3Garbage    = 25 // percent
)

func s3Command() *cli.Command {
	where := []cli.Flag{
		confFlag(),
		&cli.StringFlag{Name: "data", Usage: "instead of --conf: `DIR` of a store of one host that is up"},
		formatFlag(),
	}
	keyFlags := []cli.Flag{
		&cli.StringFlag{Name: "access-key", Usage: "`KEY` to have instead of a new one, with --secret-key-file"},
		&cli.StringFlag{Name: "secret-key-file", Usage: "`FILE` with the secret of --access-key; - is standard input"},
	}
	changed := func(words, usage, args string) *cli.Command {
		return &cli.Command{Name: lastWord(words), Usage: usage, ArgsUsage: args, Flags: where, Action: func(c *cli.Context) error {
			return s3Give(c, append(strings.Fields(words), c.Args().Slice()...), nil, &mon.Changed{}, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "done")
				return err
			})
		}}
	}
	return &cli.Command{
		Name: "s3", Usage: "serve a cluster's store by S3, until Ctrl-C; with a subcommand: look after S3 users",
		Flags: append([]cli.Flag{confFlag(), metricsFlag(), keyFileFlag(), poolFlag(), &cli.StringFlag{Name: "addr", Value: s3Addr, Usage: "`HOST:PORT` to serve on"}}, append(s3Flags(), logFlags()...)...),
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError("unknown subcommand %q", c.Args().First())
			}
			return runS3(c)
		},
		Subcommands: []*cli.Command{
			{Name: "user", Usage: "make, list, suspend or remove users", Subcommands: []*cli.Command{
				{
					Name: "create", Usage: "make a user, and show the first key: it is shown only once", ArgsUsage: "USER",
					Flags: append(append([]cli.Flag{
						&cli.StringFlag{Name: "display-name", Usage: "`NAME` to show"},
						&cli.StringFlag{Name: "email", Usage: "`ADDRESS` that ACLs may name the user by"},
						&cli.StringFlag{Name: "uid", Usage: "`ID` of the owner of the files in the user's buckets (default: 0)"},
						&cli.StringFlag{Name: "gid", Usage: "`ID` of their group (default: 0)"},
					}, keyFlags...), where...),
					Action: func(c *cli.Context) error { return s3NewKey(c, "s3 user create") },
				},
				{Name: "ls", Usage: "list users", Flags: where, Action: s3ListUsers},
				changed("s3 user suspend", "refuse a user's requests", "USER"),
				changed("s3 user enable", "take a user's requests again", "USER"),
				changed("s3 user rm", "remove a user; the buckets stay", "USER"),
			}},
			{Name: "key", Usage: "make or remove access keys", Subcommands: []*cli.Command{
				{Name: "create", Usage: "make another key, and show it once", ArgsUsage: "USER", Flags: append(keyFlags, where...),
					Action: func(c *cli.Context) error { return s3NewKey(c, "s3 key create") }},
				changed("s3 key rm", "remove a key", "ACCESS-KEY"),
			}},
			{Name: "quota", Usage: "bound what a user's buckets hold", Subcommands: []*cli.Command{{
				Name: "set", Usage: "set the bound: bytes, or as 10GiB; 0 is none", ArgsUsage: "USER SIZE", Flags: where, Action: s3SetQuota,
			}}},
			changed("s3 grant", "open a top-level directory that S3 did not make, such as a mail domain, to a user: read, write or none", "DIRECTORY USER RIGHT"),
		},
	}
}

// s3Flags are those of everything that serves S3.
func s3Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "s3-domain", Usage: "`NAME` below which bucket names are host names: bucket.NAME; may be repeated"},
		&cli.StringFlag{Name: "s3-region", Value: "us-east-1", Usage: "`REGION` that clients are told"},
		&cli.StringFlag{Name: "s3-access-log", Usage: "`FILE` for the access log, in the format of S3's"},
		&cli.StringFlag{Name: "s3-tls-cert", Usage: "`FILE` with the certificate, PEM; without it the port is plain HTTP"},
		&cli.StringFlag{Name: "s3-tls-key", Usage: "`FILE` with its key"},
		&cli.DurationFlag{Name: "s3-lifecycle-day", Value: 24 * time.Hour, Hidden: true, Usage: "how long a day of lifecycle rules is, for tests"},
	}
}

func lastWord(s string) string { return s[strings.LastIndexByte(s, ' ')+1:] }

// s3Give gives a command about S3 to a cluster's monitors or a store of one host.
func s3Give(c *cli.Context, words []string, options map[string]string, answer any, text func(io.Writer) error) error {
	data := c.String("data")
	if data == "" {
		return give(c, words, options, answer, text)
	}
	if err := commandAt(c.Context, data, words, options, answer); err != nil {
		return err
	}
	return show(c, answer, text)
}

func s3NewKey(c *cli.Context, words string) error {
	args, err := operands(c, "USER")
	if err != nil {
		return err
	}
	options := map[string]string{}
	for _, name := range []string{"display-name", "email", "uid", "gid", "access-key"} {
		if s := c.String(name); s != "" {
			options[name] = s
		}
	}
	if (c.String("access-key") == "") != (c.String("secret-key-file") == "") {
		return usageError("--access-key and --secret-key-file belong together")
	}
	if path := c.String("secret-key-file"); path != "" {
		f := os.Stdin
		if path != "-" {
			if f, err = os.Open(path); err != nil {
				return err
			}
			defer f.Close()
		}
		b, err := io.ReadAll(io.LimitReader(f, 4096))
		if err != nil {
			return fmt.Errorf("read the secret key: %w", err)
		}
		options["secret-key"] = strings.TrimSpace(string(b))
	}
	var k mon.S3Key
	return s3Give(c, append(strings.Fields(words), args...), options, &k, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "user        %s\naccess key  %s\nsecret key  %s\n", k.User, k.Access, k.Secret)
		return err
	})
}

func s3SetQuota(c *cli.Context) error {
	args, err := operands(c, "USER", "SIZE")
	if err != nil {
		return err
	}
	n, err := humanize.ParseBytes(args[1])
	if err != nil {
		return usageError("size %q: must be a number of bytes, or as 10GiB", args[1])
	}
	return s3Give(c, []string{"s3", "quota", "set", args[0], strconv.FormatUint(n, 10)}, nil, &mon.Changed{}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "done")
		return err
	})
}

func s3ListUsers(c *cli.Context) error {
	var users []mon.S3User
	return s3Give(c, []string{"s3", "user", "ls"}, nil, &users, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "USER\tNAME\tEMAIL\tSTATE\tQUOTA\tKEYS\tGRANTS")
		for _, u := range users {
			state := "active"
			if u.Suspended {
				state = "suspended"
			}
			quota := "none"
			if u.Quota > 0 {
				quota = humanize.IBytes(u.Quota)
			}
			var keys, grants []string
			for k := range u.Keys {
				keys = append(keys, k)
			}
			for b, right := range u.Grants {
				grants = append(grants, b+":"+right)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", u.ID, u.Name, u.Email, state, quota, strings.Join(keys, ","), strings.Join(grants, ","))
		}
		return t.Flush()
	})
}
