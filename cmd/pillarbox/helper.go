package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"pillarbox/fusefs"
)

// helperCommand is run by a mount, not by people; see fusefs.Helper.
const helperCommand = "inotify-helper"

func helperCmd() *cli.Command {
	return &cli.Command{
		Name: helperCommand, Hidden: true, HideHelp: true,
		Action: func(c *cli.Context) error {
			return fusefs.Helper(c.Args().First(), os.Stdin, c.App.Writer)
		},
	}
}
