//go:build beside

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"golang.org/x/sync/errgroup"

	"pillarbox/test/mailset"
)

var (
	loadRounds   = flag.Int("load-rounds", 4, "rounds of each load")
	loadMessages = flag.Int("load-messages", 400, "messages that are delivered in a round")
	loadCommands = flag.Int("load-commands", 40, "commands of each IMAP client in a round")
)

const (
	loadUsers = 25
	lmtpConns = 16
	loadIMAP  = 50 // clients, two for each user
)

// server is a Dovecot whose mail lies somewhere.
type server struct {
	where string
	*dovecot
	rates [2][]float64 // of each round: messages by LMTP, IMAP commands
}

// TestMailBeside gives real Dovecots the same load, by turns: one on ext4, one on a
// store of one host, one on a cluster of three OSDs, all on one disk. It prints what
// they did in a second, and how that is beside ext4.
func TestMailBeside(t *testing.T) {
	set := loadMail(t, 0)
	plain := &site{base: newBase(t)}
	plain.mail = filepath.Join(plain.base, "mail")
	mkdir(t, plain.mail, 0, 0o755)
	var servers []*server
	for _, p := range []struct {
		where string
		*site
	}{{"ext4", plain}, {"one host", newSite(t)}, {"cluster", newHosts(t, 1)[0]}} {
		for i := range loadUsers {
			p.account(t, "load.test", fmt.Sprint("user", i), vmailID)
		}
		s := &server{where: p.where, dovecot: startDovecot(t, p.site)}
		inject(t, s.lmtp, "LHLO", lmtpConns, set[:20*loadUsers], loadUser)
		servers = append(servers, s)
	}
	for round := range *loadRounds {
		for i := range servers {
			s := servers[(i+round)%len(servers)]
			began := time.Now()
			inject(t, s.lmtp, "LHLO", lmtpConns, roundOf(set, round, *loadMessages), loadUser)
			s.rates[0] = append(s.rates[0], float64(*loadMessages)/time.Since(began).Seconds())
			began = time.Now()
			s.clients(t, set, uint64(round))
			s.rates[1] = append(s.rates[1], float64(loadIMAP**loadCommands)/time.Since(began).Seconds())
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-24s %-10s %10s %12s\n", "", "mail on", "a second", "beside ext4")
	for what, name := range []string{"LMTP, 16 connections", "IMAP, 50 clients"} {
		for _, s := range servers {
			var ratios []float64
			sum := 0.0
			for i, rate := range s.rates[what] {
				ratios = append(ratios, rate/servers[0].rates[what][i])
				sum += rate
			}
			slices.Sort(ratios)
			n := len(ratios)
			fmt.Fprintf(&table, "%-24s %-10s %10.0f %7.2f  %.2f-%.2f\n", name, s.where, sum/float64(n), (ratios[n/2]+ratios[(n-1)/2])/2, ratios[0], ratios[n-1])
		}
	}
	t.Log("the median of the rounds' ratios, and the least and the greatest\n" + table.String())
	for _, s := range servers {
		s.checkLog(t)
	}
}

func loadUser(i int) string { return fmt.Sprintf("user%d@load.test", i%loadUsers) }

// roundOf is a round's part of the set, which is gone through again and again.
func roundOf(set []mailset.Message, round, n int) (some []mailset.Message) {
	for i := range n {
		some = append(some, set[(round*n+i)%len(set)])
	}
	return some
}

// clients runs all IMAP clients to their end. What they do follows from the round alone.
func (s *server) clients(t *testing.T, set []mailset.Message, round uint64) {
	t.Helper()
	var group errgroup.Group
	for i := range loadIMAP {
		group.Go(func() error {
			c, err := s.dial(loadUser(i), nil)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Select("INBOX", nil).Wait(); err != nil {
				return fmt.Errorf("SELECT: %w", err)
			}
			l := &imapLoad{c, rand.New(rand.NewPCG(round, uint64(i))), set}
			for range *loadCommands {
				if err := l.command(); err != nil && !expunged(err) {
					return fmt.Errorf("%s on %s: %w", loadUser(i), s.where, err)
				}
			}
			return c.Logout().Wait()
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// expunged says that another client of the same mailbox removed what was asked for.
func expunged(err error) bool {
	var e *imap.Error
	return errors.As(err, &e) && (e.Code == "EXPUNGEISSUED" || strings.Contains(e.Text, "expunged"))
}

// imapLoad is a client that does what imaptest's do, in similar parts.
type imapLoad struct {
	c   *imapclient.Client
	rnd *rand.Rand
	set []mailset.Message
}

func (l *imapLoad) command() error {
	n := uint32(0)
	if box := l.c.Mailbox(); box != nil {
		n = box.NumMessages
	}
	newest := imap.SeqSetNum(n - min(uint32(l.rnd.IntN(20)), max(n, 1)-1))
	switch p := l.rnd.IntN(100); {
	case n == 0 || p < 12:
		msg := l.set[l.rnd.IntN(len(l.set))].Wire()
		cmd := l.c.Append("INBOX", int64(len(msg)), nil)
		if _, err := cmd.Write(msg); err != nil {
			return err
		}
		if err := cmd.Close(); err != nil {
			return err
		}
		_, err := cmd.Wait()
		return err
	case p < 35:
		return l.c.Fetch(imap.SeqSet{{Start: max(n, 20) - 19, Stop: n}}, &imap.FetchOptions{Flags: true, Envelope: true, RFC822Size: true}).Close()
	case p < 65:
		return l.body(newest)
	case p < 80:
		return storeFlags(l.c, newest, imap.StoreFlagsAdd, imap.FlagSeen)
	case p < 90:
		if err := storeFlags(l.c, imap.SeqSetNum(1), imap.StoreFlagsAdd, imap.FlagDeleted); err != nil {
			return err
		}
		return l.c.Expunge().Close()
	case p < 95:
		_, err := l.c.Select("INBOX", nil).Wait()
		return err
	}
	_, err := l.c.UIDSearch(&imap.SearchCriteria{NotFlag: []imap.Flag{imap.FlagSeen}}, nil).Wait()
	return err
}

// body fetches a message, which must be as long as it is said to be.
func (l *imapLoad) body(which imap.SeqSet) error {
	list, err := l.c.Fetch(which, &imap.FetchOptions{RFC822Size: true, BodySection: []*imap.FetchItemBodySection{whole}}).Collect()
	if err != nil {
		return err
	}
	for _, m := range list {
		if body := m.FindBodySection(whole); int64(len(body)) != m.RFC822Size {
			return fmt.Errorf("message %d has %d bytes, said are %d", m.SeqNum, len(body), m.RFC822Size)
		}
	}
	return nil
}
