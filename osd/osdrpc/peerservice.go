package osdrpc

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/osd"
	"pillarbox/osd/osdrpc/osdv1"
)

// peerService is what other OSDs ask. Errors are encoded by the server's guard.
type peerService struct {
	osdv1.UnimplementedPeerServer
	s *Server
}

func (p *peerService) HasChunks(ctx context.Context, m *osdv1.ChunkList) (*osdv1.Answers, error) {
	var d decoder
	ids := d.chunks(m.GetIds(), osd.MaxChunkList)
	if d.err != nil {
		return nil, d.err
	}
	has, err := p.s.backend.HasChunks(ctx, ids)
	if err != nil {
		return nil, err
	}
	return &osdv1.Answers{Yes: has}, nil
}

func (p *peerService) HeldShards(ctx context.Context, m *osdv1.ChunkList) (*osdv1.Shards, error) {
	var d decoder
	ids := d.chunks(m.GetIds(), osd.MaxChunkList)
	if d.err != nil {
		return nil, d.err
	}
	held, err := p.s.backend.HeldShards(ctx, ids)
	if err != nil {
		return nil, err
	}
	b := make([]byte, len(held))
	for i, n := range held {
		b[i] = byte(n + 1)
	}
	return &osdv1.Shards{Held: b}, nil
}

func (p *peerService) FetchChunk(ctx context.Context, m *osdv1.ChunkID) (*osdv1.FetchChunkResponse, error) {
	var d decoder
	b, err := p.s.backend.FetchChunk(ctx, d.chunk(m))
	if err != nil {
		return nil, err
	}
	if len(b) > objstore.StoredMax {
		return nil, fmt.Errorf("chunk of %d bytes: %w", len(b), objstore.Corrupt)
	}
	return &osdv1.FetchChunkResponse{Data: b}, nil
}

func (p *peerService) DropChunks(ctx context.Context, m *osdv1.ChunkList) (*osdv1.Done, error) {
	var d decoder
	ids := d.chunks(m.GetIds(), osd.MaxChunkList)
	if d.err != nil {
		return nil, d.err
	}
	return &osdv1.Done{}, p.s.backend.DropChunks(ctx, ids)
}

func (p *peerService) WantedChunks(ctx context.Context, m *osdv1.WantedChunksRequest) (*osdv1.Answers, error) {
	return ownersAnswers(ctx, m, p.s.backend.WantedChunks)
}

func (p *peerService) Leftovers(ctx context.Context, m *osdv1.WantedChunksRequest) (*osdv1.Answers, error) {
	return ownersAnswers(ctx, m, p.s.backend.Leftovers)
}

// ownersAnswers puts a question about chunks to the leader of their volumes' group.
func ownersAnswers(ctx context.Context, m *osdv1.WantedChunksRequest, ask func(context.Context, uint32, []objstore.ChunkID) ([]bool, error)) (*osdv1.Answers, error) {
	var d decoder
	ids := d.chunks(m.GetIds(), osd.MaxChunkList)
	if d.err != nil {
		return nil, d.err
	}
	yes, err := ask(ctx, m.GetPg(), ids)
	if err != nil {
		return nil, err
	}
	return &osdv1.Answers{Yes: yes}, nil
}

func (p *peerService) Members(ctx context.Context, m *osdv1.GroupRequest) (*osdv1.MembersResponse, error) {
	term, osds, err := p.s.backend.Members(ctx, m.GetPg())
	if err != nil {
		return nil, err
	}
	out := make([]uint32, len(osds))
	for i, id := range osds {
		out[i] = uint32(id)
	}
	return &osdv1.MembersResponse{Term: term, Osds: out}, nil
}

// PullGroup sends pieces together until they are worth a message.
func (p *peerService) PullGroup(m *osdv1.GroupRequest, stream grpc.ServerStreamingServer[osdv1.GroupPieces]) error {
	batch, size := &osdv1.GroupPieces{}, 0
	flush := func() error {
		if len(batch.Pieces) == 0 {
			return nil
		}
		err := stream.Send(batch)
		batch, size = &osdv1.GroupPieces{}, 0
		return err
	}
	err := p.s.backend.PullGroup(stream.Context(), m.GetPg(), func(piece osd.GroupPiece) error {
		w := pieceToWire(piece)
		w.Key, w.Value = bytes.Clone(w.Key), bytes.Clone(w.Value)
		n := proto.Size(w) + 8
		if size+n > pieceBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		batch.Pieces = append(batch.Pieces, w)
		size += n
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// Raft hands another OSD's messages on. What a group makes of them does not end
// the stream, for all groups share it.
func (p *peerService) Raft(stream grpc.BidiStreamingServer[osdv1.RaftBatch, osdv1.Beat]) error {
	ctx := stream.Context()
	_, name, err := caller(ctx)
	if err != nil {
		return err
	}
	from, err := osdOf(name)
	if err != nil {
		return err
	}
	p.s.heard(from)
	defer p.s.heard(from)
	ctx, cancel := context.WithCancel(ctx)
	beats := make(chan struct{})
	defer func() { cancel(); <-beats }()
	go func() {
		defer close(beats)
		p.sendBeats(ctx, stream)
	}()
	var complained time.Time
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		var d decoder
		ms := d.raft(m)
		if d.err != nil {
			return d.err
		}
		if err := p.s.backend.Step(ctx, from, ms); err != nil && time.Since(complained) > time.Minute {
			complained = time.Now()
			p.s.log.Warn("raft messages not taken in", "from", osdName(from), "err", err)
		}
	}
}

// sendBeats lets the sender know that this OSD is alive.
func (p *peerService) sendBeats(ctx context.Context, stream grpc.BidiStreamingServer[osdv1.RaftBatch, osdv1.Beat]) {
	tick := time.NewTicker(p.s.beat)
	defer tick.Stop()
	for stream.Send(&osdv1.Beat{}) == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
