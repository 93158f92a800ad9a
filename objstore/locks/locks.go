// Package locks is a table of file locks with the rules of fcntl(2) and flock(2),
// and nothing else: it keeps no time, waits for nothing, and starts nothing. The
// leader of a placement group has one of all clients' locks, a client one of its own.
package locks

import (
	"slices"

	"pillarbox/objstore"
)

// Owner is whose a lock is: as the kernel of one client names it.
type Owner struct {
	Session uint64
	ID      uint64
	Flock   bool // locks of flock(2) and of fcntl(2) do not see one another
}

// Lock is one lock. Start and End are bytes, both included.
type Lock struct {
	Owner      Owner
	Pid        uint32
	Write      bool
	Start, End uint64
}

func (l Lock) overlaps(start, end uint64) bool { return l.Start <= end && start <= l.End }

// Table holds locks by inode. The zero value is ready. It is not safe for
// concurrent use.
type Table struct{ inos map[objstore.Ino][]Lock }

// Conflict finds a lock of another owner that l cannot be beside.
func (t *Table) Conflict(ino objstore.Ino, l Lock) (Lock, bool) {
	for _, have := range t.inos[ino] {
		if have.Owner != l.Owner && have.Owner.Flock == l.Owner.Flock && (have.Write || l.Write) && have.overlaps(l.Start, l.End) {
			return have, true
		}
	}
	return Lock{}, false
}

// Blockers lists the owners of all locks that l cannot be beside.
func (t *Table) Blockers(ino objstore.Ino, l Lock) (owners []Owner) {
	for _, have := range t.inos[ino] {
		if have.Owner != l.Owner && have.Owner.Flock == l.Owner.Flock && (have.Write || l.Write) && have.overlaps(l.Start, l.End) {
			owners = append(owners, have.Owner)
		}
	}
	return owners
}

// Set gives the owner a lock, in the place of what it has in that range.
func (t *Table) Set(ino objstore.Ino, l Lock) {
	t.Clear(ino, l.Owner, l.Start, l.End)
	if t.inos == nil {
		t.inos = map[objstore.Ino][]Lock{}
	}
	list := t.inos[ino]
	// Neighbours of the same kind become one.
	for i := 0; i < len(list); {
		have := list[i]
		touches := have.End+1 == l.Start && l.Start != 0 || l.End+1 == have.Start && have.Start != 0
		if have.Owner != l.Owner || have.Write != l.Write || !touches {
			i++
			continue
		}
		l.Start, l.End = min(l.Start, have.Start), max(l.End, have.End)
		list = slices.Delete(list, i, i+1)
	}
	t.inos[ino] = append(list, l)
}

// Clear takes a range from what the owner has, and says whether there was any.
func (t *Table) Clear(ino objstore.Ino, o Owner, start, end uint64) (did bool) {
	var out []Lock
	for _, have := range t.inos[ino] {
		if have.Owner != o || !have.overlaps(start, end) {
			out = append(out, have)
			continue
		}
		did = true
		if have.Start < start {
			left := have
			left.End = start - 1
			out = append(out, left)
		}
		if have.End > end {
			right := have
			right.Start = end + 1
			out = append(out, right)
		}
	}
	t.put(ino, out)
	return did
}

// DropSession takes away all locks of a session and says whether there were any.
func (t *Table) DropSession(session uint64) (did bool) {
	for ino, list := range t.inos {
		left := slices.DeleteFunc(slices.Clone(list), func(l Lock) bool { return l.Owner.Session == session })
		did = did || len(left) < len(list)
		t.put(ino, left)
	}
	return did
}

func (t *Table) put(ino objstore.Ino, list []Lock) {
	if len(list) == 0 {
		delete(t.inos, ino)
	} else {
		t.inos[ino] = list
	}
}

// Held is a lock with its inode.
type Held struct {
	Ino objstore.Ino
	Lock
}

// All lists the locks of the inodes that in says.
func (t *Table) All(in func(objstore.Ino) bool) (out []Held) {
	for ino, list := range t.inos {
		if !in(ino) {
			continue
		}
		for _, l := range list {
			out = append(out, Held{ino, l})
		}
	}
	return out
}

// Of lists the locks that one owner has of an inode.
func (t *Table) Of(ino objstore.Ino, o Owner) (out []Lock) {
	for _, l := range t.inos[ino] {
		if l.Owner == o {
			out = append(out, l)
		}
	}
	return out
}

// Any says whether there is any lock of the inode.
func (t *Table) Any(ino objstore.Ino) bool { return len(t.inos[ino]) > 0 }

// Op is what a Request asks for.
type Op uint8

// The operations.
const (
	Test   Op = iota + 1 // is there a lock in the way?
	Try                  // set it if nothing is in the way
	Wait                 // set it once nothing is in the way, or give up after a while
	Unlock               // clear the range
)

// Request is what a client asks of the leader of an inode's placement group.
// The session of the owner is that of the lease it is made under.
type Request struct {
	Op   Op
	Ino  objstore.Ino
	Lock Lock
	Wait uint64 // numbers a session's waits: the same wait may take several requests
}

// Waiting is an owner that waits, and for whom.
type Waiting struct {
	Owner Owner
	Wait  uint64
	For   []Owner
}

// Answer says whether the lock was set, or would be; or else what was in the way.
type Answer struct {
	Granted bool
	Holder  Lock
}
