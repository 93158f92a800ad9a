package main

import (
	"encoding/json"
	"io"

	"github.com/urfave/cli/v2"
)

// formatFlag is --format of a command that answers once.
func formatFlag() cli.Flag { return formatFlagFor("`FORMAT` of the answer: text or json") }

func formatFlagFor(usage string) cli.Flag {
	return &cli.StringFlag{Name: "format", Value: "text", Usage: usage, Action: func(_ *cli.Context, f string) error {
		if f != "text" && f != "json" {
			return usageError("format %q: must be text or json", f)
		}
		return nil
	}}
}

// show writes an answer in the format asked for.
func show(c *cli.Context, answer any, text func(io.Writer) error) error {
	if c.String("format") == "json" {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(answer)
	}
	return text(c.App.Writer)
}
