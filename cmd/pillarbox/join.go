package main

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"errors"

	"github.com/urfave/cli/v2"

	"pillarbox/mon/monrpc"
	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

func joinCommand() *cli.Command {
	return &cli.Command{
		Name:      "join",
		Usage:     "trade a one-time token for the credentials of a client or admin",
		ArgsUsage: "[TOKEN]",
		Description: "Without TOKEN reads it from standard input, so that it shows in no list of processes.\n" +
			"Tokens are made by 'pillarbox token create client NAME'.",
		Flags: append([]cli.Flag{confFlag()}, logFlags()...),
		Action: func(c *cli.Context) error {
			t, err := tokenArg(c)
			if err != nil {
				return err
			}
			dir := c.String("conf")
			if err := unusedConf(dir); err != nil {
				return err
			}
			j, err := joinCluster(c.Context, dir, t, objstore.OSDInfo{}, &clusterConf{})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s of cluster %s; credentials are in %s\n", j.Identity.Name, j.Map.FSID, dir)
			return err
		},
	}
}

// tokenArg is the token given as the operand, or on standard input.
func tokenArg(c *cli.Context) (pki.Token, error) {
	if c.NArg() > 1 {
		return pki.Token{}, usageError("pillarbox %s takes at most a token, got %d operands", c.Command.Name, c.NArg())
	}
	text := c.Args().First()
	if text == "" {
		line, err := bufio.NewReader(c.App.Reader).ReadString('\n')
		if line == "" {
			return pki.Token{}, usageError("no token: %v", err)
		}
		text = line
	}
	t, err := pki.ParseToken(strings.TrimSpace(text))
	if err != nil {
		return t, usageError("%w", err)
	}
	return t, nil
}

// unusedConf refuses a directory that already belongs to a cluster.
func unusedConf(dir string) error {
	_, err := os.Stat(filepath.Join(dir, clusterFile))
	switch {
	case err == nil:
		return failure(exitForeign, "%s belongs to a cluster already", dir)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// joinCluster trades the token and keeps what it gets in dir.
func joinCluster(ctx context.Context, dir string, t pki.Token, o objstore.OSDInfo, conf *clusterConf) (*monrpc.Joined, error) {
	j, err := monrpc.Join(ctx, t, o, conf.PeerAddr)
	if err != nil {
		return nil, err
	}
	conf.FSID, conf.Name, conf.Mons = j.Map.FSID, j.Identity.Name, monAddrs(j.Map)
	conf.Initial = j.Initial
	if j.OSD >= 0 {
		conf.OSD, conf.UUID = &j.OSD, o.UUID
	}
	if len(conf.Mons) == 0 {
		conf.Mons = t.Addrs
	}
	if err := j.Credentials.Save(dir); err != nil {
		return nil, err
	}
	if err := conf.save(dir); err != nil {
		return nil, fmt.Errorf("save the configuration: %w", err)
	}
	return j, nil
}
