package s3

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"pillarbox/test/harness"
)

// BenchmarkS3 puts and gets objects with several clients at a time; beside each
// figure stands what a directory on the local disk does with as many writers
// that sync each file and rename it into place. Run it with
//
//	go test -run '^$' -bench . ./test/s3
func BenchmarkS3(b *testing.B) {
	node := harness.Start(b, harness.Options{Args: []string{"--s3", "127.0.0.1:7499"}})
	const url = "http://127.0.0.1:7499/bench"
	bin := harness.Binary(b)
	run := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=benchmark", "AWS_SECRET_ACCESS_KEY=benchmark-secret", "AWS_DEFAULT_REGION=us-east-1", "AWS_CA_BUNDLE=")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	secret := filepath.Join(b.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("benchmark-secret"), 0o600); err != nil {
		b.Fatal(err)
	}
	run(bin, "s3", "user", "create", "--data", node.Data, "--access-key", "benchmark", "--secret-key-file", secret, "bench")
	run("/usr/bin/aws", "--endpoint-url", "http://127.0.0.1:7499", "s3api", "create-bucket", "--bucket", "bench", "--acl", "public-read-write")
	disk := b.TempDir()
	do := newLoad(url).do
	onDisk := func(_, key string, body []byte) error {
		tmp := filepath.Join(disk, key+".tmp")
		f, err := os.Create(tmp)
		if err != nil {
			return err
		}
		if _, err = f.Write(body); err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		return os.Rename(tmp, filepath.Join(disk, key))
	}
	parallel := func(b *testing.B, clients, size int, method string, fn func(method, key string, body []byte) error) {
		body := random(size)
		b.SetBytes(int64(size))
		var next atomic.Int64
		var wg sync.WaitGroup
		b.ResetTimer()
		for range clients {
			wg.Go(func() {
				for {
					i := next.Add(1)
					if i > int64(b.N) {
						return
					}
					if err := fn(method, fmt.Sprintf("o%d", i%2000), body); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
	}
	for _, clients := range []int{8, 32} {
		b.Run(fmt.Sprintf("put-4KiB/%d", clients), func(b *testing.B) { parallel(b, clients, 4<<10, http.MethodPut, do) })
		b.Run(fmt.Sprintf("disk-4KiB/%d", clients), func(b *testing.B) { parallel(b, clients, 4<<10, "", onDisk) })
	}
	for i := range 2000 {
		if err := do(http.MethodPut, fmt.Sprintf("o%d", i), random(4<<10)); err != nil {
			b.Fatal(err)
		}
	}
	for _, clients := range []int{8, 32} {
		b.Run(fmt.Sprintf("get-4KiB/%d", clients), func(b *testing.B) { parallel(b, clients, 4<<10, http.MethodGet, do) })
	}
	b.Run("put-64MiB/2", func(b *testing.B) { parallel(b, 2, 64<<20, http.MethodPut, do) })
	b.Run("disk-64MiB/2", func(b *testing.B) { parallel(b, 2, 64<<20, "", onDisk) })
	if err := do(http.MethodPut, "o1", random(64<<20)); err != nil {
		b.Fatal(err)
	}
	b.Run("get-64MiB/1", func(b *testing.B) {
		parallel(b, 1, 64<<20, http.MethodGet, func(m, _ string, body []byte) error { return do(m, "o1", nil) })
	})
}
