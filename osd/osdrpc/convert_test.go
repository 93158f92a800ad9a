package osdrpc

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/osd"
	"pillarbox/osd/osdrpc/osdv1"
)

// overWire encodes a message and decodes it again.
func overWire[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestChangeTypes notices a new kind of change that the wire does not carry.
func TestChangeTypes(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../../objstore/change.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var want, have []string
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil && fn.Name.Name == "Volume" {
			want = append(want, fn.Recv.List[0].Type.(*ast.Ident).Name)
		}
	}
	for _, typ := range changeTypes {
		have = append(have, typ.Name())
	}
	slices.Sort(want)
	slices.Sort(have)
	if len(want) < 16 || !slices.Equal(have, want) {
		t.Errorf("package objstore has changes %v, tested are %v", want, have)
	}
}

func TestChangesRoundTrip(t *testing.T) {
	r := seeded(t)
	for _, typ := range changeTypes {
		for range 200 {
			v := reflect.New(typ).Elem()
			filler{r}.fill(v)
			want := v.Interface().(objstore.Change)
			m, err := changeToWire(want)
			if err != nil {
				t.Fatal(err)
			}
			var d decoder
			if got := d.change(overWire(t, m)); d.err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v came back as %+v, %v", want, got, d.err)
			}
		}
		zero := reflect.Zero(typ).Interface().(objstore.Change)
		m, err := changeToWire(zero)
		if err != nil {
			t.Fatal(err)
		}
		var d decoder
		if got := d.change(overWire(t, m)); d.err != nil || !reflect.DeepEqual(got, zero) {
			t.Fatalf("%+v came back as %+v, %v", zero, got, d.err)
		}
	}
}

// roundTrip sends random values of a type and compares what comes back.
func roundTrip[T any, M proto.Message](t *testing.T, encode func(T) M, decode func(*decoder, M) T) {
	t.Helper()
	r := seeded(t)
	for range 500 {
		want := random[T](r)
		var d decoder
		if got := decode(&d, overWire(t, encode(want))); d.err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v came back as %+v, %v", want, got, d.err)
		}
	}
}

func TestTypesRoundTrip(t *testing.T) {
	roundTrip(t, func(a objstore.Attr) *osdv1.Attr { return attrToWire(&a) }, func(_ *decoder, m *osdv1.Attr) objstore.Attr { return attrFromWire(m) })
	roundTrip(t, func(e objstore.DirEntry) *osdv1.DirEntry { return entryToWire(&e) }, (*decoder).entry)
	roundTrip(t, func(e objstore.Extent) *osdv1.Extent { return extentsToWire([]objstore.Extent{e})[0] }, (*decoder).extent)
	roundTrip(t, func(r objstore.Result) *osdv1.Result { return resultToWire(&r) }, func(d *decoder, m *osdv1.Result) objstore.Result { return d.result(m) })
	roundTrip(t, requestToWire, func(_ *decoder, m *osdv1.Request) objstore.Request { return requestFromWire(m) })
	roundTrip(t, chunkToWire, (*decoder).chunk)
	roundTrip(t, func(p objstore.Promise) *osdv1.ApplyRequest { return &osdv1.ApplyRequest{Promise: uint32(p)} },
		func(d *decoder, m *osdv1.ApplyRequest) objstore.Promise { return d.promise(m.GetPromise()) })
}

func TestPiecesRoundTrip(t *testing.T) {
	r := seeded(t)
	for range 100 {
		head := random[osd.GroupHead](r)
		for _, want := range []osd.GroupPiece{{Head: &head}, {Key: random[[]byte](r), Value: random[[]byte](r)}, {Key: random[[]byte](r)}} {
			var d decoder
			got := d.piece(overWire(t, pieceToWire(want)))
			if want.Head != nil && got.Head != nil {
				if !proto.Equal(got.Head.Members, head.Members) {
					t.Fatalf("%v came back as %v", head.Members, got.Head.Members)
				}
				got.Head.Members = head.Members
			}
			if d.err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v came back as %+v, %v", want, got, d.err)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	long := strings.Repeat("x", objstore.MaxName+1)
	extent := func(e objstore.Extent) objstore.Change { return objstore.Write{Extents: []objstore.Extent{e}} }
	for _, c := range []struct {
		change objstore.Change
		want   objstore.Kind
	}{
		{objstore.Create{Name: long}, objstore.NameTooLong},
		{objstore.Create{Name: "n", Target: strings.Repeat("x", objstore.MaxSymlink+1)}, objstore.NameTooLong},
		{objstore.Link{Name: long}, objstore.NameTooLong},
		{objstore.Remove{Name: long}, objstore.NameTooLong},
		{objstore.Rename{OldName: long}, objstore.NameTooLong},
		{objstore.Rename{NewName: long}, objstore.NameTooLong},
		{objstore.ReserveVolume{Name: long}, objstore.NameTooLong},
		{objstore.AttachVolume{Name: long}, objstore.NameTooLong},
		{objstore.SetXattr{Name: long}, objstore.NameTooLong},
		{objstore.RemoveXattr{Name: long}, objstore.NameTooLong},
		{objstore.SetXattr{Name: "n", Value: make([]byte, objstore.MaxXattr+1)}, objstore.TooBig},
		{objstore.SetAttr{Set: 2 * objstore.SetCtime}, objstore.Invalid},
		{objstore.Purge{Vol: objstore.MaxVolume + 1}, objstore.Invalid},
		{objstore.Purge{Inos: make([]objstore.Ino, maxList+1)}, objstore.Invalid},
		{objstore.InitVolume{Vol: objstore.MaxVolume + 1}, objstore.Invalid},
		{objstore.AttachVolume{Vol: objstore.MaxVolume + 1}, objstore.Invalid},
		{objstore.SealVolume{Vol: objstore.MaxVolume + 1}, objstore.Invalid},
		{objstore.DropVolume{Vol: objstore.MaxVolume + 1}, objstore.Invalid},
		{objstore.PendVolume{Vol: objstore.MaxVolume + 1}, objstore.Invalid},
		{objstore.FreeChunks{Vol: objstore.MaxVolume + 1}, objstore.Invalid},
		{objstore.FreeChunks{Chunks: make([]objstore.ChunkID, maxList+1)}, objstore.Invalid},
		{objstore.Write{Extents: slices.Repeat([]objstore.Extent{{Len: 1}}, maxList+1)}, objstore.Invalid},
		{objstore.Write{Extents: slices.Repeat([]objstore.Extent{{Kind: objstore.Resident, Len: 1, Data: make([]byte, objstore.ResidentMax)}}, 130)}, objstore.Invalid},
		{extent(objstore.Extent{Len: 0}), objstore.Invalid},
		{extent(objstore.Extent{Len: objstore.ChunkSize + 1}), objstore.Invalid},
		{extent(objstore.Extent{Off: 1, Len: objstore.ChunkSize}), objstore.Invalid},
		{extent(objstore.Extent{Off: math.MaxUint64, Len: 2}), objstore.Invalid},
		{extent(objstore.Extent{Len: 1, Kind: objstore.Pooled + 1}), objstore.Invalid},
		{extent(objstore.Extent{Len: 2, Kind: objstore.Pooled, ChunkOff: objstore.ChunkSize - 1}), objstore.Invalid},
		{extent(objstore.Extent{Len: 1, Kind: objstore.Pooled, Data: []byte("x")}), objstore.Invalid},
		{extent(objstore.Extent{Len: 1, Kind: objstore.Hole, Data: []byte("x")}), objstore.Invalid},
		{extent(objstore.Extent{Len: 1, Kind: objstore.Inline, Data: make([]byte, objstore.InlineMax+1)}), objstore.Invalid},
		{extent(objstore.Extent{Len: 1, Kind: objstore.Resident, Data: make([]byte, objstore.ResidentMax+objstore.SealRoom+1)}), objstore.Invalid},
	} {
		m, err := changeToWire(c.change)
		if err != nil {
			t.Fatal(err)
		}
		var d decoder
		d.change(m)
		if !errors.Is(d.err, c.want) {
			t.Errorf("%T: %v, want %v", c.change, d.err, c.want)
		}
	}
	var d decoder
	if d.change(&osdv1.Change{}); !errors.Is(d.err, objstore.Unsupported) {
		t.Errorf("an empty change: %v", d.err)
	}
	d = decoder{}
	if d.promise(uint32(objstore.Committed) + 1); !errors.Is(d.err, objstore.Invalid) {
		t.Errorf("an unknown promise: %v", d.err)
	}
	d = decoder{}
	if d.change(&osdv1.Change{Change: &osdv1.Change_FreeChunks{FreeChunks: &osdv1.FreeChunks{Chunks: []*osdv1.ChunkID{nil}}}}); !errors.Is(d.err, objstore.Invalid) {
		t.Errorf("a missing chunk id: %v", d.err)
	}
	d = decoder{}
	if d.raft(&osdv1.RaftBatch{Messages: []*osdv1.RaftMessage{{Pg: 1}}}); !errors.Is(d.err, objstore.Invalid) {
		t.Errorf("an empty raft message: %v", d.err)
	}
	for _, p := range []*osdv1.GroupPiece{{}, {Head: &osdv1.GroupHead{}}, {Key: make([]byte, maxKey+1)}} {
		d = decoder{}
		if d.piece(p); !errors.Is(d.err, objstore.Invalid) {
			t.Errorf("piece %v: %v", p, d.err)
		}
	}
	for _, id := range []int64{-1, maxOSD + 1} {
		d = decoder{}
		if d.osd(id); !errors.Is(d.err, objstore.Invalid) {
			t.Errorf("OSD %d: %v", id, d.err)
		}
	}
}

// A change of a kind that this program has not heard of.
type unheardOf struct{}

func (unheardOf) Volume() objstore.VolumeID { return 0 }

func TestUnknownChange(t *testing.T) {
	if _, err := changeToWire(unheardOf{}); !errors.Is(err, objstore.Unsupported) {
		t.Errorf("encoded: %v", err)
	}
}

// Whatever bytes come, decoding neither panics nor lets through what the limits
// forbid; and what it lets through survives being sent again.
func FuzzChange(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		m, err := changeToWire(randomChange(r))
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &osdv1.Change{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		var d decoder
		c := d.change(m)
		if d.err != nil {
			var kind objstore.Kind
			if !errors.As(d.err, &kind) {
				t.Fatalf("an error of no kind: %v", d.err)
			}
			return
		}
		if c.Volume() > objstore.MaxVolume {
			t.Fatalf("volume %d", c.Volume())
		}
		if w, ok := c.(objstore.Write); ok {
			for _, e := range w.Extents {
				if e.Len == 0 || e.Len > objstore.ChunkSize || e.Kind > objstore.Pooled || len(e.Data) > objstore.ResidentMax+objstore.SealRoom {
					t.Fatalf("extent %+v", e)
				}
			}
		}
		again, err := changeToWire(c)
		if err != nil {
			t.Fatal(err)
		}
		var d2 decoder
		if c2 := d2.change(overWire(t, again)); d2.err != nil || !reflect.DeepEqual(c, c2) {
			t.Fatalf("%+v came back as %+v, %v", c, c2, d2.err)
		}
	})
}

func TestPushOverWire(t *testing.T) {
	r := seeded(t)
	for range 100 {
		p := random[objstore.Push](r)
		for i := range p.Events {
			p.Events[i].Kind = objstore.EventKind(1 + r.IntN(int(objstore.Purged)))
		}
		var d decoder
		if got := d.push(overWire(t, pushToWire(&p))); d.err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("%+v came back as %+v, %v", p, got, d.err)
		}
	}
}

func FuzzPush(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		p := random[objstore.Push](r)
		b, err := proto.Marshal(pushToWire(&p))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &osdv1.Push{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		var d decoder
		p := d.push(m)
		if d.err == nil && !proto.Equal(pushToWire(&p), m) && len(m.ProtoReflect().GetUnknown()) == 0 {
			var again decoder
			if q := again.push(pushToWire(&p)); again.err != nil || !reflect.DeepEqual(p, q) {
				t.Fatalf("%+v came back as %+v, %v", p, q, again.err)
			}
		}
	})
}
