package osdrpc

import (
	"context"
	"time"

	"pillarbox/osd"
	"pillarbox/osd/osdrpc/osdv1"
)

// adminServer is what admins ask. Errors are encoded by the server's guard.
type adminServer struct {
	osdv1.UnimplementedAdminServer
	s *Server
}

func (a *adminServer) Scrub(ctx context.Context, _ *osdv1.ScrubRequest) (*osdv1.Scrubbed, error) {
	s, err := a.s.backend.Scrub(ctx)
	if err != nil {
		return nil, err
	}
	return &osdv1.Scrubbed{Ended: s.Ended.Unix(), Chunks: uint64(s.Chunks), Healed: uint64(s.Healed), Bad: uint64(s.Bad)}, nil
}

// Scrub has the OSD read all its chunks and heal damaged ones, and waits for
// it. NotPermitted: the caller is no admin.
func (c *Conn) Scrub(ctx context.Context) (osd.Scrubbed, error) {
	m, err := osdv1.NewAdminClient(c.short).Scrub(ctx, &osdv1.ScrubRequest{})
	if err != nil {
		return osd.Scrubbed{}, c.fail(ctx, err)
	}
	return osd.Scrubbed{Ended: time.Unix(m.GetEnded(), 0), Chunks: int(m.GetChunks()), Healed: int(m.GetHealed()), Bad: int(m.GetBad())}, nil
}
