package s3

import (
	"encoding/base64"
	"math/rand/v2"
	"testing"
)

func TestJoinedSums(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, algorithm := range []string{"CRC32", "CRC32C", "CRC64NVME"} {
		for range 50 {
			whole, parts := newHash(algorithm), newJoined(algorithm)
			for range r.IntN(6) {
				p := make([]byte, r.IntN(5000))
				for i := range p {
					p[i] = byte(r.Uint32())
				}
				one := newHash(algorithm)
				one.Write(p)
				whole.Write(p)
				parts.add(one.Sum(nil), uint64(len(p)))
			}
			if want := base64.StdEncoding.EncodeToString(whole.Sum(nil)); parts.value() != want {
				t.Fatalf("%s: %s, want %s", algorithm, parts.value(), want)
			}
		}
	}
}
