package osdrpc

import (
	"fmt"
	"sync"
	"unsafe"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	pb "google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/osd/osdrpc/osdv1"
)

// codec is gRPC's for protobuf, but it spares chunks from being copied more
// than once. On the wire nothing differs.
//
//	PutChunkRequest     is sent from a copy in a buffer of chunkBufs, for gRPC may
//	                    look at it for a moment after the call was given up, when
//	                    the caller may change his; and read into such a buffer
//	ReadChunkResponse   is sent from a buffer of chunkBufs, which goes back when
//	                    it is sent, and read into what Data has capacity for
//	FetchChunkResponse  is sent from where it is
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// dataField is the number of the field with the chunk, the last of its message.
const dataField = 15

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	var head []byte
	var data mem.Buffer
	switch m := v.(type) {
	case *osdv1.PutChunkRequest:
		if len(m.Data) > objstore.StoredMax {
			return c.CodecV2.Marshal(v)
		}
		var err error
		if head, err = pb.Marshal(&osdv1.PutChunkRequest{Id: m.Id}); err != nil {
			return nil, fmt.Errorf("encode chunk: %w", err)
		}
		b := chunkBufs.Get(len(m.Data))
		copy(*b, m.Data)
		data = mem.NewBuffer(b, &chunkBufs)
	case *osdv1.ReadChunkResponse:
		data = mem.NewBuffer(&m.Data, &chunkBufs)
	case *osdv1.FetchChunkResponse:
		data = mem.SliceBuffer(m.Data)
	default:
		return c.CodecV2.Marshal(v)
	}
	head = protowire.AppendTag(head, dataField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(data.Len()))
	return mem.BufferSlice{mem.SliceBuffer(head), data}, nil
}

func (c codec) Unmarshal(b mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *osdv1.PutChunkRequest:
		if head, n, ok := splitChunk(b); ok {
			if err := pb.Unmarshal(head, m); err != nil {
				return fmt.Errorf("decode chunk: %w", err)
			}
			m.Data = copyChunk(*chunkBufs.Get(n), b)
			return nil
		}
	case *osdv1.ReadChunkResponse:
		if head, n, ok := splitChunk(b); ok && len(head) == 0 && n <= cap(m.Data) {
			m.Data = copyChunk(m.Data[:n], b)
			return nil
		}
	case *osdv1.FetchChunkResponse:
		if head, n, ok := splitChunk(b); ok && len(head) == 0 {
			m.Data = copyChunk(make([]byte, n), b)
			return nil
		}
	}
	return c.CodecV2.Unmarshal(b, v)
}

// splitChunk finds a message's chunk, its last n bytes, and the fields before
// it. A message of another shape is left to protobuf.
func splitChunk(b mem.BufferSlice) (fields []byte, n int, ok bool) {
	head := make([]byte, min(b.Len(), 64))
	b.CopyTo(head)
	for at := 0; at < len(head); {
		num, typ, tag := protowire.ConsumeTag(head[at:])
		if tag < 0 {
			return nil, 0, false
		}
		if num == dataField {
			size, varint := protowire.ConsumeVarint(head[at+tag:])
			start := at + tag + varint
			ok = typ == protowire.BytesType && varint > 0 && size <= objstore.StoredMax && start+int(size) == b.Len()
			return head[:at], int(size), ok
		}
		value := protowire.ConsumeFieldValue(num, typ, head[at+tag:])
		if value < 0 {
			return nil, 0, false
		}
		at += tag + value
	}
	return nil, 0, false
}

// copyChunk copies the last len(dst) bytes of a message.
func copyChunk(dst []byte, b mem.BufferSlice) []byte {
	skip, at := b.Len()-len(dst), 0
	for _, part := range b {
		p := part.ReadOnlyData()
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		at += copy(dst[at:], p[skip:])
		skip = 0
	}
	return dst
}

// chunkBufs is where the buffers of chunks on their way come from. The large
// ones lie as direct I/O wants them.
var chunkBufs bufPool

const (
	pageSize = 4096
	largeBuf = 64 << 10 // from this size on buffers are kept, all of StoredMax
)

type bufPool struct{ large sync.Pool }

// Get returns a buffer of n bytes, up to StoredMax.
func (p *bufPool) Get(n int) *[]byte {
	if n < largeBuf {
		b := make([]byte, n)
		return &b
	}
	b, _ := p.large.Get().(*[]byte)
	if b == nil {
		whole := make([]byte, objstore.StoredMax+pageSize)
		skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(whole)))) & (pageSize - 1)
		whole = whole[skip : skip+objstore.StoredMax : skip+objstore.StoredMax]
		b = &whole
	}
	*b = (*b)[:n]
	return b
}

// Put takes a buffer back; nobody may use it any more.
func (p *bufPool) Put(b *[]byte) {
	if cap(*b) == objstore.StoredMax {
		p.large.Put(b)
	}
}
