package osdrpc

import (
	"fmt"
	"math/rand/v2"
	"reflect"

	"go.etcd.io/raft/v3/raftpb"

	"pillarbox/objstore"
)

// filler makes random values of any type, all fields filled, that keep to what
// the wire allows.
type filler struct{ *rand.Rand }

func random[T any](r *rand.Rand) T {
	var v T
	filler{r}.fill(reflect.ValueOf(&v).Elem())
	return v
}

func (f filler) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(f.Uint32())
	}
	return b
}

func (f filler) fill(v reflect.Value) {
	switch p := v.Addr().Interface().(type) {
	case *objstore.Ino: // never 0, which stands for none
		*p = objstore.Ino(f.Uint64()>>f.IntN(64)) | 1
		return
	case *objstore.VolumeID:
		*p = objstore.VolumeID(f.Uint32()) & objstore.MaxVolume
		return
	case *objstore.AttrMask:
		*p = objstore.AttrMask(f.Uint32()) & (2*objstore.SetCtime - 1)
		return
	case *objstore.Promise:
		*p = objstore.Promise(f.IntN(2))
		return
	case *objstore.Extent:
		f.fields(v)
		f.fitExtent(p)
		return
	case *raftpb.ConfState:
		p.Voters, p.Learners = []uint64{f.Uint64(), f.Uint64()}, []uint64{f.Uint64()}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		f.fields(v)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+f.IntN(5), 10))
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.String:
		v.SetString(string(f.bytes(1 + f.IntN(objstore.MaxName))))
	case reflect.Bool:
		v.SetBool(f.IntN(2) == 0)
	case reflect.Int64:
		v.SetInt(int64(f.Uint64() >> f.IntN(64)))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(f.Uint64() >> f.IntN(64) & (1<<v.Type().Bits() - 1))
	default:
		panic(fmt.Sprintf("no random values of %v", v.Type()))
	}
}

func (f filler) fields(v reflect.Value) {
	for i := range v.NumField() {
		f.fill(v.Field(i))
	}
}

// fitExtent bends a random extent so that the wire takes it.
func (f filler) fitExtent(e *objstore.Extent) {
	e.Kind = objstore.ExtentKind(f.IntN(int(objstore.Pooled) + 1))
	e.Len = 1 + f.Uint32N(objstore.ChunkSize)
	e.ChunkOff = f.Uint32N(objstore.ChunkSize + 1 - e.Len)
	e.Off = e.Off/objstore.ChunkSize*objstore.ChunkSize + f.Uint64N(uint64(objstore.ChunkSize+1-e.Len))
	switch e.Kind {
	case objstore.Inline:
		e.Data = f.bytes(1 + f.IntN(objstore.InlineMax))
	case objstore.Resident:
		e.Data = f.bytes(1 + f.IntN(objstore.ResidentMax))
	default:
		e.Data = nil
	}
}

// randomChange is a change of a random type.
func randomChange(r *rand.Rand) objstore.Change {
	v := reflect.New(changeTypes[r.IntN(len(changeTypes))]).Elem()
	filler{r}.fill(v)
	return v.Interface().(objstore.Change)
}

var changeTypes = []reflect.Type{
	reflect.TypeFor[objstore.Create](), reflect.TypeFor[objstore.Link](), reflect.TypeFor[objstore.Remove](),
	reflect.TypeFor[objstore.Rename](), reflect.TypeFor[objstore.SetAttr](), reflect.TypeFor[objstore.Write](),
	reflect.TypeFor[objstore.SetXattr](), reflect.TypeFor[objstore.RemoveXattr](), reflect.TypeFor[objstore.Purge](),
	reflect.TypeFor[objstore.ReserveVolume](), reflect.TypeFor[objstore.InitVolume](), reflect.TypeFor[objstore.AttachVolume](),
	reflect.TypeFor[objstore.SealVolume](), reflect.TypeFor[objstore.DropVolume](), reflect.TypeFor[objstore.PendVolume](),
	reflect.TypeFor[objstore.FreeChunks](), reflect.TypeFor[objstore.Share](), reflect.TypeFor[objstore.MoveChunk](),
	reflect.TypeFor[objstore.Reparent](),
	reflect.TypeFor[objstore.Pack](),
}
