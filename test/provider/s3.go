package provider

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

// Pillarbox starts one with its S3 gateway and a bucket, and returns the settings of
// a pool in it, and the directory where the bucket's objects are files.
func Pillarbox(t *testing.T) (map[string]string, string) {
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
	settings := S3(t, addr, key.Access, key.Secret)
	return settings, filepath.Join(n.Mount, settings["bucket"])
}

// S3 makes a bucket in a gateway that runs, and returns the settings of a pool in it.
func S3(t *testing.T, addr, access, secret string) map[string]string {
	t.Helper()
	settings := map[string]string{
		"endpoint": "http://" + addr, "bucket": "bodies", "region": "us-east-1", "path_style": "true", "access_key": access, "secret_key": secret,
	}
	c := s3.New(s3.Options{
		BaseEndpoint: aws.String(settings["endpoint"]), Region: settings["region"], UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(access, secret, ""),
	})
	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(settings["bucket"])}); err != nil {
		t.Fatal(err)
	}
	return settings
}
