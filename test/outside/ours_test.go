package outside

import (
	"encoding/json"
	"net"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"pillarbox/test/harness"
)

// ours starts a Pillarbox as the provider, with a bucket, and returns the settings of
// a pool in it, and the directory where the bucket's objects are files.
func ours(t *testing.T) (map[string]string, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	n := harness.Start(t, harness.Options{Args: []string{"--s3", addr}})
	out, err := exec.Command(harness.Binary(t), "s3", "user", "create", "alice", "--format", "json", "--data", n.Data).Output()
	var key struct {
		Access string `json:"access_key"`
		Secret string `json:"secret_key"`
	}
	if err == nil {
		err = json.Unmarshal(out, &key)
	}
	if err != nil {
		t.Fatalf("make a user: %v", err)
	}
	settings := map[string]string{
		"endpoint": "http://" + addr, "bucket": "bodies", "region": "us-east-1", "path_style": "true", "access_key": key.Access, "secret_key": key.Secret,
	}
	c := s3.New(s3.Options{
		BaseEndpoint: aws.String(settings["endpoint"]), Region: "us-east-1", UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(key.Access, key.Secret, ""),
	})
	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("bodies")}); err != nil {
		t.Fatal(err)
	}
	return settings, filepath.Join(n.Mount, "bodies")
}
