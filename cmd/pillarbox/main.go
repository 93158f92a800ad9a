// Command pillarbox stores mail on an object store and shows it as ordinary
// mail directories.
//
// main.go finds the subcommand; each lives in a file of its own. Only this
// package assembles the store's parts (assemble.go). Every failure ends as one
// line on stderr and a documented exit code (exit.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// memoryLimit is what the garbage collector aims to stay below, in bytes,
// unless GOMEMLIMIT says otherwise.
const memoryLimit = 384 << 20

// limitMemory leaves room for what a mount may keep, and as much again, where it is
// more than usual: a limit below what is kept would have the collector run all the time.
func limitMemory(kept int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(max(memoryLimit, 2*kept))
	}
}

func main() {
	limitMemory(0)
	// FUSE requests and syncs block threads in the kernel. With a processor to
	// spare for each thread that returns, none has to queue for one: this halves
	// the CPU time of a delivery on a machine with two cores.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(8, 4*runtime.NumCPU()))
	}
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, arrange(app, args))
	if err == nil {
		return exitOK
	}
	if line := oneLine(err); line != "" {
		fmt.Fprintf(stderr, "pillarbox: %s\n", line)
	}
	return exitCode(err)
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:            "pillarbox",
		Usage:           "mail directories on an object store",
		Version:         version(),
		Writer:          stdout,
		ErrWriter:       stderr,
		HideHelpCommand: true,
		HideVersion:     true,
		Commands: append([]*cli.Command{
			upCommand(), helperCmd(), mountCommand(), umountCommand(), statusCommand(), statsCommand(), profileCommand(), warmupCommand(), cacheCommand(), dfCommand(),
			importCommand(), benchCommand(), fsckCommand(), versionCommand(),
			initCommand(), monCommand(), osdCommand(), joinCommand(), scrubCommand(), whereCommand(), pgCommand(), s3Command(), keyCommand(), destroyKeysCommand(), verifyCommand(), rebuildCommand(),
		}, clusterCommands()...),
		CustomAppHelpTemplate: cli.AppHelpTemplate + exitHelp(),
		ExitErrHandler:        func(*cli.Context, error) {}, // run does it
		OnUsageError:          onUsageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError("unknown command %q; 'pillarbox --help' lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, cmd := range app.Commands {
		if cmd.OnUsageError == nil {
			cmd.OnUsageError = onUsageError
		}
		cmd.HideHelpCommand = true
	}
	return app
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	var code *exitError
	if errors.As(err, &code) {
		return err
	}
	name := strings.TrimSpace(c.App.Name)
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != c.App.Name {
		name += " " + c.Command.Name
	}
	return usageError("%s: %v; see '%s --help'", name, err, name)
}

// arrange brings the arguments into the order the flag parser wants: flags
// before operands. Called as mount.pillarbox, as mount(8) does, it means mount.
func arrange(app *cli.App, args []string) []string {
	if filepath.Base(args[0]) == "mount.pillarbox" {
		args = slices.Insert(slices.Clone(args), 1, "mount")
	}
	if len(args) < 2 {
		return args
	}
	cmd := app.Command(args[1])
	if cmd == nil {
		return args
	}
	words := 2 // the subcommand, and its own
	for len(args) > words && cmd.Subcommands != nil {
		i := slices.IndexFunc(cmd.Subcommands, func(sub *cli.Command) bool { return sub.Name == args[words] })
		if i < 0 {
			break
		}
		cmd = cmd.Subcommands[i]
		words++
	}
	var flags, operands []string
	for rest := args[words:]; len(rest) > 0; rest = rest[1:] {
		a := rest[0]
		switch {
		case a == "--":
			operands = append(operands, rest[1:]...)
			rest = rest[len(rest)-1:]
		case len(a) < 2 || a[0] != '-':
			operands = append(operands, a)
		default:
			flags = append(flags, a)
			if takesValue(cmd, a) {
				if len(rest) == 1 {
					return append(slices.Clone(args[:words]), flags...) // the parser says what is missing
				}
				flags = append(flags, rest[1])
				rest = rest[1:]
			}
		}
	}
	out := append(slices.Clone(args[:words]), flags...)
	if len(operands) == 0 {
		return out
	}
	return append(append(out, "--"), operands...)
}

// takesValue says whether a flag's value is the next argument.
func takesValue(cmd *cli.Command, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	for _, f := range cmd.Flags {
		if _, isBool := f.(*cli.BoolFlag); !isBool && slices.Contains(f.Names(), name) {
			return true
		}
	}
	return false
}

// operands returns the command's operands, named by want, or a usage error.
func operands(c *cli.Context, want ...string) ([]string, error) {
	if c.NArg() != len(want) {
		what := "no operand"
		if len(want) > 0 {
			what = strings.Join(want, " ")
		}
		return nil, usageError("pillarbox %s takes %s, got %d operands; see 'pillarbox %s --help'", c.Command.Name, what, c.NArg(), c.Command.Name)
	}
	for i, a := range c.Args().Slice() {
		if a == "" {
			return nil, usageError("pillarbox %s: %s is empty", c.Command.Name, want[i])
		}
	}
	return c.Args().Slice(), nil
}
