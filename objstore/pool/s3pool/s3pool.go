// Package s3pool keeps a pool's objects in a bucket of Amazon S3, or of anything
// that speaks its protocol: Ceph's Object Gateway, MinIO, Pillarbox itself.
// Requests are retried with jitter, as many at a time as the store takes (the
// SDK's adaptive mode).
package s3pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	attempts    = 6    // of each request
	deleteBatch = 1000 // objects in a request
)

// Store is a bucket, or what is below a prefix of it.
type Store struct {
	client       *s3.Client
	bucket       string
	prefix       string
	storageClass types.StorageClass
	encryption   types.ServerSideEncryption
}

var _ pool.Store = (*Store)(nil)

// Secret says whether a setting is one of the credentials.
func Secret(setting string) bool {
	return setting == "access_key" || setting == "secret_key" || setting == "session_token"
}

// Check says what is wrong with settings.
func Check(settings map[string]string) error {
	for name, value := range settings {
		switch name {
		case "endpoint", "bucket", "prefix", "region", "storage_class", "sse", "ca_file", "profile", "access_key", "secret_key", "session_token":
		case "path_style":
			if value != "true" && value != "false" {
				return fmt.Errorf("path_style %q: must be true or false: %w", value, objstore.Invalid)
			}
		default:
			return fmt.Errorf("unknown setting %q: %w", name, objstore.Invalid)
		}
	}
	if settings["bucket"] == "" {
		return fmt.Errorf("no bucket: %w", objstore.Invalid)
	}
	if p := settings["prefix"]; strings.HasPrefix(p, "/") || strings.HasSuffix(p, "/") {
		return fmt.Errorf("prefix %q begins or ends with a slash: %w", p, objstore.Invalid)
	}
	return nil
}

// Open makes a Store of settings: bucket, and maybe endpoint, prefix, region,
// path_style, storage_class, sse, ca_file and profile; access_key, secret_key and
// session_token, or else the SDK's usual chain: environment, files, instance role.
func Open(ctx context.Context, settings map[string]string) (*Store, error) {
	if err := Check(settings); err != nil {
		return nil, err
	}
	region := settings["region"]
	if region == "" && settings["endpoint"] != "" {
		region = "us-east-1"
	}
	options := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer {
			return retry.NewAdaptiveMode(func(o *retry.AdaptiveModeOptions) {
				o.StandardOptions = append(o.StandardOptions, func(o *retry.StandardOptions) { o.MaxAttempts = attempts })
			})
		}),
	}
	if region != "" {
		options = append(options, config.WithRegion(region))
	}
	if p := settings["profile"]; p != "" {
		options = append(options, config.WithSharedConfigProfile(p))
	}
	if key := settings["access_key"]; key != "" {
		options = append(options, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(key, settings["secret_key"], settings["session_token"])))
	}
	if path := settings["ca_file"]; path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		options = append(options, config.WithCustomCABundle(bytes.NewReader(pem)))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("settings of S3: %w", err)
	}
	s := &Store{
		bucket: settings["bucket"], storageClass: types.StorageClass(settings["storage_class"]), encryption: types.ServerSideEncryption(settings["sse"]),
	}
	if p := settings["prefix"]; p != "" {
		s.prefix = p + "/"
	}
	s.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		if e := settings["endpoint"]; e != "" {
			o.BaseEndpoint = aws.String(e)
			// Stores of others often lack the newer checksums; ours is in the body.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		}
		o.UsePathStyle = settings["path_style"] == "true"
	})
	return s, nil
}

func (s *Store) key(name string) *string { return aws.String(s.prefix + name) }

// fail gives an error of the SDK its kind.
func fail(what, name string, err error) error {
	kind := objstore.Unavailable
	var absent *types.NoSuchKey
	var status interface{ HTTPStatusCode() int }
	switch {
	case errors.As(err, &absent):
		kind = objstore.NotFound
	case errors.As(err, &status) && status.HTTPStatusCode() == 403:
		kind = objstore.NotPermitted
	case errors.As(err, &status) && status.HTTPStatusCode() == 416: // a range behind the end
		kind = objstore.Corrupt
	case errors.As(err, &status) && status.HTTPStatusCode() == 507:
		kind = objstore.NoSpace
	}
	return fmt.Errorf("%s %s: %w: %w", what, name, kind, err)
}

// Put implements pool.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.bucket, Key: s.key(name), Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data))),
		StorageClass: s.storageClass, ServerSideEncryption: s.encryption,
	})
	if err != nil {
		return fail("put", name, err)
	}
	return nil
}

// Get implements pool.Store. A body that was cut on its way is asked for again.
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	var err error
	for range attempts {
		if err = s.get(ctx, name, off, p); err == nil || !errors.Is(err, errCut) || ctx.Err() != nil {
			break
		}
	}
	return err
}

var errCut = errors.New("the body was cut on its way")

func (s *Store) get(ctx context.Context, name string, off int64, p []byte) error {
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: &s.bucket, Key: s.key(name), Range: aws.String(fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1)),
	})
	if err != nil {
		return fail("get", name, err)
	}
	defer out.Body.Close()
	if n := aws.ToInt64(out.ContentLength); n != int64(len(p)) {
		return fmt.Errorf("get %s: %d bytes at %d where %d were asked for: %w", name, n, off, len(p), objstore.Corrupt)
	}
	if _, err := io.ReadFull(out.Body, p); err != nil {
		return fmt.Errorf("get %s: %w: %w: %w", name, objstore.Unavailable, errCut, err)
	}
	return nil
}

// Delete implements pool.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	for len(names) > 0 {
		n := min(len(names), deleteBatch)
		list := make([]types.ObjectIdentifier, n)
		for i, name := range names[:n] {
			list[i].Key = s.key(name)
		}
		names = names[n:]
		out, err := s.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &s.bucket, Delete: &types.Delete{Objects: list, Quiet: aws.Bool(true)}})
		if err != nil {
			return fail("delete", fmt.Sprint(n, " objects"), err)
		}
		for _, e := range out.Errors {
			if aws.ToString(e.Code) != "NoSuchKey" {
				return fmt.Errorf("delete %s: %w: %s: %s", aws.ToString(e.Key), objstore.Unavailable, aws.ToString(e.Code), aws.ToString(e.Message))
			}
		}
	}
	return nil
}

// List implements pool.Store.
func (s *Store) List(ctx context.Context, fn func(pool.Object) error) error {
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fail("list", s.bucket, err)
		}
		for _, o := range page.Contents {
			err := fn(pool.Object{Name: strings.TrimPrefix(aws.ToString(o.Key), s.prefix), Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
