package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/objstore"
	"pillarbox/objstore/seal"
)

func keyFileFlag() cli.Flag {
	return &cli.StringFlag{Name: "key-file", Usage: "`FILE` with the master keys of encrypted accounts ('pillarbox key create'); mode 0600"}
}

func keyCommand() *cli.Command {
	file := []cli.Flag{&cli.StringFlag{Name: "key-file", Required: true, Usage: "the key `FILE`"}}
	return &cli.Command{
		Name: "key", Usage: "look after the master keys of encrypted accounts",
		Description: "The manual is docs/encryption.md. Keep a copy of the key file: without it the mail is lost.",
		Action: func(c *cli.Context) error {
			return usageError("pillarbox key needs a subcommand; see 'pillarbox key --help'")
		},
		Subcommands: []*cli.Command{
			{Name: "create", Usage: "make a key file with a master key in it", Flags: file, ArgsUsage: " ", Action: keyCreate},
			{Name: "ls", Usage: "list the master keys, and how many accounts below a mount point need each", Flags: file, ArgsUsage: "[MOUNTPOINT]", Action: keyList},
			{Name: "rotate", Usage: "add a new master key to the file, for new accounts and for rewrap", Flags: file, ArgsUsage: " ", Action: keyRotate},
			{Name: "rewrap", Usage: "make every account's key need the newest master key only; bodies stay as they are", Flags: file, ArgsUsage: "MOUNTPOINT", Action: keyRewrap},
			{Name: "forget", Usage: "remove a master key that no account needs any more", Flags: file, ArgsUsage: "ID", Action: keyForget},
			{
				Name: "encrypt", Usage: "make accounts encrypted that are made below a directory from now on", ArgsUsage: "DIRECTORY",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "off", Usage: "make them plain instead"}}, Action: keyEncrypt,
			},
		},
	}
}

func keyCreate(c *cli.Context) error {
	if _, err := operands(c); err != nil {
		return err
	}
	m := seal.NewMasterKey()
	if err := seal.CreateKeys(c.String("key-file"), (*seal.MasterKeys)(nil).With(m)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.App.Writer, "made %s with master key %s; keep a copy in a safe place: without it the mail is lost\n", c.String("key-file"), m)
	return err
}

func keyRotate(c *cli.Context) error {
	if _, err := operands(c); err != nil {
		return err
	}
	keys, err := seal.ReadKeys(c.String("key-file"))
	if err != nil {
		return err
	}
	m := seal.NewMasterKey()
	if err := seal.WriteKeys(c.String("key-file"), keys.With(m)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "added master key %s; bring the file to all mail hosts, then run 'pillarbox key rewrap'\n", m)
	return err
}

func keyForget(c *cli.Context) error {
	args, err := operands(c, "ID")
	if err != nil {
		return err
	}
	keys, err := seal.ReadKeys(c.String("key-file"))
	if err != nil {
		return err
	}
	for i, m := range keys.List() {
		if m.String() != args[0] {
			continue
		}
		if i == 0 {
			return usageError("%s is the newest master key: add another one first, with 'pillarbox key rotate'", m)
		}
		return seal.WriteKeys(c.String("key-file"), keys.Without(m.ID))
	}
	return fmt.Errorf("no master key %s in %s", args[0], c.String("key-file"))
}

func keyList(c *cli.Context) error {
	keys, err := seal.ReadKeys(c.String("key-file"))
	if err != nil {
		return err
	}
	count := map[string]int{}
	if c.NArg() > 0 {
		args, err := operands(c, "MOUNTPOINT")
		if err != nil {
			return err
		}
		if err := eachVolume(args[0], func(_ string, _ objstore.VolumeID, value []byte) error {
			switch id, ok, err := seal.WrappedBy(value); {
			case err != nil:
				return err
			case ok:
				count[id.String()]++
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return printKeys(c.App.Writer, keys, count, c.NArg() > 0)
}

func printKeys(w io.Writer, keys *seal.MasterKeys, count map[string]int, counted bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tMADE\tVOLUMES")
	for _, m := range keys.List() {
		n := "-"
		if counted {
			n = fmt.Sprint(count[m.String()])
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", m, m.Created.Format(time.RFC3339), n)
		delete(count, m.String())
	}
	for id, n := range count {
		fmt.Fprintf(t, "%s\t(not in this file)\t%d\n", id, n)
	}
	return t.Flush()
}

func keyRewrap(c *cli.Context) error {
	args, err := operands(c, "MOUNTPOINT")
	if err != nil {
		return err
	}
	keys, err := seal.ReadKeys(c.String("key-file"))
	if err != nil {
		return err
	}
	n, all := 0, 0
	err = eachVolume(args[0], func(path string, vol objstore.VolumeID, value []byte) error {
		id, ok, err := seal.WrappedBy(value)
		if err != nil || !ok {
			return err
		}
		all++
		if id == keys.Newest().ID {
			return nil
		}
		key, err := keys.Unwrap(vol, value)
		if err != nil {
			return err
		}
		wrapped, err := keys.Newest().Wrap(vol, key)
		if err != nil {
			return err
		}
		n++
		return setAttr(path, seal.KeyAttr, wrapped)
	})
	fmt.Fprintf(c.App.Writer, "%d of %d keys wrapped anew\n", n, all)
	return err
}

func keyEncrypt(c *cli.Context) error {
	args, err := operands(c, "DIRECTORY")
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(args[0], &st); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	if err := onMount(args[0]); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || objstore.Ino(st.Ino).Volume() != objstore.RootVolume {
		return usageError("%s is no directory above the accounts: an account is encrypted from its beginning, or never", args[0])
	}
	value := "1"
	if c.Bool("off") {
		value = "0"
	}
	return setAttr(args[0], seal.PolicyAttr, []byte(value))
}

func destroyKeysCommand() *cli.Command {
	return &cli.Command{
		Name: "destroy-keys", Usage: "make an encrypted account's mail unreadable for good, wherever its bytes are", ArgsUsage: "PATH",
		Description: "PATH is the account's directory on a mount. See docs/encryption.md for what to do about copies of the key.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do it: there is no way back"}},
		Action: func(c *cli.Context) error {
			args, err := operands(c, "PATH")
			if err != nil {
				return err
			}
			return destroyKeys(args[0], c.Bool("yes"))
		},
	}
}

func destroyKeys(path string, sure bool) error {
	if err := onMount(path); err != nil {
		return err
	}
	if _, err := getAttr(path, seal.KeyAttr); errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("%s is not an encrypted account's directory", path)
	} else if err != nil {
		return err
	}
	if !sure {
		return usageError("this makes all mail in %s unreadable for good: say --yes", path)
	}
	if err := setAttr(path, seal.KeyAttr, seal.Destroyed()); err != nil {
		return err
	}
	// What the kernel of this host still has in memory goes, too.
	return filepath.WalkDir(path, func(name string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return nil // nothing of it can be read any more
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// eachVolume calls fn for every encrypted volume of a mount, with the path of its
// top directory and the value of its KeyAttr.
func eachVolume(point string, fn func(path string, vol objstore.VolumeID, value []byte) error) error {
	if err := onMount(point); err != nil {
		return err
	}
	return filepath.WalkDir(point, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		ino := objstore.Ino(st.Ino)
		if ino.IsVolumeRoot() {
			value, err := getAttr(path, seal.KeyAttr)
			if err == nil {
				err = fn(path, ino.Volume(), value)
			} else if errors.Is(err, unix.ENODATA) {
				err = nil
			}
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if ino.Volume() != objstore.RootVolume {
			return filepath.SkipDir
		}
		return nil
	})
}

// onMount says what is wrong if path is not on a mount.
func onMount(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if fs.Type != unix.FUSE_SUPER_MAGIC {
		return usageError("%s is on no Pillarbox mount", path)
	}
	return nil
}

func getAttr(path, name string) ([]byte, error) {
	b := make([]byte, 1024)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return nil, fmt.Errorf("%s: get %s: %w", path, name, err)
	}
	return b[:n], nil
}

func setAttr(path, name string, value []byte) error {
	if err := unix.Lsetxattr(path, name, value, 0); err != nil {
		return fmt.Errorf("%s: set %s: %w", path, name, err)
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
