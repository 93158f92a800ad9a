package cluster

import (
	"fmt"
	"math"
	"testing"

	"github.com/anishathalye/porcupine"
)

// shared is how many names a directory has that all clients use.
const shared = 3

// names are the shared names of a directory: for each the inode that has it; 0:
// none has. Of a register, which only has the first, it is the value.
type names [shared]uint64

// anyone is an inode that is not known.
const anyone = math.MaxUint64

type verb int

const (
	createIt  verb = iota // O_EXCL; the answer has the inode
	linkIt                // a private file to the name
	replaceIt             // a private file renamed over the name
	takeIt                // renamed to a private name; the answer has the inode
	removeIt
	moveIt // renamed to another shared name
	lookAt // the answer has the inode, or the value
	setIt  // a register to a value
)

func (v verb) String() string {
	return [...]string{"create", "link", "replace", "take", "remove", "move", "look", "set"}[v]
}

// act is what a client asks for.
type act struct {
	verb verb
	name int
	to   int    // moveIt
	ino  uint64 // linkIt, replaceIt; the value for setIt
}

// reply is what it is told. unclear: it may have been done, and may yet be.
type reply struct {
	err error // nil, fs.ErrExist, fs.ErrNotExist or errUnclear
	ino uint64
}

// is says whether an inode is the one that was told of.
func (r reply) is(ino uint64) bool { return ino == r.ino || ino == anyone || r.ino == anyone }

// fits says whether this is the reply, or none.
func (r reply) fits(err error) bool { return r.err == err || r.err == errUnclear }

// step says whether the reply fits the names, and which names there are then. What
// is unclear fits always: at the end of time it is the same as never.
func (n names) step(a act, r reply) (bool, names) {
	has := n[a.name]
	switch a.verb {
	case createIt, linkIt:
		if has != 0 {
			return r.fits(errExists), n
		}
		switch {
		case a.verb == linkIt:
			n[a.name] = a.ino
		case r.err == nil:
			n[a.name] = r.ino
		default:
			n[a.name] = anyone
		}
		return r.fits(nil), n
	case replaceIt, setIt:
		n[a.name] = a.ino
		return r.fits(nil), n
	case takeIt, removeIt:
		if has == 0 {
			return r.fits(errAbsent), n
		}
		n[a.name] = 0
		return r.fits(nil) && (a.verb == removeIt || r.err != nil || r.is(has)), n
	case moveIt:
		if has == 0 {
			// Of two hosts that make the same move at once, the kernel of the second finds
			// that both names are of one file, and says that it is done.
			return r.fits(errAbsent) || n[a.to] != 0, n
		}
		n[a.name], n[a.to] = 0, has
		return r.fits(nil), n
	default:
		if has == 0 || r.err != nil {
			return has == 0 && r.err == errAbsent, n
		}
		ok := r.is(has)
		if has == anyone {
			n[a.name] = r.ino // now it is known
		}
		return ok, n
	}
}

var namesModel = porcupine.Model{
	Init: func() any { return names{} },
	Step: func(state, input, output any) (bool, any) {
		ok, next := state.(names).step(input.(act), output.(reply))
		return ok, next
	},
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v: %+v", input, output)
	},
}

// TestHistoryModel: histories that no filesystem may have are found.
func TestHistoryModel(t *testing.T) {
	op := func(call, ret int64, a act, r reply) porcupine.Operation {
		return porcupine.Operation{Call: call, Return: ret, Input: a, Output: r}
	}
	made := op(0, 1, act{verb: createIt}, reply{ino: 7})
	for what, c := range map[string]struct {
		list []porcupine.Operation
		ok   bool
	}{
		"found":               {[]porcupine.Operation{made, op(2, 3, act{verb: lookAt}, reply{ino: 7})}, true},
		"two create one name": {[]porcupine.Operation{made, op(2, 3, act{verb: createIt}, reply{ino: 8})}, false},
		"not found":           {[]porcupine.Operation{made, op(2, 3, act{verb: lookAt}, reply{err: errAbsent})}, false},
		"not found yet":       {[]porcupine.Operation{made, op(0, 3, act{verb: lookAt}, reply{err: errAbsent})}, true},
		"removed twice":       {[]porcupine.Operation{made, op(2, 9, act{verb: removeIt}, reply{}), op(3, 9, act{verb: takeIt}, reply{ino: 7})}, false},
		"another's":           {[]porcupine.Operation{made, op(2, 3, act{verb: replaceIt, ino: 9}, reply{}), op(4, 5, act{verb: takeIt}, reply{ino: 7})}, false},
		"unclear, and done later": {[]porcupine.Operation{
			op(0, math.MaxInt64, act{verb: createIt}, reply{err: errUnclear}), op(2, 3, act{verb: lookAt}, reply{err: errAbsent}), op(4, 5, act{verb: lookAt}, reply{ino: 5}),
		}, true},
		"unclear, and undone": {[]porcupine.Operation{
			op(0, math.MaxInt64, act{verb: createIt}, reply{err: errUnclear}), op(2, 3, act{verb: lookAt}, reply{ino: 5}), op(4, 5, act{verb: lookAt}, reply{err: errAbsent}),
		}, false},
		"moved":            {[]porcupine.Operation{made, op(2, 3, act{verb: moveIt, to: 1}, reply{}), op(4, 5, act{verb: lookAt, name: 1}, reply{ino: 7})}, true},
		"moved and stayed": {[]porcupine.Operation{made, op(2, 3, act{verb: moveIt, to: 1}, reply{}), op(4, 5, act{verb: lookAt}, reply{ino: 7})}, false},
		"an old value":     {[]porcupine.Operation{op(0, 1, act{verb: setIt, ino: 1}, reply{}), op(2, 3, act{verb: setIt, ino: 2}, reply{}), op(4, 5, act{verb: lookAt}, reply{ino: 1})}, false},
	} {
		if got := porcupine.CheckOperations(namesModel, c.list); got != c.ok {
			t.Errorf("%s: %v", what, got)
		}
	}
}
