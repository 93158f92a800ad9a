package cachefs

import (
	"errors"
	"fmt"
	"math/rand"
	"testing"

	"pillarbox/objstore"
)

// TestShare writes to two files and shares ranges of one with the other, both
// ways, beside byte slices.
func TestShare(t *testing.T) {
	for seed := range int64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewSource(seed))
			b := newFS(t, Options{DirtyMax: 16 << 20, DirtyPerFile: 8 << 20})
			var h [2]*Handle
			var inos [2]objstore.Ino
			var model [2][]byte
			for i := range h {
				inos[i], h[i] = b.create(fmt.Sprint(i))
				defer h[i].Release()
			}
			lay := func(i, off int, p []byte) {
				if n := off + len(p); n > len(model[i]) {
					model[i] = append(model[i], make([]byte, n-len(model[i]))...)
				}
				copy(model[i][off:], p)
			}
			const size, piece = 9 << 20, 2 << 20
			for range 80 {
				i := r.Intn(2)
				off := r.Intn(size)
				if r.Intn(2) == 0 {
					off = len(model[i])
				}
				switch r.Intn(5) {
				case 0, 1:
					p := random(r, 1+r.Intn([]int{200, 60 << 10, piece}[r.Intn(3)]))
					b.write(h[i], p, uint64(off))
					lay(i, off, p)
				case 2, 3:
					src := model[1-i]
					if len(src) == 0 {
						continue
					}
					from := r.Intn(len(src))
					n := 1 + r.Intn(min(len(src)-from, 2*piece))
					c := objstore.Share{Ino: inos[i], Off: uint64(off), Src: inos[1-i], SrcOff: uint64(from), Len: uint64(n)}
					if err := b.fs.Share(b.ctx, c); err != nil {
						t.Fatalf("%+v: %v", c, err)
					}
					lay(i, off, src[from:from+n])
				default:
					b.want(h[i], model[i])
					b.check()
				}
			}
			b.want(h[0], model[0])
			b.want(h[1], model[1])
			if err := b.fs.Share(b.ctx, objstore.Share{Ino: inos[0], Src: inos[0], Len: 1}); !errors.Is(err, objstore.Invalid) {
				t.Fatalf("a file shared with itself: %v", err)
			}
		})
	}
}
