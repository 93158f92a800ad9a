package osdrpc

import (
	"bytes"
	"testing"
	"unsafe"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	pb "google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/osd/osdrpc/osdv1"
)

// pieces cuts bytes into buffers, as the network does.
func pieces(b []byte, size int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(b) > 0 {
		n := min(size, len(b))
		out = append(out, mem.SliceBuffer(b[:n]))
		b = b[n:]
	}
	return out
}

// The codec writes and reads what protobuf's own does, of whatever shape.
func TestCodecIsProtobuf(t *testing.T) {
	own, theirs := newCodec(), encoding.GetCodecV2(proto.Name)
	f := filler{seeded(t)}
	for _, n := range []int{0, 1, 100, largeBuf - 1, largeBuf, objstore.StoredMax, objstore.StoredMax + 1} {
		data := f.bytes(n)
		for name, m := range map[string]pb.Message{
			"PutChunkRequest":            &osdv1.PutChunkRequest{Id: chunkToWire(random[objstore.ChunkID](f.Rand)), Data: data},
			"PutChunkRequest without id": &osdv1.PutChunkRequest{Data: data},
			"ReadChunkResponse":          &osdv1.ReadChunkResponse{Data: bytes.Clone(data)},
			"FetchChunkResponse":         &osdv1.FetchChunkResponse{Data: data},
		} {
			want := pb.Clone(m)
			sent, err := own.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			wire := sent.Materialize()
			sent.Free()
			fresh := func() pb.Message { return m.ProtoReflect().New().Interface() }
			got := fresh()
			if err := theirs.Unmarshal(pieces(wire, 16<<10), got); err != nil || !pb.Equal(got, want) && n > 0 {
				t.Errorf("%s of %d bytes is not protobuf, %v", name, n, err)
			}
			unknown := protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 7)
			for how, b := range map[string][]byte{
				"as sent": wire, "field after": append(bytes.Clone(wire), unknown...), "field before": append(bytes.Clone(unknown), wire...),
				"fields before": append(bytes.Repeat(unknown, 50), wire...),
			} {
				for _, size := range []int{7, 16 << 10} {
					if size == 7 && n > largeBuf {
						continue
					}
					got := fresh()
					if err := own.Unmarshal(pieces(b, size), got); err != nil {
						t.Fatalf("%s of %d bytes, %s: %v", name, n, how, err)
					}
					got.ProtoReflect().SetUnknown(nil)
					if r, ok := got.(*osdv1.ReadChunkResponse); ok && !bytes.Equal(r.Data, data) || !ok && n > 0 && !pb.Equal(got, want) {
						t.Errorf("%s of %d bytes, %s: came back different", name, n, how)
					}
				}
			}
			for cut := range min(len(wire), 40) {
				own.Unmarshal(pieces(wire[:cut], 5), fresh()) // must not panic
			}
		}
	}
}

// Large chunks arrive as direct I/O wants them.
func TestChunksAreAligned(t *testing.T) {
	c := newCodec()
	for range 5 {
		sent, err := c.Marshal(&osdv1.PutChunkRequest{Id: &osdv1.ChunkID{Ino: 1}, Data: make([]byte, objstore.ChunkSize)})
		if err != nil {
			t.Fatal(err)
		}
		m := &osdv1.PutChunkRequest{}
		if err := c.Unmarshal(pieces(sent.Materialize(), 16<<10), m); err != nil {
			t.Fatal(err)
		}
		sent.Free()
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(m.Data))); at%pageSize != 0 {
			t.Errorf("a chunk arrives at %#x", at)
		}
		chunkBufs.Put(&m.Data)
	}
}

// What a ReadChunkResponse brings goes straight to where the caller wants it.
func TestReadsGoToTheirPlace(t *testing.T) {
	c, p := newCodec(), make([]byte, 100<<10)
	data := filler{seeded(t)}.bytes(len(p))
	sent, err := c.Marshal(&osdv1.ReadChunkResponse{Data: bytes.Clone(data)})
	if err != nil {
		t.Fatal(err)
	}
	m := &osdv1.ReadChunkResponse{Data: p[:0:len(p)]}
	if err := c.Unmarshal(pieces(sent.Materialize(), 1000), m); err != nil {
		t.Fatal(err)
	}
	if unsafe.SliceData(m.Data) != unsafe.SliceData(p) || !bytes.Equal(p, data) {
		t.Error("the bytes are elsewhere or wrong")
	}
}
